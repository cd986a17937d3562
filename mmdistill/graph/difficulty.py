"""How hard the nodes of a graph are to learn: how mixed the classes around them are (GEOM)."""

import torch
from torch import Tensor

from mmdistill.graph.adjacency import Adjacency
from mmdistill.labels import one_hot


def neighbourhood_entropy(adjacency: Adjacency, classes: Tensor, nodes: Tensor) -> Tensor:
    r"""Return how mixed the classes of nodes and their neighbours are, 0 where these are of one class.

    .. math:: -\sum_c p_c(v) \log p_c(v), \quad
        p_c(v) = |\{u \in \mathcal{N}(v) \cup \{v\} : y_u = c\}| \,/\, |\mathcal{N}(v) \cup \{v\}|

    Args:
        adjacency: the edges, of which weights do not count.
        classes: of all nodes.
        nodes: those asked for.
    Shapes:
        on the CPU; classes ``(N,)`` int64 and nodes ``(n,)``; returns ``(n,)``.
    Differs from: the published code, which counts a node twice beside its neighbours.
    Source: Zhang et al., ICML 2024 (GEOM), whose code takes the local measure of Wei et al., WSDM 2023 (CLNode).
    """
    each = one_hot(classes, int(classes.max()) + 1)
    around = torch.from_numpy(adjacency.rows(nodes).sign() @ each.numpy()) + each[nodes]
    found: Tensor = torch.special.entr(around / around.sum(1, keepdim=True)).sum(1)
    return found
