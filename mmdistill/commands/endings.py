"""How an interrupted or failed command ends: what it keeps, what to do next, and signals that count as Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from mmdistill.config import AUTO, BUDGETS, DistillConfig
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.names import as_argument
from mmdistill.runs.folder import holds_work, work_times
from mmdistill.runs.signals import ENDING, HANGUP, hung_up


def replaced_by(options: Namespace) -> Mapping[str, int]:
    """Return the files of the run that a command is to replace, with their times; empty if it replaces none."""
    replaces = options.command == "distill" and options["distill"]["overwrite"] and not options["distill"]["resume"]
    return work_times(folder_of(options)) if replaces else {}


def kept(options: Namespace | None, former: Mapping[str, int], notes: Sequence[str] = ()) -> str:
    """Return in words what an interrupted command keeps and how to go on.

    Args:
        options: of the command.
        former: what :func:`replaced_by` returned before the command began.
        notes: what the interrupted code itself says it keeps.
    """
    command = None if options is None else options.command
    if options is None or command != "distill":
        return "finished work is kept" + ("; call it again" if command in ("experts", "sweep") else "")
    if "mmdistill.commands.making" not in sys.modules:  # its imports were interrupted and must not run again
        named = _named_folder(options)
        if named is not None and holds_work(named):
            return f"the run in {named} is untouched"
        return ", ".join(notes) or "nothing is finished yet"
    folder = folder_of(options)
    if former and work_times(folder) == former:
        kept_so_far = ", ".join(notes) or "nothing of the new run is finished yet"
        return f"{kept_so_far}; the former run in {folder} is untouched"
    if not holds_work(folder):
        return ", ".join(notes) or "nothing is finished yet"
    chosen = options["distill"]
    if chosen["resume"] == AUTO:
        return f"the run so far is in {folder}; the same command continues it"
    given = {name: chosen[name] for name in ("steps", "data") if chosen["resume"] and chosen[name] is not None}
    further = "".join(f" --{name} {as_argument(value)}" for name, value in given.items())
    return f"continue with: mmdistill distill --resume {as_argument(folder)}{further}"


def _named_folder(options: Namespace) -> Path | None:
    """Return the run folder that options of ``distill`` name; None if they name none."""
    resume, out = options["distill"]["resume"], options["distill"]["out"]
    name = out if resume in (None, AUTO) else resume
    return users_path(name) if name else None


def folder_of(options: Namespace) -> Path:
    """Return the run folder that options of ``distill`` name, or else the default one of their configuration."""
    if (named := _named_folder(options)) is not None:
        return named
    from mmdistill.registry import located  # here, as it imports torch

    chosen = options["distill"]
    config = DistillConfig(**{name: chosen[name] for name in ("method", *BUDGETS, "parameterization", "seed")})
    return replace(config, data=located(chosen["data"]) if chosen["data"] else None).folder()


@contextmanager
def ending_as_ctrl_c() -> Iterator[None]:
    """Within this context SIGTERM, SIGHUP and SIGUSR1 end a command as Ctrl-C does: half-written files are removed.

    All but SIGHUP get Python's own handler of Ctrl-C; a run replaces the handlers while it steps. A signal that is
    ignored (as under nohup) or has a handler already is left alone, and so are all outside the main thread.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    unhandled = [number for number in ENDING if in_main_thread and signal.getsignal(number) == signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, hung_up if number == HANGUP else signal.default_int_handler)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def remedy(path: object) -> str:
    """Return what to do about an unreadable or unwritable path in the cache folder; empty for other paths."""
    from mmdistill.runtime import cache_folder  # here, as it imports torch, which the command has by then

    if not isinstance(path, str | os.PathLike):
        return ""
    try:
        cache = cache_folder().absolute()
    except ConfigError:
        return ""
    failed = Path(path).absolute()
    missing_parent = failed in cache.parents and not failed.exists()  # it could not be created
    if missing_parent or failed.is_relative_to(cache):
        return "; set MMDISTILL_CACHE to a folder that can be written to"
    return ""
