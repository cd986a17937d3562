"""How a command ends that does not end by itself: what it keeps, what to do next, and signals that count as Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from mmdistill.config import BUDGETS, DistillConfig
from mmdistill.errors import ConfigError
from mmdistill.files.paths import users_path
from mmdistill.names import as_argument
from mmdistill.runs.folder import holds_work, traces
from mmdistill.runs.signals import ENDING, HANGUP, hung_up


def replaced_by(options: Namespace) -> Mapping[str, int]:
    """Return what the folder holds of a run that a command is to replace; nothing where it replaces none."""
    replaces = options.command == "distill" and options["distill"]["overwrite"] and not options["distill"]["resume"]
    return traces(folder_of(options)) if replaces else {}


def kept(options: Namespace | None, former: Mapping[str, int], notes: Sequence[str] = ()) -> str:
    """Return in words what an interrupted command keeps and how to go on.

    Args:
        options: of the command.
        former: what its folder held of a run that it was to replace.
        notes: what the interrupted code says that it keeps.
    """
    command = None if options is None else options.command
    if options is None or command != "distill":
        return "finished work is kept" + ("; call it again" if command in ("experts", "sweep") else "")
    if "mmdistill.commands.making" not in sys.modules:  # what was interrupted were its imports, which none may repeat
        given = _given_folder(options)
        there = given is not None and holds_work(given)
        return f"the run in {given} is untouched" if there else ", ".join(notes) or "nothing is finished yet"
    folder = folder_of(options)
    if former and traces(folder) == former:
        own = ", ".join(notes) or "nothing of the new run is finished yet"
        return f"{own}; the former run in {folder} is untouched"
    if not holds_work(folder):
        return ", ".join(notes) or "nothing is finished yet"
    chosen = options["distill"]
    further = f" --steps {steps}" if chosen["resume"] and (steps := chosen["steps"]) is not None else ""
    return f"continue with: mmdistill distill --resume {as_argument(folder)}{further}"


def _given_folder(options: Namespace) -> Path | None:
    """Return the run folder that options of ``distill`` name; None where they leave it to what is distilled."""
    own = options["distill"]["resume"] or options["distill"]["out"]
    return users_path(own) if own else None


def folder_of(options: Namespace) -> Path:
    """Return the run folder that options of ``distill`` mean."""
    if (given := _given_folder(options)) is not None:
        return given
    from mmdistill.registry import located  # here, as it imports torch

    chosen = options["distill"]
    config = DistillConfig(**{name: chosen[name] for name in ("method", *BUDGETS, "parameterization", "seed")})
    return replace(config, data=located(chosen["data"]) if chosen["data"] else None).folder()


@contextmanager
def ending_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: what is half written goes, and a line says what is kept.

    SIGTERM gets Python's own handler of Ctrl-C; in their place the steps of a run have theirs. Where one is ignored (as
    under nohup) or has a handler already, and in threads, which cannot have one, it stays as it is.
    """
    alone = threading.current_thread() is threading.main_thread()
    left = [number for number in ENDING if alone and signal.getsignal(number) == signal.SIG_DFL]
    for number in left:
        signal.signal(number, hung_up if number == HANGUP else signal.default_int_handler)
    try:
        yield
    finally:
        for number in left:
            signal.signal(number, signal.SIG_DFL)


def remedy(path: object) -> str:
    """Return what to do where a path of the cache folder can be neither read nor written; nothing of other paths."""
    from mmdistill.runtime import cache_folder  # imports torch, as the command has by then

    if not isinstance(path, str | os.PathLike):
        return ""
    try:
        cache = cache_folder().absolute()
    except ConfigError:
        return ""
    failed = Path(path).absolute()
    above = failed in cache.parents and not failed.exists()  # one that could not be made
    return "; set MMDISTILL_CACHE to a folder that can be written to" if above or failed.is_relative_to(cache) else ""
