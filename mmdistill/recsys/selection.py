"""Coreset baselines of real users: the most active, cluster means, and the hardest for a proxy."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.metrics import CHUNK_NUMBERS, sample_negatives
from mmdistill.rules import fit_k_means
from mmdistill.runtime import Draws

SELECTIONS = ("head", "clusters", "svp")
PROXY_DIMENSIONS = 16
PROXY_NEGATIVES = 50


def embed_users(train: sparse.csr_array, dimensions: int) -> npt.NDArray[np.float32]:
    """Return every user's coordinates in a truncated SVD of the rows, each scaled to unit length: ``(users, d)``."""
    from sklearn.decomposition import TruncatedSVD  # imported here since it loads slowly

    sizes = np.sqrt(np.maximum(np.asarray(train.sum(1)).ravel(), 1))
    scaled = train.multiply(1 / sizes[:, None]).tocsr()
    rank = min(dimensions, min(train.shape) - 1)
    if rank < 1:
        return np.ascontiguousarray(scaled.toarray(), dtype=np.float32)
    return np.ascontiguousarray(TruncatedSVD(rank, random_state=0).fit_transform(scaled), dtype=np.float32)


def select_users(
    data: Interactions, kind: str, count: int, points: Callable[[], npt.NDArray[np.float32]], draws: Draws
) -> Tensor:
    """Return the rows of a selection, ``(count, items)`` in [0, 1].

    Args:
        data: the real interactions.
        kind: ``head`` (the users with most interactions), ``clusters`` (the mean rows of k-means clusters) or ``svp``
            (selection via proxy: the users whom a small factorisation ranks worst).
        count: number of synthetic users.
        points: returns the users' embedding to cluster, as from :func:`embed_users`.
        draws: the key.

    Raises:
        DataError: ``count`` exceeds the number of real users.

    Source: Coleman et al., ICLR 2020; Sachdeva et al., WSDM 2022 (selection via proxy for interactions).
    """
    if count > data.num_users:
        raise DataError(f"{count} users were asked for, but {data.name!r} has {data.num_users}")
    if kind == "clusters":
        return cluster_means(data, count, points(), draws)
    order = -data.lengths("train") if kind == "head" else proxy_auc(data, draws)
    return data.rows(np.argsort(order, kind="stable")[:count])


def cluster_means(data: Interactions, count: int, points: npt.NDArray[np.float32], draws: Draws) -> Tensor:
    """Return the mean training row of each k-means cluster of users' points, ``(count, items)``.

    Where fewer users differ, clusters are left empty, which repeat the row of the nearest one.
    """
    train = data.parts["train"]
    fitted = fit_k_means(points, count, draws.integer() % 2**32, starts=1)
    filled, labels, sizes = np.unique(fitted.labels_, return_inverse=True, return_counts=True)
    shape = (len(filled), len(labels))
    averaging = sparse.csr_array((1 / sizes[labels], (labels, np.arange(len(labels)))), shape=shape)
    means = torch.from_numpy(np.asarray((averaging @ train).toarray(), dtype=np.float32))
    centroids = torch.from_numpy(fitted.cluster_centers_)
    return means[torch.cdist(centroids, centroids[filled], compute_mode="donot_use_mm_for_euclid_dist").argmin(1)]


def proxy_auc(data: Interactions, draws: Draws, dimensions: int = PROXY_DIMENSIONS) -> npt.NDArray[np.float64]:
    """Return the AUC with which a small factorisation ranks each user's training items above others, ``(users,)``.

    Raises:
        DataError: too few users or items for a proxy.
    """
    from sklearn.decomposition import TruncatedSVD

    train = data.parts["train"]
    rank = min(dimensions, min(train.shape) - 1)
    if rank < 1:
        raise DataError(f"{data.name!r} has too few users or items for a proxy to rank")
    svd = TruncatedSVD(rank, random_state=0)
    users = torch.from_numpy(np.ascontiguousarray(svd.fit_transform(train), dtype=np.float32))
    items = torch.from_numpy(np.ascontiguousarray(svd.components_.T, dtype=np.float32))
    aucs = []
    size = max(1, CHUNK_NUMBERS // data.num_items)
    for start in range(0, data.num_users, size):
        chosen = np.arange(start, min(start + size, data.num_users))
        negatives = sample_negatives(data.rows(chosen), PROXY_NEGATIVES, draws.fold("proxy", start))
        is_negative, positives, factors = negatives >= 0, train[chosen], users[start : start + size]
        row, place = is_negative.nonzero(as_tuple=True)
        negative_scores = torch.full(is_negative.shape, torch.inf)
        negative_scores[row, place] = _scores(factors, items, row, negatives[row, place])
        lengths, column = torch.from_numpy(np.diff(positives.indptr)).long(), torch.from_numpy(positives.indices)
        row = torch.repeat_interleave(lengths)
        positive_scores = torch.full((len(chosen), int(lengths.max())), -torch.inf)  # the padding beats no negative
        is_positive = torch.arange(positive_scores.shape[1]) < lengths[:, None]
        positive_scores[is_positive] = _scores(factors, items, row, column)
        beaten = torch.searchsorted(negative_scores.sort(1).values, positive_scores).sum(1)
        aucs.append(beaten.double() / (lengths * is_negative.sum(1)).clamp(min=1))
    return torch.cat(aucs).numpy()


def _scores(users: Tensor, items: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the scores ``(p,)`` of user-item pairs from the factors ``(n, d)`` and ``(items, d)``."""
    portion = CHUNK_NUMBERS // items.shape[1]
    pairs = zip(torch.split(row, portion), torch.split(column, portion), strict=True)
    return torch.cat([(users[user] * items[item]).sum(1) for user, item in pairs])
