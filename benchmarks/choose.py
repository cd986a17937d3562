"""Compare learning rates and numbers of steps by validation score alone; test data are never looked at.

    python benchmarks/choose.py --data cora --method gcond-x --budget 70 --rates 0.005,0.01,0.02,0.04 --steps 1500

Prints the validation score at every tenth of the steps, per rate, averaged over the seeds.
"""

import argparse
from dataclasses import replace

from mmdistill.distiller import Distiller
from mmdistill.registry import TaskOptions, domain_of, get_method
from mmdistill.runtime import Draws
from mmdistill.task import Task, Validates


def curve(task: Task, distiller: Distiller, every: int) -> list[float]:
    """Return the validation score after every so many steps."""
    if not isinstance(task, Validates):
        raise SystemExit("this task has no validation score")
    run, scores = distiller.start(), []
    while run.step < distiller.steps:
        run, _ = distiller.step(run)
        if run.step % every == 0:
            batch = run.parameterization(Draws(0, ("decode",), task.device))
            learned = run.objective.learned()
            scores.append(task.validate(batch, Draws(distiller.draws.seed, ("choose",), task.device), learned))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--rates", required=True, help="comma-separated learning rates of the samples")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", default="10,11")
    chosen = parser.parse_args()
    domain = domain_of(chosen.data)
    task = domain.make_task(chosen.data, TaskOptions())
    method = get_method(domain, chosen.method, chosen.data)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    for rate in (float(text) for text in chosen.rates.split(",")):
        settings = method.settings(chosen.budget)
        optimizers = {**settings.optimizers, "codes": replace(settings.optimizers["codes"], lr=rate)}
        settings = replace(settings, optimizers=optimizers, steps=chosen.steps)
        runs = [
            curve(task, Distiller(task, method, chosen.budget, seed=seed, settings=settings), chosen.steps // 10)
            for seed in seeds
        ]
        means = [100 * sum(scores) / len(scores) for scores in zip(*runs, strict=True)]
        print(f"rate {rate:g}: " + " ".join(f"{mean:.1f}" for mean in means), flush=True)


if __name__ == "__main__":
    main()
