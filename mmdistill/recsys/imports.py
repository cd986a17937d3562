"""Import users that other tools synthesised, from users x items matrices and tables of interactions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.saved import SUFFIXES, array_names, from_array, read_saved
from mmdistill.importers import Imported, Importer, ImportSource, as_tensor, float_bytes, noted, weighed
from mmdistill.names import first_few
from mmdistill.parameterizations.base import index_bytes
from mmdistill.recsys.cleaning import feedback, spelt_id
from mmdistill.recsys.factorisation import is_binary
from mmdistill.recsys.files import read_table, select_columns
from mmdistill.recsys.matrices import as_sparse, read_sparse
from mmdistill.recsys.task import RecsysTask
from mmdistill.task import Batch

COLUMNS = "items.csv"
"""File with the original item id of each matrix column, as exports write it."""


def read_users(task: RecsysTask, source: ImportSource) -> Imported:
    """Read users as rows of weights in [0, 1] over the task's items; they are their own targets.

    Accepts matrices ``(users, items)`` with the items in the task's order, or in that of an ``items.csv`` beside
    them, and tables of user, item (by original id) and optionally weight.

    Raises:
        DataError: other files, unknown items, weights outside [0, 1], or users without items.
    """
    columns = [path for path in source.samples if path.name == COLUMNS]
    others = [path for path in source.samples if path not in columns]
    matrices = {path.stem for path in others if _is_matrix(path)}
    copies = [path for path in others if path.stem in matrices and not _is_matrix(path)]  # the binary export writes one
    if copies:
        others = [path for path in others if path not in copies]
        noted(f"not read: {first_few([path.name for path in copies])}, beside the matrix of that name")
    if len(others) + bool(source.given) != 1:
        raise DataError("synthetic users come in one file, a matrix or a table (and items.csv beside a matrix)")
    ids = [str(item_id) for item_id in task.data.item_ids.tolist()]
    if source.given:
        rows = _rows_of_values(source.given, ids)
    elif _is_matrix(others[0]):
        rows = _read_matrix(others[0])
    else:
        table, notes = read_table(others[0])
        rows = _rows_of_table(table, notes, ids, str(others[0]))
    if columns:
        rows = _reorder_columns(rows, columns[0], ids)
    if rows.ndim != 2 or rows.shape[1] != len(ids) or not len(rows):
        raise DataError(f"users of {task.data.name} are rows of {len(ids)} items, got {tuple(rows.shape)}")
    if not bool(rows.isfinite().all()) or float(rows.min()) < 0 or float(rows.max()) > 1:
        raise DataError("weights of interactions lie between 0 and 1, and some of these do not")
    if empty := int((rows.sum(1) == 0).sum()):
        raise DataError(f"{empty} users have no interaction; leave them out")
    return Imported(weighed(rows, rows), learned=source.learned())


def users_bytes(batch: Batch, classes: int) -> int:
    """Return the bytes of users: the places of their items if all weights are 0 or 1, else the weights."""
    rows = batch.inputs
    if not isinstance(rows, Tensor):
        return float_bytes(batch, classes)
    return index_bytes(rows.shape[1]) * int(rows.sum()) if is_binary(rows) else 4 * rows.numel()


def _is_matrix(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _read_matrix(path: Path) -> Tensor:
    """Read a matrix that scipy, NumPy, torch or safetensors wrote."""
    if "format" in array_names(path):
        return from_array(read_sparse(path).toarray(), str(path)).float()
    saved = read_saved(path)
    return _matrix(saved if isinstance(saved, Mapping) else {path.stem: saved})


def _matrix(values: Mapping[str, Any]) -> Tensor:
    """Return the matrix called ``users``, or the only one there is.

    Raises:
        DataError: no ``users`` among several values, or no value.
    """
    if "users" not in values and len(values) != 1:
        raise DataError(f"the matrix of synthetic users is called users; found {first_few(list(values)) or 'nothing'}")
    value = values.get("users", next(iter(values.values())))
    if isinstance(value, Tensor) or not hasattr(value, "toarray"):
        return as_tensor(value, "users").float()
    return from_array(as_sparse(value).toarray(), "users").float()


def _rows_of_values(values: Mapping[str, Any], ids: list[str]) -> Tensor:
    """Return users as rows from in-memory values: a single table, or a matrix."""
    first = next(iter(values.values()))
    if len(values) == 1 and isinstance(first, pd.DataFrame):
        table, notes = select_columns(first, "the table")
        return _rows_of_table(table, notes, ids, "the table")
    return _matrix(values)


def _rows_of_table(table: pd.DataFrame, notes: tuple[str, ...], ids: list[str], name: str) -> Tensor:
    """Return a table's users as rows, in order of first appearance; pass on the notes of its reader."""
    for note in notes:
        noted(note)
    users, _ = pd.factorize(table["user"].map(spelt_id))
    weights = feedback(table["rating"]) if "rating" in table else np.ones(len(table))
    rows = torch.zeros(int(users.max()) + 1 if len(users) else 0, len(ids))
    places = torch.from_numpy(users.astype(np.int64)), _positions(table["item"].map(spelt_id).tolist(), ids, name)
    return rows.index_put(places, torch.tensor(np.asarray(weights), dtype=torch.float32))


def _reorder_columns(rows: Tensor, path: Path, ids: list[str]) -> Tensor:
    """Return rows with their columns, named by a file, in the order of the task's items."""
    try:
        names = pd.read_csv(path, dtype=str, keep_default_na=False)["item_id"].tolist()
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} should have the columns column and item_id, as exports write it ({error})") from error
    if rows.ndim != 2 or rows.shape[1] != len(names):
        raise DataError(f"{path} names {len(names)} columns, and the matrix is {tuple(rows.shape)}")
    reordered = torch.zeros(len(rows), len(ids))
    reordered[:, _positions(names, ids, str(path))] = rows
    return reordered


def _positions(names: list[str], ids: list[str], source: str) -> Tensor:
    """Return the column of each item in the task's order.

    Raises:
        DataError: an item that the task does not have.
    """
    places = {name: index for index, name in enumerate(ids)}
    if unknown := [name for name in names if name not in places]:
        raise DataError(f"{source} has the item {unknown[0]!r}, which the data do not have")
    return torch.tensor([places[name] for name in names], dtype=torch.long)


def users_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return a matrix or a table under the name ``users``; None for any other value."""
    is_accepted = isinstance(value, Tensor | np.ndarray | pd.DataFrame) or sparse.issparse(value)
    return {"users": value} if is_accepted else None


IMPORTS = Importer(
    read_users,
    RecsysTask,
    f"a matrix of users x items (.npz of scipy or NumPy, .pt or .safetensors), perhaps with {COLUMNS}, or a table of "
    "user, item and perhaps weight, of any kind that interactions are read from",
    named=users_by_name,
    size=users_bytes,
)
"""The importer of synthetic users."""
