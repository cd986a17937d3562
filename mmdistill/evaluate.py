"""Train on S, test on T: judges, and the baselines that stand beside every result."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdistill.coresets import allocate, choose_samples
from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.registry import canonical, unknown_name
from mmdistill.runtime import Draws
from mmdistill.store import DistilledSet
from mmdistill.task import Batch, Scores, Task

METRICS_VERSION = 1
BASELINES = ("random", "herding", "whole")


@dataclass(frozen=True)
class Entry:
    """One number of ``metrics.json``: mean and standard deviation over n independently drawn judges, as fractions.

    Args:
        judge: who judged.
        metric: ``accuracy``, ``ndcg@10``, ...
        mean: over the runs.
        sd: sample standard deviation over the runs, 0 for a single one.
        n: runs.
        notes: warnings that belong to the number.
    """

    judge: str
    metric: str
    mean: float
    sd: float
    n: int
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, object]:
        """Return the entry as ``metrics.json`` holds it; notes only where there are any."""
        found: dict[str, object] = {
            "judge": self.judge,
            "metric": self.metric,
            "mean": self.mean,
            "sd": self.sd,
            "n": self.n,
        }
        if self.notes:
            found["notes"] = list(self.notes)
        return found

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} +/- {100 * self.sd:.1f}"


@dataclass(frozen=True)
class Evaluation:
    """Results of one set with its baselines.

    Args:
        results: of the distilled set.
        baselines: by name: ``random`` and ``herding`` real samples at equal count, the ``whole`` training set.
        seconds: of judging, all together.
    """

    results: list[Entry]
    baselines: dict[str, list[Entry]] = field(default_factory=dict)
    seconds: float = 0.0

    def headline(self) -> Entry:
        """Return the first judge's first metric."""
        return self.results[0]


def summarise(scores: Iterable[Scores]) -> list[Entry]:
    """Return one entry per judge and metric; runs of one judge are pooled."""
    pooled: dict[tuple[str, str], list[float]] = {}
    notes: dict[tuple[str, str], tuple[str, ...]] = {}
    for score in scores:
        for metric, values in score.values.items():
            pooled.setdefault((score.judge, metric), []).extend(values)
            notes[score.judge, metric] = tuple(dict.fromkeys((*notes.get((score.judge, metric), ()), *score.notes)))
    return [
        Entry(
            judge, metric, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0, len(v), notes[judge, metric]
        )
        for (judge, metric), v in pooled.items()
    ]


def find_judges(task: Task, names: Sequence[str] | None) -> list[str]:
    """Return judges' names in the task's spelling: the default one, all of them, or those asked for.

    Raises:
        ConfigError: an unknown judge.
    """
    if not names:
        return [task.judges[0]]
    if [canonical(name) for name in names] == ["all"]:
        return list(task.judges)
    known = {canonical(judge): judge for judge in task.judges}
    for name in names:
        if canonical(name) not in known:
            raise unknown_name("judge", name, task.judges)
    return [known[canonical(name)] for name in names]


def evaluate(
    task: Task,
    distilled: DistilledSet | Batch,
    *,
    judges: Sequence[str] | None = None,
    n: int = 5,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
) -> Evaluation:
    """Judge a distilled set on untouched test data, with baselines at equal count.

    Each judge is trained from scratch n times with its own initialisation and order, and its last epoch counts (or the
    epoch that *validation* data choose, where the domain's protocol says so).

    Args:
        task: the task.
        distilled: a set, or a bare batch of samples.
        judges: names, ``["all"]``, or None for the task's default.
        n: networks per judge.
        seed: of judging; independent of the distillation's.
        baselines: any of ``random``, ``herding``, ``whole``.
    Raises:
        ConfigError: an unknown judge or baseline, or n below 1.
        CheckpointError: the set belongs to another task.
    """
    if n < 1:
        raise ConfigError(f"at least one network must judge, got n={n}")
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise unknown_name("baseline", unknown[0], BASELINES)
    learned: Mapping[str, Tensor] = {}
    if isinstance(distilled, DistilledSet):
        distilled.require(task.describe())
        learned = {name: tensor.to(task.device) for name, tensor in distilled.learned.items()}
        batch, budget = distilled.to(task.device), distilled.budget
    else:
        batch, budget = distilled, None
    began = time.perf_counter()
    names = find_judges(task, judges)
    key = Draws(seed, ("evaluate",), task.device)
    results = summarise(task.evaluate(batch, judge, key.fold(judge), n, learned) for judge in names)
    found = {
        name: entries
        for name in baselines
        if (entries := _baseline(task, name, budget, names, n, key.fold(name))) is not None
    }
    return Evaluation(results, found, time.perf_counter() - began)


def _baseline(
    task: Task, name: str, budget: int | None, judges: Sequence[str], n: int, key: Draws
) -> list[Entry] | None:
    """Return a baseline's entries, or None where the task cannot offer it."""
    if name == "whole":
        return summarise(task.evaluate(None, judge, key.fold(judge), n, {}) for judge in judges)
    if budget is None:
        return None
    counts = allocate(budget, task.describe().budget, task.labels, task.num_classes)
    try:
        if name == "herding":
            chosen = task.select(choose_samples(task, "herding", counts, key))
            return summarise(task.evaluate(chosen, judge, key.fold(judge), n, {}) for judge in judges)
        runs = []
        for index in range(n):  # every network sees another random subset, so the spread covers the choice
            own = key.fold("subset", index)
            subset = task.select(choose_samples(task, "real", counts, own))
            runs += [task.evaluate(subset, judge, own.fold(judge), 1, {}) for judge in judges]
        return summarise(runs)
    except UnsupportedError:
        return None


def metrics_document(
    distilled: DistilledSet, evaluation: Evaluation, previous: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the content of ``metrics.json``; entries of the same judge and metric replace previous ones."""
    old_results = _entries((previous or {}).get("results"))
    old_baselines = (previous or {}).get("baselines")
    baselines = dict(old_baselines) if isinstance(old_baselines, Mapping) else {}
    for name, entries in evaluation.baselines.items():
        baselines[name] = _merged(_entries(baselines.get(name)), entries)
    return {
        "version": METRICS_VERSION,
        "data": distilled.info.data,
        "method": distilled.method,
        "budget": {distilled.info.budget: distilled.budget, "stored_bytes": distilled.stored_bytes},
        "whole_bytes": distilled.info.stored_bytes,
        "results": _merged(old_results, evaluation.results),
        "baselines": baselines,
        "seconds": distilled.seconds,
        "peak_memory_bytes": distilled.peak_memory_bytes,
        "device": distilled.device,
    }


def _entries(value: object) -> list[dict[str, object]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _merged(old: list[dict[str, object]], new: list[Entry]) -> list[dict[str, object]]:
    fresh = {(entry.judge, entry.metric) for entry in new}
    return [entry for entry in old if (entry.get("judge"), entry.get("metric")) not in fresh] + [e.plain() for e in new]


def subset_bytes(task: Task, budget: int) -> int:
    """Return the bytes of real samples at equal count, as the training set stores them."""
    info = task.describe()
    counts = allocate(budget, info.budget, task.labels, task.num_classes)
    return int(torch.ceil(counts.sum() * (info.sample_bytes or info.stored_bytes / info.num_train)))
