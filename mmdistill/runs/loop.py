"""A run on its way: its steps, readings of the loss, checkpoints and clean stops."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType

from torch import Tensor

from mmdistill.distiller import Distiller
from mmdistill.errors import MmdistillError, NonFiniteError
from mmdistill.execution import ranks
from mmdistill.execution.memory import explained
from mmdistill.progress import StepProgress
from mmdistill.runs.advice import faster_precision, lowering_steps
from mmdistill.runs.keeper import Keeper
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import Stepper

logger = logging.getLogger(__name__)

READS_PER_RUN = 200
"""How often the loss is read back in a run, besides its first step's; on CUDA each read waits for the device."""
LONGEST_UNSHOWN = 2.0
"""Seconds after which it is read to be shown, and no more than that, if the run is in one process."""
DIVERGED = 1000.0
"""A loss that is so many times the first one is warned of."""
LONG = 3600.0
"""Seconds of a run that are told of in advance."""
TOLD_AFTER = 60.0
"""Seconds of steps after which it is told how long the run will take."""
LOWER_RATE = "Lower the learning rate (--lr, or lr among the settings)"
"""What to do about it."""


def take_steps(
    distiller: Distiller, stepper: Stepper, run: RunState, keeper: Keeper | None, progress: StepProgress | None
) -> bool:
    """Step a run to its end; stop cleanly, with a checkpoint, on Ctrl-C and SIGTERM.

    Where the program has a handler of its own for these, a checkpoint is written and the handler called; if it returns,
    the run goes on.

    Returns:
        Whether it was asked to stop when the last step was over, so that nothing was left to stop.
    Raises:
        KeyboardInterrupt: after the step in which it was asked to stop, or from what failed in that step, without a
            checkpoint of it.
        NonFiniteError: a loss or what is learned became NaN or infinite; the last checkpoint is the last good state,
            which is the start where there was none yet.
    """
    steps, lower = distiller.steps, lowering_steps(distiller, run)
    read_every = max(steps // READS_PER_RUN, 1)
    compiling, shown = run.compile_seconds, time.perf_counter()
    validate_every = distiller.settings.validate_every
    pace = _Pace(run.step, steps, partial(faster_precision, distiller, run))
    with _signals() as asked:
        while run.step < steps and not distiller.exhausted(run):
            with _failing(asked), explained(f"step {run.step + 1} of the distillation", lower):
                run, loss = stepper(run)
            run.path, run.compile_seconds = stepper.path, compiling + distiller.compile_seconds
            last = run.step == steps
            if validate_every and (run.step % validate_every == 0 or last):
                _require_finite_state(run, loss, keeper)
                distiller.validate(run)
            ending = last or distiller.exhausted(run)
            reading = run.step % read_every == 0 or run.step == 1 or ending
            stopping, leaving, overdue = _agreed(
                (asked.stop, asked.is_pending, keeper is not None and keeper.overdue()), reading
            )
            showing = progress is not None and ranks.size() == 1 and time.perf_counter() - shown > LONGEST_UNSHOWN
            if reading or stopping or showing:
                value = float(ranks.averages([loss.clone()])[0])
                _require_finite(run, value, keeper)
                if reading or stopping:  # not what the clock alone asked for, so that equal runs have equal histories
                    _warn_of_divergence(run, value)
                    run.history.append((run.step, value))
            due = keeper is not None and (overdue or keeper.is_due(run.step, steps))
            if ending or stopping or leaving or due:
                _require_finite_state(run, loss, keeper)
                if keeper is not None:
                    with ranks.together():
                        keeper.save(run)
            if progress is not None and (reading or stopping or showing):
                progress(run.step, steps, value)
                shown = time.perf_counter()
            if stopping:
                raise KeyboardInterrupt
            if leaving:
                asked.pass_on()
            pace.follow(run.step, distiller.compile_seconds)
    return asked.stop


class _Pace:
    """Tells once how long a run will take, where that is long.

    Args:
        step: the last step before.
        steps: those of the whole run.
        advice: returns what to say of what else would be faster.
    """

    def __init__(self, step: int, steps: int, advice: Callable[[], str]) -> None:
        self.step, self.steps, self.advice = step, steps, advice
        self.began = time.perf_counter()
        self.told = not ranks.is_first()

    def follow(self, step: int, compiling: float) -> None:
        """Take note of a finished step, and of the seconds that compiling has taken so far, which do not recur."""
        if self.told or (elapsed := time.perf_counter() - self.began - compiling) < TOLD_AFTER:
            return
        self.told = True
        left = elapsed / (step - self.step) * (self.steps - step)
        if left > LONG:
            logger.warning(
                "at this rate the %s steps take another %.*f hours; fewer take less (--steps, or steps among the "
                "settings; a stopped run ends earlier so, too), and some data have short schedules (--schedule "
                "reduced, schedule='reduced')%s",
                f"{self.steps:,}",
                0 if left > 10 * LONG else 1,
                left / 3600,
                self.advice(),
            )


def _agreed(own: tuple[bool, bool, bool], reading: bool) -> tuple[bool, ...]:
    """Return what any rank says: at once when alone, and in a group where all wait for each other anyway."""
    if ranks.size() == 1:
        return own
    return tuple(map(any, zip(*ranks.gathered(own), strict=True))) if reading else (False,) * len(own)


def _require_finite_state(run: RunState, loss: Tensor, keeper: Keeper | None) -> None:
    """Refuse to keep a state that is not finite; the last update comes after the last loss."""
    run.finite &= run.stored_finite()
    _require_finite(run, float(loss), keeper)


def _require_finite(run: RunState, loss: float, keeper: Keeper | None) -> None:
    if ranks.all_true(run.finite):
        return
    what = "what is learned became NaN or infinite" if math.isfinite(loss) else f"the loss became {loss}"
    if keeper is not None:
        keeper.save_start()
    kept = keeper.checkpoints.paths()[-1:] if keeper is not None and not keeper.replaces else []
    again = "from which resuming comes to the same step again"
    left = f"{kept[0]} holds the last good state, {again}" if kept else "no checkpoint was written before"
    if keeper is not None and keeper.replaces:
        left += f", and the former run in {keeper.folder} is untouched"
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


Handler = Callable[[int, FrameType | None], object]


class _Signals:
    """What signals ask of a run, which ends its step first.

    Args:
        own: handlers that the program has installed, by the signal's number.

    Attributes:
        stop: whether a signal asks to stop that the program leaves to Python or to the system.
    """

    def __init__(self, own: Mapping[int, Handler]) -> None:
        self.stop = False
        self._own = own
        self._pending: list[tuple[int, FrameType | None]] = []

    @property
    def is_pending(self) -> bool:
        """Whether a handler of the program's is still to be called."""
        return bool(self._pending)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the same one again has its effect at once."""
        if number in self._own:
            if any(number == earlier for earlier, _ in self._pending):
                self._own[number](number, frame)
            else:
                self._pending.append((number, frame))
        elif self.stop:
            raise KeyboardInterrupt
        else:
            self.stop = True

    def pass_on(self) -> None:
        """Call the program's handlers of the signals that came."""
        while self._pending:
            number, frame = self._pending.pop(0)
            self._own[number](number, frame)


@contextmanager
def _failing(asked: _Signals) -> Iterator[None]:
    """Take what fails in a step for the stop that was asked for, since Ctrl-C reaches the compiler and others as well.

    Raises:
        KeyboardInterrupt: in place of all but the errors of this package, which say themselves what to do.
    """
    try:
        yield
    except MmdistillError:
        raise
    except Exception as error:
        if asked.stop:
            raise KeyboardInterrupt from error
        raise


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Take Ctrl-C and SIGTERM over, so that a step ends whole; what is ignored, or handled outside Python, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield _Signals({})
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
    own: dict[int, Handler] = {
        number: handler
        for number, handler in previous.items()
        if callable(handler) and handler is not signal.default_int_handler
    }
    asked = _Signals(own)
    take = asked.receive  # one object, by which it is known again
    for number in previous:
        signal.signal(number, take)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is take:  # not what a handler has installed meanwhile
                signal.signal(number, handler)
        asked.pass_on()
