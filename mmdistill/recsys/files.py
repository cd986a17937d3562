"""Read interaction tables as they are published: MovieLens, RecBole, delimited files with or without a header."""

import csv
import io
import re
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmdistill.errors import ConfigError, DataError
from mmdistill.files import tables
from mmdistill.files.columns import ITEM_COLUMNS, SPLIT_COLUMNS, USER_COLUMNS
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.files.tables import SHOWN, SUFFIXES, UNDELIMITED, guessed, spelt, suffix
from mmdistill.names import first_few
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
    "user,item[,rating][,split] tables (.csv, .tsv, .txt, .dat, .jsonl, .json, plain or .gz; .parquet and .feather "
    "with pyarrow), MovieLens ratings.dat and u.data, RecBole .inter (plain or .gz), scipy sparse .npz, or a folder "
    "with one of them, with train, valid and test tables (train.csv, NAME.train.inter, ...), or with LightGCN's "
    "train.txt and test.txt"
)
MOVIELENS_100K = re.compile(r"u[1-5ab]?\.(data|base|test)")
"""The file names of MovieLens 100K, whose lines are user, item, rating and time, between tabs."""
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
NCF = ".rating"
"""The ending of the files of neural collaborative filtering, in the same layout."""
COLONS, SPACES = "::", r"\s+"
"""Separators of MovieLens and of other files without a header."""

MISSING = ("", "nan", "NaN", "null", "NULL", "None")


def names_users_and_items(path: Path) -> bool:
    """Return whether the header of a table names users and items.

    Raises:
        DataError: damaged or empty file.
    """
    if suffix(path) in UNDELIMITED:
        return tables.of_interactions(tables.header(path))
    if suffix(path) not in (*SUFFIXES, ".dat"):
        return False
    fields, separator = _first_line(path)
    return separator != SPACES and tables.of_interactions(fields)  # prose may have such words between spaces


@dataclass(frozen=True)
class Columns:
    """The column names of a table, or their positions from 0 in a file without a header; None is guessed.

    Args:
        user: name of the user column.
        item: name of the item column.
        rating: name of the rating column.
        time: name of the time column.
    """

    user: str | int | None = None
    item: str | int | None = None
    rating: str | int | None = None
    time: str | int | None = None

    @property
    def given(self) -> dict[str, str]:
        """The given names and positions by role."""
        return {role: str(name) for role, name in asdict(self).items() if name is not None}

    def require_none(self, what: str) -> None:
        """Refuse column names for data without a header.

        Raises:
            ConfigError: a name is given; the message quotes the first.
        """
        for name in self.given.values():
            raise ConfigError(f"{what} has no names of columns, so none is called {name!r}; leave it out")


def read_table(
    path: Path, requested: Columns = Columns(), *, by_time: bool = False
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read any accepted file but ``.npz`` as text columns ``user``, ``item`` and, if present, the optional ones.

    These are ``rating``, ``time`` and ``split``. Numeric times are read as numbers, unless rows are split by them
    (``by_time``): errors then quote them as written. Returns the table, and notes on a missing header and on columns
    that are not read.

    Raises:
        ConfigError: a requested column does not exist.
        DataError: missing, empty, damaged or undecodable file, no header, or no user or item column.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the interactions there or name another file")
    is_known = MOVIELENS_100K.fullmatch(path.name.removesuffix(".gz"))
    if not is_known and suffix(path) not in (*SUFFIXES, ".inter", ".dat", ".data", NCF):
        raise DataError(f"{path} is no table of interactions; read are {ACCEPTED}")
    if suffix(path) in UNDELIMITED:
        table, notes = tables.read(path, MISSING), tuple[str, ...]()
    else:
        table, requested, notes = _read_delimited(path, requested, by_time)
    if table.empty:
        raise DataError(f"{path} has no interactions")
    selected, further = select_columns(table, str(path), requested)
    return selected, (*notes, *further)


def _read_delimited(path: Path, requested: Columns, by_time: bool) -> tuple[pd.DataFrame, Columns, tuple[str, ...]]:
    """Read delimited text; return the table, the columns to take from it, and notes on a missing header.

    The columns of a file without a header are called by their positions.
    """
    fields, separator = _first_line(path)
    published = separator == COLONS or (separator == "\t" and suffix(path) in (".dat", ".data", ".base", ".test", NCF))
    notes, names = tuple[str, ...](), fields
    is_headed, numbered = _has_header(fields, requested, path, published), _positions(fields)
    if not is_headed:
        names = numbered = _positions(_longest_row(path) if separator == COLONS else fields)
        if published and not requested.given:
            requested = Columns(*numbered[: len(ALIASES)])
        else:
            doubtful = len({*fields}) == len(fields) and {*requested.given.values()} <= {*fields}
            taken = list(map(repr, requested.given.values())) if doubtful else []
            doubt = f"; taken as positions of columns, not as names: {first_few(taken)}" if taken else ""
            notes = (f"{path.name} is read without a header; its first line: {first_few(fields)}{doubt}",)
    elif requested.given and _holds_numbers(fields):
        notes = (f"the first line of {path.name} is read as a header, with the columns {first_few(fields)}",)
    roles = _column_indices(names, requested, path)[1]
    written = {index for role, index in roles.items() if role != "time" or by_time}
    numbers = [i for i, name in enumerate(names) if i not in written and spelt(name).lower() not in SPLIT_COLUMNS]
    if is_headed and separator not in (COLONS, SPACES):
        return tables.read(path, MISSING, numbers=numbers), requested, notes
    table = _read_rows(path, separator, numbers, len(names), header=is_headed)
    return table.set_axis(names, axis=1), requested, notes


def _positions(fields: list[str]) -> list[str]:
    """Return the positions of fields, from 0, as names."""
    return [str(position) for position in range(len(fields))]


def _longest_row(path: Path) -> list[str]:
    """Return the fields of the longest line, separated by :data:`COLONS`, at the start of a file."""
    return max((line.split(COLONS) for line in decoded(path, HEAD_BYTES).split("\n")), key=len)


def _holds_numbers(fields: list[str]) -> bool:
    return any(NUMBER.fullmatch(field) for field in fields)


def _first_line(path: Path) -> tuple[list[str], str]:
    """Return the fields of the first line of delimited text, and what separates them."""
    fields = tables.header(path)
    if COLONS in "".join(fields):
        line = decoded(path, HEAD_BYTES).lstrip("\r\n ").partition("\n")[0]
        return [field.strip() for field in line.split(COLONS)], COLONS
    if len(fields) == 1 and len(words := fields[0].split()) > 1:
        return words, SPACES
    return fields, tables.separator(path)


def _has_header(fields: list[str], requested: Columns, path: Path, published: bool) -> bool:
    """Return whether the first line of delimited text is a header rather than an interaction.

    Args:
        fields: the fields of the first line.
        requested: the columns that the user named; positions mean that there is no header.
        path: the file.
        published: whether the file looks like one of MovieLens, whose lines are user, item, rating and time.
    Raises:
        ConfigError: names of columns for a file of MovieLens.
        DataError: the line looks like an interaction, and no positions are given.
    """
    if guessed(fields, USER_COLUMNS) is not None or guessed(fields, ITEM_COLUMNS) is not None:
        return True
    given = {*requested.given.values()}
    if given and all(name.isdecimal() for name in given):
        return fields == _positions(fields)  # as pandas writes a table that had no header
    if given and given <= {*fields, *map(spelt, fields)}:
        return True
    holds_numbers = _holds_numbers(fields)
    if published and holds_numbers:
        requested.require_none(f"{path}, which has no header,")
        return False
    if holds_numbers:
        raise DataError(
            f"{path} seems to have no header: its first line holds numbers ({first_few(fields)}). Name columns by "
            "their positions from 0, --user-column 0 --item-column 1 (user_column=0, item_column=1) and so on, or "
            "write a header above it"
        )
    return True


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
                f"found {first_few(columns, SHOWN) or 'nothing'}. Name it with --{role}-column ({role}_column)"
                f"{_hint(frame)}"
            )
    split, notes = tables.split_column(frame, SPLITS, used)
    if split is not None:
        series["split"] = frame.iloc[:, split]
    expected = (*TIME_COLUMNS, *SPLIT_COLUMNS)
    unread = [i for i, name in enumerate(columns) if i not in used and spelt(name).lower() not in expected]
    return pd.DataFrame(series), (*notes, *_unread_notes(frame, columns, unread, rated="rating" in series))


def _hint(frame: pd.DataFrame) -> str:
    """Return how to turn a data frame with ids in its index, or a matrix of users x items, into a table of both."""
    if frame.columns.name is not None:
        return '; a users x items frame becomes such a table by frame.stack().reset_index(name="rating")'
    indexed = [str(name) for name in frame.index.names if name is not None]
    return f"; {' and '.join(indexed)} of the index becomes a column by frame.reset_index()" if indexed else ""


def _column_indices(
    columns: list[str], requested: Columns, origin: object
) -> tuple[dict[str, int], dict[str, int | None]]:
    """Return the column index of each role that the user named, and of every role, named or guessed.

    Raises:
        ConfigError: a requested column does not exist.
    """
    given = {role: tables.named(columns, name, origin) for role, name in requested.given.items()}
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
    shown = first_few([repr(columns[index]) for index in unread], SHOWN)
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


def _read_rows(path: Path, separator: str, numbers: Collection[int], count: int, *, header: bool) -> pd.DataFrame:
    """Read delimited text of ``count`` columns without its header, if it has one; positions are the columns' names.

    Quotation marks between tabs are part of an id.

    Raises:
        DataError: damaged or undecodable file, or rows of more fields.
    """
    text = decoded(path).lstrip("\r\n ")
    if separator == COLONS:  # pandas' fast parser needs a one-character separator
        text = text.replace(COLONS, "\t")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the first would lose values
            return tables.as_text(
                io.StringIO(text),
                range(count),
                numbers,
                sep="\t" if separator == COLONS else separator,
                header=None,
                skiprows=int(header),
                keep_default_na=False,
                na_values=list(MISSING),
                index_col=False,
                skipinitialspace=True,
                quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as lines of {count} fields: {reason}") from error
