"""Clean a log: turn ids into rows and columns, ratings into interactions, and drop repeats."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmdistill.errors import DataError

Numbers = npt.NDArray[np.int64]


class Log(NamedTuple):
    """Interactions as columns of equal length.

    Args:
        users: the user code of each interaction.
        items: the item code of each interaction.
        part: the split number that the source gives each interaction; None if the source has no splits.
    """

    users: Numbers
    items: Numbers
    part: Numbers | None = None

    def where(self, rows: npt.NDArray[Any]) -> "Log":
        """Return the rows that a mask or an index array selects."""
        return Log(self.users[rows], self.items[rows], None if self.part is None else self.part[rows])


PART_ROWS = ("part", "row")
"""The names of the index of a table that was joined from the parts of a split."""


def row_name(column: "pd.Series[Any]", row: int) -> str:
    """Return the name in messages of the row at a place; in a table that was joined from parts, it counts in its part.

    Rows count from 1.
    """
    if tuple(column.index.names) != PART_ROWS:
        return f"row {row + 1}"
    part, number = column.index[row]
    return f"row {number + 1} of the {part} part"


REMOVED = {
    "not_positive": "ratings {too_low}",
    "taken_back": "ratings that later ones of the same user and item took back",
    "duplicates": "repeated interactions",
    "overlaps": "interactions in two parts",
    "short_users": "users with too few interactions",
    "untrained_users": "users without training rows",
    "unused_items": "items without a remaining interaction",
}
"""Descriptions of what reading may remove, by the key of its count."""
SAID_ELSEWHERE = ("untrained_users", "unused_items")
"""Counts that alone warrant no removal note: the first has its own note, the second follows from the others."""


def describe_removed(counts: Mapping[str, int], min_rating: float | None) -> str:
    """Describe what reading removed and how much of it; empty if nothing was removed."""
    too_low = "that are not positive" if min_rating is None else f"below {min_rating:g}"
    return ", ".join(
        f"{counts[key]:,} {what.format(too_low=too_low)}" for key, what in REMOVED.items() if counts.get(key)
    )


def removal_notes(counts: Mapping[str, int], min_rating: float | None) -> list[str]:
    """Return a note on what reading removed, unless other notes already cover all of it."""
    if not any(count for key, count in counts.items() if key in REMOVED and key not in SAID_ELSEWHERE):
        return []
    return [f"left out when reading: {describe_removed(counts, min_rating)}"]


def codes(column: "pd.Series[Any]", name: str) -> tuple[Numbers, npt.NDArray[Any]]:
    """Return a code per row and the sorted original ids: integers if all are written as integers, else text.

    Raises:
        DataError: a row without an id, or ids that are neither numbers nor texts.
    """
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"{row_name(column, int(missing.argmax()))} of {name} has no {column.name} id ({missing.sum()} such rows)"
        )
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise DataError(f"{name} has {column.name} ids that are no numbers or texts ({error})") from error
    merged, texts = pd.factorize(np.array([spelt_id(value) for value in values], dtype=object))
    codes = merged[codes]  # ids of different types with the same spelling are one id
    try:
        numbers = [int(text) for text in texts]
        plain = all(str(number) == text for number, text in zip(numbers, texts, strict=True))
        ids = np.array(numbers, dtype=np.int64) if plain else np.array(texts)
    except (ValueError, OverflowError):
        ids = np.array(texts)
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    return rank[codes], ids[order]


def spelt_id(value: object) -> str:
    """Return an id as text; whole floats as integers, since pandas turns integers beside missing values into floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def feedback(column: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    """Return feedback as numbers: true is 1, false is 0, and anything else that is not a number is NaN."""
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
        values: the ratings as :func:`feedback` converts them.
        column: the ratings as written.
        min_rating: the lowest rating that counts; None: any above 0.
        name: name of the log.
    Raises:
        DataError: a rating that is no finite number, or none that counts.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        rating = "no rating" if column.isna().iloc[row] else f"rating {str(column.iloc[row])!r}"
        raise DataError(
            f"{row_name(column, row)} of {name} has {rating}; every rating must be a finite number "
            f"({int(bad.sum())} are not); name another column with --rating-column (rating_column), or remove this one"
        )
    keep: npt.NDArray[np.bool_] = values > 0 if min_rating is None else values >= min_rating
    if not keep.any():
        threshold = "above 0" if min_rating is None else f"at least {min_rating}"
        raise DataError(
            f"no rating of {name} is {threshold} (the largest is {values.max():g}), so nobody likes anything"
        )
    return keep


def disputed(pair: Numbers, keep: npt.NDArray[np.bool_]) -> Numbers:
    """Return the user-item pairs with conflicting ratings: some count as interactions, others do not.

    Args:
        pair: the number of each rating's user-item pair.
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
    """Return which ratings count by themselves but not in the end, since the latest rating of their pair does not.

    Args:
        pair: the number of each rating's user-item pair.
        keep: which ratings count by themselves.
        both: the pairs with conflicting ratings, from :func:`disputed`.
        times: time of each rating; among equal times the last row is the latest.
    """
    rows = np.flatnonzero(np.isin(pair, both))
    latest_first = rows[np.argsort(times[rows], kind="stable")][::-1]
    pairs, first = np.unique(pair[latest_first], return_index=True)
    revoked: npt.NDArray[np.bool_] = keep & np.isin(pair, pairs[~keep[latest_first[first]]])
    return revoked


def deduplicate(log: Log, num_items: int, counts: dict[str, int]) -> Log:
    """Keep each user-item pair once, in row order; a pair in two parts stays in the earlier one.

    Counts what it removes as ``duplicates`` and ``overlaps``.
    """
    pair, part = log.users * num_items + log.items, log.part
    if part is None:
        first = np.unique(pair, return_index=True)[1]
    else:
        order = np.lexsort((part, pair))  # the training copy of a pair comes first
        is_first = np.r_[True, np.diff(pair[order]) != 0]
        first = order[is_first]
        repeats = order[~is_first]
        kept_part = part[first][np.cumsum(is_first)[~is_first] - 1]
        counts["overlaps"] = int((kept_part != part[repeats]).sum())
    counts["duplicates"] = len(pair) - len(first) - counts["overlaps"]
    return log.where(np.sort(first))
