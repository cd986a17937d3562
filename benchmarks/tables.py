"""Fill the survey's Tables 2, 3 and 5 and its Fig. 8 with what this library measures, beside the published numbers.

    python benchmarks/tables.py --data cifar10 --devices cuda:0 --hours 0.4
    python benchmarks/tables.py --data mnist --ipc 1,10 --schedule reduced
    python benchmarks/tables.py --table 3 --data cifar10 --ipc 10
    python benchmarks/tables.py --data cifar10 --ipc 100,200 --methods dm --schedule reduced
    python benchmarks/tables.py --figure 8 --data cifar10 --schedule reduced
    python benchmarks/tables.py --page docs/tables.md

A cell is a method, a data set and an ipc. Cells with few images and steps run first, one at a time on each device, in
processes of their own, so that one that fails costs only itself; the further judges of Tables 3 and 5 follow on the
first device. When the hours are over, running cells keep a checkpoint and end; the same command goes on from there and
skips what is finished. Runs lie under ``--out``; what they found is copied to ``--cells``, a folder of small files that
belongs to the repository, from which ``--page`` writes everything measured so far and draws Fig. 8. Remove a cell's
folder from both to measure it anew. Published schedules take the network, whitening and judging of the method's paper.
A ``reduced`` schedule is the library's own for a CPU, with a ConvNet of width 16, or as wide as ``--width`` says, and
shorter judging; its numbers stand in tables of their own, one for each width.
"""

import argparse
import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from cells import CELLS, REDUCED_MODELS, REDUCED_WIDTH, TABLE_3, TABLE_5, Cell, cost, network_of, row
from pages import draw_figure_8, figure_8, page
from quality import integers, prepared

from mmdistill.choices import Schedule
from mmdistill.commands.processes import start, stop, why_failed
from mmdistill.distilled import DistilledSet
from mmdistill.errors import MmdistillError
from mmdistill.evaluate import evaluate
from mmdistill.metrics import metrics_document
from mmdistill.names import split_names
from mmdistill.registry import get_domain
from mmdistill.runs.folder import LOG, METRICS
from mmdistill.runtime import choose_device
from mmdistill.store import read_json, write_json

INTERRUPTED = threading.Event()
"""Set by Ctrl-C: running cells stop, and no further one starts."""


@dataclass(frozen=True)
class Places:
    """Where cells run and where what they found is kept.

    Args:
        out: the folder of the runs: sets, checkpoints, logs.
        cells: the folder of what finished cells found.
    """

    out: Path
    cells: Path


def run_cells(
    cells: Sequence[Cell], places: Places, devices: Sequence[str], seeds: Sequence[int], networks: int, until: float
) -> None:
    """Run unfinished cells on all devices until a time; a cell that fails is reported and the others go on."""
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in sorted(cells, key=cost):
        if not cell.finished(places.cells, seeds):
            waiting.put(cell)

    def work(device: str) -> None:
        while time.time() < until and not INTERRUPTED.is_set():
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            missing = [seed for seed in seeds if not cell.finished(places.cells, [seed])]
            said = distil_cell(cell, places, device, missing, networks, until)
            print(f"{cell.row} on {device}: {said}", flush=True)

    workers = [threading.Thread(target=work, args=(device,)) for device in devices]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        INTERRUPTED.set()
        for worker in workers:
            worker.join()
        raise SystemExit("interrupted; the same command resumes the cells") from None


def distil_cell(cell: Cell, places: Places, device: str, seeds: Sequence[int], networks: int, until: float) -> str:
    """Distil and judge a cell in a process of its own until a time; returns what came of it in a line."""
    command = [sys.executable, str(Path(__file__).with_name("quality.py")), "--rows", f"{cell.row};"]
    command += ["--device", device, "--out", str(places.out), "--networks", str(networks)]
    command += ["--seeds", ",".join(map(str, seeds)), "--baselines", cell.baselines]
    place = cell.folder(places.out).parent
    place.mkdir(parents=True, exist_ok=True)
    with (place / LOG).open("wb") as log:
        process = start(command, log)
        try:
            reason = waited(process, until)
        finally:
            cell.keep(places.out, places.cells, seeds)
    if reason:
        return f"{reason}; the same command resumes it"
    if process.returncode:
        reason = why_failed(process.returncode, place / LOG)
        cell.fail(places.cells, reason)
        return f"failed: {reason}"
    return " | ".join((place / LOG).read_text(encoding="utf-8").strip().splitlines()[-2:])


def waited(process: "subprocess.Popen[bytes]", until: float) -> str:
    """Wait for a cell, and stop it at a time or an interrupt; returns why it did not end by itself, or nothing."""
    while process.poll() is None:
        if INTERRUPTED.is_set() or time.time() >= until:
            stop([process])
            return "interrupted" if INTERRUPTED.is_set() else "stopped when the time was over"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=min(max(until - time.time(), 0.1), 1))
    # Somebody else may have interrupted the cell.
    return "interrupted" if INTERRUPTED.is_set() or process.returncode in (-signal.SIGINT, 130) else ""


def judge_cells(
    cells: Iterable[Cell],
    judges: Sequence[str],
    places: Places,
    device: str,
    seeds: Sequence[int],
    networks: int,
    until: float,
) -> None:
    """Judge finished cells, and their baselines, by further networks until a time, adding to their metrics.

    A set of which only the numbers are kept is distilled again, since it has to be there to be judged.
    """
    for cell in cells:
        for seed in (seed for seed in seeds if cell.finished(places.cells, [seed])):
            known = {network_of(entry["judge"]) for entry in read_json(cell.record(places.cells, seed))["results"]}
            missing = [judge for judge in map(cell.judge, judges) if judge is not None and judge not in known]
            folder = cell.folder(places.out, seed)
            if missing and time.time() < until and not (folder / METRICS).exists():
                print(f"{cell.row}: {distil_cell(cell, places, device, [seed], networks, until)}", flush=True)
            for judge in missing if (folder / METRICS).exists() else ():
                if time.time() < until:
                    print(f"{cell.row} {judge}: {judge_cell(cell, judge, folder, device, seed, networks)}", flush=True)
                    cell.keep(places.out, places.cells, [seed])


def judge_cell(cell: Cell, judge: str, folder: Path, device: str, seed: int, networks: int) -> str:
    """Judge a finished cell and its baselines by a further network; returns its accuracy, or why there is none."""
    distilled, document = DistilledSet.load(folder), read_json(folder / METRICS)
    try:
        here = prepared(cell.row, device)
        baselines = split_names(cell.baselines)
        found = evaluate(here.task, distilled, judges=[judge], n=networks, seed=seed, baselines=baselines)
    except MmdistillError as error:
        return str(error)
    extra = {name: document[name] for name in ("row", "samples", "judging_seconds") if name in document}
    content = metrics_document(here.task, distilled, found, document)
    write_json(folder / METRICS, content | extra)
    return str(found.results[0])


def named(devices: str) -> list[str]:
    """Return the devices that a list names; ``auto`` is every CUDA device, or the CPU."""
    if devices == "auto" and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return devices.split(",")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, choices=(2, 3, 5), help="2 where neither a figure nor a page is asked for")
    parser.add_argument("--figure", type=int, choices=(8,), help="of all methods and ipc that cells hold, into --out")
    parser.add_argument("--data", default="mnist", help="comma-separated")
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    parser.add_argument("--ipc", type=integers, default="1,10", help="comma-separated")
    parser.add_argument("--schedule", choices=get_args(Schedule), default="published")
    parser.add_argument("--width", type=int, default=REDUCED_WIDTH, help="of a reduced schedule's ConvNet")
    parser.add_argument("--seeds", type=integers, default="0", help="of distillation, comma-separated")
    parser.add_argument("--networks", type=int, default=5, help="judges of each kind for each seed")
    parser.add_argument("--judges", default="", help="for Table 3 or 5, comma-separated; all its columns by default")
    parser.add_argument("--devices", default="auto", help="comma-separated; a cell at a time runs on each")
    parser.add_argument("--hours", type=float, default=1e6, help="then running cells keep a checkpoint and end")
    parser.add_argument(
        "--options",
        default="",
        help="overrides for all cells, as quality.py spells them: experts=20; tables of their own",
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="where cells run")
    parser.add_argument("--cells", type=Path, default=CELLS, help="where what they found is kept")
    parser.add_argument("--page", type=Path, help="write all that was measured so far as Markdown")
    chosen = parser.parse_args()
    if chosen.table is chosen.figure is chosen.page is None:
        chosen.table = 2
    if chosen.width != REDUCED_WIDTH and chosen.schedule == "published":
        parser.error("--width belongs to a reduced schedule; published ones have their papers' networks")
    return chosen


def main() -> None:
    chosen = parse()
    until = time.time() + 3600 * chosen.hours
    domain = get_domain("image")
    methods = split_names(chosen.methods) or sorted(domain.methods)
    devices = [str(choose_device(device)) for device in named(chosen.devices)]
    places = Places(chosen.out, chosen.cells)
    for data in chosen.data.split(",") if chosen.table else ():
        able = [name for name in methods if chosen.schedule == "published" or name in domain.reduced.get(data, {})]
        if chosen.width != REDUCED_WIDTH:  # which networks of their own do not follow
            able = [name for name in able if name not in REDUCED_MODELS]
        cells = [
            Cell(data, method, ipc, chosen.schedule, chosen.options, chosen.width)
            for method in able
            for ipc in chosen.ipc
        ]
        run_cells(cells, places, devices, chosen.seeds, chosen.networks, until)
        if chosen.table in (3, 5):
            judges = split_names(chosen.judges) or (TABLE_3 if chosen.table == 3 else TABLE_5)
            judge_cells(cells, judges, places, devices[0], chosen.seeds, chosen.networks, until)
    for data in chosen.data.split(",") if chosen.figure else ():
        like = Cell(data, "dm", 1, chosen.schedule, chosen.options, chosen.width)
        if not (points := figure_8(like, chosen.cells)):
            raise SystemExit(f"{chosen.cells} has no such cell of {data} ({chosen.schedule})")
        chosen.out.mkdir(parents=True, exist_ok=True)
        other = [f"w{chosen.width}"] if chosen.width != REDUCED_WIDTH else []
        path = chosen.out / f"figure-8-{'-'.join(filter(None, (data, chosen.schedule, *other, chosen.options)))}.png"
        draw_figure_8(like, points, path)
        print(f"wrote {path}")
    if chosen.page is not None:
        everything = sorted(domain.methods, key=row)
        chosen.page.write_text(page(chosen.cells, everything, chosen.page.parent) + "\n", encoding="utf-8")
        print(f"wrote {chosen.page}")


if __name__ == "__main__":
    main()
