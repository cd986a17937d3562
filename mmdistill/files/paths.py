"""Paths as users write them."""

from os import PathLike
from pathlib import Path


def users_path(path: str | PathLike[str]) -> Path:
    """Return a path whose leading ``~`` is the user's home folder, as a shell has it; where none is known, as it is."""
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:  # ~someone of whom the system knows no home
        return given
