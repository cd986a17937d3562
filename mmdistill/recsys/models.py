"""The recommenders that are solved in closed form: infinite-width autoencoder, EASE, popularity."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, NonFiniteError, UnsupportedError
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import RidgeScale, ridge_factor
from mmdistill.recsys.metrics import Judged, Scorer, Scorers

Fit = Callable[[Tensor, Tensor], Tensor]
"""Maps known interactions ``(n, items)`` and what :meth:`Recommender.read` made of them to scores ``(n, items)``."""

DISTILL_CF_RIDGES = (1e-5, 1e-3, 0.1, 1.0, 5.0, 50.0)
"""The infinite autoencoder's that Distill-CF's code chooses from, while it distils and where it judges."""
AUTOENCODER_RIDGES = tuple(sorted({*DISTILL_CF_RIDGES, 0.3, 20.0, 100.0}))
"""Those that judges choose from here: also the ones of the autoencoder's own code (but 0), and one between."""
MAX_EXACT = 20_000
"""The largest dense system that is solved: its float64 matrix has 3.2 GB."""
FITTED_NUMBERS = 2**26
"""Numbers of fits at several ridges that are held at once to be validated together, unless one has more: 256 MB."""


class Recommender(ABC):
    """A recommender with one hyper-parameter, a ridge, that validation data choose."""

    ridges: tuple[float, ...]
    """The ridges that validation chooses from."""
    together = 1
    """How many of them are validated together, so that users are read once for all."""

    @abstractmethod
    def fit(self, ridge: float) -> Fit:
        """Fit with a ridge and return what scores users from their known interactions and what was read of these."""

    def read(self, known: Tensor) -> Tensor:
        """Return what the scores at any ridge are made of, by default the known interactions themselves."""
        return known

    def scorer(self, ridge: float) -> Scorer:
        """Fit with a ridge and return the scoring function."""
        fit = self.fit(ridge)
        return lambda known: fit(known, self.read(known))

    def fitted(self, judged: Judged | None, others: tuple[float, ...] = ()) -> Scorer:
        """Return the scoring function at the ridge of :meth:`pick`."""
        return self.scorer(self.pick(judged, others))

    def pick(self, judged: Judged | None, others: tuple[float, ...] = ()) -> float:
        """Return the ridge of :attr:`ridges` and some others that scores best.

        Args:
            judged: scores on validation data; None where there are none: the first of the others is returned then, or
                the middle one of :attr:`ridges`.
            others: ridges that were learned with a set.
        """
        if judged is None:
            return others[0] if others else self.ridges[len(self.ridges) // 2]
        ridges = (*self.ridges, *others)
        if len(ridges) == 1:
            return ridges[0]
        found = self.validate(ridges, judged)
        return max(found, key=found.__getitem__)

    def validate(self, ridges: Sequence[float], judged: Judged) -> dict[float, float]:
        """Return each ridge's score on validation data; a system that cannot be solved scores 0."""
        found = dict.fromkeys(ridges, 0.0)
        for start in range(0, len(ridges), self.together):
            fits: dict[float, Fit] = {}
            for ridge in ridges[start : start + self.together]:
                with suppress(NonFiniteError):
                    fits[ridge] = self.fit(ridge)
            found |= zip(fits, judged(self._scorers(list(fits.values()))), strict=True)
        return found

    def _scorers(self, fits: Sequence[Fit]) -> Scorers:
        def scores(known: Tensor) -> Iterable[Tensor]:
            read = self.read(known)
            return (fit(known, read) for fit in fits)

        return scores


class InfiniteAutoencoder(Recommender):
    r"""Kernel ridge regression from rows to rows with the kernel of an infinitely wide network.

    .. math:: P = \Theta(X, X_S) (\Theta(X_S, X_S) + \lambda \tfrac{\mathrm{tr}\,\Theta}{n} I)^{-1} X_S

    Args:
        rows: ``(n, items)`` users to fit on, each counting once.
        kernel: the network's kernel.
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
        self.kernel = kernel or FullyConnectedKernel()
        self.ridges = tuple(ridges)
        self.together = max(1, FITTED_NUMBERS // max(self.rows.numel(), 1))
        with torch.no_grad():
            blocks = [self.kernel.matrix(part, self.rows).double() for part in torch.split(self.rows, chunk)]
        self.gram = torch.cat(blocks)

    @torch.no_grad()
    def read(self, known: Tensor) -> Tensor:
        """Return the kernel of users and those fitted on."""
        return self.kernel.matrix(known, self.rows)

    def fit(self, ridge: float) -> Fit:
        """Solve in float64 and return what scores from the kernel."""
        factor = positive_factor(self.gram, ridge, "trace")
        coefficients = torch.cholesky_solve(self.rows.double(), factor).to(self.rows.dtype)
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
        ConfigError: both or neither of rows and gram.
        UnsupportedError: a system too large to be solved.

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
            self.gram = gram.double()
        require_solvable(len(self.gram), "EASE", "users or items, whichever are fewer")

    def read(self, known: Tensor) -> Tensor:
        """Return, of the dual form, the products of users and those fitted on."""
        return known.float() @ self.rows.float().T if self.dual else known

    def fit(self, ridge: float) -> Fit:
        """Solve in float64 and return what scores from known interactions and, in the dual form, the products."""
        return self._dual(ridge) if self.dual else self._primal(ridge)

    def _primal(self, ridge: float) -> Fit:
        # Its diagonal is what EASE divides by, so that solving for some right-hand side would not do.
        inverse = torch.cholesky_inverse(positive_factor(self.gram, ridge, "absolute"))
        weights = -inverse / inverse.diagonal()
        weights = weights.fill_diagonal_(0).float()
        return lambda known, read: known @ weights.to(known.dtype)

    def _dual(self, ridge: float) -> Fit:
        solved = torch.cholesky_solve(self.rows, positive_factor(self.gram, ridge, "absolute"))
        own = (self.rows * solved).sum(0)
        scale = (1 / (1 - own)).float()
        solved, own = solved.float(), own.float()
        return lambda known, products: (products @ solved - own * known.float()) * scale


class Popularity(Recommender):
    """Score every item by how often it occurs in the users fitted on, whoever asks.

    Args:
        counts: ``(items,)`` the total weight of each item.
    """

    ridges = (0.0,)

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts.detach()

    def fit(self, ridge: float) -> Fit:
        """Return the same scores for everybody."""
        return lambda known, read: self.counts.to(known.dtype).expand_as(known).clone()


def require_solvable(size: int, name: str, unit: str) -> None:
    """Refuse a dense system that is too large.

    Raises:
        UnsupportedError: saying what to judge with instead.
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
