"""Paths as users write them."""

from os import PathLike
from pathlib import Path


def users_path(path: str | PathLike[str]) -> Path:
    """Expand a leading ``~`` to the user's home folder, as a shell does; return other paths unchanged."""
    written = Path(path)
    try:
        return written.expanduser()
    except RuntimeError:  # the system knows no home folder of this user
        return written
