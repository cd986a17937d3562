"""Distil a task into a set: the loop around :class:`Distiller`, with checkpoints, resuming and clean stops."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, get_args

from mmdistill.budget import find_budget
from mmdistill.checks import require_checkpoint_every, require_kind
from mmdistill.composition import without_effect
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, note_kept
from mmdistill.execution import ranks
from mmdistill.execution.compilation import CompileMode
from mmdistill.execution.isolation import isolated
from mmdistill.execution.memory import explained
from mmdistill.execution.precision import Precision
from mmdistill.files.locks import sole_writer
from mmdistill.files.paths import users_path
from mmdistill.labels import LabelKind
from mmdistill.method import Method, Storage
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.architecture import described_layers, network_title
from mmdistill.parameterizations.codes import CODES, save_codes, undecodable
from mmdistill.progress import StepProgress, own_progress, step_bar
from mmdistill.registry import Schedule, get_domain, get_method, get_parameterization
from mmdistill.runs.advice import lowering_start
from mmdistill.runs.checkpoints import AUGMENTATION, DESCRIBED, Checkpoints, require_same, steps_of
from mmdistill.runs.folder import CHECKPOINTS, SET, is_finished, is_started, require_free
from mmdistill.runs.history import Reading, write_history
from mmdistill.runs.keeper import Keeper
from mmdistill.runs.loop import take_steps
from mmdistill.runs.mending import whole_set
from mmdistill.runs.stepper import Stepper
from mmdistill.runtime import Draws, checked_seed
from mmdistill.settings import Settings
from mmdistill.store import as_json, read_json
from mmdistill.task import Task, TaskInfo, require_task

logger = logging.getLogger(__name__)


def find_method(task: Task, method: Method | str, schedule: Schedule) -> tuple[Method, str]:
    """Return a method and its name, looking a name up in the task's domain, with the settings of a schedule.

    They are those for as many classes as the task has.

    Raises:
        ConfigError: neither a name nor a Method, an unknown name, or a schedule beside a Method.
    """
    if isinstance(method, Method):
        if schedule != "published":
            raise ConfigError("a schedule goes with a method's name; a Method has settings of its own")
        return method.for_classes(task.num_classes), method.title.lower()
    if not isinstance(method, str):
        raise ConfigError(f"a method is a name or a Method, got {type(method).__name__}")
    info = task.describe()
    found = get_method(get_domain(info.domain), method, info.data, schedule)
    return found.for_classes(task.num_classes), canonical(method)


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
    """Return the settings that :func:`distill` would take of a method, of which ``settings=`` replaces some.

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
        ConfigError: an unknown method, or a budget in another unit.
    """
    require_task(task)
    found, _ = find_method(task, method, schedule)
    found, size = find_budget(task, found, budget=budget, ipc=ipc, nodes=nodes, users=users, bytes=bytes, seed=0)
    return found.settings(size)


def find_parameterization(task: Task, parameterization: Storage | str) -> Storage:
    """Return a way of storing samples, looking a name up in the task's domain.

    Raises:
        ConfigError: neither a name nor a Storage, or an unknown name.
    """
    if isinstance(parameterization, Storage):
        return parameterization
    if not isinstance(parameterization, str):
        raise ConfigError(f"a parameterization is a name or a Storage, got {type(parameterization).__name__}")
    info = task.describe()
    return get_parameterization(get_domain(info.domain), parameterization, info.data)


@isolated
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
        task: what to distil, for example ``image_task("mnist")``; it serves one thread at a time.
        method: a :class:`Method` or its name.
        budget: the synthetic size in the task's unit; or give it by name as one of the next four.
        ipc: samples per class.
        nodes: nodes in all.
        users: users in all.
        bytes: the size in bytes, such as ``"100KB"``: the largest set within them.
        parameterization: how samples are stored, or its name; None is the method's own way.
        label: ``hard``, ``soft``, ``unrestricted`` or ``teacher``; None is the method's own kind.
        schedule: ``published`` settings, or ``reduced`` ones for a CPU, which some data sets have.
        seed: of everything random.
        settings: overrides of these settings, by field name of :class:`Settings`; ``lr`` is the learning rate of the
            samples.
        out: a folder for checkpoints and the finished set; None keeps nothing on disk.
        resume: continue from the newest checkpoint in ``out``, also to more steps than its run had or, while that is
            unfinished, to fewer, where their number changes nothing before it; ``"auto"`` does so where a run is
            unfinished, begins where there is none, and returns the set of a finished one, so that one call serves all
            three. It replaces nothing, so ``overwrite`` does not go with it.
        overwrite: replace a run in ``out``.
        checkpoint_every: steps between checkpoints; 0 means every tenth of the run, at least every ten minutes, and
            more often at first.
        progress: called with (steps done, steps in all, loss) whenever the loss is read back; True shows a bar, and
            what is to be known of how the data were read.
        name: how the set calls the method; its registered name or lower-case title by default.
        compile: ``auto`` compiles what the network does in runs long enough to repay it, ``on`` always; both capture
            steps on CUDA; ``off`` stays eager.
        precision: number formats: ``float32``, ``tf32``, ``mixed`` or ``bf16`` (see
            :mod:`mmdistill.execution.precision`); ``auto`` is ``float32`` on the CPU and ``mixed`` on CUDA.
    Returns:
        The distilled set, with the run's losses as its ``history``. On several processes (torchrun) every rank
            returns the same one, and the first writes it.
    Raises:
        ConfigError: an unknown method, a budget in another unit, an impossible composition, a folder that holds a run.
        DataError: more samples than a class has.
        UnsupportedError: a network that cannot give what the method reads.
        MemoryExhaustedError: out of memory; the message says what to lower.
        CheckpointError: nothing to resume from, damaged checkpoints, or those or a finished set of another run.
        NonFiniteError: a loss became NaN or infinite; with ``out``, the last good state is kept, be it the start.
        KeyboardInterrupt: Ctrl-C, after the step it came in; a note, and a warning in the log, say where the checkpoint
            is, or that without ``out`` there is none.
    """
    require_task(task)
    for option, value, known in (
        ("compile", compile, get_args(CompileMode)),
        ("precision", precision, get_args(Precision)),
        ("schedule", schedule, get_args(Schedule)),
    ):
        if value not in known:
            raise unknown_name(option, str(value), known)
    seed = checked_seed(seed)
    require_checkpoint_every(checkpoint_every)
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings are a mapping from names to values, got {type(settings).__name__}")
    told = own_progress(progress, "steps done, steps in all, loss")
    if resume not in (True, False, "auto"):
        raise ConfigError(f"resume is True, False or 'auto', got {resume!r}")
    require_kind(bool, overwrite=overwrite)
    require_kind(str, name=name)
    if resume == "auto" and overwrite:
        raise ConfigError("resume='auto' keeps what there is, which overwrite=True replaces: leave one of them out")
    if out == "":
        raise ConfigError("out is a folder, got ''; None keeps nothing on disk, and '.' is the current folder")
    if resume and out is None:
        raise ConfigError("resuming needs the folder of the run")
    usual, own_name = find_method(task, method, schedule)
    name = name or own_name
    storage = None if parameterization is None else find_parameterization(task, parameterization)
    found = usual.customised(storage, label, settings)
    found, size = find_budget(task, found, budget=budget, ipc=ipc, nodes=nodes, users=users, bytes=bytes, seed=seed)
    if settings and ranks.is_first():
        own = asdict(usual.settings(size))
        changed = {name: value for name, value in settings.items() if name not in own or own[name] != value}
        for unread in without_effect(task, found, size, changed):
            logger.warning("%s does not read %s, which changes nothing", found.title, unread)
    distiller = Distiller(task, found, size, seed=seed, precision=precision)
    folder = None if out is None else users_path(out)
    if folder is not None:
        require_free(folder, other="another folder")
    if resume is True and folder is not None and ranks.size() == 1 and not is_started(folder):
        raise CheckpointError(f"{folder} holds no checkpoint to resume from")  # ranks compare theirs when they restore
    writes, resume_auto = folder is not None and ranks.is_first(), resume == "auto"
    with ExitStack() as held:
        with ranks.together():
            if folder is not None and writes:
                held.enter_context(sole_writer(folder))
                if not (resume or overwrite):
                    require_free(folder, other="another folder", resume="resume=True", overwrite="overwrite=True")
        if folder is not None and resume == "auto":
            finished, started = ranks.gathered((is_finished(folder), is_started(folder)))[0]
            goes_further = finished and ranks.gathered(_goes_further(folder, distiller.settings.steps))[0]
            if finished and not goes_further and (whole := _finished(distiller, name, folder, precision == "auto")):
                return whole
            resume = started
        if progress is True and ranks.is_first():  # on the bar's stream
            for note in task.describe().notes:
                print(f"note: {note}", file=sys.stderr)
        with step_bar(f"{Path(task.describe().data).stem} {name}", visible=progress is True) as show:
            return _distilled(
                distiller,
                name,
                folder,
                bool(resume),
                compile,
                int(checkpoint_every),
                show if progress is True else told,
                label,
                again="with resume='auto'" if resume_auto else "with resume=True",
            )


def _goes_further(folder: Path, steps: int) -> bool:
    """Return whether the finished run of a folder is on its way to so many steps, by its newest checkpoint."""
    try:
        if steps_of(read_json(folder / SET)) in (None, steps):
            return False
    except CheckpointError:  # a damaged one, which its own run writes again
        return False
    newest = Checkpoints(folder / CHECKPOINTS, {}).newest()
    return newest is not None and steps_of(newest[1]) == steps


def _finished(distiller: Distiller, name: str, folder: Path, any_precision: bool) -> DistilledSet | None:
    """Return the set of a run that its folder holds, once it is known to be the one that is asked for.

    None where that is damaged, and the run's last checkpoint makes it.

    Args:
        distiller: of the run that is asked for.
        name: what its set calls the method.
        folder: of the run.
        any_precision: whether none was asked for; another device may have had another one.
    Raises:
        CheckpointError: it is another one's, or damaged for good.
    """
    found, own = whole_set(folder, logger.warning), identity(distiller, name)
    if found is None:
        Checkpoints(folder / CHECKPOINTS, own).require_own()
        return None
    saved = {
        **_of_data(found.info),
        **({"network": found.network} if found.network else {}),
        "method": found.method,
        "parameterization": found.parameterization,
        **({"label": found.label} if found.label in get_args(LabelKind) else {}),  # others say what labels are
        "budget": found.budget,
        "seed": found.seed,
        "settings": found.settings,
        DESCRIBED: found.described,
        **({} if any_precision else {"precision": found.precision}),
    }
    compared = {key: own[key] for key in saved}
    if found.network:
        compared["network"] = network_title(distiller.task)
    try:
        require_same(folder / SET, saved, compared)
        # Checkpoints know the network's layers too. How many processes there were, in which formats they computed, and
        # how many steps there shall be, matters to a run that goes on.
        going_on = ("processes", "precision", "settings")
        Checkpoints(folder / CHECKPOINTS, {key: own[key] for key in own if key not in going_on}).require_own()
    except CheckpointError as error:
        fewer = (steps_of(saved) or 0) < distiller.settings.steps
        further = "take the run further with resume=True, " if fewer and steps_of(saved) else ""
        ways = f"{further}choose another folder, or leave resume out with overwrite=True"
        raise CheckpointError(f"{error}; {ways}") from None
    return found


def _distilled(
    distiller: Distiller,
    name: str,
    folder: Path | None,
    resume: bool,
    compile: CompileMode,
    checkpoint_every: int,
    progress: StepProgress | None,
    label: LabelKind | None,
    again: str,
) -> DistilledSet:
    """Return the set of a whole run, begun or resumed in a folder that no other process writes into."""
    began = time.perf_counter()
    with ranks.first_alone(), explained("the start of the distillation", lowering_start(distiller.settings)):
        run = distiller.start()
        if resume:
            distiller.schedule.require_ready(distiller.task)
        distiller.schedule.make_ready(distiller.task)
    labels = run.parameterization.labels
    if label not in (None, labels.kind) and ranks.is_first():
        own = labels.title
        logger.warning("the samples come with labels of their own (%s): label %s is not read", own or "none", label)
    if folder is not None and (reason := undecodable(run.parameterization, distiller.draws.seed)):
        raise ConfigError(f"{reason}; mend it, or take the kind out of mmdistill.parameterizations.codes.KINDS")
    run.share()
    keeper = None if folder is None else Keeper(folder, identity(distiller, name), checkpoint_every, began)
    if keeper is not None:
        if resume:
            keeper.resume(run, distiller.task.device)
            if run.step < distiller.steps and distiller.exhausted(run) and ranks.is_first():
                logger.info("patience ended this run at step %d, so it takes no further ones", run.step)
        else:
            keeper.begin(run)
    if run.setup_seconds is not None:
        run.setup_seconds += time.perf_counter() - began
    with _interruptions_noted(keeper, again):
        interrupted = take_steps(distiller, Stepper(distiller, compile), run, keeper, progress)
    seconds = time.perf_counter() - began if keeper is None else keeper.seconds
    result = distiller.result(run, name, seconds)
    result.require_finite()
    result = replace(
        result,
        path=run.path,
        compile_seconds=run.compile_seconds,
        setup_seconds=run.setup_seconds or 0.0,
        inner_seconds=run.inner_seconds if run.step else None,
        history=tuple(Reading(*entry) for entry in run.history),
    )

    def write(place: Path) -> None:
        if not result.history:  # that of others goes with the set
            write_history(place, ())
        with run.selected():
            save_codes(place / CODES, run.parameterization, distiller.draws.seed)
        result.save(place)  # last, since its distilled.json says that a run is finished

    if keeper is not None:
        keeper.finish(write, run.step)
    if interrupted:
        raise KeyboardInterrupt
    return result


@contextmanager
def _interruptions_noted(keeper: Keeper | None, again: str) -> Iterator[None]:
    """Have an interruption say where the run is kept, and in which way the same call goes on, or that nothing is."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if keeper is None:
            note_kept(stop, "nothing of this run is kept; with out=FOLDER the same call leaves checkpoints")
        elif not keeper.replaces and (kept := keeper.checkpoints.paths()):
            note_kept(stop, f"{kept[-1]} holds the run so far; the same call {again} goes on from there")
        raise


def _of_data(info: TaskInfo) -> dict[str, object]:
    """Return what tells the data of one run from those of another, as a task or a set describes them."""
    return {
        "fingerprint": info.fingerprint,
        "units": info.units,
        AUGMENTATION: info.preprocessing.get("augmentation"),
    }


def identity(distiller: Distiller, name: str) -> dict[str, object]:
    """Return what a checkpoint must share with the run that resumes it, as plain values."""
    found = {
        **_of_data(distiller.task.describe()),
        "method": name,
        "parameterization": distiller.method.storage,
        "label": distiller.method.label,
        "network": distiller.task.init(Draws(0, device=distiller.task.device)).shapes(),
        "layers": described_layers(distiller.task),
        "budget": distiller.budget,
        "seed": distiller.draws.seed,
        "settings": asdict(distiller.settings),
        "precision": distiller.precision,
        "processes": ranks.size(),
        DESCRIBED: distiller.described,
    }
    return as_json(found)
