"""Tables of texts with labels: TSV, CSV and JSON files, read strictly."""

import csv
import io
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from mmdistill.errors import ConfigError, DataError, did_you_mean
from mmdistill.files.columns import ITEM_COLUMNS, SPLIT_COLUMNS, SPLIT_NAMES, SPLIT_OF, USER_COLUMNS
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.files.json_rows import first_row, json_rows

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
TEXT_COLUMNS = ("text", "sentence", "content", "question", "review", "document", "utterance", "tweet", "body")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "topic", "intent", "coarse_label", "y")


def table_format(path: Path) -> str | None:
    """Return ``tsv``, ``csv`` or ``jsonl`` by the file's suffix (``.gz`` may follow), or None."""
    stem = path.with_suffix("") if path.suffix == ".gz" else path
    return FORMATS.get(stem.suffix.lower())


def read_table(path: Path) -> pd.DataFrame:
    """Read a table with a header as text; nothing is guessed of the values, so "NA" stays a text.

    TSV files have no quoting: a quotation mark is part of the text. CSV files quote as usual. JSON files hold an object
    per line, or an array of objects.

    Raises:
        DataError: the file is missing, is not UTF-8 (the line is named), is no table, or is empty.
    """
    kind = table_format(path)
    if kind is None:
        kind = path.suffix.lower().removeprefix(".")
        hint = f"; in Python, give pd.read_{kind}(path) to text_task" if kind in ("parquet", "feather") else ""
        raise DataError(
            f"{path} is no table of texts: expected a name that ends in {', '.join(FORMATS)} (or .gz of these){hint}"
        )
    content = decoded(path)
    try:
        table = (
            pd.DataFrame(json_rows(content, path), dtype=object) if kind == "jsonl" else _parse_separated(content, kind)
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning, csv.Error) as error:
        hint = '; texts that hold commas stand in quotation marks: "so, say"' if kind == "csv" else ""
        raise DataError(f"{path} cannot be read as {kind.upper()}: {' '.join(str(error).split())}{hint}") from error
    if not len(table):
        raise DataError(f"{path} holds no rows")
    return table


def _parse_separated(content: str, kind: str) -> pd.DataFrame:
    tab, header = kind == "tsv", content.partition("\n")[0]
    comma = ";" if header.count(";") > header.count(",") else ","
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose text
        table: pd.DataFrame = pd.read_csv(
            io.StringIO(content),
            sep="\t" if tab else comma,
            quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL,
            dtype=str,
            keep_default_na=False,
            index_col=False,
            skip_blank_lines=True,
        )
    return table.astype(object)


def column(columns: Sequence[str], given: str | None, guesses: Sequence[str], role: str, source: object) -> str:
    """Return the column that the user named, or the first likely one, ignoring case.

    Raises:
        ConfigError: there is no column of the given name; the nearest is suggested.
        DataError: no column looks like the one wanted.
    """
    names = [str(name) for name in columns]
    if given is not None:
        given = str(given)  # pandas may number its columns
        if given in names:
            return given
        hint = did_you_mean(given, names)
        raise ConfigError(f"{source} has no column {given!r}{hint} (there are: {', '.join(map(repr, names))})")
    lower = {name.strip().lower(): name for name in reversed(names)}
    for guess in guesses:
        if guess in lower:
            return lower[guess]
    # Nobody typed these names, so they must be nearer to a guess than a slip is to a name: "time" is no "sentiment".
    near = [name for name in lower if get_close_matches(name, guesses, n=1, cutoff=0.7)]
    hint = f" (is it {lower[near[0]]!r}?)" if near else ""
    raise DataError(
        f"{source} has no column that looks like the {role}{hint}; there are: {', '.join(map(repr, names))}. Name it "
        f"with {role}_column (--{role}-column); or, if these are interactions, name their columns with --user-column "
        "and --item-column (in Python recsys_task(data, user_column=..., item_column=...)). The first line must be a "
        "header"
    )


def text_columns(columns: Sequence[str], given: str | None, source: object) -> tuple[str, ...]:
    """Return the column of texts, or the two columns of pairs of texts.

    Args:
        columns: what there is.
        given: a name, or two names with a comma between them; None guesses, pairs first.
        source: where they come from, for errors.
    Raises:
        ConfigError: there is no column of a given name, or more than two are named.
        DataError: no column looks like one of texts.
    """
    names = [str(name) for name in columns]
    given = None if given is None else str(given)
    if given is not None and given not in names and "," in given:
        parts = [part.strip() for part in given.split(",")]
        if len(parts) != 2:
            raise ConfigError(f"texts are in one column or, as pairs, in two; got {len(parts)}: {given!r}")
        return tuple(column(names, part, TEXT_COLUMNS, "text", source) for part in parts)
    lower = {name.strip().lower(): name for name in reversed(names)}
    if given is None:
        for pair in PAIR_COLUMNS:
            if set(pair) <= lower.keys():
                return tuple(lower[name] for name in pair)
    return (column(names, given, TEXT_COLUMNS, "text", source),)


def require_apart(texts: Sequence[str], label: str, source: object) -> None:
    """Refuse a column that is to be text and label.

    Raises:
        ConfigError: naming it.
    """
    if label in texts:
        raise ConfigError(
            f"the column {label!r} of {source} would be text and label at once; name another with text_column "
            "(--text-column) or label_column (--label-column)"
        )


def splits_of_rows(table: pd.DataFrame, source: object) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of each row, ``all`` where no column names splits, and notes.

    A column of numbers, as cross-validation has them, names none.

    Raises:
        DataError: a column names the splits of some rows only.
    """
    columns = [name for name in table.columns if str(name).strip().lower() in SPLIT_COLUMNS]
    for name in columns:
        rows = {number: str(value).strip().lower() for number, value in enumerate(table[name], start=1)}
        unknown = [number for number, value in rows.items() if value not in SPLIT_OF]
        if not unknown:
            return [SPLIT_OF[value] for value in rows.values()], ()
        if len(unknown) < len(rows):
            raise DataError(
                f"{source}: row {unknown[0]} has {rows[unknown[0]]!r} in the column {name!r}, which is no split (there "
                f"are: {', '.join(SPLIT_OF)})"
            )
    notes = [f"the column {name!r} names no splits ({', '.join(SPLIT_NAMES)}) and is not read" for name in columns]
    return ["all"] * len(table), tuple(notes)


def may_hold_texts(path: Path) -> bool:
    """Return whether a file is a table that may hold texts, by its first line alone.

    Any table may, since its columns can be named by the user, except one of users and items, or of numbers only.
    """
    kind = table_format(path)
    if kind is None:
        return False
    try:
        first = decoded(path, HEAD_BYTES)
        first = first if kind == "jsonl" else first.partition("\n")[0].strip("\r")
        separators = {"jsonl": (), "tsv": ("\t",), "csv": (",", ";", "|")}[kind]
        names = [first.split(separator) for separator in separators] or [list(first_row(first))]
    except (DataError, ValueError, TypeError, RecursionError):
        return True  # damaged: the loader says what is wrong
    lower = [{str(name).strip().strip('"').lower() for name in spelt} for spelt in names]
    interactions = any(spelt.intersection(USER_COLUMNS) and spelt.intersection(ITEM_COLUMNS) for spelt in lower)
    numbers = any(all(name.replace(".", "", 1).isdigit() for name in spelt) for spelt in lower)  # and no header
    return not interactions and not numbers
