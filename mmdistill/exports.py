"""What writes sets for other tools, and what all that they write has in common."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.task import Task

PREPROCESSING = "preprocessing.json"
"""Says in which units an export's samples are, for test data of other tools."""
LISTING = "export.json"
"""Says of which set the exports in a folder are, and which files they wrote."""


class Exporter(Protocol):
    """Writes a distilled set for other tools into a folder and returns the files' paths."""

    def __call__(
        self, distilled: DistilledSet, folder: Path | str, task: Task | Callable[[], Task] | None = None
    ) -> list[Path]:
        """Write the files.

        Args:
            distilled: the set.
            folder: where they go.
            task: that the set was distilled from, or what makes it: asked for only where the set does not hold all
                that the format says.
        Raises:
            ConfigError: it does not, and there is no task.
            CheckpointError: the task is another one.
        """
        ...


def exporter(write: Callable[[DistilledSet, Path], list[Path]]) -> Exporter:
    """Make an :class:`Exporter` of what writes a set, which holds all that is written, into a folder."""

    @task_exporter
    @functools.wraps(write)
    def written(distilled: DistilledSet, folder: Path, task: Callable[[], Task]) -> list[Path]:
        return write(distilled, folder)

    return written


def task_exporter(write: Callable[[DistilledSet, Path, Callable[[], Task]], list[Path]]) -> Exporter:
    """Make an :class:`Exporter` of what also calls its last argument for the task, where the set does not suffice.

    That call raises:
        ConfigError: no task was given.
        CheckpointError: one that the set was not distilled from.
    """

    @functools.wraps(write)
    def written(
        distilled: DistilledSet, folder: Path | str, task: Task | Callable[[], Task] | None = None
    ) -> list[Path]:
        def real() -> Task:
            if task is None:
                raise ConfigError(
                    f"the set of {distilled.info.data!r} does not hold all that this format says of the real data; "
                    "give the task that it was distilled from too"
                )
            found = task if isinstance(task, Task) else task()
            distilled.require(found.describe())
            return found

        return write(distilled, users_path(folder), real)

    return written
