"""How far a long training has come and how long the rest will take, for a caller or the log."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], object]
"""Called with (steps done, steps in all, seconds left by the speed so far); a group's networks step together."""

FIRST_REPORT = 10.0
"""Seconds of training after which the log first says how long it will take."""


def describe_training(what: str, left: int, total: int, place: Path) -> str:
    """Return in words where something trained lies, or how many of its networks or steps are to be trained first."""
    if not left:
        return f"{what}, in {place}"
    return f"{what}, {'' if left == total else f'{left:,} of them '}to be trained first in {place}"


class TrainingClock:
    """Counts steps and tells how long the rest will take.

    Args:
        total: the steps to take.
        progress: whom it tells after each.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress
        self.began = time.perf_counter()

    def skip(self, steps: int) -> None:
        """Leave out steps that were taken before."""
        self.total -= steps

    def tick(self) -> None:
        """Count a step."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, (time.perf_counter() - self.began) * (self.total / self.done - 1))


class LoggedProgress:
    """Says in the log, after some seconds and then at each tenth of the way, how long training will take.

    Args:
        what: is trained.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.began = time.perf_counter()
        self.said: int | None = None

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Say it where it is time to."""
        tenths = done * 10 // total
        if time.perf_counter() - self.began >= FIRST_REPORT if self.said is None else tenths > self.said:
            logger.info("%s: %d %% trained, about %.0f s left", self.what, done * 100 // total, seconds)
            self.said = tenths
