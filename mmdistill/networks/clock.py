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


def describe_training(what: str, left: int, total: int, place: Path) -> str:
    """Describe in words where trained networks are, or how many of the networks or steps are left to train first."""
    if not left:
        return f"{what}, in {place}"
    return f"{what}, {'' if left == total else f'{left:,} of them '}to be trained first in {place}"


class TrainingClock:
    """Counts steps and estimates the time left.

    Args:
        total: the steps to take.
        progress: called after each step.
    """

    def __init__(self, total: int, progress: TrainingProgress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress
        self.began = time.perf_counter()

    def skip(self, steps: int) -> None:
        """Leave out steps that an earlier training took."""
        self.total -= steps

    def tick(self, steps: int = 1) -> None:
        """Count a step, or several."""
        self.done += steps
        if self.progress is not None:
            self.progress(self.done, self.total, (time.perf_counter() - self.began) * (self.total / self.done - 1))


class LoggedProgress:
    """Logs the time left of a training, after some seconds and then at each tenth of its steps.

    Args:
        what: names what is trained.
        verb: what is done to it, if it is not trained.
    """

    def __init__(self, what: str, verb: str = "trained") -> None:
        self.what, self.verb = what, verb
        self.began = time.perf_counter()
        self.logged: int | None = None
        """The last tenth that was logged."""

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Log the time left if it is due."""
        tenths = done * 10 // total
        elapsed = time.perf_counter() - self.began
        is_due = elapsed >= FIRST_REPORT if self.logged is None else tenths > self.logged
        if is_due:
            logger.info("%s: %d %% %s, about %.0f s left", self.what, done * 100 // total, self.verb, seconds)
            self.logged = tenths
