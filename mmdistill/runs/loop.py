"""The loop of a run: steps, readings of the loss, checkpoints and clean stops."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
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
from mmdistill.runs.signals import deferred_signals
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import Stepper

logger = logging.getLogger(__name__)

READS_PER_RUN = 200
"""Readings of the loss in a run, beside that of the first step; on CUDA each read waits for the device."""
LONGEST_UNSHOWN = 2.0
"""Seconds after which the loss is also read to be shown, but not recorded, if the run has one process."""
DIVERGED = 1000.0
"""The multiple of the first loss from which on a warning says that the run diverges."""
NEXT_TO_NOTHING = 1e-6
"""The first loss up to which a run counts as one that starts at its optimum."""
WARN_FROM_SECONDS = 3600.0
"""Remaining seconds from which on a warning says how long the run will take."""
ESTIMATE_AFTER_SECONDS = 60.0
"""Seconds of steps after which the remaining time is estimated."""
FAR_OFF = 10.0
"""First loss, relative to the student's start (1), above which a warning says that students end far off."""
NO_NEARER = 0.99
"""Last loss from which on a warning says that students end no nearer than they began: 1, less the scatter of steps."""
LOWER_RATE = "Lower the learning rate (--lr, or lr among the settings)"
"""What to do about a loss that diverges."""
OF_STUDENTS = "(--inner-lr, or inner_lr among the settings)"
"""The options that set the rate of students."""


def take_steps(
    distiller: Distiller, stepper: Stepper, run: RunState, keeper: Keeper | None, progress: StepProgress | None
) -> bool:
    """Step a run to its end; on Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 write a checkpoint after the step and stop.

    If the program has its own handler of such a signal, it is called after the checkpoint; if it returns, the run goes
    on.

    Returns:
        Whether a signal to stop arrived after the last step, when nothing was left to stop.
    Raises:
        KeyboardInterrupt: after the step in which a signal arrived; without a checkpoint of the step if it failed.
        ConfigError: a step changed state of the objective that is in neither parameters nor buffers, or changed what is
            learned.
        NonFiniteError: the loss or a learned tensor became NaN or infinite. The last checkpoint holds the last good
            state; the state at the start of the run is written as one if there was none.
    """
    steps, advice = distiller.steps, lowering_steps(distiller, run)
    read_every = max(steps // READS_PER_RUN, 1)
    compiling, shown_at = run.compile_seconds, time.perf_counter()
    first, unsaved = run.step + 1, Unsaved(run.objective)
    pace = _Pace(run.step, steps, partial(faster_precision, distiller, run))
    with deferred_signals() as signals:
        while run.step < steps and not distiller.out_of_patience(run):
            with signals.errors_as_stop(), out_of_memory_advice(f"step {run.step + 1} of the distillation", advice):
                run, loss = stepper(run)
            if run.step == first:
                unsaved.require_unchanged()
                unsaved.require_same_learned()
            run.path, run.compile_seconds = stepper.path, compiling + distiller.compile_seconds
            _validate(distiller, run, loss, keeper)

            is_last = run.step == steps or distiller.out_of_patience(run)
            regular = is_last or run.step == 1 or run.step % read_every == 0
            stop, call_handlers, overdue = _any_rank(
                (signals.stop, signals.is_pending, keeper is not None and keeper.overdue()), regular
            )
            record = regular or stop  # not for the clock alone, so that equal runs have equal histories
            show_now = ranks.size() == 1 and time.perf_counter() - shown_at > LONGEST_UNSHOWN
            value = _read_loss(run, loss, keeper, record) if record or (show_now and progress is not None) else None
            if run.objective.relative_to_start and (run.step == 1 or is_last):
                _warn_of_students(run)

            save_due = keeper is not None and (overdue or keeper.is_due(run.step, steps))
            if is_last or stop or call_handlers or save_due:
                _save(run, loss, keeper, unsaved)
            if progress is not None and value is not None:
                progress(run.step, steps, value)
                shown_at = time.perf_counter()
            if stop:
                raise KeyboardInterrupt
            if call_handlers:
                signals.call_handlers()
            pace.follow(run.step, distiller.compile_seconds)
    return signals.stop


def _validate(distiller: Distiller, run: RunState, loss: Tensor, keeper: Keeper | None) -> None:
    """Validate the run if this step is one to validate; the last one always is."""
    every = distiller.settings.validate_every
    if every and (run.step % every == 0 or run.step == distiller.steps):
        _require_finite_state(run, loss, keeper)
        distiller.validate(run)


def _read_loss(run: RunState, loss: Tensor, keeper: Keeper | None, record: bool) -> float:
    """Wait for a step's loss and return its mean over all ranks; ``record`` appends it to the history."""
    value = float(ranks.averages([loss.clone()])[0])
    _require_finite(run, value, keeper)
    if record:
        _warn_of_divergence(run, value)
        run.history.append((run.step, value))
    return value


def _save(run: RunState, loss: Tensor, keeper: Keeper | None, unsaved: Unsaved) -> None:
    """Check a state, and write a checkpoint if the run has a folder."""
    _require_finite_state(run, loss, keeper)
    unsaved.require_same_learned()
    if keeper is not None:
        unsaved.require_unchanged()
        with ranks.together():
            keeper.save(run)


class _Pace:
    """Logs once how long a run will take, if that is long.

    Args:
        step: steps taken so far.
        steps: of the whole run.
        advice: returns further advice on taking less time.
    """

    def __init__(self, step: int, steps: int, advice: Callable[[], str]) -> None:
        self.step, self.steps, self.advice = step, steps, advice
        self.began = time.perf_counter()
        self.logged = not ranks.is_first()

    def follow(self, step: int, compiling: float) -> None:
        """Note a finished step; ``compiling`` are the seconds of compiling so far, which do not recur."""
        if self.logged or (elapsed := time.perf_counter() - self.began - compiling) < ESTIMATE_AFTER_SECONDS:
            return
        self.logged = True
        remaining = elapsed / (step - self.step) * (self.steps - step)
        if remaining > WARN_FROM_SECONDS:
            logger.warning(
                "at this rate the %s steps take another %.*f hours; fewer take less (--steps, or steps among the "
                "settings; a stopped run ends earlier so, too), and some data have short schedules (--schedule "
                "reduced, schedule='reduced')%s",
                f"{self.steps:,}",
                0 if remaining > 10 * WARN_FROM_SECONDS else 1,
                remaining / 3600,
                self.advice(),
            )


def _any_rank(flags: tuple[bool, bool, bool], reading: bool) -> tuple[bool, ...]:
    """Return which flags are set on any rank; with several, only at steps at which they wait for each other anyway."""
    if ranks.size() == 1:
        return flags
    return tuple(map(any, zip(*ranks.gathered(flags), strict=True))) if reading else (False,) * len(flags)


def _require_finite_state(run: RunState, loss: Tensor, keeper: Keeper | None) -> None:
    """Refuse to save a state that is not finite; the last update may have made it so after a finite loss."""
    run.finite &= run.stored_finite()
    _require_finite(run, float(loss), keeper)


def _require_finite(run: RunState, loss: float, keeper: Keeper | None) -> None:
    if ranks.all_true(run.finite):
        return
    what = "what is learned became NaN or infinite" if math.isfinite(loss) else f"the loss became {loss}"
    if keeper is not None:
        with ranks.together():
            keeper.save_start()
    last = keeper.checkpoints.paths()[-1:] if keeper is not None and not keeper.replaces else []
    again = "from which resuming comes to the same step again"
    outcome = f"{last[0]} holds the last good state, {again}" if last else "no checkpoint was written before"
    if keeper is not None and keeper.replaces:
        outcome += f", and the former run in {keeper.folder} is untouched"
    raise NonFiniteError(
        f"{what} at or before step {run.step}; {outcome}. {LOWER_RATE} and "
        "begin anew (--overwrite), or take float32 for its precision if it is another"
    )


def _warn_of_divergence(run: RunState, loss: float) -> None:
    """Warn when the loss first is far above the readings before it, see :func:`_is_far_above`."""
    losses = [value for _, value in run.history]
    if not ranks.is_first() or not _is_far_above(losses, loss):
        return
    if not any(_is_far_above(losses[:count], losses[count]) for count in range(len(losses))):
        logger.warning("the loss grew from %.3g to %.3g by step %d. %s", losses[0], loss, run.step, LOWER_RATE)


def _is_far_above(earlier: Sequence[float], loss: float) -> bool:
    """Return whether a loss is more than :data:`DIVERGED` times the first one.

    A run that starts at its optimum has a first loss next to nothing, beside which all others are large. There the
    median of at least two takes its place.
    """
    sizes = [abs(value) for value in earlier]
    if sizes and sizes[0] > NEXT_TO_NOTHING:
        return loss > DIVERGED * sizes[0]
    return len(sizes) > 1 and loss > DIVERGED * statistics.median(sizes)


def _warn_of_students(run: RunState) -> None:
    """Warn, at the first step, of a student that ends far off; at the last, of students that end no nearer."""
    if not ranks.is_first():
        return
    losses = [value for _, value in run.history]
    if run.step == 1 and losses[0] > FAR_OFF:
        logger.warning(
            "the student ends %.3g times as far from the expert's end as it began (a loss of %.3g). Lower its rate %s",
            math.sqrt(losses[0]),
            losses[0],
            OF_STUDENTS,
        )
    elif run.step > 1 and (last := statistics.median(losses[-max(len(losses) // 10, 1) :])) >= NO_NEARER:
        logger.warning(
            "the last losses are about %.3g, so students that train on the set end no nearer to the experts' ends than "
            "they began. Take another rate of the students %s, a lower one of the samples (--lr, or lr among the "
            "settings), or more steps",
            last,
            OF_STUDENTS,
        )
