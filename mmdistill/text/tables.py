"""Tables of texts with labels: which columns hold them, and which rows train and test."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from mmdistill.errors import ConfigError, DataError
from mmdistill.files import tables
from mmdistill.files.columns import SPLIT_NAMES
from mmdistill.files.tables import SUFFIXES, UNDELIMITED, suffix

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


def read_table(path: Path) -> pd.DataFrame:
    """Read a table with a header as text; nothing is guessed of the values, so "NA" stays a text.

    Where tabs separate, there is no quoting: a quotation mark is part of the text. CSV files quote as usual.

    Raises:
        DataError: the file is missing, is not UTF-8 (the line is named), is no table, or is empty.
    """
    if suffix(path) not in SUFFIXES:
        raise DataError(
            f"{path} is no table of texts: expected a name that ends in {', '.join(SUFFIXES)} (or .gz of these)"
        )
    table = tables.read(path, verbatim=True)
    if not len(table):
        raise DataError(f"{path} holds no rows")
    return table


def is_unquoted(path: Path) -> bool:
    """Return whether a table is text that tabs separate, in which a quotation mark is one and a line is a row."""
    return suffix(path) not in UNDELIMITED and tables.separator(path) == "\t"


def column(columns: Sequence[str], given: str | None, guesses: Sequence[str], role: str, source: object) -> str:
    """Return the column that the user named, or the first likely one, ignoring case.

    Raises:
        ConfigError: there is no column of the given name; the nearest is suggested.
        DataError: no column looks like the one wanted.
    """
    place = tables.guessed(columns, guesses) if given is None else tables.named(columns, given, source)
    if place is not None:
        return columns[place]
    names = [str(name) for name in columns]
    # Nobody typed these names, so they must be nearer to a guess than a slip is to a name: "time" is no "sentiment".
    near = [name for name in names if get_close_matches(name.strip().lower(), guesses, n=1, cutoff=0.7)]
    hint = f" (is it {near[0]!r}?)" if near else ""
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
    given = None if given is None else str(given)
    if given is not None and given not in map(str, columns) and "," in given:
        parts = [part.strip() for part in given.split(",")]
        if len(parts) != 2:
            raise ConfigError(f"texts are in one column or, as pairs, in two; got {len(parts)}: {given!r}")
        return tuple(column(columns, part, TEXT_COLUMNS, "text", source) for part in parts)
    for pair in PAIR_COLUMNS if given is None else ():
        places = [place for name in pair if (place := tables.guessed(columns, (name,))) is not None]
        if len(places) == len(pair):
            return tuple(columns[place] for place in places)
    return (column(columns, given, TEXT_COLUMNS, "text", source),)


def splits_of_rows(table: pd.DataFrame, source: object) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of each row, ``all`` where no column names splits, and notes.

    A column of numbers, as cross-validation has them, names none.

    Raises:
        DataError: a column names the splits of some rows only.
    """
    index, notes = tables.split_column(table, SPLIT_NAMES)
    if index is None:
        return ["all"] * len(table), notes
    return tables.splits_of(table.iloc[:, index], f"the column {str(table.columns[index])!r}", source).tolist(), ()


def may_hold_texts(path: Path) -> bool:
    """Return whether a file is a table that may hold texts, by its first line alone.

    Any table may, since its columns can be named by the user, except one of users and items, or of numbers only; of
    ``.txt`` files, which are mostly prose, those with a column that looks like one of texts or labels.
    """
    if suffix(path) not in SUFFIXES:
        return False
    try:
        columns = tables.header(path)
    except DataError:
        return True  # damaged: the loader says what is wrong
    numbers = all(name.replace(".", "", 1).isdigit() for name in columns)  # and no header
    known = (*TEXT_COLUMNS, *LABEL_COLUMNS, *(name for pair in PAIR_COLUMNS for name in pair))
    prose = suffix(path) == ".txt" and tables.guessed(columns, known) is None
    return not (tables.of_interactions(columns) or numbers or prose)
