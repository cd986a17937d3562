"""Distil sentence points with several seeds and print the test accuracies, paired by seed with the k-means centroids.

python benchmarks/text.py --data trec,sst2 --ipc 1,10 --methods k-means,dm,dc,krr,ridge-exact --judges mlp
"""

import argparse
import statistics

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate
from mmdistill.text import text_task


def show(name: str, values: list[float], reference: list[float] | None = None) -> None:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    line = f"{name:36s} {100 * statistics.fmean(values):5.1f} +/- {100 * spread:.1f}"
    if reference is not None and len(values) == len(reference) > 1:
        gains = [a - b for a, b in zip(values, reference, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        line += f"   above k-means {100 * statistics.fmean(gains):+.1f} +/- {100 * error:.2f} (standard error)"
    print(line, flush=True)


def run(data: str, ipc: int, methods: list[str], judges: list[str], seeds: int, networks: int) -> None:
    """Print a row per judge and method: the mean over networks within each seed, its mean and sd over seeds."""
    task = text_task(data)
    found: dict[str, dict[str, list[float]]] = {judge: {} for judge in judges}
    for seed in range(seeds):
        for index, method in enumerate(methods):
            result = distill(task, method, ipc=ipc, seed=seed)
            baselines = ("random", "herding", "whole") if index == 0 else ()
            judged = evaluate(task, result, judges=judges, n=networks, seed=seed, baselines=baselines)
            for name, entries in {method: judged.results, **judged.baselines}.items():
                for entry in entries:
                    found[entry.judge].setdefault(name, []).append(entry.mean)
    for judge, rows in found.items():
        for name, values in rows.items():
            show(f"{data} ipc {ipc} {judge} {name}", values, rows.get("k-means") if name in methods[1:] else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="trec,sst2")
    parser.add_argument("--ipc", default="1,10")
    parser.add_argument("--methods", default="k-means,dm,dc,krr,ridge-exact")
    parser.add_argument("--judges", default="mlp")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", type=int, default=5)
    chosen = parser.parse_args()
    for data in chosen.data.split(","):
        for ipc in chosen.ipc.split(","):
            run(data, int(ipc), chosen.methods.split(","), chosen.judges.split(","), chosen.seeds, chosen.networks)


if __name__ == "__main__":
    main()
