"""What a run keeps in its folder: checkpoints on the way and the finished set, in the place of a former run."""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmdistill.distilled import SET_VERSION
from mmdistill.errors import CheckpointError, VersionError
from mmdistill.execution import ranks
from mmdistill.exports import LISTING
from mmdistill.parameterizations.codes import CODES
from mmdistill.runs.checkpoints import Checkpoints, steps_of
from mmdistill.runs.folder import (
    CHECKPOINTS,
    DRAWN,
    EXPORT,
    HISTORY,
    METRICS,
    PAGE,
    REPORT,
    SAMPLES,
    SET,
    STAGED,
    holds_work,
)
from mmdistill.runs.listings import remove_written
from mmdistill.runs.state import RunState
from mmdistill.runtime import patiently, remove_parts
from mmdistill.store import kept_tree, read_json

LONGEST_UNSAVED = 600.0
"""Seconds after which a checkpoint is written, unless the user says when."""
FORMER = (REPORT, PAGE, METRICS, HISTORY, SET, SAMPLES, CODES)
"""What a run removes of a former one in its folder, so that nobody takes it for its own.

Its pictures and exports go too, by the listings that note them. The set goes after all that was made of it, so that no
other set is ever beside these, and the file that says so goes before the samples.
"""


class Keeper:
    """Keeps a run in a folder. A former run there stays until this one is on disk.

    Args:
        folder: which.
        identity: see :class:`Checkpoints`.
        every: steps between checkpoints; 0: a tenth of the run, and more often at first.
        began: when the run began, by ``time.perf_counter``.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], every: int, began: float) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, identity)
        self.every = every
        self.replaces = False
        """Whether the folder still holds a former run."""
        self._differs = False
        """Whether the set that it holds may be another one: of fewer steps, or of some that this run takes anew."""
        self._noted: int | None = None
        """The last step of the finished run that it holds; None where there is none, or unknown."""
        self._began, self._saved = began, time.perf_counter()
        self._start: Mapping[str, Any] | None = None
        """The state that the run began with, until its first checkpoint is written."""

    @property
    def seconds(self) -> float:
        """The seconds that the run has taken, those before it was resumed included."""
        return time.perf_counter() - self._began

    def begin(self, run: RunState) -> None:
        """Note how a run begins, and whether the folder holds a former one; remove what a killed process left."""
        self.replaces = holds_work(self.folder)
        self._start = None if self.replaces else kept_tree(run.tree())
        remove_parts(self.checkpoints.folder)
        self._forget_staged()

    def resume(self, run: RunState, device: torch.device) -> None:
        """Load the newest readable checkpoint into a run, which may have more steps than the one that wrote it.

        What that left when it was finished stays until this one is.

        Raises:
            CheckpointError: there is none, all are damaged, or they belong to another run.
            VersionError: a set of another version is beside them.
        """
        try:
            made = steps_of(read_json(self.folder / SET, version=SET_VERSION))
        except VersionError:
            raise
        except CheckpointError:  # a damaged one, or none
            made = None
        self._began -= self.checkpoints.restore(run, device)
        self._forget_staged()
        self._differs = made not in (None, steps_of(self.checkpoints.identity))
        with suppress(CheckpointError, LookupError, TypeError):
            self._noted = read_json(self.folder / HISTORY)["step"][-1]
            self._differs |= run.step != self._noted

    def overdue(self) -> bool:
        """Return whether the last checkpoint is too old, where the user did not say when to write them."""
        return not self.every and time.perf_counter() - self._saved > LONGEST_UNSAVED

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether a checkpoint is due after a step of so many.

        A former run is replaced after the first step. Unless the user says when, a checkpoint is due after each tenth
        of the run, and before the first of these after 1, 2, 4, ... steps, so that a run which bursts early leaves
        something.
        """
        interval = self.every or max(steps // 10, 1)
        early = not self.every and step < interval and step.bit_count() == 1
        return self.replaces or step % interval == 0 or early

    def save_start(self) -> None:
        """Write the state that the run began with as a checkpoint, unless there is a later one or a former run."""
        if self._start is not None:
            self.checkpoints.write(self._start, self.seconds)
            self._start = None

    def save(self, run: RunState) -> None:
        """Write a checkpoint; the first one takes the place of a former run."""
        self._saved, self._start = time.perf_counter(), None
        if self.replaces:
            self.checkpoints.begin(run, self.seconds, self._remove_former)
            self.replaces = False
        else:
            self.checkpoints.save(run, self.seconds)

    def finish(self, write: Callable[[Path], None], taken: int) -> None:
        """Have what a run of so many steps leaves written into a folder, in the place of what a former one left.

        Only a run without steps, or one taken further, finds that still there. Of several processes the first writes.
        """
        with ranks.first_alone():  # the others wait, and fail with it
            if ranks.is_first():
                remove_parts(self.folder)
                if self.replaces or self._differs or self._noted not in (None, taken):
                    self._staged(write)
                else:
                    write(self.folder)
        if self.replaces:
            self.checkpoints.clear()
            self.replaces = False

    def _staged(self, write: Callable[[Path], None]) -> None:
        """Have files written aside, and move them into the place of the former run's when all are there."""
        place = self.folder / STAGED
        shutil.rmtree(place, ignore_errors=True)
        try:
            write(place)
            self._remove_former()
            for path in sorted(place.iterdir(), key=lambda path: path.name == SET):
                patiently(partial(path.replace, self.folder / path.name))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _forget_staged(self) -> None:
        """Remove what a process left that was killed while it replaced a former run's set."""
        if ranks.is_first():
            shutil.rmtree(self.folder / STAGED, ignore_errors=True)

    def _remove_former(self) -> None:
        """Remove what the former run, its report and its exports left beside its checkpoints."""
        if ranks.is_first():
            for listing in (self.folder / EXPORT / LISTING, self.folder / DRAWN):
                remove_written(listing)
            for name in FORMER:
                for path in self.folder.glob(name):
                    patiently(path.unlink)


def put_finished(folder: Path, write: Callable[[Path], None]) -> None:
    """Have the files of a run without steps written into a folder, in the place of what a former run left there."""
    keeper = Keeper(folder, {}, 0, time.perf_counter())
    keeper.replaces = holds_work(folder)
    keeper.finish(write, 0)
