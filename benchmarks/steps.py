"""Accuracy against steps: one distillation per row, judged on the way at shares of its steps.

    python benchmarks/steps.py --rows "mnist-frepo-1:schedule=reduced,width=32,judge_epochs=300" --out steps.json

Rows are those of quality.py. The set is judged as it is at each share of one run, so that rates which are annealed have
not ended before the last; that last point is what quality.py measures. Writes one JSON list of rows with the step, the
seconds until then (judging left out), and mean and standard deviation of the accuracy over the networks.
"""

import argparse
import time
from pathlib import Path

from quality import prepared, split_rows

from mmdistill.distiller import Distiller
from mmdistill.evaluate import evaluate
from mmdistill.runs.stepper import Stepper
from mmdistill.store import write_json


def curve(row: str, shares: list[float], seed: int, networks: int) -> list[dict[str, object]]:
    """Return one entry per share of the steps, in order."""
    found = prepared(row)
    task, settings = found.task, found.method.settings(found.budget)
    if settings.ema or settings.validate_every:
        raise SystemExit(f"{row} ends with an average or its best step, which has no value on the way")
    distiller = Distiller(task, found.method, found.budget, seed=seed, precision=found.precision)
    wanted = sorted({round(share * distiller.steps) for share in shares})
    step, run, seconds, entries = Stepper(distiller), distiller.start(), 0.0, []
    for stop in wanted:
        started = time.perf_counter()
        while run.step < stop:
            run, _ = step(run)
        seconds += time.perf_counter() - started
        result = distiller.result(run, found.name, seconds)
        headline = evaluate(task, result, judges=task.judges[:1], n=networks, seed=seed, baselines=()).headline()
        entry = {"data": found.data, "method": found.name, "ipc": found.budget, "schedule": found.schedule}
        entry |= {"seed": seed, "steps": stop}
        entry |= {"seconds": round(seconds, 1), "judge": headline.judge, "mean": headline.mean, "sd": headline.sd}
        entries.append(entry)
        print(
            f"{row}: step {stop}/{distiller.steps}, {100 * headline.mean:.1f} +/- {100 * headline.sd:.1f}", flush=True
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="as in quality.py")
    parser.add_argument("--shares", default="0,0.25,0.5,1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    shares = [float(text) for text in chosen.shares.split(",")]
    entries: list[dict[str, object]] = []
    for row in split_rows(chosen.rows):
        entries += curve(row, shares, chosen.seed, chosen.networks)
        write_json(chosen.out, entries)


if __name__ == "__main__":
    main()
