"""The interface of exporters, which write sets for other tools, and the files that they have in common."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.task import Task

PREPROCESSING = "preprocessing.json"
"""The file with the units of an export's samples, to prepare test data for other tools."""
LISTING = "export.json"
"""The file with the identity of the set whose exports are in a folder, and with the names of their files."""


class Exporter(Protocol):
    """Writes a distilled set for other tools into a folder and returns the files' paths."""

    def __call__(
        self, distilled: DistilledSet, folder: Path | str, task: Task | Callable[[], Task] | None = None
    ) -> list[Path]:
        """Write the files.

        Args:
            distilled: the set.
            folder: where they go.
            task: that the set was distilled from, or a function that makes it; used only if the format needs more than
                the set holds.
        Raises:
            ConfigError: the format needs the task, and there is none.
            CheckpointError: the set was distilled from another task.
        """
        ...


def exporter(write: Callable[[DistilledSet, Path], list[Path]]) -> Exporter:
    """Make an :class:`Exporter` from a function that writes a set into a folder and needs no task."""

    @task_exporter
    @functools.wraps(write)
    def export_set(distilled: DistilledSet, folder: Path, task: Callable[[], Task]) -> list[Path]:
        return write(distilled, folder)

    return export_set


def task_exporter(write: Callable[[DistilledSet, Path, Callable[[], Task]], list[Path]]) -> Exporter:
    """Make an :class:`Exporter` from a function that calls its last argument for the task if it needs that.

    That call raises:
        ConfigError: no task was given.
        CheckpointError: the set was distilled from another task.
    """

    @functools.wraps(write)
    def export_set(
        distilled: DistilledSet, folder: Path | str, task: Task | Callable[[], Task] | None = None
    ) -> list[Path]:
        def checked_task() -> Task:
            if task is None:
                raise ConfigError(
                    f"the set of {distilled.info.data!r} does not hold all that this format says of the real data; "
                    "give the task that it was distilled from too"
                )
            own_task = task if isinstance(task, Task) else task()
            distilled.require(own_task.describe())
            return own_task

        return write(distilled, users_path(folder), checked_task)

    return export_set
