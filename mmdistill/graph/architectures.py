"""Further judges of a condensed graph: torch-geometric's layers, adapted to weighted graphs.

A synthetic graph has a weight for each pair of nodes. Layers whose authors use no weights take them as described here,
and equal the originals where all weights are 1.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.graph.models import ModuleNetwork

ARCHITECTURES = ("gat", "graphsage", "appnp", "chebnet")
HEADS = 8
TELEPORT = 0.1
"""APPNP's share of a node's own prediction in each of its steps."""
APPNP_STEPS = 10
"""As in its paper; GCond's tester takes two."""

Edges = tuple[Tensor, Tensor]
Prepare = Callable[[Tensor, Tensor, int], Edges]


class TwoConvolutions(nn.Module):
    """Two graph convolutions with a nonlinearity and dropout between them.

    Args:
        first: the first layer.
        second: the second layer.
        nonlinearity: between them.
        dropout: of the hidden units, in training.
        prepare: turns the edges, their weights and the number of nodes into what both layers read; None: no change.
        weighted: whether the layers take weights.
    Shapes:
        x ``(n, d)``, edge_index ``(2, E)``, edge_weight ``(E,)``; returns ``(n, C)``.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        nonlinearity: Callable[[Tensor], Tensor],
        dropout: float,
        prepare: Prepare | None = None,
        weighted: bool = True,
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.nonlinearity, self.dropout, self.prepare = nonlinearity, dropout, prepare
        self.supports_edge_weight = weighted

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Return logits."""
        edges: tuple[Tensor, ...] = (edge_index,) if edge_weight is None else (edge_index, edge_weight)
        if self.prepare is not None and edge_weight is not None:
            edges = self.prepare(edge_index, edge_weight, len(x))
        hidden = F.dropout(self.nonlinearity(self.first(x, *edges)), self.dropout, self.training)
        out: Tensor = self.second(hidden, *edges)
        return out


class PredictThenPropagate(nn.Module):
    """A perceptron whose logits propagate (APPNP).

    Args:
        features: d.
        classes: C.
        width: hidden units.
        dropout: of the hidden units, in training.
        propagation: torch-geometric's APPNP.
    Shapes:
        as :class:`TwoConvolutions`.
    Source: Gasteiger et al., ICLR 2019.
    """

    def __init__(self, features: int, classes: int, width: int, dropout: float, propagation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, classes)
        self.dropout, self.propagation = dropout, propagation

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Return logits."""
        hidden = F.dropout(self.first(x).relu(), self.dropout, self.training)
        out: Tensor = self.propagation(self.second(hidden), edge_index, edge_weight)
        return out


class SharedTerms(nn.Module):
    r"""ChebNet's layer of two terms that share one weight, as papers on graph condensation judge with it.

    .. math:: (X + \hat A X) W + b

    If each term had a weight of its own, the second one would get no input from a set without edges.

    Args:
        features: input features.
        units: output features.
        propagation: multiplies X by the normalised adjacency with self-loops.
    Shapes:
        x ``(n, features)``, edge_index ``(2, E)``, edge_weight ``(E,)``; returns ``(n, units)``.
    Source: Defferrard et al., NeurIPS 2016, as in the code of Jin et al., ICLR 2022.
    """

    def __init__(self, features: int, units: int, propagation: nn.Module) -> None:
        super().__init__()
        self.linear, self.propagation = nn.Linear(features, units), propagation

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Return the layer's output."""
        out: Tensor = self.linear(x + self.propagation(x, edge_index, edge_weight))
        return out


def averaging(edge_index: Tensor, edge_weight: Tensor, nodes: int) -> Edges:
    """Add self-loops, and scale the weights of each node's incoming edges to a sum of 1.

    Shapes:
        edge_index ``(2, E)``; edge_weight ``(E,)``; returns ``(2, E + nodes)`` and ``(E + nodes,)``.
    """
    loops = torch.arange(nodes, device=edge_index.device).expand(2, -1)
    edges = torch.cat([edge_index, loops], 1)
    weight = torch.cat([edge_weight, edge_weight.new_ones(nodes)])
    total = weight.new_zeros(nodes).index_add(0, edges[1], weight)
    return edges, weight / total[edges[1]]


def make_architecture(
    name: str, features: int, classes: int, width: int, dropout: float, device: torch.device | str
) -> ModuleNetwork:
    """Return a network of another architecture by name.

    GraphSAGE averages a node and its neighbours with their weights; APPNP and ChebNet (two terms, one weight for both)
    take weights as they are; GAT, eight heads that share the width, takes none: it reads all edges of a real graph, and
    synthetic ones of weight 0.5 or more.

    Args:
        name: one of ``ARCHITECTURES``.
        features: d.
        classes: C.
        width: hidden units.
        dropout: of the hidden units.
        device: where parameters live.
    Source: Hamilton et al., NeurIPS 2017; Velickovic et al., ICLR 2018; Gasteiger et al., ICLR 2019; Defferrard et al.,
        NeurIPS 2016.
    """
    return ModuleNetwork(partial(_module, name, features, classes, width, dropout), ("second",), device)


def _module(name: str, features: int, classes: int, width: int, dropout: float) -> nn.Module:
    from torch_geometric.nn import APPNP, GATConv, GraphConv  # seconds to import, and few judges need it

    first: nn.Module
    second: nn.Module
    if name == "appnp":
        return PredictThenPropagate(features, classes, width, dropout, APPNP(APPNP_STEPS, TELEPORT))
    if name == "chebnet":
        propagation = APPNP(1, 0.0)
        first, second = SharedTerms(features, width, propagation), SharedTerms(width, classes, propagation)
        return TwoConvolutions(first, second, torch.relu, dropout)
    if name == "graphsage":
        first, second = GraphConv(features, width, "add"), GraphConv(width, classes, "add")
        return TwoConvolutions(first, second, torch.relu, dropout, averaging)
    head_width = max(width // HEADS, 1)
    first, second = GATConv(features, head_width, HEADS), GATConv(head_width * HEADS, classes, 1)
    return TwoConvolutions(first, second, F.elu, dropout, weighted=False)
