"""Samples of torch data sets, arrays and lists as tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.saved import NUMBERED, from_array
from mmdistill.image.pictures import pixels_of, require_bytes


class MapDataset(Protocol):
    """A map-style torch data set of (sample, label)."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample with its label."""
        ...


def gather(dataset: MapDataset, what: str) -> tuple[Tensor, Tensor]:
    """Read every (sample, label) of a map-style data set into tensors.

    Samples may be tensors, PIL images or arrays (``(channels, height, width)``, or ``(height, width)``). PIL images are
    turned upright; where some are grey and others are not, all get three channels.

    Raises:
        DataError: an item that is no (sample, label) pair, or samples of several shapes or types.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    modes: set[str | None] = set()
    for index in range(len(dataset)):
        item = dataset[index]
        if isinstance(item, Mapping) or not isinstance(item, Sequence) or len(item) != 2:
            raise DataError(f"{what}: item {index} is no (sample, label) pair but {type(item).__name__}")
        image = as_tensor(item[0], f"{what}: item {index}")
        modes.add(item[0].mode if isinstance(item[0], Image.Image) else None)
        first = images[0] if images else image
        grown = len(image) != len(first) and None not in modes
        if image.shape[grown:] != first.shape[grown:] or image.dtype != first.dtype:
            raise DataError(
                f"{what}: item {index} is {image.dtype} of shape {tuple(image.shape)}, item 0 is {first.dtype} of "
                f"{tuple(first.shape)}; bring all samples to one shape and type"
            )
        labels.append(class_index(item[1], f"{what}: the label of item {index}"))
        images.append(image)
    if not images:
        raise DataError(f"{what} is empty")
    # Pictures of two levels alone have always come in three channels; runs of these go on.
    channels = 3 if modes == {"1"} else max(map(len, images))
    return torch.stack([image.expand(channels, -1, -1) for image in images]), torch.tensor(labels)


def class_index(label: Any, what: str) -> int:
    """Return a label as an integer.

    Raises:
        DataError: it is none.
    """
    try:
        index = int(label)
        whole = bool(index == label)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        hint = NUMBERED if isinstance(label, str) else ""
        raise DataError(f"{what} is no class index but {label!r}{hint}") from error
    if not whole:
        raise DataError(f"{what} is no class index but {label!r}")
    return index


def as_tensor(sample: object, what: str) -> Tensor:
    """Return a sample as a tensor ``(channels, height, width)``.

    Raises:
        DataError: a sample of another type or shape.
    """
    if isinstance(sample, Image.Image):
        require_bytes(sample, what)
        sample = pixels_of(sample)
    elif isinstance(sample, np.ndarray):
        sample = from_array(sample, what)
    if not isinstance(sample, Tensor):
        raise DataError(f"{what} holds a {type(sample).__name__}; expected a tensor, a PIL image or an array")
    if sample.ndim == 2:
        sample = sample[None]
    if sample.ndim != 3:
        raise DataError(f"{what} has shape {tuple(sample.shape)}; expected (channels, height, width)")
    return sample
