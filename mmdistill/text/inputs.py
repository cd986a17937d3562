"""Texts and labels as they come: pairs of lists, tables, and data sets with columns."""

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
    """A data set of named columns, as Hugging Face's are."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        ...

    def __getitem__(self, name: str, /) -> Any:
        """Return the values of a column."""
        ...


RawSplit = tuple[list[object], list[object]]
"""Texts and labels as they came."""


class Raw(NamedTuple):
    """Data as they came.

    Args:
        splits: by ``train``, ``dev`` and ``test``; of texts that are not split yet, ``all``.
        class_names: by class index, where the data name their classes.
        notes: how the splits came about, and what is doubtful, in words.
    """

    splits: Mapping[str, RawSplit]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """What a table calls its columns; those that are None are guessed.

    Args:
        text: the column of texts, or two, comma-separated, of pairs of texts.
        label: the column of labels.
    """

    text: str | None = None
    label: str | None = None

    def require_none(self, known: str) -> None:
        """Refuse names of columns where none is read by its name.

        Args:
            known: why none is, in words.
        Raises:
            ConfigError: naming the arguments that name columns.
        """
        require_left_out(known, text_column=self.text, label_column=self.label)


if TYPE_CHECKING:
    Series = pd.Series[Any]
else:  # which pandas itself does not let be subscripted
    Series = pd.Series
Column = Sequence[Any] | npt.NDArray[Any] | Series
"""Texts or labels: a list, an array of NumPy, or a column of a table."""
Pair = tuple[Column, Column | Tensor]
"""Texts, each of which may be a pair of texts, and labels."""
UNNAMED = "(texts, labels) are no table, so their columns have no names"
"""Why no column of a pair is named."""
Table = pd.DataFrame | list[dict[str, Any]] | Mapping[str, Column | Tensor] | WithColumns
"""Rows with columns of texts and labels: of pandas, a list with a dictionary per row, a dictionary with a list per
column, or a Hugging Face data set."""


def is_table(source: object) -> TypeGuard[Table]:
    """Return whether texts come as rows with columns."""
    return is_rows(source) or isinstance(source, pd.DataFrame) or _names_columns(source) or _has_columns(source)


def _names_columns(source: object) -> TypeGuard[Mapping[str, Column | Tensor]]:
    """Return whether a mapping has columns by their names, and not splits: none is called like one."""
    return (
        isinstance(source, Mapping)
        and bool(source)
        and not any(known_split(key) for key in source)
        and all(_is_column(values) for values in source.values())
    )


def _is_column(values: object) -> bool:
    """Return whether values are those of a column; a tuple is a pair of texts and labels."""
    if isinstance(values, np.ndarray | pd.Series | Tensor):
        return values.ndim > 0
    return isinstance(values, Sequence) and not isinstance(values, str | bytes | tuple) and not is_rows(values)


def _has_columns(source: object) -> TypeGuard[WithColumns]:
    return isinstance(getattr(source, "column_names", None), list) and hasattr(source, "__getitem__")


def pair_split(name: str, pair: Pair) -> RawSplit:
    """Return the texts and labels of a pair ``(texts, labels)``.

    Raises:
        DataError: something else, or as many texts as labels are not there.
    """
    if len(pair) != 2:
        raise DataError(f"{name}: expected a pair (texts, labels), got {len(pair)} things")
    texts, labels = pair
    if isinstance(texts, str):
        raise DataError(f"{name}: expected a list of texts, got one text")
    for what, given in (("texts", texts), ("labels", labels)):
        if not isinstance(given, Iterable) or not hasattr(given, "__len__"):
            raise DataError(f"{name}: expected a list of {what}, got {type(given).__name__}")
    values = _listed(labels)
    if len(texts) != len(values):
        raise DataError(f"{name}: {len(texts)} texts but {len(values)} labels")
    rows: list[object] = []
    for row, text in enumerate(texts, start=1):
        if isinstance(text, tuple | list) and len(text) != 2:
            raise DataError(f"{name}: row {row} holds {len(text)} texts; expected one text or a pair")
        rows.append(joined([[part] for part in text])[0] if isinstance(text, tuple | list) else text)
    return rows, values


def _listed(values: Column | Tensor) -> list[Any]:
    return list(values.tolist() if isinstance(values, Tensor | np.ndarray | pd.Series) else values)


def columns_split(table: pd.DataFrame, wanted: Columns, source: object) -> RawSplit:
    """Return the texts and labels of a table.

    Raises:
        ConfigError: no column of a given name, or one for both.
        DataError: no column looks like the one wanted; or a text seems to go on in the next line of a file of tabs.
    """
    columns = list(table.columns)
    texts = text_columns(columns, wanted.text, source)
    label = column(columns, wanted.label, LABEL_COLUMNS, "label", source)
    if label in texts:
        raise ConfigError(
            f"the column {label!r} of {source} would be text and label at once; name another with text_column "
            "(--text-column) or label_column (--label-column)"
        )
    if repeated := [name for name in (*texts, label) if columns.count(name) > 1]:
        raise DataError(
            f"{source} has {columns.count(repeated[0])} columns {repeated[0]!r}; keep or rename one of them"
        )
    split = joined([table[name].tolist() for name in texts]), table[label].tolist()
    if isinstance(source, Path) and is_unquoted(source):
        _require_closed(split, source)
    return split


def _require_closed(split: RawSplit, path: Path) -> None:
    """Refuse a file of tabs where a text without a label starts with a quotation mark, as one of two lines does.

    Raises:
        DataError: naming the row.
    """
    for row, (text, label) in enumerate(zip(*split, strict=True), start=1):
        if isinstance(text, str) and text.startswith('"') and not (isinstance(label, str) and label.strip()):
            raise DataError(
                f"{path}: row {row} has no label, and its text starts with a quotation mark; where tabs separate, a "
                "line is a row, quoted or not: save texts of several lines as CSV with commas, or as JSON lines"
            )


def joined(columns: Sequence[Sequence[object]]) -> list[object]:
    """Return one text per row; the two of a pair with :data:`~mmdistill.text.encoder.PAIR` between them.

    Where either is missing or empty, that one stands for the row, so that the check finds it.
    """
    if len(columns) == 1:
        return list(columns[0])
    rows: list[object] = []
    for parts in zip(*columns, strict=True):
        bad = [part for part in parts if not isinstance(part, str) or not part.strip()]
        rows.append(bad[0] if bad else PAIR.join(str(part) for part in parts))
    return rows


def divided(table: pd.DataFrame, wanted: Columns, source: object) -> Raw:
    """Return the splits that a column of a table names, or ``all``."""
    rows, notes = splits_of_rows(table, source)
    parts = {split: table[[row == split for row in rows]] for split in dict.fromkeys(rows)}
    return Raw({split: columns_split(part, wanted, source) for split, part in parts.items()}, notes=notes)


def frame_of(source: Table, wanted: Columns, name: str) -> tuple[pd.DataFrame, tuple[str, ...] | None]:
    """Return a table as a data frame, and the names of its classes where it has them.

    Of a data set with columns only those of texts, labels and splits are read.

    Raises:
        DataError: columns of several lengths.
    """
    if isinstance(source, pd.DataFrame):
        return source, None
    if isinstance(source, list):
        return pd.DataFrame(source, dtype=object), None
    if isinstance(source, Mapping):
        return _framed(source, name), None
    columns = [str(each) for each in source.column_names]
    label = column(columns, wanted.label, LABEL_COLUMNS, "label", name)
    read = dict.fromkeys((*text_columns(columns, wanted.text, name), label, *_called_splits(columns)))
    frame = pd.DataFrame({each: pd.Series(list(source[each]), dtype=object) for each in read})
    return frame, class_names_of(source, label)


def _called_splits(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if spelt(name).lower() in SPLIT_COLUMNS]


def names_splits(table: Table) -> bool:
    """Return whether a column of a table says which rows train and which test."""
    if _has_columns(table):
        table = {name: list(table[name]) for name in _called_splits(table.column_names)}
    return split_column(frame_of(table, Columns(), "the table")[0], ())[0] is not None


def _framed(columns: Mapping[str, Column | Tensor], name: str) -> pd.DataFrame:
    """Return the columns of a dictionary as a data frame.

    Raises:
        DataError: columns of several lengths.
    """
    lengths = {key: len(values) for key, values in columns.items()}
    if len({*lengths.values()}) > 1:
        found = ", ".join(f"{key!r} has {count:,}" for key, count in lengths.items())
        raise DataError(f"{name}: a dictionary of columns has as many values in each, and {found}")
    return pd.DataFrame({str(key): pd.Series(_listed(values), dtype=object) for key, values in columns.items()})


def from_parts(parts: Mapping[Any, Any], wanted: Columns) -> Raw:
    """Return the splits of a mapping from their names to pairs or tables.

    Raises:
        ConfigError: names of columns where no split has any, or an unknown split.
        DataError: two names of one split, or a split that is none.
    """
    if parts and all(_has_columns(part) for part in parts.values()):
        return from_data_sets(parts, wanted, "the data set")
    splits: dict[str, RawSplit] = {}
    names: tuple[str, ...] | None = None
    require_one_each(parts)
    if not any(is_table(part) for part in parts.values()):
        wanted.require_none(UNNAMED)
    for key, part in parts.items():
        split = split_name(key)
        if is_table(part):
            frame, found = frame_of(part, wanted, str(key))
            splits[split], names = columns_split(frame, wanted, str(key)), found or names
        else:
            splits[split] = pair_split(str(key), part)
    return Raw(splits, names)


def from_data_sets(loaded: Mapping[Any, WithColumns], wanted: Columns, name: str) -> Raw:
    """Return the splits of Hugging Face data sets by name.

    Splits of other names are left out, as are those whose labels are hidden (-1, as GLUE has them). Without a test
    split that of validation is tested on.
    """
    splits: dict[str, RawSplit] = {}
    names: tuple[str, ...] | None = None
    require_one_each(loaded)
    for key, part in loaded.items():
        split = known_split(key)
        if split is None:
            continue
        frame, found = frame_of(part, wanted, name)
        names = found or names
        texts, labels = columns_split(frame, wanted, name)
        if not are_hidden(labels):
            splits[split] = texts, labels
    notes: tuple[str, ...] = ()
    if "test" not in splits and "dev" in splits:
        splits["test"], notes = splits.pop("dev"), ("test: the published validation split",)
    return Raw(splits, names, notes)
