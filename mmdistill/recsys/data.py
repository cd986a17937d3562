"""Implicit-feedback interactions: from files and matrices to train, validation and test sets of one id space."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.columns import SPLIT_NAMES, SPLIT_OF
from mmdistill.errors import ConfigError, DataError
from mmdistill.names import canonical
from mmdistill.recsys.files import find_file, read_sparse, read_table, select_columns, split_names
from mmdistill.registry import unknown_data
from mmdistill.runtime import Draws, data_root

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_FILES = {
    "ml-100k": ("MovieLens 100K: 943 users, 1,682 films", "u.data"),
    "ml-1m": ("MovieLens 1M: 6,040 users, 3,706 films", "ratings.dat, or interactions.csv.gz with a split"),
    "ml-10m": ("MovieLens 10M: 69,878 users, 10,677 films", "ratings.dat"),
    "ml-20m": ("MovieLens 20M: 138,493 users, 26,744 films", "ratings.csv"),
    "ml-25m": ("MovieLens 25M: 162,541 users, 59,047 films", "ratings.csv"),
}
DATASETS = {
    name: f"{line}; bring {name}/ ({files}), unpacked from grouplens.org/datasets/movielens"
    for name, (line, files) in _FILES.items()
}

RANDOM_SPLIT = "test and validation: a tenth each of a user's interactions, at random and not by time, seed {seed}"
"""What is noted where the data come without a split."""
TABLE_COLUMNS, RATED = (2, 3, 4), 10
"""Columns of a table of interactions, and the largest rating that one would find among so few items."""
Source = str | Path | pd.DataFrame | sparse.sparray | sparse.spmatrix | npt.NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Interactions:
    """Binary user-item interactions in three parts.

    Args:
        name: the data set's name or path.
        parts: train, valid and test, each a binary ``(users, items)`` CSR array in float32.
        user_ids: the original id of each row.
        item_ids: the original id of each column.
        counts: what reading removed or found, by kind (see :func:`build`).
        given_split: whether the split came with the data.
        notes: what was not read, in words.
    """

    name: str
    parts: Mapping[Split, sparse.csr_array]
    user_ids: npt.NDArray[Any]
    item_ids: npt.NDArray[Any]
    counts: Mapping[str, int]
    given_split: bool
    notes: tuple[str, ...] = ()

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
        """Return the rows of some users, the union of these parts, dense ``(n, items)`` float32.

        Only the places of the ones travel to the device.
        """
        index = np.asarray(users)
        dense = torch.zeros(len(index), self.num_items, device=device)
        for part in parts:
            row, column = self.parts[part][index].tocoo().coords
            places = torch.from_numpy(row.astype(np.int64) * self.num_items + column)
            dense.view(-1).index_fill_(0, places.to(device), 1.0)
        return dense

    def item_counts(self) -> Tensor:
        """Return how many users have each item in the training part, ``(items,)`` float32."""
        counts = np.asarray(self.parts["train"].sum(0), dtype=np.float32).ravel()
        return torch.from_numpy(counts)

    def lengths(self, part: Split) -> npt.NDArray[np.int64]:
        """Return how many interactions each user has in a part, ``(users,)``."""
        counts: npt.NDArray[np.int64] = np.diff(self.parts[part].indptr).astype(np.int64)
        return counts

    def users_with(self, part: Split) -> npt.NDArray[np.int64]:
        """Return the rows that have at least one interaction in a part."""
        return np.flatnonzero(self.lengths(part)).astype(np.int64)

    @functools.cached_property
    def stored_bytes(self) -> int:
        """The bytes of the training part as binary CSR: 4 per interaction and per row pointer, no values."""
        return 4 * (self.parts["train"].nnz + self.num_users + 1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the training part, of the validation part, which chooses the step, and of the item ids."""
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


def load_interactions(
    source: Source, *, min_interactions: int = 3, min_rating: float | None = None, seed: int = 0
) -> Interactions:
    """Read interactions from a data set's name, a file, a folder, a table or a users x items matrix.

    Feedback becomes implicit: a rating counts as one interaction where it is at least ``min_rating``, or by default
    above 0; a table without ratings is all interactions. Without a ``split`` column that names splits each user's
    interactions are divided at random, 80/10/10 with at least one for validation and one for testing.

    Args:
        source: a name of :data:`DATASETS`, a path, a data frame, or a matrix (scipy sparse, numpy, torch).
        min_interactions: users with fewer are dropped.
        min_rating: the lowest rating that counts.
        seed: of the random split.

    Raises:
        DataError: missing, damaged, empty or unusable data; the message says what was expected.
        ConfigError: an unknown name.
    """
    if min_interactions < 3:
        raise ConfigError(f"a user needs one interaction in each of three parts, so at least 3, not {min_interactions}")
    if isinstance(source, (str, Path)):
        path = resolve(source)
        name = str(source) if _is_known(source) else str(Path(source).absolute())
        if path.suffix == ".npz":
            return _from_matrix(read_sparse(path), name, min_interactions, min_rating, seed)
        frame, notes = read_table(path)
    elif isinstance(source, pd.DataFrame):
        name = "table"
        frame, notes = select_columns(source, "the table")
    else:
        return _from_matrix(_as_sparse(source), "matrix", min_interactions, min_rating, seed)
    found = build(frame, name, min_interactions=min_interactions, min_rating=min_rating, seed=seed)
    return replace(found, notes=(*notes, *found.notes))


def _is_known(source: str | Path) -> bool:
    """Return whether a source is the name of a data set, and no path."""
    return isinstance(source, str) and canonical(source) in DATASETS


def resolve(source: str | Path) -> Path:
    """Return the file that a data set's name, a folder or a path means.

    Raises:
        ConfigError: an unknown name.
        DataError: a known data set that is not there.
    """
    path = Path(source)
    if _is_known(source):
        path = data_root() / canonical(str(source))
        if not path.is_dir():
            raise DataError(
                f"{source!r} is not there: unpack the MovieLens archive, or put interactions.csv.gz "
                f"(user_id,item_id,rating,split), into {path}"
            )
    if path.is_dir():
        return find_file(path)
    if not path.exists() and not path.suffix:
        raise unknown_data("data set", str(source), DATASETS)
    return path


def build(
    frame: pd.DataFrame, name: str, *, min_interactions: int = 3, min_rating: float | None = None, seed: int = 0
) -> Interactions:
    """Turn a table of ``user``, ``item`` and optional ``rating``, ``split`` into interactions.

    ``counts`` says what happened: ``not_positive`` ratings left out, ``duplicates`` and (the same pair in two parts;
    the earlier part keeps it) ``overlaps`` removed, ``short_users`` dropped for too few interactions or none to train
    on, ``unused_items`` whose interactions all went, ``cold_items`` that training never sees.

    Raises:
        DataError: no rows, missing ids, unparsable or no positive ratings, unknown split names, nobody left.
    """
    if frame.empty:
        raise DataError(f"{name} has no interactions")
    counts = dict.fromkeys(("not_positive", "duplicates", "overlaps", "short_users", "unused_items", "cold_items"), 0)
    users, user_ids = _codes(frame["user"], name)
    items, item_ids = _codes(frame["item"], name)
    part = _parts(frame["split"], name) if "split" in frame else None
    if "rating" in frame:
        keep = _positive(frame["rating"], min_rating, name)
        counts["not_positive"] = int((~keep).sum())
        users, items, part = users[keep], items[keep], None if part is None else part[keep]
    users, items, part = _deduplicate(users, items, part, len(item_ids), counts)
    keep = np.bincount(users, minlength=len(user_ids))[users] >= min_interactions
    users, items, part = users[keep], items[keep], None if part is None else part[keep]
    if not len(users):
        raise DataError(f"no user of {name} has {min_interactions} or more interactions, so nobody is left")
    key = Draws(seed).fold("recsys", "split")
    part, given = (random_split(users, key), False) if part is None else (_complete_split(part, users, key, name), True)
    trained = np.bincount(users[part == 0], minlength=len(user_ids))[users] > 0
    users, items, part = users[trained], items[trained], part[trained]
    if not len(users):
        raise DataError(f"no user of {name} has both {min_interactions} interactions and one to train on")
    found = _assemble(name, users, items, part, user_ids, item_ids, counts, given)
    return found if given else replace(found, notes=(RANDOM_SPLIT.format(seed=seed),))


def random_split(users: npt.NDArray[np.int64], draws: Draws) -> npt.NDArray[np.int64]:
    """Return part 0, 1 or 2 of each interaction: of n, max(1, n/10) for testing, as many for validation."""
    chance = draws.uniform(len(users)).numpy()
    order = np.lexsort((chance, users))
    sizes = np.bincount(users)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(users), dtype=np.int64)
    rank[order] = np.arange(len(users)) - starts[users[order]]
    held = np.maximum(1, sizes // 10)[users]
    part: npt.NDArray[np.int64] = np.where(rank < held, 2, np.where(rank < 2 * held, 1, 0))
    return part


def _assemble(
    name: str,
    users: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    part: npt.NDArray[np.int64],
    user_ids: npt.NDArray[Any],
    item_ids: npt.NDArray[Any],
    counts: dict[str, int],
    given: bool,
) -> Interactions:
    used_users, users = np.unique(users, return_inverse=True)
    used_items, items = np.unique(items, return_inverse=True)
    counts["short_users"] = len(user_ids) - len(used_users)
    counts["unused_items"] = len(item_ids) - len(used_items)
    shape = (len(used_users), len(used_items))
    parts: dict[Split, sparse.csr_array] = {}
    for index, split in enumerate(SPLITS):
        chosen = part == index
        ones = np.ones(int(chosen.sum()), dtype=np.float32)
        parts[split] = sparse.csr_array((ones, (users[chosen], items[chosen])), shape=shape)
        parts[split].sort_indices()
    counts["cold_items"] = int((np.asarray(parts["train"].sum(0)).ravel() == 0).sum())
    return Interactions(name, parts, user_ids[used_users], item_ids[used_items], counts, given)


def _codes(column: "pd.Series[Any]", name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return a code per row and the sorted original ids: integers where all are written as integers, else text."""
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"row {int(missing.argmax()) + 1} of {name} has no {column.name} id ({missing.sum()} such rows)"
        )
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise DataError(f"{name} has {column.name} ids that are no numbers or texts ({error})") from error
    same, texts = pd.factorize(np.array([str(value) for value in values], dtype=object))
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


def _positive(column: "pd.Series[Any]", min_rating: float | None, name: str) -> npt.NDArray[np.bool_]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"row {row + 1} of {name} has rating {str(column.iloc[row])!r}; every rating must be a finite number "
            f"({int(bad.sum())} are not)"
        )
    keep: npt.NDArray[np.bool_] = values > 0 if min_rating is None else values >= min_rating
    if not keep.any():
        wanted = "above 0" if min_rating is None else f"at least {min_rating}"
        raise DataError(f"no rating of {name} is {wanted} (the largest is {values.max():g}), so nobody likes anything")
    return keep


def _parts(column: "pd.Series[Any]", name: str) -> npt.NDArray[np.int64]:
    numbers = {split: number for number, split in enumerate(SPLIT_NAMES)}
    part = split_names(column).map(SPLIT_OF).map(numbers)
    bad = part.isna().to_numpy()
    if bad.any():
        raise DataError(
            f"row {int(bad.argmax()) + 1} of {name} has split {column.iloc[int(bad.argmax())]!r}; "
            f"known are {', '.join(SPLIT_OF)}"
        )
    return np.asarray(part, dtype=np.int64)


def _deduplicate(
    users: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    part: npt.NDArray[np.int64] | None,
    num_items: int,
    counts: dict[str, int],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    pair = users * num_items + items
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
    first = np.sort(first)
    return users[first], items[first], None if part is None else part[first]


def _complete_split(
    part: npt.NDArray[np.int64], users: npt.NDArray[np.int64], draws: Draws, name: str
) -> npt.NDArray[np.int64]:
    """Check a given split; without validation rows, take a tenth of each user's training rows for them."""
    if not (part == 2).any() or not (part == 0).any():
        raise DataError(
            f"the split column of {name} needs both train and test rows; without the column, rows are split"
        )
    if (part == 1).any():
        return part
    train = np.flatnonzero(part == 0)
    sizes = np.bincount(users[train], minlength=int(users.max()) + 1)
    taken = random_split(users[train], draws) == 1
    part = part.copy()
    part[train[taken & (sizes[users[train]] >= 3)]] = 1
    return part


def _as_sparse(source: Any) -> sparse.csr_array:
    given = type(source).__name__
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        half = source.dtype in (torch.bfloat16, torch.float16)  # which NumPy or SciPy lacks
        source = _from_torch(source.float() if half else source)
    if not sparse.issparse(source):
        try:
            source = np.asarray(source)
        except ValueError as error:
            raise DataError(
                f"expected a users x items matrix, and rows differ in length ({error}); lists of each user's items are "
                "a table: pd.DataFrame({'user': ..., 'item': ...})"
            ) from error
    if source.ndim != 2 or source.dtype.kind not in "biuf":
        got = f"{source.dtype} {source.shape}" if source.ndim else given
        raise DataError(f"expected a users x items matrix of numbers, a data frame or a path, got {got}")
    if source.dtype == np.float16:  # which SciPy lacks
        source = source.astype(np.float32)
    if isinstance(source, np.ndarray) and source.shape[1] in TABLE_COLUMNS and source.size and source.max() > RATED:
        raise DataError(
            f"{source.shape} numbers up to {source.max():g} look like a table of (user, item, rating, time), and a "
            "users x items matrix is expected; a table is a pd.DataFrame with the columns user and item, a matrix of "
            "so few items a scipy.sparse one"
        )
    matrix = sparse.csr_array(source)
    try:
        matrix.check_format()
    except ValueError as error:
        raise DataError(f"the matrix of users x items is damaged: {error}") from error
    return matrix


def _from_torch(matrix: Tensor) -> npt.NDArray[Any] | sparse.coo_array:
    """Return a tensor as an array; a sparse matrix stays sparse, whatever its layout."""
    if matrix.layout == torch.strided or matrix.ndim != 2:
        return matrix.to_dense().numpy()
    entries = matrix.to_sparse(layout=torch.sparse_coo).coalesce()
    return sparse.coo_array((entries.values().numpy(), tuple(entries.indices().numpy())), shape=tuple(entries.shape))


def _from_matrix(
    matrix: sparse.csr_array, name: str, min_interactions: int, min_rating: float | None, seed: int
) -> Interactions:
    """Build from a matrix: row and column numbers are the ids; empty rows and columns are dropped and counted."""
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name} has shape {matrix.shape}; a users x items matrix was expected")
    if not np.isfinite(matrix.data.astype(np.float64)).all():
        raise DataError(f"{name} has NaN or infinite entries; every entry must be a finite number")
    entries = matrix.tocoo()
    users, items = entries.coords
    frame = pd.DataFrame({"user": users, "item": items, "rating": entries.data.astype(np.float64)})
    frame = frame[frame["rating"] != 0]
    result = build(frame, name, min_interactions=min_interactions, min_rating=min_rating, seed=seed)
    dropped = {"short_users": matrix.shape[0] - result.num_users, "unused_items": matrix.shape[1] - result.num_items}
    return replace(result, counts={**result.counts, **dropped})
