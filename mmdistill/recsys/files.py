"""Reads interaction tables as they are published: MovieLens, RecBole, delimited files with a header."""

import io
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmdistill.errors import ConfigError, DataError, did_you_mean, first_line
from mmdistill.files.columns import ITEM_COLUMNS, SPLIT_COLUMNS, SPLIT_OF, USER_COLUMNS
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.files.json_rows import first_row, json_rows
from mmdistill.recsys.cleaning import feedback
from mmdistill.recsys.splits import split_names

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
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PANDAS_SUFFIXES = (".parquet", ".feather")
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
    if _table_suffix(path) == ".inter" or path.name.removesuffix(".gz") in ("u.data", "ratings.dat"):
        return True
    if path.suffix.lower() == ".npz":  # of other data images, which are looked for first
        return path.is_file()
    if path.suffix.lower() in PANDAS_SUFFIXES and path.is_file():
        try:
            columns = [str(column) for column in _read_by_pandas(path).columns]
        except DataError:  # the loader says what is wrong
            return True
    elif _table_suffix(path) in JSON_SUFFIXES:
        try:
            columns = [str(name) for name in first_row(decoded(path, HEAD_BYTES))]
        except (DataError, ValueError, RecursionError):
            return False
    elif _table_suffix(path) in TABLE_SUFFIXES:
        try:
            columns = _split_header(_first_line(path))[0]
        except DataError:
            return False
    else:
        return False
    return _find(columns, USER_COLUMNS) is not None and _find(columns, ITEM_COLUMNS) is not None


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


def read_table(path: Path, wanted: Columns = Columns()) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read any accepted file but ``.npz`` as text columns ``user``, ``item`` and, where there, the others.

    These are ``rating``, ``time`` and ``split``. Beside the table come notes on columns that are not read.

    Raises:
        ConfigError: no column of a wanted name.
        DataError: missing, empty, damaged or undecodable file, or no user or item column.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the interactions there or name another file")
    if path.suffix.lower() in PANDAS_SUFFIXES:
        return select_columns(_read_by_pandas(path), str(path), wanted)
    if _table_suffix(path) in JSON_SUFFIXES:
        return select_columns(_read_json(path), str(path), wanted)
    if _table_suffix(path) not in (*TABLE_SUFFIXES, ".inter", ".dat", ".data"):
        raise DataError(f"{path} is no table of interactions; read are {ACCEPTED}")
    first = _first_line(path)
    tabs = path.name.removesuffix(".gz") == "u.data"
    if _table_suffix(path) == ".dat" or "::" in first or tabs:
        wanted.require_none(f"{path}, which has no header,")
        return _headerless(path, "\t" if tabs else "::"), ()
    columns, separator = _split_header(first)
    return select_columns(_parse(path, separator, columns), str(path), wanted)


def select_columns(
    frame: pd.DataFrame, origin: str, wanted: Columns = Columns()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the user, item, rating, time and split columns of a table under these five names, and notes.

    A column that is called like one of splits and names none, as cross-validation has them, is not read.

    Raises:
        ConfigError: there is no column of a wanted name, or one is to be two things.
        DataError: there is no user or no item column.
    """
    columns = [str(column) for column in frame.columns]
    named = {role: _named(columns, name, origin) for role, name in asdict(wanted).items() if name is not None}
    free = ["" if index in named.values() else name for index, name in enumerate(columns)]  # for what may be missing
    places = {
        role: named.get(role, _find(columns if role in ("user", "item") else free, aliases))
        for role, aliases in ALIASES.items()
    }
    twice = [role for role in places if places[role] is not None and [*places.values()].count(places[role]) > 1]
    if twice:
        raise ConfigError(f"of {origin} one column is to be {' and '.join(twice)}; name each its own")
    found, used = {}, set[int]()
    for role, aliases in ALIASES.items():
        index = places[role]
        if index is not None and (
            role != "rating" or role in named or _is_rating(columns[index], frame.iloc[:, index])
        ):
            found[role] = frame.iloc[:, index]
            used.add(index)
        elif role in ("user", "item"):
            raise DataError(
                f"{origin} has no {role} column: expected a header with one of {', '.join(aliases)}; "
                f"found {', '.join(columns) or 'nothing'}. Name it with --{role}-column ({role}_column)"
            )
    notes: list[str] = []
    for index in (_find(columns, (alias,)) for alias in SPLIT_COLUMNS):
        if index is None or index in used:
            continue
        used.add(index)
        if split_names(frame.iloc[:, index]).isin(list(SPLIT_OF)).any():
            found["split"] = frame.iloc[:, index]
            notes = []
            break
        notes.append(f"the column {columns[index]!r} names no splits (train, valid, test) and is not read")
    known = {index for index, name in enumerate(columns) if _find([name], (*TIME_COLUMNS, *SPLIT_COLUMNS)) is not None}
    unread = [index for index in range(len(columns)) if index not in used | known]
    return pd.DataFrame(found), (*notes, *_unread_notes(frame, columns, unread, rated="rating" in found))


def _is_rating(name: str, column: "pd.Series[Any]") -> bool:
    """Return whether a guessed column of ratings is one; what only may be one is where it holds nothing but numbers."""
    return _find([name], RATING_COLUMNS) is not None or bool(np.isfinite(feedback(column)).all())


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


def _table_suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _first_line(path: Path) -> str:
    """Return the first line of a file, of what is UTF-8 in it: whoever reads the rest says what is not."""
    line = decoded(path, HEAD_BYTES).partition("\n")[0].strip("\r")
    if not line.strip():
        raise DataError(f"{path} is empty or starts with an empty line; a header line was expected")
    return line


def _split_header(line: str) -> tuple[list[str], str]:
    separator = max(("\t", ",", ";", "|"), key=line.count)
    return [name.strip().strip('"') for name in line.split(separator)], separator


def _named(columns: list[str], given: object, origin: str) -> int:
    """Return the place of a column that the user named, by a text or by whatever pandas calls it."""
    name = str(given)
    spelt = [column.split(":")[0].strip() for column in columns]
    for names in (columns, spelt):
        if name in names:
            return names.index(name)
    raise ConfigError(f"{origin} has no column {name!r}{did_you_mean(name, spelt)} (there are: {', '.join(spelt)})")


def _find(columns: list[str], aliases: tuple[str, ...]) -> int | None:
    # RecBole types its header: user_id:token
    names = [column.split(":")[0].strip().lower() for column in columns]
    for alias in aliases:
        if alias in names:
            return names.index(alias)
    return None


def _read_json(path: Path) -> pd.DataFrame:
    """Read JSON lines, or an array of objects; values stay as they are.

    Raises:
        DataError: a damaged or undecodable file, or rows that are no objects.
    """
    rows = json_rows(decoded(path), path)
    if not rows:
        raise DataError(f"{path} has no interactions")
    return pd.DataFrame(rows, dtype=object)


def _read_by_pandas(path: Path) -> pd.DataFrame:
    """Read a Parquet or Feather file.

    Raises:
        DataError: pandas lacks what it reads them with, or the file is damaged.
    """
    kind = path.suffix.lower().removeprefix(".")
    try:
        return pd.read_parquet(path) if kind == "parquet" else pd.read_feather(path)
    except ImportError as error:
        raise DataError(
            f"{path} needs pyarrow to be read: install pyarrow, or save it as CSV; in Python, give "
            f"pd.read_{kind}(path) to recsys_task (or, of texts, to text_task)"
        ) from error
    except Exception as error:  # a damaged file makes its readers raise anything
        raise DataError(f"{path} cannot be read as a {kind} table: {first_line(error)}") from error


def _parse(path: Path, separator: str, columns: list[str]) -> pd.DataFrame:
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise DataError(f"{path} has several columns called {repeated[0]!r}; keep one of them")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose data
            return pd.read_csv(
                path,
                sep=separator,
                header=0,
                names=columns,
                dtype=str,
                keep_default_na=False,
                na_values=list(MISSING),
                encoding="utf-8",
                index_col=False,
                skipinitialspace=True,
            )
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 throughout: {error}; save the file as UTF-8") from error
    except (ValueError, OSError, EOFError, zlib.error, pd.errors.ParserWarning) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _headerless(path: Path, separator: str) -> pd.DataFrame:
    """Read MovieLens' user, item, rating, timestamp lines."""
    text = decoded(path).replace(separator, "\t")  # one character: pandas' fast parser
    names = ["user", "item", "rating", "time"][: max(3, text.partition("\n")[0].count("\t") + 1)]
    try:
        return pd.read_csv(
            io.StringIO(text),
            sep="\t",
            header=None,
            usecols=range(len(names)),
            names=names,
            dtype=str,
            keep_default_na=False,
            na_values=list(MISSING),
        )
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read as user{separator}item{separator}rating{separator}timestamp lines: {error}"
        ) from error
