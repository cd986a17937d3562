"""Train on S, test on T: judge a set and the baselines beside it."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from mmdistill.abilities import DescribesJudges, Selects, TakesJudges, judge_facts
from mmdistill.checks import require_kind, require_size, require_sizes
from mmdistill.choices import known_selections
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError, MmdistillWarning, UnsupportedError, note_kept
from mmdistill.evaluation import Evaluation
from mmdistill.execution.isolation import in_turn, isolated
from mmdistill.judgements import EvaluationRun, SetToJudge
from mmdistill.judgements import Progress as Progress
from mmdistill.names import baseline_names, canonical, in_words, split_names, unknown_name
from mmdistill.networks.architecture import OWN
from mmdistill.networks.module import ModuleFactory
from mmdistill.progress import judging_bar, own_progress
from mmdistill.runtime import Draws, checked_seed
from mmdistill.samples import checked_samples, in_float32
from mmdistill.task import Batch, Task, require_task

BASELINES = ("random", "herding", "whole")
"""The default baselines."""
NAMED = {
    "judges": "those of your own have them in a mapping, {'mine': lambda: Mine()}, in mmdistill.image.models.FAMILIES "
    "(networks) or in JUDGES of mmdistill.image.judges and mmdistill.recsys.judges",
    "baselines": "rules of your own have them in mmdistill.rules.RULES; a set of yours is judged by a call of its own",
}
"""Where a user's code registers judges and baselines, for messages."""


class JudgingRequest(NamedTuple):
    """A request to judge a set: arguments of :func:`evaluate`.

    Args:
        judges: their names.
        baselines: to judge beside the set.
        n: networks per judge.
        at_once: networks of a judge trained together; None: all.
        seed: of judging.
        baselines_only: judge only these, since the judges have judged the set.
        robust: whether to compute the robust scores.
    """

    judges: list[str]
    baselines: list[str]
    n: int
    at_once: int | None
    seed: int
    baselines_only: bool = False
    robust: bool = False


def find_judges(task: Task, names: Sequence[str] | None, own: str = "") -> list[str]:
    """Return judges' names in the task's spelling: the given ones, all of them, or the default one.

    Args:
        task: the task.
        names: judges' names, ``all``, or ``none`` alone, which gives an empty list; no names: the default.
        own: the judge of the set's method, which is the default; empty: the task's first judge is.
    Raises:
        ConfigError: an unknown judge, or ``none`` among others.
        UnsupportedError: a judge cannot read such data.
    """
    if [*map(canonical, names or ())] == ["none"]:
        return []
    return list(dict.fromkeys(judge_facts(task, judge).name for judge in _requested(task, names, own)))


def readable_judges(task: Task, names: Sequence[str] | None, own: str = "") -> tuple[list[str], dict[str, str]]:
    """Return those of the judges that can read such data, and why the others cannot, by name.

    Args:
        task: the task.
        names: as for :func:`find_judges`.
        own: likewise.
    Raises:
        ConfigError: an unknown judge.
        UnsupportedError: none of them can read such data.
    """
    readable: list[str] = []
    refused: dict[str, UnsupportedError] = {}
    for judge in _requested(task, names, own):
        try:
            readable.append(judge_facts(task, judge).name)
        except UnsupportedError as error:
            refused[judge] = error
    if refused and not readable:
        raise next(iter(refused.values()))
    return list(dict.fromkeys(readable)), {judge: str(error) for judge, error in refused.items()}


def _requested(task: Task, names: Sequence[str] | None, own: str) -> Iterator[str]:
    """Yield the requested judges one by one; an unknown one raises when it is its turn."""
    known = {canonical(judge): judge for judge in task.judges}
    for name in names or [own or task.judges[0]]:
        key = canonical(name)
        if key == "none":
            raise ConfigError("'none' is no judge: alone, where a set is made, it leaves judging for later")
        if key != "all" and key not in known and not isinstance(task, DescribesJudges):
            raise unknown_name("judge", name, task.judges)
        yield from task.judges if key == "all" else (known.get(key, name),)


def _with_networks(task: Task, judges: Mapping[str, ModuleFactory | None]) -> Task:
    """Return the task, or a copy that has a mapping's networks as judges.

    Raises:
        ConfigError: a name that no judge may get, or a network that does not fit.
        UnsupportedError: a task that takes no networks as judges.
    """
    for name, factory in judges.items():
        if factory is None:
            continue
        if not callable(factory):
            kind = type(factory).__name__
            raise ConfigError(f"the judge {name!r} is a function that makes a network, or None if known, got {kind}")
        if not isinstance(task, TakesJudges):
            raise UnsupportedError(f"{task.describe().domain} data are judged by name alone: {', '.join(task.judges)}")
        if not name.strip() or not name.isprintable() or set(name) & set(",[]") or canonical(name) == "none":
            raise ConfigError(
                f"a judge's name is a text of some letters without commas and brackets, other than 'none'; got {name!r}"
            )
        if canonical(name) == OWN or _is_judge(task, name):
            raise ConfigError(f"{name!r} is the name of another judge; call your network otherwise")
        try:
            task = task.with_judge(name, factory)
        except ConfigError as error:
            raise ConfigError(f"the judge {name!r}: {error}") from error
    return task


def _is_judge(task: Task, name: str) -> bool:
    """Return whether a task knows a judge of a name, even if it cannot read such data."""
    try:
        find_judges(task, [name])
    except UnsupportedError:
        return True
    except ConfigError:
        return False
    return True


def find_baselines(task: Task, requested: str | Sequence[str]) -> list[str]:
    """Return the baselines to judge, each once, from names, comma-separated or in a list; ``all`` are the task's.

    Raises:
        ConfigError: an unknown baseline.
    """
    known = (*known_selections(), "whole", *(task.selections if isinstance(task, Selects) else ()))
    names = baseline_names(requested) if isinstance(requested, str) else [canonical(name) for name in requested]
    if unknown := [name for name in names if name not in (*known, "all")]:
        raise unknown_name("baseline", unknown[0], known)
    fitting = [name for name in known if name != "craig" or task.num_classes is not None]  # CRAIG needs classes
    return list(dict.fromkeys(baseline for name in names for baseline in (fitting if name == "all" else (name,))))


def require_networks(n: int, at_once: int | None) -> None:
    """Check the numbers of networks that judge and that train together.

    Raises:
        ConfigError: a number below 1.
    """
    require_size("the number of networks", n)
    require_sizes(**{"the number of networks at once": at_once})


@in_turn
@isolated
def evaluate(
    task: Task,
    distilled: DistilledSet | Batch,
    *,
    judges: Sequence[str] | Mapping[str, ModuleFactory | None] | None = None,
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
    epoch that *validation* data choose, where the domain's protocol says so). If a judge fails, for lack of memory say,
    the others' scores stay; only if all fail is an error raised.

    Args:
        task: the task.
        distilled: a set; or a bare batch of samples, which has no budget and so no baseline but ``whole``.
        judges: names, ``["all"]``, or None for the default: the judge that the set's method names (``ntk`` of KIP), or
            the task's first; one text may name several, as on the command line (``"mlp,vit"``). Networks of your own
            are a mapping from names, which no judge has, to functions that make them, as for a task's ``model``:
            ``{"tv": lambda: resnet18(num_classes=10), "mlp": None}``; with None the name is a known judge's.
        n: networks per judge.
        at_once: networks of a judge trained together, which bounds the memory; None: all. Another number means other
            networks. Networks for robust scores train one at a time.
        seed: of judging; by default that of the set's distillation, from which judging draws independently, so that
            repetitions have independent judges too; for a bare batch 0.
        baselines: any of ``random``, ``herding``, ``k-center``, ``k-means``, ``craig``, ``whole``, the task's own
            selections and rules of your own; ``"all"`` are all of these, ``()`` or ``"none"`` none.
        robust: give the label-robust and the augmentation-robust score instead, which have their own comparisons.
        baselines_only: judge the baselines alone, if results of the set itself are known.
        progress: called before samples are chosen, before each judgement and at the end, so that finished results can
            be shown and saved; True shows a bar.
    Returns:
        The scores of the set and of its baselines by judge and metric, as fractions; ``print`` shows them as a table.
    Raises:
        ConfigError: an unknown judge or baseline, no judge at all (``[]``), a network that does not fit or goes by
            another judge's name, or n below 1.
        UnsupportedError: robust scores or networks as judges of a task that takes none.
        CheckpointError: the set belongs to another task.
        MmdistillError: no judge can judge; the message is the last one's.

        An error or interruption (Ctrl-C) after the first results carries them as its attribute ``so_far``, an
        :class:`~mmdistill.evaluation.Evaluation`: ``sys.last_value.so_far`` in a notebook's next cell.
    """
    require_task(task)
    require_kind(bool, robust=robust, baselines_only=baselines_only)
    if robust and baselines_only:
        raise ConfigError("robust scores are the set's own and have no baselines to judge alone")
    networks = judges if isinstance(judges, Mapping) else {}
    listed = split_names(judges) if isinstance(judges, str) else list(networks) or judges or ()
    requested = _names("judges", listed)
    if judges is not None and not requested:
        raise ConfigError(f"judges={judges!r} names none, so nothing would judge; None is the default judge")
    require_networks(n, at_once)
    beside = find_baselines(task, baselines if isinstance(baselines, str) else _names("baselines", baselines))
    given = _set_to_judge(task, distilled)
    task = _with_networks(task, networks)
    key = Draws(checked_seed(given.seed if seed is None else seed), ("evaluate",), task.device)
    sized = [name for name in beside if name != "whole"]
    if given.budget is None and baselines is not BASELINES and sized:
        message = f"a bare batch has no budget at which {in_words(sized)} could be chosen, so it is judged without"
        warnings.warn(message, MmdistillWarning, stacklevel=2)
    names, unfit = readable_judges(task, requested, given.judge)
    judging = EvaluationRun(task, names, n, at_once, key, unfit, 1 if robust else 1 + len(beside))
    with _attach_so_far(judging.so_far), _shown_progress(progress) as judging.progress:
        if robust:
            judging.judge_robustness(given)
        else:
            if not baselines_only:
                judging.judge_set(given)
            for source, name in enumerate(beside, start=1):
                judging.judge_baseline(source, name, given.budget)
        return judging.finish()


@contextmanager
def _attach_so_far(so_far: Callable[[], Evaluation]) -> Iterator[None]:
    """Within this context an error gets the results so far as its attribute ``so_far``."""
    try:
        yield
    except BaseException as error:
        evaluation = so_far()
        if evaluation.results or evaluation.baselines:
            error.so_far = evaluation  # type: ignore[attr-defined]
            note_kept(
                error,
                "judging ended early; what is finished is the exception's so_far, an Evaluation (in an interactive "
                "session sys.last_value.so_far)",
            )
        raise


@contextmanager
def _shown_progress(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yield the function to report progress to: the user's own, or a bar's; None if nothing is shown.

    Raises:
        ConfigError: something that cannot be called.
    """
    callback = own_progress(progress, "judgements done, in all, what is judged next, the results so far")
    if progress is not True:
        yield callback
        return
    with judging_bar() as show:
        yield lambda done, total, subject, so_far: show(done, total, subject)


def _names(what: str, given: object) -> Sequence[str]:
    """Return the given names, each once.

    Raises:
        ConfigError: something else than a list of names.
    """
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{what} are names, got {_in_brief(given)}; {NAMED[what]}")
    return list(dict.fromkeys(given))


def _in_brief(given: object) -> str:
    """Return a value in words, networks and functions by their class, since those of networks take pages."""
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(_in_brief, given))}]"
    return f"a {type(given).__name__}" if callable(given) else f"{given!r:.200}"


def _set_to_judge(task: Task, distilled: DistilledSet | Batch) -> SetToJudge:
    """Return a set or batch as judges take it, on the task's device, once a set is known to be of the task.

    Raises:
        ConfigError: neither a set nor a batch.
        CheckpointError: a set of another task.
    """
    if isinstance(distilled, DistilledSet):
        distilled.require(task.describe())
        batch = distilled.to(task.device)
        batch = in_float32(batch) if task.describe().forms else batch
        learned = {name: tensor.to(task.device) for name, tensor in distilled.learned.items()}
        return SetToJudge(batch, distilled.budget, learned, distilled.classes, distilled.judge, distilled.seed)
    if not isinstance(distilled, Batch):
        raise ConfigError(f"a DistilledSet or a Batch of samples is judged, got {type(distilled).__name__}")
    return SetToJudge(checked_samples(distilled).map(lambda tensor: tensor.to(task.device)))
