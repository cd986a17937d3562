"""Synthetic users in the formats of other recommenders, with the original item ids."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.exports import into_folder
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.draw import SMALLEST_WEIGHT, rows_of
from mmdistill.recsys.factorisation import heaviest
from mmdistill.runtime import atomic_write
from mmdistill.store import write_tensors
from mmdistill.task import Batch, Task


@into_folder
def export_csr(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write the weighted users x items matrix for ``scipy.sparse.load_npz``, and the original id of each column."""
    data, rows = rows_of(task, batch)
    return [_matrix(folder / "users.npz", sparse.csr_array(rows.numpy())), _columns(data, folder)]


@into_folder
def export_binary(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write binary users as a CSR matrix and as ``user,item`` lines; of a weighted row, its heaviest items."""
    data, rows = rows_of(task, batch)
    binary = heaviest(rows)
    users, items = binary.tocoo().coords
    table = pd.DataFrame({"user": users, "item": data.item_ids[items]})
    written = _table(folder / "binary.csv", table)
    return [_matrix(folder / "binary.npz", binary), written, _columns(data, folder)]


@into_folder
def export_csv(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write ``user,item,weight`` with original item ids, without weights below :data:`SMALLEST_WEIGHT`."""
    data, rows = rows_of(task, batch)
    users, items, weights = _weighted(data, rows)
    return [_table(folder / "users.csv", pd.DataFrame({"user": users, "item": items, "weight": weights}))]


@into_folder
def export_recbole(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write RecBole's atomic file, ``distilled/distilled.inter``: typed header, tabs, original item ids.

    Binary users have a rating of 1; weights of weighted ones are their ratings.
    """
    data, rows = rows_of(task, batch)
    users, items, weights = _weighted(data, rows)
    names = ["user_id:token", "item_id:token", "rating:float"]
    table = pd.DataFrame(dict(zip(names, (users, items, weights), strict=True)))
    return [_table(folder / "distilled" / "distilled.inter", table, "\t")]


@into_folder
def export_tensors(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write the dense rows as ``users`` in a safetensors file, and the original id of each column."""
    data, rows = rows_of(task, batch)
    path = folder / "users.safetensors"
    write_tensors(path, {"users": rows.contiguous()})
    return [path, _columns(data, folder)]


def _weighted(data: Interactions, rows: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items = torch.nonzero(rows >= SMALLEST_WEIGHT, as_tuple=True)
    return users.numpy(), data.item_ids[items.numpy()], rows[users, items].numpy()


def _matrix(path: Path, matrix: sparse.csr_array) -> Path:
    with atomic_write(path) as handle:
        sparse.save_npz(handle, matrix)
    return path


def _columns(data: Interactions, folder: Path) -> Path:
    return _table(folder / "items.csv", pd.DataFrame({"column": np.arange(data.num_items), "item_id": data.item_ids}))


def _table(path: Path, table: pd.DataFrame, separator: str = ",") -> Path:
    with atomic_write(path) as handle:
        handle.write(table.to_csv(index=False, sep=separator, float_format="%.6g").encode())
    return path


EXPORTS = {
    "csr": export_csr,
    "csv": export_csv,
    "binary": export_binary,
    "recbole": export_recbole,
    "tensors": export_tensors,
}
