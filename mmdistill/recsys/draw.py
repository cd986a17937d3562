"""What synthetic users look like, and their exports for other recommenders."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import save
from scipy import sparse
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.task import RecsysTask
from mmdistill.runtime import atomic_write
from mmdistill.task import Batch, Task

USERS_SHOWN = 12
ITEMS_SHOWN = 8
SMALLEST_WEIGHT = 1e-3
"""Lighter interactions are left out of the CSV export; the CSR and tensor exports hold all."""


def rows_of(task: Task, batch: Batch) -> tuple[Interactions, Tensor]:
    """Return the real data and the synthetic rows, checked to fit each other.

    Raises:
        ConfigError: the task is not one of interactions.
        ShapeError: the rows have another number of items.
    """
    if not isinstance(task, RecsysTask):
        raise ConfigError(f"user rows belong to a task of interactions, not to a {type(task).__name__}")
    rows = batch.inputs
    if isinstance(rows, dict) or rows.ndim != 2 or rows.shape[1] != task.data.num_items:
        shape = list(rows) if isinstance(rows, dict) else tuple(rows.shape)
        raise ShapeError(f"synthetic users are (n, {task.data.num_items}) rows, got {shape}")
    return task.data, rows.detach().cpu().float()


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Draw item popularity and row mass, real against synthetic, and list the heaviest items of synthetic users."""
    data, rows = rows_of(task, batch)
    folder.mkdir(parents=True, exist_ok=True)
    return [draw_distributions(data, rows, folder / "interactions.png"), list_users(data, rows, folder / "users.md")]


def draw_distributions(data: Interactions, rows: Tensor, target: Path) -> Path:
    """Draw popularity against popularity, the popularity curves, and interactions per user, side by side."""
    real, synthetic = data.item_counts().numpy(), rows.sum(0).numpy()
    figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained")
    match, curve, mass = figure.subplots(1, 3)
    real_share, synthetic_share = real / real.sum(), synthetic / max(synthetic.sum(), 1e-12)
    match.loglog(real_share, synthetic_share, ".", markersize=3, alpha=0.5)
    both = real_share[real_share > 0]
    match.plot([both.min(), both.max()], [both.min(), both.max()], color="grey", linewidth=1)
    match.set(xlabel="share of real interactions", ylabel="share of synthetic mass", title="popularity of each item")
    for share, name in ((real_share, "real"), (synthetic_share, "synthetic")):
        curve.semilogx(np.arange(1, len(share) + 1), np.sort(share)[::-1].cumsum(), label=name)
    curve.set(xlabel="items, most popular first", ylabel="cumulative share", title="long tail")
    curve.legend(frameon=False)
    sizes = np.asarray(data.parts["train"].sum(1)).ravel()
    masses = rows.sum(1).numpy()
    bins = np.geomspace(max(min(sizes.min(), masses.min()), 1), max(sizes.max(), masses.max()) * 1.01 + 1, 40)
    for values, name in ((sizes, "real users"), (masses, "synthetic users")):
        mass.hist(values, bins=bins, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=name)
    mass.set(xscale="log", xlabel="interactions (mass) per user", ylabel="share of users", title="users")
    mass.legend(frameon=False)
    for axes in (match, curve, mass):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(target) as handle:
        figure.savefig(handle, format="png", dpi=120)
    return target


def list_users(data: Interactions, rows: Tensor, target: Path) -> Path:
    """Write the heaviest items of the first synthetic users, by original id, beside the most popular items."""
    popular = data.item_counts().topk(min(ITEMS_SHOWN, data.num_items))
    heavy = rows.sum(0).topk(min(ITEMS_SHOWN, data.num_items))
    lines = [
        "Most popular items: " + _items(data.item_ids, popular.indices, popular.values, ".0f"),
        "",
        "Heaviest items of all synthetic users: " + _items(data.item_ids, heavy.indices, heavy.values, ".1f"),
        "",
        "| synthetic user | mass | items with half of it | heaviest items (weight) |",
        "|---|---|---|---|",
    ]
    for index, row in enumerate(rows[:USERS_SHOWN]):
        top = row.topk(min(ITEMS_SHOWN, len(row)))
        items = _items(data.item_ids, top.indices, top.values, ".2f")
        half = int((row.sort(descending=True).values.cumsum(0) < 0.5 * row.sum()).sum()) + 1
        lines.append(f"| {index} | {float(row.sum()):.1f} | {half} | {items} |")
    with atomic_write(target) as handle:
        handle.write("\n".join([*lines, ""]).encode())
    return target


def _items(ids: npt.NDArray[np.generic], indices: Tensor, values: Tensor, style: str) -> str:
    pairs: Sequence[tuple[int, float]] = list(zip(indices.tolist(), values.tolist(), strict=True))
    return ", ".join(f"{ids[index]} ({value:{style}})" for index, value in pairs)


def export_csr(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write the weighted users x items matrix for ``scipy.sparse.load_npz``, and the original id of each column."""
    data, rows = rows_of(task, batch)
    matrix, columns = folder / "users.npz", folder / "items.csv"
    with atomic_write(matrix) as handle:
        sparse.save_npz(handle, sparse.csr_array(rows.numpy()))
    table = pd.DataFrame({"column": np.arange(data.num_items), "item_id": data.item_ids})
    with atomic_write(columns) as handle:
        handle.write(table.to_csv(index=False).encode())
    return [matrix, columns]


def export_csv(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write ``user,item,weight`` with original item ids, without weights below :data:`SMALLEST_WEIGHT`."""
    data, rows = rows_of(task, batch)
    users, items = torch.nonzero(rows >= SMALLEST_WEIGHT, as_tuple=True)
    weights = rows[users, items].numpy()
    table = pd.DataFrame({"user": users.numpy(), "item": data.item_ids[items.numpy()], "weight": weights})
    path = folder / "users.csv"
    with atomic_write(path) as handle:
        handle.write(table.to_csv(index=False, float_format="%.6g").encode())
    return [path]


def export_tensors(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Write the dense rows as ``users`` in a safetensors file, and the original id of each column."""
    data, rows = rows_of(task, batch)
    path, columns = folder / "users.safetensors", folder / "items.csv"
    with atomic_write(path) as handle:
        handle.write(save({"users": rows.contiguous()}))
    table = pd.DataFrame({"column": np.arange(data.num_items), "item_id": data.item_ids})
    with atomic_write(columns) as handle:
        handle.write(table.to_csv(index=False).encode())
    return [path, columns]


EXPORTS = {"csr": export_csr, "csv": export_csv, "tensors": export_tensors}
