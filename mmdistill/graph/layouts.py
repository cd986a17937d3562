"""Graphs in the layouts in which they are published, under any name, and edges in sparse matrices."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import scipy.sparse as sp
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.saved import SAFETENSORS, TORCH, array_names, read_saved
from mmdistill.graph.files import fields_of, holds_list, plainly_unpickled
from mmdistill.store import opened_tensors

Fields = Mapping[str, Any]
ROLES = {"tr": "train_mask", "va": "val_mask", "te": "test_mask"}
"""The splits in GraphSAINT's ``role.json``."""
SPLITS = {"train_masks": "train_mask", "val_masks": "val_mask", "test_masks": "test_mask"}
"""The arrays of published splits, a row for each."""


class Layout(NamedTuple):
    """How a kind of file or folder holds a graph.

    Args:
        names: the arrays in the file, or the files in the folder, by which it is known.
        read: returns the graph's fields, given the arrays by name or the folder.
        is_split: whether it has masks; if not, the split is random, as for the named data sets in this layout.
    """

    names: tuple[str, ...]
    read: Callable[[Any], Fields]
    is_split: bool = True


def _read_compressed_rows(arrays: Fields) -> Fields:
    """Return the fields of Amazon's and Coauthor's archives; features stay as they are."""
    return {"x": _matrix(arrays, "attr_"), **edges_of(_matrix(arrays, "adj_")), "y": arrays["labels"]}


def _read_published_splits(arrays: Fields) -> Fields:
    """Return the fields of an archive of heterophilous graphs (Platonov et al., ICLR 2023)."""
    masks = {mask: arrays[name].T for name, mask in SPLITS.items() if name in arrays}
    return {"x": arrays["node_features"], "y": arrays["node_labels"], "edge_index": arrays["edges"].T, **masks}


def _read_saint(folder: Path) -> Fields:
    """Return the fields of GraphSAINT's files; features stay as they are."""
    x = read_saved(folder / "feats.npy")
    classes, roles = (json.loads((folder / name).read_text()) for name in ("class_map.json", "role.json"))
    masks = {mask: np.zeros(len(x), bool) for mask in ROLES.values()}
    for role, mask in ROLES.items():
        masks[mask][roles.get(role, [])] = True
    y = np.array([classes[str(node)] for node in range(len(x))])
    return {"x": x, **edges_of(_matrix(read_saved(folder / "adj_full.npz"), "")), "y": y, **masks}


def _read_planetoid(folder: Path) -> Fields:
    from torch_geometric.io import planetoid  # torch-geometric takes seconds to import

    name = next(folder.glob("ind.*.allx")).name.removeprefix("ind.").removesuffix(".allx")
    with plainly_unpickled(planetoid):
        return fields_of(planetoid.read_planetoid_data(str(folder), name))


ARCHIVES = (
    Layout(("x", "edge_index", "y"), lambda arrays: arrays),
    Layout(("adj_data", "adj_indices", "adj_indptr", "adj_shape", "labels"), _read_compressed_rows, is_split=False),
    Layout(("node_features", "node_labels", "edges"), _read_published_splits),
)
"""Layouts of ``.npz`` files."""
FOLDERS = (
    Layout(("adj_full.npz", "feats.npy", "class_map.json", "role.json"), _read_saint),
    Layout(("ind.*.allx", "ind.*.graph", "ind.*.test.index"), _read_planetoid),
)
"""Layouts of folders, or of a ``raw`` in them."""


def layout_of(path: Path) -> tuple[Layout, Path] | None:
    """Return the layout of a file or folder, and the file or folder that has it; None for others."""
    if path.is_dir():
        places = [(layout, place) for layout in FOLDERS for place in (path, path / "raw")]
        return next(((one, place) for one, place in places if all(any(place.glob(name)) for name in one.names)), None)
    try:
        names = array_names(path) if path.is_file() else []
    except DataError:
        return None
    return next(((layout, path) for layout in ARCHIVES if set(layout.names) <= {*names}), None)


def looks_like_graph(path: Path) -> bool:
    """Return whether a file or folder could hold a graph, without reading all of it.

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
    return layout_of(path) is not None


def shortcoming(path: Path) -> str:
    """Return how to give a folder with a table of nodes, which is not read; empty for others."""
    if not path.is_dir() or not any(path.glob("*node*.csv")):
        return ""
    return (
        f"{path}: tables of nodes and edges are not read; numpy.savez('graph.npz', x=..., edge_index=..., y=..., "
        "train_mask=..., test_mask=...) makes a file of their columns: x (nodes, features), edge_index (2, edges)"
    )


def read_layout(layout: Layout, place: Path) -> Fields:
    """Return the fields of a graph in a layout.

    Raises:
        DataError: it is damaged.
    """
    try:
        return layout.read(place if place.is_dir() else read_saved(place))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # text files and archives can fail in any way
        raise DataError(f"{place} cannot be read as a graph ({type(error).__name__}: {error})") from error


def _matrix(arrays: Fields, prefix: str) -> sp.csr_matrix:
    data, indices, pointer, shape = (arrays[f"{prefix}{name}"] for name in ("data", "indices", "indptr", "shape"))
    matrix = sp.csr_matrix((data, indices, pointer), tuple(shape))
    matrix.check_format(full_check=True)  # indices out of range would be written beside the dense matrix
    return matrix


def edges_of(matrix: sp.csr_matrix) -> Fields:
    """Return the edges of an adjacency matrix, with weights where any is not 1."""
    entries = matrix.tocoo()
    weight = {} if (entries.data == 1).all() else {"edge_weight": entries.data}
    return {"edge_index": np.stack([entries.row, entries.col]), **weight}


def densified(fields: Fields) -> tuple[Fields, tuple[str, ...]]:
    """Return a graph's fields with the edges of a sparse matrix as ``edge_index``, and features dense; with notes.

    The matrix is ``edge_index`` itself or, where there is none, ``adj_t``, as ``T.ToSparseTensor`` leaves a graph.
    """
    if sp.issparse(fields.get("x")):
        fields = {**fields, "x": fields["x"].toarray()}
    key = "adj_t" if fields.get("edge_index") is None else "edge_index"
    matrix = fields.get(key)
    if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
        return fields, ()
    from torch_geometric.utils import to_edge_index  # torch-geometric takes seconds to import

    edges, values = to_edge_index(matrix)
    is_weighted = fields.get("edge_weight") is None and bool((values != 1).any())
    weight = {"edge_weight": values} if is_weighted else {}
    words = ", its values as their weights" if is_weighted else ""
    return {**fields, "edge_index": edges, **weight}, (f"edges are read from the sparse {key}{words}",)
