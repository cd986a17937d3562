"""Accuracy against steps: one distillation per row, judged on the way at shares of its steps.

    python benchmarks/steps.py --rows "mnist-frepo-1:schedule=reduced,width=32,judge_epochs=300" --out steps.json

Rows are those of quality.py. The set is judged as it is at each share of one run, so that rates which are annealed have
not ended before the last; that last point is what quality.py measures. Writes one JSON list of rows with the step, the
seconds until then (judging left out), and mean and standard deviation of the accuracy over the networks.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from quality import TASK_OPTIONS, parse_row

from mmdistill.distiller import Distiller
from mmdistill.evaluate import evaluate
from mmdistill.registry import TaskOptions, domain_of, get_method
from mmdistill.store import write_json


def curve(row: str, shares: list[float], seed: int, networks: int) -> list[dict[str, object]]:
    """Return one entry per share of the steps, in order."""
    data, name, budget, overrides = parse_row(row)
    domain = domain_of(data)
    options = {key: overrides.pop(key) for key in TASK_OPTIONS if key in overrides}
    task = domain.make_task(data, TaskOptions(**options))  # type: ignore[arg-type]
    schedule = overrides.pop("schedule", "published")
    method = get_method(domain, name, data, schedule)  # type: ignore[arg-type]
    settings = replace(method.settings(budget), **overrides)  # type: ignore[arg-type]
    if settings.ema or settings.validate_every:
        raise SystemExit(f"{row} ends with an average or its best step, which has no value on the way")
    distiller = Distiller(task, method, budget, seed=seed, settings=settings)
    wanted = sorted({round(share * distiller.steps) for share in shares})
    run, seconds, entries = distiller.start(), 0.0, []
    for stop in wanted:
        started = time.perf_counter()
        while run.step < stop:
            run, _ = distiller.step(run)
        seconds += time.perf_counter() - started
        result = distiller.result(run, name, seconds)
        headline = evaluate(task, result, judges=task.judges[:1], n=networks, seed=seed, baselines=()).headline()
        entry = {"data": data, "method": name, "ipc": budget, "schedule": schedule, "seed": seed, "steps": stop}
        entry |= {"seconds": round(seconds, 1), "judge": headline.judge, "mean": headline.mean, "sd": headline.sd}
        entries.append(entry)
        print(
            f"{row}: step {stop}/{distiller.steps}, {100 * headline.mean:.1f} +/- {100 * headline.sd:.1f}", flush=True
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="semicolon-separated, as in quality.py")
    parser.add_argument("--shares", default="0,0.25,0.5,1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    shares = [float(text) for text in chosen.shares.split(",")]
    entries: list[dict[str, object]] = []
    for row in filter(None, (part.strip() for part in chosen.rows.split(";"))):
        entries += curve(row, shares, chosen.seed, chosen.networks)
        write_json(chosen.out, entries)


if __name__ == "__main__":
    main()
