"""What writes sets for other tools, and what exports leave in a folder, so that two sets never mix there."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.runs.written import note_written, written_files
from mmdistill.store import read_json
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


def own_files(folder: Path, identity: str) -> list[str]:
    """Return the files that earlier exports of a set left in a folder.

    Raises:
        ConfigError: it holds exports of another set; names the first of its files.
    """
    there = written_files(folder / LISTING)
    if not there or read_json(folder / LISTING).get("set") == identity:
        return there
    raise ConfigError(
        f"{folder} holds the export of another set ({there[0]}{' and more' if len(there) > 1 else ''}); choose another "
        "folder (--to), or remove it"
    )


def record(folder: Path, identity: str, written: Sequence[Path]) -> None:
    """Write down the files of an export beside those of earlier ones of the same set (:func:`own_files`)."""
    note_written(folder / LISTING, written, {"set": identity})
