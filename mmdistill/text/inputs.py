"""Read texts and labels as users give them: pairs of lists, tables, and data sets with columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from mmdistill.checks import require_left_out
from mmdistill.errors import ConfigError, DataError
from mmdistill.files.columns import (
    SPLIT_COLUMNS,
    are_hidden,
    class_names_of,
    known_split,
    require_one_each,
    split_name,
)
from mmdistill.files.tables import is_rows, spelt, split_column
from mmdistill.text.encoder import PAIR
from mmdistill.text.tables import LABEL_COLUMNS, column, is_unquoted, splits_of_rows, text_columns


class WithColumns(Protocol):
    """A data set with named columns, such as Hugging Face's."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        ...

    def __getitem__(self, name: str, /) -> Any:
        """Return the values of a column."""
        ...


RawSplit = tuple[list[object], list[object]]
"""Unchecked texts and labels."""


class Raw(NamedTuple):
    """Unchecked data.

    Args:
        splits: texts and labels by ``train``, ``dev`` and ``test``, or ``all`` if they are not split yet.
        class_names: names by class index, if the data name their classes.
        notes: how the splits were made, and what is doubtful in the data.
    """

    splits: Mapping[str, RawSplit]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The column names of a table; None is guessed.

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


if TYPE_CHECKING:
    Series = pd.Series[Any]
else:  # at run time pandas.Series cannot be subscripted
    Series = pd.Series
Column = Sequence[Any] | npt.NDArray[Any] | Series
"""Texts or labels: a list, a NumPy array, or a column of a table."""
Pair = tuple[Column, Column | Tensor]
"""Texts, each of which may be a pair of texts, and labels."""
UNNAMED = "(texts, labels) are no table, so their columns have no names"
"""Why column names are refused for a pair."""
Table = pd.DataFrame | list[dict[str, Any]] | Mapping[str, Column | Tensor] | WithColumns
"""A table with text and label columns: a data frame, a list with a dictionary per row, a dictionary with a list per
column, or a Hugging Face data set."""


def is_table(source: object) -> TypeGuard[Table]:
    """Return whether a source is a table."""
    return is_rows(source) or isinstance(source, pd.DataFrame) or _names_columns(source) or _has_columns(source)


def _names_columns(source: object) -> TypeGuard[Mapping[str, Column | Tensor]]:
    """Return whether a mapping is from names to columns rather than to splits: no key is called like a split."""
    return (
        isinstance(source, Mapping)
        and bool(source)
        and not any(known_split(key) for key in source)
        and all(_is_column(values) for values in source.values())
    )


def _is_column(values: object) -> bool:
    """Return whether values are a column; a tuple is not, since it is a pair of texts and labels."""
    if isinstance(values, np.ndarray | pd.Series | Tensor):
        return values.ndim > 0
    return isinstance(values, Sequence) and not isinstance(values, str | bytes | tuple) and not is_rows(values)


def _has_columns(source: object) -> TypeGuard[WithColumns]:
    return isinstance(getattr(source, "column_names", None), list) and hasattr(source, "__getitem__")


def pair_split(name: str, pair: Pair) -> RawSplit:
    """Return the texts and labels of a pair ``(texts, labels)``.

    Raises:
        DataError: something else, or different numbers of texts and labels.
    """
    if len(pair) != 2:
        raise DataError(f"{name}: expected a pair (texts, labels), got {len(pair)} things")
    texts, labels = pair
    if isinstance(texts, str):
        raise DataError(f"{name}: expected a list of texts, got one text")
    for what, part in (("texts", texts), ("labels", labels)):
        if not isinstance(part, Iterable) or not hasattr(part, "__len__"):
            raise DataError(f"{name}: expected a list of {what}, got {type(part).__name__}")
    values = _as_list(labels)
    if len(texts) != len(values):
        raise DataError(f"{name}: {len(texts)} texts but {len(values)} labels")
    rows: list[object] = []
    for row, text in enumerate(texts, start=1):
        if isinstance(text, tuple | list) and len(text) != 2:
            raise DataError(f"{name}: row {row} holds {len(text)} texts; expected one text or a pair")
        rows.append(join_pairs([[part] for part in text])[0] if isinstance(text, tuple | list) else text)
    return rows, values


def _as_list(values: Column | Tensor) -> list[Any]:
    return list(values.tolist() if isinstance(values, Tensor | np.ndarray | pd.Series) else values)


def columns_split(table: pd.DataFrame, requested: Columns, source: object) -> RawSplit:
    """Return the texts and labels of a table.

    Raises:
        ConfigError: a requested column does not exist, or one column is both text and label.
        DataError: no column looks like texts or labels, or a text of a tab-separated file seems to span two lines.
    """
    columns = list(table.columns)
    texts = text_columns(columns, requested.text, source)
    label = column(columns, requested.label, LABEL_COLUMNS, "label", source)
    if label in texts:
        raise ConfigError(
            f"the column {label!r} of {source} would be text and label at once; name another with text_column "
            "(--text-column) or label_column (--label-column)"
        )
    if repeated := [name for name in (*texts, label) if columns.count(name) > 1]:
        raise DataError(
            f"{source} has {columns.count(repeated[0])} columns {repeated[0]!r}; keep or rename one of them"
        )
    split = join_pairs([table[name].tolist() for name in texts]), table[label].tolist()
    if isinstance(source, Path) and is_unquoted(source):
        _require_one_line_texts(split, source)
    return split


def _require_one_line_texts(split: RawSplit, path: Path) -> None:
    """Refuse a tab-separated file with a text that starts with a quotation mark and has no label: half of a text.

    Raises:
        DataError: there is such a row; the message names it.
    """
    for row, (text, label) in enumerate(zip(*split, strict=True), start=1):
        if isinstance(text, str) and text.startswith('"') and not (isinstance(label, str) and label.strip()):
            raise DataError(
                f"{path}: row {row} has no label, and its text starts with a quotation mark; where tabs separate, a "
                "line is a row, quoted or not: save texts of several lines as CSV with commas, or as JSON lines"
            )


def join_pairs(columns: Sequence[Sequence[object]]) -> list[object]:
    """Return one text per row; the two texts of a pair are joined by :data:`~mmdistill.text.encoder.PAIR`.

    If either is missing or empty, it becomes the row's text, so that the later check reports it.
    """
    if len(columns) == 1:
        return list(columns[0])
    rows: list[object] = []
    for parts in zip(*columns, strict=True):
        bad = [part for part in parts if not isinstance(part, str) or not part.strip()]
        rows.append(bad[0] if bad else PAIR.join(str(part) for part in parts))
    return rows


def divide(table: pd.DataFrame, requested: Columns, source: object) -> Raw:
    """Divide a table by its split column; without one, all rows are the split ``all``."""
    splits, notes = splits_of_rows(table, source)
    parts = {split: table[[row_split == split for row_split in splits]] for split in dict.fromkeys(splits)}
    return Raw({split: columns_split(part, requested, source) for split, part in parts.items()}, notes=notes)


def frame_of(source: Table, requested: Columns, name: str) -> tuple[pd.DataFrame, tuple[str, ...] | None]:
    """Return a table as a data frame, and its class names if it has any.

    Only the text, label and split columns of a Hugging Face data set are read.

    Raises:
        DataError: columns of different lengths.
    """
    if isinstance(source, pd.DataFrame):
        return source, None
    if isinstance(source, list):
        return pd.DataFrame(source, dtype=object), None
    if isinstance(source, Mapping):
        return _frame_of_columns(source, name), None
    columns = [str(column_name) for column_name in source.column_names]
    label = column(columns, requested.label, LABEL_COLUMNS, "label", name)
    texts = text_columns(columns, requested.text, name)
    to_read = dict.fromkeys((*texts, label, *_split_columns(columns)))
    frame = pd.DataFrame({key: pd.Series(list(source[key]), dtype=object) for key in to_read})
    return frame, class_names_of(source, label)


def _split_columns(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if spelt(name).lower() in SPLIT_COLUMNS]


def names_splits(table: Table) -> bool:
    """Return whether a table has a split column."""
    if _has_columns(table):
        table = {name: list(table[name]) for name in _split_columns(table.column_names)}
    return split_column(frame_of(table, Columns(), "the table")[0], ())[0] is not None


def _frame_of_columns(columns: Mapping[str, Column | Tensor], name: str) -> pd.DataFrame:
    """Return a dictionary of columns as a data frame.

    Raises:
        DataError: columns of different lengths.
    """
    lengths = {key: len(values) for key, values in columns.items()}
    if len({*lengths.values()}) > 1:
        counts = ", ".join(f"{key!r} has {count:,}" for key, count in lengths.items())
        raise DataError(f"{name}: a dictionary of columns has as many values in each, and {counts}")
    return pd.DataFrame({str(key): pd.Series(_as_list(values), dtype=object) for key, values in columns.items()})


def from_parts(parts: Mapping[Any, Any], requested: Columns) -> Raw:
    """Return the splits of a mapping from split names to pairs or tables.

    Raises:
        ConfigError: column names though no split is a table, or an unknown split name.
        DataError: two names for one split, or an unusable split.
    """
    if parts and all(_has_columns(part) for part in parts.values()):
        return from_data_sets(parts, requested, "the data set")
    splits: dict[str, RawSplit] = {}
    names: tuple[str, ...] | None = None
    require_one_each(parts)
    if not any(is_table(part) for part in parts.values()):
        requested.require_none(UNNAMED)
    for key, part in parts.items():
        split = split_name(key)
        if is_table(part):
            frame, frame_names = frame_of(part, requested, str(key))
            splits[split], names = columns_split(frame, requested, str(key)), frame_names or names
        else:
            splits[split] = pair_split(str(key), part)
    return Raw(splits, names)


def from_data_sets(loaded: Mapping[Any, WithColumns], requested: Columns, name: str) -> Raw:
    """Return the splits of Hugging Face data sets by name.

    Splits with other names are left out, and so are those with hidden labels (-1, as in GLUE). Without a test split,
    the validation split is tested on.
    """
    splits: dict[str, RawSplit] = {}
    names: tuple[str, ...] | None = None
    require_one_each(loaded)
    for key, part in loaded.items():
        split = known_split(key)
        if split is None:
            continue
        frame, frame_names = frame_of(part, requested, name)
        names = frame_names or names
        texts, labels = columns_split(frame, requested, name)
        if not are_hidden(labels):
            splits[split] = texts, labels
    notes: tuple[str, ...] = ()
    if "test" not in splits and "dev" in splits:
        splits["test"], notes = splits.pop("dev"), ("test: the published validation split",)
    return Raw(splits, names, notes)
