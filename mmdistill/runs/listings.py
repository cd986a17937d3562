"""What was written into a folder beside its user's own files, noted there, so that these alone are ever removed."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmdistill.errors import CheckpointError
from mmdistill.runs.folder import is_inside
from mmdistill.runtime import patiently
from mmdistill.store import read_json, write_json


def note_written(listing: Path, written: Sequence[Path], said: Mapping[str, object] | None = None) -> None:
    """Note files in the listing of their folder, beside those that it has, and what else it shall say."""
    names = [path.relative_to(listing.parent).as_posix() for path in written]
    write_json(listing, {**(said or {}), "files": list(dict.fromkeys([*_known(listing), *names]))})


def written_files(listing: Path) -> list[str]:
    """Return the files that a listing notes; none that lie outside of its folder, and no folders.

    Raises:
        CheckpointError: it is damaged.
    """
    names = read_json(listing).get("files") if listing.is_file() else None
    return [name for name in (names if isinstance(names, list) else []) if _is_file(listing.parent, name)]


def remove_written(listing: Path) -> None:
    """Remove a listing and what it notes; whatever else lies there stays, and what a damaged one may have noted."""
    if not listing.is_file():
        return
    folder = listing.parent
    paths = [*(folder / name for name in _known(listing)), listing]
    for path in paths:
        patiently(partial(path.unlink, missing_ok=True))
    inside = {place for path in paths for place in path.parents if place.is_relative_to(folder) and place.is_dir()}
    for place in sorted(inside, reverse=True):
        if not any(place.iterdir()):
            place.rmdir()


def _known(listing: Path) -> list[str]:
    """Return the files that a listing notes, of a damaged one none."""
    try:
        return written_files(listing)
    except CheckpointError:
        return []


def _is_file(folder: Path, name: object) -> bool:
    """Return whether a name in a listing, which may be damaged, is that of a file in its folder."""
    try:
        path = folder / name if isinstance(name, str) else folder
        return path.is_file() and is_inside(path, folder)
    except (OSError, ValueError):  # a name that no file can have
        return False
