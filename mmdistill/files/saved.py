"""Files of tensors as torch, NumPy and safetensors write them, from which no code is run."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.store import opened_tensors

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth")
NUMPY = (".npz", ".npy")
SUFFIXES = (SAFETENSORS, *TORCH, *NUMPY)
"""How the names of such files end."""
NUMBERED = (
    "; number the classes: names, labels = numpy.unique(labels, return_inverse=True), and pass class_names=list(names)"
)
"""What to do with labels that are names."""


def from_array(array: npt.NDArray[Any], what: str) -> Tensor:
    """Return a NumPy array as a tensor, whatever its strides and byte order.

    Raises:
        DataError: an array of no numbers.
    """
    try:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    except TypeError as error:
        texts = array.dtype.kind in "US" or (array.dtype.kind == "O" and array.size and isinstance(array.flat[0], str))
        hint = NUMBERED if texts else ""
        raise DataError(f"{what} holds an array of {array.dtype}; expected one of numbers{hint}") from error


def read_saved(path: Path) -> Any:
    """Return what a file holds: tensors by name, one array, or whatever torch saved.

    Of torch's files tensors, plain values and NumPy's arrays and numbers are read, in any nesting.

    Raises:
        DataError: no such file, one of another kind, a damaged one, or one that would run code.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is no file of tensors; read are {', '.join(SUFFIXES)}")
    try:
        if suffix == SAFETENSORS:
            with opened_tensors(path) as handle:
                return {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
        if suffix in NUMPY:
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
                return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
        with torch.serialization.safe_globals(_numbers_of_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words are advice to run the code
        named = re.search(r"GLOBAL (\S+)", str(error))
        other = f"names {named[1]}, which" if named else "holds other things than tensors, and what they are"
        raise DataError(
            f"{path} {other} is not run; save tensors, lists and dicts of them alone, by torch.save(tensor, path)"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes its readers raise anything
        raise DataError(f"{path} is damaged, or no such file: {error}") from error


def _numbers_of_numpy() -> list[Any]:
    """Return what pickles name of NumPy's plain arrays and numbers, in the spelling of its former versions too."""
    from numpy._core import multiarray

    made = {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}
    spelled = [(found, f"numpy.{core}.multiarray.{name}") for name, found in made.items() for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [*spelled, np.ndarray, np.dtype, *kinds]
