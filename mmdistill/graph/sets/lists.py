"""Lists of torch-geometric's graphs, each with a class, put side by side."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmdistill.checks import items_by_number
from mmdistill.errors import DataError
from mmdistill.files.columns import SPLIT_NAMES, require_one_each, split_name
from mmdistill.graph.files import fields_of
from mmdistill.graph.propagation import offsets
from mmdistill.labels import classes_of_one_hot

UNREAD = ("edge_attr", "edge_weight", "weight")
"""Edge fields that graphs may have and no method reads."""


class Listed(NamedTuple):
    """Graphs as read, their nodes side by side.

    Args:
        x: node features; None where nodes have none.
        edge_index: both ends of each edge; nodes are numbered through the whole list.
        start: where each graph's nodes begin.
        y: the graphs' classes; None where there are none.
        notes: what was not read, in words.
        parts: the numbers of the ``train``, ``dev`` and ``test`` graphs, as far as the source gives them.

    Shapes:
        x ``(N, d)``; edge_index ``(2, E)`` int64; start ``(G + 1,)`` int64; y ``(G,)``.
    """

    x: Tensor | None
    edge_index: Tensor
    start: Tensor
    y: Tensor | None
    notes: tuple[str, ...] = ()
    parts: Mapping[str, Tensor] = {}


def side_by_side(graphs: object, name: str) -> Listed:
    """Check the graphs of a list, and join them.

    Args:
        graphs: a list of ``Data`` or of mappings, each with ``edge_index (2, E)``, a class ``y`` of one number and, in
            all of them or in none, node features ``x (n, d)``. Without features ``num_nodes`` counts the nodes, else
            the largest node in ``edge_index`` does. In all of them ``y`` may be one-hot, ``(1, C)``.
        name: the list's name in errors.

    Raises:
        DataError: it is no list of such graphs; the message names the first that fails.
    """
    if not isinstance(graphs, list) or not graphs:
        kind = "an empty list" if isinstance(graphs, list) else type(graphs).__name__
        raise DataError(f"{name} is {kind}, and a list of torch-geometric's Data is expected, a class y each")
    return _join([_check(graph, f"{name}: graph {index}") for index, graph in enumerate(graphs)], name)


def parts_side_by_side(parts: Mapping[Any, object]) -> Listed:
    """Check and join the graphs of one list per split, and say which graphs each split has.

    Args:
        parts: a list of graphs or a torch-geometric data set by name of split, in any spelling.

    Raises:
        ConfigError: an unknown split.
        DataError: two names of one split, no training graphs, or no list of such graphs.
    """
    require_one_each(parts)
    keys = {split_name(key): key for key in parts}
    if "train" not in keys:
        raise DataError(f"the graphs have no training split; there are: {', '.join(map(str, parts))}")
    checked, numbers = list[dict[str, Any]](), dict[str, Tensor]()
    for split in (split for split in SPLIT_NAMES if split in keys):  # in a fixed order
        graphs = as_list(parts[keys[split]], f"{keys[split]}: ")
        if not graphs:
            raise DataError(f"{keys[split]} is an empty list; give it graphs, or leave it out to have some held out")
        numbers[split] = torch.arange(len(checked), len(checked) + len(graphs))
        checked += [_check(graph, f"{keys[split]}: graph {index}") for index, graph in enumerate(graphs)]
    return _join(checked, "the splits")._replace(parts=numbers)


def as_list(source: Any, place: str = "") -> list[Any]:
    """Return the graphs of a list, or of an object with a length and items like torch-geometric's data sets.

    Raises:
        DataError: it has no length or items by number; the message begins with the place.
    """
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")) or isinstance(source, Mapping | str):
        raise DataError(
            f"{place}a set of graphs is a name, a folder in the TU layout or a list of torch-geometric's Data, got "
            f"{type(source).__name__}"
        )
    return items_by_number(source, f"{place}{type(source).__name__} is no list of graphs", "graph")


def _join(graphs: list[dict[str, Any]], name: str) -> Listed:
    """Join checked graphs to one list of nodes."""
    features = [graph["x"] for graph in graphs]
    columns = {None if x is None else x.shape[1] for x in features}
    if len(columns) > 1:
        widths = ", ".join("none" if width is None else str(width) for width in sorted(columns, key=str))
        raise DataError(f"{name}: graphs have different numbers of node features ({widths}); they must agree")
    label_sizes = {graph["label_size"] for graph in graphs}
    if len(label_sizes) > 1:
        raise DataError(f"{name}: classes y are one-hot rows in some graphs, or of several lengths; they must agree")
    sizes = torch.tensor([graph["nodes"] for graph in graphs])
    start = offsets(sizes)
    edges = [graph["edge_index"] + first for graph, first in zip(graphs, start.tolist(), strict=False)]
    unread = {name: sum(name in graph["unread"] for graph in graphs) for name in UNREAD}
    return Listed(
        None if columns == {None} else torch.cat(features),
        torch.cat(edges, 1),
        start,
        torch.cat([graph["y"] for graph in graphs]),
        (
            *(f"{name} of {count} graphs is not read" for name, count in unread.items() if count),
            *(f"labels y are one-hot: classes are its {size} columns" for size in label_sizes if size > 1),
        ),
    )


def _check(graph: object, name: str) -> dict[str, Any]:
    """Check a graph, and return the fields that are read."""
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
    if x is not None:
        x = x.to_dense()
    label = torch.as_tensor(y) if isinstance(y, Tensor | Real) else torch.empty(0)
    label_size = label.numel()
    classes = classes_of_one_hot(label)
    label = (label if classes is None else classes).flatten()
    if label.numel() != 1:
        raise DataError(f"{name} needs a class, one whole number y")
    if label.is_floating_point():
        if not float(label).is_integer():
            raise DataError(
                f"{name} needs a class, one whole number y, and has {float(label):g}; mend it or leave it out"
            )
        label = label.long()
    highest = int(edges.max()) + 1 if edges.numel() else 0
    nodes = len(x) if x is not None else int(fields.get("num_nodes") or highest)
    if highest > nodes or (edges.numel() and int(edges.min()) < 0):
        raise DataError(f"{name} has {nodes} nodes, and edges of nodes {int(edges.min())} to {highest - 1}")
    unread = [name for name in UNREAD if name in fields]
    read = {"x": x, "edge_index": edges.long(), "y": label, "nodes": nodes}
    return {**read, "label_size": label_size, "unread": unread}
