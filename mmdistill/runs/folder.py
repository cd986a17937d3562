"""The files of a run's folder, by name; does not import torch, so that the command line's help is fast."""

import json
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.files.plain_yaml import as_yaml, settings_by_name
from mmdistill.names import as_argument, first_few

SAMPLES = "distilled.safetensors"
"""The set's tensors."""
SET = "distilled.json"
"""The set's description; written last, so that a folder with it holds a finished run."""
METRICS = "metrics.json"
"""The scores."""
HISTORY = "history.json"
"""The loss at the steps at which it was read."""
REPORT = "report.md"
"""The run's report, as Markdown."""
PAGE = "report.html"
"""The same as one HTML page that includes the pictures."""
CONFIG = "config.yaml"
"""The options of the command line."""
IMPORTED = "imported"
"""The key in ``config.yaml`` that is true for an imported set; not an option of the command line."""
LOG = "log.txt"
"""The output of a run that a sweep started."""
CHECKPOINTS = "checkpoints"
"""The folder of the run's checkpoints."""
PICTURES = "pictures"
"""The folder of the set's pictures."""
DRAWN = f"{PICTURES}/drawn.json"
"""Lists the pictures that were drawn there; all other files there are the user's."""
EXPORT = "export"
"""The default folder of exports."""
STAGED = ".finished"
"""Where a finished run is written before it replaces a former run."""
COMMON_NAMES = (CONFIG, HISTORY, METRICS)
"""Files of a run that other programs' files are called as well."""
OWN_KEYS = {
    CONFIG: {"data", "method", "seed", "device", "networks", "baselines"},
    HISTORY: {"step", "loss"},
    METRICS: {"version", "data", "method", "results", "baselines"},
}
"""The keys by which these are told from others."""
COMMENT = re.compile(r"(^|\s)#", re.MULTILINE)
"""What begins a comment in YAML, and may be in a quoted text."""


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, which need not exist, lies in a folder after all links are resolved.

    Raises:
        ValueError: no file can have such a path.
    """
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_finished(folder: Path) -> bool:
    """Return whether a run folder holds a distilled set."""
    return (folder / SET).exists()


def is_started(folder: Path) -> bool:
    """Return whether a run folder holds a checkpoint."""
    return any((folder / CHECKPOINTS).glob("step-*.safetensors"))


def is_imported(folder: Path) -> bool:
    """Return whether a folder holds an imported set, by its options, or else by the set; False if both are damaged."""
    with suppress(CheckpointError, OSError):
        if settings_by_name(folder / CONFIG).get(IMPORTED):
            return True
    with suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((folder / SET).read_text(encoding="utf-8")).get("origin"))
    return False


def is_own(path: Path) -> bool:
    """Return whether a file of :data:`COMMON_NAMES` is a run's, so that nothing of a person's is lost with it.

    A configuration must have all options that have a default, as a run writes it, and no comments.
    """
    try:
        if path.name != CONFIG:
            return OWN_KEYS[path.name].issubset(json.loads(path.read_text(encoding="utf-8")).keys())
        settings, text = settings_by_name(path), path.read_text(encoding="utf-8")
        return settings.keys() >= OWN_KEYS[CONFIG] and (not COMMENT.search(text) or as_yaml(settings) == text)
    except (CheckpointError, OSError, ValueError, AttributeError, RecursionError):
        return False


def require_free(
    folder: Path, *, other: str, resume: str = "", overwrite: str = "", writes: Collection[str] = ()
) -> None:
    """Refuse a folder that cannot take a run, see :func:`why_occupied`.

    Raises:
        ConfigError: it cannot; says why, and what to do.
    """
    if reason := why_occupied(folder, other=other, resume=resume, overwrite=overwrite, writes=writes):
        raise ConfigError(f"{folder} {reason}")


def why_occupied(
    folder: Path, *, other: str, resume: str = "", overwrite: str = "", writes: Collection[str] = ()
) -> str:
    """Return why a folder cannot take a run: it is a file, or has a run, a foreign file or a link that leads out of it.

    Args:
        folder: the folder.
        other: how users name another folder.
        resume: how users continue an unfinished run; empty, as is ``overwrite``, if the folder may hold a run.
        overwrite: how users replace a run.
        writes: which of :data:`COMMON_NAMES` the run writes; in a folder without a run, only a run's may be there.
    Returns:
        The reason in words, with what to do; empty if the folder is free.
    """
    if folder.exists() and not folder.is_dir():
        return f"is a file, and a run needs a folder; choose {other}"
    subfolders = [folder / name for name in (CHECKPOINTS, PICTURES, EXPORT, STAGED)]
    subfolders += folder.glob(f"{CHECKPOINTS}/rank-*")
    if outside := [path for path in subfolders if not is_inside(path, folder)]:
        link = outside[0]
        return (
            f"holds the link {link.relative_to(folder)}, which leads out of it to {os.path.realpath(link)}, "
            f"where no run writes or removes anything; remove the link, or choose {other}"
        )
    if resume and is_finished(folder):
        return f"already holds a finished run; choose {other} or begin anew with {overwrite}"
    if resume and is_started(folder):
        return f"holds an unfinished run; continue it with {resume}, choose {other} or begin anew with {overwrite}"
    foreign = [] if holds_work(folder) else [name for name in writes if os.path.lexists(folder / name)]
    if foreign := [name for name in foreign if not is_own(folder / name)]:
        ways = f"rename it, or choose {other}"
        if foreign[0] == CONFIG and _names_a_run(folder):
            ways += f", or, if it is a run's that you edited, continue it with --resume {as_argument(folder)}"
        return f"holds a {foreign[0]} of yours, which the run's own would replace; {ways}"
    return ""


def _names_a_run(folder: Path) -> bool:
    """Return whether a folder's configuration has the options of a distillation, perhaps with comments or others."""
    with suppress(CheckpointError, OSError):
        settings = settings_by_name(folder / CONFIG)
        return settings.keys() >= OWN_KEYS[CONFIG] and not settings.get(IMPORTED)
    return False


def ways_out(folder: Path) -> dict[str, str]:
    """Return the arguments of :func:`why_occupied` for users of the command line."""
    return {"other": "another --out", "resume": f"--resume {as_argument(folder)}", "overwrite": "--overwrite"}


def runs_within(folder: Path) -> str:
    """Return "; it holds the runs ..." for a folder of runs; empty for others."""
    names = sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and holds_work(sub)) if folder.is_dir() else []
    return f"; it holds the run{'s' if len(names) > 1 else ''} {first_few(names)}" if names else ""


def work_times(folder: Path) -> dict[str, int]:
    """Return the modification time (ns) of a run's set and checkpoints by file name; a replaced run has other ones."""
    paths = [folder / SET, *(folder / CHECKPOINTS).glob("step-*.safetensors")]
    return {path.name: path.stat().st_mtime_ns for path in paths if path.is_file()}


def holds_work(folder: Path) -> bool:
    """Return whether a run folder holds a distilled set or a checkpoint."""
    return is_finished(folder) or is_started(folder)
