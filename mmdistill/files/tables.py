"""Reading of tables (delimited text, JSON, Parquet, Feather), with columns that the user names or that are guessed."""

import csv
import io
import json
import re
import warnings
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from mmdistill.errors import ConfigError, DataError, did_you_mean, first_line
from mmdistill.files.columns import ITEM_COLUMNS, SPLIT_COLUMNS, SPLIT_OF, USER_COLUMNS, known_split
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.names import brief_repr, first_few

TableRow = dict[str, Any]
JSON, BY_PANDAS = (".jsonl", ".ndjson", ".json"), (".parquet", ".feather")
UNDELIMITED = (*JSON, *BY_PANDAS)
SUFFIXES = (".tsv", ".csv", ".txt", *UNDELIMITED)
"""File name endings of tables; ``.gz`` may follow."""
NONBLANK = re.compile(r"\S")
LISTED = 20
"""How many columns of a table an error names."""
SHOWN = 8
"""How many names of unread columns a note lists."""


def suffix(path: Path) -> str:
    """Return the ending of a file's name in lower case; for gzipped files the one before ``.gz``."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def read(
    path: Path, missing: Sequence[str] = (), *, verbatim: bool = False, numbers: Collection[int] = ()
) -> pd.DataFrame:
    """Read a table with a header; a file whose ending is not in :data:`UNDELIMITED` is read as delimited text.

    Args:
        path: the file; values in text and JSON are not converted.
        missing: values of delimited text that count as missing.
        verbatim: keep spaces behind a separator and, where tabs separate, quotation marks.
        numbers: positions of columns that may be read as numbers if all their values are, which takes less time and
            memory. (Not reading them at all would hide rows that are longer than the header.)
    Raises:
        DataError: the file is missing, damaged, not UTF-8 (the line is named), or not a table.
    """
    if suffix(path) in BY_PANDAS:
        return _read_by_pandas(path)
    if suffix(path) in JSON:
        return _json_table(path)
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
        decoded(path)  # raises an error that says where the bytes are wrong
        raise
    except (ValueError, pd.errors.ParserWarning) as error:
        separators = "commas" if mark == "," else repr(mark)
        hint = f'; texts that hold {separators} stand in quotation marks: "so{mark} say"' if quoted else ""
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
    """Read delimited text without converting its values, except columns ``numbers`` if all their values are numbers.

    Args:
        source: the text.
        names: the names of the columns.
        numbers: the names of columns that may be read as numbers.
        dtype: the type of the other columns.
        options: further options of :func:`pandas.read_csv`.
    """
    dtypes: dict[Any, type] = dict.fromkeys((name for name in names if name not in numbers), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.DtypeWarning)  # a column of which only some values are numbers
        try:
            table: pd.DataFrame = pd.read_csv(source, names=names, dtype=dtypes, **options)
            if not any(pd.api.types.is_bool_dtype(table[name]) for name in numbers):
                return table
        except pd.errors.DtypeWarning:
            pass
    if isinstance(source, io.StringIO):
        source.seek(0)
    table = pd.read_csv(source, names=names, dtype=dtype, **options)
    return table


def header(path: Path) -> list[str]:
    """Return the names of a table's columns; of text and JSON, only the start of the file is read.

    Raises:
        DataError: the file is missing, damaged, empty or not a table.
    """
    if suffix(path) in BY_PANDAS:
        return [str(name) for name in _read_by_pandas(path).columns]
    if suffix(path) in JSON:
        status = path.stat() if path.is_file() else None
        return [*_json_names(path, status and (status.st_mtime_ns, status.st_size))]
    lines = csv.reader(io.StringIO(_start(path), newline=""), delimiter=separator(path), skipinitialspace=True)
    return [name.strip() for name in next(lines)]


def separator(path: Path) -> str:
    """Return the separator of delimited text: the most frequent of the candidates in the first line, outside of quotes.

    In a ``.tsv`` file it is the tab if the line has one.
    """
    line = re.sub(r'"[^"]*"', "", _start(path)).partition("\n")[0]
    return "\t" if suffix(path) == ".tsv" and "\t" in line else max("\t,;|", key=line.count)


def _start(path: Path) -> str:
    """Return the start of delimited text from the first line that is not blank, without invalid bytes."""
    if start := decoded(path, HEAD_BYTES).lstrip("\r\n "):
        return start
    raise DataError(f"{path} is empty and cannot be read; a header line was expected")


def _read_by_pandas(path: Path) -> pd.DataFrame:
    """Read a Parquet or Feather file.

    Raises:
        DataError: pyarrow is missing, or the file is damaged.
    """
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


def is_rows(source: object) -> TypeGuard[list[TableRow]]:
    """Return whether a source is a non-empty list of dictionaries, one per row."""
    return isinstance(source, list) and bool(source) and all(isinstance(row, Mapping) for row in source)


def as_frame(source: Any) -> Any:
    """Return a table of polars or pyarrow as a data frame of pandas; any other source as it is.

    Whole numbers among missing ones remain whole, since floats would round large ones to the same.
    """
    if hasattr(source, "to_pydict"):
        return source.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    if not hasattr(source, "to_dicts"):
        return source
    return pd.DataFrame({name: _of_polars(column) for name, column in source.to_dict().items()})


def _of_polars(column: Any) -> "pd.Series[Any]":
    """Return a column of polars without pyarrow, which polars itself would need; lists become arrays to save memory."""
    if hasattr(column.dtype, "inner"):
        return pd.Series(list(column.to_numpy()), dtype=object)
    has_gaps = column.dtype.is_integer() and column.null_count()
    return pd.Series(column.to_list(), dtype=object if has_gaps else None)


def _json_table(path: Path) -> pd.DataFrame:
    """Read JSON lines, without blank lines, one JSON array of objects, or one object of columns or of splits.

    Raises:
        DataError: it is none of these.
    """
    content = decoded(path)
    one = _only_object(content)
    if one and all(isinstance(values, list | dict) for values in one.values()):
        return _table_of_splits(one, path) if all(map(known_split, one)) else _table_of_columns(one, path)
    return pd.DataFrame(_json_rows(content, path), dtype=object)


def _only_object(content: str) -> TableRow | None:
    """Return the object that is all of a text of JSON; None for lines, arrays and what is no JSON."""
    start = content.lstrip()
    if not start.startswith("{"):
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return None
    return None if NONBLANK.search(start, end) else value


def _table_of_columns(columns: TableRow, source: object) -> pd.DataFrame:
    """Return the table of an object of columns, each a list, or an object by row as pandas writes it.

    Raises:
        DataError: columns of different lengths or kinds.
    """
    if {*map(type, columns.values())} not in ({list}, {dict}) or len({*map(len, columns.values())}) > 1:
        counts = [f"{brief_repr(name)}: {brief_repr(values)}" for name, values in columns.items()]
        raise DataError(
            f"{source}: an object of columns holds arrays, or objects by row, of one length; it holds "
            f"{first_few(counts)}"
        )
    return pd.DataFrame(columns, dtype=object)


def _table_of_splits(splits: TableRow, source: object) -> pd.DataFrame:
    """Return the table of an object of splits, each an array of objects or an object of columns, with their names.

    Raises:
        DataError: a split that is neither.
    """
    parts = []
    for split, rows in splits.items():
        if isinstance(rows, list) and not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{source}: the split {split!r} is no array of objects, each a row")
        part = pd.DataFrame(rows, dtype=object) if isinstance(rows, list) else _table_of_columns(rows, source)
        parts += [part.assign(**{SPLIT_COLUMNS[0]: split})] if len(part) else []
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _json_rows(content: str, path: Path) -> list[TableRow]:
    """Return the objects of JSON lines, without blank lines, or of one JSON array.

    Raises:
        DataError: a line or an entry is not an object; it is named.
    """
    rows, array = list[TableRow](), content.lstrip().startswith("[")
    expected = "expected one object per line, one array of objects, or one object of columns"
    lines = enumerate([content] if array else content.split("\n"), start=1)
    for line, part in ((line, part) for line, part in lines if part.strip()):
        try:
            parsed = json.loads(part)
        except (ValueError, RecursionError) as error:  # malformed, a number of too many digits, nested too deeply
            place = line - 1 + getattr(error, "lineno", 1)
            raise DataError(f"{path}, line {place}, is not JSON ({error}); {expected}") from error
        for number, row in enumerate(parsed, start=1) if array else [(line, parsed)]:
            if not isinstance(row, dict):
                where = f"{'entry' if array else 'line'} {number}"
                raise DataError(f"{path}, {where}, is a JSON {type(row).__name__}; {expected}")
            rows.append(row)
    return rows


@lru_cache(maxsize=16)
def _json_names(path: Path, changed: tuple[int, int] | None) -> tuple[str, ...]:
    """Return the keys of the first object of JSON lines or of an array, or the names of an object's columns.

    Args:
        path: the file.
        changed: its time of change and size, by which the names are kept, since an object of columns is read wholly.
    Raises:
        DataError: the file does not start with an object.
    """
    for most in (HEAD_BYTES, None):  # the first object may be longer than the start, or be all of it
        start = decoded(path, most).lstrip()
        try:
            row, end = json.JSONDecoder().raw_decode(start.lstrip(" \t\r\n["))
            if start.startswith("[") or NONBLANK.search(start, end):
                return tuple(row.keys())
            if "\n" not in start[end:]:
                break
        except (ValueError, RecursionError, AttributeError) as error:
            if not start.startswith("{"):
                raise DataError(f"{path} starts with no JSON object ({error})") from error
    return tuple(str(name) for name in _json_table(path).columns)


def spelt(name: object) -> str:
    """Return a column's name without the type that RecBole's headers append (``user_id:token``)."""
    return str(name).split(":")[0].strip()


def named(columns: Iterable[object], given: object, source: object) -> int:
    """Return the position of the column that the user named, by a text or by the column's label in pandas.

    Raises:
        ConfigError: no column has this name; the nearest is suggested.
    """
    given, names = str(given), [str(column) for column in columns]
    without_types = [spelt(name) for name in names]
    for spellings in (names, without_types):
        if given in spellings:
            return spellings.index(given)
    hint = did_you_mean(given, without_types)
    raise ConfigError(f"{source} has no column {given!r}{hint} (there are: {listed(without_types)})")


def listed(columns: Iterable[object]) -> str:
    """Return the names of columns for messages, without the rest of many and of long ones, which may be texts."""
    return first_few([brief_repr(str(column)) for column in columns], LISTED)


def guessed(columns: Iterable[object], guesses: Iterable[str]) -> int | None:
    """Return the position of the first guess that is a column, ignoring case; None where there is none."""
    names = [spelt(column).lower() for column in columns]
    return next((names.index(guess) for guess in guesses if guess in names), None)


def of_interactions(columns: Collection[object]) -> bool:
    """Return whether the columns include users and items."""
    return guessed(columns, USER_COLUMNS) is not None and guessed(columns, ITEM_COLUMNS) is not None


def split_column(
    table: pd.DataFrame, known: Iterable[str], taken: Collection[int] = ()
) -> tuple[int | None, tuple[str, ...]]:
    """Return the position of the column of splits, or None and notes on columns with such a name but no splits.

    Args:
        table: the table; a column of numbers, as folds of cross-validation, holds no splits.
        known: the names of splits, for the notes.
        taken: positions of columns that are used otherwise.
    """
    notes = []
    for index in (guessed(table.columns, (name,)) for name in SPLIT_COLUMNS):
        if index is None or index in taken:
            continue
        if _splits(table.iloc[:, index]).notna().any():
            return index, ()
        name = str(table.columns[index])
        notes.append(f"the column {name!r} names no splits ({', '.join(known)}) and is not read")
    return None, tuple(notes)


def splits_of(column: "pd.Series[Any]", called: str, source: object) -> "pd.Series[Any]":
    """Return the split of each row (train, dev or test), from the names in a column.

    Raises:
        DataError: a value names no split; the message names the row, and the column as ``called``.
    """
    splits = _splits(column)
    if (unknown := splits.isna().to_numpy()).any():
        row, known = int(unknown.argmax()), ", ".join(SPLIT_OF)
        value = column.iloc[row]
        raise DataError(f"{source}: row {row + 1} has {value!r} in {called}, which is no split (there are: {known})")
    return splits


def _splits(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the split of each row, missing where a value names none; the few distinct names are mapped once each."""
    codes, names = pd.factorize(column.astype("string"))
    splits = pd.Series(names).str.strip().str.lower().map(SPLIT_OF).array
    return pd.Series(splits.take(codes, allow_fill=True), index=column.index)  # code -1 is missing
