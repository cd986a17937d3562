"""A distilled set's own account of its units, for use without the task: raw images normalised, and its pixels."""

from functools import partial
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmdistill.checks import are_numbers
from mmdistill.distilled import DistilledSet, is_number, stored_value
from mmdistill.errors import DataError, ShapeError, UnsupportedError
from mmdistill.execution.isolation import isolated, recordable
from mmdistill.image.data import SCALES_APART, destandardised, standardised
from mmdistill.image.whitening import Whitening
from mmdistill.task import TaskInfo, one_tensor

_whitenings: WeakKeyDictionary[DistilledSet, Whitening] = WeakKeyDictionary()
"""Of the sets that were asked for, since each keeps its matrix on the devices that it was used on."""


@isolated
def normalised(images: Any, found: DistilledSet) -> Tensor:
    """Return raw images, test images say, as networks that train on a set of images expect them.

    The same numbers as the task's own normalisation, whitening included.

    Args:
        images: as the data came, on the scale of the training images: a tensor or an array.
        found: the set.

    Shapes:
        images ``(..., channels, height, width)``, or ``(n, height, width)`` of one channel; returns them with their
        channel, float32.
    Raises:
        UnsupportedError: a set of other data than images.
        ShapeError: images of another shape than the set's.
        DataError: pixels on another scale than the set's.
    """
    units, whitening, mean, std = _units(found)
    raw = recordable(_tensor(images).detach())
    shape = tuple(units["shape"])
    raw = raw[:, None] if raw.ndim == 3 and raw.shape[-3:] != shape and shape[0] == 1 else raw
    if raw.shape[-3:] != shape:
        hint = "; give images.permute(0, 3, 1, 2)" if raw.shape[1:] == (*shape[1:], shape[0]) else ""
        raise ShapeError(
            f"images of {found.info.data} are (..., channels, height, width) and end with {shape}, got "
            f"{tuple(raw.shape)}{hint}"
        )
    _require_scale(raw, units, found)
    scaled = raw.to(torch.float32) / units["scale"]
    if mean:
        scaled = standardised(scaled, mean, std)
    return scaled if whitening is None else whitening.apply(scaled)


@isolated
def to_pixels(found: DistilledSet) -> Tensor:
    """Return a set's images as pixels on the scale of the data that it was distilled from, clamped to their range.

    Data of bytes give bytes. The range of whitened floats is not known to a set, and taken to be 0 to 1.

    Shapes:
        returns ``(n, channels, height, width)``, uint8 or float32; :func:`normalised` turns them back, but for what
        rounding and clamping lose.
    Raises:
        UnsupportedError: a set of other data than images; images whitened by ``kip``, each of which has lost its
            brightness and contrast.
    """
    units, whitening, mean, std = _units(found)
    if whitening is not None and whitening.kind == "kip":
        raise UnsupportedError(
            "whitening by 'kip' takes each image's brightness and contrast away; with the task, the export 'folder' "
            "gives pictures of the training images' mean ones"
        )
    images = one_tensor(found.batch.inputs).float()
    if whitening is not None:
        flat = torch.linalg.solve(whitening.matrix.double(), images.flatten(1).double().T).T
        images = (flat.float() + whitening.mean).view_as(images)
    if mean:
        images = destandardised(images, mean, std)
    low, high = units.get("range", (0.0, 1.0))
    raw: Tensor = images.clamp(low, high) * units["scale"]
    return raw if units["scale"] == 1 else raw.round().to(torch.uint8)


def _tensor(images: Any) -> Tensor:
    """Return a tensor as it is, and other images as one.

    Raises:
        DataError: what is no array of numbers, or of other ones than pixels.
    """
    try:
        found = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"images are a tensor or an array, got {type(images).__name__}") from error
    if found.dtype != torch.uint8 and not found.is_floating_point():
        raise DataError(f"pixels are bytes (uint8) or floats, got {found.dtype}")
    return found


def _units(found: DistilledSet) -> tuple[dict[str, Any], Whitening | None, tuple[float, ...], tuple[float, ...]]:
    """Return a set's preprocessing, its whitening, and the moments of the channels that are standardised.

    Raises:
        UnsupportedError: a set of other data than images.
        CheckpointError: a damaged one.
    """
    if found.info.domain != "image":
        raise UnsupportedError(f"this set is of {found.info.domain} data, which have no pixels")
    units = stored_units(found.info)
    made = units.get("whitening")
    moments = units if made is None else made
    mean, std = (tuple(moments.get(name, ())) for name in ("mean", "std"))
    if made is None:
        return units, None, mean, std
    if found not in _whitenings:
        tensors = found.info.tensors
        nothing = torch.empty(0)  # pixels are solved for, so that nobody waits for the inverse without asking for them
        own = Whitening(made["kind"], tensors["whitening.mean"], tensors["whitening.matrix"], nothing)
        _whitenings[found] = own
    return units, _whitenings[found], mean, std


def stored_units(info: TaskInfo) -> dict[str, Any]:
    """Return a set's preprocessing.

    Raises:
        CheckpointError: one of its values is of another kind, as in a file that was edited.
    """
    stored_value(info, "scale", is_number, "number")
    channels = stored_value(info, "shape", partial(are_numbers, kind=Real, count=3), "list of 3 numbers")[0]
    for name, count in (("mean", channels), ("std", channels), ("range", 2)):
        if name in info.preprocessing:
            stored_value(info, name, partial(are_numbers, kind=Real, count=count), f"list of {count} numbers")
    return dict(info.preprocessing)


def _require_scale(images: Tensor, units: dict[str, Any], found: DistilledSet) -> None:
    """Refuse pixels that are clearly on another scale than those of a set's data, such as bytes as floats up to 1."""
    if not images.numel():
        return
    scale, limits = units["scale"], units.get("range", (0.0, 1.0))
    largest, limit = float(images.abs().max()), scale * max(abs(limits[0]), abs(limits[1]))
    floats_of_bytes = images.is_floating_point() and scale > 1
    rescaled = floats_of_bytes and (largest <= 1 or bool((images < 0).any()))
    if largest and (rescaled or largest > SCALES_APART * limit or limit > SCALES_APART * largest):
        raise DataError(
            f"raw images of {found.info.data} reach up to {limit:g}, and these up to {largest:g}; give them as the "
            "training images were, neither scaled nor normalised"
        )
