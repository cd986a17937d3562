"""Read samples of torch data sets, data sets with columns, arrays and lists into tensors."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

from mmdistill.checks import item_by_number
from mmdistill.errors import ConfigError, DataError
from mmdistill.files.columns import SPLIT_NAMES, are_hidden, class_names_of, known_split, require_one_each
from mmdistill.files.paths import users_path
from mmdistill.files.saved import from_array
from mmdistill.image.class_labels import Labelled, as_list, class_labels
from mmdistill.image.pictures import decode, pixels_of, require_bytes, resized, resizing_notes
from mmdistill.image.tensor_files import NAMES, by_split, is_role
from mmdistill.names import first_few

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
"""Keys of the image and of the label in a row that is a mapping."""
READ_TWICE = 16
"""How many first samples are read twice to detect random transforms; random flips are missed once in 65,536 cases."""


class MapDataset(Protocol):
    """A map-style torch data set of (sample, label) pairs, or of rows with named values as in Hugging Face's."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample with its label."""
        ...


def find_splits(source: Mapping[str, Any], holder: str = "the data hold") -> tuple[Any, Any, tuple[str, ...]]:
    """Return a mapping's training data, its test data (None: it has none), and notes on what is not read.

    Without a test split, or if its labels are hidden, the validation split is the test data; of several, the first by
    its spelling in :data:`~mmdistill.files.columns.SPLIT_NAMES`.

    Args:
        source: data by split, or tensors by the names of :mod:`mmdistill.image.tensor_files`.
        holder: the mapping and its verb, for messages.
    Raises:
        DataError: other names, two training or test splits, or images without labels.
    """
    given, source = source, by_split(source, holder)
    of_validation = [key for key in source if known_split(key) == "dev"]
    of_validation.sort(key=lambda key: SPLIT_NAMES["dev"].index(str(key).strip().lower()))
    first_of_each = [key for key in source if key not in of_validation[1:]]
    require_one_each(first_of_each)
    splits = {known_split(key) or str(key): key for key in first_of_each}
    if "train" not in splits:
        advice = "; call those to train on X_train, y_train" * any(map(is_role, given))
        raise DataError(
            f"a mapping of images has the splits train and test, or {NAMES[0]} and {NAMES[1]}, got "
            f"{first_few(list(given)) or 'an empty one'}{advice}"
        )
    train, notes = splits.pop("train"), []
    if "test" in splits and _hides_labels(source[splits["test"]]):
        notes = [f"the split {splits.pop('test')} is not read, since its labels are hidden"]
    test = splits.pop("test", None) or splits.pop("dev", None)
    if known_split(test) == "dev":
        notes.insert(0, f"test: the split {test}, as there is no {'other' if notes else 'test'}")
    notes += [f"the split {other} is not read" for other in (*splits.values(), *of_validation[1:])]
    return source[train], None if test is None else source[test], tuple(notes)


def _hides_labels(split: Any) -> bool:
    """Return whether a split has a column of labels that are all hidden."""
    column = next((name for name in LABEL_COLUMNS if name in (getattr(split, "column_names", None) or ())), None)
    return column is not None and are_hidden(split[column])


def read_labelled(
    source: Any,
    what: str,
    names: Sequence[str] | None = None,
    size: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Labelled:
    """Read images and labels of a pair, or of a map-style data set.

    Args:
        source: a pair of images (a tensor, an array, or a list or column of samples) and labels (a tensor, an array, a
            list or a column), or a map-style data set.
        what: names the source in messages.
        names: class names by index, for labels in words; None: the labels themselves, sorted.
        size: resize pictures to ``size`` x ``size``; None keeps them.
        numbers: for test data, the training labels that were renumbered, by class index.
    Raises:
        ConfigError: a size for tensors or arrays.
        DataError: another source, or unusable images or labels.
    """
    if isinstance(source, list) and len(source) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in source):
        source = source[0], source[1]
    if not isinstance(source, tuple):
        _require_map_style(source, what)
        return _read_dataset(source, what, names, size, numbers)
    if len(source) != 2:
        hint = "; of four give two pairs, (train_images, train_labels) and test=(test_images, test_labels)"
        raise DataError(f"{what}: expected (images, labels), got {len(source)} of them{hint * (len(source) == 4)}")
    images, given_labels = as_list(source[0]), source[1]
    labels = class_labels(given_labels, what, names, numbers)
    if isinstance(images, list | tuple):
        if len(images) != len(labels.indices):
            raise DataError(f"{what}: {len(images)} images and {len(labels.indices)} labels")
        stacked, notes = _stack(images, what, size)
        return Labelled(stacked, labels.indices, labels.names, notes + labels.notes, labels.numbers)
    if size is not None:
        raise _size_error(what)
    return Labelled(_array_of_images(images, what), labels.indices, labels.names, labels.notes, labels.numbers)


def _size_error(what: str) -> ConfigError:
    return ConfigError(f"a size is for pictures, and {what} are tensors or arrays: resize them, and leave it out")


def _require_map_style(source: object, what: str) -> None:
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "keys"):
        return
    hint = "; give the data set that it loads" if isinstance(source, DataLoader) else ""
    if hasattr(source, "keys"):
        hint = "; give its images and labels as a pair, (data['images'], data['labels'])"
    raise DataError(f"{what}: {type(source).__name__} is no map-style data set, which has a length and an index{hint}")


def _array_of_images(images: object, what: str) -> Tensor:
    tensor = from_array(images, what) if isinstance(images, np.ndarray) else images
    if not isinstance(tensor, Tensor):
        raise DataError(
            f"{what}: expected (images, labels), of which images are a tensor, an array or a list of samples, got "
            f"{type(images).__name__}"
        )
    return tensor


def _read_dataset(
    dataset: MapDataset, what: str, names: Sequence[str] | None, size: int | None, numbers: Sequence[int] | None
) -> Labelled:
    """Read every (sample, label) of a map-style data set into tensors.

    Raises:
        DataError: among others, samples that change from one reading to the next.
    """
    item_labels: list[Any] = []
    is_none = f"{what}: {type(dataset).__name__} is no pair of images and labels"

    def read_samples() -> Iterator[Any]:
        for index in range(len(dataset)):
            item = f"{what}: item {index}"
            sample, label = _sample_and_label(item_by_number(dataset, index, is_none, "(image, label)"), item)
            item_labels.append(label)
            yield sample
            if index < READ_TWICE:
                _require_equal(sample, _sample_and_label(dataset[index], item)[0], item)

    images, notes = _stack(read_samples(), what, size)
    dataset_names = _class_names(dataset, what)
    labels = class_labels(item_labels, what, dataset_names if names is None else names, numbers)
    return Labelled(images, labels.indices, labels.names or dataset_names or (), notes + labels.notes, labels.numbers)


def _require_equal(sample: Any, again: Any, what: str) -> None:
    """Refuse a sample that changes when it is read again: a single random view would become the data.

    Raises:
        DataError: it changes.
    """
    first, second = (as_tensor(reading, what).nan_to_num() for reading in (sample, again))
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


def _class_names(dataset: object, what: str) -> tuple[str, ...] | None:
    """Return a data set's ``classes``, or the class names of its column of labels; None without either.

    Those of a ``Subset`` or ``ConcatDataset`` of torch are in the data sets that it was made of, unless these transform
    labels: a part may have other classes then.

    Raises:
        DataError: the parts of a ``ConcatDataset`` name different classes.
    """
    if isinstance(dataset, Subset):
        return None if _transforms_labels(dataset.dataset) else _class_names(dataset.dataset, what)
    if isinstance(dataset, ConcatDataset):
        parts = dataset.datasets
        named = {None if _transforms_labels(part) else _class_names(part, what) for part in parts}
        if len(named - {None}) > 1:
            several = " and ".join(f"({first_few(names)})" for names in named if names is not None)
            raise DataError(
                f"{what} join data sets of the classes {several}, whose labels differ: give all the same classes"
            )
        return named.pop() if len(named) == 1 else None
    names = getattr(dataset, "classes", None)
    if names is None:
        names = next(filter(None, (class_names_of(dataset, column) for column in LABEL_COLUMNS)), None)
    return tuple(str(name) for name in names) if isinstance(names, Sequence) and not isinstance(names, str) else None


def _transforms_labels(dataset: object) -> bool:
    """Return whether a data set of torchvision, or one like it, has a transform that may change labels."""
    both = getattr(dataset, "transforms", None)  # where only images are transformed, it holds None for labels
    return any(getattr(part, "target_transform", other) is not None for part, other in ((dataset, None), (both, both)))


def _stack(samples: Iterable[Any], what: str, size: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Stack samples to one tensor ``(N, channels, height, width)``, and return it with notes.

    Samples may be pictures (PIL images, paths of image files, dictionaries of ``bytes`` as in Hugging Face's columns),
    or tensors, arrays and nested lists (``(channels, height, width)``, or ``(height, width)``). Pictures are turned
    upright; if some but not all are grey, all get three channels.

    Raises:
        ConfigError: a size for tensors or arrays.
        DataError: samples of several shapes or types.
    """
    images: list[Tensor] = []
    only_pictures, resized_count = True, 0
    for index, sample in enumerate(samples):
        image = as_tensor(sample, f"{what}: item {index}")
        if size is not None:
            if not _is_picture(sample):
                raise _size_error(what)
            if image.shape[1:] != (size, size):
                image, resized_count = resized(image, size, size), resized_count + 1
        only_pictures &= _is_picture(sample)
        first = images[0] if images else image
        # Pictures may differ in their channels: grey ones are expanded below.
        compared_from = 1 if only_pictures and len(image) != len(first) else 0
        if image.shape[compared_from:] != first.shape[compared_from:] or image.dtype != first.dtype:
            raise DataError(
                f"{what}: item {index} is {image.dtype} of shape {tuple(image.shape)}, item 0 is {first.dtype} of "
                f"{tuple(first.shape)}; bring all samples to one shape and type"
                f"{', of pictures by asking for a size (--size 64, or size=64)' * only_pictures}"
            )
        images.append(image)
    if not images:
        raise DataError(f"{what} is empty")
    channels = max(map(len, images))
    stacked = torch.stack([image.expand(channels, -1, -1) for image in images])
    return stacked, resizing_notes(what, resized_count, size)


def _is_picture(sample: object) -> bool:
    """Return whether a sample is a picture, whose pixels are read as bytes and may be resized."""
    return isinstance(sample, Image.Image | str | os.PathLike | Mapping)


def as_tensor(sample: object, what: str) -> Tensor:
    """Return a sample as a tensor ``(channels, height, width)``.

    Raises:
        DataError: a sample of another type or shape, or a file that is no image.
    """
    if isinstance(sample, Mapping):
        content, name = sample.get("bytes"), sample.get("path")
        sample = decode(f"{what} ({name})" if name else what, io.BytesIO(content)) if content else name
    if isinstance(sample, str | os.PathLike):
        path = users_path(sample)
        if not path.is_file():
            raise DataError(f"{what} is the path {str(sample)!r}, and there is no such file")
        sample = decode(str(path))
    elif isinstance(sample, Image.Image):
        require_bytes(sample, what)
        sample = pixels_of(sample)
    elif isinstance(sample, np.ndarray | list):
        sample = _from_numbers(sample, what)
    if not isinstance(sample, Tensor):
        raise DataError(
            f"{what} holds a {type(sample).__name__}; expected a tensor, an array, a PIL image or the path of one"
        )
    if sample.ndim == 2:
        sample = sample[None]
    if sample.ndim != 3:
        raise DataError(f"{what} has shape {tuple(sample.shape)}; expected (channels, height, width)")
    return sample


def _from_numbers(values: npt.NDArray[Any] | list[Any], what: str) -> Tensor:
    """Return an array, or nested lists of numbers, as a tensor.

    Raises:
        DataError: not of numbers, or lists of several lengths.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        values = values.tolist()
    try:
        return from_array(np.asarray(values), what)
    except ValueError as error:
        raise DataError(f"{what} is a list whose rows have several lengths") from error
