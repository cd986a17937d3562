"""Judging a run: what it asks for and lacks, kept in its folder as it is finished."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmdistill.abilities import ROBUST_METRICS, judge_title
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.evaluate import evaluate, find_baselines, find_judges
from mmdistill.evaluation import Evaluation
from mmdistill.metrics import former_metrics, judging_record, metrics_document, of_same_test, read_metrics, recorded
from mmdistill.progress import judging_bar
from mmdistill.runs.folder import METRICS
from mmdistill.runs.kept_baselines import KeptBaselines
from mmdistill.store import write_json
from mmdistill.task import Task


class JudgingRequest(NamedTuple):
    """Judgements of a set that are asked for.

    Args:
        judges: whose; none: the default one's.
        baselines: of which baselines beside it.
        baselines_only: whether these judges have judged the set itself.
        robust: whether the robust scores are meant.
    """

    judges: list[str]
    baselines: list[str]
    baselines_only: bool = False
    robust: bool = False


def judge_and_keep(
    kept: KeptBaselines, distilled: DistilledSet, folder: Path, previous: Mapping[str, Any], asked: JudgingRequest
) -> Evaluation:
    """Judge a set with a bar; what is finished is kept in ``metrics.json`` one by one, and baselines for other runs.

    Args:
        kept: where baselines are kept, with the task and the networks that judge.
        distilled: the set.
        folder: the run's.
        previous: what ``metrics.json`` held before; empty where there is none.
        asked: who judges what.
    """
    path = folder / METRICS
    with judging_bar() as show:

        def keep(done: int, total: int, subject: str, so_far: Evaluation) -> None:
            if so_far.results or so_far.baselines:
                write_json(path, metrics_document(kept.task, distilled, so_far, previous))
            show(done, total, subject)

        found = evaluate(
            kept.task,
            distilled,
            n=kept.networks,
            at_once=kept.at_once,
            seed=kept.seed,
            progress=keep,
            **asked._asdict(),
        )
    known = read_metrics(path)["baselines"]
    for name, entries in found.baselines.items():
        own = {entry.judge for entry in entries}
        kept.keep(name, distilled.budget, [entry for entry in known.get(name, ()) if entry["judge"] in own])
    return found


def missing(
    task: Task, judges: Sequence[str], baselines: Sequence[str], metrics: Mapping[str, Any]
) -> list[JudgingRequest]:
    """Return what metrics lack of the judges and baselines asked for.

    A judge whose number was made otherwise since (``mmdistill evaluate --judge-epochs``) lacks nothing: baselines
    judged as the run says would not compare with it.

    Args:
        task: the task.
        judges: names in the task's spelling.
        baselines: names.
        metrics: what ``metrics.json`` holds; empty where there is none.
    """
    title = partial(judge_title, task)
    results = [entry for entry in metrics.get("results", ()) if entry["metric"] not in ROBUST_METRICS]
    how = {entry["judge"]: entry.get("judging", {}) for entry in results}
    known = metrics.get("baselines", {})
    beside = {name: {entry["judge"] for entry in known.get(name, ())} for name in baselines}
    unjudged = [judge for judge in judges if title(judge) not in how]
    wanted = [name for name in baselines if not beside[name].issuperset(map(title, unjudged))]
    found = [JudgingRequest(unjudged, wanted)] if unjudged else []
    alike = [judge for judge in judges if how.get(title(judge)) == judging_record(task, title(judge))]
    for name in baselines:
        lacking = [judge for judge in alike if title(judge) not in beside[name]]
        found += [JudgingRequest(lacking, [name], baselines_only=True)] if lacking else []
    return found


def judge_missing(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path) -> Evaluation:
    """Judge what a run asks for and its metrics lack; returns all that they then hold.

    Baselines that another run has judged alike are taken from the cache (:class:`KeptBaselines`).
    """
    path = folder / METRICS
    metrics = of_same_test(former_metrics(path), task)
    judges, baselines = find_judges(task, config.judge_names(), distilled.judge), find_baselines(task, config.baselines)
    kept = KeptBaselines(config, task, config.seed)
    former = metrics
    metrics = _with_kept(metrics, kept, missing(task, judges, baselines, metrics), distilled.budget)
    lacking = missing(task, judges, baselines, metrics)
    if former and metrics != former:
        write_json(path, metrics_document(task, distilled, Evaluation([]), metrics))
    if lacking:
        print(f"judging with {'1 network' if config.networks == 1 else f'{config.networks} networks'} ...")
    failures: dict[str, str] = {}
    for part in lacking:
        failures |= judge_and_keep(kept, distilled, folder, metrics, part).failures
        metrics = read_metrics(path)
    return recorded(metrics, failures)


def _with_kept(
    metrics: Mapping[str, Any], kept: KeptBaselines, lacking: Sequence[JudgingRequest], budget: int
) -> Mapping[str, Any]:
    """Return metrics with those lacking baselines that are known from other runs, and print which these are."""
    title = partial(judge_title, kept.task)
    baselines = {name: list(entries) for name, entries in metrics.get("baselines", {}).items()}
    known: list[str] = []
    for name, judge in ((name, title(judge)) for part in lacking for name in part.baselines for judge in part.judges):
        own = baselines.setdefault(name, [])  # in the order that they were asked for
        entries = kept.find(name, budget, judge)
        if entries and judge not in {entry["judge"] for entry in own}:
            own += entries
            known.append(f"{name} by {judge}")
    if not known:
        return metrics
    print(f"judged alike by an earlier run: {', '.join(known)}")
    return {**metrics, "baselines": baselines}
