"""Graphs that other tools condensed: torch-geometric's, and files of features, labels and adjacency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.saved import array_names
from mmdistill.graph import files
from mmdistill.graph.adjacency import Adjacency, undirected
from mmdistill.graph.data import checked_edges, with_edge_weight
from mmdistill.graph.task import GraphTask
from mmdistill.importers import (
    LABELS,
    Imported,
    Importer,
    ImportSource,
    as_tensor,
    by_role,
    class_targets,
    float_bytes,
    noted,
    weighed,
)
from mmdistill.task import Batch

ROLES = {
    "features": ("x", "feat", "feats", "features", "feature"),
    "labels": LABELS,
    "adjacency": ("adjacency", "adj", "a"),
    "edge_index": ("edge_index",),
    "edge_weight": ("edge_weight",),
    "train_mask": ("train_mask",),
}
"""The parts of a condensed graph, and the names under which other tools save them."""
SPARSE_FIELDS = {"data", "format", "shape"}
"""What all files of ``scipy.sparse.save_npz`` hold."""
PLACES = {"indices", "indptr", "row", "offsets"}
"""Where these files hold the places of the values, by their kind."""


def read_values(path: Path) -> Any:
    """Read a file: an array, a sparse matrix, a list of graphs, or the fields of one graph.

    Raises:
        DataError: it cannot be read without running code.
    """
    names = set(array_names(path))
    if names >= SPARSE_FIELDS and names & PLACES:
        return read_sparse(path)
    content = files.read_graphs(path)
    return content if isinstance(content, Tensor | np.ndarray | list) else files.fields_of(content)


def read_sparse(path: Path) -> Tensor:
    """Read the matrix in a file of ``scipy.sparse.save_npz``.

    Raises:
        DataError: the file is damaged.
    """
    try:
        matrix: Any = sparse.load_npz(path)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)  # indices out of range would be written beside the dense matrix
        return as_tensor(matrix, path.stem)
    except Exception as error:  # a damaged file makes its readers raise anything
        raise DataError(f"{path} cannot be read: it is damaged, or no sparse matrix of scipy's: {error}") from error


def read_nodes(task: GraphTask, source: ImportSource) -> Imported:
    """Read the nodes of a condensed graph, with edge weights where it has edges.

    Fields are ``x``, ``y``, ``edge_index`` and ``edge_weight`` as torch-geometric names them, or ``feat``, ``label``
    and ``adj`` ``(n, n)``, dense or sparse, as GCond and its successors save them. Weights have the same other names as
    those of real graphs. Edges become undirected and lose
    self-loops, like those of real graphs; all judges add self-loops.

    Raises:
        DataError: other files, another number of features, labels of other classes, or impossible edges.
    """
    values, readings = with_edge_weight(source.values(read_values), "the set")
    for reading in readings:
        noted(reading)
    parts = by_role(values, ROLES, ("features", "labels"))
    x = parts["features"].float()
    if x.ndim != 2 or x.shape[1] != task.graph.x.shape[1]:
        raise DataError(f"nodes of {task.graph.name} are (n, {task.graph.x.shape[1]}) features, got {tuple(x.shape)}")
    targets = class_targets(parts["labels"], len(x), task.graph.class_names, source.logits)
    inputs = {"x": x} | adjacency_of(parts, len(x))
    batch = weighed(inputs, targets, parts.get("train_mask"))
    return Imported(batch, learned=source.learned())


def graph_bytes(batch: Batch, classes: int) -> int:
    """Return the bytes of a condensed graph, its undirected edge weights once each."""
    if not isinstance(batch.inputs, dict) or "adjacency" not in batch.inputs:
        return float_bytes(batch, classes)
    x = batch.inputs["x"]
    return float_bytes(batch._replace(inputs=x), classes) + 4 * (len(x) * (len(x) - 1) // 2)


def fields_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a torch-geometric graph; None for any other value."""
    is_saved_graph = any(base.__module__.partition(".")[0] == "torch_geometric" for base in type(value).__mro__)
    return files.fields_of(value) if is_saved_graph and hasattr(value, "to_dict") else None


def adjacency_of(parts: Mapping[str, Tensor], nodes: int) -> dict[str, Tensor]:
    """Return undirected edge weights ``(n, n)`` as ``adjacency``; an empty dict without edges.

    Raises:
        DataError: edges of nodes that do not exist, or impossible weights.
    """
    if "adjacency" in parts:
        weights = parts["adjacency"].float()
        if weights.shape != (nodes, nodes):
            raise DataError(f"{nodes} nodes have an adjacency ({nodes}, {nodes}), got {tuple(weights.shape)}")
        ends = weights.nonzero().T
        fields = {"edge_index": ends, "edge_weight": weights[ends[0], ends[1]]}
    elif "edge_index" in parts:
        fields = {name: parts[name] for name in ("edge_index", "edge_weight") if name in parts}
    else:
        return {}
    edges = make_undirected(*checked_edges(fields, "the set", nodes), nodes)
    return {"adjacency": torch.from_numpy(edges.matrix.toarray())} if len(edges.column) else {}


def make_undirected(edges: Tensor, weight: Tensor | None, nodes: int) -> Adjacency:
    """Make directed edges undirected, and note the changes."""
    adjacency, changes = undirected(edges, weight, nodes)
    for change in changes:
        if "isolated" not in change:
            noted(change)
    return adjacency


IMPORTS = Importer(
    read_nodes,
    GraphTask,
    ".pt (a torch-geometric Data), .safetensors or .npz with x, y and perhaps edge_index and edge_weight; or a file "
    "each of features (feat_...), labels (label_...) and perhaps the adjacency (adj_...)",
    ("logits",),
    fields_by_name,
    graph_bytes,
)
"""Reads condensed graphs."""
