"""Train on S, test on T: judges, and the baselines that stand beside every result."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from mmdistill.abilities import NamesJudges, ScoresRobustness, Selects, is_solved, judge_title
from mmdistill.allocation import allocate, available, short_classes
from mmdistill.checks import require_kind, require_sizes
from mmdistill.classification import pooled
from mmdistill.coresets import choose_samples, coreset, known_coresets
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError, DataError, MmdistillError, MmdistillWarning, UnsupportedError, note_kept
from mmdistill.evaluation import Evaluation, checked_scores, summarise
from mmdistill.execution.isolation import isolated
from mmdistill.execution.memory import explained
from mmdistill.names import baseline_names, canonical, in_words, split_names, unknown_name
from mmdistill.progress import judging_bar, own_progress
from mmdistill.runtime import Draws, checked_seed
from mmdistill.samples import checked_samples, in_float32
from mmdistill.task import Batch, Scores, Task, require_task

BASELINES = ("random", "herding", "whole")
"""What stands beside a result unless others are asked for."""
NAMED = {
    "judges": "those of your own have them in mmdistill.image.models.FAMILIES (networks) or in JUDGES of "
    "mmdistill.image.judges and mmdistill.recsys.judges",
    "baselines": "rules of your own have them in mmdistill.rules.RULES",
}
"""Where a user's code names what is judged by and beside."""
Progress = Callable[[int, int, str, Evaluation], object]
"""Called with (judgements done, in all, what is judged next, the results so far); in the end nothing is next."""
Tell = Callable[[int, str | None], None]
"""Called with a judge's place and name before it judges a source of samples, without a name before they are chosen."""
LOWER = "fewer networks at once (--networks-at-once), smaller minibatches (--judge-batch) or a narrower judge"
"""What takes less memory in judging."""


def find_judges(
    task: Task, names: Sequence[str] | None, own: str = "", unfit: dict[str, str] | None = None
) -> list[str]:
    """Return judges' names in the task's spelling: those asked for, all of them, or the default one.

    Args:
        task: the task.
        names: what was asked for; none: the default.
        own: the judge of a set's own method, which is the default where there is one; else the task's first is.
        unfit: takes the reasons of judges that cannot read such data, unless none of them can.
    Raises:
        ConfigError: an unknown judge.
        UnsupportedError: one that cannot read such data, without ``unfit``; with it, none can.
    """
    refused: list[tuple[str, UnsupportedError]] = []
    names = names or [own or task.judges[0]]
    known = {canonical(judge): judge for judge in task.judges}
    found: list[str] = []
    for name in names:
        if canonical(name) not in (*known, "all") and not isinstance(task, NamesJudges):
            raise unknown_name("judge", name, task.judges)
        for judge in task.judges if canonical(name) == "all" else (known.get(canonical(name), name),):
            try:
                found.append(task.judge_name(judge) if isinstance(task, NamesJudges) else judge)
            except UnsupportedError as error:
                if unfit is None:
                    raise
                refused.append((judge, error))
    if refused and not found:
        raise refused[0][1]
    if unfit is not None:
        unfit |= {name: str(error) for name, error in refused}
    return list(dict.fromkeys(found))


def find_baselines(task: Task, asked: str | Sequence[str]) -> list[str]:
    """Return baselines that are asked for, each once: names, comma-separated or in a list; ``all`` that a task has.

    Raises:
        ConfigError: an unknown baseline.
    """
    known = ("random", *known_coresets(), "whole", *(task.selections if isinstance(task, Selects) else ()))
    names = baseline_names(asked) if isinstance(asked, str) else [canonical(name) for name in asked]
    if unknown := [name for name in names if name not in (*known, "all")]:
        raise unknown_name("baseline", unknown[0], known)
    every = [name for name in known if name != "craig" or task.num_classes is not None]  # which compares classes
    return list(dict.fromkeys(found for name in names for found in (every if name == "all" else (name,))))


def require_networks(n: int, at_once: int | None) -> None:
    """Check how many networks shall judge, and how many of them train together.

    Raises:
        ConfigError: none.
    """
    if n is None:
        raise ConfigError("the number of networks is a whole number of at least 1, got None")
    require_sizes(**{"the number of networks": n, "the number of networks at once": at_once})


@isolated
def evaluate(
    task: Task,
    distilled: DistilledSet | Batch,
    *,
    judges: Sequence[str] | None = None,
    n: int = 5,
    at_once: int | None = None,
    seed: int | None = None,
    baselines: Sequence[str] = BASELINES,
    robust: bool = False,
    baselines_only: bool = False,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Judge a distilled set on untouched test data, with baselines at equal count.

    Each judge is trained from scratch n times with its own initialisation and order, and its last epoch counts (or the
    epoch that *validation* data choose, where the domain's protocol says so). A judge that fails, for want of memory
    say, does not take the others' scores with it; only if all fail is that an error.

    Args:
        task: the task.
        distilled: a set; or a bare batch of samples, which has no budget and of the baselines only ``whole``.
        judges: names, ``["all"]``, or None for the default: the judge that the set's method names (``ntk`` of KIP), or
            the task's first; one text may name several, as on the command line (``"mlp,vit"``).
        n: networks per judge.
        at_once: of these, trained together, which bounds the memory; None: all. Another number means other networks.
            Networks for robust scores train one at a time.
        seed: of judging; by default that of the set's distillation, of which judging draws independently, so that the
            judges of repetitions are independent too; of a bare batch 0.
        baselines: any of ``random``, ``herding``, ``k-center``, ``k-means``, ``craig``, ``whole``, the task's own
            selections and rules of your own; ``"all"`` are all of these, ``()`` or ``"none"`` none.
        robust: give the label-robust and the augmentation-robust score instead, which have their own comparisons.
        baselines_only: judge the baselines alone, where results of the set itself are known.
        progress: called before samples are chosen, before each judgement and in the end, so that what is finished can
            be shown and kept; True shows a bar.
    Returns:
        The scores of the set and of its baselines by judge and metric, as fractions; ``print`` shows them as a table.
    Raises:
        ConfigError: an unknown judge or baseline, or n below 1.
        UnsupportedError: robust scores of a task that has none.
        CheckpointError: the set belongs to another task.
        MmdistillError: no judge can judge, with the last one's reason.

        Any error that comes when something is judged, an interruption (Ctrl-C) above all, has that as its attribute
        ``so_far``, an :class:`~mmdistill.evaluation.Evaluation`: ``sys.last_value.so_far`` in a notebook's next cell.
    """
    require_task(task)
    require_kind(bool, robust=robust, baselines_only=baselines_only)
    if robust and baselines_only:
        raise ConfigError("robust scores are the set's own and have no baselines to judge alone")
    judges = _names("judges", split_names(judges) if isinstance(judges, str) else judges or ())
    require_networks(n, at_once)
    own = distilled.seed if isinstance(distilled, DistilledSet) else 0
    seed = checked_seed(own if seed is None else seed)
    asked = find_baselines(task, baselines if isinstance(baselines, str) else _names("baselines", baselines))
    batch, budget, learned = _placed(task, distilled)
    if budget is None and baselines is not BASELINES and (left := [name for name in asked if name != "whole"]):
        said = f"a bare batch has no budget at which {in_words(left)} could be chosen, so it is judged without"
        warnings.warn(said, MmdistillWarning, stacklevel=2)
    baselines = asked
    began = time.perf_counter()
    unfit: dict[str, str] = {}
    names = find_judges(task, judges, distilled.judge if isinstance(distilled, DistilledSet) else "", unfit)
    judging = _Judging(task, names, n, at_once, Draws(seed, ("evaluate",), task.device), unfit)
    results: list[Scores] = []
    found: dict[str, list[Scores]] = {}
    sources = 1 if robust else 1 + len(baselines)

    class_names, usual = task.describe().class_names, task.judges[0]
    if usual in names:  # else no score is of it, and it may not fit the data at all
        usual = judge_title(task, usual)

    def so_far() -> Evaluation:
        beside = {name: summarise(scores, class_names) for name, scores in found.items() if scores}
        own, seconds = summarise(results, class_names), time.perf_counter() - began
        return Evaluation(own, beside, seconds, dict(judging.failures), usual)

    with _kept(so_far), _shown(progress) as told:

        def begins(source: int, subject: str) -> Tell:
            def tell(index: int, judge: str | None) -> None:
                if told is not None:
                    what = subject if judge is None else f"{subject} by {judge}"
                    told(source * len(names) + index, sources * len(names), what, so_far())

            return tell

        tell = begins(0, "the distilled set")
        if robust:
            classes = distilled.classes if isinstance(distilled, DistilledSet) else None
            judging.of_robustness(batch, budget, learned, classes, results, tell)
        else:
            if not baselines_only:
                judging.of_set(batch, learned, results, tell)
            for source, name in enumerate(baselines, start=1):
                judging.of_baseline(name, budget, found.setdefault(name, []), begins(source, name))
        evaluation = so_far()
        if told is not None:
            told(sources * len(names), sources * len(names), "", evaluation)
        return evaluation


@contextmanager
def _kept(so_far: Callable[[], Evaluation]) -> Iterator[None]:
    """Have an error carry what is judged when it comes."""
    try:
        yield
    except BaseException as error:
        found = so_far()
        if found.results or found.baselines:
            error.so_far = found  # type: ignore[attr-defined]
            said = "in an interactive session sys.last_value.so_far"
            note_kept(error, f"judging ended early; what is finished is the exception's so_far, an Evaluation ({said})")
        raise


@contextmanager
def _shown(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yield what is told of the judgements: a user's own function, or a bar; None where nothing is shown.

    Raises:
        ConfigError: something that cannot be called.
    """
    told = own_progress(progress, "judgements done, in all, what is judged next, the results so far")
    if progress is not True:
        yield told
        return
    with judging_bar() as show:
        yield lambda done, total, subject, so_far: show(done, total, subject)


def _names(what: str, given: object) -> Sequence[str]:
    """Return names that were asked for, each once.

    Raises:
        ConfigError: something else than a list of names.
    """
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{what} are names, got {given!r:.200}; {NAMED[what]}")
    return list(dict.fromkeys(given))


def _placed(task: Task, distilled: DistilledSet | Batch) -> tuple[Batch, int | None, Mapping[str, Tensor]]:
    """Return a task's samples on its device, their budget, which a bare batch lacks, and what was learned with them.

    Raises:
        ConfigError: neither a set nor a batch.
        CheckpointError: a set of another task.
    """
    if isinstance(distilled, DistilledSet):
        distilled.require(task.describe())
        learned = {name: tensor.to(task.device) for name, tensor in distilled.learned.items()}
        batch = distilled.to(task.device)
        return in_float32(batch) if task.describe().forms else batch, distilled.budget, learned
    if not isinstance(distilled, Batch):
        raise ConfigError(f"a DistilledSet or a Batch of samples is judged, got {type(distilled).__name__}")
    return checked_samples(distilled).map(lambda tensor: tensor.to(task.device)), None, {}


@dataclass
class _Judging:
    """One evaluation: who judges, and what could not be judged or had.

    Args:
        task: the task.
        judges: their names.
        n: networks of each.
        at_once: of these, trained together; None: all.
        key: of all that is random.
        failures: reasons, by judge or baseline.
    """

    task: Task
    judges: list[str]
    n: int
    at_once: int | None
    key: Draws
    failures: dict[str, str] = field(default_factory=dict)

    def of_set(self, batch: Batch, learned: Mapping[str, Tensor], scores: list[Scores], tell: Tell) -> None:
        """Add a set's scores to others.

        Raises:
            MmdistillError: no judge can judge.
        """

        def score(judge: str) -> Scores:
            return self._judged(batch, judge, self.key.fold(judge), learned)

        _each(scores, self.judges, score, self.failures, tell)

    def of_robustness(
        self,
        batch: Batch,
        budget: int | None,
        learned: Mapping[str, Tensor],
        classes: Tensor | None,
        scores: list[Scores],
        tell: Tell,
    ) -> None:
        """Add both robust scores to others; without random samples at equal count, of the gap at hard labels alone.

        Raises:
            UnsupportedError: a task that has none.
            ConfigError: a bare batch, which has no equal count to compare with.
            MmdistillError: no judge can judge.
        """
        task = self.task
        if not isinstance(task, ScoresRobustness):
            raise UnsupportedError(f"{task.describe().domain} data have no robust scores; images have")
        if budget is None:
            raise ConfigError(
                "robust scores compare with random samples at equal count: give a distilled set, not a batch"
            )
        counts = self._counts(budget)

        def subset(draws: Draws) -> Batch:
            return coreset(self.task, "real", counts, draws)

        scorer, key = task.robust, self.key
        beside: Callable[[Draws], Batch] | None = subset
        try:
            choose_samples(self.task, "real", counts, key)
        except DataError as error:
            beside = None
            self.failures["the robust scores"] = f"they compare with random samples at equal count, and {error}"
        _each(
            scores,
            self.judges,
            lambda judge: scorer(batch, judge, key.fold(judge), self.n, learned, beside, classes),
            self.failures,
            tell,
        )

    def of_baseline(self, name: str, budget: int | None, scores: list[Scores], tell: Tell) -> None:
        """Add a baseline's scores to others; none where the task cannot offer it, or lacks memory or samples, say."""
        if budget is None and name != "whole":
            return
        able = [judge for judge in self.judges if judge not in self.failures]
        failed: dict[str, str] = {}
        try:
            tell(0, None)
            _each(scores, able, self._scorer(name, budget or 1), failed, tell)
        except MmdistillError as error:
            self.failures[f"the {name} baseline"] = str(error)
            return
        self.failures |= {f"the {name} baseline by {judge}": reason for judge, reason in failed.items()}

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


def _each(
    scores: list[Scores],
    judges: Sequence[str],
    score: Callable[[str], Scores],
    failures: dict[str, str],
    tell: Tell,
) -> None:
    """Add the scores of those judges that can judge, one by one; the reasons of the others go into ``failures``.

    Raises:
        MmdistillError: the last one's, where none can.
    """
    for index, judge in enumerate(judges):
        tell(index, judge)
        try:
            with explained(f"judging with {judge}", LOWER):
                scores.append(score(judge))
        except MmdistillError as error:
            failures[judge] = str(error)
            if not scores and judge == judges[-1]:
                raise
