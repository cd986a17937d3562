"""Tables as people have them: delimited text, JSON, Parquet and Feather, with columns that are named or guessed."""

import csv
import io
import json
import re
import warnings
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from mmdistill.errors import ConfigError, DataError, did_you_mean, first_line
from mmdistill.files.columns import ITEM_COLUMNS, SPLIT_COLUMNS, SPLIT_OF, USER_COLUMNS
from mmdistill.files.decoding import HEAD_BYTES, decoded

Row = dict[str, Any]
JSON, BY_PANDAS = (".jsonl", ".ndjson", ".json"), (".parquet", ".feather")
UNDELIMITED = (*JSON, *BY_PANDAS)
SUFFIXES = (".tsv", ".csv", ".txt", *UNDELIMITED)
"""Of tables that any kind of data is read from; ``.gz`` may follow."""


def suffix(path: Path) -> str:
    """Return the ending of a file in lower case, that before ``.gz`` where it is gzipped."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def read(
    path: Path, missing: Sequence[str] = (), *, verbatim: bool = False, numbers: Collection[int] = ()
) -> pd.DataFrame:
    """Read a table with a header, of any ending but those of :data:`UNDELIMITED` as delimited text.

    Args:
        path: the file; nothing is guessed of the values in text and JSON.
        missing: what delimited text has in place of missing values.
        verbatim: spaces behind a separator belong to the value, as do quotation marks where tabs separate.
        numbers: the places of columns that need not be text where they are numbers throughout, which take less time and
            memory; to leave columns out would hide rows longer than the header.
    Raises:
        DataError: a missing or damaged file, one that is not UTF-8 (the line is named), or no table.
    """
    if suffix(path) in BY_PANDAS:
        return _by_pandas(path)
    if suffix(path) in JSON:
        return pd.DataFrame(_json_rows(path), dtype=object)
    names, mark = header(path), separator(path)
    quoted = not (verbatim and mark == "\t")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose values
            table = as_text(
                path,
                range(len(names)),
                numbers,
                sep=mark,
                compression="gzip" if path.suffix == ".gz" else None,
                header=0,
                dtype=object if verbatim else str,
                keep_default_na=False,
                na_values=list(missing),
                index_col=False,
                skipinitialspace=not verbatim,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            )
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        decoded(path)  # says where the bytes are wrong
        raise
    except (ValueError, pd.errors.ParserWarning) as error:
        held = "commas" if mark == "," else repr(mark)
        hint = f'; texts that hold {held} stand in quotation marks: "so{mark} say"' if quoted else ""
        raise DataError(f"{path} cannot be read as a table: {' '.join(str(error).split())}{hint}") from error
    return table.set_axis(names, axis=1)


def as_text(
    source: Path | io.StringIO,
    names: range | list[str],
    numbers: Collection[Any],
    *,
    dtype: type = str,
    **options: Any,
) -> pd.DataFrame:
    """Return delimited text with its values as they are written, but for some columns that are numbers throughout.

    Args:
        source: the text.
        names: of the columns.
        numbers: of those whose values may be numbers.
        dtype: of the others.
        options: what else pandas reads by.
    """
    written: dict[Any, type] = dict.fromkeys((name for name in names if name not in numbers), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.DtypeWarning)  # numbers in some places only
        try:
            table: pd.DataFrame = pd.read_csv(source, names=names, dtype=written, **options)
            if not any(pd.api.types.is_bool_dtype(table[name]) for name in numbers):
                return table
        except pd.errors.DtypeWarning:
            pass
    if isinstance(source, io.StringIO):
        source.seek(0)
    table = pd.read_csv(source, names=names, dtype=dtype, **options)
    return table


def header(path: Path) -> list[str]:
    """Return the names of a table's columns, of text by the start of the file.

    Raises:
        DataError: the file is missing, damaged, empty or no table.
    """
    if suffix(path) in BY_PANDAS:
        return [str(name) for name in _by_pandas(path).columns]
    if suffix(path) in JSON:
        return _json_names(path)
    lines = csv.reader(io.StringIO(_start(path), newline=""), delimiter=separator(path), skipinitialspace=True)
    return [name.strip() for name in next(lines)]


def separator(path: Path) -> str:
    """Return what separates the columns of delimited text, by its first line: the most frequent mark outside of quotes.

    In a ``.tsv`` file it is the tab where there is any.
    """
    line = re.sub(r'"[^"]*"', "", _start(path)).partition("\n")[0]
    return "\t" if suffix(path) == ".tsv" and "\t" in line else max("\t,;|", key=line.count)


def _start(path: Path) -> str:
    """Return the start of delimited text from the first line that is not blank, of what is UTF-8 in it."""
    if start := decoded(path, HEAD_BYTES).lstrip("\r\n "):
        return start
    raise DataError(f"{path} is empty and cannot be read; a header line was expected")


def _by_pandas(path: Path) -> pd.DataFrame:
    kind = suffix(path).removeprefix(".")
    try:
        return pd.read_parquet(path) if kind == "parquet" else pd.read_feather(path)
    except ImportError as error:
        raise DataError(
            f"{path} needs pyarrow to be read: install pyarrow, or save it as CSV; in Python, give "
            f"pd.read_{kind}(path) to recsys_task or text_task"
        ) from error
    except Exception as error:  # a damaged file makes its readers raise anything
        raise DataError(f"{path} cannot be read as a {kind} table: {first_line(error)}") from error


def is_rows(source: object) -> TypeGuard[list[Row]]:
    """Return whether a source is a list with a dictionary per row."""
    return isinstance(source, list) and bool(source) and all(isinstance(row, Mapping) for row in source)


def _json_rows(path: Path) -> list[Row]:
    """Return the objects of JSON lines, blank ones left out, or of one array.

    Raises:
        DataError: a line or an entry that is no object; it is named.
    """
    content, rows = decoded(path), list[Row]()
    array, expected = content.lstrip().startswith("["), "expected one object per line, or one array of objects"
    lines = enumerate([content] if array else content.split("\n"), start=1)
    for line, part in ((line, part) for line, part in lines if part.strip()):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError) as error:  # malformed, a number of too many digits, nested too deeply
            place = line - 1 + getattr(error, "lineno", 1)
            raise DataError(f"{path}, line {place}, is not JSON ({error}); {expected}") from error
        for number, row in enumerate(found, start=1) if array else [(line, found)]:
            if not isinstance(row, dict):
                where = f"{'entry' if array else 'line'} {number}"
                raise DataError(f"{path}, {where}, is a JSON {type(row).__name__}; {expected}")
            rows.append(row)
    return rows


def _json_names(path: Path) -> list[str]:
    """Return the names in the first object of JSON lines or of an array.

    Raises:
        DataError: there is none.
    """
    try:
        row, _ = json.JSONDecoder().raw_decode(decoded(path, HEAD_BYTES).lstrip(" \t\r\n["))
        return [*row.keys()]
    except (ValueError, RecursionError, AttributeError) as error:
        raise DataError(f"{path} starts with no JSON object ({error})") from error


def spelt(name: object) -> str:
    """Return what a column is called without its type, as RecBole's headers have it (``user_id:token``)."""
    return str(name).split(":")[0].strip()


def named(columns: Iterable[object], given: object, source: object) -> int:
    """Return the place of a column that the user named, by a text or by whatever pandas calls it.

    Raises:
        ConfigError: there is none of this name; the nearest is suggested.
    """
    given, names = str(given), [str(column) for column in columns]
    short = [spelt(name) for name in names]
    for known in (names, short):
        if given in known:
            return known.index(given)
    hint = did_you_mean(given, short)
    raise ConfigError(f"{source} has no column {given!r}{hint} (there are: {', '.join(map(repr, short))})")


def guessed(columns: Iterable[object], guesses: Iterable[str]) -> int | None:
    """Return the place of the first likely column, ignoring case; None where there is none."""
    names = [spelt(column).lower() for column in columns]
    return next((names.index(guess) for guess in guesses if guess in names), None)


def of_interactions(columns: Collection[object]) -> bool:
    """Return whether columns are of users and items."""
    return guessed(columns, USER_COLUMNS) is not None and guessed(columns, ITEM_COLUMNS) is not None


def split_column(
    table: pd.DataFrame, known: Iterable[str], taken: Collection[int] = ()
) -> tuple[int | None, tuple[str, ...]]:
    """Return the place of the column that names splits, or None and notes on those that are but called so.

    Args:
        table: of any columns; one of numbers, as cross-validation has them, names no splits.
        known: what splits are called in notes.
        taken: the places of columns that are something else.
    """
    notes = []
    for index in (guessed(table.columns, (name,)) for name in SPLIT_COLUMNS):
        if index is None or index in taken:
            continue
        if _splits(table.iloc[:, index]).notna().any():
            return index, ()
        called = str(table.columns[index])
        notes.append(f"the column {called!r} names no splits ({', '.join(known)}) and is not read")
    return None, tuple(notes)


def splits_of(column: "pd.Series[Any]", called: str, source: object) -> "pd.Series[Any]":
    """Return train, dev or test of each row, as a column names them.

    Raises:
        DataError: a name that is none of a split; the row is named, and the column as it is ``called``.
    """
    splits = _splits(column)
    if (unknown := splits.isna().to_numpy()).any():
        row, known = int(unknown.argmax()), ", ".join(SPLIT_OF)
        value = column.iloc[row]
        raise DataError(f"{source}: row {row + 1} has {value!r} in {called}, which is no split (there are: {known})")
    return splits


def _splits(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the splits of rows, missing where a name is none; names are a handful, of however many rows."""
    codes, names = pd.factorize(column.astype("string"))
    of_names = pd.Series(names).str.strip().str.lower().map(SPLIT_OF).array
    return pd.Series(of_names.take(codes, allow_fill=True), index=column.index)  # code -1 is missing
