"""What the cells of the survey's tables found, as Markdown tables and figures."""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from cells import BASELINES, PUBLISHED, REDUCED_WIDTH, TABLE_3, TABLE_5, Cell, network_of, other_kinds
from matplotlib import pyplot as plt

IN_PRINT = {"alexnet": "alexnet-nn", "resnet18": "resnet18-in", "vgg11": "vgg11-in"}
"""Judges of Table 3 whose column in the survey names their default norm."""

IPCS = (1, 4, 10, 50, 100, 200)
"""The survey's 1, 10 and 50; 4, at which the storages with large decoders fit; and the large ones of its Fig. 8."""

FIGURE_8 = ("dm", "dc", "mtt", "frepo", "kfs", "dance", "ncfm")
"""The methods of Fig. 8: those that did best, and one of each kind of matching."""
STYLES = {
    "dm": ("#0072b2", "o", "-"),
    "dc": ("#e69f00", "s", "-"),
    "mtt": ("#009e73", "^", "-"),
    "frepo": ("#d55e00", "D", "-"),
    "kfs": ("#cc79a7", "v", "-"),
    "dance": ("#56b4e9", "P", "-"),
    "ncfm": ("#8c564b", "X", "-"),
    "random": ("grey", ".", ":"),
    "herding": ("black", ".", "--"),
}
"""Colour, marker and line of each."""
ASIDE = 1.05
"""By what factor points of one ipc stand apart, so that their deviations can be told from one another."""
ACCURACIES = (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 85, 90, 92, 94, 96, 97, 98, 99)

PREFACE = """# Tables

All image methods side by side: test accuracy in percent at the last epoch, mean ± standard deviation over all networks
of all distillation seeds. The page is written by `python benchmarks/tables.py --page docs/tables.md` from
[cells](cells), a small file for each cell and seed. [results/images.md](results/images.md) explains the numbers.

- **Published** numbers are the survey's, with the full schedule and a ConvNet of width 128.
- A **reduced** schedule distils with a ConvNet of width 16 and judges by one, for 300 epochs (from ipc 10 on in
  minibatches of 25), with DSA's augmentation whatever a method's paper does. It does not attempt the published numbers.
  Where a table names another width, the settings are those of width 16, in mixed precision: it shows what a wider
  network alone gains.
- The **short** schedule of digits is the library's own, with a ConvNet of width 32; nothing is published for digits.
- **Random** and **herding** are as many real images per class as the ipc names, also where a method decodes more
  samples from their bytes.
- **kB** counts what regenerates the samples and their labels, numbers in float32, class indices in a byte (in four
  where a method's first seed at ipc 1, whose bytes stand here, was measured early). Raw images kept in float32 take as
  many bytes, so with fixed labels one ipc is a comparison at equal bytes as well; real images as they come, a byte for
  each value, take a quarter. The exception is IT-GAN: its generator takes more bytes than one digit of 8 x 8 pixels per
  class, and fewer than ten of 28 x 28.
- **Does not fit**: what all codes share (hallucinators, a generator) leaves too few of the budget's bytes for one code
  per class.
- **Samples** are what the judges train on, decoded.
- **Seconds** are wall time to distil on a busy machine, with experts and a generator where the cell had to make them.
  **MiB** is the peak memory of the device, or of the whole process on a CPU.
- **Tables 3 and 5**: the column `convnet` is each method's own network, which for FRePo and RFAD is another ConvNet.
- "-" is not measured. A method without a line is neither measured nor published there.

"""


def pooled(entries: Sequence[dict[str, Any]]) -> tuple[float, float, int]:
    """Return mean and deviation in percent over all networks of all seeds, and their number."""
    total = sum(entry["n"] for entry in entries)
    mean = sum(entry["n"] * entry["mean"] for entry in entries) / total
    squares = sum((e["n"] - 1) * e["sd"] ** 2 + e["n"] * (e["mean"] - mean) ** 2 for e in entries)
    return 100 * mean, 100 * (squares / max(total - 1, 1)) ** 0.5, total


def by_judge(documents: Sequence[dict[str, Any]], judge: str | None, baseline: str = "") -> list[dict[str, Any]]:
    """Return the entries of a judge, None for the cells' own, of the sets themselves or of a baseline."""
    found = []
    for document in documents:
        own = document["results"][0]["judge"]
        entries = document["baselines"].get(baseline, []) if baseline else document["results"]
        found += [entry for entry in entries if network_of(entry["judge"]) == (judge or network_of(own))][:1]
    return found


def spread(entries: Sequence[dict[str, Any]]) -> str:
    """Return the pooled mean and deviation as text; a dash for nothing."""
    if not entries:
        return "-"
    mean, deviation, total = pooled(entries)
    return f"{mean:.1f} ± {deviation:.1f}" if total > 1 else f"{mean:.1f}"


def in_print(value: Sequence[float] | None) -> str:
    """Return a published mean and deviation as text."""
    return "-" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}"


def table_2(like: Cell, cells: Path, methods: Sequence[str], ipcs: Sequence[int]) -> list[str]:
    """Return the lines of one data set's table: a row per method and ipc, measured beside published.

    Tables of another width, or with options, leave out what was not measured.
    """
    lines = []
    for ipc in ipcs:
        base = replace(like, method="dm", ipc=ipc).documents(cells)
        found = [replace(like, method=method, ipc=ipc) for method in methods]
        if like.options or like.width != REDUCED_WIDTH:
            found = [cell for cell in found if cell.documents(cells) or cell.failure(cells)]
        elif not base:
            continue
        for name in BASELINES if base else ():
            runs = f"{len(base)} x {base[0]['results'][0]['n']}"
            lines.append(
                f"| {ipc} | *{name} real images* | {spread(by_judge(base, None, name))} | {runs} | - | | | | |"
            )
        lines += [row for cell in found if (row := _row(cell, cells))]
    if not lines:
        return []
    title = f"## {like.data}, {_kind(like)}"
    head = "| ipc | method | measured | seeds x networks | published | kB | samples | seconds | MiB |"
    return [title, "", head, "|" + "---|" * 9, *lines, ""]


def _kind(like: Cell) -> str:
    """Return what a table's title says of how its cells were measured."""
    kind = f"{'short' if like.data == 'digits' else like.schedule} schedule"
    kind += f", width {like.width}" if like.width != REDUCED_WIDTH else ""
    return f"{kind}, {like.options}" if like.options else kind


def in_short(failure: str) -> str:
    """Return why a cell failed, for a table: of a budget that is too small its sizes alone."""
    sizes = re.match(r"the budget is ([\d,]+) bytes, of which ([\d,]+) go to what codes share", failure)
    if sizes is None:
        return failure
    budget, shared = (int(text.replace(",", "")) for text in sizes.groups())
    return f"does not fit: {shared:,} bytes shared, budget {budget:,}"


def _row(cell: Cell, cells: Path) -> str:
    """Return one line of a table; a cell that failed says why, one that has not run has what is published, if any."""
    documents, published, failure = cell.documents(cells), in_print(cell.published), cell.failure(cells)
    if not documents:
        known = failure or cell.published
        return f"| {cell.ipc} | {cell.method} | {in_short(failure) or '-'} | - | {published} | | | | |" if known else ""
    entries = by_judge(documents, None)
    kilobytes = documents[0]["budget"]["stored_bytes"] / 1000
    seconds = statistics.fmean(document["seconds"] for document in documents)
    memory = max(document["peak_memory_bytes"] for document in documents) / 2**20
    text = spread(entries)
    if cell.baselines and cell.method != "dm":
        own = ", ".join(f"{name} {spread(by_judge(documents, None, name))}" for name in BASELINES)
        text += f" (judged by {entries[0]['judge']}; {own})"
    return (
        f"| {cell.ipc} | {cell.method} | {text} | {len(documents)} x {entries[0]['n']} | {published} | "
        f"{kilobytes:.1f} | {documents[0].get('samples', '-')} | {seconds:.0f} | {memory:.0f} |"
    )


def across(like: Cell, cells: Path, methods: Sequence[str], ipc: int, table: int) -> list[str]:
    """Return the lines of a cross-architecture table (Table 3 or 5): measured, published in brackets."""
    names, published = (TABLE_3, PUBLISHED["table3"]) if table == 3 else (TABLE_5, PUBLISHED["table5"])
    lines = []
    for method in (*BASELINES, *methods):
        name, baseline = ("dm", method) if method in BASELINES else (method, "")
        cell = replace(like, method=name, ipc=ipc)
        documents = cell.documents(cells)
        found = {column: by_judge(documents, cell.judge(column), baseline) for column in names}
        if sum(bool(entries) for entries in found.values()) < 2:
            continue
        texts = []
        for column, entries in found.items():
            known = published.get(method, {}).get(IN_PRINT.get(column, column) if table == 3 else column)
            texts.append(spread(entries) + (f" ({in_print(known)})" if known and like.data == "cifar10" else ""))
        label = f"*{method} real images*" if baseline else method
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    if not lines:
        return []
    title = f"## {like.data}, ipc {ipc}, across architectures (Table {table}), {_kind(like)}"
    return [title, "", "| method | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1), *lines, ""]


def read_curves(path: Path) -> dict[tuple[str, str, int, str], list[dict[str, Any]]]:
    """Return what ``steps.py`` wrote by data, method, ipc and schedule; nothing where it has not run."""
    runs: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ():
        key = (entry["data"], entry["method"], entry["ipc"], entry["schedule"])
        runs.setdefault(key, []).append(entry)
    return runs


def curves(path: Path, picture: Path) -> list[str]:
    """Return the lines of a table of accuracy against steps, and draw its curves."""
    runs = read_curves(path)
    if not runs:
        return []
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    lines = []
    for (data, method, ipc, schedule), entries in runs.items():
        x, mean, deviation = zip(*((e["steps"], 100 * e["mean"], 100 * e["sd"]) for e in entries), strict=True)
        judge = entries[0]["judge"]
        shown = method if judge == "convnet" else f"{method} (judged by {judge})"
        axes.errorbar(x, mean, deviation, marker="o", capsize=2, label=f"{shown}, {data}, ipc {ipc}")
        points = "; ".join(
            f"{e['steps']} steps, {e['seconds']:.0f} s: {100 * e['mean']:.1f} ± {100 * e['sd']:.1f}" for e in entries
        )
        lines.append(f"| {data} | {'short' if data == 'digits' else schedule} | {ipc} | {shown} | {points} |")
    axes.set(xlabel="steps", ylabel="test accuracy (%)")
    axes.legend()
    figure.savefig(picture, dpi=90)
    plt.close(figure)
    head = "| data | schedule | ipc | method | accuracy on the way |"
    note = (
        "One run each, judged on the way by a few networks of the widths above; annealed rates end at the last point.",
        "For example `python benchmarks/steps.py --rows mnist-frepo-1:schedule=reduced,width=16,judge_epochs=300 --out",
        "steps.json`.",
    )
    drawn = f"![Accuracy against steps]({picture.name})"
    return ["## Accuracy against steps", "", *note, "", head, "|" + "---|" * 5, *lines, "", drawn, ""]


def figure_8(like: Cell, cells: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return the points of Fig. 8, by method or kind of real images: ipc, mean and deviation in percent."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for label in (*FIGURE_8, *BASELINES):
        name, baseline = ("dm", label) if label in BASELINES else (label, "")
        for ipc in IPCS:
            if entries := by_judge(replace(like, method=name, ipc=ipc).documents(cells), None, baseline):
                mean, deviation, _ = pooled(entries)
                points.setdefault(label, []).append((ipc, round(mean, 1), round(deviation, 1)))
    return points


def draw_figure_8(like: Cell, points: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw accuracy against ipc (Fig. 8) on a logarithmic axis of the error; the file holds the points in words too."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for index, (label, found) in enumerate(points.items()):
        x, mean, deviation = zip(*found, strict=True)
        color, marker, line = STYLES[label]
        aside = [ipc * ASIDE ** (index - (len(points) - 1) / 2) for ipc in x]
        axes.errorbar(aside, mean, deviation, label=label, color=color, marker=marker, linestyle=line, capsize=2)
    axes.set_xscale("log")
    every = [point for found in points.values() for point in found]
    ipcs = sorted({ipc for ipc, *_ in every})
    axes.set_xticks(ipcs, [str(ipc) for ipc in ipcs])
    low = 100 - 1.1 * max(100 - mean + deviation for _, mean, deviation in every)
    high = 100 - 0.9 * min(100 - mean - deviation for _, mean, deviation in every)
    axes.set_yscale("function", functions=(lambda y: -np.log(100 - np.minimum(y, 99.9)), lambda t: 100 - np.exp(-t)))
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in ACCURACIES if low <= tick <= high])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("images per class (points of one number stand side by side)")
    axes.set_ylabel("test accuracy (%), by the logarithm of the error")
    axes.set_title(f"{like.data}, {_kind(like)}")
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110, metadata={"Description": json.dumps(points)})
    plt.close(figure)


def figures(cells: Path, folder: Path) -> list[str]:
    """Return the lines that show Fig. 8 of each data set with reduced schedules at two ipc or more, and draw it."""
    lines = []
    for data in PUBLISHED["table2"]:
        like = Cell(data, "dm", 1, "reduced")
        points = figure_8(like, cells)
        if len(points.get("dm", ())) > 1:
            path = folder / f"figure-8-{data}.png"
            draw_figure_8(like, points, path)
            lines += [f"![{data}: accuracy against images per class]({path.name})", ""]
    note = "The survey's Fig. 8: seven methods and real images from the tables above, networks of width 16."
    return ["## Accuracy against images per class", "", note, "", *lines] if lines else []


def page(cells: Path, methods: Sequence[str], folder: Path) -> str:
    """Return everything measured so far as one Markdown page, whose pictures are drawn into a folder."""
    lines = PREFACE.splitlines()
    for data in ("digits", *PUBLISHED["table2"]):
        kinds = [Cell(data, "dm", 1, schedule) for schedule in ("published", "reduced")]
        for like in [*kinds, *(cell for cell in other_kinds(cells) if cell.data == data)]:
            lines += table_2(like, cells, methods, IPCS)
            for ipc in IPCS:
                for table in (3, 5):
                    lines += across(like, cells, methods, ipc, table)
    return "\n".join([*lines, *figures(cells, folder), *curves(cells / "steps.json", folder / "steps.png")])
