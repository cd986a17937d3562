"""Find the interactions in a folder: one file of them, or the files of a split."""

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
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "_"))]
    for place in [folder, *inner]:
        for name in FOLDER_FILES:
            if (place / name).is_file():
                return {WHOLE: place / name}
        splits = _splits(place)
        if len(splits) > 1:
            raise DataError(f"{place} has the splits of several data, {first_few([*splits])}; keep one of them in it")
        if splits:
            return next(iter(splits.values()))
        recbole = sorted(place.glob("*.inter"))
        if len(recbole) > 1:
            raise DataError(f"{place} has {len(recbole)} .inter files; name the one to read")
        if recbole:
            return {WHOLE: recbole[0]}
    return {}


def _splits(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the files of each split in a folder, by the name before their parts; all have train and test.

    Raises:
        DataError: two files for one part.
    """
    splits: dict[str, dict[str, Path]] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        stem, _, ending = path.name.removesuffix(".gz").rpartition(".")
        name, _, word = stem.rpartition(".")
        if MOVIELENS_100K.fullmatch(f"{stem}.{ending}"):
            name, word = stem, ending.replace("base", "train")
        elif suffix(path) not in (*SUFFIXES, ".inter", NCF):
            continue
        if split := known_split(word):
            parts = splits.setdefault(name, {})
            if split in parts:
                raise DataError(f"{parts[split]} and {path.name} both name the {split} split; keep one of them")
            parts[split] = path
    return {
        name: {split: parts[split] for split in SPLIT_NAMES if split in parts}
        for name, parts in splits.items()
        if {"train", "test"} <= {*parts}
    }


def unread_note(path: Path) -> list[str]:
    """Return a note if a file that was read lies beside files of a split, its own or another."""
    try:
        splits = _splits(path.parent).values()
    except DataError:
        return []
    is_whole = path.name in FOLDER_FILES and not MOVIELENS_100K.fullmatch(path.name.removesuffix(".gz"))
    unread = [
        other.name
        for parts in splits
        if is_whole or path in parts.values()
        for other in parts.values()
        if other != path
    ]
    hint = 'to keep their split, give a folder of only these files, or in Python {"train": ..., "test": ...}'
    return [f"not read: {first_few(unread)}, beside {path.name}; {hint}"] if unread else []


def looks_like_interactions(path: Path) -> bool:
    """Return whether a file or folder looks readable as interactions, by its name and header line."""
    if path.is_dir():
        try:
            files = find_files(path)
        except DataError:
            return True  # let the loader report what is wrong
        if not files:
            return False
        path = files.get(WHOLE) or files["train"]
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
