"""Matrix factorisation as a judge, and the conversion of weighted rows to binary ones that it needs."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.errors import UnsupportedError, to_install
from mmdistill.recsys.models import Fit, Recommender

WEIGHT = 0.5
"""Alpha: an interaction counts 1 + alpha times as much as a missing one."""
SWEEPS = 15
"""Alternating updates of the users' and the items' factors."""


class Factorisation(Recommender):
    """Matrix factorisation of implicit feedback by alternating least squares, from the ``implicit`` package.

    A row of mass m stands for its m heaviest items, so weighted users are read as binary ones. Real users, whom the
    fit never saw, get their factors by one more least-squares step with the items' factors held fixed.

    Args:
        rows: ``(n, items)`` users to fit on, sparse.
        seed: seed of the initial factors.
        factors: number of factors.
        ridges: regularisation strengths to choose from.

    Raises:
        UnsupportedError: ``implicit`` is not installed.

    Source: Hu, Koren and Volinsky, ICDM 2008.
    """

    def __init__(
        self,
        rows: sparse.csr_array,
        seed: int = 0,
        factors: int = 64,
        ridges: Sequence[float] = (1.0, 3.0, 10.0, 30.0),
    ) -> None:
        self.als = _import_als()
        self.ridges = tuple(ridges)
        self.options = {"factors": min(factors, *rows.shape), "iterations": SWEEPS, "random_state": seed}
        self.rows = sparse.csr_matrix(rows, dtype=np.float32)

    def fit(self, ridge: float) -> Fit:
        """Fit with a regularisation strength and return the function that scores users."""
        model = self.als(regularization=ridge, num_threads=1, **self.options)
        with _without_thread_advice():
            model.fit(self._confidence(self.rows), show_progress=False)
        items = torch.from_numpy(np.asarray(model.item_factors))

        def score(known: Tensor, features: Tensor) -> Tensor:
            context = self._confidence(sparse.csr_matrix((known > 0).cpu().numpy().astype(np.float32)))
            users = torch.from_numpy(np.asarray(model.recalculate_user(np.arange(len(known)), context)))
            scores: Tensor = users @ items.T
            return scores.to(known)

        return score

    def _confidence(self, rows: sparse.csr_matrix) -> sparse.csr_matrix:
        weighted = rows.copy()
        weighted.data = 1 + WEIGHT * weighted.data
        return weighted


def _import_als() -> Any:
    """Import implicit's ``AlternatingLeastSquares``.

    Raises:
        UnsupportedError: the package is missing.
    """
    try:
        with _without_thread_advice():
            return import_module("implicit.cpu.als").AlternatingLeastSquares
    except ImportError as error:
        raise UnsupportedError(
            f"matrix factorisation ('als') needs the package implicit: {to_install('recsys')}"
        ) from error


@contextmanager
def _without_thread_advice() -> Iterator[None]:
    """Within this context implicit does not warn about OpenBLAS threads, of which a fit with one thread uses none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OpenBLAS.*", category=RuntimeWarning)
        yield


def is_binary(rows: Tensor) -> bool:
    """Return whether rows hold only zeros and ones."""
    return bool(((rows == 0) | (rows == 1)).all())


def heaviest(rows: Tensor) -> sparse.csr_array:
    """Return weighted rows as binary ones: a row of mass m keeps its round(m) heaviest items, at least one.

    Shapes:
        ``(n, items)`` rows in [0, 1]; returns a CSR array of ones in float32.
    """
    counts = rows.sum(1).round().clamp(min=1, max=rows.shape[1]).long()
    order = rows.topk(int(counts.max()), dim=1).indices.cpu()
    chosen = torch.arange(order.shape[1]) < counts.cpu()[:, None]
    columns = order[chosen].numpy()
    pointers = np.r_[0, np.cumsum(chosen.sum(1).numpy())]
    ones, shape = np.ones(len(columns), dtype=np.float32), (len(rows), rows.shape[1])
    binary = sparse.csr_array((ones, columns, pointers), shape=shape)
    binary.sort_indices()
    return binary
