"""Time authors' own programs beside ours, at equal settings.

    git clone https://github.com/VICO-UoE/DatasetCondensation theirs/DatasetCondensation
    OMP_NUM_THREADS=1 python benchmarks/beside.py dm dc dsa --checkouts theirs
    OMP_NUM_THREADS=1 python benchmarks/beside.py dm --checkouts theirs --compile on --precision mixed

Both sides run in turns, each time in a process of its own, on random images or a generated graph. A step is what passes
between two updates of the synthetic images or nodes: its median CPU time, and by how much the process grows in it. No
accuracy is measured here.
``benchmarks/authors.py`` has the programs and their options, and says what stands in for a GPU and the network.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from authors import PAIRS, Pair, RandomImages, run_script
from graph_speed import generated
from watched import Watch

from mmdistill import distill, image_task
from mmdistill.graph import graph_task
from mmdistill.store import write_json
from mmdistill.task import Task


def make_task(pair: Pair) -> Task:
    """Return what our method distils: what the authors' program is given."""
    if pair.nodes:
        return graph_task(generated(), model=pair.model, device="cpu")
    sides = [type("", (RandomImages,), {"shape": pair.shape})(train=train) for train in (True, False)]
    train, test = (
        (torch.as_tensor(side.data).reshape(len(side), *pair.shape[1:], pair.shape[0]).movedim(3, 1), side.targets)
        for side in sides
    )
    return image_task(train, test=test, model=pair.model, width=128)


def run_ours(pair: Pair, updates: int, compile: Any, precision: Any) -> None:
    """Distil by our method."""
    settings = {"steps": updates, **pair.settings}
    formats = {"compile": compile, "precision": precision}
    distill(make_task(pair), pair.method, pair.nodes or pair.ipc, settings=settings, **formats, **pair.options)


def one_side(args: argparse.Namespace) -> None:
    """Be the process of one side: write what was watched to ``args.result``."""
    pair = PAIRS[args.methods[0]]
    if args.side == "ours":
        watch = Watch(pair.numbers, args.updates, args.skipped)
        watched = watch.run(lambda: run_ours(pair, args.updates + args.skipped + 1, args.compile, args.precision))
    else:
        watch = Watch(pair.first or pair.numbers, args.updates, args.skipped, pair.parts)
        with tempfile.TemporaryDirectory() as workplace:
            watched = watch.run(lambda: run_script(pair, args.checkouts, Path(workplace)))
    write_json(args.result, watched)


def measured(name: str, side: str, options: list[str]) -> dict[str, Any]:
    """Return what a process of one side measures."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, name, "--side", side, "--result", str(result), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, {side}:\n{done.stderr[-2000:]}")
        return dict(json.loads(result.read_text()))


def main() -> None:
    """Measure the named pairs; print a row of a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", choices=list(PAIRS))
    parser.add_argument("--checkouts", type=Path, required=True, help="folder of the authors' repositories")
    parser.add_argument("--updates", type=int, default=5, help="timed in each process")
    parser.add_argument("--skipped", type=int, default=1, help="before them")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--compile", default="off", help="ours: off, on or auto")
    parser.add_argument("--precision", default="float32", help="ours: float32, mixed or bf16")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        one_side(args)
        return
    names = ("checkouts", "updates", "skipped", "compile", "precision")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    print("| method, its code | theirs | ours | ratio |\n|---|---|---|---|")
    for name in args.methods:
        sides: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
        for _ in range(args.rounds):
            for side, results in sides.items():
                results.append(measured(name, side, options))
        seconds = {s: statistics.median(t for r in results for t in r["seconds"]) for s, results in sides.items()}
        growth = {s: max(r["bytes"] for r in results) / 2**30 for s, results in sides.items()}
        pair = PAIRS[name]
        cells = [f"{seconds[side]:.2f} s, {growth[side]:.2f} GiB" for side in sides]
        ratio = seconds["theirs"] / seconds["ours"]
        print(f"| {name}, {pair.repository} {pair.commit} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
