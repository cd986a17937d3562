"""Judge a run by the judges that it lacks, and save each score in its folder as soon as it is there."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmdistill.abilities import ROBUST_METRICS, judge_title
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.evaluate import JudgingRequest, evaluate, find_baselines, find_judges
from mmdistill.evaluation import Evaluation
from mmdistill.metrics import former_metrics, judging_record, metrics_document, of_same_test, read_metrics, recorded
from mmdistill.names import counted
from mmdistill.progress import judging_bar
from mmdistill.runs.folder import METRICS
from mmdistill.runs.kept_baselines import KeptBaselines
from mmdistill.store import write_json
from mmdistill.task import Task


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
        cache: of baselines, judged as the request says.
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


def wanted_scores(config: DistillConfig, task: Task, distilled: DistilledSet) -> JudgingRequest:
    """Return the request for all scores that a run's options name.

    Raises:
        ConfigError: an unknown judge or baseline.
        UnsupportedError: a judge cannot read such data.
    """
    return JudgingRequest(
        find_judges(task, config.judge_names(), distilled.judge),
        find_baselines(task, config.baselines),
        n=config.networks,
        at_once=config.networks_at_once,
        seed=config.seed,
    )


def missing(task: Task, wanted: JudgingRequest, metrics: Mapping[str, Any]) -> list[JudgingRequest]:
    """Return requests for those of the wanted scores that metrics lack.

    Nothing is missing of a judge that has since judged the set otherwise (``mmdistill evaluate --judge-epochs``):
    baselines judged as the run's options say would not be comparable with its score.

    Args:
        task: the task.
        wanted: all scores, by judges in the task's spelling.
        metrics: the content of ``metrics.json``; empty without one.
    """
    title = partial(judge_title, task)
    results = [entry for entry in metrics.get("results", ()) if entry["metric"] not in ROBUST_METRICS]
    judged_how = {entry["judge"]: entry.get("judging", {}) for entry in results}
    recorded_baselines = metrics.get("baselines", {})
    judges_of = {name: {entry["judge"] for entry in recorded_baselines.get(name, ())} for name in wanted.baselines}
    new_judges = [judge for judge in wanted.judges if title(judge) not in judged_how]
    beside_new = [name for name in wanted.baselines if not judges_of[name].issuperset(map(title, new_judges))]
    requests = [wanted._replace(judges=new_judges, baselines=beside_new)] if new_judges else []
    alike = [judge for judge in wanted.judges if judged_how.get(title(judge)) == judging_record(task, title(judge))]
    for name in wanted.baselines:
        lacking = [judge for judge in alike if title(judge) not in judges_of[name]]
        beside = wanted._replace(judges=lacking, baselines=[name], baselines_only=True)
        requests += [beside] if lacking else []
    return requests


def judge_missing(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path) -> Evaluation:
    """Judge a set by the judges of its run's options that its metrics lack; returns all scores.

    Baselines that another run has judged alike come from the cache (:class:`KeptBaselines`).
    """
    path = folder / METRICS
    metrics = of_same_test(former_metrics(path), task)
    wanted = wanted_scores(config, task, distilled)
    cache = KeptBaselines(config, task, wanted)
    former = metrics
    metrics = _with_cached(metrics, task, cache, missing(task, wanted, metrics), distilled.budget)
    lacking = missing(task, wanted, metrics)
    if former and metrics != former:
        write_json(path, metrics_document(task, distilled, Evaluation([]), metrics))
    if lacking:
        print(f"judging with {counted(config.networks, 'network')} ...")
    failures: dict[str, str] = {}
    for request in lacking:
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
