"""Synthetic users in the formats of other recommenders, with the original item ids."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.distilled import DistilledSet, stored_value
from mmdistill.errors import UnsupportedError
from mmdistill.exporters import exporter
from mmdistill.recsys.draw import SMALLEST_WEIGHT, synthetic_rows
from mmdistill.recsys.factorisation import heaviest
from mmdistill.recsys.imports import COLUMNS
from mmdistill.runtime import atomic_write
from mmdistill.store import write_tensors, write_text

Ids = npt.NDArray[Any]


@exporter
def export_csr(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write the weighted users x items matrix for ``scipy.sparse.load_npz``, and the original id of each column."""
    ids, rows = _ids_and_rows(distilled)
    return [_write_matrix(folder / "users.npz", sparse.csr_array(rows.numpy())), _write_item_ids(ids, folder)]


@exporter
def export_binary(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write binary users as a CSR matrix and as ``user,item`` lines; a weighted row keeps its heaviest items."""
    ids, rows = _ids_and_rows(distilled)
    binary = heaviest(rows)
    users, items = binary.tocoo().coords
    table = _write_table(folder / "binary.csv", pd.DataFrame({"user": users, "item": ids[items]}))
    return [_write_matrix(folder / "binary.npz", binary), table, _write_item_ids(ids, folder)]


@exporter
def export_csv(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``user,item,weight`` with original item ids, without weights below :data:`SMALLEST_WEIGHT`."""
    ids, rows = _ids_and_rows(distilled)
    users, items, weights = _weighted_interactions(ids, rows)
    return [_write_table(folder / "users.csv", pd.DataFrame({"user": users, "item": items, "weight": weights}))]


@exporter
def export_recbole(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write RecBole's atomic file, ``distilled/distilled.inter``: typed header, tabs, original item ids.

    Weights become ratings; those of binary users are 1.
    """
    ids, rows = _ids_and_rows(distilled)
    users, items, weights = _weighted_interactions(ids, rows)
    names = ["user_id:token", "item_id:token", "rating:float"]
    table = pd.DataFrame(dict(zip(names, (users, items, weights), strict=True)))
    return [_write_table(folder / "distilled" / "distilled.inter", table, "\t")]


@exporter
def export_tensors(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write the dense rows as ``users`` in a safetensors file, and the original id of each column."""
    ids, rows = _ids_and_rows(distilled)
    path = folder / "users.safetensors"
    write_tensors(path, {"users": rows.contiguous()})
    return [path, _write_item_ids(ids, folder)]


def _ids_and_rows(distilled: DistilledSet) -> tuple[Ids, Tensor]:
    """Return the original id of each column and the synthetic rows.

    Raises:
        UnsupportedError: the set is not of interactions.
        CheckpointError: the set is damaged.
    """
    ids: Any = distilled.info.preprocessing.get("item_ids")
    if ids is None:
        raise UnsupportedError(f"this writes sets of interactions, not of {distilled.info.domain} data")
    stored_value(distilled.info, "item_ids", lambda ids: isinstance(ids, list), "list")
    return np.array(ids), synthetic_rows(distilled.batch, len(ids))


def _weighted_interactions(ids: Ids, rows: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items = torch.nonzero(rows >= SMALLEST_WEIGHT, as_tuple=True)
    return users.numpy(), ids[items.numpy()], rows[users, items].numpy()


def _write_matrix(path: Path, matrix: sparse.csr_array) -> Path:
    with atomic_write(path) as handle:
        sparse.save_npz(handle, matrix)
    return path


def _write_item_ids(ids: Ids, folder: Path) -> Path:
    return _write_table(folder / COLUMNS, pd.DataFrame({"column": np.arange(len(ids)), "item_id": ids}))


def _write_table(path: Path, table: pd.DataFrame, separator: str = ",") -> Path:
    write_text(path, table.to_csv(index=False, sep=separator, float_format="%.6g", lineterminator="\n"))
    return path


EXPORTS = {
    "csr": export_csr,
    "csv": export_csv,
    "binary": export_binary,
    "recbole": export_recbole,
    "tensors": export_tensors,
}
