"""Recommenders with closed-form solutions: infinite-width autoencoder, EASE, popularity."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, NonFiniteError, UnsupportedError
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import RidgeScale, ridge_factor
from mmdistill.recsys.metrics import Scorer, Scorers, Validation

Fit = Callable[[Tensor, Tensor], Tensor]
"""Maps known interactions ``(n, items)`` and their :meth:`Recommender.features` to scores ``(n, items)``."""

DISTILL_CF_RIDGES = (1e-5, 1e-3, 0.1, 1.0, 5.0, 50.0)
"""Ridges of the infinite autoencoder that Distill-CF's code chooses from, both in distilling and in judging."""
AUTOENCODER_RIDGES = tuple(sorted({*DISTILL_CF_RIDGES, 0.3, 20.0, 100.0}))
"""Ridges that our judge chooses from: also those of the autoencoder's own code (except 0), and one in between."""
MAX_EXACT = 20_000
"""The size of the largest dense system that is solved: its float64 matrix takes 3.2 GB."""
FITTED_NUMBERS = 2**26
"""The most memory for fits that are validated together, unless a single fit takes more: 256 MB in float32."""


class Recommender(ABC):
    """A recommender with one hyper-parameter, a ridge, chosen on validation data."""

    ridges: tuple[float, ...]
    """The ridges that validation chooses from."""
    together = 1
    """How many ridges are validated in one pass over the users."""

    @abstractmethod
    def fit(self, ridge: float) -> Fit:
        """Fit with a ridge and return the function from known interactions and their features to scores."""

    def features(self, known: Tensor) -> Tensor:
        """Return features of users that all ridges share; by default the known interactions themselves."""
        return known

    def scorer(self, ridge: float) -> Scorer:
        """Fit with a ridge and return the scoring function."""
        fit = self.fit(ridge)
        return lambda known: fit(known, self.features(known))

    def fit_best(self, validation: Validation | None, others: tuple[float, ...] = ()) -> Scorer:
        """Fit with the ridge that :meth:`pick` chooses and return the scoring function."""
        return self.scorer(self.pick(validation, others))

    def pick(self, validation: Validation | None, others: tuple[float, ...] = ()) -> float:
        """Return the best ridge out of :attr:`ridges` and ``others``.

        Args:
            validation: scores on validation data; None if there are none: then the first of ``others`` is returned, or
                the middle one of :attr:`ridges`.
            others: ridges that were learned with a set.
        """
        if validation is None:
            return others[0] if others else self.ridges[len(self.ridges) // 2]
        ridges = (*self.ridges, *others)
        if len(ridges) == 1:
            return ridges[0]
        scores = self.validate(ridges, validation)
        return max(scores, key=scores.__getitem__)

    def validate(self, ridges: Sequence[float], validation: Validation) -> dict[float, float]:
        """Return each ridge's score on validation data; a system that cannot be solved scores 0."""
        scores = dict.fromkeys(ridges, 0.0)
        for start in range(0, len(ridges), self.together):
            fits: dict[float, Fit] = {}
            for ridge in ridges[start : start + self.together]:
                with suppress(NonFiniteError):
                    fits[ridge] = self.fit(ridge)
            scores |= zip(fits, validation(self._scorers(list(fits.values()))), strict=True)
        return scores

    def _scorers(self, fits: Sequence[Fit]) -> Scorers:
        def score_all(known: Tensor) -> Iterable[Tensor]:
            features = self.features(known)
            return (fit(known, features) for fit in fits)

        return score_all


def autoencoder_kernel(depth: int = 1) -> FullyConnectedKernel:
    """Return the kernel of an infinitely wide autoencoder of ``depth`` hidden layers.

    Beside the bias, users of a few items are all but parallel, and float32 cannot tell them apart. But inner products
    of interactions, which take most of the time, have nothing to cancel, and those of binary rows are exact. Gradients
    are then a fifth to a twentieth as far from float64's as those of float32 altogether at ridges of 0.1 or more: on
    Amazon Magazine by 3e-4 of their norm at 0.1 and 4e-5 at 1. At 1e-3 they are off by 2e-2, not much less than those.
    """
    return FullyConnectedKernel(depth=depth, dtype=torch.float64, inner=torch.float32)


class InfiniteAutoencoder(Recommender):
    r"""Kernel ridge regression from rows to rows with the kernel of an infinitely wide network.

    .. math:: P = \Theta(X, X_S) (\Theta(X_S, X_S) + \lambda \tfrac{\mathrm{tr}\,\Theta}{n} I)^{-1} X_S

    Args:
        rows: ``(n, items)`` users to fit on, each counting once.
        kernel: the network's kernel; None: :func:`autoencoder_kernel`.
        ridges: lambdas to choose from, in units of the mean of the kernel's diagonal.
        chunk: rows of the kernel computed at once.

    Raises:
        UnsupportedError: more users than a dense solve can take.

    Source: Sachdeva et al., "Infinite recommendation networks", NeurIPS 2022.
    """

    def __init__(
        self,
        rows: Tensor,
        kernel: FullyConnectedKernel | None = None,
        ridges: Sequence[float] = AUTOENCODER_RIDGES,
        chunk: int = 1024,
    ) -> None:
        require_solvable(len(rows), "the infinite autoencoder", "users")
        self.rows = rows.detach()
        self.kernel = kernel or autoencoder_kernel()
        self.ridges = tuple(ridges)
        self.together = max(1, FITTED_NUMBERS // max(self.rows.numel(), 1))
        exact = replace(self.kernel, inner=None)  # small ridges resolve small eigenvalues
        with torch.no_grad():
            self.gram = torch.cat([exact.matrix(part, self.rows) for part in torch.split(self.rows, chunk)])

    @torch.no_grad()
    def features(self, known: Tensor) -> Tensor:
        """Return the kernel between users and those fitted on."""
        return self.kernel.matrix(known, self.rows)

    def fit(self, ridge: float) -> Fit:
        """Solve in float64 and return the function that scores users from their kernel rows."""
        factor = positive_factor(self.gram, ridge, "trace")
        coefficients = torch.cholesky_solve(self.rows.double(), factor).to(self.gram.dtype)
        return lambda known, kernel: kernel @ coefficients


class Ease(Recommender):
    r"""The linear autoencoder with zero diagonal.

    .. math:: B = I - P\,\mathrm{diag}(P)^{-1}, \quad P = (X^\top X + \lambda I)^{-1}

    With fewer users than items the dual form is used, in which no items x items matrix appears:
    P = (I - X^T (X X^T + lambda I)^{-1} X) / lambda.

    Args:
        rows: ``(n, items)`` users to fit on; None with ``gram``.
        gram: ``(items, items)``, X^T X, for data whose rows are not held in memory.
        ridges: absolute lambdas to choose from.
    Raises:
        ConfigError: both or neither of rows and gram are given.
        UnsupportedError: the system is too large to be solved.

    Source: Steck, WWW 2019, Eq. 8.
    """

    def __init__(
        self,
        rows: Tensor | None = None,
        gram: Tensor | None = None,
        ridges: Sequence[float] = (1.0, 5.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0),
    ) -> None:
        if (rows is None) == (gram is None):
            raise ConfigError("EASE is fitted on either rows or their gram matrix")
        self.ridges = tuple(ridges)
        self.dual = rows is not None and rows.shape[0] < rows.shape[1]
        if rows is not None:
            self.rows = rows.detach().double()
            self.gram = self.rows @ self.rows.T if self.dual else self.rows.T @ self.rows
            self.together = max(1, FITTED_NUMBERS // max(self.rows.numel(), 1)) if self.dual else 1
        elif gram is not None:
            self.gram = gram
        require_solvable(len(self.gram), "EASE", "users or items, whichever are fewer")

    def features(self, known: Tensor) -> Tensor:
        """Return the products of users and those fitted on in the dual form, else the known interactions."""
        return known.float() @ self.rows.float().T if self.dual else known

    def fit(self, ridge: float) -> Fit:
        """Solve in float64 and return the scoring function, which reads the products in the dual form."""
        return self._dual(ridge) if self.dual else self._primal(ridge)

    def _primal(self, ridge: float) -> Fit:
        # EASE divides by the diagonal of the inverse, so the inverse itself is needed.
        inverse = torch.cholesky_inverse(positive_factor(self.gram, ridge, "absolute"))
        weights = -inverse / inverse.diagonal()
        weights = weights.fill_diagonal_(0).float()
        return lambda known, features: known @ weights.to(known.dtype)

    def _dual(self, ridge: float) -> Fit:
        solved = torch.cholesky_solve(self.rows, positive_factor(self.gram, ridge, "absolute"))
        diagonal = (self.rows * solved).sum(0)
        scale = (1 / (1 - diagonal)).float()
        solved, diagonal = solved.float(), diagonal.float()
        return lambda known, products: (products @ solved - diagonal * known.float()) * scale


class Popularity(Recommender):
    """Score every item by how often it occurs in the users fitted on, alike for all users.

    Args:
        counts: ``(items,)`` the total weight of each item.
    """

    ridges = (0.0,)

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts.detach()

    def fit(self, ridge: float) -> Fit:
        """Return the scoring function; nothing is fitted, and the ridge is not used."""
        return lambda known, features: self.counts.to(known.dtype).repeat(len(known), 1)


def require_solvable(size: int, name: str, unit: str) -> None:
    """Refuse a dense system that is too large.

    Raises:
        UnsupportedError: it is; the message suggests other judges.
    """
    if size > MAX_EXACT:
        raise UnsupportedError(
            f"{name} solves a dense system of size {size:,} ({unit}), and at most {MAX_EXACT:,} are solved; judge the "
            "whole of such data with 'mult-vae', 'als' or 'popularity'"
        )


def positive_factor(gram: Tensor, ridge: float, scale: RidgeScale) -> Tensor:
    """Return :func:`ridge_factor`'s lower Cholesky factor, ``(n, n)`` in float64.

    Raises:
        NonFiniteError: the matrix is not positive definite (or not finite).
    """
    factor = ridge_factor(gram, ridge, scale)
    if not bool(factor.diagonal().isfinite().all()):
        raise NonFiniteError("the ridge system is not positive definite; use a larger ridge")
    return factor
