"""What a run's folder holds, by name; without torch, for which the command line's help does not wait."""

import json
import os
from contextlib import suppress
from pathlib import Path

from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.files.plain_yaml import settings_by_name
from mmdistill.names import as_argument, first_few

SAMPLES = "distilled.safetensors"
"""The set's tensors."""
SET = "distilled.json"
"""What the set is; written last, so that a folder with it holds a finished run."""
METRICS = "metrics.json"
"""The scores."""
HISTORY = "history.json"
"""The loss, as it was read back."""
REPORT = "report.md"
"""What is told of the run, as Markdown."""
PAGE = "report.html"
"""The same on a page of its own, pictures included."""
CONFIG = "config.yaml"
"""The options of the command line."""
IMPORTED = "imported"
"""What is true among the options of a set that another tool made; no option, since no method of ours makes it."""
LOG = "log.txt"
"""What a run printed that was started by another program."""
CHECKPOINTS = "checkpoints"
"""The folder of the run's states on the way."""
PICTURES = "pictures"
"""The folder of what is drawn of the set."""
DRAWN = f"{PICTURES}/drawn.json"
"""Notes there which files these are; whatever else lies there is the user's."""
EXPORT = "export"
"""The folder of exports, unless they are given another one."""
STAGED = ".finished"
"""Where a finished run is written before it replaces what the folder holds of a former one."""


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder, wherever links lead; it need not be there.

    Raises:
        ValueError: a path that no file can have.
    """
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_finished(folder: Path) -> bool:
    """Return whether a run folder holds a distilled set."""
    return (folder / SET).exists()


def is_started(folder: Path) -> bool:
    """Return whether a run folder holds a checkpoint."""
    return any((folder / CHECKPOINTS).glob("step-*.safetensors"))


def is_imported(folder: Path) -> bool:
    """Return whether a folder holds a set that was imported, by its options or by what the set says where they do not.

    False where both are damaged.
    """
    with suppress(CheckpointError, OSError):
        if settings_by_name(folder / CONFIG).get(IMPORTED):
            return True
    with suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((folder / SET).read_text(encoding="utf-8")).get("origin"))
    return False


def require_free(folder: Path, *, other: str, resume: str = "", overwrite: str = "") -> None:
    """Refuse a folder in which something is in the way of a run, see :func:`occupied`.

    Raises:
        ConfigError: saying what, and what to do.
    """
    if reason := occupied(folder, other=other, resume=resume, overwrite=overwrite):
        raise ConfigError(f"{folder} {reason}")


def occupied(folder: Path, *, other: str, resume: str = "", overwrite: str = "") -> str:
    """Return what is in the way of a run in a folder: a file, a link out of it and, unless resumed or replaced, a run.

    Args:
        folder: which.
        other: how users name another one.
        resume: how they go on with an unfinished run; empty, as is the next one, if the folder may hold a run.
        overwrite: how they replace a run.
    Returns:
        That in words, with what to do; nothing where nothing is.
    """
    if folder.exists() and not folder.is_dir():
        return f"is a file, and a run needs a folder; choose {other}"
    own = [folder / name for name in (CHECKPOINTS, PICTURES, EXPORT, STAGED)]
    if away := [path for path in (*own, *folder.glob(f"{CHECKPOINTS}/rank-*")) if not is_inside(path, folder)]:
        return (
            f"holds the link {away[0].relative_to(folder)}, which leads out of it to {os.path.realpath(away[0])}, "
            f"where no run writes or removes anything; remove the link, or choose {other}"
        )
    if resume and is_finished(folder):
        return f"already holds a finished run; choose {other} or begin anew with {overwrite}"
    if resume and is_started(folder):
        return f"holds an unfinished run; continue it with {resume}, choose {other} or begin anew with {overwrite}"
    return ""


def ways_out(folder: Path) -> dict[str, str]:
    """Return what a command's user does where a run is in the way, for :func:`occupied`."""
    return {"other": "another --out", "resume": f"--resume {as_argument(folder)}", "overwrite": "--overwrite"}


def runs_within(folder: Path) -> str:
    """Return "; it holds the runs ..." for a folder of runs, nothing for others."""
    names = sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and holds_work(sub)) if folder.is_dir() else []
    return f"; it holds the run{'s' if len(names) > 1 else ''} {first_few(names)}" if names else ""


def traces(folder: Path) -> dict[str, int]:
    """Return what a run folder holds of work by name, each with its time, by which is seen whether it was replaced."""
    paths = [folder / SET, *(folder / CHECKPOINTS).glob("step-*.safetensors")]
    return {path.name: path.stat().st_mtime_ns for path in paths if path.is_file()}


def holds_work(folder: Path) -> bool:
    """Return whether a run folder holds a distilled set or a checkpoint."""
    return is_finished(folder) or is_started(folder)
