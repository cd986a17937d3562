"""Training-free baselines of every result: means of propagated features, and a coarsened graph."""

import warnings

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.graph.data import LARGE
from mmdistill.graph.models import HOPS
from mmdistill.graph.scene import Part
from mmdistill.graph.synthetic import class_means
from mmdistill.labels import one_hot
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Task

SELECTIONS = ("propagated-means", "coarsening")


def propagated_means(task: Task, counts: Tensor, draws: Draws) -> Batch:
    """Return the k-means centroids of each class's training nodes on A^2 X, with A' = I.

    Shapes:
        counts ``(C,)``; returns x ``(n, d)``, class indices ``(n,)`` and weight ``(n,)``, n = ``counts.sum()``.
    Source: after Gao et al., WWW 2025 (CGC-X, which takes spectral clustering and weights by confidence).
    """
    x = class_means(task, counts, draws)
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts).to(x.device)
    return Batch({"x": x}, classes, torch.ones(len(x), device=x.device))


def coarsening(part: Part, counts: Tensor, num_classes: int) -> Batch:
    r"""Merge neighbouring nodes of the whole graph until ``counts.sum()`` are left, and return the merged graph.

    Nodes merge along edges by Ward's criterion on A^2 X. Nodes without a path to a labelled node are left out: nothing
    is learned from them, and they would take the place of others. A merged node has the mean features of its members;
    an edge weighs its members' edges over all their possible ones; labels are the class shares of the members'
    training labels, and nodes without training labels have weight 0.

    Shapes:
        counts ``(C,)``; returns n nodes, n = ``counts.sum()`` or all that are left: x ``(n, d)``, adjacency ``(n, n)``,
        targets ``(n, C)``, weight ``(n,)``.
    Raises:
        UnsupportedError: a graph too large for the tree of merges.
    Source: after Huang et al., KDD 2021 (graph coarsening as GCond's baseline); the criterion is ours.
    """
    from sklearn.cluster import AgglomerativeClustering  # slow to import

    scene, total = part.scene, int(counts.sum())
    if len(scene) >= LARGE:
        raise UnsupportedError(f"coarsening builds a tree of all merges; {len(scene):,} nodes are too many for it")
    component = torch.from_numpy(connected_components(scene.adjacency.matrix, directed=False)[1])
    reachable = torch.isin(component, component[part.nodes.cpu()]).nonzero().flatten()
    edges = scene.adjacency.induced(reachable).matrix
    total = min(total, len(reachable))
    clustering = AgglomerativeClustering(total, connectivity=edges, linkage="ward")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*number of connected components.*", UserWarning)
        groups = clustering.fit_predict(scene.propagated(HOPS).cpu()[reachable].numpy())
    membership = one_hot(torch.from_numpy(groups).long(), total)
    sizes = membership.sum(0)
    x = (membership.T @ scene.x.cpu()[reachable]) / sizes[:, None]
    weight_between = torch.from_numpy(membership.T.numpy() @ (edges @ membership.numpy()))
    adjacency = weight_between / (sizes[:, None] * sizes)
    adjacency.fill_diagonal_(0.0)
    labels = membership[torch.searchsorted(reachable, part.nodes.cpu())].T @ one_hot(part.classes.cpu(), num_classes)
    weight = labels.sum(1)
    targets = torch.where(weight[:, None] > 0, labels / weight.clamp(min=1)[:, None], 1 / num_classes)
    device = scene.device
    return Batch({"x": x.to(device), "adjacency": adjacency.to(device)}, targets.to(device), weight.to(device))
