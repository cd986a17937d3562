"""Training-free small graphs that stand beside every result: means of propagated features, and a coarsened graph."""

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
    """Partition each class's training nodes by k-means on A^2 X and return the means, with A' = I.

    Shapes:
        counts ``(C,)``; returns x ``(n, d)``, class indices ``(n,)`` and weight ``(n,)``, n = ``counts.sum()``.
    Source: after Gao et al., WWW 2025 (CGC-X, which takes spectral clustering and weights by confidence).
    """
    x = class_means(task, counts, draws)
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts).to(x.device)
    return Batch({"x": x}, classes, torch.ones(len(x), device=x.device))


def coarsening(part: Part, counts: Tensor, num_classes: int) -> Batch:
    r"""Merge neighbouring nodes of the whole graph until as many are left, and return the graph of the merged ones.

    Nodes merge along edges by Ward's criterion on A^2 X. Those that no path leads to from a labelled node are left out:
    nothing is learned from them, and they would stay in place of others. A merged node has the mean features, edges
    weigh the number of those that they stand for over that of all possible ones, labels are the shares of training
    labels inside, and nodes without any weigh nothing.

    Shapes:
        counts ``(C,)``; returns n nodes, n = ``counts.sum()`` or all that are left: x ``(n, d)``, adjacency ``(n, n)``,
        targets ``(n, C)``, weight ``(n,)``.
    Raises:
        UnsupportedError: a graph too large for the tree of merges.
    Source: after Huang et al., KDD 2021 (graph coarsening as GCond's baseline); the criterion is ours.
    """
    from sklearn.cluster import AgglomerativeClustering  # here, since importing it takes long

    scene, total = part.scene, int(counts.sum())
    if len(scene) >= LARGE:
        raise UnsupportedError(f"coarsening builds a tree of all merges; {len(scene):,} nodes are too many for it")
    component = torch.from_numpy(connected_components(scene.adjacency.matrix, directed=False)[1])
    kept = torch.isin(component, component[part.nodes.cpu()]).nonzero().flatten()
    edges = scene.adjacency.induced(kept).matrix
    total = min(total, len(kept))
    merges = AgglomerativeClustering(total, connectivity=edges, linkage="ward")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*number of connected components.*", UserWarning)
        groups = merges.fit_predict(scene.propagated(HOPS).cpu()[kept].numpy())
    membership = one_hot(torch.from_numpy(groups).long(), total)
    sizes = membership.sum(0)
    x = (membership.T @ scene.x.cpu()[kept]) / sizes[:, None]
    linked = torch.from_numpy(membership.T.numpy() @ (edges @ membership.numpy()))
    adjacency = (linked / (sizes[:, None] * sizes)).clamp(max=1.0)
    adjacency.fill_diagonal_(0.0)
    labelled = membership[torch.searchsorted(kept, part.nodes.cpu())].T @ one_hot(part.classes.cpu(), num_classes)
    weight = labelled.sum(1)
    targets = torch.where(weight[:, None] > 0, labelled / weight.clamp(min=1)[:, None], 1 / num_classes)
    device = scene.device
    return Batch({"x": x.to(device), "adjacency": adjacency.to(device)}, targets.to(device), weight.to(device))
