"""Properties of a graph that can be put side by side: density, degree, homophily."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.graph.data import GraphData


class GraphProperties(NamedTuple):
    """What a graph's edges are like.

    Args:
        density: the share of pairs of nodes with an edge.
        mean_degree: the mean sum of a node's edge weights.
        homophily: the share of edge weight between nodes of one class; NaN without edges of known classes.
    """

    density: float
    mean_degree: float
    homophily: float

    def __str__(self) -> str:
        return f"density {self.density:.2g}, mean degree {self.mean_degree:.2f}, homophily {self.homophily:.2f}"


def edge_properties(edge_index: Tensor, edge_weight: Tensor, classes: Tensor) -> GraphProperties:
    """Return the properties of a graph without self-loops.

    Shapes:
        edge_index ``(2, E)``, both directions of every edge; edge_weight ``(E,)``; classes ``(n,)``, -1 where unknown.
    """
    nodes = len(classes)
    pairs = max(nodes * (nodes - 1), 1)
    ends = classes[edge_index]
    weight = torch.where((ends >= 0).all(0), edge_weight, 0.0).double()
    same = weight[ends[0] == ends[1]].sum() / weight.sum()
    return GraphProperties(
        float((edge_weight > 0).sum()) / pairs, float(edge_weight.double().sum()) / max(nodes, 1), float(same)
    )


def real_properties(graph: GraphData) -> GraphProperties:
    """Return the properties of a real graph."""
    return edge_properties(graph.edge_index, graph.edge_weight, graph.y)


def dense_properties(adjacency: Tensor, classes: Tensor) -> GraphProperties:
    """Return the properties of a dense weighted graph ``(n, n)``."""
    edges = adjacency.nonzero().T
    return edge_properties(edges, adjacency[edges[0], edges[1]], classes)
