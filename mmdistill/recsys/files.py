"""Reads interaction tables as they are published: MovieLens, RecBole, delimited files with a header."""

import gzip
import io
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from mmdistill.columns import ITEM_COLUMNS, SPLIT_COLUMNS, SPLIT_OF, USER_COLUMNS
from mmdistill.errors import ConfigError, DataError, did_you_mean
from mmdistill.recsys.splits import split_names

RATING_COLUMNS = ("rating", "ratings", "score", "stars", "overall", "value", "label", "weight", "count")
TIME_COLUMNS = ("timestamp", "time", "ts", "date", "datetime", "unixreviewtime", "unix_timestamp", "created_at")
ALIASES = {"user": USER_COLUMNS, "item": ITEM_COLUMNS, "rating": RATING_COLUMNS, "time": TIME_COLUMNS}
ACCEPTED = (
    "user,item[,rating][,split] tables (.csv, .tsv, .txt, .csv.gz), MovieLens ratings.dat and u.data, RecBole .inter, "
    "scipy sparse .npz, or a folder with one of them"
)
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
FOLDER_FILES = (
    "interactions.csv.gz",
    "interactions.csv",
    "interactions.npz",
    "ratings.dat",
    "u.data",
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
    if path.suffix == ".inter" or path.name in ("u.data", "ratings.dat"):
        return True
    if path.suffix == ".npz":  # no other data come in such files
        return path.is_file()
    if _table_suffix(path) not in TABLE_SUFFIXES:
        return False
    try:
        columns = _split_header(_first_line(path))[0]
    except DataError:
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
    first = _first_line(path)
    if path.suffix == ".dat" or "::" in first or path.name == "u.data":
        wanted.require_none(f"{path}, which has no header,")
        return _headerless(path, "\t" if path.name == "u.data" else "::"), ()
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
    if len(set(named.values())) < len(named):
        raise ConfigError(f"of {origin} one column is to be two of {', '.join(named)}; name each its own")
    found = {}
    for role, aliases in ALIASES.items():
        index = named.get(role, _find(columns, aliases))
        if index is not None:
            found[role] = frame.iloc[:, index]
        elif role in ("user", "item"):
            raise DataError(
                f"{origin} has no {role} column: expected a header with one of {', '.join(aliases)}; "
                f"found {', '.join(columns) or 'nothing'}. Name it with --{role}-column ({role}_column)"
            )
    notes = []
    for index in (_find(columns, (alias,)) for alias in SPLIT_COLUMNS):
        if index is None:
            continue
        if split_names(frame.iloc[:, index]).isin(list(SPLIT_OF)).any():
            return pd.DataFrame({**found, "split": frame.iloc[:, index]}), ()
        notes.append(f"the column {columns[index]!r} names no splits (train, valid, test) and is not read")
    return pd.DataFrame(found), tuple(notes)


def _table_suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _first_line(path: Path) -> str:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            line = handle.readline(65536).decode("utf-8").strip("\r\n\ufeff")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as (gzipped) UTF-8 text: {error}") from error
    if not line.strip():
        raise DataError(f"{path} is empty or starts with an empty line; a header line was expected")
    return line


def _split_header(line: str) -> tuple[list[str], str]:
    separator = max(("\t", ",", ";", "|"), key=line.count)
    return [name.strip().strip('"') for name in line.split(separator)], separator


def _named(columns: list[str], name: str, origin: str) -> int:
    """Return the place of a column that the user named."""
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


def _parse(path: Path, separator: str, columns: list[str]) -> pd.DataFrame:
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
            )
    except (ValueError, OSError, EOFError, zlib.error, pd.errors.ParserWarning) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _headerless(path: Path, separator: str) -> pd.DataFrame:
    """Read MovieLens' user, item, rating, timestamp lines."""
    try:
        text = path.read_text(encoding="utf-8").replace(separator, "\t")  # one character: pandas' fast parser
        names = ["user", "item", "rating", "time"][: max(3, text.partition("\n")[0].count("\t") + 1)]
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
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as user{separator}item{separator}rating{separator}timestamp lines: {error}"
        ) from error
