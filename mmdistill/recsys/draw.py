"""Figures and tables for the report that compare synthetic users with real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmdistill.errors import ShapeError, UnsupportedError
from mmdistill.parameterizations.base import index_bytes
from mmdistill.recsys.cleaning import describe_removed
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.factorisation import heaviest, is_binary
from mmdistill.recsys.privacy import Nearness, nearness
from mmdistill.recsys.task import RecsysTask
from mmdistill.reporting.figures import save_figure
from mmdistill.reporting.tabular import markdown_cell
from mmdistill.store import write_text
from mmdistill.task import Batch, Task

if TYPE_CHECKING:  # at run time, matplotlib is imported inside the functions that draw, since it loads slowly
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

USERS_SHOWN = 12
ITEMS_SHOWN = 8
SMALLEST_WEIGHT = 1e-3
"""Interactions below this weight are left out of weighted tables; the CSR and tensor exports keep all."""


def rows_of(task: Task, batch: Batch) -> tuple[Interactions, Tensor]:
    """Return the real data and the synthetic rows, after checking that their items match.

    Raises:
        UnsupportedError: the task is not a recommendation task.
        ShapeError: the rows have another number of items.
    """
    if not isinstance(task, RecsysTask):
        raise UnsupportedError(f"a task of interactions is needed, got {type(task).__name__}")
    return task.data, synthetic_rows(batch, task.data.num_items)


def synthetic_rows(batch: Batch, items: int) -> Tensor:
    """Return synthetic rows on the CPU.

    Raises:
        ShapeError: they have another number of items.
    """
    rows = batch.inputs
    if isinstance(rows, dict) or rows.ndim != 2 or rows.shape[1] != items:
        shape = list(rows) if isinstance(rows, dict) else tuple(rows.shape)
        raise ShapeError(f"synthetic users are (n, {items}) rows, got {shape}")
    return rows.detach().cpu().float()


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Plot synthetic beside real users, and write tables that describe the set."""
    data, rows = rows_of(task, batch)
    near = nearness(data, rows)
    return [
        draw_distributions(data, rows, near, folder / "interactions.png"),
        list_users(data, rows, near, folder / "users.md"),
    ]


def draw_distributions(data: Interactions, rows: Tensor, near: Nearness, target: Path) -> Path:
    """Plot item popularity (real against synthetic), the long tail, interactions per user and nearest real users."""
    from matplotlib.figure import Figure  # here, since importing it takes long

    figure = Figure(figsize=(11, 8), layout="constrained")
    (popularity_axes, tail_axes), (mass_axes, nearest_axes) = figure.subplots(2, 2)
    real, synthetic = data.item_counts().numpy(), rows.sum(0).numpy()
    shares = {"real": real / real.sum(), "synthetic": synthetic / max(synthetic.sum(), 1e-12)}
    _draw_popularity(popularity_axes, shares["real"], shares["synthetic"])
    for name, share in shares.items():
        tail_axes.semilogx(np.arange(1, len(share) + 1), np.sort(share)[::-1].cumsum(), label=f"{name} users")
    tail_axes.set(xlabel="items, most popular first", ylabel="cumulative share", title="long tail")
    sizes, masses = data.lengths("train"), rows.sum(1).numpy()
    bins = np.geomspace(max(min(sizes.min(), masses.min()), 1), max(sizes.max(), masses.max()) * 1.01 + 1, 40)
    _draw_shares(mass_axes, {"real users": sizes, "synthetic users": masses}, bins.tolist())
    mass_axes.set(xscale="log", xlabel="mass per user", ylabel="share of users", title="interactions per user")
    _draw_shares(
        nearest_axes,
        {"real, to another": near.among_real, "synthetic": near.cosine},
        np.linspace(0, 1 + 1e-9, 41).tolist(),
    )
    nearest_axes.set(xlabel="cosine to the nearest real user", ylabel="share of users", title="nearest real user")
    for axis in (popularity_axes.xaxis, popularity_axes.yaxis, tail_axes.xaxis, mass_axes.xaxis):
        _label_ticks(axis)
    for axes in (popularity_axes, tail_axes, mass_axes, nearest_axes):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return save_figure(figure, target)


def _label_ticks(axis: "Axis") -> None:
    """Label the powers of ten of a logarithmic axis; if it shows fewer than two, label round numbers as well."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    def inside(ticks: npt.NDArray[np.floating]) -> list[float]:
        return [tick for tick in ticks.tolist() if low <= tick <= high]

    axis.set_minor_formatter(NullFormatter())  # labels of minor ticks overlap
    low, high = np.sort(axis.get_view_interval())
    powers = 10 ** np.arange(np.floor(np.log10(low)), np.log10(high))
    if len(inside(powers)) < 2:
        round_numbers = inside(np.outer(powers, [1, 2, 5]).ravel())
        axis.set_major_locator(FixedLocator(round_numbers) if len(round_numbers) > 1 else MaxNLocator(4))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_popularity(axes: "Axes", real: npt.NDArray[np.floating], syn: npt.NDArray[np.floating]) -> None:
    axes.loglog(real, syn, ".", markersize=3, alpha=0.5)
    hidden = int(((real == 0) | (syn == 0)).sum())  # a logarithmic axis has no zero
    if hidden:
        note = f"not shown: {hidden:,} items that real\nor synthetic users have none of"
        axes.text(0.02, 0.98, note, transform=axes.transAxes, va="top", fontsize=9)
    positive = real[real > 0]
    axes.plot([positive.min(), positive.max()], [positive.min(), positive.max()], color="grey", linewidth=1)
    axes.set(xlabel="share of real interactions", ylabel="share of synthetic mass", title="popularity of each item")


def _draw_shares(axes: "Axes", values: dict[str, npt.NDArray[np.generic]], bins: list[float]) -> None:
    for name, sample in values.items():
        axes.hist(sample, bins=bins, weights=np.full(len(sample), 1 / len(sample)), alpha=0.6, label=name)


def list_users(data: Interactions, rows: Tensor, near: Nearness, target: Path) -> Path:
    """Write a summary: the data, the set's size in bytes, its nearness to real users, and its first users' items."""
    heavy = rows.sum(0).topk(min(ITEMS_SHOWN, data.num_items))
    popular = data.item_counts().topk(min(ITEMS_SHOWN, data.num_items))
    binary = is_binary(rows)
    lines = [
        *reading_lines(data),
        "",
        *storage_lines(data, rows),
        "",
        *privacy_lines(near),
        "",
        "Most popular items of real users: " + _items(data.item_ids, popular.indices, popular.values, ".0f"),
        "",
        "Heaviest items of synthetic users: " + _items(data.item_ids, heavy.indices, heavy.values, ".1f"),
        "",
        "| synthetic user | items | half of them | nearest real user (cosine) | some of them |"
        if binary
        else "| synthetic user | mass | items with half of it | nearest real user (cosine) | heaviest items (weight) |",
        "|---|---|---|---|---|",
    ]
    for index, row in enumerate(rows[:USERS_SHOWN]):
        top = row.topk(min(ITEMS_SHOWN, len(row)))
        items = _items(data.item_ids, top.indices, top.values, "" if binary else ".2f")
        half = int((row.sort(descending=True).values.cumsum(0) < 0.5 * row.sum()).sum()) + 1
        nearest = markdown_cell(str(data.user_ids[near.user[index]]))
        user = f"{nearest} ({near.cosine[index]:.2f}{', a copy' * int(near.copies[index])})"
        lines.append(f"| {index} | {float(row.sum()):.1f} | {half} | {user} | {items} |")
    write_text(target, "\n".join([*lines, ""]))
    return target


def reading_lines(data: Interactions) -> list[str]:
    """Describe what was read and what reading removed."""
    sizes = ", ".join(f"{data.parts[part].nnz:,} for {name}" for part, name in zip(data.parts, PART_NAMES, strict=True))
    lines = [f"{data.num_users:,} users, {data.num_items:,} items; interactions: {sizes}."]
    if removed := describe_removed(data.counts, data.min_rating):
        lines.append(f"Left out when reading: {removed}.")
    if cold := data.counts.get("cold_items"):
        occur, them = ("item occurs", "it") if cold == 1 else ("items occur", "them")
        lines.append(f"{cold:,} {occur} in no training row, so no judge can learn {them}.")
    return lines


PART_NAMES = ("training", "validation", "test")


def storage_lines(data: Interactions, rows: Tensor) -> list[str]:
    """Compare the uncompressed bytes of the set in several formats with those of the whole log."""
    whole = data.stored_bytes
    binary = is_binary(rows)
    forms = {"dense rows (float32)": rows.numel() * 4}
    if not binary:
        stored = int((rows >= SMALLEST_WEIGHT).sum())
        forms[f"weighted CSR, weights of at least {SMALLEST_WEIGHT:g}"] = 8 * stored + 4 * (len(rows) + 1)
    forms["binary users as CSR" + ("" if binary else " (each row's heaviest items)")] = 4 * (
        heaviest(rows).nnz + len(rows) + 1
    )
    if binary:
        forms["lists of item numbers"] = index_bytes(data.num_items) * int(rows.sum())
    lines = ["| form | bytes, uncompressed | of the whole training log |", "|---|---|---|"]
    lines += [f"| {name} | {size:,} | {100 * size / whole:.1f} % |" for name, size in forms.items()]
    lines.append(f"| the whole log as binary CSR | {whole:,} | 100 % |")
    if forms["dense rows (float32)"] > whole:
        lines += ["", "Dense rows take more than the whole log: what they save is training time, not storage."]
    return lines


def privacy_lines(near: Nearness) -> list[str]:
    """Describe how near the set is to real users."""
    synthetic, between_real = np.quantile(near.cosine, [0.5, 1.0]), np.quantile(near.among_real, [0.5, 1.0])
    return [
        f"Nearest real user of a synthetic one: cosine {synthetic[0]:.2f} in the median, {synthetic[1]:.2f} at most; "
        f"between real users {between_real[0]:.2f} and {between_real[1]:.2f}. Exact copies of real users: "
        f"{int(near.copies.sum())} of {len(near.copies)}. This shows copies at a glance; it is no privacy guarantee."
    ]


def _items(ids: npt.NDArray[np.generic], indices: Tensor, values: Tensor, style: str) -> str:
    pairs: Sequence[tuple[int, float]] = list(zip(indices.tolist(), values.tolist(), strict=True))
    names = ((markdown_cell(str(ids[index])), value) for index, value in pairs)
    return ", ".join(f"{name} ({value:{style}})" if style else name for name, value in names)
