"""Sets of images in Python as tensors by name: pairs, data sets, samples in lists and labels in words."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.image.class_labels import class_labels
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


def tensors_by_name(values: Mapping[str, Any], images: str, labels: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Return values with their data set, listed samples and labels in words as tensors, read as a task's data are.

    Args:
        values: by name.
        images: the name of the images.
        labels: the name of the labels.
        class_names: of the task, by class index.
    Raises:
        DataError: samples or labels that cannot be read.
    """
    if DATASET in values:
        return _read_dataset(values[DATASET], class_names)
    is_pair = PAIR in values
    if is_pair:
        images, labels = "images", "labels"
        values = dict(zip((images, labels), values[PAIR], strict=True))
    converted = {name: value.to_list() if hasattr(value, "to_list") else value for name, value in values.items()}
    samples, classes = converted.get(images), converted.get(labels)
    if isinstance(samples, list | tuple) and samples and not isinstance(samples[0], int | float | list):
        converted[images] = read_labelled((samples, [0] * len(samples)), WHAT, class_names).images
    if isinstance(classes, list | tuple | np.ndarray) and any(isinstance(label, str) for label in classes):
        converted[labels] = class_labels(classes, WHAT, class_names).indices
    elif is_pair:
        converted[labels] = _from_numbers(as_tensor(classes, labels), class_names)
    return converted


def _read_dataset(dataset: Any, class_names: Sequence[str]) -> dict[str, Any]:
    """Return a data set's images, and its labels as indices of a task's classes, by the names of its own if it has any.

    If the task's classes are only counted, classes of other names are these by their indices.

    Raises:
        DataError: samples or labels that cannot be read, or a class that the task lacks.
    """
    found = read_labelled(dataset, WHAT, class_names)
    for note in found.notes:
        noted(note)
    images, labels, names = found.images, found.labels, found.names
    are_counted = tuple(class_names) == tuple(map(str, range(len(class_names))))
    if names is None:
        labels = _from_numbers(labels, class_names)
    elif labels.ndim == 1 and not (are_counted and {*names} - {*class_names}):
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise DataError(f"{WHAT} names {len(names)} classes and has labels from {labels.min()} to {labels.max()}")
        labels = class_labels([names[label] for label in labels.tolist()], WHAT, class_names).indices
    return {"images": images, "labels": labels}


def _from_numbers(labels: Tensor, class_names: Sequence[str]) -> Tensor:
    """Return labels as class indices where a task's classes are called by ascending numbers, such as 1, 2 and 3.

    Labels are these numbers, as in the task's data. Soft labels, labels of classes of other names, and numbers none of
    which may be an index, are returned as they are.

    Raises:
        DataError: a label that is none of the numbers.
    """
    if labels.numel() != labels.shape[:1].numel() or not all(re.fullmatch(r"-?\d{1,18}", name) for name in class_names):
        return labels
    numbers, indices = [int(name) for name in class_names], [*range(len(class_names))]
    if numbers == indices or numbers != sorted({*numbers}) or numbers[0] >= len(numbers):
        return labels
    read = class_labels(labels, WHAT, class_names, numbers).indices
    if {*labels.flatten().tolist()} <= {*indices}:
        noted(f"labels are read as what the classes are called, {first_few(class_names)}, and not as their indices")
    return read
