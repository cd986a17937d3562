"""Judging in progress: a set and its baselines by each judge in turn, and what is found so far."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from mmdistill.abilities import ScoresRobustness, is_solved, judge_title
from mmdistill.allocation import allocate, available, short_classes
from mmdistill.classification import pooled
from mmdistill.coresets import choose_samples, coreset
from mmdistill.errors import ConfigError, DataError, MmdistillError, UnsupportedError
from mmdistill.evaluation import Evaluation, checked_scores, summarise
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores, Task

Progress = Callable[[int, int, str, Evaluation], object]
"""Called with (judgements done, in all, what is judged next, the results so far); in the end nothing is next."""
LOWER = "fewer networks at once (--networks-at-once), smaller minibatches (--judge-batch) or a narrower judge"
"""What takes less memory in judging."""


class SetToJudge(NamedTuple):
    """What is to be judged: samples on a task's device and, of a set, what travels with them.

    Args:
        batch: the samples.
        budget: in the task's unit; None of a bare batch.
        learned: what was learned with them.
        classes: that they stand for, where their labels need not say it.
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
    """One evaluation on its way: who judges, what they found, and what could not be judged or had.

    Args:
        task: the task.
        judges: their names.
        n: networks of each.
        at_once: of these, trained together; None: all.
        key: of all that is random.
        failures: reasons, by judge or baseline; at first those of judges that cannot read such data.
        sources: how many sources of samples are judged, the set among them though it may be left out.
        told: what is told of each judgement, see :data:`Progress`; None: nobody is.
        source: the number of the one that is judged now.
        results: scores of the set.
        baselines: scores of baselines, by name.
        began: when it did.
    """

    task: Task
    judges: list[str]
    n: int
    at_once: int | None
    key: Draws
    failures: dict[str, str]
    sources: int
    told: Progress | None = None
    source: int = 0
    results: list[Scores] = field(default_factory=list)
    baselines: dict[str, list[Scores]] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def so_far(self) -> Evaluation:
        """Return what is judged."""
        names, usual = self.task.describe().class_names, self.task.judges[0]
        own = summarise(self.results, names)
        beside = {name: summarise(scores, names) for name, scores in self.baselines.items() if scores}
        if usual in self.judges:  # else no score is of it, and it may not fit the data at all
            usual = judge_title(self.task, usual)
        return Evaluation(own, beside, time.perf_counter() - self.began, dict(self.failures), usual)

    def ended(self) -> Evaluation:
        """Tell that all is judged; returns what was found."""
        self.source = self.sources
        self._tell("")
        return self.so_far()

    def judge_set(self, given: SetToJudge) -> None:
        """Judge a set.

        Raises:
            MmdistillError: no judge can judge.
        """

        def score(judge: str) -> Scores:
            return self._judged(given.batch, judge, self.key.fold(judge), given.learned)

        self._each("the distilled set", self.judges, score, self.results, self.failures)

    def judge_robustness(self, given: SetToJudge) -> None:
        """Give a set both robust scores; without random samples at equal count, the gap at hard labels alone.

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
        beside: Callable[[Draws], Batch] | None = partial(coreset, task, "real", counts)
        try:
            choose_samples(task, "real", counts, key)
        except DataError as error:
            beside = None
            self.failures["the robust scores"] = f"they compare with random samples at equal count, and {error}"

        def score(judge: str) -> Scores:
            return scorer(given.batch, judge, key.fold(judge), self.n, given.learned, beside, given.classes)

        self._each("the distilled set", self.judges, score, self.results, self.failures)

    def judge_baseline(self, source: int, name: str, budget: int | None) -> None:
        """Judge a baseline, unless the task cannot offer it, or lacks memory or samples, say.

        Args:
            source: its number among all sources of samples.
            name: the baseline's.
            budget: of the set that it stands beside; None: there is none, and ``whole`` alone is judged.
        """
        if budget is None and name != "whole":
            return
        self.source = source
        able = [judge for judge in self.judges if judge not in self.failures]
        failed: dict[str, str] = {}
        try:
            self._tell(name)
            self._each(name, able, self._scorer(name, budget or 1), self.baselines.setdefault(name, []), failed)
        except MmdistillError as error:
            self.failures[f"the {name} baseline"] = str(error)
            return
        self.failures |= {f"the {name} baseline by {judge}": reason for judge, reason in failed.items()}

    def _tell(self, subject: str, index: int = 0) -> None:
        """Tell what is judged next, by the judge of an index."""
        if self.told is not None:
            each = len(self.judges)
            self.told(self.source * each + index, self.sources * each, subject, self.so_far())

    def _each(
        self,
        subject: str,
        judges: Sequence[str],
        score: Callable[[str], Scores],
        scores: list[Scores],
        failures: dict[str, str],
    ) -> None:
        """Add the scores of those judges that can judge, one by one; the reasons of the others go into ``failures``.

        Raises:
            MmdistillError: the last one's, where none can.
        """
        for index, judge in enumerate(judges):
            self._tell(f"{subject} by {judge}", index)
            try:
                with out_of_memory_advice(f"judging with {judge}", LOWER):
                    scores.append(score(judge))
            except MmdistillError as error:
                failures[judge] = str(error)
                if not scores and judge == judges[-1]:
                    raise

    def _judged(self, batch: Batch | None, judge: str, key: Draws, learned: Mapping[str, Tensor]) -> Scores:
        """Return a judge's scores; where not all of its networks shall train at once, they train in groups."""
        n, at_once, task = self.n, self.at_once, self.task
        if at_once is None or at_once >= n or is_solved(task, judge):  # whose groups would count as networks
            return self._scores(batch, judge, key, n, learned)
        sizes = {first: min(at_once, n - first) for first in range(0, n, at_once)}
        return pooled([self._scores(batch, judge, key.fold("group", at), size, learned) for at, size in sizes.items()])

    def _scores(self, batch: Batch | None, judge: str, key: Draws, n: int, learned: Mapping[str, Tensor]) -> Scores:
        """Return what the task's judge finds.

        Raises:
            ShapeError: something that is no scores.
        """
        return checked_scores(self.task.evaluate(batch, judge, key, n, learned), self.task)

    def _scorer(self, name: str, budget: int) -> Callable[[str], Scores]:
        """Return what judges a baseline by one judge.

        Raises:
            UnsupportedError: a task that cannot choose such samples.
        """
        task, key = self.task, self.key.fold(name)
        if name == "whole":
            return lambda judge: self._judged(None, judge, key.fold(judge), {})
        asked = self._counts(budget)
        counts, short = available(task, asked) if task.labels is not None else asked, short_classes(task, asked)
        note = f"{short}, fewer than the {int(asked.max())} at equal count, and gives all of them"

        def noted(scores: Scores) -> Scores:
            return replace(scores, notes=(*scores.notes, note)) if short else scores

        if name != "random":
            chosen = coreset(task, name, counts, key)
            return lambda judge: noted(self._judged(chosen, judge, key.fold(judge), {}))
        # Every network sees another random subset, so the spread covers the choice.
        keys = [key.fold("subset", index) for index in range(self.n)]
        subsets = [coreset(task, "real", counts, own) for own in keys]
        pairs = list(zip(keys, subsets, strict=True))
        return lambda judge: noted(
            pooled([self._scores(subset, judge, own.fold(judge), 1, {}) for own, subset in pairs])
        )

    def _counts(self, budget: int) -> Tensor:
        """Return how many real samples of each class are as many as a budget's."""
        return allocate(budget, self.task.describe().budget, self.task.labels, self.task.num_classes)
