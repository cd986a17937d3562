"""Check texts and labels as users give them."""

from collections.abc import Collection, Hashable, Mapping
from numbers import Integral, Real

import numpy as np
import pandas as pd
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.classes import plain_label
from mmdistill.names import brief_repr

MISSING = (None, pd.NA, pd.NaT)
WHOLE = "all"
"""The split name of texts that are not split yet."""


class Problems:
    """Unusable rows by kind of problem: the first row of each kind with its description, and their number.

    Args:
        name: name of the data.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, row: int, split: str, description: str = "") -> None:
        """Count a row with a problem of a kind; the kind itself is the default description."""
        self._first.setdefault(kind, f"{row_name(row, split)} {description or kind}")
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def require_none(self) -> None:
        """Refuse the data if any row has a problem.

        Raises:
            DataError: one has; the message names the first row of each kind and their number.
        """
        if not self._first:
            return
        counts = {kind: f" ({count:,} such rows)" if count > 1 else "" for kind, count in self._counts.items()}
        problems = "; ".join(first + counts[kind] for kind, first in self._first.items())
        raise DataError(f"{self.name}: {problems}. Rows count from 1, without a header; remove or mend them")


def row_name(row: int, split: str) -> str:
    """Return a row's name in messages."""
    return f"row {row}" if split == WHOLE else f"row {row} of {split}"


def checked_rows(
    name: str, splits: Mapping[str, tuple[list[object], list[object]]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the texts and labels of splits as strings; labels that are whole numbers of any type get no fraction.

    Raises:
        DataError: a split without texts, or unusable rows, of which the message lists all kinds.
    """
    problems = Problems(name)
    texts, labels = dict[str, list[str]](), dict[str, list[str]]()
    for split, (raw, classes) in splits.items():
        if not raw:
            raise DataError(f"{name}{'' if split == WHOLE else f': the {split} split'} holds no texts")
        texts[split] = [_check_text(text, row, split, problems) for row, text in enumerate(raw, start=1)]
        labels[split] = [_check_label(label, row, split, problems) for row, label in enumerate(classes, start=1)]
    problems.require_none()
    return texts, labels


def _check_text(text: object, row: int, split: str, problems: Problems) -> str:
    """Return a text as a string; add anything unusable to the problems."""
    if _is_missing(text):
        problems.add("has no text", row, split)
    elif not isinstance(text, str):
        problems.add("no string", row, split, f"has no text but {brief_repr(text)}")
    elif half := half_character(text):
        problems.add("half in text", row, split, f"holds {half!r} in its text, which is half of a character")
    return str(text)


def _check_label(label: object, row: int, split: str, problems: Problems) -> str:
    """Return a label as a string; add one that is no class to the problems."""
    label = plain_label(label)
    if _is_missing(label):
        problems.add("has no label", row, split)
        return ""
    if not isinstance(label, Hashable) or isinstance(label, Tensor):
        problems.add("several", row, split, f"has the label {brief_repr(label)}, where one class per text is expected")
        return ""
    if isinstance(label, Real) and not isinstance(label, Integral):
        value = float(label)
        if not np.isfinite(value):
            problems.add("infinite", row, split, f"has the label {value}, which is no class")
            return ""
        label = int(value) if value.is_integer() else value
    written = str(label).strip()
    if half := half_character(written):
        problems.add("half in label", row, split, f"holds {half!r} in its label, which is half of a character")
    return written


def are_withheld(labels: Collection[object], known: Collection[object]) -> bool:
    """Return whether all labels of a split are missing, or -1 as in published test splits.

    Args:
        labels: of the split.
        known: those of training; if -1 is one of them, it is a class.
    """
    is_class = any(map(_is_minus_one, known))
    return all(_is_missing(plain_label(label)) or (not is_class and _is_minus_one(label)) for label in labels)


def _is_minus_one(label: object) -> bool:
    return str(plain_label(label)).strip() in ("-1", "-1.0")


def _is_missing(value: object) -> bool:
    """Return whether a cell is empty, in any representation of files and pandas."""
    blank = isinstance(value, str) and not value.strip()
    nan = isinstance(value, Real) and not isinstance(value, Integral) and bool(np.isnan(float(value)))
    return blank or nan or any(value is missing for missing in MISSING)


def half_character(text: str) -> str:
    """Return the first character that UTF-8 cannot encode, such as half of an emoji; empty if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""
