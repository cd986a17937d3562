"""Lists of the files that this package wrote into a folder, so that it never removes the user's own."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmdistill.errors import CheckpointError
from mmdistill.runs.folder import is_inside
from mmdistill.runtime import patiently
from mmdistill.store import read_json, write_json


def note_written(listing: Path, written: Sequence[Path], entries: Mapping[str, object] | None = None) -> None:
    """Add files to the listing of their folder, and set its other entries."""
    names = [path.relative_to(listing.parent).as_posix() for path in written]
    write_json(listing, {**(entries or {}), "files": list(dict.fromkeys([*_listed(listing), *names]))})


def written_files(listing: Path) -> list[str]:
    """Return the names of existing files in a listing; without folders, and files outside the listing's folder.

    Raises:
        CheckpointError: the listing is damaged.
    """
    names = read_json(listing).get("files") if listing.is_file() else None
    return [name for name in (names if isinstance(names, list) else []) if _is_file(listing.parent, name)]


def remove_written(listing: Path) -> None:
    """Remove a listing, its files and folders that are then empty; of a damaged listing only itself."""
    if not listing.is_file():
        return
    folder = listing.parent
    paths = [*(folder / name for name in _listed(listing)), listing]
    for path in paths:
        patiently(partial(path.unlink, missing_ok=True))
    folders = {place for path in paths for place in path.parents if place.is_relative_to(folder) and place.is_dir()}
    for place in sorted(folders, reverse=True):
        if not any(place.iterdir()):
            place.rmdir()


def _listed(listing: Path) -> list[str]:
    """Return the files in a listing; none if it is damaged."""
    try:
        return written_files(listing)
    except CheckpointError:
        return []


def _is_file(folder: Path, name: object) -> bool:
    """Return whether an entry of a listing, which may be damaged, names a file in its folder."""
    try:
        path = folder / name if isinstance(name, str) else folder
        return path.is_file() and is_inside(path, folder)
    except (OSError, ValueError):  # a name that no file can have
        return False
