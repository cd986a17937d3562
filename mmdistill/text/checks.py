"""Checks of texts and labels as they come from users."""

from collections.abc import Hashable, Mapping
from numbers import Integral, Real

import numpy as np
import pandas as pd
from torch import Tensor

from mmdistill.errors import DataError

MISSING = (None, pd.NA, pd.NaT)
WHOLE = "all"
"""What texts go by that are not split yet."""


class Found:
    """Kinds of unusable rows: where each is first and what is wrong there, and how many such rows there are.

    Args:
        name: of the data.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._first: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, row: int, split: str, said: str = "") -> None:
        """Count a row of a kind; ``said`` words what is wrong where the kind does not."""
        self._first.setdefault(kind, f"{placed(row, split)} {said or kind}")
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def require_none(self) -> None:
        """Refuse data of which rows have been found.

        Raises:
            DataError: naming the first row of each kind, and how many there are.
        """
        if not self._first:
            return
        counts = {kind: f" ({count:,} such rows)" if count > 1 else "" for kind, count in self._counts.items()}
        said = "; ".join(first + counts[kind] for kind, first in self._first.items())
        raise DataError(f"{self.name}: {said}. Rows count from 1, without a header; remove or mend them")


def placed(row: int, split: str) -> str:
    """Return which row of the data is meant, in words."""
    return f"row {row}" if split == WHOLE else f"row {row} of {split}"


def checked_rows(
    name: str, splits: Mapping[str, tuple[list[object], list[object]]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the texts and the labels of splits as strings; whole numbers as labels get no fraction, of any type.

    Raises:
        DataError: naming a split without texts, or all kinds of unusable rows.
    """
    found = Found(name)
    texts, labels = dict[str, list[str]](), dict[str, list[str]]()
    for split, (raw, classes) in splits.items():
        if not raw:
            raise DataError(f"{name}{'' if split == WHOLE else f': the {split} split'} holds no texts")
        texts[split] = [_text(text, row, split, found) for row, text in enumerate(raw, start=1)]
        labels[split] = [_label(label, row, split, found) for row, label in enumerate(classes, start=1)]
    found.require_none()
    return texts, labels


def _text(text: object, row: int, split: str, found: Found) -> str:
    """Return a text as it is; what is none is added to the rows found."""
    if _is_missing(text):
        found.add("has no text", row, split)
    elif not isinstance(text, str):
        found.add("no string", row, split, f"has no text but {text!r}")
    elif half := half_character(text):
        found.add("half in text", row, split, f"holds {half!r} in its text, which is half of a character")
    return str(text)


def _label(label: object, row: int, split: str, found: Found) -> str:
    """Return a label as a string; one that is no class is added to the rows found."""
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if _is_missing(label):
        found.add("has no label", row, split)
        return ""
    if not isinstance(label, Hashable) or isinstance(label, Tensor):
        found.add("several", row, split, f"has the label {label!r}, where one class per text is expected")
        return ""
    if isinstance(label, Real) and not isinstance(label, Integral):
        value = float(label)
        if not np.isfinite(value):
            found.add("infinite", row, split, f"has the label {value}, which is no class")
            return ""
        label = int(value) if value.is_integer() else value
    written = str(label).strip()
    if half := half_character(written):
        found.add("half in label", row, split, f"holds {half!r} in its label, which is half of a character")
    return written


def _is_missing(value: object) -> bool:
    """Return whether a cell is empty, as files and pandas have it."""
    blank = isinstance(value, str) and not value.strip()
    nan = isinstance(value, Real) and not isinstance(value, Integral) and bool(np.isnan(float(value)))
    return blank or nan or any(value is missing for missing in MISSING)


def half_character(text: str) -> str:
    """Return what a text holds and no file could, such as half of an emoji that was cut by its length, or nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""
