"""Sets of images in Python as tensors by name: pairs, data sets, samples in lists and labels in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.image.class_labels import class_labels
from mmdistill.image.samples import read_labelled
from mmdistill.importers import noted
from mmdistill.names import first_few

DATASET = "data set"
"""The name of a data set among values."""
WHAT = "the set"


def values_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return a pair of images and labels, or a data set with a label for each sample, by name; None for any other."""
    if isinstance(value, list | tuple):
        if not value or any(isinstance(entry, str | Path) for entry in value):
            return None
        is_pair = isinstance(value, tuple) or all(isinstance(entry, Tensor | np.ndarray) for entry in value)
        return dict(zip(("images", "labels"), value, strict=True)) if is_pair and len(value) == 2 else {DATASET: value}
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
        found = read_labelled(values[DATASET], WHAT, class_names)
        for note in found.notes:
            noted(note)
        names = found.names or class_names
        if sorted(names) == sorted(class_names) and tuple(names) != tuple(class_names):
            raise DataError(
                f"{WHAT} numbers its classes {first_few(names)}, and the task {first_few(class_names)}: give labels in "
                "words"
            )
        return {"images": found.images, "labels": found.labels}
    converted = {name: value.to_list() if hasattr(value, "to_list") else value for name, value in values.items()}
    samples, classes = converted.get(images), converted.get(labels)
    if isinstance(samples, list | tuple) and samples and not isinstance(samples[0], int | float | list):
        converted[images] = read_labelled((samples, [0] * len(samples)), WHAT, class_names).images
    if isinstance(classes, list | tuple | np.ndarray) and any(isinstance(label, str) for label in classes):
        converted[labels] = class_labels(classes, WHAT, class_names).indices
    return converted
