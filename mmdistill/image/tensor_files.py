"""Images and labels in one file, by name: safetensors, torch's and NumPy's files, from which no code is run."""

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
"""What such a file holds; the test part may be missing. Splits may have other names, see :class:`Place`."""
IMAGES = ("images", "image", "imgs", "img", "pixel_values", "x", "data")
LABELS = ("labels", "label", "fine_label", "y", "targets", "target", "class")
"""What images and labels are called in a split or beside its name."""
SUFFIXES = (SAFETENSORS, *TORCH, ".npz")
"""How the names of such files end."""
SAVED = "torch.save({'images': images, 'labels': labels}, path)"
"""How such a file is written."""
LOOKED_AT = 10_000
"""Operations of a pickle among which names are looked for."""


class Place(NamedTuple):
    """Where a tensor belongs by its name: ``images``, ``train_labels``, ``x_test`` or ``Test.Y``.

    Args:
        split: as it is spelled, in small letters; of ``images`` and ``labels`` alone ``train``.
        images: whether it holds images, or else labels.
    """

    split: str
    images: bool

    @classmethod
    def of(cls, name: str) -> "Place | None":
        """Return a name's place; None where it has none."""
        low = name.lower()
        if low in NAMES[:2]:
            return cls("train", low == NAMES[0])
        words = re.split(r"[_./-]", low)
        for split, role in (words, words[::-1]) if len(words) == 2 else ():
            if known_split(split) and role in (*IMAGES, *LABELS):
                return cls(split, role in IMAGES)
        return None


def by_split(source: Mapping[Any, Any], holder: str) -> dict[str, Any]:
    """Return the pairs of images and labels of a mapping by the name of their split.

    Args:
        source: tensors by names that have a place; or splits by name, each a mapping of ``images`` and ``labels`` (or
            what else these are called), or whatever else it is. A mapping of neither stays as it is.
        holder: what the mapping is, with its verb, for messages.
    Raises:
        DataError: images without labels, labels without images, or two of one kind in a split.
    """
    places = {name: place for name in source if isinstance(name, str) and (place := Place.of(name))}
    if not places:
        return {
            name: _pair(part, f"{holder} {name!r}, which has") if known_split(name) else part
            for name, part in source.items()
        }
    found: dict[str, dict[bool, str]] = {}
    spelled: dict[str | None, str] = {}
    for name, place in places.items():
        split = spelled.setdefault(known_split(place.split), place.split)
        other = found.setdefault(split, {}).setdefault(place.images, name)
        if other != name:
            kind = "images" if place.images else "labels"
            raise DataError(f"{holder} {other} and {name}, both {kind} of {split}; keep one")
    for split, names in found.items():
        if len(names) == 1:
            (alone,) = names.values()
            raise DataError(f"{holder} {alone} alone; {split} images need their labels, and labels their images")
    return {split: (source[names[True]], source[names[False]]) for split, names in found.items()}


def _pair(part: Any, holder: str) -> Any:
    """Return the images and labels of a split that names them; any other part as it is."""
    if not isinstance(part, Mapping):
        return part
    names = [[name for name in part if isinstance(name, str) and name.lower() in known] for known in (IMAGES, LABELS)]
    if [len(own) for own in names] != [1, 1]:
        raise DataError(
            f"{holder} {', '.join(map(str, part)) or 'nothing'}; a split has one of {', '.join(IMAGES)} and one of "
            f"{', '.join(LABELS)}"
        )
    return part[names[0][0]], part[names[1][0]]


def holds_images(path: Path) -> bool:
    """Return whether a file holds images and labels by their names, of which no tensor is read.

    Of a file of torch's that holds a dict in another, the names in both are known, and not which are where.
    """
    names = _names(path) if path.is_file() else set()
    if _trains(names):
        return True
    inner = any(known_split(name) == "train" for name in names) and "edge_index" not in names
    low = {name.lower() for name in names}
    return inner and path.suffix.lower() in TORCH and not low.isdisjoint(IMAGES) and not low.isdisjoint(LABELS)


def _trains(names: Iterable[str]) -> bool:
    """Return whether some names are those of training images and their labels."""
    places = [place for place in map(Place.of, names) if place and known_split(place.split) == "train"]
    return {place.images for place in places} == {True, False}


def _names(path: Path) -> set[str]:
    """Return the names in a file; those of one that is none, or damaged, are empty."""
    suffix = path.suffix.lower()
    try:
        if suffix == SAFETENSORS:
            with opened_tensors(path) as handle:
                return set(handle.keys())
        if suffix in SUFFIXES:
            with zipfile.ZipFile(path) as archive:
                held = archive.namelist()
                if suffix == ".npz":
                    return {name.removesuffix(".npy") for name in held}
                with archive.open(next(name for name in held if name.endswith("data.pkl"))) as handle:
                    codes = [(code.name, value) for code, value, _ in islice(pickletools.genops(handle), LOOKED_AT)]
                mapping = codes[1][0] == "EMPTY_DICT"  # after its protocol; an object begins with its class
                return {str(value) for name, value in codes if name.endswith("UNICODE")} if mapping else set()
    except (SafetensorError, OSError, ValueError, LookupError, StopIteration, EOFError, RuntimeError):
        return set()  # NotImplementedError of an unknown zip version is a RuntimeError
    except (zipfile.BadZipFile, zlib.error):
        return set()
    return set()


def read_images(path: Path) -> dict[str, Any]:
    """Read what a file holds as images and labels, of splits where it has any; tensors of a safetensors file map it.

    Returns:
        What :func:`by_split` reads.
    Raises:
        DataError: the file is damaged, or has no such names.
    """
    only = {name for name in _names(path) if Place.of(name)}
    found = read_saved(path, only=only, mapped=True, instead=f"tensors alone: {SAVED}")
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}; of images save a dict: {SAVED}")
    held = {str(name): value for name, value in found.items()}
    if not _trains(held) and not any(known_split(name) == "train" for name in held):
        raise DataError(
            f"{path} should hold tensors named {NAMES[0]} and {NAMES[1]} (and {NAMES[2]} and {NAMES[3]}, to test on), "
            f"or splits named train and test of such, got {', '.join(sorted(held.keys() or _names(path))) or 'none'}"
        )
    return held
