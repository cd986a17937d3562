"""Labelled texts from files, folders, Python lists and Hugging Face data sets, checked and split."""

import functools
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.checks import require_left_out
from mmdistill.errors import ConfigError, DataError
from mmdistill.execution.isolation import isolated
from mmdistill.files.classes import ClassNames, checked_class_names, missing_like, untested, unvalidated
from mmdistill.files.held_out import held_out, shuffled_by_class
from mmdistill.files.hub import load_from_hub, located_on_hub, on_hub
from mmdistill.files.paths import users_path
from mmdistill.files.tables import SUFFIXES, listed, suffix
from mmdistill.labels import from_one
from mmdistill.names import brief_repr, canonical, class_numbers, class_order, unknown_data
from mmdistill.parameterizations.base import index_bytes
from mmdistill.runtime import Draws, checked_seed, data_root
from mmdistill.text import trec
from mmdistill.text.checks import WHOLE, checked_rows, row_name
from mmdistill.text.folders import is_text_folder, read_text_folder
from mmdistill.text.inputs import (
    UNNAMED,
    Pair,
    Raw,
    Table,
    are_train_and_test,
    divide,
    frame_of,
    from_parts,
    is_table,
    read_beside_test,
    read_splits,
    without_withheld,
)
from mmdistill.text.remarks import alike_classes, are_numbers, leaks, missing_texts, quoted, repeats
from mmdistill.text.samples import Samples, are_samples, list_items
from mmdistill.text.tables import Columns, may_hold_texts, read_table, split_files

DEV_SHARE = 0.1
TEST_SHARE = 0.2


@dataclass(frozen=True)
class TextSource:
    """A data set under the data root that users load by name.

    Args:
        summary: one line for ``mmdistill data``.
        origin: where users can fetch it.
        class_names: names by class index.
        published: files that are accepted as published, instead of tables with columns label and text.
    """

    summary: str
    origin: str
    class_names: tuple[str, ...]
    published: str = ""


SOURCES = {
    "sst2": TextSource(
        "Stanford Sentiment Treebank, binary, sentence level (6,920 / 872 / 1,821), not GLUE's phrases",
        "nlp.stanford.edu/sentiment",
        ("negative", "positive"),
    ),
    "trec": TextSource(
        "TREC question classification, 6 coarse classes (5,452 / 500)",
        "cogcomp.seas.upenn.edu/Data/QA/QC",
        tuple(trec.COARSE.values()),
        f"{' and '.join(trec.FILES.values())} as published",
    ),
}


@dataclass(frozen=True)
class TextSplit:
    """Texts with class indices ``(n,)`` int64 on the CPU."""

    texts: tuple[str, ...]
    labels: Tensor

    def __repr__(self) -> str:
        """Return a short form with the number of texts."""
        return f"TextSplit({len(self.texts):,} texts)"


@dataclass(frozen=True)
class TextData:
    """A text classification data set.

    Args:
        name: as the user gave it.
        train: the texts to distil.
        dev: the texts that hyper-parameters are chosen on.
        test: the texts that results are reported on.
        class_names: names by class index.
        notes: how splits were made that the source did not give, and what is doubtful in the data.
    """

    name: str
    train: TextSplit
    dev: TextSplit
    test: TextSplit
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return one line with the name, the number of texts in each split and the number of classes."""
        splits = ", ".join(f"{len(getattr(self, name).texts):,} {name}" for name in ("train", "dev", "test"))
        return f"TextData({self.name}, texts: {splits}, {len(self.class_names)} classes)"

    @functools.cached_property
    def stored_bytes(self) -> int:
        """The bytes of the training texts in UTF-8 with one byte (two from 257 classes on) per label."""
        label = index_bytes(len(self.class_names))
        return sum(len(text.encode()) + label for text in self.train.texts)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the training texts and labels, and of the development split, which chooses the step."""
        return _digest(self.train, self.dev)

    @functools.cached_property
    def test_fingerprint(self) -> str:
        """A hash of the test texts and labels."""
        return _digest(self.test)


def _digest(*parts: TextSplit) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part.texts)};".encode())
        for text, label in zip(part.texts, part.labels.tolist(), strict=True):
            digest.update(f"{len(text)}:{text}:{label};".encode())
    return digest.hexdigest()


TextInput = str | Path | TextData | Pair | tuple[Pair, Pair] | Samples | Table | Mapping[str, Any]
"""Data as a user may give them: a name, a path, ``(texts, labels)``, two such pairs to train and to test on, a list or
data set of ``(text, label)``, a table, or a mapping from split names to such pairs, lists, tables or files of tables;
each text may be a pair of texts."""


@isolated
def load_text(
    source: TextInput,
    *,
    test: Pair | Samples | Table | str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    class_names: ClassNames | None = None,
    seed: int = 0,
) -> TextData:
    """Load, check and split labelled texts.

    Without a test split with labels, the validation split is tested on; without both, a stratified 20 % of the data
    is, and repeats of a text stay in one split. Without a development split, it is a stratified 10 % of the training
    split.

    Args:
        source: ``sst2`` or ``trec`` under the data root, a file, a folder with train and test files (and dev) or with a
            subfolder of text files for each class (perhaps under ``train``, ``dev`` and ``test``), ``hf:NAME`` or
            ``hf:NAME:CONFIGURATION``, a pair ``(texts, labels)``, two such pairs to train and to test on, a list or
            map-style data set of ``(text, label)``, a table (a data frame of pandas or polars, a table of pyarrow, a
            list with a dictionary per row, a dictionary with a list per column, or a Hugging Face data set), or such
            pairs, lists, tables or files of tables by split name.
        test: a pair, a table or a file of one to test on, if ``source`` is a pair, a table or a file to train on.
        text_column: the text column, or two comma-separated columns of text pairs; guessed by default.
        label_column: the label column; guessed by default.
        class_names: names by class index, see :data:`~mmdistill.files.classes.ClassNames`; labels are then indices into
            them or the names themselves.
        seed: seed of the splits made here.
    Raises:
        ConfigError: an unknown name or column, or names of columns or classes for data that have none or their own.
        DataError: missing or unreadable files, empty texts, missing or unknown labels, fewer than two classes.
    """
    seed = checked_seed(seed)
    names = None if class_names is None else checked_class_names(class_names)
    columns = Columns(text_column, label_column)
    if isinstance(source, TextData):
        reason = "text data that are loaded are read, with their classes"
        require_left_out(reason, test=test, text_column=text_column, label_column=label_column, class_names=class_names)
        return source
    source, test = list_items(source), list_items(test)
    if are_train_and_test(source):
        source = {"train": source[0], "test": source[1]}
    path = users_path(source) if isinstance(source, str | Path) and not is_known(source) else None
    if test is not None and (path is None or path.exists()):
        name, raw = "texts", read_beside_test(path or source, test, columns)
    elif isinstance(source, str | Path):
        name, raw = _read_named(source, columns)
    else:
        name, raw = "texts", _read_values(source, columns)
    try:
        return _finish(name, raw if names is None else raw._replace(class_names=names), seed)
    except DataError as error:
        if not raw.guess:
            raise
        raise DataError(f"{error}; read are {raw.guess}") from error


def _read_values(source: Any, columns: Columns) -> Raw:
    """Read in-memory data."""
    if isinstance(source, tuple) or are_samples(source):
        columns.require_none(UNNAMED)
        return read_splits({WHOLE: source}, columns)
    if is_table(source):
        frame, own_names = frame_of(source, columns, "the table")
        return divide(frame, columns, "the table")._replace(class_names=own_names)
    if isinstance(source, Mapping):
        return from_parts(source, columns)
    raise ConfigError(
        "text data is a name, a path, (texts, labels), a list or data set of (text, label), a table (of pandas, "
        "polars, pyarrow or Hugging Face, a dictionary with a list per column, or a list with a dictionary per row) or "
        f"a mapping of split names to such, got {type(source).__name__}"
    )


def is_known(source: str | Path) -> bool:
    """Return whether a source is the name of a known data set, or of one on the hub."""
    return isinstance(source, str) and (on_hub(source) or canonical(source) in SOURCES)


def _read_named(source: str | Path, columns: Columns) -> tuple[str, Raw]:
    """Read data by name or path; return their display name and the data."""
    if isinstance(source, str) and on_hub(source):
        return located_on_hub(source), from_parts(load_from_hub(source), columns, source)
    if isinstance(source, str) and canonical(source) in SOURCES:
        return source, _read_source(canonical(source), columns)
    return str(users_path(source).absolute()), _read_path(source, columns)


def accepts(path: Path) -> bool:
    """Return whether a path looks like a table of texts, or a folder with such a training table or texts by class."""
    if path.is_dir():
        files = split_files(path)
        return may_hold_texts(files["train"]) if "train" in files else is_text_folder(path)
    return path.is_file() and may_hold_texts(path)


def _read_path(source: str | Path, columns: Columns) -> Raw:
    path = users_path(source)
    if path.is_dir():
        if "train" in split_files(path) or not is_text_folder(path):
            return _read_folder(path, columns, str(path), ("train",), "a subfolder of text files for each class")
        columns.require_none(f"{path} holds a text in each file, so there are no columns")
        return read_text_folder(path)
    if not path.exists():
        if suffix(path) not in SUFFIXES:
            raise unknown_data("text data set", str(source), SOURCES)
        raise DataError(f"there is no file {path}")
    raw = divide(read_table(path), columns, path)
    doubts = quoted([text for texts, _ in raw.splits.values() for text in texts], path)
    return raw._replace(notes=(*raw.notes, *doubts))


def _read_source(name: str, columns: Columns) -> Raw:
    """Read one of :data:`SOURCES`; TREC falls back to its published files if there are no tables."""
    folder, source = data_root() / name, SOURCES[name]
    if name == "trec" and not split_files(folder) and trec.is_published(folder):
        columns.require_none("the published files of TREC have no columns")
        raw = Raw(trec.read_published(folder))
    else:
        raw = _read_folder(folder, columns, name, ("train", "test"), source.published)
    return raw._replace(class_names=source.class_names)


def _read_folder(folder: Path, columns: Columns, name: str, needed: Sequence[str], instead: str) -> Raw:
    """Read a folder with a table for each split.

    Args:
        folder: with the tables.
        columns: those that the user named.
        name: of the data, for messages.
        needed: the splits that it must have.
        instead: what else could be there, in words, for messages.
    Raises:
        DataError: a split is missing or cannot be read.
    """
    files = split_files(folder)
    missing = [split for split in needed if split not in files]
    if missing:
        names = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else []
        contents = f"it holds {', '.join(names) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise DataError(
            f"{name}: expected {' and '.join(f'{split}.tsv' for split in missing)} (or .csv, .jsonl) in {folder}, but "
            f"{contents}; put the files there, each with a header and the columns 'label' and 'text'"
            f"{instead and f', or {instead}'} (MMDISTILL_DATA sets the data root)"
        )
    return read_splits(files, columns)


def _finish(name: str, raw: Raw, seed: int) -> TextData:
    """Check data, number their classes, and hold out missing splits."""
    raw = without_withheld(raw)
    given, names = _number_classes(name, raw)
    train = given.pop(WHOLE if WHOLE in given else "train")
    count = len({*train.texts})
    doubtful = repeats(train.texts) + (leaks(train.texts, given["test"].texts) if "test" in given else [])
    splits, notes = _add_missing_splits(train, given, seed)
    train = splits["train"]
    for split, part in splits.items():
        if not part.texts:
            is_predicted = len(train.texts) <= len(names) and are_numbers(names)
            hint = ", which look like numbers to predict and not like classes" * is_predicted
            raise DataError(
                f"{name}: too few different texts ({count} of {len(names)} classes{hint}) to hold out a {split} split; "
                f'give one, as in {{"train": (texts, labels), "{split}": ...}}, or name another label column'
            )
    doubtful += [
        *untested(splits["test"].labels, names, "text"),
        *unvalidated(splits["dev"].labels, names, "text"),
        *missing_like(names),
        *missing_texts(text for part in splits.values() for text in part.texts),
        *([] if raw.class_names else alike_classes(names)),
    ]
    return TextData(name, train, splits["dev"], splits["test"], names, (*raw.notes, *notes, *doubtful))


def _number_classes(name: str, raw: Raw) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    """Return the splits with class indices and the class names, by default those of the training labels.

    Raises:
        DataError: no training split, unusable rows, fewer than two classes, or one without a training text.
    """
    first = WHOLE if WHOLE in raw.splits else "train"
    if first not in raw.splits:
        raise DataError(f"{name} has no training split; there are: {', '.join(raw.splits) or 'none'}")
    texts, labels = checked_rows(name, raw.splits)
    names = raw.class_names or class_order(labels[first])
    if len(names) < 2:
        raise DataError(
            f"{name} has the single class {brief_repr(', '.join(names))}; a classification set needs at least two"
        )
    distinct = set().union(*labels.values())
    if raw.class_names and str(len(names)) in distinct <= {str(number) for number in range(1, len(names) + 1)} - {
        *names
    }:
        raise DataError(f"{name}: {from_one(len(names))}")
    numbers = class_numbers(names, distinct, given=bool(raw.class_names))
    splits = {
        split: TextSplit(tuple(texts[split]), _indices(name, split, labels[split], names, numbers)) for split in texts
    }
    missing = sorted(set(range(len(names))) - set(splits[first].labels.tolist()))
    if missing:
        raise DataError(
            f"{name}: the class {brief_repr(names[missing[0]])} has no training text; remove it or add some"
        )
    return splits, names


def _add_missing_splits(
    train: TextSplit, given: Mapping[str, TextSplit], seed: int
) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    """Return all three splits, holding out missing ones from training, and notes on these."""
    splits, notes = dict(given), list[str]()
    if "test" not in given:
        train, splits["test"] = _hold_out(train, TEST_SHARE, Draws(seed, ("text", "test split")), train.texts)
        notes.append(f"test: {TEST_SHARE:.0%} of the data, stratified, seed {seed}")
    if "dev" not in given:
        # With a given test split, repeats in train and dev do not distort scores, and known data keep their split.
        groups: Sequence[Hashable] = range(len(train.texts)) if "test" in given else train.texts
        train, splits["dev"] = _hold_out(train, DEV_SHARE, Draws(seed, ("text", "dev split")), groups, to_validate=True)
        notes.append(f"dev: {DEV_SHARE:.0%} of the training split, stratified, seed {seed}")
    return {"train": train, **splits}, tuple(notes)


def _indices(name: str, split: str, labels: list[str], names: tuple[str, ...], numbers: Mapping[str, int]) -> Tensor:
    unknown = next((row for row, label in enumerate(labels, start=1) if label not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"{name}: {row_name(unknown, split)} has the label {brief_repr(labels[unknown - 1])}, which is no class of "
            f"the training split (there are: {listed(names)})"
        )
    return torch.tensor([numbers[label] for label in labels])


def _hold_out(
    split: TextSplit, share: float, draws: Draws, groups: Sequence[Hashable], *, to_validate: bool = False
) -> tuple[TextSplit, TextSplit]:
    """Move a share of each class into a second split, see :func:`held_out`; texts of one group move together."""
    first = dict[Hashable, int]()
    alike = torch.tensor([first.setdefault(group, row) for row, group in enumerate(groups)])
    order = shuffled_by_class(split.labels, draws)
    mask = held_out(alike, split.labels, order, share, to_validate=to_validate)
    return _take(split, ~mask), _take(split, mask)


def _take(split: TextSplit, mask: Tensor) -> TextSplit:
    chosen = mask.nonzero().flatten().tolist()
    return TextSplit(tuple(split.texts[i] for i in chosen), split.labels[mask])
