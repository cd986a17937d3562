"""Saved graphs: torch-geometric's ``.pt`` files and ``.safetensors``, read without running code from them."""

import os
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import safetensors
import torch

from mmdistill.errors import DataError
from mmdistill.files.saved import SAFETENSORS, TORCH, from_array, read_saved, unpickling
from mmdistill.graph.data import FIELDS
from mmdistill.store import opened_tensors

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""While this environment variable is set, torch runs no code from files, even where a caller asks for it."""


def holds_list(path: Path) -> bool:
    """Return whether a torch file holds a list, by the first opcodes of its pickle, which are not executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as handle:
                return [code.name for code, _, _ in islice(pickletools.genops(handle), 2)][1:] == ["EMPTY_LIST"]
    except (OSError, ValueError, StopIteration, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False  # NotImplementedError of an unknown zip version is a RuntimeError


def looks_like_graph(path: Path) -> bool:
    """Return whether a file could hold a graph, without reading all of it.

    Of other kinds of data only images come in torch files, and these are recognised first. So all other torch files
    without a list count as graphs, and reading one says what is wrong with it.
    """
    if path.suffix.lower() in TORCH:
        return path.is_file() and not holds_list(path)
    if path.suffix.lower() == SAFETENSORS and path.is_file():
        try:
            with opened_tensors(path) as handle:
                return "edge_index" in handle.keys()  # noqa: SIM118
        except (safetensors.SafetensorError, OSError):
            return False
    return False


def saved_classes() -> list[Any]:
    """Return the classes that torch-geometric's saved graphs consist of."""
    # Imported here, since it takes seconds and most commands never need it.
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import BaseStorage, EdgeStorage, GlobalStorage, NodeStorage

    return [Data, HeteroData, DataEdgeAttr, DataTensorAttr, BaseStorage, EdgeStorage, GlobalStorage, NodeStorage]


@contextmanager
def graph_classes() -> Iterator[None]:
    """Within this context torch loads torch-geometric's classes from files, and no other code, whatever a library asks.

    This holds for all threads of the process.
    """
    with unpickling:
        former = os.environ.get(FORCED)
        os.environ[FORCED] = "1"
        try:
            with torch.serialization.safe_globals(saved_classes()):
                yield
        finally:
            if former is None:
                del os.environ[FORCED]
            else:
                os.environ[FORCED] = former


class PlainUnpickler(pickle.Unpickler):
    """Unpickles the arrays, sparse matrices and dicts of Planetoid's files, and refuses any other code."""

    allowed = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("scipy.sparse.csr", "csr_matrix"),
            ("scipy.sparse._csr", "csr_matrix"),
            ("collections", "defaultdict"),
            ("__builtin__", "list"),
            ("builtins", "list"),
            ("_codecs", "encode"),  # makes bytes, in pickles that Python 3 wrote for Python 2
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function that a pickle names.

        Raises:
            pickle.UnpicklingError: it is none that these files need.
        """
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return super().find_class(module, name)


@contextmanager
def plainly_unpickled(module: Any) -> Iterator[None]:
    """Within this context a library's module reads by :class:`PlainUnpickler` where it calls ``pickle.load``."""

    def load(handle: IO[bytes], encoding: str = "ASCII") -> Any:
        return PlainUnpickler(handle, encoding=encoding).load()

    with unpickling:
        former = module.pickle
        module.pickle = SimpleNamespace(load=load)
        try:
            yield
        finally:
            module.pickle = former


def read_fields(path: Path) -> Mapping[str, Any]:
    """Read a saved graph's fields by name, arrays as tensors, without running code from the file.

    Raises:
        DataError: the file is damaged, holds other things than tensors in a graph, or is no graph.
    """
    fields = fields_of(unwrap_dataset(read_graphs(path)))
    arrays = {name: from_array(value, str(name)) for name, value in fields.items() if _is_numeric_array(value)}
    return {**fields, **arrays}


def _is_numeric_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def unwrap_dataset(saved: Any) -> Any:
    """Return the graphs that an ``InMemoryDataset`` of torch-geometric saves in a tuple; other values unchanged."""
    return saved[0] if isinstance(saved, tuple) and saved else saved


def read_graphs(path: Path) -> Any:
    """Read a file without running code from it; torch files may hold torch-geometric's graphs.

    Raises:
        DataError: the file is damaged, or holds other things than tensors in graphs.
    """
    instead = (
        "a graph of plain tensors by torch.save(data, path), data a torch_geometric.data.Data whose attributes are "
        "tensors, or a list of them"
    )
    return read_saved(path, saved_classes() if path.suffix.lower() in TORCH else (), instead=instead)


def fields_of(source: Any) -> Mapping[str, Any]:
    """Return the attributes of a ``Data`` by name, or a mapping itself.

    Raises:
        DataError: it is neither.
    """
    if isinstance(source, Mapping):
        return source
    to_dict = getattr(source, "to_dict", None)
    fields = to_dict() if callable(to_dict) else None
    if not isinstance(fields, Mapping):
        raise DataError(f"expected a graph with {', '.join(FIELDS)}, got {type(source).__name__}: {_suggest(source)}")
    return fields


def _suggest(source: Any) -> str:
    """Return advice on what to give in place of an object that is no graph."""
    if type(source).__module__.partition(".")[0] == "networkx":
        return "torch_geometric.utils.from_networkx makes a graph of it, whose nodes then need features x and labels y"
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, str | bytes):
        many = "" if len(source) == 1 else ", and graph_set_task takes a list of many"
        if len(source) and callable(getattr(source[0], "to_dict", None)):
            return f"of a data set or list of {len(source)}, one graph is dataset[0]{many}"
    return (
        "give a name, a file, or a torch_geometric.data.Data (tensors of images are saved by name: "
        "torch.save({'images': images, 'labels': labels}, path))"
    )
