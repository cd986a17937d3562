"""Selections without training: real texts chosen greedily for ridge regression, and k-means centroids."""

import torch
from torch import Tensor

from mmdistill.abilities import Embeds
from mmdistill.allocation import require_members, shares_of
from mmdistill.coresets import require_samples
from mmdistill.errors import ConfigError
from mmdistill.parameterizations.raw import RealSamples
from mmdistill.rules import k_means, random_subset
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, Task
from mmdistill.text.judges import centred_targets

SELECTIONS = ("centroids",)
"""Baselines for sentence points, besides real texts."""
MOST = 6000
"""The largest number of texts that are compared pairwise; from more texts, this many are drawn."""
RIDGE = 0.1
"""Absolute ridge for unit vectors; chosen on development texts (TREC, SST-2, 1 and 10 per class, other readers)."""


def greedy_ridge(kernel: Tensor, targets: Tensor, labels: Tensor, counts: Tensor, ridge: float = RIDGE) -> Tensor:
    r"""Choose samples greedily, each the one that most reduces the loss of ridge regression on all samples.

    Let :math:`k` and :math:`R` be the residual kernel and targets given the samples chosen so far. Adding sample j
    changes the prediction by :math:`k_{\cdot j} (k_{jj} + \lambda)^{-1} R_j`, so the loss becomes

    .. math:: \sum_i \|R_i - k_{ij} a_j\|^2, \quad a_j = R_j / (k_{jj} + \lambda)

    One matrix product evaluates it for all candidates; kernel and residuals then get a rank-one update.

    Args:
        kernel: ``(N, N)``.
        targets: ``(N, C)`` targets to predict.
        labels: ``(N,)`` classes.
        counts: ``(C,)`` number of samples to choose per class.
        ridge: lambda, absolute.
    Returns:
        Indices in class-major order, within a class in the order of choice.
    Raises:
        DataError: a class has fewer samples than asked for.
    """
    require_members(torch.bincount(labels.cpu(), minlength=len(counts)), counts.cpu())
    k, residual = kernel.clone(), targets.clone().to(kernel)
    remaining = counts.clone().to(k.device)
    is_free = torch.ones(len(k), dtype=torch.bool, device=k.device)
    labels = labels.to(k.device)
    order: list[int] = []
    for _ in range(int(counts.sum())):
        coefficients = residual / (k.diagonal() + ridge)[:, None]
        gain = 2 * ((k @ residual) * coefficients).sum(1) - k.square().sum(0) * coefficients.square().sum(1)
        candidates = (is_free & (remaining[labels] > 0)).nonzero().flatten()
        best = int(candidates[gain[candidates].argmax()])
        order.append(best)
        is_free[best] = False
        remaining[labels[best]] -= 1
        column = k[:, best].clone()
        residual -= column[:, None] * coefficients[best]
        k -= column[:, None] * column[None] / (column[best] + ridge)
    chosen = torch.tensor(order, device=labels.device)
    return chosen[labels[chosen].argsort(stable=True)]


def random_texts(task: Task, budget: int, settings: Settings, draws: Draws) -> RealSamples:
    """Return random real texts, which take as many bytes as :func:`selected_texts`."""
    counts = shares_of(task, budget).counts
    require_samples(task, counts)
    return RealSamples(task, random_subset(task.labels, counts, draws))


def selected_texts(task: Task, budget: int, settings: Settings, draws: Draws) -> RealSamples:
    """Return real texts chosen by :func:`greedy_ridge` on the encoder's points, with their own labels.

    Raises:
        ConfigError: a task without sentence points.
        DataError: a class with fewer texts than are asked for.
    """
    if not isinstance(task, Embeds) or task.labels is None or task.num_classes is None:
        raise ConfigError(f"texts are chosen by their sentence points, and {task.describe().data!r} has none")
    labels, classes = task.labels, task.num_classes
    counts = shares_of(task, budget).counts
    require_samples(task, counts)
    pool = torch.arange(len(labels))
    if len(pool) > MOST:
        share = (torch.bincount(labels, minlength=classes) * (MOST / len(labels))).long()
        pool = random_subset(labels, torch.maximum(share, counts), draws.fold("pool"))
    points = task.embedding()[pool.to(task.device)]
    targets = centred_targets(labels[pool].to(task.device), classes)
    chosen = pool[greedy_ridge(points @ points.T, targets, labels[pool], counts).cpu()]
    return RealSamples(task, chosen)


def class_centroids(task: Task, counts: Tensor, draws: Draws) -> Tensor:
    """Return the k-means centroids of each class's sentence points, class after class.

    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), d)``.
    Raises:
        ConfigError: a task without sentence points.
        DataError: a class with fewer texts than centroids are asked for.
    """
    if not isinstance(task, Embeds):
        raise ConfigError(f"centroids are those of sentence points, and {task.describe().data!r} has none")
    require_samples(task, counts)
    return k_means(task.embedding(), task.labels, counts, draws.fold("k-means"))


def centroid_batch(task: Task, counts: Tensor, draws: Draws) -> Batch:
    """Return the centroids of :func:`class_centroids` as a batch with hard labels and weights 1.

    Shapes:
        counts ``(C,)``; returns n = ``counts.sum()`` points ``(n, d)`` with class indices and weights ``(n,)``.
    """
    points = class_centroids(task, counts, draws)
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts).to(points.device)
    return Batch(points, classes, torch.ones(len(points), device=points.device))
