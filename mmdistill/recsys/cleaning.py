"""Ids, ratings and repeats of a log: what becomes a row, a column and an interaction."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmdistill.errors import DataError

Numbers = npt.NDArray[np.int64]


class Log(NamedTuple):
    """Interactions, in columns of one length.

    Args:
        users: the code of each one's user.
        items: the code of its item.
        part: the number of the split that a source gives it; None where the source divides nothing.
    """

    users: Numbers
    items: Numbers
    part: Numbers | None = None

    def where(self, rows: npt.NDArray[Any]) -> "Log":
        """Return some rows, by a mask or by their places."""
        return Log(self.users[rows], self.items[rows], None if self.part is None else self.part[rows])


REMOVED = {
    "not_positive": "ratings {too_low}",
    "taken_back": "ratings that later ones of the same user and item took back",
    "duplicates": "repeated interactions",
    "overlaps": "interactions in two parts",
    "short_users": "users with too few interactions",
    "untrained_users": "users without training rows",
    "unused_items": "items without a remaining interaction",
}
"""What reading may remove, by the key of its count."""
SAID_ELSEWHERE = ("untrained_users", "unused_items")
"""Of these, what has a note of its own, and what but follows from the rest."""


def removed_in_words(counts: Mapping[str, int], min_rating: float | None) -> str:
    """Return how much of what reading removed, ratings below a lowest one among it; nothing where nothing was."""
    too_low = "that are not positive" if min_rating is None else f"below {min_rating:g}"
    return ", ".join(
        f"{counts[key]:,} {what.format(too_low=too_low)}" for key, what in REMOVED.items() if counts.get(key)
    )


def removal_notes(counts: Mapping[str, int], min_rating: float | None) -> list[str]:
    """Return a note on what reading removed, where that is more than has been said."""
    if not any(count for key, count in counts.items() if key in REMOVED and key not in SAID_ELSEWHERE):
        return []
    return [f"left out when reading: {removed_in_words(counts, min_rating)}"]


def codes(column: "pd.Series[Any]", name: str) -> tuple[Numbers, npt.NDArray[Any]]:
    """Return a code per row and the sorted original ids: integers where all are written as integers, else text.

    Raises:
        DataError: a row without an id, or ids that are neither numbers nor texts.
    """
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"row {int(missing.argmax()) + 1} of {name} has no {column.name} id ({missing.sum()} such rows)"
        )
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise DataError(f"{name} has {column.name} ids that are no numbers or texts ({error})") from error
    same, texts = pd.factorize(np.array([_spelt(value) for value in values], dtype=object))
    codes = same[codes]  # ids of mixed types are one id where they read alike
    try:
        numbers = [int(text) for text in texts]
        plain = all(str(number) == text for number, text in zip(numbers, texts, strict=True))
        ids = np.array(numbers, dtype=np.int64) if plain else np.array(texts)
    except (ValueError, OverflowError):
        ids = np.array(texts)
    order = np.argsort(ids, kind="stable")
    place = np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids))
    return place[codes], ids[order]


def _spelt(value: object) -> str:
    """Return an id as text; whole numbers that pandas made floats, as it does beside missing ones, as integers."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def feedback(column: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    """Return feedback as numbers, true as 1 and false as 0, and NaN for what is none."""
    values = pd.to_numeric(column, errors="coerce")
    if values.isna().any():
        spelt = column.astype("string").str.strip().str.lower()
        values = values.astype(float).mask((spelt == "true").fillna(False), 1.0)
        values = values.mask((spelt == "false").fillna(False), 0.0)
    numbers: npt.NDArray[np.float64] = values.to_numpy(dtype=np.float64)
    return numbers


def positive(
    values: npt.NDArray[np.float64], column: "pd.Series[Any]", min_rating: float | None, name: str
) -> npt.NDArray[np.bool_]:
    """Return which ratings count as interactions.

    Args:
        values: what :func:`feedback` makes of them.
        column: as they were written.
        min_rating: the lowest that counts; None: any above 0.
        name: of the log.
    Raises:
        DataError: a rating that is no finite number, or none that counts.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        found = "no rating" if column.isna().iloc[row] else f"rating {str(column.iloc[row])!r}"
        raise DataError(
            f"row {row + 1} of {name} has {found}; every rating must be a finite number ({int(bad.sum())} are not); "
            "name another column with --rating-column (rating_column), or remove this one"
        )
    keep: npt.NDArray[np.bool_] = values > 0 if min_rating is None else values >= min_rating
    if not keep.any():
        wanted = "above 0" if min_rating is None else f"at least {min_rating}"
        raise DataError(f"no rating of {name} is {wanted} (the largest is {values.max():g}), so nobody likes anything")
    return keep


def disputed(pair: Numbers, keep: npt.NDArray[np.bool_]) -> Numbers:
    """Return the pairs of a user and an item of which some ratings count as interactions and others do not.

    Args:
        pair: a number for the pair of each rating.
        keep: which ratings count.
    """
    if keep.all():
        return pair[:0]
    both: Numbers = np.intersect1d(pair[keep], pair[~keep])
    return both


def taken_back(
    pair: Numbers,
    keep: npt.NDArray[np.bool_],
    both: Numbers,
    times: npt.NDArray[Any],
) -> npt.NDArray[np.bool_]:
    """Return which ratings count by themselves, and no longer since the latest one of their pair does not.

    Args:
        pair: a number for the pair of each rating.
        keep: which ratings count by themselves.
        both: the pairs of which some count and others do not.
        times: of the ratings; of those of one time the last row is the latest.
    """
    rows = np.flatnonzero(np.isin(pair, both))
    late = rows[np.argsort(times[rows], kind="stable")][::-1]
    pairs, first = np.unique(pair[late], return_index=True)
    gone: npt.NDArray[np.bool_] = keep & np.isin(pair, pairs[~keep[late[first]]])
    return gone


def deduplicate(log: Log, num_items: int, counts: dict[str, int]) -> Log:
    """Return each pair of a user and an item once, in the order of the rows; of two parts the earlier one keeps it.

    What is removed is counted as ``duplicates`` and ``overlaps``.
    """
    pair, part = log.users * num_items + log.items, log.part
    if part is None:
        first = np.unique(pair, return_index=True)[1]
    else:
        order = np.lexsort((part, pair))  # the training copy of a pair comes first
        fresh = np.r_[True, np.diff(pair[order]) != 0]
        first = order[fresh]
        repeats = order[~fresh]
        kept_part = part[first][np.cumsum(fresh)[~fresh] - 1]
        counts["overlaps"] = int((kept_part != part[repeats]).sum())
    counts["duplicates"] = len(pair) - len(first) - counts["overlaps"]
    return log.where(np.sort(first))
