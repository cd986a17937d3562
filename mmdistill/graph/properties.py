"""Properties by which graphs are compared: density, degree, homophily, spectrum."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.graph.data import GraphData


class GraphProperties(NamedTuple):
    """Statistics of a graph's edges.

    Args:
        density: the share of pairs of nodes with an edge.
        mean_degree: the mean sum of a node's edge weights.
        homophily: the share of edge weight that joins nodes of one class; NaN without edges between known classes.
        energy: the mean squared eigenvalue of the normalised adjacency with self-loops: 1 where nodes see only
            themselves, near 0 where one step of propagation averages all of them.
    """

    density: float
    mean_degree: float
    homophily: float
    energy: float


def edge_properties(edge_index: Tensor, edge_weight: Tensor, classes: Tensor) -> GraphProperties:
    """Return the properties of a graph without self-loops.

    Shapes:
        edge_index ``(2, E)``, both directions of every edge; edge_weight ``(E,)``; classes ``(n,)``, -1 where unknown.
    """
    nodes = len(classes)
    pairs = max(nodes * (nodes - 1), 1)
    ends = classes[edge_index]
    known_weight = torch.where((ends >= 0).all(0), edge_weight, 0.0).double()
    homophily = known_weight[ends[0] == ends[1]].sum() / known_weight.sum()
    return GraphProperties(
        float((edge_weight > 0).sum()) / pairs,
        float(edge_weight.double().sum()) / max(nodes, 1),
        float(homophily),
        spectral_energy(edge_index, edge_weight, nodes),
    )


def spectral_energy(edge_index: Tensor, edge_weight: Tensor, nodes: int) -> float:
    """Return the mean squared eigenvalue of the normalised adjacency, as the sum of its squared entries over n.

    Shapes:
        edge_index ``(2, E)``; edge_weight ``(E,)``, both on the CPU and in both directions.
    """
    degree = 1 + torch.zeros(nodes, dtype=torch.float64).index_add_(0, edge_index[0], edge_weight.double())
    squares = edge_weight.double().square() / (degree[edge_index[0]] * degree[edge_index[1]])
    return float((squares.sum() + degree.reciprocal().square().sum()) / max(nodes, 1))


def real_properties(graph: GraphData) -> GraphProperties:
    """Return the properties of a real graph."""
    return edge_properties(graph.edge_index, graph.edge_weight, graph.y)


def dense_properties(adjacency: Tensor, classes: Tensor) -> GraphProperties:
    """Return the properties of a dense weighted graph ``(n, n)``."""
    edges = adjacency.nonzero().T
    return edge_properties(edges, adjacency[edges[0], edges[1]], classes)
