"""What reading says of the classes of data of any kind, and which of them give samples to validate with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdistill.names import first_few

EMPTY = ("nan", "null", "<na>")
"""What tables write where a value is missing, in lower case."""

FEW = 5
"""Training samples of a class below which none of them is held out for validation, where most classes have more."""


def spelt(name: str) -> str:
    """Return what a class is called in messages: a whole number as it is, anything else in quotation marks."""
    return name if name.removeprefix("-").isdecimal() else repr(name)


def untested(labels: Tensor, names: Sequence[str], sample: str) -> list[str]:
    """Return a note where classes have no test sample.

    Args:
        labels: class indices of the test samples, ``(n,)``.
        names: by class index.
        sample: what a sample is: ``image``, ``node``.
    """
    return _absent(labels, names, f"test {sample}", "scores say nothing of it")


def unvalidated(labels: Tensor, names: Sequence[str], sample: str) -> list[str]:
    """Return a note where classes have no validation sample, and others have some.

    Args:
        labels: class indices of the validation samples, ``(n,)``.
        names: by class index.
        sample: what a sample is.
    """
    if not len(labels):
        return []
    return _absent(labels, names, f"validation {sample}", "what validation chooses takes no account of it")


def _absent(labels: Tensor, names: Sequence[str], sample: str, so: str) -> list[str]:
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    missing = [spelt(name) for name, count in zip(names, counts, strict=True) if not count]
    return [f"no {sample} is of class {first_few(missing)}, so {so}"] if missing else []


def validating(counts: Tensor) -> Tensor:
    """Return which classes give samples for validation: those of few samples need them for training.

    Where the others are less than half of the classes or of the samples, all give some that have two.

    Shapes:
        counts ``(C,)``, training samples of each class; returns ``(C,)`` bool.
    """
    many = counts >= FEW
    most = 2 * int(many.sum()) >= len(counts) and 2 * int(counts[many].sum()) >= int(counts.sum())
    return many if most else counts >= 2


def missing_like(names: Sequence[str]) -> list[str]:
    """Return a note where a class is called as missing values are: a word of tables, or -1 before 0, 1 and so on."""
    counting = len(names) > 2 and set(names) == {str(number) for number in range(-1, len(names) - 1)}
    doubtful = [name for name in names if name.strip().lower() in EMPTY or (counting and name == "-1")]
    return [f"the class {spelt(name)} may stand for missing labels" for name in doubtful]
