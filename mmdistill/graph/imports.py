"""Graphs that other tools condensed: torch-geometric's, and files of features, labels and adjacency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.graph import files
from mmdistill.graph.adjacency import Adjacency, undirected
from mmdistill.graph.data import checked_edges
from mmdistill.graph.task import GraphTask
from mmdistill.imports import (
    LABELS,
    Imported,
    Importer,
    ImportSource,
    by_role,
    class_targets,
    float_bytes,
    noted,
    weighed,
)

ROLES = {
    "features": ("x", "feat", "feats", "features", "feature"),
    "labels": LABELS,
    "adjacency": ("adjacency", "adj", "a"),
    "edge_index": ("edge_index",),
    "edge_weight": ("edge_weight",),
    "train_mask": ("train_mask",),
}
"""What a condensed graph is made of, by the words that its names have."""


def read_values(path: Path) -> Any:
    """Return what a file holds, of torch-geometric's graphs their fields, which may be in a list.

    Raises:
        DataError: it cannot be read without running code.
    """
    found = files.held(files.read_graphs(path))
    return found if isinstance(found, Tensor | np.ndarray | list) else files.fields_of(found)


def read_nodes(task: GraphTask, source: ImportSource) -> Imported:
    """Return the nodes of a condensed graph, with the weights of their edges where it has edges.

    Read are ``x``, ``y``, ``edge_index`` and ``edge_weight`` as torch-geometric has them, and ``feat``, ``label`` and
    ``adj`` ``(n, n)``, dense or sparse, as GCond and its successors save them. Edges are read as those of real graphs
    are: undirected, and without self-loops, which all judges add.

    Raises:
        DataError: other files, nodes of other features, labels of other classes, or impossible edges.
    """
    parts = by_role(source.values(read_values), ROLES, ("features", "labels"))
    x = parts["features"].float()
    if x.ndim != 2 or x.shape[1] != task.graph.x.shape[1]:
        raise DataError(f"nodes of {task.graph.name} are (n, {task.graph.x.shape[1]}) features, got {tuple(x.shape)}")
    targets = class_targets(parts["labels"], len(x), task.graph.class_names, source.logits)
    inputs = {"x": x} | adjacency_of(parts, len(x))
    batch = weighed(inputs, targets, parts.get("train_mask"))
    pairs = len(x) * (len(x) - 1) // 2 if "adjacency" in inputs else 0
    size = float_bytes(batch._replace(inputs=x), task.graph.num_classes) + 4 * pairs
    return Imported(batch, size, source.learned())


def fields_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a graph of torch-geometric; of any other value None."""
    own = any(base.__module__.partition(".")[0] == "torch_geometric" for base in type(value).__mro__)
    return files.fields_of(value) if own and hasattr(value, "to_dict") else None


def adjacency_of(parts: Mapping[str, Tensor], nodes: int) -> dict[str, Tensor]:
    """Return the weights ``(n, n)`` of undirected edges as ``adjacency``; nothing where there are none.

    Raises:
        DataError: edges of nodes that there are not, or weights that are none.
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
    edges = noted_undirected(*checked_edges(fields, "the set", nodes), nodes)
    return {"adjacency": torch.from_numpy(edges.matrix.toarray())} if len(edges.column) else {}


def noted_undirected(edges: Tensor, weight: Tensor | None, nodes: int) -> Adjacency:
    """Return directed edges as undirected ones, and note what was changed."""
    found, changes = undirected(edges, weight, nodes)
    for change in changes:
        if "isolated" not in change:
            noted(change)
    return found


IMPORTS = Importer(
    read_nodes,
    GraphTask,
    ".pt (a torch-geometric Data), .safetensors or .npz with x, y and perhaps edge_index and edge_weight; or a file "
    "each of features (feat_...), labels (label_...) and perhaps the adjacency (adj_...)",
    ("logits",),
    fields_by_name,
)
"""Reads condensed graphs."""
