"""Reads interaction tables as they are published: MovieLens, RecBole, delimited files with a header."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmdistill.errors import ConfigError, DataError
from mmdistill.files import tables
from mmdistill.files.columns import ITEM_COLUMNS, SPLIT_COLUMNS, USER_COLUMNS
from mmdistill.files.decoding import decoded
from mmdistill.files.tables import BY_PANDAS, SUFFIXES, UNDELIMITED, guessed, spelt, suffix
from mmdistill.recsys.cleaning import feedback
from mmdistill.recsys.splits import SPLITS

RATING_COLUMNS = ("rating", "ratings", "score", "stars", "overall", "value", "label", "weight", "count")
FEEDBACK_COLUMNS = (
    *("book-rating", "click", "clicked", "is_click", "is_clicked", "clicks", "like", "liked", "is_like", "is_liked"),
    *("target", "feedback", "interaction", "interactions", "response", "is_interacted", "watched", "purchased"),
    *("play", "plays", "play_count", "playcount", "listen_count", "watch_ratio", "quantity"),
)
"""Read as ratings where none of :data:`RATING_COLUMNS` is there and they hold numbers, and no words like view."""
TIME_COLUMNS = ("timestamp", "time", "ts", "date", "datetime", "unixreviewtime", "unix_timestamp", "created_at")
ALIASES = {
    "user": USER_COLUMNS,
    "item": ITEM_COLUMNS,
    "rating": (*RATING_COLUMNS, *FEEDBACK_COLUMNS),
    "time": TIME_COLUMNS,
}
ACCEPTED = (
    "user,item[,rating][,split] tables (.csv, .tsv, .txt, .jsonl, .json, plain or .gz; .parquet and .feather with "
    "pyarrow), MovieLens ratings.dat and u.data, RecBole .inter (plain or .gz), scipy sparse .npz, or a folder with "
    "one of them"
)
UNREAD_SHOWN = 8
"""Names of columns that a note lists."""
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
"""What is looked for in a folder, in this order; then a single ``.inter`` file."""

MISSING = ("", "nan", "NaN", "null", "NULL", "None")


def find_file(folder: Path) -> Path:
    """Return the interaction file of a data set's folder (or of the one folder that it was unpacked into).

    Raises:
        DataError: there is none, or more than one ``.inter`` file.
    """
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "_"))]
    for place in [folder, *inner]:
        for name in FOLDER_FILES:
            if (place / name).is_file():
                return place / name
        recbole = sorted(place.glob("*.inter"))
        if len(recbole) > 1:
            raise DataError(f"{place} has {len(recbole)} .inter files; name the one to read")
        if recbole:
            return recbole[0]
    raise DataError(f"{folder} has no interactions: expected one of {', '.join(FOLDER_FILES)} or an .inter file in it")


def looks_like_interactions(path: Path) -> bool:
    """Return whether a file or folder can be read as interactions, judged by names and the header line."""
    if path.is_dir():
        try:
            path = find_file(path)
        except DataError:
            return False
    if suffix(path) == ".inter" or path.name.removesuffix(".gz") in ("u.data", "ratings.dat"):
        return True
    if path.suffix.lower() == ".npz":  # of other data images, which are looked for first
        return path.is_file()
    try:
        return path.is_file() and suffix(path) in SUFFIXES and tables.of_interactions(tables.header(path))
    except DataError:
        return suffix(path) in BY_PANDAS  # the loader says what is wrong


@dataclass(frozen=True)
class Columns:
    """What a table calls its columns; those that are None are guessed.

    Args:
        user: of users.
        item: of items.
        rating: of ratings.
        time: of times.
    """

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    time: str | None = None

    def require_none(self, what: str) -> None:
        """Refuse names of columns where nothing has a name.

        Raises:
            ConfigError: naming the first.
        """
        for name in asdict(self).values():
            if name is not None:
                raise ConfigError(f"{what} has no names of columns, so none is called {name!r}; leave it out")


def read_table(
    path: Path, wanted: Columns = Columns(), *, by_time: bool = False
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read any accepted file but ``.npz`` as text columns ``user``, ``item`` and, where there, the others.

    These are ``rating``, ``time`` and ``split``. Times that are numbers come as such, unless they are what rows are
    split by (``by_time``), of which errors quote what is written. Beside the table come notes on columns that are not
    read.

    Raises:
        ConfigError: no column of a wanted name.
        DataError: missing, empty, damaged or undecodable file, or no user or item column.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the interactions there or name another file")
    if suffix(path) not in (*SUFFIXES, ".inter", ".dat", ".data"):
        raise DataError(f"{path} is no table of interactions; read are {ACCEPTED}")
    tabs = path.name.removesuffix(".gz") == "u.data"
    if tabs or suffix(path) == ".dat" or (suffix(path) not in UNDELIMITED and "::" in "".join(tables.header(path))):
        wanted.require_none(f"{path}, which has no header,")
        return _headerless(path, "\t" if tabs else "::", by_time), ()
    names = [] if suffix(path) in UNDELIMITED else tables.header(path)
    places = _places(names, wanted, path)[1] if names else {}
    written = {index for role, index in places.items() if role != "time" or by_time}
    numbers = [i for i, name in enumerate(names) if i not in written and spelt(name).lower() not in SPLIT_COLUMNS]
    table = tables.read(path, MISSING, numbers=numbers)
    if table.empty:
        raise DataError(f"{path} has no interactions")
    return select_columns(table, str(path), wanted)


def select_columns(
    frame: pd.DataFrame, origin: str, wanted: Columns = Columns()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the user, item, rating, time and split columns of a table under these five names, and notes.

    A column that is called like one of splits and names none, as cross-validation has them, is not read.

    Raises:
        ConfigError: there is no column of a wanted name, or one is to be two things.
        DataError: there is no user or no item column, or there are several of one name.
    """
    columns = [str(column) for column in frame.columns]
    given, places = _places(columns, wanted, origin)
    twice = [role for role in places if places[role] is not None and [*places.values()].count(places[role]) > 1]
    if twice:
        raise ConfigError(f"of {origin} one column is to be {' and '.join(twice)}; name each its own")
    found, used = {}, set[int]()
    for role, aliases in ALIASES.items():
        index = places[role]
        if index is not None and (
            role != "rating" or role in given or _is_rating(columns[index], frame.iloc[:, index])
        ):
            if columns.count(columns[index]) > 1:
                raise DataError(f"{origin} has several columns called {columns[index]!r}; keep one of them")
            found[role] = frame.iloc[:, index]
            used.add(index)
        elif role in ("user", "item"):
            raise DataError(
                f"{origin} has no {role} column: expected a header with one of {', '.join(aliases)}; "
                f"found {', '.join(columns) or 'nothing'}. Name it with --{role}-column ({role}_column)"
            )
    split, notes = tables.split_column(frame, SPLITS, used)
    if split is not None:
        found["split"] = frame.iloc[:, split]
    known = (*TIME_COLUMNS, *SPLIT_COLUMNS)
    unread = [i for i, name in enumerate(columns) if i not in used and spelt(name).lower() not in known]
    return pd.DataFrame(found), (*notes, *_unread_notes(frame, columns, unread, rated="rating" in found))


def _places(columns: list[str], wanted: Columns, origin: object) -> tuple[dict[str, int], dict[str, int | None]]:
    """Return the place of each role's column that the user named, and of each role's that is named or guessed.

    Raises:
        ConfigError: there is no column of a wanted name.
    """
    given = {role: tables.named(columns, name, origin) for role, name in asdict(wanted).items() if name is not None}
    free = ["" if index in given.values() else name for index, name in enumerate(columns)]  # for what may be missing
    return given, {
        role: given.get(role, guessed(columns if role in ("user", "item") else free, aliases))
        for role, aliases in ALIASES.items()
    }


def _is_rating(name: str, column: "pd.Series[Any]") -> bool:
    """Return whether a guessed column of ratings is one; what only may be one is where it holds nothing but numbers."""
    return spelt(name).lower() in RATING_COLUMNS or bool(np.isfinite(feedback(column)).all())


def _unread_notes(frame: pd.DataFrame, columns: list[str], unread: list[int], *, rated: bool) -> list[str]:
    """Return a note on columns that are not read.

    Without ratings (``rated``) it has a hint at a column that may say which rows are no interactions.
    """
    if not unread:
        return []
    names = [repr(columns[index]) for index in unread]
    shown = ", ".join(names[:UNREAD_SHOWN]) + f" and {len(names) - UNREAD_SHOWN} more" * (len(names) > UNREAD_SHOWN)
    zeros = [] if rated else [repr(columns[index]) for index in unread if _marks_some(frame.iloc[:, index])]
    hint = (
        f"; {zeros[0]} holds zeros: if these are no interactions, name it with --rating-column (rating_column)"
        if zeros
        else ""
    )
    return [f"columns that are not read: {shown}{hint}"]


def _marks_some(column: "pd.Series[Any]") -> bool:
    """Return whether a column is of numbers, several of them 0 (one zero has any numbering of rows) and others not."""
    values = feedback(column)
    zeros = int((values == 0).sum())
    return bool(np.isfinite(values).all()) and 1 < zeros < len(values)


def _headerless(path: Path, separator: str, by_time: bool) -> pd.DataFrame:
    """Read MovieLens' user, item, rating, timestamp lines."""
    text = decoded(path).replace(separator, "\t")  # one character: pandas' fast parser
    names = ["user", "item", "rating", "time"][: max(3, text.partition("\n")[0].count("\t") + 1)]
    try:
        return tables.as_text(
            io.StringIO(text),
            names,
            () if by_time else {"time"}.intersection(names),
            sep="\t",
            header=None,
            usecols=range(len(names)),
            keep_default_na=False,
            na_values=list(MISSING),
        )
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read as user{separator}item{separator}rating{separator}timestamp lines: {error}"
        ) from error
