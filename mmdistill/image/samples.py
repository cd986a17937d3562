"""Samples of torch data sets, data sets of columns, arrays and lists as tensors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.files.columns import are_hidden, class_names_of, known_split, require_one_each
from mmdistill.files.saved import from_array
from mmdistill.image.class_labels import class_labels
from mmdistill.image.pictures import pixels_of, require_bytes, resized, resizing_notes
from mmdistill.image.tensor_files import NAMES, by_split
from mmdistill.names import first_few

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
"""Under which of these a row that names its values has its image and its label."""
READ_TWICE = 16
"""So many samples of a data set, the first ones, are read twice: a flip by chance leaves all as they were in one of
65,536 cases."""


class MapDataset(Protocol):
    """A map-style torch data set of (sample, label), or one whose rows name them, as Hugging Face's do."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample with its label."""
        ...


class Labelled(NamedTuple):
    """Images ``(N, ...)``, class indices ``(N,)`` and, where their source says them, names by class index.

    Then come notes on what was done to the images, in words, and the numbers that labels were, where the names are of
    them.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    numbers: tuple[int, ...] | None = None


def parts(source: Mapping[str, Any], holder: str = "the data hold") -> tuple[Any, Any, tuple[str, ...]]:
    """Return the training data of a mapping, its test data where it has any, and notes on what is not read.

    Where it has no split for testing, or one whose labels are hidden, that for validation is tested on.

    Args:
        source: data by the name of their split, or tensors by the names that files of images have.
        holder: what the mapping is, with its verb, for messages.
    Raises:
        DataError: names of neither, two of one split, or images without labels.
    """
    source = by_split(source, holder)
    require_one_each(source)
    splits = {known_split(key) or str(key): key for key in source}
    if "train" not in splits:
        raise DataError(
            f"a mapping of images has the splits train and test, or {NAMES[0]} and {NAMES[1]}, got "
            f"{first_few(list(source)) or 'an empty one'}"
        )
    train, notes = splits.pop("train"), []
    if "test" in splits and _keeps_labels_back(source[splits["test"]]):
        notes = [f"the split {splits.pop('test')} is not read, since its labels are hidden"]
    test = splits.pop("test", None) or splits.pop("dev", None)
    if known_split(test) == "dev":
        notes.insert(0, f"test: the split {test}, as there is no {'other' if notes else 'test'}")
    notes += [f"the split {other} is not read" for other in splits.values()]
    return source[train], None if test is None else source[test], tuple(notes)


def _keeps_labels_back(part: Any) -> bool:
    """Return whether a split with columns says nothing of its classes."""
    column = next((name for name in LABEL_COLUMNS if name in (getattr(part, "column_names", None) or ())), None)
    return column is not None and are_hidden(part[column])


def labelled(
    source: Any,
    what: str,
    names: Sequence[str] | None = None,
    size: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Labelled:
    """Read images and labels of a pair, or of a map-style data set.

    Args:
        source: a pair of images (a tensor, an array or a list of samples) and labels (a tensor, an array, a list or a
            column of a table), or a map-style data set.
        what: what the source is, for messages.
        names: the classes that labels in words count; None: the labels themselves, in order.
        size: resize pictures to ``size`` x ``size``; None keeps them.
        numbers: those that the training data's classes were, of test data, where these did not count from 0.
    Raises:
        ConfigError: a size of tensors or arrays.
        DataError: something else.
    """
    if isinstance(source, list) and len(source) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in source):
        source = source[0], source[1]
    if not isinstance(source, tuple):
        _require_map_style(source, what)
        return _gathered(source, what, names, size, numbers)
    if len(source) != 2:
        raise DataError(f"{what}: expected (images, labels), got {len(source)} of them")
    images, labels = source
    found = class_labels(labels, what, names, numbers)
    if isinstance(images, list | tuple):
        if len(images) != len(found.indices):
            raise DataError(f"{what}: {len(images)} images and {len(found.indices)} labels")
        stacked, notes = _stacked(images, what, size)
        return Labelled(stacked, found.indices, found.names, notes, found.numbers)
    if size is not None:
        raise _unsizable(what)
    return Labelled(_as_numbers(images, what), found.indices, found.names, (), found.numbers)


def _unsizable(what: str) -> ConfigError:
    return ConfigError(f"a size is for pictures, and {what} are tensors or arrays: resize them, and leave it out")


def _require_map_style(source: object, what: str) -> None:
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "keys"):
        return
    hint = "; give the data set that it loads" if isinstance(source, torch.utils.data.DataLoader) else ""
    if hasattr(source, "keys"):
        hint = "; give its images and labels as a pair, (data['images'], data['labels'])"
    raise DataError(f"{what}: {type(source).__name__} is no map-style data set, which has a length and an index{hint}")


def _as_numbers(images: object, what: str) -> Tensor:
    found = from_array(images, what) if isinstance(images, np.ndarray) else images
    if not isinstance(found, Tensor):
        raise DataError(
            f"{what}: expected (images, labels), of which images are a tensor, an array or a list of samples, got "
            f"{type(images).__name__}"
        )
    return found


def _gathered(
    dataset: MapDataset, what: str, names: Sequence[str] | None, size: int | None, numbers: Sequence[int] | None
) -> Labelled:
    """Read every (sample, label) of a map-style data set into tensors.

    Raises:
        DataError: among others, samples that change from one reading to the next.
    """
    labels: list[Any] = []

    def samples() -> Iterator[Any]:
        for index in range(len(dataset)):
            called = f"{what}: item {index}"
            sample, label = _sample_and_label(dataset[index], called)
            labels.append(label)
            yield sample
            if index < READ_TWICE:
                _require_steady(sample, _sample_and_label(dataset[index], called)[0], called)

    (images, notes), own = _stacked(samples(), what, size), _own_names(dataset)
    found = class_labels(labels, what, own if names is None else names, numbers)
    return Labelled(images, found.indices, found.names or own, notes, found.numbers)


def _require_steady(sample: Any, again: Any, what: str) -> None:
    """Refuse a sample that another reading gives otherwise, of which one view by chance would be the data.

    Raises:
        DataError: it does.
    """
    first, second = (as_tensor(one, what).nan_to_num() for one in (sample, again))
    if not torch.equal(first, second):
        raise DataError(
            f"{what} changes from one reading to the next, as by a random transform; give the data set without it: "
            "methods and judges augment by themselves"
        )


def _sample_and_label(item: Any, what: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        keys = [next((key for key in known if key in item), None) for known in (IMAGE_COLUMNS, LABEL_COLUMNS)]
        if None in keys:
            raise DataError(
                f"{what} names {first_few(list(item))}; an image is looked for under {', '.join(IMAGE_COLUMNS)} and a "
                f"label under {', '.join(LABEL_COLUMNS)}: rename the columns"
            )
        return item[keys[0]], item[keys[1]]
    if not isinstance(item, Sequence) or len(item) != 2:
        raise DataError(f"{what} is no (sample, label) pair but {type(item).__name__}")
    return item[0], item[1]


def _own_names(dataset: object) -> tuple[str, ...] | None:
    """Return the names in a data set's ``classes``, or of the classes of its column of labels; None without either."""
    names = getattr(dataset, "classes", None)
    if names is None:
        names = next(filter(None, (class_names_of(dataset, column) for column in LABEL_COLUMNS)), None)
    return tuple(str(name) for name in names) if isinstance(names, Sequence) and not isinstance(names, str) else None


def _stacked(samples: Iterable[Any], what: str, size: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Return samples as one tensor ``(N, channels, height, width)``, and notes.

    Samples may be tensors, PIL images or arrays (``(channels, height, width)``, or ``(height, width)``). PIL images are
    turned upright; where some are grey and others are not, all get three channels.

    Raises:
        ConfigError: a size of tensors or arrays.
        DataError: samples of several shapes or types.
    """
    images: list[Tensor] = []
    pictures, refitted = True, 0
    for index, sample in enumerate(samples):
        image = as_tensor(sample, f"{what}: item {index}")
        if size is not None:
            if not isinstance(sample, Image.Image):
                raise _unsizable(what)
            if image.shape[1:] != (size, size):
                image, refitted = resized(image, size, size), refitted + 1
        pictures &= isinstance(sample, Image.Image)
        first = images[0] if images else image
        grown = len(image) != len(first) and pictures
        if image.shape[grown:] != first.shape[grown:] or image.dtype != first.dtype:
            raise DataError(
                f"{what}: item {index} is {image.dtype} of shape {tuple(image.shape)}, item 0 is {first.dtype} of "
                f"{tuple(first.shape)}; bring all samples to one shape and type"
                f"{', of pictures by asking for a size (--size 64, or size=64)' * pictures}"
            )
        images.append(image)
    if not images:
        raise DataError(f"{what} is empty")
    channels = max(map(len, images))
    found = torch.stack([image.expand(channels, -1, -1) for image in images])
    return found, resizing_notes(what, refitted, size)


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
