"""Saved graphs: torch-geometric's ``.pt`` files and ``.safetensors``, read without running code from them."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from mmdistill.errors import DataError
from mmdistill.graph.data import FIELDS


def looks_like_graph(path: Path) -> bool:
    """Return whether a file could hold a graph, without reading all of it.

    Of other data none comes in torch's files, so all of these are claimed, and what is wrong with one is said in words.
    """
    if path.suffix.lower() in (".pt", ".pth"):
        return path.is_file()
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safetensors.safe_open(path, framework="pt") as handle:
                return "edge_index" in handle.keys()  # noqa: SIM118
        except (safetensors.SafetensorError, OSError):
            return False
    return False


def graph_classes() -> AbstractContextManager[None]:
    """Return a context in which torch loads torch-geometric's own classes, and no other code, from files."""
    # torch-geometric takes seconds to import and most commands never need it, hence here.
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import BaseStorage, EdgeStorage, GlobalStorage, NodeStorage

    classes: list[Any] = [Data, HeteroData, DataEdgeAttr, DataTensorAttr]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(
        [*classes, BaseStorage, EdgeStorage, GlobalStorage, NodeStorage]
    )
    return context


def read_fields(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a saved graph by name, without running code from the file.

    Raises:
        DataError: the file is damaged, holds other things than tensors in a graph, or is no graph.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        with graph_classes(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which a refusal says better
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, runtime, zip and key errors alike
        raise DataError(
            f"{path} cannot be read as a graph of plain tensors ({type(error).__name__}); save it with "
            "torch.save(data, path), data a torch_geometric.data.Data whose attributes are tensors"
        ) from error
    if isinstance(saved, tuple) and saved:  # the processed file of a torch-geometric InMemoryDataset
        saved = saved[0]
    return fields_of(saved)


def fields_of(source: Any) -> Mapping[str, Any]:
    """Return the attributes of a ``Data``, or a mapping's items.

    Raises:
        DataError: it is neither.
    """
    if isinstance(source, Mapping):
        return source
    to_dict = getattr(source, "to_dict", None)
    fields = to_dict() if callable(to_dict) else None
    if not isinstance(fields, Mapping):
        raise DataError(
            f"expected a graph with {', '.join(FIELDS)}, got {type(source).__name__}: give a name, a file, or a "
            "torch_geometric.data.Data (tensors of images go into .safetensors, as 'images' and 'labels')"
        )
    return fields
