"""Sets of graphs that other tools distilled: a list of torch-geometric's, or all of them as its ``Batch``."""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmdistill.errors import DataError
from mmdistill.graph.data import INTEGERS, checked_edges
from mmdistill.graph.files import fields_of
from mmdistill.graph.imports import fields_by_name, make_undirected, read_values
from mmdistill.graph.sets.lists import as_list
from mmdistill.graph.sets.task import GraphSetTask
from mmdistill.importers import LABELS, Imported, Importer, ImportSource, by_role, class_targets, float_bytes, weighed
from mmdistill.task import Batch, Tensors

ROLES = {"x": ("x",), "edge_index": ("edge_index",), "labels": LABELS}
"""The parts of a graph, and the names under which other tools save them."""


def read_graphs(task: GraphSetTask, source: ImportSource) -> Imported:
    """Read graphs, padded to the largest, with unweighted edges.

    They come as a list of graphs with ``x``, ``edge_index`` and a class ``y`` each, or as one graph with the fields of
    torch-geometric's ``Batch``.

    Raises:
        DataError: other files, another number of node features, labels of other classes, or impossible edges.
    """
    fields = source.values(read_values)
    lists = [value for value in fields.values() if isinstance(value, list | tuple)]
    if lists and len(fields) > 1:
        raise DataError("graphs come as one list of them, or as one with all of them; give the files of one set")
    graphs = [by_role(fields_of(graph), ROLES, [*ROLES]) for graph in lists[0]] if lists else _split_batch(fields)
    if not graphs:
        raise DataError("the set holds no graph")
    width = task.graphs.x.shape[1]
    for number, graph in enumerate(graphs):
        if graph["x"].ndim != 2 or graph["x"].shape[1] != width or not len(graph["x"]):
            raise DataError(
                f"graph {number}: nodes of {task.graphs.name} are (n, {width}) features, got {tuple(graph['x'].shape)}"
            )
    labels = [graph["labels"].reshape(1, -1) for graph in graphs]
    if len({row.shape[1] for row in labels}) > 1:
        raise DataError(
            "each graph has one class y, or a row of numbers, one for each class; some have more than others"
        )
    targets = class_targets(torch.cat(labels), len(graphs), task.graphs.names, source.logits)
    sizes = [len(graph["x"]) for graph in graphs]
    largest, starts = max(sizes), [0, *accumulate(sizes)]
    ends = [checked_edges(graph, f"graph {number}", sizes[number])[0] for number, graph in enumerate(graphs)]
    # All graphs side by side, so that each change is noted once.
    all_ends = torch.cat([edges + start for edges, start in zip(ends, starts, strict=False)], 1)
    matrix = make_undirected(all_ends, None, starts[-1]).matrix
    adjacency = torch.zeros(len(graphs), largest, largest)
    for dense, (start, end) in zip(adjacency, pairwise(starts), strict=True):
        dense[: end - start, : end - start] = torch.from_numpy(matrix[start:end, start:end].toarray())
    inputs = {
        "x": pad_sequence([graph["x"].float() for graph in graphs], batch_first=True),
        "adjacency": adjacency,
        "present": (torch.arange(largest) < torch.tensor(sizes)[:, None]).float(),
    }
    return Imported(weighed(inputs, targets), learned=source.learned())


def set_bytes(batch: Batch, classes: int) -> int:
    """Return the bytes of graphs without padding: features of their nodes, a bit for each pair of nodes, labels.

    Pairs take a float32 each if some edge has a weight.
    """
    if not isinstance(batch.inputs, dict) or "present" not in batch.inputs:
        return float_bytes(batch, classes)
    x, adjacency = batch.inputs["x"], batch.inputs["adjacency"]
    sizes = batch.inputs["present"].sum(1).long()
    pairs = int((sizes * (sizes - 1) // 2).sum())
    is_weighted = bool(((adjacency != 0) & (adjacency != 1)).any())
    features = {"x": torch.empty(int(sizes.sum()), x.shape[2])}
    return float_bytes(batch._replace(inputs=features), classes) + (4 * pairs if is_weighted else (pairs + 7) // 8)


def graphs_by_name(value: Any) -> Mapping[str, Any] | None:
    """Return a list or a data set of graphs, or the fields of a ``Batch``, by name; None for any other value."""
    if isinstance(value, list | tuple):
        return None if not value or any(isinstance(item, str | Path) for item in value) else {"graphs": value}
    if (fields := fields_by_name(value)) is not None or isinstance(value, Tensor | np.ndarray | str | Path):
        return fields
    return {"graphs": as_list(value)} if hasattr(value, "__len__") and hasattr(value, "__getitem__") else None


def _split_batch(fields: Mapping[str, Any]) -> list[Tensors]:
    """Split the fields of a ``Batch`` into its graphs.

    Raises:
        DataError: other fields, nodes that are not listed graph after graph, or edges between graphs.
    """
    parts = by_role(fields, ROLES | {"batch": ("batch",)}, [*ROLES, "batch"])
    owner, ends, labels = parts["batch"], parts["edge_index"], parts["labels"]
    well_formed = owner.dtype in INTEGERS and owner.ndim == 1 and owner.shape == parts["x"].shape[:1] and len(owner)
    owner = owner.long()  # unsigned differences would never be negative
    if not well_formed or bool((owner.diff() < 0).any()) or int(owner.min()) < 0:
        raise DataError("'batch' says of each node which graph it is of, one graph after the other")
    if ends.dtype not in INTEGERS or ends.ndim != 2 or len(ends) != 2:
        raise DataError(f"edge_index holds whole numbers (2, E), got {ends.dtype} {tuple(ends.shape)}")
    ends = ends.long()  # uint8 indices would act as a mask
    if ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < len(owner):
        raise DataError(f"edge_index (2, E) names nodes from 0 to {len(owner) - 1}")
    if not torch.equal(owner[ends[0]], owner[ends[1]]):
        raise DataError("some edges join nodes of two graphs")
    count = int(owner.max()) + 1
    if labels.shape[:1] != (count,):
        raise DataError(f"{count} graphs have as many labels, got {len(labels) if labels.ndim else 'one number'}")
    return [
        {
            "x": parts["x"][owner == graph],
            "edge_index": ends[:, owner[ends[0]] == graph] - int((owner < graph).sum()),
            "labels": labels[graph],
        }
        for graph in range(count)
    ]


IMPORTS = Importer(
    read_graphs,
    GraphSetTask,
    ".pt with a list of torch-geometric's Data, or of dicts, with x, edge_index and a class y each; or .safetensors "
    "or .pt with the fields of its Batch",
    ("logits",),
    graphs_by_name,
    set_bytes,
)
"""Reads sets of graphs."""
