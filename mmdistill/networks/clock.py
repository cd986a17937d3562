"""Progress of a long training and the time that remains, for a caller or the log."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

TrainingProgress = Callable[[int, int, float], object]
"""Called with (steps done, all steps, estimated seconds left); networks that train together count as one."""

FIRST_REPORT = 10.0
"""Seconds of training before the log's first estimate."""


def time_in_words(seconds: float) -> str:
    """Return a duration in seconds below two minutes, in minutes below two hours, then in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def describe_training(what: str, left: int, total: int, place: Path) -> str:
    """Describe in words where trained networks are, or how many of the networks or steps are left to train first."""
    if not left:
        return f"{what}, in {place}"
    return f"{what}, {'' if left == total else f'{left:,} of them '}to be trained first in {place}"


class TrainingClock:
    """Counts steps and estimates the time left.

    Once there are others, the first step, which may compile, does not count as speed.

    Args:
        total: the steps to take.
        progress: called after each step.
    """

    def __init__(self, total: int, progress: TrainingProgress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress
        self.began, self.before = time.perf_counter(), 0

    def skip(self, steps: int) -> None:
        """Leave out steps that an earlier training took."""
        self.total -= steps

    def tick(self, steps: int = 1) -> None:
        """Count a step, or several."""
        first, now = not self.done, time.perf_counter()
        self.done += steps
        pace = (now - self.began) / (self.done - self.before)
        if first:
            self.began, self.before = now, self.done
        if self.progress is not None:
            self.progress(self.done, self.total, pace * (self.total - self.done))


class LoggedProgress:
    """Logs the time left of a training after some seconds, each time these doubled, and at each tenth of the steps.

    Args:
        what: names what is trained.
        verb: what is done to it, if it is not trained.
    """

    def __init__(self, what: str, verb: str = "trained") -> None:
        self.what, self.verb = what, verb
        self.began = time.perf_counter()
        self.calls = 0
        self.logged: int | None = None
        """The last tenth that was logged."""
        self.due = FIRST_REPORT
        """Seconds after which the next report is due, if no tenth is over before."""

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Log the time left if it is due and rests on more than the first step, which may compile."""
        self.calls += 1
        tenths = done * 10 // total
        elapsed = time.perf_counter() - self.began
        is_due = elapsed >= self.due or (self.logged is not None and tenths > self.logged)
        if is_due and (self.calls > 1 or done == total):
            left = time_in_words(seconds)
            logger.info("%s: %d %% %s, about %s left", self.what, done * 100 // total, self.verb, left)
            self.logged, self.due = tenths, 2 * elapsed
