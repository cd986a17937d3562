"""Distil texts with several seeds and print the test accuracies, paired by seed with a method or a baseline.

python benchmarks/text.py --data trec,sst2 --ipc 1,10 --methods k-means,dm,dc,krr,ridge-exact --judges mlp
python benchmarks/text.py --data trec --ipc 1 --methods sldd --model bigru --judges bigru --against random
"""

import argparse
import statistics

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate
from mmdistill.registry import get_domain, get_method, get_parameterization


def show(name: str, values: list[float], reference: list[float] | None, against: str) -> None:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    line = f"{name:52s} {100 * statistics.fmean(values):5.1f} +/- {100 * spread:.1f}"
    if reference is not None and len(values) == len(reference) > 1:
        gains = [a - b for a, b in zip(values, reference, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        line += f"   above {against} {100 * statistics.fmean(gains):+.1f} +/- {100 * error:.2f} (standard error)"
    print(line, flush=True)


def run(data: str, ipc: int, chosen: argparse.Namespace) -> None:
    """Print a row per judge, metric and method: the mean over networks within each seed, its mean and sd over seeds."""
    domain = get_domain("text")
    asked = {name: getattr(chosen, name) for name in ("model", "width", "length")}
    given = {name: value for name, value in asked.items() if value is not None}
    task = domain.make_task(data, device="cpu", **given)
    methods, judges = chosen.methods.split(","), chosen.judges.split(",")
    beside = tuple(name for name in chosen.baselines.split(",") if name)
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        for index, name in enumerate(methods):
            method = get_method(domain, name, data)
            if chosen.parameterization and method.solve is None:
                method = method.stored_as(get_parameterization(domain, chosen.parameterization))
            result = distill(task, method, ipc=ipc, seed=seed, name=name)
            baselines = beside if index == 0 else ()
            judged = evaluate(task, result, judges=judges, n=chosen.networks, seed=seed, baselines=baselines)
            for source, entries in {name: judged.results, **judged.baselines}.items():
                for entry in entries:
                    found.setdefault((entry.judge, entry.metric), {}).setdefault(source, []).append(entry.mean)
            shown = ", ".join(f"{entry.judge} {entry.metric} {100 * entry.mean:.1f}" for entry in judged.results)
            size = f"{result.stored_bytes:,} of {result.info.stored_bytes:,} bytes"
            print(f"# {data} ipc {ipc} seed {seed} {name}: {shown}; {result.seconds:.0f} s, {size}", flush=True)
    for (judge, metric), rows in found.items():
        for name, values in rows.items():
            reference = rows.get(chosen.against) if name in methods and name != chosen.against else None
            show(f"{data} ipc {ipc} {judge} {metric} {name}", values, reference, chosen.against)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="trec,sst2")
    parser.add_argument("--ipc", default="1,10")
    parser.add_argument("--methods", default="k-means,dm,dc,krr,ridge-exact")
    parser.add_argument("--model", default=None)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--length", type=int, default=None)
    parser.add_argument("--parameterization", default=None)
    parser.add_argument("--judges", default="mlp")
    parser.add_argument("--baselines", default="random,herding,whole")
    parser.add_argument("--against", default="k-means", help="a method or a baseline that the others are paired with")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=5)
    chosen = parser.parse_args()
    for data in chosen.data.split(","):
        for ipc in chosen.ipc.split(","):
            run(data, int(ipc), chosen)


if __name__ == "__main__":
    main()
