"""Sets of images in Python as tensors by name: pairs, data sets, samples in lists and labels in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.image.class_labels import class_labels, index_numbers
from mmdistill.image.data import ImageData
from mmdistill.image.samples import read_labelled
from mmdistill.importers import as_tensor, noted
from mmdistill.names import first_few

DATASET = "data set"
"""The name of a data set among values."""
PAIR = "pair"
"""The name of a pair of images and labels among values."""
WHAT = "the set"


def values_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return a pair of images and labels, or a data set with a label for each sample, by its kind; None for others."""
    if isinstance(value, list | tuple):
        if not value or any(isinstance(entry, str | Path) for entry in value):
            return None
        is_pair = isinstance(value, tuple) or all(isinstance(entry, Tensor | np.ndarray) for entry in value)
        return {PAIR if is_pair and len(value) == 2 else DATASET: value}
    is_dataset = hasattr(value, "__getitem__") and hasattr(value, "__len__") and not hasattr(value, "keys")
    return {DATASET: value} if is_dataset and not isinstance(value, Tensor | np.ndarray) else None


def tensors_by_name(values: Mapping[str, Any], images: str, labels: str, data: ImageData) -> dict[str, Any]:
    """Return values with their data set, listed samples and labels in words as tensors, read as a task's data are.

    Args:
        values: by name.
        images: the name of the images.
        labels: the name of the labels.
        data: of the task.
    Raises:
        DataError: samples or labels that cannot be read.
    """
    if DATASET in values:
        return _dataset_by_name(values[DATASET], data)
    is_pair = PAIR in values
    if is_pair:
        images, labels = "images", "labels"
        values = dict(zip((images, labels), values[PAIR], strict=True))
    converted = {name: value.to_list() if hasattr(value, "to_list") else value for name, value in values.items()}
    samples, classes = converted.get(images), converted.get(labels)
    if isinstance(samples, list | tuple) and samples and not isinstance(samples[0], int | float | list):
        converted[images] = read_labelled((samples, [0] * len(samples)), WHAT, data.class_names).images
    if isinstance(classes, list | tuple | np.ndarray) and any(isinstance(label, str) for label in classes):
        converted[labels] = class_labels(classes, WHAT, data.class_names).indices
    elif is_pair:
        converted[labels] = _indices_of_numbers(as_tensor(classes, labels), data.numbers)
    return converted


def _dataset_by_name(dataset: Any, data: ImageData) -> dict[str, Any]:
    """Return a data set's images, and its labels as indices of a task's classes, by the names of its own if it has any.

    Classes of other names, as many as the task's and all unlike these, are these in their order. So are any others if
    the task's are only counted.

    Raises:
        DataError: samples or labels that cannot be read, or a class that the task lacks.
    """
    class_names = data.class_names
    found = read_labelled(dataset, WHAT, class_names)
    for note in found.notes:
        noted(note)
    images, labels, names = found.images, found.labels, found.names
    are_counted = tuple(class_names) == tuple(map(str, range(len(class_names))))
    if not names:
        labels = _indices_of_numbers(labels, data.numbers)
    elif (are_counted and {*names} - {*class_names}) or (
        len(names) == len(class_names) and {*names}.isdisjoint(class_names)
    ):
        noted(f"{WHAT}'s classes are called {first_few(names)}, and are taken in this order")
    elif labels.ndim == 1:
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise DataError(f"{WHAT} names {len(names)} classes and has labels from {labels.min()} to {labels.max()}")
        labels = class_labels([names[label] for label in labels.tolist()], WHAT, class_names).indices
    return {"images": images, "labels": labels}


def _indices_of_numbers(labels: Tensor, numbers: Sequence[int] | None) -> Tensor:
    """Return the class indices of labels that are the numbers of a task's data, if these were renumbered.

    Without ``numbers`` labels are class indices; they, and rows of soft labels, are returned as they are.

    Raises:
        DataError: a label that is none of the numbers.
    """
    if numbers is None or labels.numel() != labels.shape[:1].numel():
        return labels
    integers = class_labels(labels.flatten(), WHAT, ()).indices
    return index_numbers(integers, WHAT, numbers, "class indices go in by name, {'images': ..., 'labels': ...}")
