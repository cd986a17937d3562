"""A real graph as networks see it, with everything that is propagated on it computed once."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.graph.adjacency import Adjacency
from mmdistill.graph.data import GraphData
from mmdistill.graph.propagation import propagate_columns, sparse_rows
from mmdistill.task import Tensors

SPARSE_BELOW = 0.1
"""Propagated features with a smaller share of non-zeros are multiplied as sparse matrices."""


class View(NamedTuple):
    """What a two-layer or linear judge sees of m nodes, with everything that does not learn computed once.

    Shapes:
        first: ``(r, d)`` propagated features, dense or sparse, of the nodes that the m nodes read (SGC, MLP: of the m
            nodes themselves). second: ``(m, r)`` propagation after the hidden layer, or None for the identity.
    """

    first: Tensor
    second: Tensor | None = None


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
        """Return some nodes and the edges among them in the same form, normalised as the whole graph is.

        Shapes:
            nodes ``(n,)`` on the CPU, which are numbered in the given order.
        """
        own = Scene(self.x[nodes.to(self.device)], self.adjacency.induced(nodes), self.y, self.device)
        if normalised:
            own.edges["scale"] = self.edges["scale"][nodes.to(self.device)]
        return own.inputs(normalised)

    def rows(self, nodes: Tensor, hops: int, trains: bool) -> View:
        """Return what a linear judge or a perceptron sees of nodes: their own rows after some hops."""
        features = self.propagated(hops)[nodes]
        return View(features if trains else compact(features))

    def neighbourhood(self, nodes: Tensor, trains: bool) -> View:
        """Return the propagated features of the nodes' neighbours, and the rows of the adjacency that read them.

        Features that gradients pass stay dense: the transposed sparse product costs more than it saves.
        """
        own = self.adjacency.rows(nodes.cpu())
        scale = self.edges["scale"].cpu()
        reached, position = torch.unique(
            torch.cat([torch.from_numpy(own.indices).long(), nodes.cpu()]), return_inverse=True
        )
        counts = torch.from_numpy(own.indptr).diff().long()
        row = torch.cat([torch.repeat_interleave(torch.arange(len(nodes)), counts), torch.arange(len(nodes))])
        weight = torch.cat([torch.from_numpy(own.data), torch.ones(len(nodes))])
        weight = weight * scale[nodes.cpu()][row] * scale[reached][position]
        second = torch.sparse_coo_tensor(
            torch.stack([row, position]), weight, (len(nodes), len(reached)), check_invariants=False
        ).coalesce()
        by_rows = sparse_rows(
            _pointer(second, len(nodes)), second.indices()[1], second.values(), (len(nodes), len(reached))
        )
        features = self.propagated(1)[reached.to(self.device)]
        # Gradients pass the transposed product, which torch has for coordinates alone.
        return View(features if trains else compact(features), (second if trains else by_rows).to(self.device))


def _pointer(matrix: Tensor, rows: int) -> Tensor:
    """Return where each row of a coalesced matrix starts."""
    counts = torch.bincount(matrix.indices()[0], minlength=rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def compact(features: Tensor) -> Tensor:
    """Return features as a sparse matrix where few of them are non-zero."""
    density = int(torch.count_nonzero(features)) / max(features.numel(), 1)
    return features.to_sparse().coalesce() if density < SPARSE_BELOW else features


class Part(NamedTuple):
    """The training, validation or test nodes, on the graph on which they are seen.

    Shapes:
        nodes ``(m,)`` positions in the scene; classes ``(m,)``.
    """

    scene: Scene
    nodes: Tensor
    classes: Tensor


def parts_of(graph: GraphData, device: torch.device) -> dict[str, Part]:
    """Return the training, validation and test nodes: all on the whole graph, or inductively each on its own."""
    ids = {"train": graph.train, "val": graph.val, "test": graph.test}
    if not graph.inductive:
        whole = Scene(graph.x, graph.adjacency, graph.y, device)
        return {name: Part(whole, own.to(device), whole.y[own.to(device)]) for name, own in ids.items()}
    parts = {}
    for name, own in ids.items():
        scene = Scene(graph.x[own], graph.adjacency.induced(own), graph.y[own], device)
        parts[name] = Part(scene, torch.arange(len(own), device=device), scene.y)
    return parts
