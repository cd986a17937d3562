"""An evaluation in progress: the set and its baselines by each judge in turn, with the results so far."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from mmdistill.abilities import ScoresRobustness, given_network, is_solved, judge_facts, judge_title
from mmdistill.allocation import allocate, available, short_classes
from mmdistill.classification import pooled
from mmdistill.coresets import choose_samples, coreset
from mmdistill.errors import ConfigError, DataError, MmdistillError, UnsupportedError
from mmdistill.evaluation import Entry, Evaluation, checked_scores, summarise
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.metrics import judging_record
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores, Task

Progress = Callable[[int, int, str, Evaluation], object]
"""Called with (judgements done, in all, what is judged next, the results so far); at the end, next is empty."""
LOWER = "fewer networks at once (--networks-at-once), smaller minibatches (--judge-batch) or a narrower judge"
"""Advice on judging with less memory."""


class SetToJudge(NamedTuple):
    """Samples to judge, on the task's device, with the facts about their set.

    Args:
        batch: the samples.
        budget: in the task's unit; None for a bare batch.
        learned: tensors learned beside the samples.
        classes: the samples' classes, if their labels need not tell.
        judge: of the set's method; empty: the task's first.
        seed: of the distillation.
    """

    batch: Batch
    budget: int | None = None
    learned: Mapping[str, Tensor] = {}
    classes: Tensor | None = None
    judge: str = ""
    seed: int = 0


@dataclass
class EvaluationRun:
    """One evaluation in progress: its judges, their scores so far, and failures.

    Args:
        task: the task.
        judges: their names.
        n: networks of each.
        at_once: networks trained together; None: all.
        key: of all randomness.
        failures: reasons, by judge or baseline; at first those of judges that cannot read such data.
        sources: the number of sources of samples; the set counts even if it is not judged.
        progress: called before each judgement, see :data:`Progress`; None: not reported.
        source: the index of the source that is judged now.
        results: scores of the set.
        baselines: scores of baselines, by name.
        began: start time.
    """

    task: Task
    judges: list[str]
    n: int
    at_once: int | None
    key: Draws
    failures: dict[str, str]
    sources: int
    progress: Progress | None = None
    source: int = 0
    results: list[Scores] = field(default_factory=list)
    baselines: dict[str, list[Scores]] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def so_far(self) -> Evaluation:
        """Return the results so far."""
        usual, results = self.task.judges[0], self._entries(self.results)
        baselines = {name: self._entries(scores) for name, scores in self.baselines.items() if scores}
        if usual in self.judges:  # otherwise no score is its own, and it may not fit the data at all
            usual = judge_title(self.task, usual)
        return Evaluation(results, baselines, time.perf_counter() - self.began, dict(self.failures), usual)

    def _entries(self, scores: Sequence[Scores]) -> list[Entry]:
        """Summarise scores; entries of a network that the user gave as a judge say which one it is."""
        records = {
            judge_title(self.task, judge): judging_record(self.task, judge)
            for judge in self.judges
            if given_network(judge_facts(self.task, judge))
        }
        entries = summarise(scores, self.task.describe().class_names)
        return [replace(entry, judging=records.get(entry.judge, {})) for entry in entries]

    def finish(self) -> Evaluation:
        """Report that all is judged, and return the results."""
        self.source = self.sources
        self._report_progress("")
        return self.so_far()

    def judge_set(self, given: SetToJudge) -> None:
        """Judge a set.

        Raises:
            MmdistillError: no judge can judge.
        """

        def score(judge: str) -> Scores:
            return self._judge(given.batch, judge, self.key.fold(judge), given.learned)

        self._score_each("the distilled set", self.judges, score, self.results, self.failures)

    def judge_robustness(self, given: SetToJudge) -> None:
        """Give a set both robust scores, or the gap at hard labels alone if a class has too few real samples.

        Raises:
            UnsupportedError: a task that has none.
            ConfigError: a bare batch, which has no equal count to compare with.
            MmdistillError: no judge can judge.
        """
        task, key = self.task, self.key
        if not isinstance(task, ScoresRobustness):
            raise UnsupportedError(f"{task.describe().domain} data have no robust scores; images have")
        if given.budget is None:
            raise ConfigError(
                "robust scores compare with random samples at equal count: give a distilled set, not a batch"
            )
        counts, scorer = self._counts(given.budget), task.robust
        random_subset: Callable[[Draws], Batch] | None = partial(coreset, task, "real", counts)
        try:
            choose_samples(task, "real", counts, key)
        except DataError as error:
            random_subset = None
            self.failures["the robust scores"] = f"they compare with random samples at equal count, and {error}"

        def score(judge: str) -> Scores:
            return scorer(given.batch, judge, key.fold(judge), self.n, given.learned, random_subset, given.classes)

        self._score_each("the distilled set", self.judges, score, self.results, self.failures)

    def judge_baseline(self, source: int, name: str, budget: int | None) -> None:
        """Judge a baseline; an error (a task without it, too few samples or memory) becomes one of the failures.

        Args:
            source: its index among all sources of samples.
            name: the baseline's.
            budget: of the set beside it; None: a bare batch has none, and only ``whole`` is judged.
        """
        if budget is None and name != "whole":
            return
        self.source = source
        able = [judge for judge in self.judges if judge not in self.failures]
        failed: dict[str, str] = {}
        try:
            self._report_progress(name)
            self._score_each(name, able, self._scorer(name, budget or 1), self.baselines.setdefault(name, []), failed)
        except MmdistillError as error:
            self.failures[f"the {name} baseline"] = str(error)
            return
        self.failures |= {f"the {name} baseline by {judge}": reason for judge, reason in failed.items()}

    def _report_progress(self, subject: str, index: int = 0) -> None:
        """Report what is judged next, by the judge at an index."""
        if self.progress is not None:
            judges = len(self.judges)
            self.progress(self.source * judges + index, self.sources * judges, subject, self.so_far())

    def _score_each(
        self,
        subject: str,
        judges: Sequence[str],
        score: Callable[[str], Scores],
        scores: list[Scores],
        failures: dict[str, str],
    ) -> None:
        """Append each judge's scores to ``scores``, or the reason why it failed to ``failures``.

        Raises:
            MmdistillError: the last judge's, if all fail.
        """
        for index, judge in enumerate(judges):
            self._report_progress(f"{subject} by {judge}", index)
            try:
                with out_of_memory_advice(f"judging with {judge}", LOWER):
                    scores.append(score(judge))
            except MmdistillError as error:
                failures[judge] = str(error)
                if not scores and judge == judges[-1]:
                    raise

    def _judge(self, batch: Batch | None, judge: str, key: Draws, learned: Mapping[str, Tensor]) -> Scores:
        """Return a judge's scores, its networks trained in groups of ``at_once``."""
        n, at_once = self.n, self.at_once
        # A judge solved in closed form gives one score for a whole call, so its groups would count as networks.
        if at_once is None or at_once >= n or is_solved(self.task, judge):
            return self._evaluate(batch, judge, key, n, learned)
        groups = [
            self._evaluate(batch, judge, key.fold("group", first), min(at_once, n - first), learned)
            for first in range(0, n, at_once)
        ]
        return pooled(groups)

    def _evaluate(self, batch: Batch | None, judge: str, key: Draws, n: int, learned: Mapping[str, Tensor]) -> Scores:
        """Return the checked scores of the task's judge.

        Raises:
            ShapeError: the task returns something else.
        """
        return checked_scores(self.task.evaluate(batch, judge, key, n, learned), self.task)

    def _scorer(self, name: str, budget: int) -> Callable[[str], Scores]:
        """Return a function from a judge's name to its scores of a baseline, whose samples are chosen here.

        Raises:
            UnsupportedError: a task that cannot choose such samples.
        """
        task, key = self.task, self.key.fold(name)
        if name == "whole":
            return lambda judge: self._judge(None, judge, key.fold(judge), {})
        equal = self._counts(budget)
        counts = available(task, equal) if task.labels is not None else equal
        short = short_classes(task, equal)
        note = f"{short}, fewer than the {int(equal.max())} at equal count, and gives all of them"

        def noted(scores: Scores) -> Scores:
            return replace(scores, notes=(*scores.notes, note)) if short else scores

        if name != "random":
            chosen = coreset(task, name, counts, key)
            return lambda judge: noted(self._judge(chosen, judge, key.fold(judge), {}))
        # Every network sees another random subset, so the standard deviation covers the choice of samples.
        keys = [key.fold("subset", index) for index in range(self.n)]
        subsets = [(network_key, coreset(task, "real", counts, network_key)) for network_key in keys]
        return lambda judge: noted(
            pooled([self._evaluate(subset, judge, network_key.fold(judge), 1, {}) for network_key, subset in subsets])
        )

    def _counts(self, budget: int) -> Tensor:
        """Return the number of real samples of each class at equal count with a budget, ``(C,)``."""
        return allocate(budget, self.task.describe().budget, self.task.labels, self.task.num_classes)
