"""Files of tensors as torch, NumPy and safetensors write them, from which no code is run."""

import pickle
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
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
unpickling = threading.RLock()
"""Held while what all threads share says which classes torch's files may hold."""


def from_array(array: npt.NDArray[Any], what: str) -> Tensor:
    """Return a NumPy array as a tensor, whatever its strides and byte order.

    Raises:
        DataError: an array of no numbers.
    """
    try:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise DataError(f"{what} holds an array of {array.dtype}; expected one of numbers") from error


def read_saved(
    path: Path,
    classes: Sequence[Any] = (),
    *,
    only: Collection[str] | None = None,
    mapped: bool = False,
    instead: str = "tensors, lists and dicts of them alone, by torch.save(tensor, path)",
) -> Any:
    """Return what a file holds: tensors by name, one array, or whatever torch saved.

    Of torch's files tensors, plain values and NumPy's arrays and numbers are read, in any nesting.

    Args:
        path: the file.
        classes: others that torch's files may hold, whose code is trusted.
        only: of safetensors and ``.npz`` the names that are read; None: all.
        mapped: tensors of safetensors map the file instead of copying it.
        instead: what is to be saved in place of a file that would run code, in words.
    Raises:
        DataError: no such file, one of another kind, a damaged one, or one that would run code.
    """
    suffix = path.suffix.lower()
    with _explained(path, instead):
        if suffix == SAFETENSORS:
            with opened_tensors(path) as handle:
                found = {name: handle.get_tensor(name) for name in handle.keys() if only is None or name in only}  # noqa: SIM118
                return found if mapped else {name: tensor.clone() for name, tensor in found.items()}
        if suffix in NUMPY:
            with path.open("rb") as file:
                held = np.load(file, allow_pickle=False)
                if isinstance(held, np.ndarray):
                    return held
                return {name: held[name] for name in held.files if only is None or name in only}
        with unpickling, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which a refusal says better
            with torch.serialization.safe_globals([*_numbers_of_numpy(), *classes]):
                return torch.load(path, map_location="cpu", weights_only=True)


def metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of its tensors; of other files nothing.

    Raises:
        DataError: no such file, or a damaged one.
    """
    if path.suffix.lower() != SAFETENSORS:
        return {}
    with _explained(path), opened_tensors(path) as handle:
        return dict(handle.metadata() or {})


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an archive of NumPy or SciPy, of which none is read; of other files nothing.

    Raises:
        DataError: no such file, or a damaged one.
    """
    if path.suffix.lower() != ".npz":
        return []
    with _explained(path), path.open("rb") as file:
        held = np.load(file, allow_pickle=False)
        return [] if isinstance(held, np.ndarray) else list(held.files)


@contextmanager
def _explained(path: Path, instead: str = "") -> Iterator[None]:
    """Say in words why a file of tensors cannot be read.

    Raises:
        DataError: no such file, one of another kind, or whatever reading it raises.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, and no file of tensors; name the files in it")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is no file of tensors; read are {', '.join(SUFFIXES)}")
    try:
        yield
    except pickle.UnpicklingError as error:  # torch's own words are advice to run the code
        named = re.search(r"GLOBAL (\S+)", str(error))
        other = f"names {named[1]}, which" if named else "holds other things than tensors, and what they are"
        raise DataError(f"{path} cannot be read: it {other} is not run; save {instead}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes its readers raise anything
        raise DataError(f"{path} cannot be read: it is damaged, or no such file: {error}") from error


def _numbers_of_numpy() -> list[Any]:
    """Return what pickles name of NumPy's plain arrays and numbers, in the spelling of its former versions too."""
    from numpy._core import multiarray

    made = {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}
    spelled = [(found, f"numpy.{core}.multiarray.{name}") for name, found in made.items() for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [*spelled, np.ndarray, np.dtype, *kinds]
