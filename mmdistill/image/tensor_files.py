"""Images and labels in one file, by name: safetensors, torch's and NumPy's files, from which no code is run."""

import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmdistill.errors import DataError
from mmdistill.files.saved import SAFETENSORS, TORCH, read_saved
from mmdistill.store import opened_tensors

NAMES = ("images", "labels", "test_images", "test_labels")
"""What such a file holds; the test part may be missing."""
SUFFIXES = (SAFETENSORS, *TORCH, ".npz")
"""How the names of such files end."""
SAVED = "torch.save({'images': images, 'labels': labels}, path)"
"""How such a file is written."""
LOOKED_AT = 10_000
"""Operations of a pickle among which names are looked for."""


def holds_images(path: Path) -> bool:
    """Return whether a file holds images and labels by these names, of which no tensor is read."""
    return path.is_file() and set(NAMES[:2]) <= _names(path)


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
    """Read what a file holds as images and labels, and those to test on; tensors of a safetensors file map it.

    Raises:
        DataError: the file is damaged, or has no such names.
    """
    found = read_saved(path, only=NAMES, mapped=True, instead=f"tensors alone: {SAVED}")
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}; of images save a dict: {SAVED}")
    held = {str(name): value for name, value in found.items()}
    if not set(NAMES[:2]) <= held.keys():
        raise DataError(
            f"{path} should hold tensors named {NAMES[0]} and {NAMES[1]} (and {NAMES[2]} and {NAMES[3]}, to test on), "
            f"got {', '.join(sorted(held.keys() or _names(path))) or 'none'}"
        )
    return {name: held[name] for name in NAMES if name in held}
