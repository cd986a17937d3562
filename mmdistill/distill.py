"""What users call: :func:`distill`, from its arguments to a finished set (the steps are taken in ``runs/loop.py``)."""

import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar, get_args

from mmdistill.budget import GivenBudget, method_within_budget
from mmdistill.checks import require_checkpoint_every, require_kind
from mmdistill.composition import count_warning, without_effect
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, note_kept, require_choice
from mmdistill.execution import ranks
from mmdistill.execution.compilation import CompileMode
from mmdistill.execution.isolation import in_turn, isolated
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.execution.precision import Precision
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.labels import LabelKind, TeacherLabels
from mmdistill.method import Method, Storage
from mmdistill.names import canonical, in_words
from mmdistill.parameterizations.codes import CODES, save_codes, undecodable
from mmdistill.progress import StepProgress, own_progress, step_bar
from mmdistill.registry import Schedule, get_domain, get_method, get_parameterization
from mmdistill.runs.advice import lowering_start, rate_warning, skipped_warning, teacher_warning
from mmdistill.runs.finished import finished_set_or_resume, identity
from mmdistill.runs.folder import HISTORY, is_started, require_free
from mmdistill.runs.history import Reading, write_history
from mmdistill.runs.keeper import Keeper
from mmdistill.runs.loop import take_steps
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import Stepper
from mmdistill.runtime import checked_seed
from mmdistill.settings import Settings, known_names
from mmdistill.task import Task, one_tensor, require_task

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def find_method(task: Task, method: Method | str, schedule: Schedule) -> tuple[Method, str]:
    """Return a method, with its settings for the task's number of classes, and the method's name.

    A name is looked up among the methods of the task's domain, with the settings of ``schedule``.

    Raises:
        ConfigError: neither a name nor a Method, an unknown name or schedule, or a schedule beside a Method.
    """
    require_choice("schedule", schedule, get_args(Schedule))
    if isinstance(method, Method):
        if schedule != "published":
            raise ConfigError("a schedule goes with a method's name; a Method has settings of its own")
        return method.for_classes(task.num_classes), method.title.lower()
    if not isinstance(method, str):
        raise ConfigError(f"a method is a name or a Method, got {type(method).__name__}")
    info = task.describe()
    registered = get_method(get_domain(info.domain), method, info.data, schedule)
    return registered.for_classes(task.num_classes), canonical(method)


def method_settings(
    task: Task,
    method: Method | str,
    *,
    budget: int | None = None,
    ipc: int | None = None,
    nodes: int | None = None,
    users: int | None = None,
    bytes: str | int | None = None,
    schedule: Schedule = "published",
) -> Settings:
    """Return a method's settings as :func:`distill` would use them, before its ``settings=`` overrides.

    Args:
        task: what to distil.
        method: a name in the task's domain, or a :class:`~mmdistill.method.Method`.
        budget: how many synthetic samples, in the unit of the task; by their own names ``ipc`` (per class), ``nodes``
            or ``users`` (in all), or ``bytes``. One of them.
        ipc: see ``budget``.
        nodes: see ``budget``.
        users: see ``budget``.
        bytes: see ``budget``.
        schedule: ``published``, or ``reduced`` for a CPU.
    Raises:
        ConfigError: an unknown method or schedule, or a budget in another unit.
    """
    require_task(task)
    chosen, _ = find_method(task, method, schedule)
    chosen, size = method_within_budget(task, chosen, GivenBudget(budget, ipc, nodes, users, bytes))
    return chosen.settings(size)


def find_parameterization(task: Task, parameterization: Storage | str) -> Storage:
    """Return a way of storing samples; a name is looked up in the task's domain.

    Raises:
        ConfigError: neither a name nor a Storage, or an unknown name.
    """
    if isinstance(parameterization, Storage):
        return parameterization
    if not isinstance(parameterization, str):
        raise ConfigError(f"a parameterization is a name or a Storage, got {type(parameterization).__name__}")
    info = task.describe()
    return get_parameterization(get_domain(info.domain), parameterization, info.data)


def _settings_in_place(function: Callable[P, R]) -> Callable[P, R]:
    """Return a public function that says where a setting belongs which was given as an argument of its own."""
    arguments = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        settings = {"lr", *known_names()} - arguments.keys()
        if misplaced := {name: value for name, value in kwargs.items() if name in settings}:
            raise ConfigError(f"{in_words([*misplaced])}: settings are one argument, settings={misplaced!r:.200}")
        return function(*args, **kwargs)

    return checked


@in_turn
@isolated
@_settings_in_place
def distill(
    task: Task,
    method: Method | str,
    budget: int | None = None,
    *,
    ipc: int | None = None,
    nodes: int | None = None,
    users: int | None = None,
    bytes: str | int | None = None,
    parameterization: Storage | str | None = None,
    label: LabelKind | None = None,
    schedule: Schedule = "published",
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    out: Path | str | None = None,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    checkpoint_every: int = 0,
    progress: StepProgress | bool | None = None,
    name: str | None = None,
    compile: CompileMode = "auto",
    precision: Precision = "auto",
) -> DistilledSet:
    """Distil a task's training set into a tiny one.

    Args:
        task: what to distil, for example ``image_task("mnist")``; threads that share it take turns.
        method: a :class:`Method` or its name.
        budget: the synthetic size in the task's unit; or give it by name as one of the next four.
        ipc: samples per class.
        nodes: nodes in all.
        users: users in all.
        bytes: the size in bytes, such as ``"100KB"``: the largest set within them.
        parameterization: how samples are stored, or the name of such a way; None is the method's own.
        label: ``hard``, ``soft``, ``unrestricted`` or ``teacher``; None is the method's own kind.
        schedule: ``published`` settings, or ``reduced`` ones for a CPU, which some data sets have.
        seed: of everything random.
        settings: overrides of these settings, by field name of :class:`Settings`; ``lr`` is the learning rate of the
            samples.
        out: a folder for checkpoints and the finished set; None keeps nothing on disk.
        resume: continue from the newest checkpoint in ``out``. The number of steps may grow, or shrink while the run is
            unfinished, unless earlier steps depend on it. ``"auto"`` resumes an unfinished run, starts one where there
            is none, and returns the set of a finished one; it replaces nothing, so it excludes ``overwrite``.
        overwrite: replace a run in ``out``.
        checkpoint_every: steps between checkpoints; 0 means every tenth of the run, at least every ten minutes, and
            more often at first.
        progress: called with (steps done, steps in all, loss) whenever the loss is read back; True shows a bar, and
            notes on how the data were read.
        name: the method's name in the set; its registered name or lower-case title by default.
        compile: ``auto`` compiles the network's functions in runs long enough to repay it, ``on`` always; both capture
            steps on CUDA; ``off`` stays eager.
        precision: number formats: ``float32``, ``tf32``, ``mixed`` or ``bf16`` (see
            :mod:`mmdistill.execution.precision`); ``auto`` is ``float32`` on the CPU and ``mixed`` on CUDA.
    Returns:
        The distilled set, with the run's losses as its ``history``. On several processes (torchrun) every rank
            returns the same set, and the first writes it.
    Raises:
        ConfigError: an unknown method, a budget in another unit, an impossible composition, a folder that holds a run.
        DataError: more samples than a class has.
        UnsupportedError: a network that lacks what the method reads.
        MemoryExhaustedError: out of memory; the message says what to lower.
        CheckpointError: nothing to resume from, damaged checkpoints, or checkpoints or a finished set of another run.
        NonFiniteError: a loss became NaN or infinite; with ``out``, the last finite state is kept, or the initial one.
        KeyboardInterrupt: Ctrl-C, once the current step is done; a note, and a warning in the log, say where the
            checkpoint is, or that without ``out`` there is none.
    """
    require_task(task)
    require_choice("compile", compile, get_args(CompileMode))
    seed = checked_seed(seed)
    require_checkpoint_every(checkpoint_every)
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings are a mapping from names to values, got {type(settings).__name__}")
    callback = own_progress(progress, "steps done, steps in all, loss")
    require_kind(str, name=name)
    folder = _run_folder(out, resume, overwrite)
    base, method_name = find_method(task, method, schedule)
    name = name or method_name
    storage = None if parameterization is None else find_parameterization(task, parameterization)
    given = GivenBudget(budget, ipc, nodes, users, bytes)
    customised, size = method_within_budget(task, base.customised(storage, label, settings), given, seed)
    _warn_of_unread(task, base, customised, size, settings or {})
    distiller = Distiller(task, customised, size, seed=seed, precision=precision)
    with _sole_use(folder, refuse_runs=not (resume or overwrite)):
        resumes = bool(resume)
        if folder is not None and resume == "auto":
            finished, resumes = finished_set_or_resume(distiller, name, folder, precision == "auto")
            if finished is not None:
                return finished
        with _bar(task, name, visible=progress is True) as show:
            return _run_in_folder(
                distiller,
                folder,
                name=name,
                resume=resumes,
                compile=compile,
                checkpoint_every=int(checkpoint_every),
                progress=show if progress is True else callback,
                label=label,
                again="with resume='auto'" if resume == "auto" else "with resume=True",
            )


def _run_folder(out: Path | str | None, resume: bool | Literal["auto"], overwrite: bool) -> Path | None:
    """Return the folder of a run; refuse options that exclude each other and a folder with other content."""
    if resume not in (True, False, "auto"):
        raise ConfigError(f"resume is True, False or 'auto', got {resume!r}")
    require_kind(bool, overwrite=overwrite)
    if resume == "auto" and overwrite:
        raise ConfigError("resume='auto' keeps what there is, which overwrite=True replaces: leave one of them out")
    if out == "":
        raise ConfigError("out is a folder, got ''; None keeps nothing on disk, and '.' is the current folder")
    if out is None:
        if resume:
            raise ConfigError("resuming needs the folder of the run")
        return None
    folder = users_path(out)
    require_free(folder, other="another folder", writes=[HISTORY])
    if resume is True and ranks.size() == 1 and not is_started(folder):
        raise CheckpointError(f"{folder} holds no checkpoint to resume from")  # ranks compare theirs when they restore
    return folder


def _warn_of_unread(task: Task, base: Method, customised: Method, size: int, settings: Mapping[str, object]) -> None:
    """Warn of changed settings that the composition does not read."""
    if not settings or not ranks.is_first():
        return
    defaults = asdict(base.settings(size))
    changed = {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}
    for name, why in without_effect(task, customised, size, changed).items():
        logger.warning(why.format(name))


@contextmanager
def _sole_use(folder: Path | None, *, refuse_runs: bool) -> Iterator[None]:
    """Within this context no other process writes into the folder; with ``refuse_runs`` it must hold no run."""
    with ExitStack() as stack:
        with ranks.together():
            if folder is not None and ranks.is_first():
                stack.enter_context(sole_writer(folder))
                if refuse_runs:
                    require_free(folder, other="another folder", resume="resume=True", overwrite="overwrite=True")
        yield


@contextmanager
def _bar(task: Task, name: str, *, visible: bool) -> Iterator[StepProgress]:
    """Within this context a bar shows the steps, below the notes on how the data were read."""
    data = task.describe()
    if visible and ranks.is_first():
        for note in data.notes:
            print(f"note: {note}", file=sys.stderr)  # the bar's stream
    with step_bar(f"{Path(data.data).stem} {name}", visible=visible) as show:
        yield show


def _run_in_folder(
    distiller: Distiller,
    folder: Path | None,
    *,
    name: str,
    resume: bool,
    compile: CompileMode,
    checkpoint_every: int,
    progress: StepProgress | None,
    label: LabelKind | None,
    again: str,
) -> DistilledSet:
    """Start or resume a run in a folder that no other process writes into, take its steps, and return its set."""
    began = time.perf_counter()
    run = _start(distiller, resume, label)
    if folder is not None and (reason := undecodable(run.parameterization, distiller.draws.seed)):
        raise ConfigError(f"{reason}; mend it, or take the kind out of mmdistill.parameterizations.codes.KINDS")
    run.share()
    keeper = None if folder is None else Keeper(folder, identity(distiller, name), checkpoint_every, began)
    if keeper is not None and resume:
        keeper.resume(run, distiller.task.device)
        if run.step < distiller.steps and distiller.out_of_patience(run) and ranks.is_first():
            logger.info("patience ended this run at step %d, so it takes no further ones", run.step)
    elif keeper is not None:
        keeper.begin(run)
    run.setup_seconds += time.perf_counter() - began
    with _interruptions_noted(keeper, again):
        interrupted = take_steps(distiller, Stepper(distiller, compile), run, keeper, progress)
    result = _result(distiller, run, name, time.perf_counter() - began if keeper is None else keeper.seconds)
    if keeper is not None:
        keeper.finish(partial(_write, result, run, distiller.draws.seed), run.step)
    if interrupted:
        raise KeyboardInterrupt
    return result


def _start(distiller: Distiller, resume: bool, label: LabelKind | None) -> RunState:
    """Train or load what the run needs first (experts, generators) and return its initial state, also of a resumed run.

    A checkpoint is loaded into this state later.
    """
    with ranks.first_alone(), out_of_memory_advice("the start of the distillation", lowering_start(distiller.settings)):
        run = distiller.start()
        if resume:
            distiller.schedule.require_ready(distiller.task)
        distiller.schedule.make_ready(distiller.task)
    labels = run.parameterization.labels
    if label not in (None, labels.kind) and ranks.is_first():
        title = labels.title or "none"
        logger.warning("the samples come with labels of their own (%s): label %s is not read", title, label)
    return run


def _result(distiller: Distiller, run: RunState, name: str, seconds: float) -> DistilledSet:
    """Return the set of a run whose steps are done, with their times and losses.

    Raises:
        NonFiniteError: the set holds NaN or infinite values.
    """
    result = distiller.result(run, name, seconds)
    result.require_finite()
    for note in (
        count_warning(distiller.task, distiller.method, distiller.budget, len(result.batch.weight)),
        skipped_warning(run, distiller.settings.skip_above),
        rate_warning(result.learned),
        teacher_warning(result, distiller.schedule.gives_target),
    ):
        if note and ranks.is_first():
            logger.warning("%s", note)
    return replace(
        result,
        path=run.path,
        compile_seconds=run.compile_seconds,
        setup_seconds=run.setup_seconds,
        inner_seconds=run.inner_seconds if run.step else None,
        history=tuple(Reading(*entry) for entry in run.history),
    )


def _write(result: DistilledSet, run: RunState, seed: int, folder: Path) -> None:
    """Write a finished run's history, codes and set into a folder."""
    if not result.history:  # ``save`` writes one with losses
        write_history(folder, ())
    with run.selected():
        if isinstance(labels := run.parameterization.labels, TeacherLabels):
            labels.assign(one_tensor(result.batch.targets, "a teacher's labels"))
        save_codes(folder / CODES, run.parameterization, seed)
    result.save(folder)  # last, since its distilled.json marks a finished run


@contextmanager
def _interruptions_noted(keeper: Keeper | None, again: str) -> Iterator[None]:
    """Within this context Ctrl-C notes where the run's checkpoint is and how to resume, or that nothing is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if keeper is None:
            note_kept(stop, "nothing of this run is kept; with out=FOLDER the same call leaves checkpoints")
        elif not keeper.replaces and (checkpoints := keeper.checkpoints.paths()):
            note_kept(stop, f"{checkpoints[-1]} holds the run so far; the same call {again} goes on from there")
        raise
