"""How near synthetic users are to real ones: what a set gives away at a glance. It is no guarantee of any kind."""

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
    """The nearest real user of each synthetic one: the one whom it copies, or else by the cosine of their rows.

    Args:
        cosine: ``(n,)`` float, of that real user.
        user: ``(n,)`` the row of that user.
        copies: ``(n,)`` whether some real user has exactly the items that the synthetic one stands for (of a weighted
            row, its heaviest; see :func:`~mmdistill.recsys.factorisation.heaviest`).
        among_real: ``(m,)`` cosines of real users to their nearest other real user, to compare with.
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
        compared: real users whose nearest other user is sought, drawn at random.
    """
    real = data.parts["train"]
    lengths = data.lengths("train")
    sizes = np.sqrt(lengths.astype(np.float64))
    weights = rows.double().numpy()
    norms = np.maximum(np.linalg.norm(weights, axis=1), 1e-300)
    drawn = Draws(0).fold("nearness").permutation(data.num_users)[:compared].numpy()
    binary = heaviest(rows)
    counts = np.diff(binary.indptr)
    best, user = np.full(len(weights), -1.0), np.zeros(len(weights), dtype=np.int64)
    copies, among = np.zeros(len(weights), dtype=bool), np.full(len(drawn), -1.0)
    columns = np.arange(len(weights))
    size = max(1, CHUNK_NUMBERS // (len(weights) + len(drawn)))
    for start in range(0, data.num_users, size):
        part = slice(start, start + size)
        cosine = np.asarray(real[part] @ weights.T) / sizes[part, None] / norms
        same = (_dense(real[part] @ binary.T) == counts) & (lengths[part, None] == counts)
        place = np.where(same, cosine + 2, cosine).argmax(0)  # a copied user comes before all others
        found, copied = cosine[place, columns], same.any(0)
        nearer = np.where(copied == copies, found > best, copied)
        user, best = np.where(nearer, start + place, user), np.where(nearer, found, best)
        copies |= copied
        others = _dense(real[part] @ real[drawn].T) / sizes[part, None] / sizes[drawn]
        inside = (drawn >= start) & (drawn < start + size)
        others[drawn[inside] - start, np.flatnonzero(inside)] = -1.0
        among = np.maximum(among, others.max(0))
    return Nearness(best, user, copies, among)


def _dense(matrix: Any) -> npt.NDArray[np.float64]:
    return np.asarray(matrix.toarray(), dtype=np.float64)
