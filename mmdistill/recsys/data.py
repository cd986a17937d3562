"""Implicit-feedback interactions: from files and matrices to train, validation and test sets of one id space."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.checks import require_left_out
from mmdistill.errors import ConfigError, DataError
from mmdistill.execution.isolation import isolated
from mmdistill.recsys.cleaning import Log, Numbers, codes, deduplicate, disputed, feedback, positive, taken_back
from mmdistill.recsys.files import Columns
from mmdistill.recsys.sources import DATASETS as DATASETS
from mmdistill.recsys.sources import Source as Source
from mmdistill.recsys.sources import read_source
from mmdistill.recsys.splits import (
    BY_TIME,
    SPLITS,
    Split,
    SplitBy,
    add_validation,
    by_time,
    divide,
    has_training,
    named_parts,
    readable_times,
    require_split_by,
    split_note,
)
from mmdistill.runtime import Draws, checked_seed

UNVALIDATED = (
    "no validation rows, and too few training rows a user to take some: runs keep their last step, and judges do not "
    "choose their ridges; a column that names valid rows, or --split-by random (split_by), gives some"
)
"""The note on a split without validation rows, by which neither steps nor ridges can be chosen."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Binary user-item interactions in three parts.

    Args:
        name: the data set's name or path.
        parts: train, valid and test, each a binary ``(users, items)`` CSR array in float32.
        user_ids: the original id of each row.
        item_ids: the original id of each column.
        counts: how much reading removed or noticed, by kind (see :func:`build`).
        notes: remarks on how the data were read and split.
        min_rating: the lowest rating that counted as an interaction; None: any above 0.
    """

    name: str
    parts: Mapping[Split, sparse.csr_array]
    user_ids: npt.NDArray[Any]
    item_ids: npt.NDArray[Any]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()
    min_rating: float | None = None

    def __repr__(self) -> str:
        """Return one line with the name and the numbers of users, items and interactions."""
        sizes = ", ".join(f"{part.nnz:,} {name}" for name, part in self.parts.items())
        return f"Interactions({self.name}, {self.num_users:,} users, {self.num_items:,} items, interactions: {sizes})"

    @property
    def num_users(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """The number of items."""
        return len(self.item_ids)

    def rows(
        self, users: npt.ArrayLike, parts: Sequence[Split] = ("train",), device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return users' interactions in the union of the given splits, as dense ``(n, items)`` float32.

        Only the indices of the ones are copied to the device.
        """
        index = np.asarray(users)
        dense = torch.zeros(len(index), self.num_items, device=device)
        for part in parts:
            row, column = self.parts[part][index].tocoo().coords
            flat = torch.from_numpy(row.astype(np.int64) * self.num_items + column)
            dense.view(-1).index_fill_(0, flat.to(device), 1.0)
        return dense

    def item_counts(self) -> Tensor:
        """Return how many users have each item in the training part, ``(items,)`` float32."""
        counts = np.asarray(self.parts["train"].sum(0), dtype=np.float32).ravel()
        return torch.from_numpy(counts)

    def lengths(self, part: Split) -> Numbers:
        """Return how many interactions each user has in a part, ``(users,)``."""
        counts: Numbers = np.diff(self.parts[part].indptr).astype(np.int64)
        return counts

    def users_with(self, part: Split) -> Numbers:
        """Return the indices of the users with at least one interaction in a part."""
        return np.flatnonzero(self.lengths(part)).astype(np.int64)

    @property
    def validates(self) -> bool:
        """Whether there are validation interactions, by which steps and ridges are chosen."""
        return self.parts["valid"].nnz > 0

    @functools.cached_property
    def stored_bytes(self) -> int:
        """The bytes of the training part as binary CSR: 4 per interaction and per row pointer, no values."""
        return 4 * (self.parts["train"].nnz + self.num_users + 1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the training part, the validation part (which chooses the step) and the item ids."""
        return _digest(self.parts["train"], self.parts["valid"], ids=self.item_ids)

    @functools.cached_property
    def test_fingerprint(self) -> str:
        """A hash of the test part."""
        return _digest(self.parts["test"])


def _digest(*parts: sparse.csr_array, ids: npt.NDArray[Any] | None = None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for array in (part.indptr.astype(np.int64), part.indices.astype(np.int64)):
            digest.update(array.tobytes())
    digest.update("\n".join(map(str, [] if ids is None else ids.tolist())).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Reading:
    """How a log becomes implicit feedback.

    Args:
        min_interactions: users with fewer are dropped; None: those with fewer than the three that a division needs, or
            nobody if a split is given.
        min_rating: the lowest rating that counts as an interaction; None counts those above 0.
        split_by: how each user's interactions are divided; None: by the split column if there is one, else at random.
        seed: seed of a random split.
    """

    min_interactions: int | None = None
    min_rating: float | None = None
    split_by: SplitBy | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: fewer than one interaction, or an unknown ``split_by``.
        """
        if self.min_interactions is not None and self.min_interactions < 1:
            raise ConfigError(f"a user has at least 1 interaction, not {self.min_interactions}")
        require_split_by(self.split_by)

    def fewest(self, divides: bool) -> int:
        """Return how many interactions a user needs.

        Args:
            divides: whether each user's interactions are divided, for want of a given split.
        Raises:
            ConfigError: fewer than a division needs.
        """
        fewest = self.min_interactions or (len(SPLITS) if divides else 1)
        if divides and fewest < len(SPLITS):
            raise ConfigError(f"a user needs one interaction in each of three parts, so at least 3, not {fewest}")
        return fewest


@isolated
def load_interactions(
    source: Source | Mapping[str, Source],
    *,
    test: Source | None = None,
    user_column: str | int | None = None,
    item_column: str | int | None = None,
    rating_column: str | int | None = None,
    time_column: str | int | None = None,
    min_interactions: int | None = None,
    min_rating: float | None = None,
    split_by: SplitBy | None = None,
    seed: int = 0,
) -> Interactions:
    """Read interactions from a data set's name, a file, a folder, a table or a users x items matrix.

    Feedback becomes implicit: a rating counts as one interaction if it is at least ``min_rating``, or by default above
    0; in a table without ratings every row counts. If a user rated an item several times, the latest rating decides,
    provided that there are times. Unless a column names splits, each user's interactions are divided 80/10/10, with
    one moved from training to test; each part has at least one.

    Args:
        source: a name of :data:`DATASETS`, a path, a table (a data frame, or a list with a dictionary per row), a tuple
            ``(users, items)``, ``(users, items, ratings)`` or ``(users, items, ratings, times)`` of arrays or lists
            with one entry per interaction, a list of such tuples with one per interaction, a matrix (scipy sparse,
            numpy, torch), or a dictionary of such sources by split: train, test and perhaps valid.
        test: the test part in such a form, if ``source`` is the training part.
        user_column: name of a table's user column, or its position from 0 in a file without a header; guessed by
            default, like the others.
        item_column: name of the item column.
        rating_column: name of the rating column.
        time_column: name of the time column (numbers or dates), which a split by time reads.
        min_interactions: users with fewer are dropped; by default those with fewer than three, or nobody if a split is
            given.
        min_rating: the lowest rating that counts.
        split_by: ``time`` tests on each user's latest tenth of interactions, ``leave-one-out`` on the latest and
            validates on the one before it, ``random`` tests on random ones; all ignore a split column. By default a
            split column is used, and without one the split is random.
        seed: seed of a random split.

    Raises:
        DataError: missing, damaged, empty or unusable data; the message says what was expected.
        ConfigError: an unknown name or column, or no times to split by.
    """
    reading = Reading(min_interactions, min_rating, split_by, checked_seed(seed))
    columns = Columns(user_column, item_column, rating_column, time_column)
    if isinstance(source, Mapping):
        require_left_out("a dictionary of splits brings its own test part", test=test)
    elif test is not None:
        source = {"train": source, "test": test}
    if isinstance(source, Mapping):
        require_left_out("the splits are given", split_by=split_by)
    table = read_source(source, columns, by_time=split_by in BY_TIME)
    if table.shape is None:
        result = build(table.frame, table.name, reading)
    else:
        result = _of_matrix(table.frame, table.shape, table.name, reading)
    return replace(result, notes=(*table.notes, *result.notes))


def build(frame: pd.DataFrame, name: str, reading: Reading = Reading()) -> Interactions:
    """Turn a table of ``user``, ``item`` and optional ``rating``, ``time``, ``split`` into interactions.

    Fills ``counts``: ``not_positive`` ratings left out; ``duplicates`` and ``overlaps`` removed (an overlap is a pair
    in two parts, which stays in the earlier one); ``short_users`` dropped for too few interactions; ``unused_items``
    that have lost all interactions; ``cold_items`` without training interactions; and, if there are any, ratings
    ``taken_back`` by later ones and ``untrained_users`` dropped for having no training rows.

    Raises:
        ConfigError: no times to split by.
        DataError: no rows, missing ids, unparsable or no positive ratings, unknown split names or times, no user left,
            or no user with both training and test rows.
    """
    if frame.empty:
        raise DataError(f"{name} has no interactions")
    if reading.split_by in BY_TIME:
        frame = by_time(frame, name)
    notes: tuple[str, ...] = ()
    counts = dict.fromkeys(("not_positive", "duplicates", "overlaps", "short_users", "unused_items", "cold_items"), 0)
    users, user_ids = codes(frame["user"], name)
    items, item_ids = codes(frame["item"], name)
    has_splits = reading.split_by is None and "split" in frame
    log = Log(users, items, named_parts(frame["split"], name) if has_splits else None)
    if "rating" in frame:
        ratings = feedback(frame["rating"])
        keep = positive(ratings, frame["rating"], reading.min_rating, name)
        counts["not_positive"] = int((~keep).sum())
        keep, notes = _apply_latest_ratings(frame, ratings, users * len(item_ids) + items, log.part, keep, counts)
        log = log.where(keep)
    elif reading.min_rating is not None:
        raise ConfigError(f"{name} has no ratings, so none is at least {reading.min_rating}; leave min_rating out")
    log = deduplicate(log, len(item_ids), counts)
    fewest = reading.fewest(log.part is None)
    log = log.where(np.bincount(log.users, minlength=len(user_ids))[log.users] >= fewest)
    if not len(log.users):
        raise DataError(f"no user of {name} has {fewest} or more interactions, so nobody is left")
    key, untrained = Draws(reading.seed).fold("recsys", "split"), 0
    if log.part is None:
        split_by = reading.split_by or "random"
        part, notes = divide(log.users, split_by, key), (split_note(split_by, reading.seed), *notes)
    else:
        keep = has_training(log.part, log.users, name)
        untrained, part = len(np.unique(log.users[~keep])), add_validation(log.part[keep], log.users[keep], key)
        log = log.where(keep)
    interactions = _assemble(name, log, part, (user_ids, item_ids), counts, reading)
    if not interactions.validates:
        notes += (UNVALIDATED,)
    if untrained:
        counts |= {"short_users": counts["short_users"] - untrained, "untrained_users": untrained}
        notes += (f"test or validation: {untrained} users have no training rows of their own and are left out",)
    return replace(interactions, notes=notes)


def _apply_latest_ratings(
    frame: pd.DataFrame,
    ratings: npt.NDArray[np.float64],
    pair: Numbers,
    part: Numbers | None,
    keep: npt.NDArray[np.bool_],
    counts: dict[str, int],
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Return which ratings count when the latest of each user-item pair decides, and a note if there are no times.

    A rating of 0 takes nothing back: in click logs it means that the item was shown. The parts of a given split are
    treated separately, so that no test rating changes the training data.

    Args:
        frame: the table of the ratings, perhaps with times.
        ratings: the ratings as numbers.
        pair: the number of each rating's user-item pair.
        part: the part of each rating, if a split is given.
        keep: which ratings count by themselves.
        counts: receives the number of revoked ratings as ``taken_back``.
    """
    pair = pair if part is None else pair * len(SPLITS) + part
    rated = np.flatnonzero(ratings != 0)
    both = disputed(pair[rated], keep[rated])
    if not len(both):
        return keep, ()
    times = readable_times(frame["time"]) if "time" in frame else None
    if times is None:
        reason = "without times that say which is later, they count as interactions"
        return keep, (f"{len(both):,} pairs of user and item have ratings that count and others that do not: {reason}",)
    revoked = rated[taken_back(pair[rated], keep[rated], both, times[rated])]
    if len(revoked):
        counts["taken_back"] = len(revoked)
    keep = keep.copy()
    keep[revoked] = False
    return keep, ()


def _assemble(
    name: str,
    log: Log,
    part: Numbers,
    ids: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    counts: dict[str, int],
    reading: Reading,
) -> Interactions:
    """Build interactions of the remaining users and items, renumbered, with their original ids."""
    user_ids, item_ids = ids
    used_users, users = np.unique(log.users, return_inverse=True)
    used_items, items = np.unique(log.items, return_inverse=True)
    counts["short_users"] = len(user_ids) - len(used_users)
    counts["unused_items"] = len(item_ids) - len(used_items)
    shape = (len(used_users), len(used_items))
    parts: dict[Split, sparse.csr_array] = {}
    for index, split in enumerate(SPLITS):
        chosen = part == index
        ones = np.ones(int(chosen.sum()), dtype=np.float32)
        parts[split] = sparse.csr_array((ones, (users[chosen], items[chosen])), shape=shape)
    counts["cold_items"] = int((np.asarray(parts["train"].sum(0)).ravel() == 0).sum())
    return Interactions(name, parts, user_ids[used_users], item_ids[used_items], counts, min_rating=reading.min_rating)


def _of_matrix(frame: pd.DataFrame, shape: tuple[int, ...], name: str, reading: Reading) -> Interactions:
    """Build from a matrix's entries: row and column numbers are the ids; empty rows and columns are counted too."""
    result = build(frame, name, reading)
    dropped = {"short_users": shape[0] - result.num_users, "unused_items": shape[1] - result.num_items}
    return replace(result, counts={**result.counts, **dropped})
