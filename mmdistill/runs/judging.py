"""Judge a run by the judges that it lacks, and save each score in its folder as soon as it is there."""

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
    """A request to judge a set: the arguments of :func:`~mmdistill.evaluate.evaluate`.

    Args:
        judges: their names; none: the default judge.
        baselines: to judge beside the set.
        baselines_only: judge only these, since the judges have judged the set.
        robust: whether to compute the robust scores.
        n: networks per judge.
        at_once: networks of a judge trained together; None: all.
        seed: of judging; None: the set's.
    """

    judges: list[str]
    baselines: list[str]
    baselines_only: bool = False
    robust: bool = False
    n: int = 5
    at_once: int | None = None
    seed: int | None = None


def judge_and_keep(
    task: Task,
    distilled: DistilledSet,
    request: JudgingRequest,
    cache: KeptBaselines,
    folder: Path,
    previous: Mapping[str, Any],
) -> Evaluation:
    """Judge a set, show a bar, save each score in ``metrics.json`` as it is there, and cache those of baselines.

    Args:
        task: the task.
        distilled: the set.
        request: who judges what, and how.
        cache: of baselines that are judged so.
        folder: of the run.
        previous: the content of ``metrics.json``; empty without one.
    """
    path = folder / METRICS
    with judging_bar() as show:

        def save_and_show(done: int, total: int, subject: str, so_far: Evaluation) -> None:
            if so_far.results or so_far.baselines:
                write_json(path, metrics_document(task, distilled, so_far, previous))
            show(done, total, subject)

        evaluation = evaluate(task, distilled, progress=save_and_show, **request._asdict())
    saved = read_metrics(path)["baselines"]
    for name, entries in evaluation.baselines.items():
        judges = {entry.judge for entry in entries}
        cache.keep(name, distilled.budget, [entry for entry in saved.get(name, ()) if entry["judge"] in judges])
    return evaluation


def missing(
    task: Task, judges: Sequence[str], baselines: Sequence[str], metrics: Mapping[str, Any]
) -> list[JudgingRequest]:
    """Return requests for the scores by these judges, and of these baselines, that metrics lack.

    Nothing is missing of a judge that has since judged the set otherwise (``mmdistill evaluate --judge-epochs``):
    baselines judged as the run's options say would not be comparable with its score.

    Args:
        task: the task.
        judges: names in the task's spelling.
        baselines: names.
        metrics: the content of ``metrics.json``; empty without one.
    """
    title = partial(judge_title, task)
    results = [entry for entry in metrics.get("results", ()) if entry["metric"] not in ROBUST_METRICS]
    judged_how = {entry["judge"]: entry.get("judging", {}) for entry in results}
    recorded_baselines = metrics.get("baselines", {})
    judges_of = {name: {entry["judge"] for entry in recorded_baselines.get(name, ())} for name in baselines}
    new_judges = [judge for judge in judges if title(judge) not in judged_how]
    beside_new = [name for name in baselines if not judges_of[name].issuperset(map(title, new_judges))]
    requests = [JudgingRequest(new_judges, beside_new)] if new_judges else []
    judged_alike = [judge for judge in judges if judged_how.get(title(judge)) == judging_record(task, title(judge))]
    for name in baselines:
        lacking = [judge for judge in judged_alike if title(judge) not in judges_of[name]]
        requests += [JudgingRequest(lacking, [name], baselines_only=True)] if lacking else []
    return requests


def judge_missing(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path) -> Evaluation:
    """Judge a set by the judges of its run's options that its metrics lack; returns all scores.

    Baselines that another run has judged alike come from the cache (:class:`KeptBaselines`).
    """
    path = folder / METRICS
    metrics = of_same_test(former_metrics(path), task)
    judges, baselines = find_judges(task, config.judge_names(), distilled.judge), find_baselines(task, config.baselines)
    cache = KeptBaselines(config, task, config.seed)
    former = metrics
    metrics = _with_cached(metrics, task, cache, missing(task, judges, baselines, metrics), distilled.budget)
    lacking = missing(task, judges, baselines, metrics)
    if former and metrics != former:
        write_json(path, metrics_document(task, distilled, Evaluation([]), metrics))
    if lacking:
        print(f"judging with {'1 network' if config.networks == 1 else f'{config.networks} networks'} ...")
    failures: dict[str, str] = {}
    for request in lacking:
        request = request._replace(n=config.networks, at_once=config.networks_at_once, seed=config.seed)
        failures |= judge_and_keep(task, distilled, request, cache, folder, metrics).failures
        metrics = read_metrics(path)
    return recorded(metrics, failures)


def _with_cached(
    metrics: Mapping[str, Any], task: Task, cache: KeptBaselines, lacking: Sequence[JudgingRequest], budget: int
) -> Mapping[str, Any]:
    """Return metrics with the lacking baselines that are in the cache, and print their names."""
    title = partial(judge_title, task)
    baselines = {name: list(entries) for name, entries in metrics.get("baselines", {}).items()}
    taken: list[str] = []
    pairs = [(name, title(judge)) for part in lacking for name in part.baselines for judge in part.judges]
    for name, judge in pairs:
        present = baselines.setdefault(name, [])  # even if nothing is cached, so that all keep the requested order
        cached = cache.find(name, budget, judge)
        if cached and judge not in {entry["judge"] for entry in present}:
            present += cached
            taken.append(f"{name} by {judge}")
    if not taken:
        return metrics
    print(f"judged alike by an earlier run: {', '.join(taken)}")
    return {**metrics, "baselines": baselines}
