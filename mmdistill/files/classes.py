"""Notes on the classes of any kind of data, and the choice of classes that give validation samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdistill.names import first_few

EMPTY = ("nan", "null", "<na>")
"""How tables write missing values, in lower case."""

FEW = 5
"""Classes with fewer training samples hold none out for validation, where most classes have at least as many."""


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


def validating(counts: Tensor) -> Tensor:
    """Return which classes give samples for validation: those with at least :data:`FEW` training samples.

    If these are less than half of the classes, or hold less than half of the samples, all classes of two samples or
    more do.

    Shapes:
        counts ``(C,)``, training samples of each class; returns ``(C,)`` bool.
    """
    large = counts >= FEW
    is_majority = 2 * int(large.sum()) >= len(counts) and 2 * int(counts[large].sum()) >= int(counts.sum())
    return large if is_majority else counts >= 2


def is_missing_word(text: str) -> bool:
    """Return whether a text is how tables write missing values."""
    return text.strip().lower() in EMPTY


def missing_like(names: Sequence[str]) -> list[str]:
    """Return a note for each class named like a missing value: ``nan`` and the like, or -1 besides 0, 1 and so on."""
    numbered = len(names) > 2 and set(names) == {str(number) for number in range(-1, len(names) - 1)}
    doubtful = [name for name in names if is_missing_word(name) or (numbered and name == "-1")]
    return [f"the class {spelt(name)} may stand for missing labels" for name in doubtful]
