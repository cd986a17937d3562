"""A real graph as networks see it; each propagation of its features is computed once."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmdistill.graph.adjacency import Adjacency
from mmdistill.graph.data import GraphData
from mmdistill.graph.propagation import compressed_rows, constant_product, propagate_columns, sparse_entries
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Tensors

SPARSE_BELOW = 0.1
"""Propagated features with a smaller share of non-zeros are multiplied as sparse matrices.

On a CPU, compressed rows with a stored transpose are faster forwards and backwards up to a share of about 0.15, with
one thread as with two.
"""

SAMPLED_BYTES = 2**30
"""The most memory that sampled neighbourhoods of all groups may take: 200 classes of 256 nodes with 10 neighbours each
take 0.7 GB."""


class View(NamedTuple):
    """What a two-layer or linear judge sees of m nodes, with all computed that does not depend on parameters.

    Shapes:
        first: ``(r, d)`` propagated features, dense or sparse, of the nodes that the m nodes read (SGC, MLP: of the m
            nodes themselves). second: ``(m, r)`` propagation after the hidden layer, or None for the identity.
            transposed ``(d, r)`` and back ``(r, m)``: transposes of the two for the backward pass, if they are
            compressed rows; else None.
    """

    first: Tensor
    second: Tensor | None = None
    transposed: Tensor | None = None
    back: Tensor | None = None

    def times(self, weight: Tensor) -> Tensor:
        """Return the features times a weight ``(d, h)``."""
        return constant_product(self.first, self.transposed, weight)

    def __deepcopy__(self, memo: object) -> "View":
        """Return the view itself, which is never modified: torch cannot copy compressed rows."""
        return self


class Scene:
    """Nodes with features and edges.

    Args:
        x: features.
        adjacency: edges.
        y: classes, -1 where unknown.
        device: where networks see it.

    Shapes:
        x ``(N, d)``; y ``(N,)``.
    """

    def __init__(self, x: Tensor, adjacency: Adjacency, y: Tensor, device: torch.device) -> None:
        self.adjacency, self.device = adjacency, device
        self.x, self.y = x.to(device), y.to(device)
        self.edges = adjacency.normalised(device)
        self._propagated: dict[int, Tensor] = {0: self.x}

    def __len__(self) -> int:
        """Return N."""
        return len(self.x)

    @functools.cached_property
    def stored_bytes(self) -> int:
        """Bytes of the graph as a saved torch-geometric ``Data`` holds it (features, edges, labels, masks).

        Edges have their two ends and, where not all weigh 1, a weight.
        """
        weighted = bool((self.adjacency.weight != 1).any())
        masks, edges = 3 * len(self), (2 * 8 + 4 * weighted) * len(self.adjacency.column)
        return int(self.x.nbytes + edges + self.y.nbytes + masks)

    def propagated(self, hops: int) -> Tensor:
        r"""Return :math:`\hat A^k X`, ``(N, d)``."""
        if hops not in self._propagated:
            self._propagated[hops] = propagate_columns(self.edges, self.propagated(hops - 1))
        return self._propagated[hops]

    def inputs(self, normalised: bool) -> Tensors:
        """Return the graph in the form that own networks (normalised) or modules (raw edges) read."""
        if normalised:
            return {"x": self.x, **self.edges}
        return {"x": self.x, **self._raw}

    @functools.cached_property
    def _raw(self) -> Tensors:
        """The edges as modules read them, on the device."""
        parts = {"edge_index": self.adjacency.edge_index, "edge_weight": self.adjacency.weight}
        return {name: tensor.to(self.device) for name, tensor in parts.items()}

    def among(self, nodes: Tensor, normalised: bool) -> Tensors:
        """Return nodes and the edges among them in the form of :meth:`inputs`, with the whole graph's normalisation.

        Shapes:
            nodes ``(n,)`` on the CPU; they are numbered in the given order.
        """
        subgraph = Scene(self.x[nodes.to(self.device)], self.adjacency.induced(nodes), self.y, self.device)
        if normalised:
            subgraph.edges["scale"] = self.edges["scale"][nodes.to(self.device)]
        return subgraph.inputs(normalised)

    def rows(self, nodes: Tensor, hops: int, trains: bool) -> View:
        """Return the view of a linear judge or a perceptron: the nodes' own rows after some hops."""
        return _view(self.propagated(hops)[nodes], trains)

    def neighbourhood(self, nodes: Tensor, trains: bool) -> View:
        """Return a GCN's view: the neighbours' propagated features, and the adjacency's rows that read them."""
        reached, second = self._reading(nodes.cpu())
        view = _view(self.propagated(1)[reached.to(self.device)], trains)
        if not trains:
            return view._replace(second=compressed_rows(second).to(self.device))
        if self.device.type != "cpu":  # coordinates have torch's own gradient; rows are not measured
            return view._replace(second=second.to(self.device))
        return view._replace(second=compressed_rows(second), back=compressed_rows(second.mT))

    def neighbourhoods(self, groups: Sequence[Tensor]) -> Tensors | None:
        """Return a two-layer network's inputs for groups of nodes; None if they are larger than all features.

        Shapes:
            groups ``(n_g,)`` each; for G groups x ``(G, r, d)``, features after one hop, and second ``(G, n, r)``, rows
            of the normalised adjacency; smaller groups are padded with zeros.
        """
        readings = [self._reading(nodes.cpu()) for nodes in groups]
        nodes, rows = (max(second.shape[axis] for _, second in readings) for axis in (0, 1))
        if len(groups) * rows * (nodes + self.x.shape[1]) > self.x.numel():
            return None
        first = self.propagated(1)
        return _padded([(first[reached.to(self.device)], second) for reached, second in readings])

    def sampled_neighbourhoods(self, groups: Sequence[Tensor], fanouts: Sequence[int], draws: Draws) -> Tensors | None:
        """Return a two-layer network's inputs from a sampled neighbourhood of each group.

        The second layer reads the neighbours sampled in one hop, the first layer all sampled ones, both with the whole
        graph's weights. Each group is sampled on its own: in a joint sample, every group would read all groups'
        neighbours.

        Args:
            groups: ``(n_g,)`` distinct nodes each, on the CPU.
            fanouts: neighbours drawn at each hop, as for :meth:`~mmdistill.graph.adjacency.Adjacency.sampled`.
            draws: the key.

        Shapes:
            Returns the shapes of :meth:`neighbourhoods`; None if they take more than ``SAMPLED_BYTES``.
        """
        walks = [(nodes, draws.fold(int(nodes[0]))) for nodes in groups]
        near = [self.adjacency.sampled(nodes, fanouts[:1], key) for nodes, key in walks]
        nodes, rows = max(map(len, groups)), max(map(len, near))
        if self.x.element_size() * len(groups) * rows * (nodes + self.x.shape[1]) > SAMPLED_BYTES:
            return None
        found = []
        for own, (group, key) in zip(near, walks, strict=True):
            reached = self.adjacency.sampled(group, fanouts, key)
            first = compressed_rows(self._reading(own, reached)[1]).to(self.device)
            found.append((first @ self.x[reached.to(self.device)], self._reading(group, own)[1]))
        return _padded(found)

    def _reading(self, nodes: Tensor, reached: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the nodes and their neighbours ``(r,)``, and the normalised adjacency's rows ``(n, r)`` on them.

        If given, the sorted nodes ``reached`` replace the full set of neighbours.
        """
        own = self.adjacency.rows(nodes)
        scale = self.edges["scale"].to("cpu", self.x.dtype)
        if reached is None:
            ends = torch.cat([torch.from_numpy(own.indices).long(), nodes])
            reached, position = torch.unique(ends, return_inverse=True)
        else:
            own = own[:, reached.numpy()]
            position = torch.cat([torch.from_numpy(own.indices).long(), torch.searchsorted(reached, nodes)])
        counts = torch.from_numpy(own.indptr).diff().long()
        row = torch.cat([torch.repeat_interleave(torch.arange(len(nodes)), counts), torch.arange(len(nodes))])
        weight = torch.cat([torch.from_numpy(own.data), torch.ones(len(nodes))])
        weight = weight * scale[nodes][row] * scale[reached][position]
        size = (len(nodes), len(reached))
        return reached, sparse_entries(torch.stack([row, position]), weight, size).coalesce()


def _padded(groups: Sequence[tuple[Tensor, Tensor]]) -> Tensors:
    """Pad the groups' features and sparse rows to the form of :meth:`Scene.neighbourhoods`."""
    nodes, rows = (max(second.shape[axis] for _, second in groups) for axis in (0, 1))
    x = pad_sequence([features for features, _ in groups], batch_first=True)
    joined = x.new_zeros(len(groups), nodes, rows, device="cpu")
    for dense, (_, second) in zip(joined, groups, strict=True):
        dense[: second.shape[0], : second.shape[1]] = second.to_dense()
    return {"x": x, "second": joined.to(x.device)}


def _view(features: Tensor, trains: bool) -> View:
    """Return a view of features in the form with the fastest product, and gradient if ``trains``."""
    if not trains:
        return View(compact(features))
    if features.device.type != "cpu" or not _is_sparse(features):  # sparse training is not measured on other devices
        return View(features)
    return View(compressed_rows(features), transposed=compressed_rows(features.mT))


def _is_sparse(features: Tensor) -> bool:
    """Return whether few of the features are non-zero."""
    return int(torch.count_nonzero(features)) / max(features.numel(), 1) < SPARSE_BELOW


def compact(features: Tensor) -> Tensor:
    """Return features as a sparse matrix where few of them are non-zero."""
    return features.to_sparse().coalesce() if _is_sparse(features) else features


class Part(NamedTuple):
    """The training, validation or test nodes, and the graph that contains them.

    Shapes:
        nodes ``(m,)`` positions in the scene; classes ``(m,)``.
    """

    scene: Scene
    nodes: Tensor
    classes: Tensor

    def whole(self, normalised: bool) -> Batch:
        """Return the whole graph for training on these nodes: all other nodes have weight 0.

        Nodes of unknown class get class 0.
        """
        weight = torch.zeros(len(self.scene), device=self.nodes.device).index_fill_(0, self.nodes, 1.0)
        return Batch(self.scene.inputs(normalised), self.scene.y.clamp(min=0), weight)


def parts_of(graph: GraphData, device: torch.device) -> dict[str, Part]:
    """Return the training, validation and test nodes: on the whole graph or, inductively, each on its own subgraph."""
    ids = {"train": graph.train, "val": graph.val, "test": graph.test}
    if not graph.inductive:
        whole = Scene(graph.x, graph.adjacency, graph.y, device)
        return {name: Part(whole, nodes.to(device), whole.y[nodes.to(device)]) for name, nodes in ids.items()}
    parts = {}
    for name, nodes in ids.items():
        scene = Scene(graph.x[nodes], graph.adjacency.induced(nodes), graph.y[nodes], device)
        parts[name] = Part(scene, torch.arange(len(nodes), device=device), scene.y)
    return parts
