"""Sets of small labelled graphs in the TU layout, through torch-geometric or from a user's folder."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.execution.isolation import isolated
from mmdistill.files.classes import missing_like, untested, unvalidated
from mmdistill.files.paths import users_path
from mmdistill.files.saved import TORCH
from mmdistill.graph.features import scaling_notes
from mmdistill.graph.files import graph_classes, read_graphs
from mmdistill.graph.propagation import offsets
from mmdistill.graph.sets.lists import Listed, as_list, parts_side_by_side, side_by_side
from mmdistill.graph.sets.splits import complete_splits, stratified
from mmdistill.names import canonical, unknown_data
from mmdistill.runtime import cache_folder, checked_seed, data_root, tensor_digest
from mmdistill.task import Tensors

TU = {
    "mutag": ("MUTAG", "188 molecules in 2 classes"),
    "proteins": ("PROTEINS", "1,113 proteins in 2 classes"),
    "nci1": ("NCI1", "4,110 molecules in 2 classes"),
    "dd": ("DD", "1,178 proteins in 2 classes, hundreds of nodes each"),
    "enzymes": ("ENZYMES", "600 proteins in 6 classes"),
    "imdb-binary": ("IMDB-BINARY", "1,000 collaborations in 2 classes, no node features"),
}
"""Torch-geometric's name of a data set and a line for users, by our name."""
DENSE_BYTES = 2**30
"""The most memory that the edges of padded graphs may take."""
DEGREES = 32
"""Nodes without features get their degree, one-hot up to this number."""


@dataclass(frozen=True)
class GraphSet:
    """Graphs with one class each, their nodes side by side.

    Args:
        name: the data set's name or path.
        x: node features.
        edge_index: both directions of every edge; nodes are numbered through all graphs.
        start: where each graph's nodes begin.
        y: the graphs' classes.
        train: numbers of the training graphs.
        val: numbers of the validation graphs.
        test: numbers of the test graphs.
        num_classes: C.
        notes: what reading changed, in words.
        class_names: the source's label of each class; empty: the class index.

    Shapes:
        x ``(N, d)``; edge_index ``(2, E)``, sorted by source; start ``(G + 1,)``; y ``(G,)``.
    """

    name: str
    x: Tensor
    edge_index: Tensor
    start: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    num_classes: int
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the name and the numbers of graphs, nodes, features and classes in one line."""
        sizes = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in ("train", "val", "test"))
        nodes, features = self.x.shape
        return (
            f"GraphSet({self.name}, graphs: {len(self.y):,} ({sizes}), {nodes:,} nodes, {features:,} features, "
            f"{self.num_classes} classes)"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes: their labels in the source, or their indices."""
        return self.class_names or tuple(str(index) for index in range(self.num_classes))

    @property
    def sizes(self) -> Tensor:
        """The number of nodes of each graph, ``(G,)``."""
        return self.start.diff()

    @property
    def stored_bytes(self) -> int:
        """Bytes of the training graphs: features of their nodes, both ends of each edge, classes."""
        ends = self.pointer[self.start]
        nodes, edges = int(self.sizes[self.train].sum()), int(ends.diff()[self.train].sum())
        return nodes * self.x.shape[1] * self.x.element_size() + 2 * 8 * edges + 8 * len(self.train)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that training reads, including the validation labels, which choose the step."""
        digest = hashlib.blake2b(digest_size=16)
        labels = self.y[self.train], self.y[self.val]
        for tensor in (self.x, self.edge_index, self.start, *labels, self.train, self.val):
            digest.update(tensor.contiguous().numpy().data)
        digest.update(str(len(self.train)).encode())
        return digest.hexdigest()

    @functools.cached_property
    def test_fingerprint(self) -> str:
        """A hash of the test graphs' numbers and classes; :attr:`fingerprint` covers their nodes and edges."""
        return tensor_digest(self.test, self.y[self.test])

    @functools.cached_property
    def pointer(self) -> Tensor:
        """Where each node's edges begin, ``(N + 1,)``."""
        return offsets(torch.bincount(self.edge_index[0], minlength=len(self.x)))

    def joined(self, graphs: Tensor) -> Tensors:
        """Return graphs side by side as one graph of several components; memory grows with nodes and edges.

        Shapes:
            graphs ``(n,)``, M nodes in all; sizes ``(n,)``; x ``(M, d)``; owner ``(M,)``, positions in
            ``graphs``; and the edges as :func:`~mmdistill.graph.propagation.propagate` reads them.
        """
        sizes, (row, ends) = self.sizes[graphs], self._edges(graphs)
        first = offsets(sizes)[:-1]
        owner = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
        nodes = torch.arange(len(owner)) + (self.start[graphs] - first)[owner]
        degree = self.pointer[nodes + 1] - self.pointer[nodes]
        return {
            "sizes": sizes,
            "x": self.x[nodes],
            "owner": owner,
            "pointer": offsets(degree),
            "column": ends[1] + first[row],
            "weight": torch.ones(len(row)),
            "scale": (1.0 + degree).rsqrt(),
        }

    def _edges(self, graphs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges of graphs, one graph after the other.

        Shapes:
            graphs ``(n,)``; returns each edge's position in ``graphs``, ``(E,)``, and both of its ends, ``(2, E)``,
            numbered from 0 within the graph.
        """
        first = self.pointer[self.start[graphs]]
        counts = self.pointer[self.start[graphs + 1]] - first
        row = torch.repeat_interleave(torch.arange(len(graphs)), counts)
        edges = torch.arange(len(row)) + (first - offsets(counts)[:-1])[row]
        return row, self.edge_index[:, edges] - self.start[graphs][row]

    def padded(self, graphs: Tensor, nodes: int | None = None) -> Tensors:
        """Return graphs as dense tensors.

        Args:
            graphs: their numbers.
            nodes: the number of nodes to pad to; None: that of the largest graph.

        Shapes:
            graphs ``(n,)``; x ``(n, m, d)``, adjacency ``(n, m, m)`` and present ``(n, m)``, 1 where there is a node.

        Raises:
            DataError: they take more than ``DENSE_BYTES``.
        """
        sizes = self.sizes[graphs]
        width = int(sizes.max()) if nodes is None else nodes
        if 4 * len(graphs) * width**2 > DENSE_BYTES:
            raise DataError(
                f"{len(graphs)} graphs of {self.name!r}, padded to the {width:,} nodes of the largest, take "
                f"{4 * len(graphs) * width**2 / 2**30:.1f} GiB; ask for fewer graphs, or draw other ones (another seed)"
            )
        column = torch.arange(width)
        present = column < sizes[:, None]
        table = (self.start[graphs, None] + column).clamp(max=len(self.x) - 1)
        row, (source, target) = self._edges(graphs)
        adjacency = torch.zeros(len(graphs), width, width)
        adjacency[row, source, target] = 1.0
        return {"x": self.x[table] * present[..., None], "adjacency": adjacency, "present": present.float()}


@isolated
def load_graph_set(source: "str | Path | Sequence[Any] | Mapping[str, Sequence[Any]]", *, seed: int = 0) -> GraphSet:
    """Return a set of graphs from a name, a folder in the TU layout, a list of graphs, or a list for each split.

    Graphs without splits are divided 80/10/10 within each class; a split that is missing among others becomes a tenth
    of the training graphs of each class.

    Args:
        source: a name in ``TU``, a folder with ``NAME_A.txt``, ``NAME_graph_indicator.txt`` and so on, a list or data
            set of torch-geometric's ``Data`` with a class each (see :func:`~mmdistill.graph.sets.lists.side_by_side`),
            a ``.pt`` file with such a list, or a mapping of split names to lists, ``{"train": ..., "val": ...,
            "test": ...}``.
        seed: of the random split.

    Raises:
        ConfigError: an unknown name of a data set or a split.
        DataError: missing or damaged files, no training graphs, or graphs that cannot be used.
    """
    seed = checked_seed(seed)
    if not isinstance(source, str | Path):
        if callable(getattr(source, "to_dict", None)):
            kind = type(source).__name__
            raise DataError(
                f"a set of graphs is a list of torch-geometric's Data, a class y each, got one {kind}; "
                "a Batch of them becomes one by to_data_list(), and graph_task takes one graph whose nodes have classes"
            )
        return _check(_join(source if _is_of_splits(source) else as_list(source), "the list"), "list", seed)
    key = canonical(str(source))
    if key in TU:
        return _check(_load_named(TU[key][0]), key, seed)
    folder = users_path(source)
    if folder.is_file() and folder.suffix.lower() in TORCH:
        return _check(_join(read_graphs(folder), str(source)), str(folder.absolute()), seed)
    if not folder.is_dir():
        raise unknown_data("set of graphs", str(source), TU)
    prefix = tu_prefix(folder)
    if prefix is None:
        raise DataError(f"{folder} holds no set of graphs: NAME_A.txt and NAME_graph_indicator.txt are expected")
    return _check(_read_tu(prefix), str(folder.absolute()), seed)


def _is_of_splits(source: object) -> bool:
    return isinstance(source, Mapping) and bool(source) and "edge_index" not in source


def _join(graphs: Any, name: str) -> Listed:
    """Join the graphs of a list, or of a mapping of lists by split."""
    return parts_side_by_side(graphs) if _is_of_splits(graphs) else side_by_side(graphs, name)


def tu_prefix(folder: Path) -> Path | None:
    """Return the common prefix of the TU files in a folder or its ``raw``; None where there are none."""
    for place in (folder, folder / "raw"):
        for path in sorted(place.glob("*_A.txt")):
            prefix = path.with_name(path.name.removesuffix("_A.txt"))
            if Path(f"{prefix}_graph_indicator.txt").is_file():
                return prefix
    return None


def _load_named(name: str) -> Listed:
    """Read a data set's graphs from the data root, or download them into the cache folder."""
    for root in (data_root(), cache_folder() / "data"):
        prefix = tu_prefix(root / name)
        if prefix is not None:
            return _read_tu(prefix)
    try:
        from torch_geometric.datasets import TUDataset

        with graph_classes():
            TUDataset(str(cache_folder() / "data"), name)
    except Exception as error:  # no network, a full disk
        raise DataError(
            f"{name}: {data_root() / name / 'raw'} lacks {name}_A.txt and the files beside it, and the download failed "
            f"({type(error).__name__}); put the TU files there"
        ) from error
    return _load_named(name)


def _require_grouped(prefix: Path) -> None:
    """Refuse nodes not listed graph after graph, which torch-geometric would assign to wrong graphs."""
    graph = np.loadtxt(f"{prefix}_graph_indicator.txt", ndmin=1).astype(np.int64)
    back = np.flatnonzero(np.diff(graph) < 0)
    if len(back):
        raise DataError(
            f"{prefix}_graph_indicator.txt lists a node of graph {graph[back[0] + 1]} in line {back[0] + 2}, after one "
            f"of graph {graph[back[0]]}; nodes must be listed graph after graph"
        )
    edges = np.loadtxt(f"{prefix}_A.txt", delimiter=",", ndmin=2).astype(np.int64)
    if edges.size and (edges.min() < 1 or edges.max() > len(graph)):
        raise DataError(
            f"{prefix}_A.txt names nodes {edges.min()} to {edges.max()}; nodes count from 1, and _graph_indicator.txt "
            f"has {len(graph)}"
        )


def _read_tu(prefix: Path) -> Listed:
    """Read the graphs of TU files by the common prefix of their names.

    Raises:
        DataError: they are damaged, or do not agree with one another.
    """
    from torch_geometric.io import read_tu_data  # torch-geometric takes seconds to import

    try:
        _require_grouped(prefix)
        data, slices, _ = read_tu_data(str(prefix.parent), prefix.name)
    except DataError:
        raise
    except Exception as error:  # text files can fail in any way
        raise DataError(f"the files {prefix}_*.txt are damaged ({type(error).__name__}: {error})") from error
    sizes = slices["x"].diff() if "x" in slices else torch.as_tensor(data._num_nodes)
    start = offsets(sizes)
    if data.x is not None and len(data.x) != start[-1]:
        raise DataError(
            f"{prefix}_node_labels.txt and _node_attributes.txt need a line for each of the {int(start[-1])} nodes in "
            f"_graph_indicator.txt, and have {len(data.x)}"
        )
    counts = torch.zeros_like(sizes)  # torch-geometric leaves out trailing graphs without edges
    counts[: len(slices["edge_index"]) - 1] = slices["edge_index"].diff()
    owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    # torch-geometric numbers each graph's nodes from 0.
    outside = (data.edge_index < 0) | (data.edge_index >= sizes[owner])
    if outside.any():
        raise DataError(
            f"{prefix}_A.txt has an edge of graph {int(owner[outside.any(0)][0]) + 1} to a node that is not its own; "
            "nodes count from 1, as in _graph_indicator.txt"
        )
    unread = [kind for kind in ("edge_labels", "edge_attributes") if Path(f"{prefix}_{kind}.txt").is_file()]
    notes = tuple(f"{prefix.name}_{kind}.txt is not read" for kind in unread)
    return Listed(data.x, data.edge_index + start[owner], start, _read_classes(prefix, data.y), notes)


def _read_classes(prefix: Path, numbered: Tensor | None) -> Tensor | None:
    """Return the graphs' labels in the file where they are whole numbers; else torch-geometric's numbers."""
    if numbered is None:
        return None
    labels = np.loadtxt(f"{prefix}_graph_labels.txt", delimiter=",", ndmin=1)
    whole = labels.ndim == 1 and bool((labels == labels.round()).all())
    return torch.from_numpy(labels.astype(np.int64)) if whole else numbered


def _check(listed: Listed, name: str, seed: int) -> GraphSet:
    """Check graphs, and split them where the source does not.

    Raises:
        DataError: no classes, or a class too small to split, or without a training graph.
    """
    y, start, edges = listed.y, listed.start, listed.edge_index
    if y is None or y.is_floating_point() or y.ndim != 1:
        raise DataError(f"{name} needs one class for each graph, as whole numbers (y, or NAME_graph_labels.txt)")
    if len(y) != len(start) - 1:
        raise DataError(f"{name} has {len(start) - 1} graphs and classes for {len(y)}; give one for each graph")
    if not (y != y[0]).any():
        raise DataError(f"{name} has a single class; classification needs at least two")
    sizes = start.diff()
    if (sizes < 1).any():
        raise DataError(f"{name}: graph {int((sizes < 1).nonzero()[0])} has no nodes")
    nodes = int(start[-1])
    undirected = torch.unique(torch.cat([edges, edges.flip(0)], 1), dim=1)
    undirected = undirected[:, undirected[0] != undirected[1]]
    x, notes = listed.x, listed.notes
    if x is None or not x.numel():
        degree = torch.bincount(undirected[0], minlength=nodes).clamp(max=DEGREES)
        x = torch.nn.functional.one_hot(degree, DEGREES + 1)
        notes += (f"nodes have no features and get their degree, one-hot, {DEGREES} also where it is larger",)
    x = x.float()
    if not torch.isfinite(x).all():
        raise DataError(f"{name}: node features are NaN or infinite; fill them")
    notes += scaling_notes(x)
    values, classes = torch.unique(y, return_inverse=True)
    names = tuple(map(str, values.tolist()))
    if listed.parts:
        parts, remarks = complete_splits(classes, listed.parts, seed, names)
        notes += remarks
    else:
        parts = stratified(classes, seed, names)
        notes += (f"random split {seed}: 80 % training, 10 % validation, 10 % test graphs of each class",)
    _, val, test = (classes[part] for part in parts)
    notes += (*untested(test, names, "graph"), *unvalidated(val, names, "graph"), *missing_like(names))
    return GraphSet(name, x, undirected, start, classes, *parts, len(names), notes, names)
