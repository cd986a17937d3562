"""How hard the nodes of a graph are to learn: how mixed the classes around them are (GEOM)."""

import torch
from torch import Tensor

from mmdistill.graph.adjacency import Adjacency
from mmdistill.labels import one_hot


def neighbourhood_entropy(adjacency: Adjacency, classes: Tensor, nodes: Tensor) -> Tensor:
    r"""Return the entropy of the classes of each node and its neighbours, 0 where all are of one class.

    .. math:: -\sum_c p_c(v) \log p_c(v), \quad
        p_c(v) = |\{u \in \mathcal{N}(v) \cup \{v\} : y_u = c\}| \,/\, |\mathcal{N}(v) \cup \{v\}|

    Args:
        adjacency: the edges; their weights do not count.
        classes: of all nodes.
        nodes: the nodes to grade.
    Shapes:
        on the CPU; classes ``(N,)`` int64 and nodes ``(n,)``; returns ``(n,)``.
    Differs from: the published code counts the node itself twice.
    Source: Zhang et al., ICML 2024 (GEOM), whose code takes the local measure of Wei et al., WSDM 2023 (CLNode).
    """
    one_hot_classes = one_hot(classes, int(classes.max()) + 1)
    counts = torch.from_numpy(adjacency.rows(nodes).sign() @ one_hot_classes.numpy()) + one_hot_classes[nodes]
    entropy: Tensor = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1)
    return entropy
