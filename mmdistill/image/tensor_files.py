"""Images and labels in one file, by name: safetensors, torch's and NumPy's files, from which no code is run."""

import pickle
import pickletools
import zipfile
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.saved import SAFETENSORS, TORCH, from_array
from mmdistill.store import opened_tensors

NAMES = ("images", "labels", "test_images", "test_labels")
"""What such a file holds; the test part may be missing."""
SUFFIXES = (SAFETENSORS, *TORCH, ".npz")
"""How the names of such files end."""
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


def read_images(path: Path) -> dict[str, Tensor]:
    """Read images and labels, and those to test on where they are there; those of a safetensors file map it.

    Raises:
        DataError: the file is damaged, has no such names or, under them, something else than numbers.
    """
    tensors = read_tensors(path) if path.suffix.lower() == SAFETENSORS else _read(path)
    if not set(NAMES[:2]) <= tensors.keys():
        raise DataError(
            f"{path} should hold tensors named {NAMES[0]} and {NAMES[1]} (and {NAMES[2]} and {NAMES[3]}, to test on), "
            f"got {', '.join(sorted(tensors)) or 'none'}"
        )
    given = set(NAMES[2:]) & tensors.keys()
    if len(given) == 1:
        raise DataError(f"{path} holds {given.pop()} alone; test images need their labels, and labels their images")
    return {name: tensors[name] for name in NAMES if name in tensors}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, which the tensors map.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with opened_tensors(path) as handle:
            tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file ({error})") from error
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    """Read a mapping of tensors that torch saved, or an archive of arrays.

    Raises:
        DataError: it is neither, or damaged.
    """
    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as handle:
                archive = np.load(handle, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise DataError(f"{path} holds one array alone; numpy.savez keeps several, by name")
                held = {name: from_array(archive[name], f"{path}: {name}") for name in NAMES if name in archive}
                return held or dict.fromkeys(archive.files, torch.empty(0))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words are advice to run the code
        raise DataError(
            f"{path} cannot be read as tensors by name, without running code from it: it holds other things; save "
            "tensors alone: torch.save({'images': images, 'labels': labels}, path)"
        ) from error
    except (OSError, ValueError, OverflowError, RuntimeError, EOFError, LookupError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as tensors by name, without running code from it: {error}") from error
    if not isinstance(found, dict):
        raise DataError(
            f"{path} holds a {type(found).__name__}; of images save a dict: torch.save({{'images': images, 'labels': "
            "labels}, path)"
        )
    held = {str(name): value for name, value in found.items()}
    for name in NAMES:
        if name in held and not isinstance(held[name], Tensor):
            raise DataError(f"{path}: {name} is a {type(held[name]).__name__}, and no tensor")
    return held
