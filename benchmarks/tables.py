"""Fill the survey's Tables 2, 3 and 5 and its Fig. 8 with what this library measures, beside the published numbers.

    python benchmarks/tables.py --table 2 --data mnist --ipc 1,10 --schedule reduced
    python benchmarks/tables.py --table 2 --data cifar10 --ipc 1,10,50 --devices cuda:0,cuda:1 --hours 2
    python benchmarks/tables.py --table 3 --data cifar10 --ipc 10
    python benchmarks/tables.py --figure 8 --data cifar10 --ipc 1,10,50,100,200 --methods dm,dc,dsa
    python benchmarks/tables.py --page docs/tables.md

A cell is a method, a data set and an ipc. Cells run cheapest first, one at a time on each device, in processes of their
own, so that one that fails costs only itself; finished ones are skipped and interrupted ones resumed. ``--page`` writes
everything measured so far, whatever else is asked for. A ``reduced`` schedule is the library's own for a CPU, with a
ConvNet of width 32 and shorter judging; its numbers stand in tables of their own.
"""

import argparse
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from quality import folder_of

from mmdistill.errors import MmdistillError
from mmdistill.evaluate import evaluate, metrics_document
from mmdistill.registry import TaskOptions, domain_methods, get_domain
from mmdistill.runtime import choose_device
from mmdistill.store import DistilledSet, read_json, write_json

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
CHEAPEST_FIRST = ("dm", "krr", "frepo", "kip", "rfad", "kfs", "cafe", "dcc", "egm", "dc", "dsa", "edd", "idc", "mtt")
"""Methods not named here follow in alphabetical order."""
TABLE_3 = ("convnet", "convnet-nn", "alexnet", "alexnet-in", "resnet18", "resnet18-bn", "vgg11", "vgg11-bn")
TABLE_5 = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
IN_PRINT = {"alexnet": "alexnet-nn", "resnet18": "resnet18-in", "vgg11": "vgg11-in"}
"""Judges of Table 3 whose column in the survey names their default norm."""

PREFACE = """# Tables

Test accuracy in percent of the last epoch, mean ± deviation over all networks of all distillation seeds, written by
`python benchmarks/tables.py --page docs/tables.md`. Published numbers are the survey's, at the full schedule with a
ConvNet of width 128. A reduced schedule distils with and judges by a ConvNet of width 32 (from 10 images per class on
for 300 epochs in minibatches of 25) and is no attempt at them. Random and herding are at equal count. Seconds are wall
time to distil, experts apart; MiB is the peak of the device, or of the whole process on a CPU.

"""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        data: the data set's name.
        method: the method's name.
        ipc: images per class.
        schedule: ``published`` or ``reduced``.
    """

    data: str
    method: str
    ipc: int
    schedule: str

    @property
    def row(self) -> str:
        """The cell as ``quality.py`` spells it."""
        name = f"{self.data}-{self.method}-{self.ipc}"
        if self.schedule == "published":
            return name
        judging = ",judge_epochs=300,judge_batch=25" if self.ipc >= 10 else ""
        return f"{name}:schedule=reduced,width=32{judging}"

    @property
    def published(self) -> list[float] | None:
        """Mean and deviation in the survey's Table 2, in percent, where it has them."""
        found: list[float] | None = PUBLISHED["table2"].get(self.data, {}).get(str(self.ipc), {}).get(self.method)
        return found

    @property
    def with_baselines(self) -> bool:
        """Whether the random and herding baselines are judged with this cell: once per data set and ipc."""
        return self.method == "dm"


def order(cell: Cell) -> tuple[int, int, str]:
    """Return the key that sorts cells by what they cost."""
    known = CHEAPEST_FIRST.index(cell.method) if cell.method in CHEAPEST_FIRST else len(CHEAPEST_FIRST)
    return cell.ipc, known, cell.method


def run_cells(
    cells: Sequence[Cell], out: Path, devices: Sequence[str], seeds: str, networks: int, until: float
) -> None:
    """Run cells on all devices; a cell that fails is reported and the others go on."""
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in sorted(cells, key=order):
        waiting.put(cell)

    def work(device: str) -> None:
        while time.time() < until:
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            command = [sys.executable, str(Path(__file__).with_name("quality.py")), "--rows", f"{cell.row};"]
            command += ["--device", device, "--out", str(out), "--seeds", seeds, "--networks", str(networks)]
            command += ["--baselines", "random,herding" if cell.with_baselines else ""]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
            print(f"{cell.row} on {device}: {lines[-2:] if done.returncode == 0 else lines[-1:]}", flush=True)

    workers = [threading.Thread(target=work, args=(device,)) for device in devices]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def judge_cells(
    cells: Iterable[Cell], judges: Sequence[str], out: Path, device: str, seeds: str, networks: int
) -> None:
    """Judge finished cells by further networks, adding to their metrics."""
    for cell in cells:
        for seed in seeds.split(","):
            folder = folder_of(out, cell.row, int(seed))
            if not (folder / "metrics.json").exists():
                continue
            document = read_json(folder / "metrics.json")
            missing = [judge for judge in judges if judge not in {entry["judge"] for entry in document["results"]}]
            for judge in missing:
                distilled = DistilledSet.load(folder)
                options = TaskOptions(device=device, width=32 if cell.schedule == "reduced" else None)
                task = get_domain("image").make_task(cell.data, options)
                try:
                    found = evaluate(task, distilled, judges=[judge], n=networks, seed=int(seed), baselines=[])
                except MmdistillError as error:
                    print(f"{cell.row} {judge}: {error}", flush=True)
                    continue
                document = metrics_document(distilled, found, document) | {"row": cell.row}
                write_json(folder / "metrics.json", document)
                print(f"{cell.row} {judge}: {100 * found.results[0].mean:.1f}", flush=True)


def documents_of(cell: Cell, out: Path) -> list[dict[str, Any]]:
    """Return what all seeds of a cell found."""
    folders = sorted(folder_of(out, cell.row, 0).parent.glob("seed-*/metrics.json"))
    return [read_json(path) for path in folders]


def pooled(entries: Sequence[dict[str, Any]]) -> tuple[float, float, int]:
    """Return mean and deviation in percent over all networks of all seeds, and their number."""
    total = sum(entry["n"] for entry in entries)
    mean = sum(entry["n"] * entry["mean"] for entry in entries) / total
    squares = sum((e["n"] - 1) * e["sd"] ** 2 + e["n"] * (e["mean"] - mean) ** 2 for e in entries)
    return 100 * mean, 100 * (squares / max(total - 1, 1)) ** 0.5, total


def by_judge(documents: Sequence[dict[str, Any]], judge: str | None, baseline: str = "") -> list[dict[str, Any]]:
    """Return the entries of a judge, None for the first, of the sets themselves or of a baseline."""
    found = []
    for document in documents:
        entries = document["baselines"].get(baseline, []) if baseline else document["results"]
        found += [entry for entry in entries if entry["judge"] == (judge or entries[0]["judge"])][:1]
    return found


def spread(entries: Sequence[dict[str, Any]]) -> str:
    """Return the pooled mean and deviation as text; a dash for nothing."""
    if not entries:
        return "-"
    mean, deviation, _ = pooled(entries)
    return f"{mean:.1f} ± {deviation:.1f}"


def in_print(value: Sequence[float] | None) -> str:
    """Return a published mean and deviation as text."""
    return "-" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}"


def table_2(data: str, schedule: str, out: Path, methods: Sequence[str], ipcs: Sequence[int]) -> list[str]:
    """Return the lines of one data set's table: a row per method and ipc, measured beside published."""
    lines = []
    for ipc in ipcs:
        base = documents_of(Cell(data, "dm", ipc, schedule), out)
        random, herding = (spread(by_judge(base, None, name)) for name in ("random", "herding"))
        for method in methods:
            cell = Cell(data, method, ipc, schedule)
            documents = documents_of(cell, out)
            if not documents:
                continue
            entries = by_judge(documents, None)
            kilobytes = documents[0]["budget"]["stored_bytes"] / 1000
            seconds = statistics.fmean(document["seconds"] for document in documents)
            memory = max(document["peak_memory_bytes"] for document in documents) / 2**20
            lines.append(
                f"| {ipc} | {method} | {spread(entries)} ({len(documents)} x {entries[0]['n']}) | "
                f"{in_print(cell.published)} | {random} | {herding} | {kilobytes:.1f} | {seconds:.0f} | {memory:.0f} |"
            )
    if not lines:
        return []
    title = f"## {data}, {schedule} schedule"
    head = "| ipc | method | measured (seeds x networks) | published | random | herding | kB | seconds | MiB |"
    return [title, "", head, "|" + "---|" * 9, *lines, ""]


def across(data: str, schedule: str, out: Path, methods: Sequence[str], ipc: int, table: int) -> list[str]:
    """Return the lines of a cross-architecture table (Table 3 or 5): measured, published in brackets."""
    names, published = (TABLE_3, PUBLISHED["table3"]) if table == 3 else (TABLE_5, PUBLISHED["table5"])
    lines = []
    for method in methods:
        documents = documents_of(Cell(data, method, ipc, schedule), out)
        found = {name: by_judge(documents, name) for name in names}
        if sum(bool(entries) for entries in found.values()) < 2:
            continue
        texts = []
        for name, entries in found.items():
            known = published.get(method, {}).get(IN_PRINT.get(name, name) if table == 3 else name)
            texts.append(spread(entries) + (f" ({in_print(known)})" if known and data == "cifar10" else ""))
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    if not lines:
        return []
    title = f"## {data}, {ipc} images per class, across architectures (Table {table}), {schedule} schedule"
    return [title, "", "| method | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1), *lines, ""]


def draw_figure_8(data: str, schedule: str, out: Path, methods: Sequence[str], ipcs: Sequence[int], path: Path) -> None:
    """Draw accuracy against ipc, with the random baseline (Fig. 8)."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method in (*methods, "random"):
        name = "dm" if method == "random" else method
        points = []
        for ipc in ipcs:
            entries = by_judge(
                documents_of(Cell(data, name, ipc, schedule), out), None, "random" if method == "random" else ""
            )
            if entries:
                points.append((ipc, *pooled(entries)[:2]))
        if points:
            x, mean, deviation = zip(*points, strict=True)
            style = {"linestyle": "--", "color": "grey"} if method == "random" else {"marker": "o"}
            axes.errorbar(x, mean, deviation, label=method, capsize=2, **style)  # type: ignore[arg-type]
    axes.set_xscale("log")
    axes.set_xlabel("images per class")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"{data}, {schedule} schedule")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}")


def page(out: Path, methods: Sequence[str]) -> str:
    """Return everything measured so far as one Markdown page."""
    lines = PREFACE.splitlines()
    for data in PUBLISHED["table2"] | {"digits": {}}:
        for schedule in ("published", "reduced"):
            lines += table_2(data, schedule, out, methods, (1, 10, 50))
            for ipc in (1, 10, 50):
                for table in (3, 5):
                    lines += across(data, schedule, out, methods, ipc, table)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, choices=(2, 3, 5))
    parser.add_argument("--figure", type=int, choices=(8,))
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    parser.add_argument("--ipc", default="1,10")
    parser.add_argument("--schedule", choices=("published", "reduced"), default="published")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--devices", default="auto", help="comma-separated; a cell at a time runs on each")
    parser.add_argument("--hours", type=float, default=1e6, help="no cell is started later")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--page", type=Path, help="write all that was measured so far as Markdown")
    chosen = parser.parse_args()
    domain = get_domain("image")
    methods = [name for name in chosen.methods.split(",") if name] or sorted(domain_methods(domain))
    ipcs = [int(text) for text in chosen.ipc.split(",")]
    devices = chosen.devices.split(",")
    for data in chosen.data.split(",") if chosen.table or chosen.figure else ():
        reduced = domain.reduced.get(data, {})
        able = [name for name in methods if chosen.schedule == "published" or name in reduced]
        cells = [Cell(data, method, ipc, chosen.schedule) for method in able for ipc in ipcs]
        run_cells(cells, chosen.out, devices, chosen.seeds, chosen.networks, time.time() + 3600 * chosen.hours)
        if chosen.table in (3, 5):
            judges = TABLE_3 if chosen.table == 3 else TABLE_5
            judge_cells(cells, judges, chosen.out, str(choose_device(devices[0])), chosen.seeds, chosen.networks)
        if chosen.figure == 8:
            draw_figure_8(data, chosen.schedule, chosen.out, able, ipcs, chosen.out / f"figure-8-{data}.png")
    if chosen.page is not None:
        chosen.page.write_text(page(chosen.out, sorted(methods, key=lambda name: order(Cell("", name, 0, "")))))
        print(f"wrote {chosen.page}")


if __name__ == "__main__":
    main()
