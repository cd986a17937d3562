"""Read interactions as users give them: by name or path, as tables and matrices, and splits of these."""

import itertools
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.columns import known_split, require_one_each, split_name
from mmdistill.files.paths import users_path
from mmdistill.files.tables import as_frame, is_rows, splits_of
from mmdistill.names import canonical, unknown_data
from mmdistill.recsys.cleaning import PART_ROWS
from mmdistill.recsys.files import Columns, read_table, select_columns
from mmdistill.recsys.folders import FOLDER_FILES, WHOLE, find_files, holds_lists, read_lists, unread_note
from mmdistill.recsys.matrices import ROLES, as_sparse, is_columns, is_tuples, read_sparse, table_of_columns
from mmdistill.runtime import data_root

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

Source = (
    str
    | Path
    | pd.DataFrame
    | Sequence[Mapping[str, Any]]
    | tuple[Any, ...]
    | sparse.sparray
    | sparse.spmatrix
    | Sequence[tuple[Any, ...]]
    | npt.NDArray[Any]
    | Tensor
)
"""Data as a user may give them: a name, a path, a table (a data frame of pandas or polars, a table of
pyarrow, or a list with a dictionary or a tuple per row), a tuple of users and items (and ratings, and times), a
matrix."""


class Table(NamedTuple):
    """Interactions as a table.

    Args:
        name: the data set's name or path, or the kind of data in memory.
        frame: the table, with the columns ``user`` and ``item`` and, if present, ``rating``, ``time`` and ``split``.
        notes: remarks on how it was read.
        shape: the numbers of users and items of a matrix.
    """

    name: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None


def read_source(source: Source | Mapping[str, Source], columns: Columns, *, by_time: bool = False) -> Table:
    """Read a source, or the sources of a split by the names of its parts, as one table.

    Args:
        source: the source.
        columns: the names of its columns.
        by_time: whether rows are split by time, see :func:`~mmdistill.recsys.files.read_table`.
    Raises:
        ConfigError: an unknown name, column or part, or names of columns for data without.
        DataError: missing, damaged or unusable data, or parts that do not fit together.
    """
    if isinstance(source, Mapping):
        if not any(known_split(key) for key in source):
            raise DataError(
                'a dictionary is one of splits, {"train": ..., "test": ...}; one with a list per column is a table as '
                "pd.DataFrame(data), got dict"
            )
        require_one_each(source)
        table = _join({split_name(key): _read_one(part, columns, by_time) for key, part in source.items()})
        return table._replace(name="matrix" if table.shape else "table")  # a command would read the first file alone
    table = _read_one(source, columns, by_time)
    path = resolve(source).get(WHOLE) if isinstance(source, str | Path) else None
    return table if path is None else table._replace(notes=(*table.notes, *unread_note(path)))


def _read_one(source: Source, columns: Columns, by_time: bool) -> Table:
    source = as_frame(source)
    if isinstance(source, str | Path):
        name = str(source) if _is_known(source) else str(users_path(source).absolute())
        files = resolve(source)
        parts = {split: _read_file(path, name, columns, by_time) for split, path in files.items()}
        if WHOLE in parts:
            return parts[WHOLE]
        table = _join(parts)
        return table._replace(notes=(f"splits: {', '.join(path.name for path in files.values())}", *table.notes))
    if isinstance(source, pd.DataFrame) or is_rows(source):
        frame = source if isinstance(source, pd.DataFrame) else pd.DataFrame(source, dtype=object)
        return Table("table", *select_columns(frame, "the table", columns))
    if is_columns(source) or is_tuples(source):
        columns.require_none("a tuple of users and items")
        by_role = source if isinstance(source, tuple) else tuple(map(list, zip(*source, strict=True)))
        if isinstance(source, list) and all(map(_is_zero_or_one, itertools.chain.from_iterable(source))):
            raise DataError(
                "a list of tuples of 0 and 1 may be users and items, or the rows of a matrix: give a matrix as "
                "np.array(rows), a table as pd.DataFrame(rows, columns=['user', 'item'])"
            )
        note = "" if isinstance(source, tuple) else f"tuples are read as {', '.join(ROLES[: len(by_role)])}"
        return Table("table", table_of_columns(by_role), (note,) if note else ())
    columns.require_none("a matrix")
    return _of_entries(as_sparse(source), "matrix")


def _is_zero_or_one(value: object) -> bool:
    return isinstance(value, Real | np.bool) and value in (0, 1)


def _read_file(path: Path, name: str, columns: Columns, by_time: bool) -> Table:
    if path.suffix.lower() == ".npz":
        columns.require_none(f"{path}, a matrix,")
        return _of_entries(read_sparse(path), name)
    if holds_lists(path):
        columns.require_none(f"{path}, with a user and their items in each row,")
        return Table(name, read_lists(path), (f"each row of {path.name} is read as a user and their items",))
    return Table(name, *read_table(path, columns, by_time=by_time))


def _of_entries(matrix: sparse.csr_array, name: str) -> Table:
    """Return the entries of a users x items matrix other than 0, whose row and column numbers are the ids.

    Raises:
        DataError: no such matrix, or NaN or infinite entries.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name} has shape {matrix.shape}; a users x items matrix was expected")
    if not np.isfinite(matrix.data.astype(np.float64)).all():
        raise DataError(f"{name} has NaN or infinite entries; every entry must be a finite number")
    entries = matrix.tocoo()
    users, items = entries.coords
    frame = pd.DataFrame({"user": users, "item": items, "rating": entries.data.astype(np.float64)})
    return Table(name, frame[frame["rating"] != 0], shape=matrix.shape)


def _join(parts: Mapping[str, Table]) -> Table:
    """Join the parts of a split to a table with a column of splits, under the name of the training part.

    Its index is a row's part, and its number in there.

    Raises:
        DataError: no training or no test part, parts with and without ratings, matrices of different shapes, or a part
            with a split of its own.
    """
    if missing := [split for split in ("train", "test") if split not in parts]:
        raise DataError(f"a split has train and test, and here is no {missing[0]} (there are: {', '.join(parts)})")
    if len({part.shape for part in parts.values()}) > 1:
        shapes = ", ".join(f"{split} {part.shape or 'a table'}" for split, part in parts.items())
        raise DataError(f"the parts of a split are tables, or matrices of the same users and items, got {shapes}")
    if len({"rating" in part.frame for part in parts.values()}) > 1:
        rated = [split for split, part in parts.items() if "rating" in part.frame]
        raise DataError(f"of the parts of a split, only {' and '.join(rated)} has ratings; give all or none of them")
    for split, part in parts.items():
        if "split" in part.frame and (splits_of(part.frame["split"], "its column of splits", split) != split).any():
            raise DataError(f"the {split} part has a column of other splits; leave the column out, or give one table")
    frames = {split: part.frame.assign(split=split).reset_index(drop=True) for split, part in parts.items()}
    notes = dict.fromkeys(note for part in parts.values() for note in part.notes)
    return parts["train"]._replace(frame=pd.concat(frames, names=[*PART_ROWS]), notes=tuple(notes))


def _is_known(source: str | Path) -> bool:
    """Return whether a source is the name of a data set rather than a path."""
    return isinstance(source, str) and canonical(source) in DATASETS


def resolve(source: str | Path) -> dict[str, Path]:
    """Return the file for a data set's name, a folder or a path under :data:`WHOLE`, or the files of its split.

    Raises:
        ConfigError: an unknown name.
        DataError: a known data set whose files are missing, or a folder with no or too many files.
    """
    path = users_path(source)
    if _is_known(source):
        path = data_root() / canonical(str(source))
        if not path.is_dir():
            raise DataError(
                f"{source!r} is not there: unpack the MovieLens archive, or put interactions.csv.gz "
                f"(user_id,item_id,rating,split), into {path}"
            )
    if path.is_dir():
        if files := find_files(path):
            return files
        raise DataError(
            f"{path} has no interactions: expected one of {', '.join(FOLDER_FILES)}, an .inter file, or train.csv and "
            "test.csv (or with other endings of tables; NAME.train.inter and NAME.test.inter) in it"
        )
    if not path.exists() and not path.suffix:
        raise unknown_data("data set", str(source), DATASETS)
    return {WHOLE: path}
