"""Tables of labelled texts: find the text, label and split columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mmdistill.checks import require_left_out
from mmdistill.errors import ConfigError, DataError, did_you_mean
from mmdistill.files import tables
from mmdistill.files.columns import SPLIT_COLUMNS, SPLIT_NAMES, SPLIT_OF, TEXT_COLUMNS
from mmdistill.files.tables import SUFFIXES, UNDELIMITED, spelt, suffix
from mmdistill.names import first_few

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
LABEL_COLUMNS = ("label", "labels", "class", "sentiment", "intent", "coarse_label", "category", "target", "topic", "y")
"""Names of label columns, those first that hardly mean anything else."""
ROW_COLUMNS = ("", "id", "idx", "index", "unnamed: 0")
"""Names of columns that number the rows, in lower case; no note says that they are not read."""
KNOWN_COLUMNS = (*TEXT_COLUMNS, *LABEL_COLUMNS, *(name for pair in PAIR_COLUMNS for name in pair))


@dataclass(frozen=True)
class Columns:
    """The column names of a table that the user gave; None is guessed.

    Args:
        text: the text column, or two comma-separated columns of text pairs.
        label: the label column.
    """

    text: str | None = None
    label: str | None = None

    def require_none(self, reason: str) -> None:
        """Refuse column names for data whose columns are not read by name.

        Args:
            reason: why not, for the message.
        Raises:
            ConfigError: a name is given; the message lists the arguments.
        """
        require_left_out(reason, text_column=self.text, label_column=self.label)


class Roles(NamedTuple):
    """The columns of a table that are read.

    Args:
        texts: the text column, or the two columns of text pairs.
        label: the label column; None where a split to test on has none.
        notes: a note on the other columns, if a column was guessed, or on a label column that is not there.
    """

    texts: tuple[str, ...]
    label: str | None
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> pd.DataFrame:
    """Read a table with a header as text, without interpreting values: "NA" stays a text.

    Tab-separated files have no quoting: a quotation mark is part of the text. CSV files quote as usual.

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
    """Return whether a table is tab-separated text, where quotation marks have no meaning and each line is a row."""
    return suffix(path) not in UNDELIMITED and tables.separator(path) == "\t"


def column(columns: Sequence[str], given: str | None, guesses: Sequence[str], role: str, source: object) -> str:
    """Return the column that the user named, or the first likely one, ignoring case.

    Raises:
        ConfigError: there is no column of the given name; the nearest is suggested.
        DataError: no column has a likely name.
    """
    place = tables.guessed(columns, guesses) if given is None else tables.named(columns, given, source)
    if place is not None:
        return columns[place]
    near = _near(columns, guesses)
    hint = f" (is it {near[0]!r}?)" if near else ""
    raise DataError(
        f"{source} has no column that looks like the {role}{hint}; there are: {tables.listed(columns)}. Name it "
        f"with {role}_column (--{role}-column); or, if these are interactions, name their columns with --user-column "
        "and --item-column (in Python recsys_task(data, user_column=..., item_column=...)). The first line must be a "
        "header"
    )


def _near(columns: Sequence[str], guesses: Sequence[str]) -> list[str]:
    """Return the columns with a name that is nearly a guess."""
    unknown = [name for name in map(str, columns) if name.strip().lower() not in (*KNOWN_COLUMNS, *SPLIT_OF)]
    # Column names are no typing errors, so they must be close to a guess: "time" must not match "sentiment".
    return [name for name in unknown if get_close_matches(name.strip().lower(), guesses, n=1, cutoff=0.7)]


def text_columns(columns: Sequence[str], given: str | None, source: object) -> tuple[str, ...]:
    """Return the text column, or the two columns of text pairs.

    Args:
        columns: the names of all columns.
        given: a name, or two comma-separated names; None guesses, pairs first.
        source: the table's origin, for messages.
    Raises:
        ConfigError: a given column does not exist, or more than two are named.
        DataError: no column looks like texts.
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


def roles_of(columns: Sequence[str], requested: Columns, source: object, like: Roles | None = None) -> Roles:
    """Return the columns to read.

    Args:
        columns: the names of all columns.
        requested: those that the user named.
        source: the table's origin, for messages.
        like: the columns of the training split, if the table is another one; it may then lack labels, unless a column
            has nearly the name.
    Raises:
        ConfigError: a requested column does not exist, or one column is both text and label.
        DataError: no column looks like texts or labels.
    """
    texts, label = (like.texts, like.label) if like is not None else ((), None)
    if not texts or requested.text is not None or not {*texts} <= {*columns}:
        texts = text_columns(columns, requested.text, source)
    if label is None or requested.label is not None or label not in columns:
        try:
            label = column(columns, requested.label, LABEL_COLUMNS, "label", source)
        except (ConfigError, DataError) as error:
            others = [name for name in columns if name not in texts]
            label = None if like is None else _alike(others, requested.label)
            if like is None or (label is None and _has_near(others, requested.label)):
                raise
            if label is None:
                return Roles(texts, None, () if requested.label is None else (str(error),))
    if label in texts:
        raise ConfigError(
            f"the column {label!r} of {source} would be text and label at once; name another with text_column "
            "(--text-column) or label_column (--label-column)"
        )
    is_guessed = requested.text is None or requested.label is None
    if not is_guessed if like is None else (texts, label) == (like.texts, like.label):
        return Roles(texts, label)
    return Roles(texts, label, _guess_note(columns, texts, label, "" if like is None else f"{source}: "))


def _alike(columns: Sequence[str], given: str | None) -> str | None:
    """Return the column of the user's name, ignoring case; None if there is none, or the user gave no name."""
    return next((name for name in columns if spelt(name).lower() == str(given).lower()), None) if given else None


def _has_near(columns: Sequence[str], given: str | None) -> bool:
    """Return whether a column's name is nearly the user's, or nearly a guess if the user gave none."""
    return bool(_near(columns, LABEL_COLUMNS) if given is None else did_you_mean(str(given), map(spelt, columns)))


def _guess_note(columns: Sequence[str], texts: tuple[str, ...], label: str, whose: str) -> tuple[str, ...]:
    """Return a note on what is read where columns are left over, so that no guess is silent.

    Args:
        columns: the names of all columns.
        texts: the text columns.
        label: the label column.
        whose: the start of the note for a split whose columns are not those of the training split, which is always
            noted; else empty.
    """
    silent = (*SPLIT_COLUMNS, *ROW_COLUMNS)
    unread = [name for name in columns if name not in (*texts, label) and spelt(name).lower() not in silent]
    if not unread and not whose:
        return ()
    left = f"; not read: {first_few([repr(name) for name in unread], tables.SHOWN)}" if unread else ""
    return (
        f"{whose}texts from {' and '.join(map(repr, texts))}, classes from {label!r}{left}; text_column "
        "(--text-column) and label_column (--label-column) name others",
    )


def splits_of_rows(table: pd.DataFrame, source: object) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of each row (``all`` without a split column), and notes.

    A column of numbers, such as cross-validation folds, is no split column.

    Raises:
        DataError: the split column leaves some rows without a split.
    """
    index, notes = tables.split_column(table, SPLIT_NAMES)
    if index is None:
        return ["all"] * len(table), notes
    return tables.splits_of(table.iloc[:, index], f"the column {str(table.columns[index])!r}", source).tolist(), ()


def split_files(folder: Path) -> dict[str, Path]:
    """Return the tables in a folder that are called like splits, by split."""
    files: dict[str, Path] = {}
    for split, spellings in SPLIT_NAMES.items():
        for spelling in spellings:
            for ending in (s + z for z in ("", ".gz") for s in SUFFIXES):
                path = folder / f"{spelling}{ending}"
                if split not in files and path.is_file():
                    files[split] = path
    return files


def may_hold_texts(path: Path) -> bool:
    """Return whether a file may be a table of texts, by its first line alone.

    Any table may be one, since the user can name its columns, except tables of users and items or with numbers as
    header. ``.txt`` files, which are mostly prose, need a column with a likely name for texts or labels.
    """
    if suffix(path) not in SUFFIXES:
        return False
    try:
        columns = tables.header(path)
    except DataError:
        return True  # damaged: let the loader report what is wrong
    is_numeric = all(name.replace(".", "", 1).isdigit() for name in columns)  # no header
    is_prose = suffix(path) == ".txt" and tables.guessed(columns, KNOWN_COLUMNS) is None
    return not (tables.of_interactions(columns) or is_numeric or is_prose)
