"""Notes on the classes of any kind of data."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.names import brief_repr, first_few


class WithValues(Protocol):
    """An array of NumPy, or an index or a column of pandas."""

    def tolist(self) -> Any:
        """Return the values."""
        ...


ClassNames = Iterable[str] | Mapping[Any, Any] | WithValues
"""Names by class index as a user may give them: a list or another iterable, an array or an index of pandas, or a
mapping between names and indices, as transformers' ``id2label`` and ``label2id``."""

EMPTY = ("nan", "null", "<na>")
"""How tables write missing values, in lower case."""


def checked_class_names(given: object) -> tuple[str, ...]:
    """Return the user's class names, see :data:`ClassNames`, in the order of the class indices.

    Raises:
        ConfigError: not different texts, or a mapping whose indices are not 0 to C - 1.
    """
    names: Any = _by_index(given) if isinstance(given, Mapping) else given
    names = names.tolist() if hasattr(names, "tolist") else names
    is_ordered = isinstance(names, Iterable) and not isinstance(names, str | set | frozenset)
    names = list(names) if is_ordered else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"class_names are a list of texts in the order of the class indices, got {brief_repr(given)}; of another "
            'form are {0: "negative", 1: "positive"} and {"negative": 0, "positive": 1}'
        )
    if not names:
        raise ConfigError("class_names is empty; leave it out, or name every class")
    if len(set(names)) < len(names):
        raise ConfigError(f"class_names differ from one another, got {brief_repr(given)}")
    return tuple(names)


def _by_index(names: Mapping[Any, Any]) -> list[Any] | None:
    """Return the names of a mapping from or to class indices by index; None if it maps no indices from 0 on."""
    for indexed in (names, {index: name for name, index in names.items() if isinstance(index, Integral)}):
        numbered = {str(index): name for index, name in indexed.items()}
        if [*sorted(numbered, key=lambda index: (len(index), index))] == [*map(str, range(len(names)))]:
            return [numbered[str(index)] for index in range(len(names))]
    return None


def plain_label(label: object) -> object:
    """Return a label without NumPy's type, or the array or tensor of no dimensions, that it comes in; bytes as text."""
    if isinstance(label, np.number | np.bool_ | np.character | np.ndarray | Tensor) and label.ndim == 0:
        label = label.item()
    return label.decode(errors="backslashreplace") if isinstance(label, bytes) else label


def spelt(name: str) -> str:
    """Return a class name for messages: whole numbers as they are, anything else in quotation marks."""
    return name if name.removeprefix("-").isdecimal() else repr(name)


def untested(labels: Tensor, names: Sequence[str], sample: str) -> list[str]:
    """Return a note where classes have no test sample.

    Args:
        labels: class indices of the test samples, ``(n,)``.
        names: the names of all classes.
        sample: the noun for a sample: ``image``, ``node``.
    """
    return _note_absent(labels, names, f"test {sample}", "scores say nothing of it")


def unvalidated(labels: Tensor, names: Sequence[str], sample: str) -> list[str]:
    """Return a note where classes have no validation sample, and others have some.

    Args:
        labels: class indices of the validation samples, ``(n,)``.
        names: the names of all classes.
        sample: the noun for a sample.
    """
    if not len(labels):
        return []
    return _note_absent(labels, names, f"validation {sample}", "what validation chooses takes no account of it")


def _note_absent(labels: Tensor, names: Sequence[str], sample: str, consequence: str) -> list[str]:
    """Return a note that names the classes without a label and says what follows; none if all have one."""
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    missing = [spelt(name) for name, count in zip(names, counts, strict=True) if not count]
    return [f"no {sample} is of class {first_few(missing)}, so {consequence}"] if missing else []


def is_missing_word(text: str) -> bool:
    """Return whether a text is how tables write missing values."""
    return text.strip().lower() in EMPTY


def missing_like(names: Sequence[str]) -> list[str]:
    """Return a note for each class named like a missing value: empty, ``nan`` and the like, or -1 besides 0, 1, ..."""
    numbered = len(names) > 2 and set(names) == {str(number) for number in range(-1, len(names) - 1)}
    doubtful = [name for name in names if not name.strip() or is_missing_word(name) or (numbered and name == "-1")]
    return [f"the class {spelt(name)} may stand for missing labels" for name in doubtful]
