"""Selections of real users as baselines: those who do most, cluster means, and those whom a proxy finds hardest."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.metrics import CHUNK_NUMBERS, sample_negatives
from mmdistill.runtime import Draws

SELECTIONS = ("head", "clusters", "svp")
PROXY_DIMENSIONS = 16
PROXY_NEGATIVES = 50


def embed_users(train: sparse.csr_array, dimensions: int) -> npt.NDArray[np.float32]:
    """Return every user's leading coordinates in the singular space of the rows at unit length, ``(users, d)``."""
    from sklearn.decomposition import TruncatedSVD  # here, since importing it takes long

    sizes = np.sqrt(np.maximum(np.asarray(train.sum(1)).ravel(), 1))
    scaled = train.multiply(1 / sizes[:, None]).tocsr()
    kept = min(dimensions, min(train.shape) - 1)
    if kept < 1:
        return np.ascontiguousarray(scaled.toarray(), dtype=np.float32)
    return np.ascontiguousarray(TruncatedSVD(kept, random_state=0).fit_transform(scaled), dtype=np.float32)


def select_users(
    data: Interactions, kind: str, count: int, points: Callable[[], npt.NDArray[np.float32]], draws: Draws
) -> Tensor:
    """Return the rows of a selection, ``(count, items)`` in [0, 1].

    Args:
        data: the real interactions.
        kind: ``head`` (the users with most interactions), ``clusters`` (the mean rows of k-means clusters) or ``svp``
            (selection via proxy: the users whom a small factorisation ranks worst).
        count: how many.
        points: gives what :func:`embed_users` does, in which users are clustered.
        draws: the key.

    Raises:
        DataError: more than there are.

    Source: Coleman et al., ICLR 2020; Sachdeva et al., WSDM 2022 (selection via proxy for interactions).
    """
    if count > data.num_users:
        raise DataError(f"{count} users were asked for, but {data.name!r} has {data.num_users}")
    if kind == "clusters":
        return cluster_means(data, count, points(), draws)
    order = -data.lengths("train") if kind == "head" else proxy_auc(data, draws)
    return data.rows(np.argsort(order, kind="stable")[:count])


def cluster_means(data: Interactions, count: int, points: npt.NDArray[np.float32], draws: Draws) -> Tensor:
    """Return the mean training row of each k-means cluster of users' points, ``(count, items)``."""
    from sklearn.cluster import KMeans

    train = data.parts["train"]
    labels = KMeans(count, n_init=1, random_state=draws.integer() % 2**32).fit_predict(points)
    sizes = np.maximum(np.bincount(labels, minlength=count), 1)
    pick = sparse.csr_array((1 / sizes[labels], (labels, np.arange(len(labels)))), shape=(count, len(labels)))
    return torch.from_numpy(np.asarray((pick @ train).toarray(), dtype=np.float32))


def proxy_auc(data: Interactions, draws: Draws, dimensions: int = PROXY_DIMENSIONS) -> npt.NDArray[np.float64]:
    """Return how well a small factorisation tells each user's training items from others, ``(users,)``: an AUC each.

    Raises:
        DataError: too few users or items for a proxy.
    """
    from sklearn.decomposition import TruncatedSVD

    train = data.parts["train"]
    kept = min(dimensions, min(train.shape) - 1)
    if kept < 1:
        raise DataError(f"{data.name!r} has too few users or items for a proxy to rank")
    svd = TruncatedSVD(kept, random_state=0)
    users = torch.from_numpy(np.ascontiguousarray(svd.fit_transform(train), dtype=np.float32))
    items = torch.from_numpy(np.ascontiguousarray(svd.components_.T, dtype=np.float32))
    found = []
    size = max(1, CHUNK_NUMBERS // data.num_items)
    for start in range(0, data.num_users, size):
        chosen = np.arange(start, min(start + size, data.num_users))
        negatives = sample_negatives(data.rows(chosen), PROXY_NEGATIVES, draws.fold("proxy", start))
        drawn, own, factors = negatives >= 0, train[chosen], users[start : start + size]
        row, place = drawn.nonzero(as_tuple=True)
        others = torch.full(drawn.shape, torch.inf)
        others[row, place] = _scores(factors, items, row, negatives[row, place])
        lengths, column = torch.from_numpy(np.diff(own.indptr)).long(), torch.from_numpy(own.indices)
        row = torch.repeat_interleave(lengths)
        mine = torch.full((len(chosen), int(lengths.max())), -torch.inf)  # which beats none
        mine[torch.arange(mine.shape[1]) < lengths[:, None]] = _scores(factors, items, row, column)
        beaten = torch.searchsorted(others.sort(1).values, mine).sum(1)
        found.append(beaten.double() / (lengths * drawn.sum(1)).clamp(min=1))
    return torch.cat(found).numpy()


def _scores(users: Tensor, items: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the scores ``(p,)`` of pairs of a user and an item, of their factors ``(n, d)`` and ``(items, d)``."""
    portion = CHUNK_NUMBERS // items.shape[1]
    pairs = zip(torch.split(row, portion), torch.split(column, portion), strict=True)
    return torch.cat([(users[user] * items[item]).sum(1) for user, item in pairs])
