"""Tell users how to continue a folder's run or make it anew: which program, with which options."""

from pathlib import Path

from mmdistill.errors import CheckpointError
from mmdistill.files.plain_yaml import settings_by_name
from mmdistill.names import as_argument
from mmdistill.registry import has_method
from mmdistill.runs.folder import CONFIG, is_finished, is_imported, is_started


def how_to_finish(folder: Path) -> str:
    """Return how to continue the unfinished run of a folder, in words; empty if it holds none."""
    return "" if is_finished(folder) else how_to_go_on(folder)


def require_finished(folder: Path) -> None:
    """Refuse a folder that holds an unfinished run.

    Raises:
        CheckpointError: it does; says how to continue.
    """
    if ending := how_to_finish(folder):
        raise CheckpointError(f"the run in {folder} is unfinished; {ending}")


def how_to_go_on(folder: Path) -> str:
    """Return how to continue a folder's run that is unfinished or being extended, in words."""
    if is_imported(folder):
        return how_to_begin_anew(folder)
    if (folder / CONFIG).is_file():
        again = f"distill --resume {as_argument(folder)}"
        if method := _method_of_a_script(folder):
            return f"its method {method!r} is that of a script, with which it goes on: python SCRIPT.py {again}"
        return f"it goes on with: mmdistill {again}"
    if is_started(folder):
        return "distill(task, ..., out=folder, resume=True) in Python continues it"
    return ""


def how_to_begin_anew(folder: Path) -> str:
    """Return how to make a run anew in its own folder, in words."""
    if is_imported(folder):
        return f"mmdistill import FILES ... --out {as_argument(folder)} --overwrite imports its set again"
    if not (folder / CONFIG).is_file():
        return "distill(task, ..., out=folder, overwrite=True) in Python makes it anew"
    options, out = as_argument(folder / CONFIG), as_argument(folder)
    return f"{_program(folder)} distill --config {options} --out {out} --overwrite makes it anew"


def how_to_judge(folder: Path) -> str:
    """Return that the set of a run, or those of a folder of runs, are not judged, and how to judge them, in words."""
    return f"not judged; that does: mmdistill evaluate {as_argument(folder)}"


def _program(folder: Path) -> str:
    """Return the program that a run's options are for."""
    return "python SCRIPT.py" if _method_of_a_script(folder) else "mmdistill"


def _method_of_a_script(folder: Path) -> str:
    """Return the method of a run's options if a script registered it; empty for ours, and for damaged options."""
    try:
        method = settings_by_name(folder / CONFIG).get("method")
    except (CheckpointError, OSError):
        return ""
    return method if isinstance(method, str) and not has_method(method) else ""
