"""Rules that choose samples by an embedding of them: pure functions, class by class."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmdistill.allocation import require_members
from mmdistill.choices import RULES as RULES
from mmdistill.errors import ShapeError
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws

CRAIG_MOST = 8192
"""Samples of a class whose pairs CRAIG compares: 256 MiB of distances."""


def members_of(labels: Tensor | None, total: int, counts: Tensor) -> list[Tensor]:
    """Return the sample indices of each class (of the one group without classes), checked against the counts."""
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
        counts: how many of each class, as :func:`allocate` returns.
        draws: the key.
        total: N, needed where labels is None.
    Returns:
        Indices in class-major order.
    Raises:
        DataError: a class has fewer samples than asked for.
    """
    groups = members_of(labels, total or 0, counts)
    chosen = [
        members[draws.fold(index).to("cpu").permutation(len(members))[:wanted]]
        for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True))
    ]
    return torch.cat(chosen)


def by_class(
    embedding: Tensor, labels: Tensor | None, counts: Tensor, rule: Callable[[Tensor, int], list[int]]
) -> Tensor:
    """Return the indices that a rule chooses of each class, in class-major order.

    Args:
        embedding: ``(N, d)``.
        labels: ``(N,)`` classes, or None.
        counts: how many of each class.
        rule: called with a class's rows in float64 and how many of them are wanted, class by class; returns which.
    """
    chosen = []
    for members, wanted in zip(members_of(labels, len(embedding), counts), counts.tolist(), strict=True):
        order = rule(embedding[members.to(embedding.device)].double(), wanted)
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
    return torch.cat(chosen)


def herding(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the samples whose running mean stays nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Welling, ICML 2009; survey Sec. 2.2.
    """

    def nearest_mean(points: Tensor, wanted: int) -> list[int]:
        centred = points - points.mean(0)
        norms, total, order = centred.square().sum(1), torch.zeros_like(points[0]), []
        for _ in range(wanted):
            # The mean with one more sample is (total + x) / step; of its norm this is what depends on the sample.
            order.append(int((norms + 2 * (centred @ total)).argmin()))
            norms[order[-1]] = torch.inf  # chosen once
            total += centred[order[-1]]
        return order

    return by_class(embedding, labels, counts, nearest_mean)


def k_center(embedding: Tensor, labels: Tensor | None, counts: Tensor) -> Tensor:
    """Choose greedily the sample farthest from those chosen, starting at the one nearest to the class mean.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    Source: Sener and Savarese, ICLR 2018; survey Sec. 3.2.
    """

    def farthest(points: Tensor, wanted: int) -> list[int]:
        centred = points - points.mean(0)
        norms = centred.square().sum(1)
        nearest, order = torch.full_like(norms, torch.inf), [int(norms.argmin())]
        for _ in range(1, wanted):
            last = centred[order[-1]]
            nearest = torch.minimum(nearest, norms + last @ last - 2 * (centred @ last))
            nearest[order[-1]] = -torch.inf  # never again, even where all others coincide with chosen ones
            order.append(int(nearest.argmax()))
        return order

    return by_class(embedding, labels, counts, farthest)


def k_means(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the k-means centroids of each class, ``(sum(counts), d)``, in class-major order."""
    if is_rehearsal():
        return embedding[random_subset(labels, counts, draws, len(embedding)).to(embedding.device)]
    from sklearn.cluster import KMeans  # here, since importing it takes seconds

    groups = members_of(labels, len(embedding), counts)
    centroids = []
    for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True)):
        points = embedding[members.to(embedding.device)].cpu().numpy()
        seed = draws.fold(index).integer() % 2**32
        fitted = KMeans(wanted, n_init=4, random_state=seed).fit(points)
        centroids.append(torch.from_numpy(fitted.cluster_centers_))
    return torch.cat(centroids).to(embedding)


def k_means_nearest(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Choose the samples nearest to the k-means centroids of each class, no sample twice.

    Shapes:
        embedding ``(N, d)``; returns indices in class-major order.
    """
    centroids = iter(torch.split(k_means(embedding, labels, counts, draws).double(), counts.tolist()))

    def nearest_centroids(points: Tensor, wanted: int) -> list[int]:
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
    """Choose samples whose last-layer gradients stand for those of their class, by greedy facility location.

    Each choice lowers ``sum_i min_(j in S) ||g_i - g_j||`` the most, with ``g_i = r_i (x) [h_i, 1]`` the gradient of
    the last linear layer and its bias, whose inner products are ``<r_i, r_j> (<h_i, h_j> + 1)``.

    Args:
        residuals: ``(N, C)``, derivatives of the loss with respect to the logits.
        embedding: ``(N, d)``, the last layer's inputs.
        labels: ``(N,)`` classes, or None.
        counts: how many of each class.
        draws: the key of the subsets of large classes.
        most: a class with more samples is represented by so many drawn ones, since memory grows with their square.

    Returns:
        Indices in class-major order, and how many samples each of them stands for, which add up to its class; of a
        class of which some were drawn, in proportion.

    Source: Mirzasoleiman, Bilmes and Leskovec, ICML 2020, Eq. 8 and Sec. 3.4.
    """
    chosen, weights, groups = [], [], members_of(labels, len(embedding), counts)
    for index, (members, wanted) in enumerate(zip(groups, counts.tolist(), strict=True)):
        whole = len(members)
        if whole > most:
            members = members[draws.fold(index).to("cpu").permutation(len(members))[: max(most, wanted)]]
        own = members.to(embedding.device)
        r, h = residuals[own].float(), embedding[own].float()
        inner = (r @ r.T) * (h @ h.T + 1)
        norms = inner.diagonal()
        distances = (norms[:, None] + norms[None] - 2 * inner).clamp_min(0).sqrt()
        nearest = distances.max().expand(len(members))
        order: list[int] = []
        for _ in range(wanted):
            gains = (nearest[:, None] - distances).clamp_min(0).sum(0)
            gains[order] = -1.0
            order.append(int(gains.argmax()))
            nearest = torch.minimum(nearest, distances[:, order[-1]])
        chosen.append(members[torch.tensor(order, dtype=torch.long)])
        stands_for = distances[:, order].argmin(1).bincount(minlength=wanted).cpu()
        weights.append(stands_for if len(members) == whole else stands_for * (whole / len(members)))
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
"""What chooses real samples by an embedding of them, by name; a user's code may add its own.

A rule is a function ``(embedding, labels, counts, draws) -> indices`` of ``(N, d)``, ``(N,)`` classes or None, how many
of each class ``(C,)`` (one number without classes) and a key. It returns ``(counts.sum(),)`` different samples class
after class, as :func:`by_class` does, and is known wherever ``herding`` is. CRAIG, which looks at gradients and weighs
what it chooses, is no rule.
"""


def chosen_by(name: str, embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
    """Return the rows of an embedding that a rule chooses, ``(counts.sum(),)`` int64 on the CPU.

    Raises:
        ShapeError: the rule chooses another number of any class, a sample twice, or something else than indices.
    """
    found = RULES[name](embedding, labels, counts, draws)
    if not isinstance(found, Tensor) or found.dtype != torch.long or found.ndim != 1:
        raise ShapeError(
            f"the rule {name!r} returns the indices of samples, one tensor (n,) of int64, got {found!r:.80}"
        )
    found = found.cpu()
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < len(embedding):
        raise ShapeError(f"the rule {name!r} chose samples beyond the {len(embedding)} that there are")
    classes = torch.zeros_like(found) if labels is None else labels.cpu()[found]
    wanted = torch.arange(len(counts)).repeat_interleave(counts.cpu())
    if not torch.equal(classes, wanted) or len(torch.unique(found)) < len(found):
        own = torch.bincount(classes, minlength=len(counts)).tolist()
        raise ShapeError(
            f"the rule {name!r} chose {own} different samples of the classes where {counts.tolist()} are asked for, "
            "class after class"
        )
    return found
