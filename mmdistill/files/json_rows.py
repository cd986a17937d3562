"""Rows with names: of JSON an object per line, or an array of objects; of Python a list of dictionaries."""

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

from mmdistill.errors import DataError

Row = dict[str, Any]


def is_rows(source: object) -> TypeGuard[list[Row]]:
    """Return whether a source is a list with a dictionary per row."""
    return isinstance(source, list) and bool(source) and all(isinstance(row, Mapping) for row in source)


def json_rows(content: str, source: object) -> list[Row]:
    """Return the objects of JSON lines, or of one array.

    Args:
        content: of the file; empty lines count for nothing.
        source: where it comes from, for errors.
    Raises:
        DataError: a line or an entry that is no object; it is named.
    """
    if content.lstrip().startswith("["):
        return _of_array(content, source)
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # malformed, a number of too many digits, nested too deeply
            raise DataError(f"{source}, line {number}, is not JSON ({error}); expected one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}, line {number}, is a JSON {type(row).__name__}; expected one object per line")
        rows.append(row)
    return rows


def _of_array(content: str, source: object) -> list[Row]:
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(
            f"{source}, line {line}, is not JSON ({error}); expected one object per line, or one array of objects"
        ) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{source}, entry {number}, is a JSON {type(row).__name__}; expected an array of objects, one per row"
            )
    return list(rows)


def first_row(content: str) -> Row:
    """Return the first object of JSON lines or of an array, of which the content may be the start alone.

    Raises:
        ValueError: there is none.
    """
    row, _ = json.JSONDecoder().raw_decode(content.lstrip("\ufeff \t\r\n["))
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return row
