"""Matrices of users x items, from files and from the libraries that hold them."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError

TABLE_COLUMNS, RATED = (2, 3, 4), 10
"""Columns of a table of interactions, and the largest rating that one would find among so few items."""


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


def as_sparse(source: Any) -> sparse.csr_array:
    """Return a users x items matrix of scipy, numpy or torch as a sparse one.

    Raises:
        DataError: no matrix of numbers, rows of several lengths, a table that is no matrix, or a damaged one.
    """
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
        raise DataError(
            f"expected a users x items matrix of numbers, a table or a path, got {got}; a table is a data frame, or a "
            "list with a dictionary per row"
        )
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
