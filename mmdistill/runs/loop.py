"""A run on its way: its steps, readings of the loss, checkpoints and clean stops."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial

from torch import Tensor

from mmdistill.distiller import Distiller
from mmdistill.errors import NonFiniteError
from mmdistill.execution import ranks
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.progress import StepProgress
from mmdistill.runs.advice import faster_precision, lowering_steps
from mmdistill.runs.first_step import Unsaved
from mmdistill.runs.keeper import Keeper
from mmdistill.runs.signals import taken_over
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import Stepper

logger = logging.getLogger(__name__)

READS_PER_RUN = 200
"""How often the loss is read back in a run, besides its first step's; on CUDA each read waits for the device."""
LONGEST_UNSHOWN = 2.0
"""Seconds after which it is read to be shown, and no more than that, if the run is in one process."""
DIVERGED = 1000.0
"""A loss that is so many times the first one is warned of."""
WARN_FROM_SECONDS = 3600.0
"""Seconds of a run that are told of in advance."""
ESTIMATE_AFTER_SECONDS = 60.0
"""Seconds of steps after which it is told how long the run will take."""
LOWER_RATE = "Lower the learning rate (--lr, or lr among the settings)"
"""What to do about it."""


def take_steps(
    distiller: Distiller, stepper: Stepper, run: RunState, keeper: Keeper | None, progress: StepProgress | None
) -> bool:
    """Step a run to its end; stop cleanly, with a checkpoint, on Ctrl-C, SIGTERM and SIGHUP.

    Where the program has a handler of its own for these, a checkpoint is written and the handler called; if it returns,
    the run goes on.

    Returns:
        Whether it was asked to stop when the last step was over, so that nothing was left to stop.
    Raises:
        KeyboardInterrupt: after the step in which it was asked to stop, or from what failed in that step, without a
            checkpoint of it.
        ConfigError: steps change what the objective keeps outside its parameters and buffers.
        NonFiniteError: a loss or what is learned became NaN or infinite; the last checkpoint is the last good state,
            which is the start where there was none yet.
    """
    steps, lower = distiller.steps, lowering_steps(distiller, run)
    read_every = max(steps // READS_PER_RUN, 1)
    compiling, shown = run.compile_seconds, time.perf_counter()
    first, unsaved = run.step + 1, Unsaved(run.objective)
    pace = _Pace(run.step, steps, partial(faster_precision, distiller, run))
    with taken_over() as signals:
        while run.step < steps and not distiller.out_of_patience(run):
            with signals.failing(), out_of_memory_advice(f"step {run.step + 1} of the distillation", lower):
                run, loss = stepper(run)
            if run.step == first:
                unsaved.require_unchanged()
            run.path, run.compile_seconds = stepper.path, compiling + distiller.compile_seconds
            _validate(distiller, run, loss, keeper)

            is_last = run.step == steps or distiller.out_of_patience(run)
            regular = is_last or run.step == 1 or run.step % read_every == 0
            stop, call_handlers, overdue = _agreed(
                (signals.stop, signals.is_pending, keeper is not None and keeper.overdue()), regular
            )
            record = regular or stop  # not what the clock alone asks for, so that equal runs have equal histories
            show = ranks.size() == 1 and time.perf_counter() - shown > LONGEST_UNSHOWN
            value = _read(run, loss, keeper, record) if record or (show and progress is not None) else None

            save = keeper is not None and (overdue or keeper.is_due(run.step, steps))
            if is_last or stop or call_handlers or save:
                _save(run, loss, keeper, unsaved)
            if progress is not None and value is not None:
                progress(run.step, steps, value)
                shown = time.perf_counter()
            if stop:
                raise KeyboardInterrupt
            if call_handlers:
                signals.pass_on()
            pace.follow(run.step, distiller.compile_seconds)
    return signals.stop


def _validate(distiller: Distiller, run: RunState, loss: Tensor, keeper: Keeper | None) -> None:
    """Validate a step where the settings say so; the last one always."""
    every = distiller.settings.validate_every
    if every and (run.step % every == 0 or run.step == distiller.steps):
        _require_finite_state(run, loss, keeper)
        distiller.validate(run)


def _read(run: RunState, loss: Tensor, keeper: Keeper | None, record: bool) -> float:
    """Wait for a step's loss, the mean of all ranks, and return it; it goes into the history where it is recorded."""
    value = float(ranks.averages([loss.clone()])[0])
    _require_finite(run, value, keeper)
    if record:
        _warn_of_divergence(run, value)
        run.history.append((run.step, value))
    return value


def _save(run: RunState, loss: Tensor, keeper: Keeper | None, unsaved: Unsaved) -> None:
    """Check that a state may be kept, and write it where there is a folder."""
    _require_finite_state(run, loss, keeper)
    if keeper is not None:
        unsaved.require_unchanged()
        with ranks.together():
            keeper.save(run)


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
        if self.told or (elapsed := time.perf_counter() - self.began - compiling) < ESTIMATE_AFTER_SECONDS:
            return
        self.told = True
        left = elapsed / (step - self.step) * (self.steps - step)
        if left > WARN_FROM_SECONDS:
            logger.warning(
                "at this rate the %s steps take another %.*f hours; fewer take less (--steps, or steps among the "
                "settings; a stopped run ends earlier so, too), and some data have short schedules (--schedule "
                "reduced, schedule='reduced')%s",
                f"{self.steps:,}",
                0 if left > 10 * WARN_FROM_SECONDS else 1,
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
