"""Find the interactions in a folder: one file of them, or the files of a split."""

import os
from pathlib import Path

import pandas as pd

from mmdistill.errors import DataError
from mmdistill.files.columns import SPLIT_NAMES, known_split
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.files.tables import BY_PANDAS, SUFFIXES, suffix
from mmdistill.names import first_few
from mmdistill.recsys.files import MOVIELENS_100K, NCF, names_users_and_items

FOLDER_FILES = (
    "interactions.csv.gz",
    "interactions.csv",
    "interactions.npz",
    "ratings.dat",
    "ratings.dat.gz",
    "u.data",
    "u.data.gz",
    "ratings.csv.gz",
    "ratings.csv",
)
"""Files to look for in a folder, in this order; after them the files of a split, and a single ``.inter`` file."""
WHOLE = "all"
"""The key of a file that is no part of a split."""
OF_LISTS = ("train.txt", "test.txt")
"""The files of LightGCN's layout, each row a user and their items."""


def find_files(folder: Path) -> dict[str, Path]:
    """Return the interaction files of a data set's folder, or of a subfolder that an archive was unpacked into.

    They are a single file under :data:`WHOLE`, or those of a split by train, dev and test; or there are none.

    Raises:
        DataError: more than one ``.inter`` file, several files for a part, or several splits.
    """
    candidates = _candidates(folder)
    if not candidates:
        return {}
    files = next(iter(candidates.values()))
    place = next(iter(files.values()))[0].parent
    if len(candidates) > 1 and WHOLE in files:
        raise DataError(f"{place} has {len(candidates)} .inter files; name the one to read")
    if len(candidates) > 1:
        several = first_few([parts["train"][0].name for parts in candidates.values()])
        raise DataError(f"{place} has the splits of several data, {several}; keep one of them in it")
    for split, paths in files.items():
        if len(paths) > 1:
            raise DataError(f"{paths[0]} and {paths[1].name} both name the {split} split; keep one of them")
    return {split: paths[0] for split, paths in files.items()}


def _candidates(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return by name what may be the interactions of a folder, each the files of a whole or of the parts of a split.

    A split that cannot be told to be of interactions, since the user can name its columns, comes last.
    """
    inner = sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] not in "._")
    for place in [folder, *inner]:
        for name in FOLDER_FILES:
            if (place / name).is_file():
                return {name: {WHOLE: [place / name]}}
        names = sorted(os.listdir(place))
        splits = _splits(place, names)
        told = {name: parts for name, parts in splits.items() if _is_told(parts["train"][0])}
        recbole = {name: {WHOLE: [place / name]} for name in names if name.endswith(".inter")}
        if candidates := told or recbole or splits:
            return candidates
    return {}


def _part_of(name: str) -> tuple[str, str] | None:
    """Return the name before its part of a split, and the part, of a file's name; None if it names no part."""
    stem, _, ending = name.removesuffix(".gz").rpartition(".")
    whole, _, word = stem.rpartition(".")
    if MOVIELENS_100K.fullmatch(f"{stem}.{ending}"):
        whole, word = stem, ending.replace("base", "train")
    elif f".{ending.lower()}" not in (*SUFFIXES, ".inter", NCF):
        return None
    split = known_split(word)
    return None if split is None else (whole, split)


def _splits(folder: Path, names: list[str]) -> dict[str, dict[str, list[Path]]]:
    """Return the files of each split by part, by the name before their parts; all have train and test.

    Args:
        folder: of the files.
        names: of all files and folders in it; only those that name a part are looked at.
    """
    splits: dict[str, dict[str, list[Path]]] = {}
    for name in names:
        if (part := _part_of(name)) is not None and (folder / name).is_file():
            splits.setdefault(part[0], {}).setdefault(part[1], []).append(folder / name)
    return {
        name: {split: parts[split] for split in SPLIT_NAMES if split in parts}
        for name, parts in splits.items()
        if {"train", "test"} <= {*parts}
    }


def unread_note(path: Path) -> list[str]:
    """Return a note if a file that was read lies beside files of a split, its own or another."""
    is_whole = path.name in FOLDER_FILES and not MOVIELENS_100K.fullmatch(path.name.removesuffix(".gz"))
    if not is_whole and _part_of(path.name) is None:
        return []
    splits = _splits(path.parent, sorted(os.listdir(path.parent))).values()
    beside = [[other for paths in parts.values() for other in paths] for parts in splits]
    unread = [other.name for paths in beside if is_whole or path in paths for other in paths if other != path]
    hint = 'to keep their split, give a folder of only these files, or in Python {"train": ..., "test": ...}'
    return [f"not read: {first_few(unread)}, beside {path.name}; {hint}"] if unread else []


def looks_like_interactions(path: Path) -> bool:
    """Return whether a file or folder looks readable as interactions, by its name and header line."""
    if not path.is_dir():
        return _is_told(path)
    candidates = _candidates(path).values()  # the loader refuses several
    return any(_is_told((files.get(WHOLE) or files["train"])[0]) for files in candidates)


def _is_told(path: Path) -> bool:
    """Return whether a file can be told to hold interactions, by its name and header line."""
    name = path.name.removesuffix(".gz")
    if suffix(path) in (".inter", NCF) or MOVIELENS_100K.fullmatch(name) or name == "ratings.dat":
        return True
    if path.suffix.lower() == ".npz":  # may hold images too, but those are checked first
        return path.is_file()
    try:
        return path.is_file() and (holds_lists(path) or names_users_and_items(path))
    except DataError:
        return suffix(path) in BY_PANDAS


def holds_lists(path: Path) -> bool:
    """Return whether each row of a file is a user and their items (LightGCN's layout), by the start of ``train.txt``.

    There, rows are whole numbers between spaces, differ in length, and start with different users.
    """
    train, test = (path.with_name(name) for name in OF_LISTS)
    if path.name not in OF_LISTS or not (train.is_file() and test.is_file()):
        return False
    lines = decoded(train, HEAD_BYTES).split("\n")
    rows = [line.split() for line in lines[:-1] if line.strip()]  # the last line may be cut
    whole = all(word.isdecimal() for row in rows for word in row)
    return whole and len({len(row) for row in rows}) > 1 and len({row[0] for row in rows}) == len(rows)


def read_lists(path: Path) -> pd.DataFrame:
    """Read rows of a user and their items as a table with the columns ``user`` and ``item``.

    Raises:
        DataError: damaged or undecodable file, or a row with something else than whole numbers; it is named.
    """
    rows = [line.split() for line in decoded(path).split("\n")]
    for number, row in enumerate(rows, start=1):
        if not all(word.isdecimal() for word in row):
            raise DataError(f"{path}, line {number}, should hold the number of a user and those of their items")
    rows = [row for row in rows if row]
    table = pd.DataFrame({"user": [row[0] for row in rows], "item": [row[1:] for row in rows]})
    return table.explode("item").dropna(ignore_index=True)  # a user without items has a row too
