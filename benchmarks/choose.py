"""Compare learning rates and numbers of steps by validation score alone; test data are never looked at.

    python benchmarks/choose.py --data cora --method gcond-x --budget 70 --rates 0.005,0.01,0.02,0.04 --steps 1500
    python benchmarks/choose.py --data mnist --method dm --budget 1 --rates 1,3,10 --steps 600 --schedule reduced
        --width 32
    python benchmarks/choose.py --data mnist --method rded --budget 10 --schedule reduced --settings candidates=30

Prints the validation score at every tenth of the steps, per rate, averaged over the seeds. Of images, which come
without validation data, a fifth of the training images is held out; judges are trained at the end only, since they take
long.
"""

import argparse
import statistics
from dataclasses import replace
from typing import get_args

import torch
from quality import integers, make_task_of, parse_options

from mmdistill.abilities import Validates
from mmdistill.choices import Precision, Schedule
from mmdistill.distiller import Distiller
from mmdistill.image.data import ImageData
from mmdistill.image.task import ImageTask, image_task
from mmdistill.registry import domain_of, get_method
from mmdistill.runs.stepper import Stepper
from mmdistill.runtime import Draws
from mmdistill.task import Task


def curve(task: Task, distiller: Distiller, every: int) -> list[float]:
    """Return the validation score after every so many steps."""
    if not isinstance(task, Validates):
        raise SystemExit("this task has no validation score")
    step, run, scores = Stepper(distiller), distiller.start(), []
    while run.step < distiller.steps:
        run, _ = step(run)
        if run.step % every == 0:
            batch = run.parameterization.finished(Draws(0, ("decode",), task.device))
            learned = run.objective.learned()
            score = task.validate(batch, Draws(distiller.draws.seed, ("choose",), task.device), learned)
            if score is None:
                raise SystemExit("this task's data have no validation part")
            scores.append(score)
    return scores


def held_out(data: ImageData, seed: int = 0, fraction: float = 0.2) -> ImageData:
    """Return the training images alone, split into training and validation images (at most 5,000) in place of test."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    kept, held = order[int(fraction * len(order)) :], order[: min(int(fraction * len(order)), 5000)]
    return replace(
        data,
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
    )


def judged(task: Task, distiller: Distiller, networks: int) -> float:
    """Return the mean validation accuracy of judges that are trained on the finished set."""
    step, run = Stepper(distiller), distiller.start()
    while run.step < distiller.steps:
        run, _ = step(run)
    result = distiller.result(run, "choose", 0.0)
    draws = Draws(distiller.draws.seed, ("choose",), task.device)
    scores = task.evaluate(result.to(task.device), task.judges[0], draws, networks, result.learned)
    return statistics.fmean(scores.values["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--rates", default="", help="comma-separated learning rates of the samples, where it steps any")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument(
        "--cosine",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="anneal the rates or do not; by default as the method",
    )
    parser.add_argument("--settings", default="", help="others of the method's settings: inner_steps=60,init=noise")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--seeds", type=integers, default="10,11")
    parser.add_argument("--schedule", choices=get_args(Schedule), default="published")
    parser.add_argument("--model", default=None, help="the network; by default the domain's")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--judge-epochs", type=int, default=None)
    parser.add_argument("--judge-batch", type=int, default=None)
    parser.add_argument("--protocol", default=None, help="how judges train, for images")
    parser.add_argument("--whiten", default=None, help="how images are whitened, by the training images that are kept")
    parser.add_argument("--networks", type=int, default=2, help="judges per seed, for images")
    chosen = parser.parse_args()
    overrides = parse_options(chosen.settings)
    if beside := {"lr", "steps"} & overrides.keys():
        parser.error(f"--settings: what --rates and --steps set is no other setting: {', '.join(sorted(beside))}")
    domain = domain_of(chosen.data)
    options = {name: getattr(chosen, name) for name in ("model", "width", "judge_epochs", "judge_batch")}
    task = make_task_of(chosen.data, options)
    if isinstance(task, ImageTask):
        task = image_task(held_out(task.data), **options, protocol=chosen.protocol, whiten=chosen.whiten)
    method = get_method(domain, chosen.method, chosen.data, chosen.schedule)
    method = method.customised(settings=overrides)
    rates: list[float | None] = [float(text) for text in chosen.rates.split(",") if text]
    if {bool(rates), chosen.steps > 0} != {method.solve is None}:
        parser.error(f"--rates and --steps are for methods that take steps, and these need them, got {chosen.method}")
    for rate in rates or [None]:
        settings = method.settings(chosen.budget)
        if rate is not None:
            codes = settings.optimizers["codes"]
            codes = replace(codes, lr=rate, cosine=codes.cosine if chosen.cosine is None else chosen.cosine)
            settings = replace(settings, optimizers={**settings.optimizers, "codes": codes}, steps=chosen.steps)
        distillers = [
            Distiller(task, method, chosen.budget, seed=seed, settings=settings, precision=chosen.precision)
            for seed in chosen.seeds
        ]
        if isinstance(task, ImageTask):
            runs = [[judged(task, distiller, chosen.networks)] for distiller in distillers]
        else:
            runs = [curve(task, distiller, max(chosen.steps // 10, 1)) for distiller in distillers]
        means = [100 * sum(scores) / len(scores) for scores in zip(*runs, strict=True)]
        print((f"rate {rate:g}: " if rate is not None else "") + " ".join(f"{mean:.1f}" for mean in means), flush=True)


if __name__ == "__main__":
    main()
