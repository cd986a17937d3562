"""One graph with labelled nodes, checked and in canonical form."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.execution.isolation import recordable
from mmdistill.files.classes import untested, unvalidated
from mmdistill.files.saved import from_array
from mmdistill.graph.adjacency import Adjacency, undirected
from mmdistill.graph.features import scaling_notes
from mmdistill.labels import classes_of_one_hot
from mmdistill.names import first_few
from mmdistill.runtime import tensor_digest

LARGE = 50_000
"""Nodes from which the settings that the field uses on large graphs apply (ogbn-arxiv, Flickr, Reddit)."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MASKS = ("train_mask", "val_mask", "test_mask")
FIELDS = ("x", "edge_index", "y", *MASKS)
SPLIT_NAMES = {
    "train_mask": ("train_idx", "idx_train"),
    "val_mask": ("valid_mask", "val_idx", "valid_idx", "idx_val"),
    "test_mask": ("test_idx", "idx_test"),
}
"""Other names of the masks; those with ``idx`` hold node numbers."""
WEIGHT_FIELDS = ("weight", "edge_attr")
"""Other names of edge_weight: networkx's, and that of torch-geometric's transforms."""
SPLITTING = 'T.RandomNodeSplit("train_rest", num_val=0.2, num_test=0.2)(data) of torch_geometric.transforms'
"""The transform that gives a graph without masks some, whatever its size; messages name it."""
DEGREES = "T.OneHotDegree(max_degree)(data) of torch_geometric.transforms"
"""The transform that gives nodes without features their degree; messages name it."""


@dataclass(frozen=True)
class GraphData:
    """One undirected graph with classified nodes, checked and in canonical form.

    Args:
        name: the data set's name or path.
        x: node features, float32.
        adjacency: both directions of every edge once, without self-loops; weights are 1 unless the source has any.
        y: the class of each node, -1 where it is unknown and not needed.
        train: ids of the labelled training nodes, ascending.
        val: ids of the validation nodes; may be empty.
        test: ids of the test nodes.
        num_classes: C.
        inductive: whether condensing sees only the training nodes and the edges among them, and judges are validated
            and tested on the subgraphs of those nodes; else all features and edges are known (transductive).
        notes: what reading changed, in words.
        scaling: ``feature_mean`` and ``feature_deviation`` of standardised features; else empty.
        labels: the source's label of each class index; empty: the index itself.

    Shapes:
        x ``(N, d)``; y ``(N,)`` int64; of scaling ``(d,)`` each.
    """

    name: str
    x: Tensor
    adjacency: Adjacency
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    num_classes: int
    inductive: bool = False
    notes: tuple[str, ...] = ()
    scaling: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Return the name and the numbers of nodes, edges, features and classes in one line."""
        (nodes, features), edges = self.x.shape, len(self.adjacency.column) // 2
        sizes = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in ("train", "val", "test"))
        setting = ", inductive" if self.inductive else ""
        return (
            f"GraphData({self.name}, nodes: {nodes:,} ({sizes}), {edges:,} edges, {features:,} features, "
            f"{self.num_classes} classes{setting})"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes: their labels in the source."""
        return tuple(map(str, self.labels or range(self.num_classes)))

    @property
    def edge_index(self) -> Tensor:
        """Both ends of each edge ``(2, E)``, sorted by source then target."""
        return self.adjacency.edge_index

    @property
    def edge_weight(self) -> Tensor:
        """The weight of each edge ``(E,)``."""
        return self.adjacency.weight

    @property
    def is_large(self) -> bool:
        """Whether settings for large graphs apply."""
        return len(self.x) >= LARGE

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that training reads, including the validation labels, which choose the step."""
        digest = hashlib.blake2b(digest_size=16)
        parts = (self.adjacency.pointer, self.adjacency.column, self.adjacency.weight)
        labels = self.y[self.train], self.y[self.val]
        for tensor in (self.x, *parts, *labels, self.train, self.val):
            digest.update(tensor.contiguous().numpy().data)
        digest.update(f"{len(self.train)} {self.inductive}".encode())
        return digest.hexdigest()

    @functools.cached_property
    def test_fingerprint(self) -> str:
        """A hash of the test nodes and their labels; :attr:`fingerprint` covers the rest of what judges read."""
        return tensor_digest(self.test, self.y[self.test])


def graph_from_fields(
    fields: Mapping[str, Any], name: str, split: int = 0, *, inductive: bool = False, notes: tuple[str, ...] = ()
) -> GraphData:
    """Check a graph's tensors and bring them into canonical form.

    Directed edges get their reverse, duplicates are merged (the largest weight stays) and self-loops are dropped,
    since every network adds its own; nodes without edges keep only that self-loop. Each change is noted.

    Args:
        fields: x, edge_index, y and the masks by name, as tensors or arrays; edge_weight is optional. Masks and weights
            may have one of :data:`SPLIT_NAMES` and :data:`WEIGHT_FIELDS`, and y may be one-hot; each is noted.
        name: the data set's name, for messages.
        split: the column of masks that hold several splits.
        inductive: see :class:`GraphData`.
        notes: earlier changes, in words.

    Raises:
        DataError: a field is missing or unusable; the message names it.
    """
    _require_homogeneous(fields, name)
    x = _read_features(fields, name)
    fields, readings = _with_masks(fields, name, len(x))
    splits, remarks = _read_splits(fields, name, len(x), split)
    fields, reading = _with_class_indices(fields, name)
    readings += reading
    y, labels = _read_labels(fields, name, len(x), splits)
    fields, reading = with_edge_weight(fields, name)
    readings += reading
    adjacency, changes = undirected(*checked_edges(fields, name, len(x)), len(x))
    names = tuple(map(str, labels))
    if labels != tuple(range(len(labels))):
        remarks += (f"classes are numbered in the order of their labels: {first_few(names, 20)}",)
    remarks += (*untested(y[splits["test"]], names, "node"), *unvalidated(y[splits["validation"]], names, "node"))
    remarks += scaling_notes(x)
    return GraphData(
        name,
        x,
        adjacency,
        y,
        splits["training"],
        splits["validation"],
        splits["test"],
        len(labels),
        inductive,
        notes + readings + _notes_on_unread(fields, split) + changes + remarks,
        labels=labels,
    )


def _notes_on_unread(fields: Mapping[str, Any], split: int) -> tuple[str, ...]:
    """Return notes on what is not read of a graph: other splits and edge attributes."""
    masks = {key: fields[key].shape[1] for key in MASKS if fields.get(key) is not None and fields[key].ndim == 2}
    notes = [f"{key}: split {split} of {splits} is read" for key, splits in masks.items() if splits > 1]
    unread = [key for key in WEIGHT_FIELDS if fields.get(key) is not None]
    return (*notes, *(f"{key} is not read (weights of edges are read from edge_weight)" for key in unread))


def _require_homogeneous(fields: Mapping[str, Any], name: str) -> None:
    """Refuse a graph of several kinds of nodes or edges."""
    if "_global_store" in fields or any(isinstance(key, tuple) for key in fields):
        raise DataError(
            f"{name} is heterogeneous (several kinds of nodes or edges), and one kind is expected: make it one graph "
            "with data.to_homogeneous(), or give the subgraph of one kind"
        )


def with_edge_weight(fields: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return fields with edge_weight under that name, and a note if it has one of :data:`WEIGHT_FIELDS`.

    These count as weights if they hold one positive number for each edge, and under another name than weight not whole
    ones alone, which are mostly kinds of edges.
    """
    if fields.get("edge_weight") is not None:
        return fields, ()
    edges = _shape(fields, "edge_index")[1:]
    for key in WEIGHT_FIELDS:
        if edges and _shape(fields, key) in (edges, (*edges, 1)) and _holds_weights(fields, key, name):
            others = {other: value for other, value in fields.items() if other != key}
            advice = f"larger means closer; leave {key} out if it is something else"
            return others | {"edge_weight": fields[key]}, (f"weights of edges are read from {key} ({advice})",)
    return fields, ()


def _holds_weights(fields: Mapping[str, Any], key: str, name: str) -> bool:
    """Return whether a field holds numbers that can be weights of edges, and that are mostly meant as such."""
    try:
        values = _read_tensor(fields, key, name)
    except DataError:  # texts
        return False
    if values.is_complex():
        return False
    values = values.double()
    most = torch.finfo(torch.float32).max
    whole = key != "weight" and bool((values == values.round()).all())
    return not whole and bool((values > 0).all()) and float(values.sum()) <= most


def _shape(fields: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the shape of a field; an empty one for what is no tensor or array."""
    return tuple(getattr(fields.get(key), "shape", ()))


def _with_masks(fields: Mapping[str, Any], name: str, nodes: int) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return fields with the masks under their names, and notes on those that have one of :data:`SPLIT_NAMES`.

    A mask is read from one field; others of its names are noted.

    Raises:
        DataError: node numbers that are not unique whole numbers of nodes.
    """
    masks, notes = dict[str, Tensor](), list[str]()
    for mask, names in SPLIT_NAMES.items():
        given = [key for key in (mask, *names) if fields.get(key) is not None]
        notes.extend(f"{key} is not read, since {given[0]} is" for key in given[1:])
        if not given or given[0] == mask:
            continue
        key = given[0]
        numbers = _read_tensor(fields, key, name)
        numbers = numbers if numbers.numel() else torch.zeros(0, dtype=torch.long)  # NumPy's empty arrays are floats
        notes.append(f"{mask} is read from {key}")
        if key.endswith("_mask") or numbers.dtype == torch.bool:
            masks[mask] = numbers
            continue
        is_numbers = numbers.ndim == 1 and numbers.dtype in INTEGERS and len(torch.unique(numbers)) == len(numbers)
        if not is_numbers or bool((numbers < 0).any()) or bool((numbers >= nodes).any()):
            raise DataError(
                f"{name}: {key} must hold different node numbers from 0 to {nodes - 1}, got {numbers.dtype} "
                f"{tuple(numbers.shape)}; or give a boolean {mask} ({nodes},)"
            )
        masks[mask] = torch.zeros(nodes, dtype=torch.bool).index_fill_(0, numbers.long(), True)
    return {**fields, **masks}, tuple(notes)


def _with_class_indices(fields: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return fields with classes in place of one-hot labels, and a note on it; other labels stay."""
    y = _read_tensor(fields, "y", name)
    classes = classes_of_one_hot(y.to_dense())
    if classes is None:
        return fields, ()
    columns, used = y.shape[1], len(torch.unique(classes))
    named = f"its {columns} columns" if used == columns else f"the {used} of its {columns} columns that are in use"
    return {**fields, "y": classes}, (f"labels y are one-hot: classes are {named}",)


def _read_splits(
    fields: Mapping[str, Any], name: str, nodes: int, split: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the ids of the training, validation and test nodes, and notes on what is missing."""
    train = _read_mask(fields, "train_mask", name, nodes, split)
    test = _read_mask(fields, "test_mask", name, nodes, split)
    if train is None or not len(train):
        hint = "" if fields.get("train_mask") is not None else f"; {SPLITTING} divides the nodes at random"
        raise DataError(
            f"{name} has no training nodes: give a boolean train_mask with at least one True per class{hint}"
        )
    if test is None or not len(test):
        raise DataError(f"{name} has no test nodes: give a boolean test_mask")
    val = _read_mask(fields, "val_mask", name, nodes, split)
    notes: tuple[str, ...] = ()
    if val is None or not len(val):
        val, notes = torch.zeros(0, dtype=torch.long), ("no validation nodes: judges keep their last epoch",)
    splits = {"training": train, "validation": val, "test": test}
    if split and all(fields[key].ndim == 1 for key in MASKS if fields.get(key) is not None):
        raise DataError(f"{name} has one split of its nodes; there is no split {split}")
    for left, right in (("training", "test"), ("training", "validation"), ("validation", "test")):
        shared = int(torch.isin(splits[left], splits[right]).sum())
        if shared:
            raise DataError(f"{name}: {shared} nodes are in both the {left} and the {right} mask")
    return splits, notes


def _read_tensor(fields: Mapping[str, Any], key: str, name: str) -> Tensor:
    value = fields.get(key)
    if key == "edge_index" and value is None and fields.get("adj_t") is not None:
        raise DataError(
            f"{name} has adj_t and no edge_index, as T.ToSparseTensor leaves a graph; give it as it was before that"
        )
    if isinstance(value, np.ndarray):
        value = from_array(value, f"{name}: {key}")
    if not isinstance(value, Tensor):
        problem = "it is missing" if value is None else f"got {type(value).__name__}"
        hint = "" if set(FIELDS) & fields.keys() else "; a file of images has tensors named images and labels"
        raise DataError(f"{name} needs a tensor {key!r}, {problem}; a graph has {', '.join(FIELDS)}{hint}")
    if value.is_meta or value.is_quantized:
        raise DataError(f"{name} needs a tensor {key!r} of plain numbers, got {value.dtype} on {value.device}")
    return recordable(value.detach().cpu())


def _read_features(fields: Mapping[str, Any], name: str) -> Tensor:
    if fields.get("x") is None and fields.get("edge_index") is not None and fields.get("y") is not None:
        raise DataError(
            f"{name} has no node features, a tensor 'x' (nodes, features); after data.num_nodes = len(data.y), "
            f"{DEGREES} gives nodes their degree as such (max_degree is the largest)"
        )
    x = _read_tensor(fields, "x", name)
    if x.is_sparse or x.layout != torch.strided:
        x = x.to_dense()
    if x.is_complex():
        raise DataError(f"{name}: features x must be real, got {x.dtype}")
    x = x.float()
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"{name}: features x must be (nodes, features), got {tuple(x.shape)}")
    bad = (~torch.isfinite(x)).any(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise DataError(
            f"{name}: features are NaN or infinite in {int(bad.sum())} nodes (first: node {first}); fill them"
        )
    if not x.any():
        raise DataError(f"{name}: all node features are 0; give nodes some: {DEGREES} gives their degree")
    return x.contiguous()


def checked_edges(fields: Mapping[str, Any], name: str, nodes: int) -> tuple[Tensor, Tensor | None]:
    """Check a graph's edges, and return them ``(2, E)`` with their weights ``(E,)``; None for weights of 1.

    Raises:
        DataError: edges of nodes that do not exist, or weights that are not finite and at least 0.
    """
    edges = _read_tensor(fields, "edge_index", name)
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype not in INTEGERS:
        raise DataError(f"{name}: edge_index must be an integer (2, edges), got {edges.dtype} {tuple(edges.shape)}")
    edges = edges.long()
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        raise DataError(
            f"{name}: edge_index names nodes {int(edges.min())} to {int(edges.max())}, but x has {nodes} rows"
        )
    if fields.get("edge_weight") is None:
        return edges, None
    weights = _read_tensor(fields, "edge_weight", name)
    if weights.is_complex():
        raise DataError(f"{name}: edge_weight must be real, got {weights.dtype}")
    weight = weights.float().flatten()
    if len(weight) != edges.shape[1] or not torch.isfinite(weight).all() or (weight < 0).any():
        raise DataError(f"{name}: edge_weight must be one finite number >= 0 for each of {edges.shape[1]} edges")
    if float(weight.double().sum()) > torch.finfo(weight.dtype).max:
        raise DataError(f"{name}: the edge weights add up to more than float32 holds; divide all of them by a number")
    return edges, weight


def _read_mask(fields: Mapping[str, Any], key: str, name: str, nodes: int, split: int) -> Tensor | None:
    """Return the ids that a boolean mask marks; None where there is no mask."""
    if fields.get(key) is None:
        return None
    mask = _read_tensor(fields, key, name)
    if mask.ndim == 2 and mask.shape[0] == nodes:
        if not 0 <= split < mask.shape[1]:
            raise DataError(f"{name}: {key} has {mask.shape[1]} splits, there is no split {split}")
        mask = mask[:, split]
    if mask.shape != (nodes,) or mask.dtype not in (torch.bool, torch.uint8):
        hint = ""
        if mask.shape == (nodes,) and bool(((mask == 0) | (mask == 1)).all()):
            hint = f"; {key}.bool() makes one of zeros and ones"
        elif mask.ndim == 1 and not mask.is_floating_point():
            hint = "; torch.zeros(n, dtype=torch.bool).index_fill_(0, ids, True) makes one of node numbers"
        raise DataError(f"{name}: {key} must be boolean ({nodes},), got {mask.dtype} {tuple(mask.shape)}{hint}")
    return mask.bool().nonzero().flatten()


def _read_labels(
    fields: Mapping[str, Any], name: str, nodes: int, splits: Mapping[str, Tensor]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return each node's class index, -1 where it is unknown, and the classes: the training nodes' labels."""
    y = _read_tensor(fields, "y", name)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2:
        raise DataError(
            f"{name}: labels y are {tuple(y.shape)}, several per node; multi-label graphs cannot be condensed: give "
            "one class index per node, (nodes,)"
        )
    if y.shape != (nodes,):
        raise DataError(f"{name}: labels y must hold one class index per node ({nodes},), got {tuple(y.shape)}")
    if y.is_floating_point():
        values = y[torch.cat(list(splits.values()))]
        if not torch.isfinite(values).all() or (values != values.round()).any():
            raise DataError(f"{name}: labels y must be class indices (int64), got {y.dtype} with fractions or NaN")
        y = torch.nan_to_num(y, nan=-1)
    y = y.long()
    labels = torch.unique(y[splits["training"]])
    for part, ids in splits.items():
        if len(ids) and int(y[ids].min()) < 0:
            raise DataError(f"{name}: {part} labels must be 0 or more (-1 is an unknown one), got {int(y[ids].min())}")
        if len(untrained := y[ids][~torch.isin(y[ids], labels)]):
            raise DataError(
                f"{name}: class {int(untrained.min())} has no training node; label some, or take its nodes out of the "
                "splits"
            )
    if len(labels) < 2:
        raise DataError(f"{name} has the single class {int(labels)}; classification needs at least two")
    return torch.searchsorted(labels, y).where(torch.isin(y, labels), -1), tuple(labels.tolist())
