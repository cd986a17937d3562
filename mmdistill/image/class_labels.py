"""Image labels of any container and type as class indices: one rule for all sources."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import DataError, did_you_mean
from mmdistill.files.classes import plain_label
from mmdistill.files.saved import from_array
from mmdistill.labels import classes_of_one_hot
from mmdistill.names import class_numbers, class_order, first_few

BOOLEAN = ("False", "True")
"""Class names of boolean labels; texts have the same."""

ONE_CLASS = "an image has one class: choose one for each, or leave the others out"
"""What to do with several labels for an image, in words."""


class Labelled(NamedTuple):
    """Images with labels.

    Args:
        images: ``(N, ...)``.
        labels: ``(N,)`` class indices.
        names: by class index; empty: the source tells none.
        notes: in words, what was done to the images and labels, and what was not read.
        numbers: by class index, the labels that were renumbered, if ``names`` come from them.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    numbers: tuple[int, ...] | None = None


class ClassLabels(NamedTuple):
    """Labels as class indices.

    Args:
        indices: ``(N,)``.
        names: by class index; empty: the labels already count classes from 0.
        numbers: by class index, the labels that were renumbered, if ``names`` come from them.
        notes: in words, how they were read.
    """

    indices: Tensor
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def class_labels(
    labels: Any, what: str, names: Sequence[str] | None = None, numbers: Sequence[int] | None = None
) -> ClassLabels:
    """Return labels as class indices; labels are all whole numbers, all booleans or all words.

    Words are sorted and numbered. So are numbers that do not run from 0 to C - 1, and they name their classes. If
    ``names`` are given, numbers are class indices already. Of one-hot rows, the place of the 1 is the label.

    Args:
        labels: a tensor, an array, a list or a column of a table.
        what: whose they are, for messages.
        names: class names by index; empty: words are refused; None: the labels themselves name the classes.
        numbers: for data other than the training data, the training labels that were renumbered, by class index.
    Raises:
        DataError: other labels, several for an image, a word that is not in ``names``, or a number that is not in
            ``numbers``.
    """
    is_column = hasattr(labels, "__array__") and hasattr(labels, "tolist")  # also those that are no sequence
    labels = labels.tolist() if is_column and not isinstance(labels, np.ndarray | Tensor) else as_list(labels)
    if isinstance(labels, np.ndarray):
        labels = from_array(labels, what)
    if not isinstance(labels, Tensor | list | tuple):
        raise DataError(f"{what}: labels are a tensor, an array, a list or a column, got {type(labels).__name__}")
    labels = _joined_rows(labels, what)
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] > 1:
        found = class_labels(_places_of_ones(labels, what), what, names, numbers)
        return found._replace(notes=(f"{what}: one-hot labels are read as classes",))
    if not isinstance(labels, Tensor):
        labels = [plain_label(label) for label in labels]
        word = next((label for label in labels if isinstance(label, str)), None)
        if word is not None:
            return _index_words(labels, word, what, names)
    integers, boolean = _to_integers(labels, what) if isinstance(labels, Tensor) else _from_list(labels, what)
    if integers.ndim == 2 and integers.shape[1] == 1:  # a column, as in MedMNIST's and Keras' files
        integers = integers[:, 0]
    if integers.ndim != 1:  # the later check of shapes has the better message
        return ClassLabels(integers)
    if numbers is not None:
        return ClassLabels(index_numbers(integers, what, numbers))
    return ClassLabels(integers) if names is not None else _counted_from_zero(integers, boolean)


def as_list(values: Any) -> Any:
    """Return a column of a table, an array of objects or words, or another sequence as a list; others as they are.

    Images in an array of objects stay arrays, since nested lists of numbers take many times the memory.
    """
    if hasattr(values, "to_list"):
        return values.to_list()
    if isinstance(values, np.ndarray) and values.dtype.kind in "OSUT":
        return list(values) if values.dtype.kind == "O" and values.ndim > 2 else values.tolist()
    is_plain = not isinstance(values, Sequence) or isinstance(values, list | tuple | str | bytes)
    return values if is_plain else list(values)


def _joined_rows(labels: Any, what: str) -> Any:
    """Return listed rows of numbers as a tensor, listed rows of one label as these, and other labels as they are.

    Raises:
        DataError: rows of several lengths, or of several words.
    """
    if isinstance(labels, Tensor):
        return labels
    rows: list[Any] = [label for label in labels if isinstance(label, list | tuple) or np.ndim(label)]
    if not rows:
        return labels
    if len(rows) == len(labels) and all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    try:
        detached = [label.detach().cpu() if isinstance(label, Tensor) else label for label in labels]
        return torch.tensor(np.array([np.asarray(label) for label in detached]))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: a label is a {type(rows[0]).__name__} of {len(rows[0])}; {ONE_CLASS}") from error


def _places_of_ones(rows: Tensor, what: str) -> Tensor:
    """Return the class indices of one-hot rows.

    Raises:
        DataError: a row with several ones, none, or other numbers.
    """
    classes = classes_of_one_hot(rows)
    if classes is not None:
        return classes
    ones = rows == 1
    if not bool((ones | (rows == 0)).all()):
        raise DataError(
            f"{what}: labels are class indices (N,), got {tuple(rows.shape)} of numbers other than 0 and 1; of a "
            "probability for each class give labels.argmax(1)"
        )
    first = int((ones.sum(1) != 1).nonzero()[0])
    raise DataError(f"{what}: row {first} of the labels has {int(ones[first].sum())} ones (multi-label); {ONE_CLASS}")


def _counted_from_zero(labels: Tensor, boolean: bool) -> ClassLabels:
    """Number the sorted labels, unless they count classes from 0 already."""
    if boolean:
        return ClassLabels(labels, BOOLEAN, (0, 1))
    values = torch.unique(labels.long())
    if torch.equal(values, torch.arange(len(values), device=values.device)):
        return ClassLabels(labels)
    numbers = tuple(values.tolist())
    return ClassLabels(torch.searchsorted(values, labels.long()), tuple(map(str, numbers)), numbers)


def index_numbers(
    labels: Tensor, what: str, numbers: Sequence[int], instead: str = "add training images of it, or leave it out"
) -> Tensor:
    """Return the class indices of whole numbers that are among the training labels' ``numbers``.

    Raises:
        DataError: a label that is not; the message ends with ``instead``.
    """
    values = torch.tensor(numbers, device=labels.device)
    unknown = (~torch.isin(labels.long(), values)).nonzero().flatten()
    if len(unknown):
        first = int(unknown[0])
        raise DataError(
            f"{what}: label {first} is {int(labels[first])}, a class that the training data lack (they have: "
            f"{first_few(numbers, 20)}); {instead}"
        )
    order = values.argsort()  # a part of the classes has its numbers in the order of its classes
    return order[torch.searchsorted(values, labels.long(), sorter=order)]


def _to_integers(labels: Tensor, what: str) -> tuple[Tensor, bool]:
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


def _from_list(labels: Sequence[Any], what: str) -> tuple[Tensor, bool]:
    """Return listed labels as whole numbers, and whether they all were booleans."""
    integers = [_to_integer(label, f"{what}: label {i}") for i, label in enumerate(labels)]
    return torch.tensor(integers, dtype=torch.int64), {*map(type, labels)} == {bool}


def _to_integer(label: Any, what: str) -> int:
    """Return a label as an integer.

    Raises:
        DataError: it is not a whole number below 2^62.
    """
    try:
        integer = int(label)
        is_whole = bool(integer == label)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{what} is no class index but {label!r}") from error
    if not is_whole or abs(integer) >= 2**62:
        raise DataError(f"{what} is no class index but {label!r}")
    return integer


def _index_words(labels: Sequence[Any], word: str, what: str, names: Sequence[str] | None) -> ClassLabels:
    """Return the class indices of words; ``word`` is the first of them, for messages.

    Raises:
        DataError: labels that are not all words, words for training data with numbers, or a word that is not a class.
    """
    if names is not None and not names:
        raise DataError(f"{what}: the label {word!r} is a name, and the labels of the training data are numbers")
    other = next((i for i, label in enumerate(labels) if not isinstance(label, str)), None)
    if other is not None:
        raise DataError(f"{what}: label {other} is {labels[other]!r}, others are names such as {word!r}; give one kind")
    classes = class_order(labels) if names is None else tuple(names)
    class_index = class_numbers(classes, set(labels), given=names is not None)
    unknown = next((i for i, label in enumerate(labels) if label not in class_index), None)
    if unknown is not None:
        raise DataError(
            f"{what}: label {unknown} is {labels[unknown]!r}, which is no class{did_you_mean(labels[unknown], classes)}"
            f" (there are: {first_few(classes, 20)})"
        )
    return ClassLabels(torch.tensor([class_index[label] for label in labels]), classes)
