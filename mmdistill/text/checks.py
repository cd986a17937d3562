"""Checks of texts and labels as they come from users."""

from collections.abc import Hashable
from numbers import Integral, Real

import numpy as np
import pandas as pd
from torch import Tensor

from mmdistill.errors import DataError

MISSING = (None, pd.NA, pd.NaT)
HALF = "which is half of a character; mend or remove it"


def checked_texts(name: str, split: str, texts: list[object]) -> list[str]:
    """Return the texts of a split, none of them empty.

    Raises:
        DataError: naming the row that is no text.
    """
    if not texts:
        raise DataError(f"{name}: the {split} split holds no texts")
    empty = sum(isinstance(text, str) and not text.strip() for text in texts)
    more = f" ({empty} such rows)" if empty > 1 else ""
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"{name}: row {row} of {split} has no text but {text!r}; remove the row or fill it")
        if not text.strip():
            raise DataError(f"{name}: the text in row {row} of {split} is empty{more}; remove the row or fill it")
        if half := half_character(text):
            raise DataError(f"{name}: the text in row {row} of {split} holds {half!r}, {HALF}")
    return [str(text) for text in texts]


def checked_labels(name: str, split: str, labels: list[object]) -> list[str]:
    """Return labels as strings: whole numbers without a fraction, whatever their type was.

    Raises:
        DataError: naming the row that has none.
    """
    checked = []
    for row, label in enumerate(labels, start=1):
        where = f"{name}: row {row} of {split}"
        if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
            label = label.item()
        if any(label is missing for missing in MISSING) or (isinstance(label, str) and not label.strip()):
            raise DataError(f"{where} has no label; remove the row or fill it")
        if not isinstance(label, Hashable) or isinstance(label, Tensor):
            raise DataError(f"{where} has the label {label!r}; expected one class per text")
        if isinstance(label, Real) and not isinstance(label, Integral):
            value = float(label)
            if not np.isfinite(value):
                raise DataError(f"{where} has the label {value}; remove the row or fill it")
            label = int(value) if value.is_integer() else value
        checked.append(str(label).strip())
        if half := half_character(checked[-1]):
            raise DataError(f"the label of {where} holds {half!r}, {HALF}")
    return checked


def half_character(text: str) -> str:
    """Return what a text holds and no file could, such as half of an emoji that was cut by its length, or nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""
