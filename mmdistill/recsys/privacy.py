"""Measure how near synthetic users are to real ones, which shows copies at a glance; it guarantees no privacy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmdistill.recsys.data import Interactions
from mmdistill.recsys.factorisation import heaviest
from mmdistill.runtime import Draws

CHUNK_NUMBERS = 20_000_000
"""Pairs of users compared at once."""


@dataclass(frozen=True, eq=False)
class Nearness:
    """The nearest real user of each synthetic user: one that it copies, else the one of the largest cosine.

    Args:
        cosine: ``(n,)`` float, cosine to the nearest real user.
        user: ``(n,)`` row index of the nearest real user.
        copies: ``(n,)`` whether some real user has exactly the synthetic user's items (of a weighted row, its heaviest
            ones; see :func:`~mmdistill.recsys.factorisation.heaviest`).
        among_real: ``(m,)`` cosines of real users to their nearest other real user, for comparison.
    """

    cosine: npt.NDArray[np.float64]
    user: npt.NDArray[np.int64]
    copies: npt.NDArray[np.bool_]
    among_real: npt.NDArray[np.float64]


def nearness(data: Interactions, rows: Tensor, compared: int = 500) -> Nearness:
    """Find the nearest real user, by training interactions, of each synthetic user.

    Args:
        data: the real interactions.
        rows: ``(n, items)`` synthetic users, weighted or binary.
        compared: number of real users, drawn at random, to compare with other real users.
    """
    real = data.parts["train"]
    lengths = data.lengths("train")
    sizes = np.sqrt(lengths.astype(np.float64))
    weights = rows.double().numpy()
    norms = np.maximum(np.linalg.norm(weights, axis=1), 1e-300)
    sample = Draws(0).fold("nearness").permutation(data.num_users)[:compared].numpy()
    binary = heaviest(rows)
    counts = np.diff(binary.indptr)
    best_cosine, user = np.full(len(weights), -1.0), np.zeros(len(weights), dtype=np.int64)
    copies, among_real = np.zeros(len(weights), dtype=bool), np.full(len(sample), -1.0)
    columns = np.arange(len(weights))
    chunk = max(1, CHUNK_NUMBERS // (len(weights) + len(sample)))
    for start in range(0, data.num_users, chunk):
        part = slice(start, start + chunk)
        cosine = np.asarray(real[part] @ weights.T) / sizes[part, None] / norms
        equal = (_dense(real[part] @ binary.T) == counts) & (lengths[part, None] == counts)
        nearest = np.where(equal, cosine + 2, cosine).argmax(0)  # a copied user comes before all others
        nearest_cosine, is_copied = cosine[nearest, columns], equal.any(0)
        is_nearer = np.where(is_copied == copies, nearest_cosine > best_cosine, is_copied)
        user, best_cosine = np.where(is_nearer, start + nearest, user), np.where(is_nearer, nearest_cosine, best_cosine)
        copies |= is_copied
        others = _dense(real[part] @ real[sample].T) / sizes[part, None] / sizes[sample]
        in_part = (sample >= start) & (sample < start + chunk)
        others[sample[in_part] - start, np.flatnonzero(in_part)] = -1.0
        among_real = np.maximum(among_real, others.max(0))
    return Nearness(best_cosine, user, copies, among_real)


def _dense(matrix: Any) -> npt.NDArray[np.float64]:
    return np.asarray(matrix.toarray(), dtype=np.float64)
