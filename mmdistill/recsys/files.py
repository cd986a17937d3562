"""Read interaction tables as they are published: MovieLens, RecBole, delimited files with a header."""

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
"""Read as ratings if there is none of :data:`RATING_COLUMNS` and they hold only numbers (no words like "view")."""
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
"""How many names of unread columns a note lists."""
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
"""Files to look for in a folder, in this order; after them a single ``.inter`` file."""

MISSING = ("", "nan", "NaN", "null", "NULL", "None")


def find_file(folder: Path) -> Path:
    """Return the interaction file of a data set's folder, or of a subfolder that an archive was unpacked into.

    Raises:
        DataError: there is no such file, or more than one ``.inter`` file.
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
    """Return whether a file or folder looks readable as interactions, by its name and header line."""
    if path.is_dir():
        try:
            path = find_file(path)
        except DataError:
            return False
    if suffix(path) == ".inter" or path.name.removesuffix(".gz") in ("u.data", "ratings.dat"):
        return True
    if path.suffix.lower() == ".npz":  # may hold images too, but those are checked first
        return path.is_file()
    try:
        return path.is_file() and suffix(path) in SUFFIXES and tables.of_interactions(tables.header(path))
    except DataError:
        return suffix(path) in BY_PANDAS  # let the loader report what is wrong


@dataclass(frozen=True)
class Columns:
    """The column names of a table; None is guessed.

    Args:
        user: name of the user column.
        item: name of the item column.
        rating: name of the rating column.
        time: name of the time column.
    """

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    time: str | None = None

    def require_none(self, what: str) -> None:
        """Refuse column names for data without a header.

        Raises:
            ConfigError: a name is given; the message quotes the first.
        """
        for name in asdict(self).values():
            if name is not None:
                raise ConfigError(f"{what} has no names of columns, so none is called {name!r}; leave it out")


def read_table(
    path: Path, requested: Columns = Columns(), *, by_time: bool = False
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read any accepted file but ``.npz`` as text columns ``user``, ``item`` and, if present, the optional ones.

    These are ``rating``, ``time`` and ``split``. Numeric times are read as numbers, unless rows are split by them
    (``by_time``): errors then quote them as written. Returns the table and notes on columns that are not read.

    Raises:
        ConfigError: a requested column does not exist.
        DataError: missing, empty, damaged or undecodable file, or no user or item column.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the interactions there or name another file")
    if suffix(path) not in (*SUFFIXES, ".inter", ".dat", ".data"):
        raise DataError(f"{path} is no table of interactions; read are {ACCEPTED}")
    tabs = path.name.removesuffix(".gz") == "u.data"
    if tabs or suffix(path) == ".dat" or (suffix(path) not in UNDELIMITED and "::" in "".join(tables.header(path))):
        requested.require_none(f"{path}, which has no header,")
        return _read_headerless(path, "\t" if tabs else "::", by_time), ()
    names = [] if suffix(path) in UNDELIMITED else tables.header(path)
    roles = _column_indices(names, requested, path)[1] if names else {}
    written = {index for role, index in roles.items() if role != "time" or by_time}
    numbers = [i for i, name in enumerate(names) if i not in written and spelt(name).lower() not in SPLIT_COLUMNS]
    table = tables.read(path, MISSING, numbers=numbers)
    if table.empty:
        raise DataError(f"{path} has no interactions")
    return select_columns(table, str(path), requested)


def select_columns(
    frame: pd.DataFrame, origin: str, requested: Columns = Columns()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a table's user, item, rating, time and split columns under these five names, and notes.

    A column that is called like a split column but names no split, such as cross-validation folds, is not read.

    Raises:
        ConfigError: a requested column does not exist, or one column has two roles.
        DataError: there is no user or no item column, or there are several columns of one name.
    """
    columns = [str(column) for column in frame.columns]
    given, places = _column_indices(columns, requested, origin)
    shared = [role for role in places if places[role] is not None and [*places.values()].count(places[role]) > 1]
    if shared:
        raise ConfigError(f"of {origin} one column is to be {' and '.join(shared)}; name each its own")
    series, used = {}, set[int]()
    for role, aliases in ALIASES.items():
        index = places[role]
        if index is not None and (
            role != "rating" or role in given or _is_rating(columns[index], frame.iloc[:, index])
        ):
            if columns.count(columns[index]) > 1:
                raise DataError(f"{origin} has several columns called {columns[index]!r}; keep one of them")
            series[role] = frame.iloc[:, index]
            used.add(index)
        elif role in ("user", "item"):
            raise DataError(
                f"{origin} has no {role} column: expected a header with one of {', '.join(aliases)}; "
                f"found {', '.join(columns) or 'nothing'}. Name it with --{role}-column ({role}_column)"
            )
    split, notes = tables.split_column(frame, SPLITS, used)
    if split is not None:
        series["split"] = frame.iloc[:, split]
    expected = (*TIME_COLUMNS, *SPLIT_COLUMNS)
    unread = [i for i, name in enumerate(columns) if i not in used and spelt(name).lower() not in expected]
    return pd.DataFrame(series), (*notes, *_unread_notes(frame, columns, unread, rated="rating" in series))


def _column_indices(
    columns: list[str], requested: Columns, origin: object
) -> tuple[dict[str, int], dict[str, int | None]]:
    """Return the column index of each role that the user named, and of every role, named or guessed.

    Raises:
        ConfigError: a requested column does not exist.
    """
    given = {role: tables.named(columns, name, origin) for role, name in asdict(requested).items() if name is not None}
    # An optional role must not be guessed from a column that the user named for another role.
    unclaimed = ["" if index in given.values() else name for index, name in enumerate(columns)]
    return given, {
        role: given.get(role, guessed(columns if role in ("user", "item") else unclaimed, aliases))
        for role, aliases in ALIASES.items()
    }


def _is_rating(name: str, column: "pd.Series[Any]") -> bool:
    """Return whether a guessed rating column is one: by its name, or because it holds only numbers."""
    return spelt(name).lower() in RATING_COLUMNS or bool(np.isfinite(feedback(column)).all())


def _unread_notes(frame: pd.DataFrame, columns: list[str], unread: list[int], *, rated: bool) -> list[str]:
    """Return a note on unread columns.

    If there are no ratings (``rated`` is False), it points to a column whose zeros may mark rows as no interactions.
    """
    if not unread:
        return []
    names = [repr(columns[index]) for index in unread]
    shown = ", ".join(names[:UNREAD_SHOWN]) + f" and {len(names) - UNREAD_SHOWN} more" * (len(names) > UNREAD_SHOWN)
    zeros = [] if rated else [repr(columns[index]) for index in unread if _has_zeros(frame.iloc[:, index])]
    hint = (
        f"; {zeros[0]} holds zeros: if these are no interactions, name it with --rating-column (rating_column)"
        if zeros
        else ""
    )
    return [f"columns that are not read: {shown}{hint}"]


def _has_zeros(column: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers, several of them 0 and others not (a row index has a single 0)."""
    values = feedback(column)
    zeros = int((values == 0).sum())
    return bool(np.isfinite(values).all()) and 1 < zeros < len(values)


def _read_headerless(path: Path, separator: str, by_time: bool) -> pd.DataFrame:
    """Read MovieLens' user, item, rating, timestamp lines."""
    text = decoded(path).replace(separator, "\t")  # pandas' fast parser needs a one-character separator
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
