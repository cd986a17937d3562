"""Coreset rules: pure functions that choose samples of each class by an embedding."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.allocation import require_members
from mmdistill.choices import RULES as RULES
from mmdistill.errors import ShapeError
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

CRAIG_MOST = 8192
"""The most samples of a class that CRAIG compares in pairs: 256 MiB of distances."""


def members_of(labels: Tensor | None, total: int, counts: Tensor) -> list[Tensor]:
    """Return the sample indices of each class (without classes, of one group), checked against the counts."""
    groups = [torch.arange(total)]
    if labels is not None:
        sizes = torch.bincount(labels, minlength=len(counts)).tolist()
        groups = list(torch.split(torch.argsort(labels, stable=True), sizes))[: len(counts)]
    require_members(torch.tensor([len(members) for members in groups]), counts)
    return groups


def random_subset(labels: Tensor | None, counts: Tensor, draws: Draws, total: int | None = None) -> Tensor:
    """Choose samples of each class uniformly without replacement.

    Args:
        labels: ``(N,)`` classes, or None.
        counts: how many of each class, as :func:`~mmdistill.allocation.allocate` returns.
        draws: the key.
        total: N, needed where labels is None.
    Returns:
        Indices in class-major order.
    Raises:
        DataError: a class has too few samples.
    """
    groups = members_of(labels, total or 0, counts)
    chosen = [
        members[draws.fold(index).to("cpu").permutation(len(members))[:count]]
        for index, (members, count) in enumerate(zip(groups, counts.tolist(), strict=True))
    ]
    return torch.cat(chosen)


def by_class(
    embedding: Tensor, labels: Tensor | None, counts: Tensor, rule: Callable[[Tensor, int], list[int]]
) -> Tensor:
    """Choose samples class by class; return their indices in class-major order.

    Args:
        embedding: ``(N, d)``.
        labels: ``(N,)`` classes, or None.
        counts: how many of each class.
        rule: maps a class's rows in float64 and the number to choose to the chosen row indices.
    """
    chosen = []
    for members, count in zip(members_of(labels, len(embedding), counts), counts.tolist(), strict=True):
        order = rule(embedding[members.to(embedding.device)].double(), count)
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
    return torch.cat(chosen)


def herding(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the samples whose running mean stays nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Welling, ICML 2009; survey Sec. 2.2.
    """

    def nearest_mean(points: Tensor, count: int) -> list[int]:
        centred = points - points.mean(0)
        norms, total, order = centred.square().sum(1), torch.zeros_like(points[0]), []
        for _ in range(count):
            # The new mean is (total + x) / step; these are the terms of its squared norm that depend on the sample x.
            order.append(int((norms + 2 * (centred @ total)).argmin()))
            norms[order[-1]] = torch.inf  # never chosen again
            total += centred[order[-1]]
        return order

    return by_class(embedding, labels, counts, nearest_mean)


def k_center(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the sample farthest from those chosen, starting at the one nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Sener and Savarese, ICLR 2018; survey Sec. 3.2.
    """

    def farthest(points: Tensor, count: int) -> list[int]:
        centred = points - points.mean(0)
        norms = centred.square().sum(1)
        nearest, order = torch.full_like(norms, torch.inf), [int(norms.argmin())]
        for _ in range(1, count):
            last = centred[order[-1]]
            nearest = torch.minimum(nearest, norms + last @ last - 2 * (centred @ last))
            nearest[order[-1]] = -torch.inf  # never chosen again, even if all others coincide with chosen ones
            order.append(int(nearest.argmax()))
        return order

    return by_class(embedding, labels, counts, farthest)


def k_means(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the k-means centroids of each class, ``(sum(counts), d)``, in class-major order."""
    if is_rehearsal():
        return embedding[random_subset(labels, counts, draws, len(embedding)).to(embedding.device)]
    groups = members_of(labels, len(embedding), counts)
    centroids = []
    for index, (members, count) in enumerate(zip(groups, counts.tolist(), strict=True)):
        points = embedding[members.to(embedding.device)].cpu().numpy()
        seed = draws.fold(index).integer() % 2**32
        centroids.append(torch.from_numpy(fit_k_means(points, count, seed, starts=4).cluster_centers_))
    return torch.cat(centroids).to(embedding)


def fit_k_means(points: npt.NDArray[Any], count: int, seed: int, starts: int) -> "KMeans":
    """Fit k-means from the best of some starts; where fewer points differ, some centroids coincide.

    Shapes:
        points ``(N, d)``.
    """
    from sklearn.cluster import KMeans  # here, since importing it takes seconds
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # about points that coincide
        return KMeans(count, n_init=starts, random_state=seed).fit(points)


def k_means_nearest(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Choose the samples nearest to the k-means centroids of each class, no sample twice.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    """
    centroids = iter(torch.split(k_means(embedding, labels, counts, draws).double(), counts.tolist()))

    def nearest_centroids(points: Tensor, count: int) -> list[int]:
        distances = torch.cdist(next(centroids), points)
        order = []
        for row in distances:
            order.append(int(row.argmin()))
            distances[:, order[-1]] = torch.inf
        return order

    return by_class(embedding, labels, counts, nearest_centroids)


def craig(
    residuals: Tensor, embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws, most: int = CRAIG_MOST
) -> tuple[Tensor, Tensor]:
    """Choose samples whose last-layer gradients represent those of their class, by greedy facility location.

    Each choice lowers ``sum_i min_(j in S) ||g_i - g_j||`` the most, with ``g_i = r_i (x) [h_i, 1]`` the gradient of
    the last linear layer and its bias, whose inner products are ``<r_i, r_j> (<h_i, h_j> + 1)``.

    Args:
        residuals: ``(N, C)``, derivatives of the loss with respect to the logits.
        embedding: ``(N, d)``, the last layer's inputs.
        labels: ``(N,)`` classes, or None.
        counts: how many of each class.
        draws: the key of the subsets of large classes.
        most: a class with more samples is reduced to ``most`` drawn ones, since memory grows with their square.

    Returns:
        Indices in class-major order, and the number of samples that each represents, which add up to its class's size
        (scaled up for a class that was reduced).

    Source: Mirzasoleiman, Bilmes and Leskovec, ICML 2020, Eq. 8 and Sec. 3.4.
    """
    chosen, weights, groups = [], [], members_of(labels, len(embedding), counts)
    for index, (members, count) in enumerate(zip(groups, counts.tolist(), strict=True)):
        size = len(members)
        if size > most:
            members = members[draws.fold(index).to("cpu").permutation(size)[: max(most, count)]]
        rows = members.to(embedding.device)
        r, h = residuals[rows].float(), embedding[rows].float()
        inner = (r @ r.T) * (h @ h.T + 1)
        norms = inner.diagonal()
        distances = (norms[:, None] + norms[None] - 2 * inner).clamp_min(0).sqrt()
        nearest = distances.max().expand(len(members))
        order: list[int] = []
        for _ in range(count):
            gains = (nearest[:, None] - distances).clamp_min(0).sum(0)
            gains[order] = -1.0
            order.append(int(gains.argmax()))
            nearest = torch.minimum(nearest, distances[:, order[-1]])
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
        represented = distances[:, order].argmin(1).bincount(minlength=count).cpu()
        weights.append(represented if len(members) == size else represented * (size / len(members)))
    return torch.cat(chosen), torch.cat(weights)


RULES.ship(
    {
        "herding": lambda embedding, labels, counts, draws: herding(embedding, labels, counts),
        "k-center": lambda embedding, labels, counts, draws: k_center(embedding, labels, counts),
        "k-means": lambda embedding, labels, counts, draws: k_means_nearest(
            embedding, labels, counts, draws.fold("k-means")
        ),
    }
)
"""Rules by name that choose real samples by an embedding; a user's code may add its own.

A rule is a function ``(embedding, labels, counts, draws) -> indices`` of ``(N, d)``, ``(N,)`` classes or None, the
number to choose of each class ``(C,)`` (without classes ``(1,)``) and a key. It returns ``(counts.sum(),)`` distinct
samples class after class, like :func:`by_class`, and its name is valid wherever ``herding`` is. CRAIG, which compares
gradients and returns weights, is not among them.
"""


def chosen_by(name: str, embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the rows of an embedding that a rule chooses, ``(counts.sum(),)`` int64 on the CPU.

    Raises:
        ShapeError: the rule chooses a wrong number of any class, a sample twice, or returns something else than
            indices.
    """
    given = embedding, labels, counts
    if RULES.added(name):  # a user's rule may centre the embedding in place, which may be the task's own data
        given = embedding.clone(), None if labels is None else labels.clone(), counts.clone()
    indices = RULES[name](*given, draws)
    if not isinstance(indices, Tensor) or indices.dtype != torch.long or indices.ndim != 1:
        raise ShapeError(
            f"the rule {name!r} returns the indices of samples, one tensor (n,) of int64, got {indices!r:.80}"
        )
    indices = indices.cpu()
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(embedding):
        raise ShapeError(f"the rule {name!r} chose samples beyond the {len(embedding)} that there are")
    classes = torch.zeros_like(indices) if labels is None else labels.cpu()[indices]
    expected = torch.arange(len(counts)).repeat_interleave(counts.cpu())
    if not torch.equal(classes, expected) or len(torch.unique(indices)) < len(indices):
        chosen = torch.bincount(classes, minlength=len(counts)).tolist()
        raise ShapeError(
            f"the rule {name!r} chose {chosen} different samples of the classes where {counts.tolist()} are asked for, "
            "class after class"
        )
    return indices
