"""Lists of torch-geometric's graphs, each with a class of its own, put side by side."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.graph.files import fields_of

UNREAD = ("edge_attr", "edge_weight")
"""What graphs may have of their edges that no method reads."""


def side_by_side(graphs: object, name: str) -> dict[str, Any]:
    """Return graphs as one list of nodes.

    Args:
        graphs: a list of ``Data`` or of mappings, each with ``edge_index (2, E)``, a class ``y`` of one number and, in
            all of them or in none, node features ``x (n, d)``; without those ``num_nodes``, or as many nodes as edges
            name.
        name: of the list, for errors.

    Returns:
        x ``(N, d)`` or None, edge_index ``(2, E)``, start ``(G + 1,)``, y ``(G,)``, and notes on what was not read.

    Raises:
        DataError: it is no list of such graphs; the message names the first that is none.
    """
    if not isinstance(graphs, list) or not graphs:
        kind = "an empty list" if isinstance(graphs, list) else type(graphs).__name__
        raise DataError(f"{name} is {kind}, and a list of torch-geometric's Data is expected, a class y each")
    found = [_checked(graph, f"{name}: graph {index}") for index, graph in enumerate(graphs)]
    features = [graph["x"] for graph in found]
    columns = {None if x is None else x.shape[1] for x in features}
    if len(columns) > 1:
        told = ", ".join("none" if one is None else str(one) for one in sorted(columns, key=str))
        raise DataError(f"{name}: graphs have different numbers of node features ({told}); they must agree")
    classes = {bool(graph["y"].is_floating_point()) for graph in found}
    if len(classes) > 1:
        raise DataError(f"{name}: some graphs have whole numbers as y and others floats; classes are whole numbers")
    sizes = torch.tensor([graph["nodes"] for graph in found])
    start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    edges = [graph["edge_index"] + first for graph, first in zip(found, start.tolist(), strict=False)]
    unread = {name: sum(name in graph["unread"] for graph in found) for name in UNREAD}
    return {
        "x": None if columns == {None} else torch.cat(features),
        "edge_index": torch.cat(edges, 1),
        "start": start,
        "y": torch.cat([graph["y"] for graph in found]),
        "notes": tuple(f"{name} of {count} graphs is not read" for name, count in unread.items() if count),
    }


def _checked(graph: object, name: str) -> dict[str, Any]:
    """Return what is read of a graph, in one form."""
    if not (isinstance(graph, Mapping) or callable(getattr(graph, "to_dict", None))):
        raise DataError(
            f"{name} is {type(graph).__name__}, and a torch-geometric Data with edge_index and y is expected"
        )
    fields = fields_of(graph)
    edges, x, y = fields.get("edge_index"), fields.get("x"), fields.get("y")
    if not isinstance(edges, Tensor) or edges.ndim != 2 or len(edges) != 2 or edges.is_floating_point():
        raise DataError(f"{name} needs edge_index (2, E) of whole numbers")
    if x is not None and (not isinstance(x, Tensor) or x.ndim != 2):
        raise DataError(f"{name} needs node features x (n, d), or none")
    label = torch.as_tensor(y).flatten() if isinstance(y, Tensor | Integral) else None
    if label is None or label.numel() != 1:
        raise DataError(f"{name} needs a class, one whole number y")
    named = int(edges.max()) + 1 if edges.numel() else 0
    nodes = len(x) if x is not None else int(fields.get("num_nodes") or named)
    if named > nodes or (edges.numel() and int(edges.min()) < 0):
        raise DataError(f"{name} has {nodes} nodes, and edges of nodes {int(edges.min())} to {named - 1}")
    unread = [name for name in UNREAD if name in fields]
    return {"x": x, "edge_index": edges.long(), "y": label, "nodes": nodes, "unread": unread}
