"""Read texts and labels as users give them: pairs of lists, tables, and data sets with columns."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.files.columns import SPLIT_COLUMNS, class_names_of, known_split, require_one_each, split_name
from mmdistill.files.paths import users_path
from mmdistill.files.tables import is_rows, spelt, split_column
from mmdistill.labels import classes_of_one_hot
from mmdistill.text.checks import WHOLE, are_withheld
from mmdistill.text.encoder import PAIR
from mmdistill.text.remarks import quoted
from mmdistill.text.samples import are_samples, list_items, texts_and_labels
from mmdistill.text.tables import Columns, Roles, is_unquoted, read_table, roles_of, splits_of_rows


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
        guess: the note on the columns that were guessed for training, if others are left over.
    """

    splits: Mapping[str, RawSplit]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    guess: str = ""


if TYPE_CHECKING:
    Series = pd.Series[Any]
else:  # at run time pandas.Series cannot be subscripted
    Series = pd.Series
Column = Sequence[Any] | npt.NDArray[Any] | Series
"""Texts or labels: a list, a NumPy array, or a column of a table."""
Pair = tuple[Column | pd.DataFrame, Column | Tensor | pd.DataFrame]
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


def are_train_and_test(source: object) -> TypeGuard[tuple[Pair, Pair]]:
    """Return whether a source is two pairs ``(texts, labels)``, to train and to test on; pairs of texts are none."""
    return isinstance(source, tuple | list) and len(source) == 2 and all(map(_is_pair_of_columns, source))


def _is_pair_of_columns(part: Any) -> bool:
    return (
        isinstance(part, tuple | list)
        and len(part) == 2
        and all(_is_column(values) or _is_long(values) for values in part)
    )


def _is_long(values: object) -> bool:
    """Return whether values are a tuple, or another sequence, that is too long for a pair of texts."""
    return isinstance(values, Sequence) and not isinstance(values, str | bytes) and len(values) > 2


def _pair_split(name: str, pair: Pair) -> tuple[RawSplit, list[str]]:
    """Return the texts and labels of a pair ``(texts, labels)``, and a note if the labels were one-hot.

    Raises:
        DataError: something else, or different numbers of texts and labels.
    """
    if not isinstance(pair, Sequence | np.ndarray):
        raise DataError(
            f"{name}: expected a pair (texts, labels), a list or data set of (text, label), or a table, got "
            f"{type(pair).__name__}"
        )
    if len(pair) != 2:
        raise DataError(f"{name}: expected a pair (texts, labels), got {len(pair)} things")
    texts, labels = pair
    if isinstance(texts, pd.DataFrame):
        texts = texts.iloc[:, 0] if texts.shape[1] == 1 else texts.to_numpy().tolist()
    if isinstance(texts, str):
        raise DataError(f"{name}: expected a list of texts, got one text")
    if isinstance(texts, Tensor) or (isinstance(texts, np.ndarray) and texts.dtype.kind in "fiu"):
        raise DataError(
            f"{name}: expected a list of texts, got numbers of shape {tuple(texts.shape)}; give points of your own "
            "beside their texts: points = dict(zip(texts, embeddings)), and then text_task((texts, labels), "
            "encoder=lambda texts: [points[text] for text in texts])"
        )
    for what, part in (("texts", texts), ("labels", labels)):
        if not isinstance(part, Iterable) or not hasattr(part, "__len__"):
            raise DataError(f"{name}: expected a list of {what}, got {type(part).__name__}")
    labels, notes = _one_label_each(name, labels)
    values = _as_list(labels)
    if len(texts) != len(values):
        raise DataError(f"{name}: {len(texts)} texts but {len(values)} labels")
    rows: list[object] = []
    for row, text in enumerate(texts, start=1):
        if isinstance(text, tuple | list) and len(text) != 2:
            raise DataError(f"{name}: row {row} holds {len(text)} texts; expected one text or a pair")
        rows.append(join_pairs([[part] for part in text])[0] if isinstance(text, tuple | list) else text)
    return (rows, values), notes


def _one_label_each(name: str, labels: Column | Tensor | pd.DataFrame) -> tuple[Column | Tensor, list[str]]:
    """Return a column ``(n, 1)`` of labels as ``(n,)``, one-hot rows as classes with a note, other labels as given.

    Rows are those of an array, a tensor or a data frame, or a list of lists, tuples, arrays or tensors.
    """
    labels = labels.to_numpy() if isinstance(labels, pd.DataFrame) else labels
    rows = labels if isinstance(labels, Tensor | np.ndarray) else _rows_of(labels)
    if rows is None or rows.ndim != 2:
        return labels, []
    if rows.shape[1] == 1:
        return rows[:, 0], []
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf":
        rows = torch.from_numpy(rows.astype(float))
    classes = classes_of_one_hot(rows) if isinstance(rows, Tensor) else None
    return (labels, []) if classes is None else (classes, [f"{name}: one-hot labels are read as classes"])


def _rows_of(labels: Column) -> npt.NDArray[Any] | None:
    """Return labels of which each is a sequence, all of one length, as an array ``(n, C)``; None for others."""
    rows = [label.tolist() if isinstance(label, Tensor | np.ndarray) else label for label in labels]
    if not all(isinstance(row, tuple | list) for row in rows) or len({*map(len, rows)}) != 1:
        return None
    return pd.DataFrame(rows).to_numpy()


def _as_list(values: Column | Tensor) -> list[Any]:
    return list(values.tolist() if isinstance(values, Tensor | np.ndarray | pd.Series) else values)


def _columns_split(table: pd.DataFrame, roles: Roles, source: object) -> RawSplit:
    """Return the texts and labels of a table; where there is no label column, all labels are missing.

    Raises:
        DataError: several columns of one name, or a text of a tab-separated file seems to span two lines.
    """
    columns: list[Any] = list(table.columns)
    if repeated := [name for name in (*roles.texts, roles.label) if columns.count(name) > 1]:
        raise DataError(
            f"{source} has {columns.count(repeated[0])} columns {repeated[0]!r}; keep or rename one of them"
        )
    labels = [None] * len(table) if roles.label is None else table[roles.label].tolist()
    split = join_pairs([table[name].tolist() for name in roles.texts]), labels
    if roles.label is not None and isinstance(source, Path) and is_unquoted(source):
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
    raw = read_splits(parts, requested, source)
    return raw._replace(notes=(*notes, *raw.notes))


def frame_of(
    source: Table | Path, requested: Columns, name: object, like: Roles | None = None
) -> tuple[pd.DataFrame, tuple[str, ...] | None]:
    """Return a table, or a file of one, as a data frame, and its class names if it has any.

    Only the text, label and split columns of a Hugging Face data set are read; its other columns are empty.

    Raises:
        DataError: columns of different lengths, or an unreadable file.
    """
    if isinstance(source, Path):
        return read_table(source), None
    if isinstance(source, pd.DataFrame):
        return source, None
    if isinstance(source, list):
        return pd.DataFrame(source, dtype=object), None
    if isinstance(source, Mapping):
        return _frame_of_columns(source, name), None
    columns = [str(column_name) for column_name in source.column_names]
    texts, label, _ = roles_of(columns, requested, name, like)
    to_read = {*texts, label, *(name for name in columns if spelt(name).lower() in SPLIT_COLUMNS)}
    read = {key: pd.Series(list(source[key]) if key in to_read else None, dtype=object) for key in columns}
    return pd.DataFrame(read), None if label is None else class_names_of(source, label)


def _frame_of_columns(columns: Mapping[str, Column | Tensor], name: object) -> pd.DataFrame:
    """Return a dictionary of columns as a data frame.

    Raises:
        DataError: columns of different lengths.
    """
    lengths = {key: len(values) for key, values in columns.items()}
    if len({*lengths.values()}) > 1:
        counts = ", ".join(f"{key!r} has {count:,}" for key, count in lengths.items())
        raise DataError(f"{name}: a dictionary of columns has as many values in each, and {counts}")
    return pd.DataFrame({str(key): pd.Series(_as_list(values), dtype=object) for key, values in columns.items()})


def read_beside_test(source: object, test: object, requested: Columns) -> Raw:
    """Return the training split, and a test split that is given apart.

    Raises:
        ConfigError: ``source`` brings its own test split: it is no pair, table or file of one, or has a split column.
        DataError: an unusable split.
    """
    is_pair = isinstance(source, tuple) or are_samples(source)
    if not (is_pair or is_table(source) or (isinstance(source, Path) and source.is_file())):
        raise ConfigError(
            "test data go with (texts, labels), a table or a file of one; other sources bring their own, as a "
            'dictionary of splits does: {"train": (texts, labels), "dev": ..., "test": ...}'
        )
    return from_parts({"train": source, "test": test}, requested, undivided=True)


def from_parts(parts: Mapping[Any, Any], requested: Columns, source: object = None, *, undivided: bool = False) -> Raw:
    """Return the splits of a mapping from split names to pairs, tables or files of tables.

    Splits of Hugging Face data sets with other names are left out.

    Args:
        parts: the mapping.
        requested: the columns that the user named.
        source: the origin of all splits, for messages; by default each file, or the split's name.
        undivided: refuse a training table with a split column.
    Raises:
        ConfigError: column names though no split is a table, or an unknown split name.
        DataError: two names for one split, or an unusable split.
    """
    require_one_each(parts)
    parts = {key: list_items(part) for key, part in parts.items()}
    if parts and all(_has_columns(part) for part in parts.values()):
        known = {split: part for key, part in parts.items() if (split := known_split(key))}
        return read_splits(known, requested, source, undivided=undivided)
    parts = {split_name(key): users_path(part) if isinstance(part, str) else part for key, part in parts.items()}
    if not any(is_table(part) or isinstance(part, Path) for part in parts.values()):
        requested.require_none(UNNAMED)
    return read_splits(parts, requested, undivided=undivided)


def read_splits(parts: Mapping[str, Any], requested: Columns, source: object = None, *, undivided: bool = False) -> Raw:
    """Return the texts and labels of splits.

    Columns that the user does not name are those of the training split, where a split has them.

    Args:
        parts: by split, a pair, a list of samples, a table or a file of one.
        requested: the columns that the user named.
        source: the origin of all of them, for messages; by default each file, or the split's name.
        undivided: refuse a training table with a split column.
    Raises:
        ConfigError: a requested column does not exist, or one column is both text and label.
        DataError: a split that cannot be read.
    """
    splits: dict[str, RawSplit] = {}
    names, notes, like = None, list[str](), None
    for split in sorted(parts, key=lambda split: split not in (WHOLE, "train")):
        part, origin = parts[split], source or split
        if not (is_table(part) or isinstance(part, Path)):
            called = "data" if split == WHOLE else split
            pair, pair_notes = part, list[str]()
            if are_samples(part):
                pair, pair_notes = texts_and_labels(called, part, train=split in (WHOLE, "train"))
            splits[split], label_notes = _pair_split(called, pair)
            notes += [note for note in (*pair_notes, *label_notes) if note not in notes]
            continue
        origin = part if isinstance(part, Path) else origin
        frame, own_names = frame_of(part, requested, origin, like)
        if undivided and split == "train" and split_column(frame, ())[0] is not None:
            raise ConfigError(
                "a column of the table names its splits; leave test out, or take the column away and give test the "
                "rows that test"
            )
        roles = roles_of(list(frame.columns), requested, origin, like)
        splits[split], names, like = _columns_split(frame, roles, origin), names or own_names, like or roles
        notes += roles.notes
        if isinstance(part, Path):
            notes += quoted(splits[split][0], part)
    return Raw({split: splits[split] for split in parts}, names, tuple(notes), "".join(like.notes if like else ()))


def without_withheld(raw: Raw) -> Raw:
    """Leave out splits whose labels are withheld; if no test split is left, the validation split is tested on."""
    splits = dict(raw.splits)
    known = [label for split in (WHOLE, "train") if split in splits for label in splits[split][1]]
    given = {split: splits[split][1] for split in ("dev", "test") if split in splits}
    hidden = [split for split, labels in given.items() if labels and are_withheld(labels, known)]
    notes = [f"the {split} split has no labels and is left out" for split in hidden]
    for split in hidden:
        del splits[split]
    if "test" not in splits and "dev" in splits:
        splits["test"] = splits.pop("dev")
        notes.append("test: the validation split, as there is no test split with labels")
    return raw._replace(splits=splits, notes=(*raw.notes, *notes))
