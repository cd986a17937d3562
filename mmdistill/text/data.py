"""Labelled texts from files, folders, Python lists and Hugging Face data sets, checked and split."""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmdistill.columns import SPLIT_NAMES, SPLIT_OF
from mmdistill.errors import ConfigError, DataError
from mmdistill.names import canonical, unknown_data, unknown_name
from mmdistill.runtime import Draws, data_root
from mmdistill.text import trec
from mmdistill.text.checks import checked_labels, checked_texts
from mmdistill.text.encoder import PAIR
from mmdistill.text.tables import (
    FORMATS,
    LABEL_COLUMNS,
    column,
    may_hold_texts,
    read_table,
    require_apart,
    splits_of_rows,
    table_format,
    text_columns,
)

HUB_PREFIX = "hf:"
DEV_SHARE = 0.1
TEST_SHARE = 0.2


@dataclass(frozen=True)
class TextSource:
    """A data set that is found by name under the data root.

    Args:
        summary: one line for ``mmdistill data``.
        origin: who publishes it, for users to fetch it from.
        class_names: by class index.
        published: what can be brought as it is published, instead of tables with columns label and text.
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


@dataclass(frozen=True)
class TextData:
    """A text classification data set.

    Args:
        name: as the user gave it.
        train: what is distilled.
        dev: what hyper-parameters are chosen on.
        test: what results are reported on.
        class_names: by class index.
        notes: how splits came about where the source did not give them as they are used.
    """

    name: str
    train: TextSplit
    dev: TextSplit
    test: TextSplit
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def stored_bytes(self) -> int:
        """The bytes of the training texts in UTF-8 with one byte (two from 257 classes on) per label."""
        label = 1 if len(self.class_names) <= 256 else 2
        return sum(len(text.encode()) + label for text in self.train.texts)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the training texts and labels, and of the development ones, which choose the step."""
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


RawSplit = tuple[list[object], list[object]]
"""Texts and labels as they came."""
TextInput = (
    str | Path | TextData | tuple[Sequence[Any], Sequence[Any]] | Mapping[str, tuple[Sequence[Any], Sequence[Any]]]
)
"""What a user may give as data: a name, a path, ``(texts, labels)``, or a mapping of split names to such; each text may
be a pair of texts."""


def load_text(
    source: TextInput,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> TextData:
    """Load, check and split labelled texts.

    A development split that the source lacks is 10 % of the training split, stratified; a test split that a
    single table or pair lacks is 20 % of it. A folder must hold its own test file. Where a Hugging Face set has no
    test labels, its validation split is tested on.

    Args:
        source: ``sst2`` or ``trec`` under the data root, a file or a folder with train and test files (and dev),
            ``hf:NAME`` or ``hf:NAME:CONFIGURATION``, a pair ``(texts, labels)``, or such pairs by split name.
        text_column: the column of texts, or two, comma-separated, of pairs of texts; guessed by default.
        label_column: the column of labels; guessed by default.
        class_names: names by class index; labels are then indices into them or the names themselves.
        seed: of the splits made here.
    Raises:
        ConfigError: an unknown name or column.
        DataError: missing or unreadable files, empty texts, missing or unknown labels, fewer than two classes.
    """
    if isinstance(source, TextData):
        return source
    name = str(source) if isinstance(source, str | Path) else "texts"
    notes: tuple[str, ...] = ()
    if isinstance(source, tuple):
        splits = {"all": _pair("data", source)}
    elif isinstance(source, Mapping):
        splits = {_split_name(str(key)): _pair(str(key), pair) for key, pair in source.items()}
    elif isinstance(source, str) and source.lower().startswith(HUB_PREFIX):
        splits, hub_names, notes = _from_hub(source[len(HUB_PREFIX) :], text_column, label_column)
        class_names = class_names or hub_names
    elif isinstance(source, str) and canonical(source) in SOURCES:
        key = canonical(source)
        class_names = class_names or SOURCES[key].class_names
        splits = _from_root(key, text_column, label_column)
    elif isinstance(source, str | Path):
        name = str(Path(source).absolute())
        splits, notes = _from_path(source, text_column, label_column)
    else:
        raise ConfigError(
            f"text data is a name, a path, (texts, labels) or a mapping of such pairs, got {type(source).__name__}"
        )
    return _finish(name, splits, class_names, seed, notes)


def accepts(path: Path) -> bool:
    """Return whether a path looks like a table of texts or a folder with such train and test tables."""
    if path.is_dir():
        found = _split_files(path)
        return "train" in found and may_hold_texts(found["train"])
    return path.is_file() and may_hold_texts(path)


def _split_name(name: str) -> str:
    spelling = name.strip().lower()
    if spelling not in SPLIT_OF:
        raise unknown_name("split", name, list(SPLIT_OF))
    return SPLIT_OF[spelling]


def _pair(name: str, pair: tuple[Sequence[Any], Sequence[Any]]) -> RawSplit:
    if len(pair) != 2:
        raise DataError(f"{name}: expected a pair (texts, labels), got {len(pair)} things")
    texts, labels = pair
    if isinstance(texts, str):
        raise DataError(f"{name}: expected a list of texts, got one text")
    for what, given in (("texts", texts), ("labels", labels)):
        if not isinstance(given, Iterable) or not hasattr(given, "__len__"):
            raise DataError(f"{name}: expected a list of {what}, got {type(given).__name__}")
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray | pd.Series) else list(labels)
    if len(texts) != len(values):
        raise DataError(f"{name}: {len(texts)} texts but {len(values)} labels")
    rows: list[object] = []
    for row, text in enumerate(texts, start=1):
        if isinstance(text, tuple | list) and len(text) != 2:
            raise DataError(f"{name}: row {row} holds {len(text)} texts; expected one text or a pair")
        rows.append(joined([[part] for part in text])[0] if isinstance(text, tuple | list) else text)
    return rows, values


def _from_path(
    source: str | Path, text_column: str | None, label_column: str | None
) -> tuple[dict[str, RawSplit], tuple[str, ...]]:
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, text_column, label_column, str(path)), ()
    if not path.exists():
        if table_format(path) is None:
            raise unknown_data("text data set", str(source), SOURCES)
        raise DataError(f"there is no file {path}")
    table = read_table(path)
    rows, notes = splits_of_rows(table, path)
    parts = {split: table[[row == split for row in rows]] for split in dict.fromkeys(rows)}
    return {split: _columns(part, text_column, label_column, path) for split, part in parts.items()}, notes


def _split_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, spellings in SPLIT_NAMES.items():
        for spelling in spellings:
            for suffix in (s + z for z in ("", ".gz") for s in FORMATS):
                path = folder / f"{spelling}{suffix}"
                if split not in found and path.is_file():
                    found[split] = path
    return found


def _from_root(name: str, text_column: str | None, label_column: str | None) -> dict[str, RawSplit]:
    """Read a data set that is found by name; of TREC its published files too, where there are no tables."""
    folder = data_root() / name
    if name == "trec" and not _split_files(folder) and trec.is_published(folder):
        return trec.read_published(folder)
    return _from_folder(folder, text_column, label_column, name, SOURCES[name].published)


def _from_folder(
    folder: Path, text_column: str | None, label_column: str | None, name: str, published: str = ""
) -> dict[str, RawSplit]:
    found = _split_files(folder)
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        present = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else []
        there = f"it holds {', '.join(present) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise DataError(
            f"{name}: expected {' and '.join(f'{split}.tsv' for split in missing)} (or .csv, .jsonl) in {folder}, but "
            f"{there}; put the files there, each with a header and the columns 'label' and 'text'"
            f"{published and f', or {published}'} (MMDISTILL_DATA sets the data root)"
        )
    return {split: _columns(read_table(path), text_column, label_column, path) for split, path in found.items()}


def _columns(table: pd.DataFrame, text_column: str | None, label_column: str | None, source: object) -> RawSplit:
    texts = text_columns(list(table.columns), text_column, source)
    label = column(list(table.columns), label_column, LABEL_COLUMNS, "label", source)
    require_apart(texts, label, source)
    return joined([table[name].tolist() for name in texts]), table[label].tolist()


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


def _from_hub(
    name: str, text_column: str | None, label_column: str | None
) -> tuple[dict[str, RawSplit], tuple[str, ...] | None, tuple[str, ...]]:
    """Return the splits, the class names where there are any, and notes."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"the data set {HUB_PREFIX}{name} needs the package datasets: pip install datasets"
        ) from error
    path, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"Hugging Face datasets cannot load {name!r}: {error}") from error
    splits: dict[str, RawSplit] = {}
    names: tuple[str, ...] | None = None
    for key, part in loaded.items():
        if str(key) not in SPLIT_OF:
            continue
        texts = text_columns(part.column_names, text_column, name)
        label = column(part.column_names, label_column, LABEL_COLUMNS, "label", name)
        require_apart(texts, label, name)
        feature_names = getattr(part.features[label], "names", None)
        names = tuple(feature_names) if feature_names else names
        labels = list(part[label])
        if all(value == -1 for value in labels):
            continue  # hidden test labels, as GLUE has them
        splits[_split_name(str(key))] = (joined([list(part[text]) for text in texts]), labels)
    notes: tuple[str, ...] = ()
    if "test" not in splits and "dev" in splits:
        splits["test"], notes = splits.pop("dev"), ("test: the published validation split",)
    return splits, names, notes


def _finish(
    name: str, splits: dict[str, RawSplit], class_names: Sequence[str] | None, seed: int, given: tuple[str, ...]
) -> TextData:
    if "all" not in splits and "train" not in splits:
        raise DataError(f"{name} has no training split; there are: {', '.join(splits) or 'none'}")
    notes = list(given)
    first = "all" if "all" in splits else "train"
    texts = {split: checked_texts(name, split, pair[0]) for split, pair in splits.items()}
    labels = {split: checked_labels(name, split, pair[1]) for split, pair in splits.items()}
    names = tuple(class_names) if class_names else _class_names(labels[first])
    if len(names) < 2:
        raise DataError(f"{name} has the single class {', '.join(names)!r}; a classification set needs at least two")
    numbers = _numbers(names, set().union(*labels.values()), given=bool(class_names))
    done = {
        split: TextSplit(tuple(texts[split]), _indices(name, split, labels[split], names, numbers)) for split in splits
    }
    missing = sorted(set(range(len(names))) - set(done[first].labels.tolist()))
    if missing:
        raise DataError(f"{name}: the class {names[missing[0]]!r} has no training text; remove it or add some")
    train = done.pop(first)
    if "test" not in done:
        train, done["test"] = _hold_out(train, TEST_SHARE, Draws(seed, ("text", "test split")))
        notes.append(f"test: {TEST_SHARE:.0%} of the data, stratified, seed {seed}")
    if "dev" not in done:
        train, done["dev"] = _hold_out(train, DEV_SHARE, Draws(seed, ("text", "dev split")))
        notes.append(f"dev: {DEV_SHARE:.0%} of the training split, stratified, seed {seed}")
    for split, part in done.items():
        if not part.texts:
            many = ", which look like numbers to predict and not like classes" if len(train.texts) <= len(names) else ""
            counts = f"{len(train.texts)} of {len(names)} classes{many}"
            raise DataError(
                f"{name}: too few texts ({counts}) to hold out a {split} split; give one, or name another label column"
            )
    return TextData(name, train, done["dev"], done["test"], names, tuple(notes))


def _class_names(labels: list[str]) -> tuple[str, ...]:
    """Return the distinct labels, whole numbers in numerical order and anything else in alphabetical order."""
    distinct = set(labels)
    numeric = all(re.fullmatch(r"-?\d{1,18}", label) for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label), label)) if numeric else sorted(distinct))


def _numbers(names: tuple[str, ...], labels: set[str], *, given: bool) -> dict[str, int]:
    """Return the class index of each label: labels are names, or, of names that were given, all of them indices."""
    by_name = {class_name: index for index, class_name in enumerate(names)}
    by_index = {str(index): index for index in range(len(names))}
    named = not given or labels <= by_name.keys() or (labels & by_name.keys() and not labels <= by_index.keys())
    return by_name if named else by_index


def _indices(name: str, split: str, labels: list[str], names: tuple[str, ...], numbers: Mapping[str, int]) -> Tensor:
    unknown = next((row for row, label in enumerate(labels, start=1) if label not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"{name}: row {unknown} of {split} has the label {labels[unknown - 1]!r}, which is no class of the "
            f"training split (there are: {', '.join(names[:20])})"
        )
    return torch.tensor([numbers[label] for label in labels])


def _hold_out(split: TextSplit, share: float, draws: Draws) -> tuple[TextSplit, TextSplit]:
    """Move a share of each class, at most all but one of its texts, into a second split; order is kept."""
    held = torch.zeros(len(split.texts), dtype=torch.bool)
    for label in torch.bincount(split.labels).nonzero().flatten().tolist():
        members = (split.labels == label).nonzero().flatten()
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[draws.fold(label).permutation(len(members))[:count]]] = True
    return _take(split, ~held), _take(split, held)


def _take(split: TextSplit, mask: Tensor) -> TextSplit:
    chosen = mask.nonzero().flatten().tolist()
    return TextSplit(tuple(split.texts[i] for i in chosen), split.labels[mask])
