"""Images and labels in one file, by name: safetensors, torch's and NumPy's files, read without running their code."""

import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from mmdistill.errors import DataError
from mmdistill.files.columns import known_split
from mmdistill.files.saved import SAFETENSORS, TORCH, read_saved
from mmdistill.store import opened_tensors

NAMES = ("images", "labels", "test_images", "test_labels")
"""Names in such a file; the test ones are optional. Splits may have other names, see :class:`Place`."""
IMAGES = ("images", "image", "imgs", "img", "pixel_values", "x", "data")
LABELS = ("labels", "label", "fine_label", "y", "targets", "target", "class")
"""Names of images and of labels, within a split or joined to its name."""
OF_BUNCHES = ("frame", "target_names", "feature_names", "DESCR", "details", "categories", "url")
"""Names of what else scikit-learn's data sets hold."""
SUFFIXES = (SAFETENSORS, *TORCH, ".npz")
"""Endings of such files."""
SAVED = "torch.save({'images': images, 'labels': labels}, path)"
"""How to write such a file."""
LOOKED_AT = 10_000
"""Operations of a pickle that are searched for names."""


class Place(NamedTuple):
    """A tensor's split and role, by its name: ``images``, ``train_labels``, ``x_test`` or ``Test.Y``.

    Args:
        split: as spelled, in lower case; ``train`` for plain ``images`` and ``labels``.
        images: whether it holds images; else it holds labels.
    """

    split: str
    images: bool

    @classmethod
    def of(cls, name: str) -> "Place | None":
        """Return a name's place; None if it does not tell split and role."""
        lower = name.lower()
        if lower in NAMES[:2]:
            return cls("train", lower == NAMES[0])
        words = re.split(r"[_./-]", lower)
        for split, role in (words, words[::-1]) if len(words) == 2 else ():
            if known_split(split) and role in (*IMAGES, *LABELS):
                return cls(split, role in IMAGES)
        return None


def by_split(source: Mapping[Any, Any], holder: str) -> dict[str, Any]:
    """Return a mapping's pairs of images and labels by split.

    Args:
        source: tensors by names with a :class:`Place`; images and labels by any of their names, to train on; or splits
            by name. A split that is a mapping of images and labels becomes a pair; other values are returned as they
            are, but for those of :data:`OF_BUNCHES` beside images and labels to train on.
        holder: the mapping and its verb, for messages, such as "the data hold".
    Raises:
        DataError: images without labels, labels without images, two of one kind in a split, or data of an unknown name
            beside those to train on.
    """
    places = {name: place for name in source if isinstance(name, str) and (place := Place.of(name))}
    one_split = set(filter(is_role, source))
    if one_split and len(places) < 2 and places.keys() <= one_split and not any(map(known_split, source)):
        others = {name: value for name, value in source.items() if name not in (*one_split, *OF_BUNCHES)}
        if data := [str(name) for name, value in others.items() if count_axes(value) > 1]:
            raise DataError(
                f"{holder} {', '.join(map(str, source))}, and {', '.join(data)} may be data to test on: call data to "
                "train on X_train and y_train, and data to test on X_test and y_test, or leave out what is neither"
            )
        return {"train": _as_pair(source, holder), **others}
    if not places:
        return {
            name: _as_pair(split, f"{holder} {name!r}, which has") if known_split(name) else split
            for name, split in source.items()
        }
    names_by_split: dict[str, dict[bool, str]] = {}  # by split, the name of its images (True) and labels (False)
    spelling: dict[str | None, str] = {}
    for name, place in places.items():
        split = spelling.setdefault(known_split(place.split), place.split)
        other = names_by_split.setdefault(split, {}).setdefault(place.images, name)
        if other != name:
            kind = "images" if place.images else "labels"
            raise DataError(f"{holder} {other} and {name}, both {kind} of {split}; keep one")
    for split, names in names_by_split.items():
        if len(names) == 1:
            (alone,) = names.values()
            raise DataError(f"{holder} {alone} alone; {split} images need their labels, and labels their images")
    return {split: (source[names[True]], source[names[False]]) for split, names in names_by_split.items()}


def is_role(name: object) -> bool:
    """Return whether a name is one of images or labels alone, without a split."""
    return isinstance(name, str) and name.lower() in (*IMAGES, *LABELS)


def count_axes(values: Any) -> int:
    """Return the number of axes of a tensor, an array or nested lists, by the first entries of these."""
    is_list = isinstance(values, list | tuple) and len(values) > 0
    return 1 + count_axes(values[0]) if is_list else getattr(values, "ndim", 0)


def _as_pair(split: Any, holder: str) -> Any:
    """Return the images and labels of a split that is a mapping; any other split as it is.

    Beside images, ``data`` are these as vectors, as in scikit-learn's data sets.

    Raises:
        DataError: a mapping with no images or labels, or with several.
    """
    if not isinstance(split, Mapping):
        return split
    images, labels = (
        [name for name in split if isinstance(name, str) and name.lower() in known] for known in (IMAGES, LABELS)
    )
    if "images" in images and "data" in images:
        images.remove("data")
    if len(images) != 1 or len(labels) != 1:
        raise DataError(
            f"{holder} {', '.join(map(str, split)) or 'nothing'}; expected are one of {', '.join(IMAGES)} and one of "
            f"{', '.join(LABELS)}"
        )
    return split[images[0]], split[labels[0]]


def holds_images(path: Path) -> bool:
    """Return whether a file names images and labels; no tensor is read.

    For nested dicts in a torch file, the names of all levels are known, but not which level has which.
    """
    names = _read_names(path) if path.is_file() else set()
    if _have_training_pair(names):
        return True
    nested = any(known_split(name) == "train" for name in names) and "edge_index" not in names
    lower = {name.lower() for name in names}
    return nested and path.suffix.lower() in TORCH and not lower.isdisjoint(IMAGES) and not lower.isdisjoint(LABELS)


def _have_training_pair(names: Iterable[str]) -> bool:
    """Return whether names include those of training images and their labels."""
    places = [place for place in map(Place.of, names) if place and known_split(place.split) == "train"]
    return {place.images for place in places} == {True, False}


def _read_names(path: Path) -> set[str]:
    """Return the names in a file; empty if it is of another kind or damaged."""
    suffix = path.suffix.lower()
    try:
        if suffix == SAFETENSORS:
            with opened_tensors(path) as handle:
                return set(handle.keys())
        if suffix in SUFFIXES:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                if suffix == ".npz":
                    return {name.removesuffix(".npy") for name in members}
                with archive.open(next(name for name in members if name.endswith("data.pkl"))) as handle:
                    codes = [(code.name, value) for code, value, _ in islice(pickletools.genops(handle), LOOKED_AT)]
                is_dict = codes[1][0] == "EMPTY_DICT"  # the first code is the protocol; an object starts with its class
                return {str(value) for name, value in codes if name.endswith("UNICODE")} if is_dict else set()
    except (SafetensorError, OSError, ValueError, LookupError, StopIteration, EOFError, RuntimeError):
        return set()  # an unknown zip version raises NotImplementedError, a RuntimeError
    except (zipfile.BadZipFile, zlib.error):
        return set()
    return set()


def read_images(path: Path) -> dict[str, Any]:
    """Read a file's images and labels, or its splits of them; safetensors files are mapped, not read into memory.

    Returns:
        A mapping for :func:`by_split`.
    Raises:
        DataError: the file is damaged, or names no images and labels.
    """
    only = {name for name in _read_names(path) if Place.of(name)}
    saved = read_saved(path, only=only, mapped=True, instead=f"tensors alone: {SAVED}")
    if not isinstance(saved, Mapping):
        raise DataError(f"{path} holds a {type(saved).__name__}; of images save a dict: {SAVED}")
    values = {str(name): value for name, value in saved.items()}
    if not _have_training_pair(values) and not any(known_split(name) == "train" for name in values):
        names = ", ".join(sorted(values.keys() or _read_names(path))) or "none"
        raise DataError(
            f"{path} should hold tensors named {NAMES[0]} and {NAMES[1]} (and {NAMES[2]} and {NAMES[3]}, to test on), "
            f"or splits named train and test of such, got {names}"
        )
    return values
