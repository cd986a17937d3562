"""Reads interaction files as they are published: MovieLens, RecBole, delimited tables, scipy sparse matrices."""

import gzip
import io
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import sparse

from mmdistill.columns import ITEM_COLUMNS, SPLIT_COLUMNS, SPLIT_OF, USER_COLUMNS
from mmdistill.errors import DataError

RATING_COLUMNS = ("rating", "ratings", "score", "stars", "overall", "value", "label", "weight", "count")
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


def read_table(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read any accepted file but ``.npz`` as text columns ``user``, ``item`` and, where there, ``rating``, ``split``.

    Beside the table come notes on columns that are not read.

    Raises:
        DataError: missing, empty, damaged or undecodable file, or no user or item column.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the interactions there or name another file")
    first = _first_line(path)
    if path.suffix == ".dat" or "::" in first:
        return _headerless(path, "::"), ()
    if path.name == "u.data":
        return _headerless(path, "\t"), ()
    columns, separator = _split_header(first)
    return select_columns(_parse(path, separator, columns), str(path))


def select_columns(frame: pd.DataFrame, origin: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the user, item, rating and split columns of a table under these four names, and notes.

    A column that is called like one of splits and names none, as cross-validation has them, is not read.

    Raises:
        DataError: there is no user or no item column.
    """
    columns = [str(column) for column in frame.columns]
    found = {}
    for role, aliases in (("user", USER_COLUMNS), ("item", ITEM_COLUMNS), ("rating", RATING_COLUMNS)):
        index = _find(columns, aliases)
        if index is not None:
            found[role] = frame.iloc[:, index]
        elif role in ("user", "item"):
            raise DataError(
                f"{origin} has no {role} column: expected a header with one of {', '.join(aliases)}; "
                f"found {', '.join(columns) or 'nothing'}"
            )
    notes = []
    for index in (_find(columns, (alias,)) for alias in SPLIT_COLUMNS):
        if index is None:
            continue
        if split_names(frame.iloc[:, index]).isin(list(SPLIT_OF)).any():
            return pd.DataFrame({**found, "split": frame.iloc[:, index]}), ()
        notes.append(f"the column {columns[index]!r} names no splits (train, valid, test) and is not read")
    return pd.DataFrame(found), tuple(notes)


def split_names(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the names of splits in lower case."""
    return column.astype("string").str.strip().str.lower()


def read_sparse(path: Path) -> sparse.csr_array:
    """Read a users x items matrix that ``scipy.sparse.save_npz`` wrote; pickles are refused.

    Raises:
        DataError: missing, damaged, or not a sparse matrix.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; put the matrix there or name another file")
    if not _is_sparse_archive(path):
        raise DataError(f"{path} is not a matrix written by scipy.sparse.save_npz")
    try:
        matrix = sparse.csr_array(sparse.load_npz(path))
        matrix.check_format()
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive makes numpy and scipy raise anything
        raise DataError(f"{path} is damaged: {error}") from error
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"{path} holds {matrix.dtype} entries; every entry must be a number")
    return matrix


def _is_sparse_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return {"format.npy", "shape.npy", "data.npy"} <= names


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
        return pd.read_csv(
            io.StringIO(text),
            sep="\t",
            header=None,
            usecols=[0, 1, 2],
            names=["user", "item", "rating", "timestamp"],
            dtype=str,
            keep_default_na=False,
            na_values=list(MISSING),
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as user{separator}item{separator}rating{separator}timestamp lines: {error}"
        ) from error
