"""Folders with a subfolder of files for each class, for images and texts."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from mmdistill.errors import DataError


def class_folders(folder: Path) -> list[Path]:
    """Return a folder's subfolders by name, each a class; hidden ones are ignored."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not is_hidden(sub.name))


def is_hidden(name: str) -> bool:
    """Return whether a folder is not part of the data, such as a notebook's checkpoints or an archiver's metadata."""
    return name.startswith((".", "__"))


def samples_under(
    folder: Path, is_sample: Callable[[str], bool], unread: Counter[str], *, noun: str, endings: str
) -> list[str]:
    """Return the files of a class, in a fixed order.

    Args:
        folder: of the class; its files may lie deeper.
        is_sample: whether a file is one, by its name.
        unread: is updated with the endings of other files; hidden files are ignored.
        noun: what a sample is called.
        endings: of such files, in words.
    Raises:
        DataError: there are none.
    """
    paths = []
    for subfolder, names in sorted(_walk(folder)):
        paths += [os.path.join(subfolder, name) for name in sorted(filter(is_sample, names))]
        others = (name for name in names if not name.startswith(".") and not is_sample(name))
        unread.update(os.path.splitext(name)[1].lower() for name in others)
    if not paths:
        raise DataError(f"{folder} holds no {noun}, so there is nothing of its class; add some ({endings})")
    return paths


def unread_notes(folder: Path, unread: Counter[str]) -> list[str]:
    """Return a note on the files of other kinds that :func:`samples_under` found in a folder."""
    if not unread:
        return []
    kinds = ", ".join(f"{number} {suffix or 'without an ending'}" for suffix, number in sorted(unread.items()))
    return [f"{folder.name}/: files of other kinds are not read: {kinds}"]


def loose_note(folder: Path, is_sample: Callable[[str], bool], noun: str) -> list[str]:
    """Return a note if samples lie directly in a folder of which only the subfolders are read."""
    count = sum(is_sample(file.name) and file.is_file() for file in folder.iterdir())
    return [f"{folder.name}/: {count} {noun}s beside the subfolders are not read"] if count else []


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and its nested subfolders, without hidden ones, each with the names of its files."""
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not is_hidden(name) and not _leads_back(parent, name)]
        yield parent, names


def _leads_back(parent: str, name: str) -> bool:
    """Return whether a subfolder is a link to a folder that contains it, so that a walk would not end."""
    path = os.path.join(parent, name)
    return os.path.islink(path) and (os.path.realpath(parent) + os.sep).startswith(os.path.realpath(path) + os.sep)
