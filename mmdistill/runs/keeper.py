"""Write a run's checkpoints and its finished set into its folder, where they may replace a former run."""

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
from mmdistill.exporters import LISTING
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
"""Seconds after which a checkpoint is due, unless the user sets the interval."""
FORMER = (REPORT, PAGE, METRICS, HISTORY, SET, SAMPLES, CODES)
"""Files of a former run that a new one removes from its folder, in this order.

The set goes after all files made of it, so that these are never beside another set; its description goes before its
samples. Pictures and exports go too, by the listings that name them.
"""


class Keeper:
    """Writes a run into a folder; a former run there stays until this one is on disk.

    Args:
        folder: of the run.
        identity: see :class:`Checkpoints`.
        every: steps between checkpoints; 0: a tenth of the run, and more often at first.
        began: the time at which the run began, by ``time.perf_counter``.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], every: int, began: float) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, identity)
        self.every = every
        self.replaces = False
        """Whether the folder still holds a former run."""
        self._differs = False
        """Whether the set in the folder may be another one: of fewer steps, or of steps that this run takes again."""
        self._finished_step: int | None = None
        """The last step of the finished run in the folder; None if there is none, or it is unknown."""
        self._began, self._saved = began, time.perf_counter()
        self._start: Mapping[str, Any] | None = None
        """The state at the start of the run, until its first checkpoint is written."""

    @property
    def seconds(self) -> float:
        """The seconds that the run has taken, including those before it was resumed."""
        return time.perf_counter() - self._began

    def begin(self, run: RunState) -> None:
        """Begin a run: note its state and whether the folder holds a former run; remove files of killed processes."""
        self.replaces = holds_work(self.folder)
        self._start = None if self.replaces else kept_tree(run.tree())
        remove_parts(self.checkpoints.folder)
        self._forget_staged()

    def resume(self, run: RunState, device: torch.device) -> None:
        """Load the newest readable checkpoint into a run, which may have more steps than the run that wrote it.

        The set of that run, if it was finished, stays until this run is finished.

        Raises:
            CheckpointError: there is none, all are damaged, or they belong to another run.
            VersionError: the set beside them is of another version.
        """
        try:
            set_steps = steps_of(read_json(self.folder / SET, version=SET_VERSION))
        except VersionError:
            raise
        except CheckpointError:  # the set is damaged or missing
            set_steps = None
        self._began -= self.checkpoints.restore(run, device)
        self._forget_staged()
        self._differs = set_steps not in (None, steps_of(self.checkpoints.identity))
        with suppress(CheckpointError, LookupError, TypeError):
            self._finished_step = read_json(self.folder / HISTORY)["step"][-1]
            self._differs |= run.step != self._finished_step

    def overdue(self) -> bool:
        """Return whether the last checkpoint is too old; never if the user sets the interval."""
        return not self.every and time.perf_counter() - self._saved > LONGEST_UNSAVED

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether a checkpoint is due after step ``step`` of ``steps``.

        A former run is replaced after the first step. Unless the user sets the interval, a checkpoint is due after each
        tenth of the run, and earlier after 1, 2, 4, ... steps, so that a run that diverges early leaves one.
        """
        interval = self.every or max(steps // 10, 1)
        early = not self.every and step < interval and step.bit_count() == 1
        return self.replaces or step % interval == 0 or early

    def save_start(self) -> None:
        """Write the state at the start of the run as a checkpoint, unless there is a later one or a former run."""
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

    def finish(self, write: Callable[[Path], None], steps: int) -> None:
        """Write the files of a finished run, which replace those of a former run; only the first process writes.

        A former run is still there only if this one took no step or was extended.

        Args:
            write: writes the files into the folder it is given.
            steps: that the run has taken.
        """
        with ranks.first_alone():  # the other processes wait, and fail with it
            if ranks.is_first():
                remove_parts(self.folder)
                if self.replaces or self._differs or self._finished_step not in (None, steps):
                    self._write_staged(write)
                else:
                    write(self.folder)
        if self.replaces:
            self.checkpoints.clear()
            self.replaces = False

    def _write_staged(self, write: Callable[[Path], None]) -> None:
        """Write files into a folder aside, then remove the former run's files and move them into their place."""
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
        """Remove what a process left that was killed within :meth:`_write_staged`."""
        if ranks.is_first():
            shutil.rmtree(self.folder / STAGED, ignore_errors=True)

    def _remove_former(self) -> None:
        """Remove the former run's set, report, pictures and exports, but not its checkpoints."""
        if ranks.is_first():
            for listing in (self.folder / EXPORT / LISTING, self.folder / DRAWN):
                remove_written(listing)
            for name in FORMER:
                for path in self.folder.glob(name):
                    patiently(path.unlink)


def put_finished(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the files of a run without steps into a folder, where they replace a former run."""
    keeper = Keeper(folder, {}, 0, time.perf_counter())
    keeper.replaces = holds_work(folder)
    keeper.finish(write, 0)
