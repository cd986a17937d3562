"""Tables of images with labels: a row names an image file, or holds the pixels of one image."""

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.files import tables
from mmdistill.files.class_folders import class_folders
from mmdistill.files.columns import SPLIT_COLUMNS, SPLIT_NAMES, TEXT_COLUMNS, known_split
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.image import folders
from mmdistill.image.class_labels import ONE_CLASS, Labelled
from mmdistill.image.files import read_listing
from mmdistill.image.samples import LABEL_COLUMNS
from mmdistill.names import class_order, first_few

ENDINGS = (".csv", ".tsv")
"""Endings of such tables."""
LABELS = (*LABEL_COLUMNS, "class_id", "classid", "class_name", "category", "y")
"""Names of a column of labels; otherwise it is the only column that is left."""
IMAGES = (
    *("image", "image_path", "image_name", "image_id", "imageid", "img", "file", "filename", "file_name", "filepath"),
    *("file_path", "path", "id", "id_code"),
)
"""Names of a column of image files, the first of which is read; files may then be named without their endings."""
PIXEL = re.compile(r"(pixel|pix|px)[ _]?\d+|\d+x\d+", re.IGNORECASE)
"""The name of a column of pixels."""
UNTOLD = (*SPLIT_COLUMNS, "", "unnamed: 0", "index")
"""Columns that hold splits or number the rows."""
HEAD_ROWS = 20
"""First rows in which image files are looked for."""


class Columns(NamedTuple):
    """The places of a table's columns.

    Args:
        files: of the column that names image files, or of several that may; empty: the pixels are in the table.
        pixels: of the columns of pixels.
        label: of the labels; None: there are none, or several columns may be.
    """

    files: tuple[int, ...]
    pixels: tuple[int, ...]
    label: int | None


class Row(NamedTuple):
    """A row of a table of images.

    Args:
        sample: the path of an image file, or the image.
        label: its class.
        split: train, dev or test.
    """

    sample: Any
    label: str
    split: str


class Places:
    """The folders in which the files of tables in a folder may be, each kind listed once.

    Args:
        folder: of the tables.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def train(self) -> list[Path]:
        """The tables' folder, those of training images, and others with images that are of no split."""
        return self._listed(folders.TRAIN)

    @cached_property
    def test(self) -> list[Path]:
        """The same for tables to test on."""
        return self._listed(folders.TEST)

    def of(self, table: Path) -> list[Path]:
        """Return the folders of a table's files."""
        return self.test if _split(table) == "test" else self.train

    def _listed(self, names: tuple[str, ...]) -> list[Path]:
        subfolders = class_folders(self.folder)
        of_splits = {sub for split in (folders.TRAIN, folders.TEST) for sub in folders.folders_of(subfolders, split)}
        others = [sub for sub in subfolders if sub not in of_splits and folders.has_images(sub)]
        return [self.folder, *folders.folders_of(subfolders, names), *others]


def table_at(path: Path, alone: bool = False) -> Path | None:
    """Return the table of images that a path is, or that lies in a folder without classes; None if there is none.

    Args:
        path: a file or folder.
        alone: no table with a column of texts, or with those of users and items, counts.
    Raises:
        DataError: the folder has several.
    """
    if path.is_file():
        return path if _columns(path, alone=alone) is not None else None
    if not path.is_dir() or folders.has_classes(path):
        return None
    found = _tables_of_images(path, alone)
    chosen = [table for table in found if _split(table) == "train"] or [table for table in found if not _split(table)]
    chosen = [table for table in chosen if found[table].label is not None] or chosen
    if len(chosen) > 1:
        raise DataError(f"{path} has several tables of images: {first_few([table.name for table in chosen])}; give one")
    return chosen[0] if chosen else None


def tables_in(folder: Path, alone: bool = False) -> list[Path]:
    """Return the tables of images that lie in a folder, see :func:`table_at`."""
    return list(_tables_of_images(folder, alone))


def _tables_of_images(folder: Path, alone: bool) -> dict[Path, Columns]:
    """Return the tables of images in a folder with their columns."""
    places = Places(folder)
    found = {file: _columns(file, places, alone) for file in _tables_of_any_kind(folder)}
    return {file: columns for file, columns in found.items() if columns is not None}


def why_unread(folder: Path) -> str:
    """Return in words that a folder's first table names none of its images; empty if it has none."""
    table = next(iter(_tables_of_any_kind(folder)), None)
    return f"; {table.name} there names no file that is found" if table is not None else ""


def _tables_of_any_kind(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in ENDINGS and file.is_file()]


def read_table(table: Path, size: int | None) -> tuple[Labelled, Labelled | None]:
    """Read the images of a table, and those to test on (None: there are none).

    These are the rows of such a split, or a table beside it of the same name but for ``test`` in place of ``train``.

    Args:
        table: from :func:`table_at`.
        size: resize image files to ``size`` x ``size``; None: all must have one size.
    Raises:
        ConfigError: a size for a table of pixels.
        DataError: no column of labels, no or several labels of an image, a test label that is no class, or unreadable
            images.
    """
    rows, notes = _read_rows(table)
    by_split = {split: [row for row in rows if row.split == split] for split in SPLIT_NAMES}
    test_rows, where = by_split["test"], table
    if not test_rows and by_split["dev"]:
        test_rows, notes = by_split["dev"], [*notes, f"test: the rows for validation of {table.name}"]
    elif by_split["dev"]:
        notes.append(f"the rows for validation of {table.name} are not read")
    for other in _test_tables(table) if not test_rows else ():
        columns = _columns(other)
        if columns is None or columns.label is None:
            notes.append(f"{other.name} is not read, since it has no labels of images")
        elif not test_rows:
            (test_rows, more), where = _read_rows(other), other
            notes += more
    if not by_split["train"]:
        raise DataError(f"{table} has no row to train on")
    notes += _unlisted(table.parent, [str(row.sample) for row in (*rows, *test_rows) if isinstance(row.sample, str)])
    classes = class_order(row.label for row in by_split["train"])
    train = _read_images(table, by_split["train"], classes, size, held_out=not test_rows)
    train = train._replace(notes=(*notes, *train.notes))
    return train, _read_images(where, test_rows, classes, size) if test_rows else None


def _read_images(
    table: Path, rows: list[Row], classes: tuple[str, ...], size: int | None, held_out: bool = False
) -> Labelled:
    index = {name: number for number, name in enumerate(classes)}
    if unknown := next((row.label for row in rows if row.label not in index), None):
        raise DataError(f"{table} tests on the class {unknown!r}, which has no row to train on")
    samples = [row.sample for row in rows]
    paths = [sample for sample in samples if isinstance(sample, str)]
    if size is not None and not paths:
        raise ConfigError(f"a size is for image files, and {table} holds pixels: leave it out")
    images, notes = read_listing(table, paths, size, held_out) if paths else (torch.stack(samples), ())
    return Labelled(images, torch.tensor([index[row.label] for row in rows]), classes, notes)


def _read_rows(table: Path) -> tuple[list[Row], list[str]]:
    """Read a table's rows, without those whose file is missing, and notes on how they were read."""
    columns, names = _columns(table), tables.header(table)
    if columns is not None and len(columns.files) > 1:
        candidates = first_few([names[index] for index in columns.files])
        raise DataError(f"{table} names image files in several columns: {candidates}; call the one to read 'image'")
    if columns is None or columns.label is None:
        raise DataError(
            f"{table} has no column of labels, or several may be it (there are: {first_few(names)}); call it 'label'"
        )
    content = tables.read(table, numbers=columns.pixels)
    labels = content.iloc[:, columns.label].str.strip().tolist()
    if "" in labels:
        raise DataError(f"{table}: row {labels.index('') + 1} has no label; give it one, or take it out")
    place, notes = tables.split_column(content, SPLIT_NAMES, {columns.label})
    splits = ["train"] * len(labels)
    if place is not None:
        splits = tables.splits_of(content.iloc[:, place], f"the column {content.columns[place]!r}", table).tolist()
    if not columns.files:
        samples: list[Any] = list(_pixels(table, content.iloc[:, list(columns.pixels)]))
        read_as = f"rows are images of {' x '.join(map(str, samples[0].shape))}"
    else:
        named, places = content.iloc[:, columns.files[0]].str.strip().tolist(), Places(table.parent).of(table)
        samples = [_file(value, places) for value in named]
        read_as = f"image files by the column {content.columns[columns.files[0]]!r}"
        if absent := [value for value, path in zip(named, samples, strict=True) if path is None]:
            notes += (f"{table.name}: rows whose file is missing are not read: {first_few(absent)}",)
        label_of = dict(zip(samples, labels, strict=True))
        if several := [path for path, label in zip(samples, labels, strict=True) if path and label_of[path] != label]:
            raise DataError(f"{table} has rows of {several[0]} with different labels; {ONE_CLASS}")
    read = {*columns.files, *columns.pixels, columns.label, place}
    if unread := [name for index, name in enumerate(names) if index not in read and name.lower() not in UNTOLD]:
        notes += (f"{table.name}: columns that are not read: {first_few(list(map(repr, unread)), tables.SHOWN)}",)
    rows = [Row(*row) for row in zip(samples, labels, splits, strict=True) if row[0] is not None]
    return rows, [f"{table.name}: {read_as}, labels by {content.columns[columns.label]!r}", *notes]


def _pixels(table: Path, values: pd.DataFrame) -> Tensor:
    """Return rows of pixels as bytes ``(N, channels, k, k)``; the channels of a pixel stand beside one another.

    Raises:
        DataError: values that are no bytes.
    """
    pixels = values.to_numpy()
    if pixels.dtype.kind not in "iuf" or not ((pixels >= 0) & (pixels <= 255) & (pixels == pixels.round())).all():
        raise DataError(f"{table}: pixels are whole numbers from 0 to 255, and some of these are none")
    channels, side = _shape(pixels.shape[1])
    return torch.from_numpy(pixels.astype("uint8")).view(-1, side, side, channels).movedim(-1, 1).contiguous()


def _shape(count: int) -> tuple[int, int]:
    """Return the channels and the side of square images of so many values; 0 and 0 if there are none such."""
    sides = {channels: math.isqrt(count // channels) for channels in (1, 3)}
    return next((item for item in sides.items() if item[1] > 1 and item[0] * item[1] ** 2 == count), (0, 0))


def _columns(table: Path, places: Places | None = None, alone: bool = False) -> Columns | None:
    """Return the columns of a table of images; None for other files, see :func:`table_at`."""
    if table.suffix.lower() not in ENDINGS:
        return None
    try:
        start = io.StringIO(decoded(table, HEAD_BYTES), newline="")
        lines = csv.reader(start, delimiter=tables.separator(table), skipinitialspace=True)
        names, *rows = [[value.strip() for value in line] for line in islice(lines, HEAD_ROWS + 1)]
        if alone and (tables.guessed(names, TEXT_COLUMNS) is not None or tables.of_interactions(names)):
            return None
        pixels = tuple(index for index, name in enumerate(names) if PIXEL.fullmatch(name))
        pixels = pixels if _shape(len(pixels))[0] else ()
        files = () if pixels else _file_columns(table, places or Places(table.parent), names, rows)
    except (DataError, OSError, ValueError, csv.Error):
        return None
    if not pixels and not files:
        return None
    taken = {*pixels, *files}
    others = [name for index, name in enumerate(names) if index not in taken]
    known = tables.guessed(others, LABELS)
    left = [name for name in others if name.lower() not in UNTOLD]
    label = others[known] if known is not None else left[0] if len(left) == 1 else None
    return Columns(files, pixels, None if label is None else names.index(label))


def _file_columns(table: Path, places: Places, names: list[str], rows: list[list[str]]) -> tuple[int, ...]:
    """Return the columns that name image files, with endings or, in columns of known names, without.

    Of several the first with a known name is returned alone. Without endings one of the first three rows must name one.
    """
    values = list(zip(*(row for row in rows if len(row) == len(names)), strict=True))

    def mostly(holds: Callable[[str], bool], columns: Iterable[int]) -> list[int]:
        return [index for index in columns if 2 * sum(map(holds, values[index])) > len(rows)]

    ended = mostly(_has_ending, range(len(values)))
    known = [index for index in range(len(values)) if tables.spelt(names[index]).lower() in IMAGES]

    def exists(value: str) -> bool:
        return _file(value, places.of(table)) is not None

    found = mostly(exists, ended) or mostly(exists, [index for index in known if any(map(exists, values[index][:3]))])
    first = tables.guessed([names[index] for index in found], IMAGES)
    return tuple(found) if first is None else (found[first],)


def _has_ending(value: str) -> bool:
    return value.lower().endswith(folders.SUFFIXES)


def _file(value: str, places: list[Path]) -> str | None:
    """Return the path of an image file, which may be named without its ending; None if it is in none of the places."""
    endings = ("",) if _has_ending(value) else folders.SUFFIXES
    paths = (os.path.normpath(place / f"{value}{ending}") for place in places for ending in endings)
    return next(filter(os.path.isfile, paths), None)


def _words(table: Path) -> list[str]:
    return re.findall(r"[a-z0-9]+", table.stem.lower())


def _split(table: Path) -> str | None:
    """Return the split in a table's name (``mnist_train.csv``, ``Test.csv``); None without one."""
    return next(filter(None, map(known_split, _words(table))), None)


def _test_tables(table: Path) -> list[Path]:
    """Return the tables beside one to train on whose names differ in the split alone."""
    rest = [word for word in _words(table) if known_split(word) != "train"]
    candidates = _tables_of_any_kind(table.parent) if _split(table) == "train" else []
    tests = [file for file in candidates if _split(file) == "test"]
    return [file for file in tests if [word for word in _words(file) if known_split(word) != "test"] == rest]


def _unlisted(folder: Path, paths: list[str]) -> list[str]:
    """Return notes on the images that no row names, in a table's folder, its subfolders and those of its images."""
    if not paths:
        return []
    used, notes = set(paths), list[str]()
    for place in sorted({folder, *class_folders(folder), *(Path(path).parent for path in used)}):
        count = sum(str(file) not in used for file in folders.images_in(place))
        notes += [f"{place.name}/: {count} images are in no row and are not read"] * (count > 0)
    return notes
