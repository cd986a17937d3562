"""Saved graphs: torch-geometric's ``.pt`` files and ``.safetensors``, read without running code from them."""

import os
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
from scipy.sparse import csr_matrix
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.columns import known_split
from mmdistill.files.saved import TORCH, from_array, read_saved, safe_classes, unpickling
from mmdistill.graph.data import FIELDS

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""While this environment variable is set, torch runs no code from files, even where a caller asks for it."""
TUPLE = re.compile(rb"[\x85-\x87t](q.|r.{4})\.\Z", re.DOTALL)
"""The end of a tuple's pickle, and by chance of a few others: it is made, remembered under a number, and returned."""


def holds_list(path: Path) -> bool:
    """Return whether a torch file holds several graphs: a list, a tuple, a list for each split, or a whole data set.

    The opcodes of its pickle, which are not executed, tell what it is; only tuples are read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        opcodes = [(code.name, value) for code, value, _ in islice(pickletools.genops(content), 7)]
        names = [name for name, _ in opcodes]
        if names[1] == "EMPTY_LIST":
            return names[3] == "MARK"  # before several items; one item has none
        key = next((value for name, value in opcodes if name == "BINUNICODE"), None)
        if names[1] == "EMPTY_DICT" and "EMPTY_LIST" in names and known_split(key) is not None:
            return True
        return TUPLE.search(content) is not None and isinstance(read_graphs(path), list)
    except (OSError, ValueError, StopIteration, EOFError, IndexError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False  # NotImplementedError of an unknown zip version is a RuntimeError
    except DataError:
        return False  # reading says what is wrong


def plain_dict(*_: object) -> dict[Any, Any]:
    """Return an empty dict, to be filled with what a ``defaultdict`` holds, without its factory."""
    return {}


def plain_batch(*_: object) -> Any:
    """Return a graph to be filled with a batch, whose class torch-geometric makes when it is read."""
    from torch_geometric.data import Data

    return Data()


class PlainBatches:
    """Stands for the object by which torch-geometric makes the class of a batch."""

    def __new__(cls) -> Any:
        """Return :func:`plain_batch`, which is called in its place."""
        return plain_batch


def saved_classes() -> list[Any]:
    """Return the classes that torch-geometric's saved graphs consist of, and what stands for those that would run."""
    # Imported here, since it takes seconds and most commands never need it.
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import AttrType, BaseStorage, EdgeStorage, GlobalStorage, NodeStorage

    storages = [BaseStorage, EdgeStorage, GlobalStorage, NodeStorage, AttrType]
    batches = "torch_geometric.data.batch"
    instead = [
        (plain_dict, "collections.defaultdict"),
        (plain_batch, f"{batches}.Batch"),
        (PlainBatches, f"{batches}.DynamicInheritanceGetter"),
    ]
    return [Data, HeteroData, DataEdgeAttr, DataTensorAttr, *storages, *instead]


@contextmanager
def graph_classes() -> Iterator[None]:
    """Within this context torch loads torch-geometric's classes from files, and no other code, whatever a library asks.

    This holds for all threads of the process.
    """
    with unpickling:
        former = os.environ.get(FORCED)
        os.environ[FORCED] = "1"
        try:
            with safe_classes(saved_classes()):
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
        content = PlainUnpickler(handle, encoding=encoding).load()
        if isinstance(content, csr_matrix):
            content.check_format(full_check=True)  # indices out of range would be written beside the dense matrix
        return content

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
    fields = fields_of(read_graphs(path))
    arrays = {name: from_array(value, str(name)) for name, value in fields.items() if _is_numeric_array(value)}
    return {**fields, **arrays}


def _is_numeric_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def read_graphs(path: Path) -> Any:
    """Read a file without running code from it; torch files may hold torch-geometric's graphs and data sets of them.

    A tuple is read as the list of its graphs, or as the one graph in it.

    Raises:
        DataError: the file is damaged, or holds other things than tensors in graphs.
    """
    instead = (
        "a graph of plain tensors by torch.save(data, path), data a torch_geometric.data.Data whose attributes are "
        "tensors, or a list of them"
    )
    saved = read_saved(path, saved_classes() if path.suffix.lower() in TORCH else (), instead=instead)
    if not isinstance(saved, tuple) or not saved:
        return saved
    if len(saved) > 1 and all(map(_is_graph, saved)):
        return list(saved)
    return _cut(saved[0], saved[1], path) if len(saved) > 1 and isinstance(saved[1], Mapping) else saved[0]


def _is_graph(value: Any) -> bool:
    """Return whether a value is a ``Data``, or a mapping with edges; a mapping of bounds has vectors."""
    edges = value.get("edge_index") if isinstance(value, Mapping) else None
    return callable(getattr(value, "to_dict", None)) or getattr(edges, "ndim", 1) == 2


def _cut(joined: Any, bounds: Mapping[str, Any], path: Path) -> Any:
    """Return the graphs of an ``InMemoryDataset``, which saves them end to end; a single one unchanged.

    Raises:
        DataError: the bounds are not those of the graphs.
    """
    from torch_geometric.data import Data
    from torch_geometric.data.separate import separate

    counts = {len(ends) - 1 for ends in bounds.values() if isinstance(ends, Tensor)}
    if not counts or counts == {1}:
        return joined
    try:
        (count,) = counts
        data = Data.from_dict(dict(joined)) if isinstance(joined, Mapping) else joined
        return [separate(Data, data, index, bounds, decrement=False) for index in range(count)]
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path} is damaged: the bounds of its graphs do not fit them ({error})") from error


def fields_of(source: Any) -> Mapping[str, Any]:
    """Return the attributes of a ``Data`` by name, or a mapping itself; of a list or data set of one, those of its own.

    Raises:
        DataError: it is neither.
    """
    if isinstance(source, Mapping):
        return source
    if _is_list(source) and len(source) == 1 and _is_graph(source[0]):
        return fields_of(source[0])
    to_dict = getattr(source, "to_dict", None)
    fields = to_dict() if callable(to_dict) else None
    if not isinstance(fields, Mapping):
        raise DataError(f"expected a graph with {', '.join(FIELDS)}, got {type(source).__name__}: {_suggest(source)}")
    return fields


def _suggest(source: Any) -> str:
    """Return advice on what to give in place of an object that is no graph."""
    if type(source).__module__.partition(".")[0] == "networkx":
        return "torch_geometric.utils.from_networkx makes a graph of it, whose nodes then need features x and labels y"
    if _is_list(source) and len(source) and _is_graph(source[0]):
        return (
            f"of a data set or list of {len(source)}, one graph is dataset[0], and graph_set_task takes a list of many"
        )
    return (
        "give a name, a file, or a torch_geometric.data.Data (tensors of images are saved by name: "
        "torch.save({'images': images, 'labels': labels}, path))"
    )


def _is_list(source: Any) -> bool:
    """Return whether an object has a length and items, and is no text, mapping or graph."""
    has_items = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return has_items and not isinstance(source, str | bytes | Mapping) and not _is_graph(source)
