"""Labels of images, of whatever container and type, as class indices: one rule for all sources."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import DataError, did_you_mean
from mmdistill.files.saved import from_array
from mmdistill.names import class_numbers, class_order, first_few

BOOLEAN = ("False", "True")
"""What the classes of labels are called that are booleans, as those of texts are."""


class ClassLabels(NamedTuple):
    """Class indices ``(N,)`` and, where labels do not count classes from 0, what these stand for, by class index.

    Last come the numbers that labels were, where the names are of them.
    """

    indices: Tensor
    names: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None


def class_labels(
    labels: Any, what: str, names: Sequence[str] | None = None, numbers: Sequence[int] | None = None
) -> ClassLabels:
    """Return labels as class indices: whole numbers, booleans, or words alone.

    Words are numbered in order. So are numbers that do not run from 0 to C - 1, and their classes are called by them;
    beside names of classes numbers are indices, as they are.

    Args:
        labels: a tensor, an array, a list or a column of a table.
        what: whose they are, for messages.
        names: the classes that words are of, by index; empty: words are refused; None: the labels say it themselves.
        numbers: those that the classes of the training data were, by index, where the labels are of other data.
    Raises:
        DataError: something else, a word that is none of the names, or a number that is none of the numbers.
    """
    if hasattr(labels, "to_list"):  # a column of a table
        labels = labels.to_list()
    if isinstance(labels, np.ndarray):
        labels = labels.tolist() if labels.dtype.kind in "OUT" else from_array(labels, what)
    if not isinstance(labels, Tensor | list | tuple):
        raise DataError(f"{what}: labels are a tensor, an array, a list or a column, got {type(labels).__name__}")
    if not isinstance(labels, Tensor):
        word = next((label for label in labels if isinstance(label, str)), None)
        if word is not None:
            return _of_words(labels, word, what, names)
    found, boolean = _whole(labels, what) if isinstance(labels, Tensor) else _listed(labels, what)
    if found.ndim == 2 and found.shape[1] == 1:  # a column, as MedMNIST's and Keras' files have it
        found = found[:, 0]
    if found.ndim != 1:  # which the check of shapes says better
        return ClassLabels(found)
    if numbers is not None:
        return ClassLabels(_known(found, what, numbers))
    return ClassLabels(found) if names is not None else _in_order(found, boolean)


def _in_order(found: Tensor, boolean: bool) -> ClassLabels:
    """Number labels by their order, unless they count classes from 0 already."""
    if boolean:
        return ClassLabels(found, BOOLEAN, (0, 1))
    values = torch.unique(found.long())
    if torch.equal(values, torch.arange(len(values), device=values.device)):
        return ClassLabels(found)
    numbers = tuple(values.tolist())
    return ClassLabels(torch.searchsorted(values, found.long()), tuple(map(str, numbers)), numbers)


def _known(found: Tensor, what: str, numbers: Sequence[int]) -> Tensor:
    """Return the class indices of labels by the numbers that the classes of the training data were.

    Raises:
        DataError: one that these lack.
    """
    values = torch.tensor(numbers, device=found.device)
    other = (~torch.isin(found.long(), values)).nonzero().flatten()
    if len(other):
        first = int(other[0])
        raise DataError(
            f"{what}: label {first} is {int(found[first])}, a class that the training data lack (they have: "
            f"{first_few(numbers, 20)}); add training images of it, or leave it out"
        )
    return torch.searchsorted(values, found.long())


def _whole(labels: Tensor, what: str) -> tuple[Tensor, bool]:
    """Return a tensor of labels as whole numbers, and whether they were booleans.

    Raises:
        DataError: fractions, NaN or infinite labels.
    """
    labels = labels.detach()
    if labels.dtype == torch.bool:
        return labels.long(), True
    if not labels.is_floating_point() or labels.ndim != 1:
        return labels, False
    broken = ((labels != labels.round()) | (labels.abs() >= 2**62)).nonzero().flatten()
    if len(broken):
        first = int(broken[0])
        raise DataError(f"{what}: label {first} is no class index but {labels[first].item()}")
    return labels.long(), False


def _listed(labels: Sequence[Any], what: str) -> tuple[Tensor, bool]:
    """Return listed labels as whole numbers, and whether they all were booleans."""
    found = torch.tensor([_index(label, f"{what}: label {i}") for i, label in enumerate(labels)], dtype=torch.int64)
    return found, len(labels) > 0 and all(map(_is_boolean, labels))


def _is_boolean(label: Any) -> bool:
    return isinstance(label, bool | np.bool_) or (isinstance(label, Tensor) and label.dtype == torch.bool)


def _index(label: Any, what: str) -> int:
    """Return a label as an integer.

    Raises:
        DataError: it is none.
    """
    try:
        index = int(label)
        whole = bool(index == label)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{what} is no class index but {label!r}") from error
    if not whole or abs(index) >= 2**62:
        raise DataError(f"{what} is no class index but {label!r}")
    return index


def _of_words(labels: Sequence[Any], word: str, what: str, names: Sequence[str] | None) -> ClassLabels:
    """Return the class indices of words.

    Raises:
        DataError: labels of two kinds, words beside numbers of the training data, or a word that is no class.
    """
    if names is not None and not names:
        raise DataError(f"{what}: the label {word!r} is a name, and the labels of the training data are numbers")
    other = next((i for i, label in enumerate(labels) if not isinstance(label, str)), None)
    if other is not None:
        raise DataError(f"{what}: label {other} is {labels[other]!r}, others are names such as {word!r}; give one kind")
    classes = class_order(labels) if names is None else tuple(names)
    numbers = class_numbers(classes, set(labels), given=names is not None)
    unknown = next((i for i, label in enumerate(labels) if label not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"{what}: label {unknown} is {labels[unknown]!r}, which is no class{did_you_mean(labels[unknown], classes)}"
            f" (there are: {first_few(classes, 20)})"
        )
    return ClassLabels(torch.tensor([numbers[label] for label in labels]), classes)
