"""Judging a run: what it asks for and lacks, kept in its folder as it is finished."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmdistill.abilities import ROBUST_METRICS, TitlesJudges
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.evaluate import Evaluation, Progress, evaluate, find_judges
from mmdistill.kept_baselines import KeptBaselines
from mmdistill.metrics import Judging, judging_of, judging_set, metrics_document, of_same_test, read_metrics, recorded
from mmdistill.names import baseline_names
from mmdistill.progress import judging_bar
from mmdistill.run_folder import METRICS
from mmdistill.store import write_json
from mmdistill.task import Task


class Missing(NamedTuple):
    """Judgements that a run asks for and its metrics lack.

    Args:
        judges: whose.
        baselines: of which baselines.
        baselines_only: whether these judges have judged the set itself.
    """

    judges: list[str]
    baselines: list[str]
    baselines_only: bool


def chosen_judging(config: DistillConfig) -> dict[str, int | str]:
    """Return what the user set of judging, by which results may differ; a protocol is in the judge's name."""
    return judging_set(vars(config))


@contextmanager
def keeping(
    config: DistillConfig,
    task: Task,
    folder: Path,
    distilled: DistilledSet,
    previous: Mapping[str, object] | None = None,
) -> Iterator[Progress]:
    """Yield what shows judging's progress and keeps the finished judgements in ``metrics.json``, one by one."""
    judging = chosen_judging(config)
    with judging_bar() as show:

        def keep(done: int, total: int, subject: str, so_far: Evaluation) -> None:
            if so_far.results or so_far.baselines:
                write_json(folder / METRICS, metrics_document(distilled, so_far, previous, judging, task))
            show(done, total, subject)

        yield keep


def missing(
    task: Task, judges: Sequence[str], baselines: Sequence[str], metrics: Mapping[str, Any], judging: Judging
) -> list[Missing]:
    """Return what metrics lack of the judges and baselines asked for.

    A judge whose number was made otherwise since (``mmdistill evaluate --judge-epochs``) lacks nothing: baselines
    judged as the run says would not compare with it.

    Args:
        task: the task.
        judges: names in the task's spelling.
        baselines: names.
        metrics: what ``metrics.json`` holds; empty where there is none.
        judging: what the run sets of judging.
    """
    title = task.judge_title if isinstance(task, TitlesJudges) else str
    results = [entry for entry in metrics.get("results", ()) if entry["metric"] not in ROBUST_METRICS]
    how = {entry["judge"]: entry.get("judging", {}) for entry in results}
    known = metrics.get("baselines", {})
    beside = {name: {entry["judge"] for entry in known.get(name, ())} for name in baselines}
    unjudged = [judge for judge in judges if title(judge) not in how]
    wanted = [name for name in baselines if not beside[name].issuperset(map(title, unjudged))]
    found = [Missing(unjudged, wanted, False)] if unjudged else []
    alike = [judge for judge in judges if how.get(title(judge)) == judging_of(task, title(judge), judging)]
    for name in baselines:
        lacking = [judge for judge in alike if title(judge) not in beside[name]]
        found += [Missing(lacking, [name], True)] if lacking else []
    return found


def judge_missing(config: DistillConfig, task: Task, distilled: DistilledSet, folder: Path) -> Evaluation:
    """Judge what a run asks for and its metrics lack; returns all that they then hold.

    Baselines that another run has judged alike are taken from the cache (:class:`KeptBaselines`).
    """
    path = folder / METRICS
    metrics = of_same_test(read_metrics(path) if path.exists() else {}, task)
    judges, baselines = find_judges(task, config.judge_names(), distilled.judge), baseline_names(config.baselines)
    judging = chosen_judging(config)
    kept = KeptBaselines(config, task, judging, config.networks, config.networks_at_once, config.seed)
    former = metrics
    metrics = _with_kept(metrics, kept, missing(task, judges, baselines, metrics, judging), task, distilled.budget)
    lacking = missing(task, judges, baselines, metrics, judging)
    if metrics != former and not lacking:
        write_json(path, metrics_document(distilled, Evaluation([]), metrics, judging, task))
    if lacking:
        print(f"judging with {'1 network' if config.networks == 1 else f'{config.networks} networks'} ...")
    failures: dict[str, str] = {}
    for part in lacking:
        with keeping(config, task, folder, distilled, metrics) as progress:
            evaluation = evaluate(
                task,
                distilled,
                judges=part.judges,
                n=config.networks,
                at_once=config.networks_at_once,
                seed=config.seed,
                baselines=part.baselines,
                baselines_only=part.baselines_only,
                progress=progress,
            )
        failures |= evaluation.failures
        metrics = read_metrics(path)
        keep_found(kept, evaluation, metrics, distilled.budget)
    return recorded(metrics, failures)


def keep_found(kept: KeptBaselines, evaluation: Evaluation, metrics: Mapping[str, Any], budget: int) -> None:
    """Keep the baselines that an evaluation found, as metrics hold them, for other runs."""
    for name, found in evaluation.baselines.items():
        judges = {entry.judge for entry in found}
        kept.keep(name, budget, [entry for entry in metrics["baselines"].get(name, ()) if entry["judge"] in judges])


def _with_kept(
    metrics: Mapping[str, Any], kept: KeptBaselines, lacking: Sequence[Missing], task: Task, budget: int
) -> Mapping[str, Any]:
    """Return metrics with those lacking baselines that are known from other runs, and print which these are."""
    title = task.judge_title if isinstance(task, TitlesJudges) else str
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
