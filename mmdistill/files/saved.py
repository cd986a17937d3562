"""Safe reading of tensor files of torch, NumPy and safetensors, without running code from them."""

import pickle
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
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
"""File name endings of these files."""
unpickling = threading.RLock()
"""Held while torch's list of safe classes, which all threads share, is changed."""


def from_array(array: npt.NDArray[Any], what: str) -> Tensor:
    """Return a NumPy array as a tensor, whatever its strides and byte order; one that may not be written is not copied.

    Raises:
        DataError: the array is not of numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
            return torch.from_numpy(np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C"]))
    except TypeError as error:
        raise DataError(f"{what} holds an array of {array.dtype}; expected one of numbers") from error


@contextmanager
def safe_classes(classes: Sequence[Any]) -> Iterator[None]:
    """Within this context torch reads further classes from files; ``(stand_in, name)`` is read for the class of a name.

    Torch's own ``safe_globals`` reads either of two of one name, and afterwards refuses what was safe before.
    """
    former = {_name_in_files(entry): entry for entry in torch.serialization.get_safe_globals()}
    further = {_name_in_files(entry): entry for entry in classes}
    _read_only(former | further)
    try:
        yield
    finally:
        now = {_name_in_files(entry): entry for entry in torch.serialization.get_safe_globals()}
        _read_only({name: entry for name, entry in now.items() if name not in further} | former)


def _name_in_files(entry: Any) -> str:
    """Return the name by which files refer to a class or stand-in."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _read_only(entries: Mapping[str, Any]) -> None:
    """Let torch read some classes from files, and no further ones."""
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(entries.values()))


def read_saved(
    path: Path,
    classes: Sequence[Any] = (),
    *,
    only: Collection[str] | None = None,
    mapped: bool = False,
    instead: str = "tensors, lists and dicts of them alone, by torch.save(tensor, path)",
) -> Any:
    """Read a file's tensors by name, its one array, or the object that torch saved.

    Files of torch may hold tensors, plain values, and NumPy's arrays and numbers, in any nesting.

    Args:
        path: the file.
        classes: further classes that files of torch may hold, whose code is trusted.
        only: the names to read from safetensors and ``.npz``; None: all.
        mapped: map tensors of safetensors to the file instead of copying them.
        instead: what the user should save in place of a file that would run code, for the message.
    Raises:
        DataError: the file is missing, of another kind, damaged, or would run code.
    """
    suffix = path.suffix.lower()
    with _explain_errors(path, instead):
        if suffix == SAFETENSORS:
            with opened_tensors(path) as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys() if only is None or name in only}  # noqa: SIM118
                return tensors if mapped else {name: tensor.clone() for name, tensor in tensors.items()}
        if suffix in NUMPY:
            with path.open("rb") as file:
                content = np.load(file, allow_pickle=False)
                if isinstance(content, np.ndarray):
                    return content
                return {name: content[name] for name in content.files if only is None or name in only}
        with unpickling, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of pickle protocols: a refusal explains them better
            with safe_classes([*_numpy_globals(), *classes]):
                return torch.load(path, map_location="cpu", weights_only=True)


def metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other files.

    Raises:
        DataError: the file is missing or damaged.
    """
    if path.suffix.lower() != SAFETENSORS:
        return {}
    with _explain_errors(path), opened_tensors(path) as handle:
        return dict(handle.metadata() or {})


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in a ``.npz`` archive, without reading them; empty for other files.

    Raises:
        DataError: the file is missing or damaged.
    """
    if path.suffix.lower() != ".npz":
        return []
    with _explain_errors(path), path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        return [] if isinstance(content, np.ndarray) else list(content.files)


@contextmanager
def _explain_errors(path: Path, instead: str = "") -> Iterator[None]:
    """Within this context, errors of reading a file of tensors are raised as explanations.

    Raises:
        DataError: the file is missing, of another kind, or cannot be read.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, and no file of tensors; name the files in it")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is no file of tensors; read are {', '.join(SUFFIXES)}")
    try:
        yield
    except pickle.UnpicklingError as error:  # torch's own message advises to run the code
        match = re.search(r"GLOBAL (\S+)", str(error))
        refused = f"names {match[1]}, which" if match else "holds other things than tensors, and what they are"
        raise DataError(f"{path} cannot be read: it {refused} is not run; save {instead}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes its readers raise anything
        raise DataError(f"{path} cannot be read: it is damaged, or no such file: {error}") from error


def _numpy_globals() -> list[Any]:
    """Return what pickles of NumPy's plain arrays and numbers refer to, under the names of older versions too."""
    from numpy._core import multiarray

    functions = {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}
    modules = [f"numpy.{core}.multiarray" for core in ("core", "_core")]
    named = [(function, f"{module}.{name}") for name, function in functions.items() for module in modules]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [*named, np.ndarray, np.dtype, *kinds]
