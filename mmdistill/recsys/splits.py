"""Split interactions into training, validation and test parts: by a column, at random, or by time."""

import re
import warnings
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from mmdistill.choices import SplitBy as SplitBy
from mmdistill.errors import ConfigError, DataError
from mmdistill.files.columns import SPLIT_NAMES
from mmdistill.files.tables import splits_of
from mmdistill.names import unknown_name
from mmdistill.recsys.cleaning import Numbers, row_name
from mmdistill.runtime import Draws

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TRAIN, VALID, TEST = range(len(SPLITS))
BY_TIME: tuple[SplitBy, ...] = ("time", "leave-one-out")
"""Ways of splitting that need times."""
NUMERIC_DATE = re.compile(r"\d{1,2}([/.-])\d{1,2}\1(\d{4}|\d{2})(?!\d)")
"""A numeric date that ends with the year."""
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
CLOCKS = tuple(f"{time}{zone}" for time in TIMES for zone in ("", "%z"))
"""Formats of the time of day that may follow a date."""


def split_note(split_by: SplitBy, seed: int) -> str:
    """Return the note on how interactions were split."""
    if split_by == "time":
        return "test and validation: each user's last tenth by time, and the tenth before it"
    if split_by == "leave-one-out":
        return "test and validation: each user's last interaction by time, and the one before it"
    tenths = "a tenth of a user's interactions for validation, and one more than a tenth for test"
    return f"{tenths}, at random and not by time, seed {seed}"


def require_split_by(split_by: str | None) -> None:
    """Refuse an unknown way to split.

    Raises:
        ConfigError: it is unknown; the message names the known ones.
    """
    if split_by is not None and split_by not in get_args(SplitBy):
        raise unknown_name("way to split interactions", split_by, get_args(SplitBy))


def named_parts(column: "pd.Series[Any]", name: str) -> Numbers:
    """Return the part 0, 1 or 2 (an index into :data:`SPLITS`) of each row, from a column of split names.

    Raises:
        DataError: an unknown split name.
    """
    numbers = {split: number for number, split in enumerate(SPLIT_NAMES)}
    return np.asarray(splits_of(column, "the column of splits", name).map(numbers), dtype=np.int64)


def divide(users: Numbers, split_by: SplitBy, draws: Draws) -> Numbers:
    """Assign a part to each interaction, with the same shares for every user.

    Of a user's n interactions, a random split takes floor(9n/10) - floor(8n/10) for validation and n - floor(9n/10) + 1
    for test; if the former is 0, one of the latter goes to validation. A split by time takes max(1, floor(n/10)) for
    each, and ``leave-one-out`` one.

    Args:
        users: the user of each interaction, in order of time unless the split is random; each user has three or more.
        split_by: ``random``, or ``time`` or ``leave-one-out``: the latest are for test, those before for validation.
        draws: the key of the random split.

    Source: the code of Sachdeva et al., NeurIPS 2022, whose numbers leave users with three to five interactions
        without validation.
    """
    sizes = np.bincount(users)
    if split_by in BY_TIME:
        valid = test = np.maximum(1, sizes // 10) if split_by == "time" else np.ones_like(sizes)
        rank = _ranks(users, np.arange(len(users)))
    else:
        tenth = 9 * sizes // 10 - 8 * sizes // 10
        valid, test = np.maximum(1, tenth), sizes - 9 * sizes // 10 + (tenth > 0)
        rank = _ranks(users, -draws.uniform(len(users)).numpy())
    part: Numbers = np.where(rank < test[users], TEST, np.where(rank < (test + valid)[users], VALID, TRAIN))
    return part


def _ranks(users: Numbers, time: npt.NDArray[Any]) -> Numbers:
    """Return for each interaction how many of its user's interactions are later."""
    sizes = np.bincount(users)
    starts = np.cumsum(sizes) - sizes
    latest = np.argsort(-time, kind="stable")
    by_user = sparse.coo_array((latest, (users[latest], np.arange(len(users)))), shape=(len(sizes), len(users)))
    order = by_user.tocsr().data  # grouped by user in a stable order; faster than any sort
    rank = np.empty(len(users), dtype=np.int64)
    rank[order] = np.arange(len(users)) - starts[users[order]]
    return rank


def has_training(part: Numbers, users: Numbers, name: str) -> npt.NDArray[np.bool_]:
    """Return which interactions belong to users with training rows in a given split.

    Raises:
        DataError: there are no training or no test rows.
    """
    if not (part == TEST).any() or not (part == TRAIN).any():
        raise DataError(
            f"the split of {name} needs both train and test rows, and a pair of user and item in several parts counts "
            "in the first of train, valid and test; without a column of splits, rows are split"
        )
    keep: npt.NDArray[np.bool_] = np.bincount(users[part == TRAIN], minlength=int(users.max()) + 1)[users] > 0
    if not (part[keep] == TEST).any():
        raise DataError(
            f"the test rows of {name} belong to users with no training rows; give these users some as history, or "
            "split by random / time (--split-by, split_by)"
        )
    return keep


def add_validation(part: Numbers, users: Numbers, draws: Draws) -> Numbers:
    """Return a split with validation rows: if it has none, a random tenth of each user's training rows."""
    if (part == VALID).any():
        return part
    train = np.flatnonzero(part == TRAIN)
    sizes = np.bincount(users[train], minlength=int(users.max()) + 1)
    user_size = sizes[users[train]]
    tenth = np.maximum(1, user_size // 10)
    rank = _ranks(users[train], -draws.uniform(len(train)).numpy())
    part = part.copy()
    part[train[(tenth <= rank) & (rank < 2 * tenth) & (user_size >= 3)]] = VALID
    return part


def by_time(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of a table in order of time; rows of equal time keep their order.

    Raises:
        ConfigError: there is no time column.
        DataError: a time is missing or neither a number nor a date, or day and month of the dates are ambiguous.
    """
    if "time" not in frame:
        raise ConfigError(f"{name} has no times to be split by: name their column with --time-column (time_column)")
    times = _times(frame["time"])
    bad = times.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{row_name(times, row)} of {name} has time {str(frame['time'].iloc[row])!r}; every time must be a finite "
            f"number or a date ({int(bad.sum())} are not)"
        )
    return frame.iloc[np.argsort(times.to_numpy(), kind="stable")]


def readable_times(column: "pd.Series[Any]") -> npt.NDArray[Any] | None:
    """Return times in a sortable form; None if one is missing or unreadable, or day and month are ambiguous."""
    try:
        times = _times(column)
    except DataError:
        return None
    return None if times.isna().any() else times.to_numpy()


def _times(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return times in a sortable form; unreadable ones are missing.

    The whole column is read in one way: as numbers, as ISO 8601 dates, or as dates of one other format.

    Raises:
        DataError: the order of the dates depends on whether days or months come first.
    """
    if pd.api.types.is_datetime64_any_dtype(column):
        return column
    numbers = pd.to_numeric(column, errors="coerce")
    numbers = numbers.where(np.isfinite(numbers.astype("float64")) & column.notna())
    if pd.api.types.is_numeric_dtype(column) or numbers.notna().all():
        return numbers
    column = column.map(lambda value: re.sub(r"\s*UTC$", "Z", value) if isinstance(value, str) else value)
    iso = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if iso.notna().all() or column.isna().all():
        return iso
    months_first, days_first = _dates(column, False), _dates(column, True)
    is_ambiguous = months_first.notna().all() and days_first.notna().all()
    if is_ambiguous and not (months_first.rank() == days_first.rank()).all():
        raise DataError(
            f"the times, such as {str(column.iloc[0])!r}, may have days or months first, which order them otherwise; "
            "write dates as 2020-11-05, or times as numbers"
        )
    return max((numbers, iso, months_first, days_first), key=lambda times: int(times.notna().sum()))


def _dates(column: "pd.Series[Any]", day_first: bool) -> "pd.Series[Any]":
    """Return dates read in the format of the first one; those of other formats are missing."""
    first = str(column.dropna().iloc[0]).strip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns when it guesses a format
        if (numeric := NUMERIC_DATE.match(first)) is None:
            date_format = pd.tseries.api.guess_datetime_format(first, dayfirst=day_first)
            return pd.to_datetime(column, errors="coerce", utc=True, format=date_format)
        order = ("%d", "%m") if day_first else ("%m", "%d")
        date = numeric[1].join((*order, "%Y" if len(numeric[2]) == 4 else "%y"))
        formats = [date + clock for clock in CLOCKS]
        matching = (form for form in formats if pd.notna(pd.to_datetime(first, errors="coerce", utc=True, format=form)))
        return pd.to_datetime(column, errors="coerce", utc=True, format=next(matching, date))
