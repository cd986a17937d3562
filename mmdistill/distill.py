"""Distil a task into a set: the loop around :class:`Distiller`, with checkpoints, resuming and clean stops."""

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import get_args

from torch import Tensor

from mmdistill import exports, ranks
from mmdistill.budget import find_budget
from mmdistill.checkpoints import Checkpoints
from mmdistill.compilation import CompileMode
from mmdistill.composition import without_effect
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, NonFiniteError
from mmdistill.labels import LabelKind
from mmdistill.memory import explained
from mmdistill.method import Method, Storage
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.architecture import described_layers
from mmdistill.parameterizations.codes import CODES, save_codes
from mmdistill.precision import Precision
from mmdistill.registry import Schedule, get_domain, get_method, get_parameterization
from mmdistill.run_folder import CHECKPOINTS, METRICS, SAMPLES, SET, holds_work, is_finished, is_started
from mmdistill.run_state import RunState
from mmdistill.runtime import Draws, checked_seed, sole_writer, sweep
from mmdistill.stepper import Stepper
from mmdistill.store import DistilledSet, write_json
from mmdistill.task import Task, require_task

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss), 200 times in a run and every two seconds."""

logger = logging.getLogger(__name__)

LOWER = (
    "fewer classes at once (--classes-at-once 1) or no kept activations (--kept-steps 0), both also with --resume, a "
    "smaller real batch (--real-batch), fewer inner steps in the method's settings, a smaller synthetic budget, or a "
    "narrower network (--width)"
)
"""What takes less memory in distilling."""
READS_PER_RUN = 200
"""How often the loss is read back in a run, besides its first step's; on CUDA each read waits for the device."""
LONGEST_UNSHOWN = 2.0
"""Seconds after which it is read to be shown, and no more than that, if the run is in one process."""
DIVERGED = 1000.0
"""A loss that is so many times the first one is warned of."""
LOWER_RATE = "Lower the learning rate (--lr, or lr among the settings)"
"""What to do about it."""
STAGED = ".finished"
"""Where a run that takes no step is written before it replaces a former one."""
LONGEST_UNSAVED = 600.0
"""Seconds after which a checkpoint is written, unless the user says when."""
FORMER = (
    *(SET, SAMPLES, CODES, METRICS, "history.json", "report.md", "report.html"),
    *("pictures/*.png", "pictures/*.md"),
)
"""What a run removes of a former one in its folder when it begins, so that nobody takes it for its own.

Its exports go too, by what they wrote down.
"""


def find_method(task: Task, method: Method | str, schedule: Schedule = "published") -> tuple[Method, str]:
    """Return a method and its name, looking a name up in the task's domain, with the settings of a schedule.

    Raises:
        ConfigError: neither a name nor a Method, an unknown name, or a schedule beside a Method.
    """
    if isinstance(method, Method):
        if schedule != "published":
            raise ConfigError("a schedule goes with a method's name; a Method has settings of its own")
        return method, method.title.lower()
    if not isinstance(method, str):
        raise ConfigError(f"a method is a name or a Method, got {type(method).__name__}")
    info = task.describe()
    return get_method(get_domain(info.domain), method, info.data, schedule), canonical(method)


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
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 0,
    progress: Progress | None = None,
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
        resume: continue from the newest checkpoint in ``out``.
        overwrite: replace a run in ``out``.
        checkpoint_every: steps between checkpoints; 0 means every tenth of the run, at least every ten minutes, and
            more often at first.
        progress: called with (steps done, steps in all, loss) whenever the loss is read back.
        name: how the set calls the method; its registered name or lower-case title by default.
        compile: ``auto`` compiles what the network does in runs long enough to repay it, ``on`` always; both capture
            steps on CUDA; ``off`` stays eager.
        precision: number formats: ``float32``, ``tf32``, ``mixed`` or ``bf16`` (see :mod:`mmdistill.precision`);
            ``auto`` is ``float32`` on the CPU and ``mixed`` on CUDA.
    Returns:
        The distilled set. On several processes (torchrun) every rank returns the same one, and the first writes it.
    Raises:
        ConfigError: an unknown method, a budget in another unit, an impossible composition, a folder that holds a run.
        DataError: more samples than a class has.
        UnsupportedError: a network that cannot give what the method reads.
        MemoryExhaustedError: out of memory; the message says what to lower.
        CheckpointError: nothing to resume from, damaged checkpoints, or those of another run.
        NonFiniteError: a loss became NaN or infinite; with ``out``, the last good checkpoint is kept.
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
    if type(checkpoint_every) is not int or checkpoint_every < 0:
        raise ConfigError(f"checkpoint_every is a number of steps, or 0 for a tenth of the run, got {checkpoint_every}")
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings are a mapping from names to values, got {type(settings).__name__}")
    if progress is not None and not callable(progress):
        raise ConfigError(
            f"progress is called with (steps done, steps in all, loss), got {type(progress).__name__}, which cannot be"
        )
    if out == "":
        raise ConfigError("out is a folder, got ''; None keeps nothing on disk, and '.' is the current folder")
    if resume and out is None:
        raise ConfigError("resuming needs the folder of the run")
    found, own_name = find_method(task, method, schedule)
    name = name or own_name
    storage = None if parameterization is None else find_parameterization(task, parameterization)
    found = found.customised(storage, label, settings)
    found, size = find_budget(task, found, budget=budget, ipc=ipc, nodes=nodes, users=users, bytes=bytes, seed=seed)
    if settings and ranks.is_first():
        for unread in without_effect(task, found, size, settings):
            logger.warning("%s does not read %s, which changes nothing", found.title, unread)
    distiller = Distiller(task, found, size, seed=seed, precision=precision)
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and a run needs a folder; choose another one")
    if resume and folder is not None and ranks.size() == 1 and not Checkpoints(folder / CHECKPOINTS, {}).paths():
        raise CheckpointError(f"{folder} holds no checkpoint to resume from")  # ranks compare theirs when they restore
    writes = folder is not None and ranks.is_first()
    with sole_writer(folder) if folder is not None and writes else nullcontext():  # before other ranks go on
        if folder is not None and writes and not (resume or overwrite):
            _require_free(folder)
        return _distilled(distiller, name, folder, resume, compile, checkpoint_every, progress)


def _distilled(
    distiller: Distiller,
    name: str,
    folder: Path | None,
    resume: bool,
    compile: CompileMode,
    checkpoint_every: int,
    progress: Progress | None,
) -> DistilledSet:
    """Return the set of a whole run, begun or resumed in a folder that no other process writes into."""
    task = distiller.task
    began = time.perf_counter()
    with ranks.first_alone(), explained("the start of the distillation", "a smaller budget or network"):
        run = distiller.start()
        distiller.schedule.make_ready(task)
    run.share()
    checkpoints = None if folder is None else Checkpoints(folder / CHECKPOINTS, identity(distiller, name))
    earlier = 0.0
    if resume and checkpoints is not None:
        earlier = checkpoints.restore(run, task.device)
    elif checkpoints is not None:
        sweep(checkpoints.folder)
    former = folder if folder is not None and not resume and holds_work(folder) else None
    stepper = Stepper(distiller, compile)
    former = _loop(distiller, stepper, run, checkpoints, former, checkpoint_every, progress, began - earlier)
    result = distiller.result(run, name, earlier + time.perf_counter() - began)
    result.require_finite()
    result = replace(result, path=run.path, compile_seconds=run.compile_seconds)
    if folder is not None and ranks.is_first():
        sweep(folder)
        with _making_way(former) if former is not None else nullcontext(folder) as place:
            history = {"step": [step for step, _ in run.history], "loss": [value for _, value in run.history]}
            write_json(place / "history.json", history)
            with distiller.selected(run):
                save_codes(place / CODES, run.parameterization, distiller.draws.seed)
            result.save(place)  # last, since its distilled.json says that a run is finished
    if former is not None and checkpoints is not None:
        checkpoints.clear()
    return result


@contextmanager
def _making_way(former: Path) -> Iterator[Path]:
    """Give a place for a finished run that took no step, which then takes that of the former one in the folder."""
    place = former / STAGED
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield place
        _remove(former)
        for path in sorted(place.iterdir(), key=lambda path: path.name == SET):
            path.replace(former / path.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove(former: Path) -> None:
    """Remove what a former run, its report and its exports left in a folder beside its checkpoints."""
    if ranks.is_first():
        for pattern in FORMER:
            for path in former.glob(pattern):
                path.unlink()
        exports.remove(former / "export")


def _require_free(folder: Path) -> None:
    """Refuse a folder that holds a run."""
    if is_finished(folder):
        raise ConfigError(f"{folder} already holds a finished run; choose another folder or pass overwrite=True")
    if is_started(folder):
        raise ConfigError(
            f"{folder} holds an unfinished run; continue it with resume=True, choose another folder or begin anew with "
            "overwrite=True"
        )


def _loop(
    distiller: Distiller,
    stepper: Stepper,
    run: RunState,
    checkpoints: Checkpoints | None,
    former: Path | None,
    checkpoint_every: int,
    progress: Progress | None,
    began: float,
) -> Path | None:
    """Step to the end; stop cleanly, with a checkpoint, on Ctrl-C and SIGTERM.

    A former run in the folder stays until the first step has shown that this one works, and is on disk; it is returned
    if there was no step.
    """
    steps = distiller.steps
    read_every = max(steps // READS_PER_RUN, 1)
    compiling, saved = run.compile_seconds, time.perf_counter()
    shown = saved
    validate_every = distiller.settings.validate_every
    with _stop_requests() as stop:
        while run.step < steps and not distiller.exhausted(run):
            with explained(f"step {run.step + 1} of the distillation", LOWER):
                run, loss = stepper(run)
            run.path, run.compile_seconds = stepper.path, compiling + distiller.compile_seconds
            last = run.step == steps
            if validate_every and (run.step % validate_every == 0 or last):
                _require_finite_state(run, loss, checkpoints)
                distiller.validate(run)
            ending = last or distiller.exhausted(run)
            reading = run.step % read_every == 0 or run.step == 1 or ending
            unsaved = checkpoints is not None and time.perf_counter() - saved > LONGEST_UNSAVED
            stopping, overdue = _agreed((stop.is_set(), unsaved and not checkpoint_every), reading)
            showing = progress is not None and ranks.size() == 1 and time.perf_counter() - shown > LONGEST_UNSHOWN
            if reading or stopping or showing:
                value = float(ranks.averages([loss.clone()])[0])
                _require_finite(run, value, checkpoints)
                if reading or stopping:  # not what the clock alone asked for, so that equal runs have equal histories
                    _warn_of_divergence(run, value)
                    run.history.append((run.step, value))
            due = overdue or _is_due(run.step, checkpoint_every, steps)
            if ending or stopping or former is not None or (checkpoints is not None and due):
                _require_finite_state(run, loss, checkpoints)
                if checkpoints is not None:
                    saved = time.perf_counter()
                    if former is None:
                        checkpoints.save(run, saved - began)
                    else:
                        checkpoints.begin(run, saved - began, partial(_remove, former))
                        former = None
            if progress is not None and (reading or stopping or showing):
                progress(run.step, steps, value)
                shown = time.perf_counter()
            if stopping:
                raise KeyboardInterrupt
    return former


def _agreed(own: tuple[bool, bool], reading: bool) -> tuple[bool, bool]:
    """Return what any rank says: at once when alone, and in a group where all wait for each other anyway."""
    if ranks.size() == 1:
        return own
    first, second = zip(*ranks.gathered(own), strict=True) if reading else ((), ())
    return any(first), any(second)


def _is_due(step: int, every: int, steps: int) -> bool:
    """Return whether a checkpoint is due after a step.

    With ``every`` 0, after each tenth of the run, and before the first after 1, 2, 4, ... steps, so that a run which
    bursts early leaves something.
    """
    interval = every or max(steps // 10, 1)
    return step % interval == 0 or (not every and step < interval and step.bit_count() == 1)


def _require_finite_state(run: RunState, loss: Tensor, checkpoints: Checkpoints | None) -> None:
    """Refuse to keep a state that is not finite; the last update comes after the last loss."""
    run.finite &= run.stored_finite()
    _require_finite(run, float(loss), checkpoints)


def _require_finite(run: RunState, loss: float, checkpoints: Checkpoints | None) -> None:
    if ranks.all_true(run.finite):
        return
    what = "what is learned became NaN or infinite" if math.isfinite(loss) else f"the loss became {loss}"
    kept = checkpoints.paths()[-1:] if checkpoints is not None else []
    again = "from which resuming comes to the same step again"
    left = f"{kept[0]} holds the last good state, {again}" if kept else "no checkpoint was written before"
    raise NonFiniteError(
        f"{what} at or before step {run.step}; {left}. {LOWER_RATE} and "
        "begin anew (--overwrite), or take float32 for its precision if it is another"
    )


def _warn_of_divergence(run: RunState, loss: float) -> None:
    """Warn when the loss first passes :data:`DIVERGED` times what it was at the first step."""
    losses = [value for _, value in run.history]
    if not losses or losses[0] <= 0 or not ranks.is_first():
        return
    if loss > DIVERGED * losses[0] >= max(losses):
        logger.warning("the loss grew from %.3g to %.3g by step %d. %s", losses[0], loss, run.step, LOWER_RATE)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that a step ends whole; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def identity(distiller: Distiller, name: str) -> dict[str, object]:
    """Return what a checkpoint must share with the run that resumes it, as plain values."""
    info = distiller.task.describe()
    found = {
        "fingerprint": info.fingerprint,
        "units": info.units,
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
    }
    plain: dict[str, object] = json.loads(json.dumps(found, default=str))
    return plain
