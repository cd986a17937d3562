"""Convert users x items matrices (files, scipy, numpy, torch) to CSR, and tuples of columns to tables."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError

TABLE_COLUMNS, RATED = (2, 3, 4), 10
"""Possible numbers of columns of an interaction table; larger values than this rating suggest a table of ids."""
ROLES = ("user", "item", "rating", "time")
"""The columns of a tuple, in this order; the first two are required."""
HALF = (torch.bfloat16, torch.float16)
"""Number formats that NumPy or SciPy lacks."""


def read_sparse(path: Path) -> sparse.csr_array:
    """Read a users x items matrix that ``scipy.sparse.save_npz`` wrote; pickles are refused.

    Raises:
        DataError: missing, damaged, or not a sparse matrix.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the matrix there or name another file")
    if not _is_sparse_archive(path):
        raise DataError(
            f"{path} is not a matrix written by scipy.sparse.save_npz (nor images, whose arrays are called images and "
            "labels, test_images and test_labels)"
        )
    try:
        matrix = sparse.csr_array(sparse.load_npz(path))
        matrix.check_format()
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive makes numpy and scipy raise anything
        raise DataError(f"{path} is damaged: {error}") from error
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"{path} holds {matrix.dtype} entries; every entry must be a number")
    return matrix


def _is_sparse_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return {"format.npy", "shape.npy", "data.npy"} <= names


def is_columns(source: object) -> TypeGuard[tuple[Any, ...]]:
    """Return whether a source is a tuple of 1-D users, items and optionally ratings and times."""
    return isinstance(source, tuple) and len(source) in TABLE_COLUMNS and all(map(_has_one_axis, source))


def is_tuples(source: object) -> TypeGuard[list[tuple[Any, ...]]]:
    """Return whether a source is a non-empty list of tuples ``(user, item)``, with a rating or a rating and a time."""
    return (
        isinstance(source, list)
        and bool(source)
        and all(isinstance(row, tuple) and len(row) in TABLE_COLUMNS for row in source)
        and len({len(row) for row in source}) == 1
    )


def _has_one_axis(values: object) -> bool:
    if isinstance(values, str | bytes):
        return False
    if isinstance(values, Sequence):
        return not any(isinstance(value, list | tuple) or getattr(value, "ndim", 0) for value in values)
    return isinstance(values, np.ndarray | pd.Series | pd.Index | Tensor) and values.ndim == 1


def table_of_columns(columns: tuple[Any, ...]) -> pd.DataFrame:
    """Return columns of users, items and optionally ratings and times as a table with these names.

    Rows are aligned by position; the index of a pandas column is ignored.

    Raises:
        DataError: columns of different lengths.
    """
    by_role = dict(zip(ROLES, columns, strict=False))
    if len({len(values) for values in by_role.values()}) > 1:
        lengths = ", ".join(f"{len(values):,} {role}s" for role, values in by_role.items())
        raise DataError(f"a tuple of users and items has a place for each interaction in both, and here are {lengths}")
    return pd.DataFrame({role: _column(values) for role, values in by_role.items()})


def _column(values: Any) -> "pd.Series[Any]":
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype in HALF else values).numpy()
    return pd.Series(values).reset_index(drop=True)


def as_sparse(source: Any) -> sparse.csr_array:
    """Convert a users x items matrix of scipy, numpy or torch to CSR.

    Raises:
        DataError: not a matrix of numbers, rows of different lengths, a table instead of a matrix, or a damaged matrix.
    """
    type_name = type(source).__name__
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = _from_torch(source.float() if source.dtype in HALF else source)
    if not sparse.issparse(source):
        try:
            source = np.asarray(source)
        except ValueError as error:
            raise DataError(
                f"expected a users x items matrix, and rows differ in length ({error}); lists of each user's items are "
                "a table: pd.DataFrame({'user': ..., 'item': ...})"
            ) from error
    if source.ndim != 2 or source.dtype.kind not in "biuf":
        got = f"{source.dtype} {source.shape}" if source.ndim else type_name
        raise DataError(
            f"expected a users x items matrix of numbers, a table or a path, got {got}; a table is a data frame, a "
            "list with a dictionary per row, or a tuple (users, items)"
        )
    if source.dtype == np.float16:  # SciPy has no float16
        source = source.astype(np.float32)
    if isinstance(source, np.ndarray):
        _require_no_table(source)
    matrix = sparse.csr_array(source)
    try:
        matrix.check_format()
    except ValueError as error:
        raise DataError(f"the matrix of users x items is damaged: {error}") from error
    return matrix


def _require_no_table(array: npt.NDArray[Any]) -> None:
    """Refuse an array that looks like a table of users, items, ratings and times rather than a matrix.

    Raises:
        DataError: it does; the message says how to give a table.
    """
    if not array.size or not array.max() > RATED:  # NaN is refused elsewhere
        return
    description = f"{array.shape} numbers up to {array.max():g} look like a table of (user, item, rating, time)"
    if array.shape[1] in TABLE_COLUMNS:
        raise DataError(
            f"{description}, and a users x items matrix is expected; a table is a pd.DataFrame with the columns user "
            "and item, a matrix of so few items a scipy.sparse one"
        )
    if array.shape[0] in TABLE_COLUMNS:
        raise DataError(
            f"{description} with a row for each, and a users x items matrix is expected; give the rows as a tuple, "
            "(users, items) or (users, items, ratings), and a matrix of so few users as a scipy.sparse one"
        )


def _from_torch(matrix: Tensor) -> npt.NDArray[Any] | sparse.coo_array:
    """Return a tensor as an array; a sparse matrix of any layout stays sparse."""
    if matrix.layout == torch.strided or matrix.ndim != 2:
        return matrix.to_dense().numpy()
    entries = matrix.to_sparse(layout=torch.sparse_coo).coalesce()
    return sparse.coo_array((entries.values().numpy(), tuple(entries.indices().numpy())), shape=tuple(entries.shape))
