"""Synthetic users as a learned prior over interactions: sampled as published, its mean field, and binary users."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.labels import NoLabels
from mmdistill.parameterizations.base import Chosen, FeatureMap, Parameterization, index_bytes
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs

CHUNK_NUMBERS = 4_000_000
"""Size of the sampled draws that are made at once: 16 MB."""
KEPT_NUMBERS = 100_000_000
"""Size of the sampled draws that are kept for the backward pass, 400 MB; the others are recomputed."""
RAREST = 0.03
"""The smallest initial chance of an interaction, relative to the mean chance: 0 would get no gradient."""
LIKELIEST = 0.999
"""The largest initial chance, since 1 would get no gradient either."""


class InteractionPrior(Parameterization):
    """Logits of each synthetic user's interactions with all items; subclasses turn them into rows.

    Args:
        logits: ``(users, items)`` initial x.

    Shapes:
        a decoded batch has inputs and targets ``(users, items)`` in [0, 1], which are the same tensor.

    Raises:
        ShapeError: the logits are not a matrix.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(NoLabels(), None, None)
        if logits.ndim != 2 or 0 in logits.shape:
            raise ShapeError(f"the prior's logits are (users, items), got {tuple(logits.shape)}")
        self.logits = nn.Parameter(logits.clone())

    @abstractmethod
    def rows(self, draws: Draws) -> Tensor:
        """Return the synthetic users, ``(users, items)`` in [0, 1]."""

    def forward(self, draws: Draws) -> Batch:
        """Return the synthetic users, who are their own targets."""
        rows = self.rows(draws)
        return Batch(rows, rows, torch.ones(len(rows), device=rows.device))


class ExpectedInteractions(InteractionPrior):
    r"""Dense weighted rows, each weight the chance of an interaction.

    .. math:: X_S = \sigma(x)

    The mass of a row is free. A row that starts from the mean of real users keeps their items' frequencies, which
    likelihoods of interactions depend on.
    """

    @classmethod
    def of(cls, chances: Tensor) -> "ExpectedInteractions":
        """Build the prior from chances, ``(users, items)``, clamped a little away from 0 and 1."""
        return cls(chances.clamp(RAREST * float(chances.mean()), LIKELIEST).logit())

    def rows(self, draws: Draws) -> Tensor:
        """Return sigmoid(x); the key is not read."""
        return self.logits.sigmoid()


class MeanFieldInteractions(InteractionPrior):
    r"""Dense weighted rows: the expectation that sampled interactions tend to as tau grows.

    .. math:: X_S = \min\big(1, \gamma\, \mathrm{softmax}(x/\tau)\big)

    At a high temperature each Gumbel draw is nearly flat in its noise, and gamma of them average it away. One softmax
    takes the place of gamma, and no noise reaches the gradient.

    Args:
        logits: ``(users, items)`` initial x.
        interactions_per_user: gamma, the mass of a row before clipping.
        temperature: tau.
        mass_penalty: weight of the mean row mass in :meth:`penalty`.
        real_mass: mean row mass of real users, by which the penalty is divided.
    Raises:
        ConfigError: fewer than one interaction, or a temperature or real_mass that is not positive.
    """

    def __init__(
        self,
        logits: Tensor,
        *,
        interactions_per_user: int = 200,
        temperature: float = 10.0,
        mass_penalty: float = 0.0,
        real_mass: float = 1.0,
    ) -> None:
        super().__init__(logits)
        self.interactions_per_user = at_least_one(interactions_per_user)
        if temperature <= 0 or real_mass <= 0:
            raise ConfigError(f"temperature and real_mass must be positive, got {temperature} and {real_mass}")
        self.temperature = temperature
        self.mass_penalty = mass_penalty
        self.real_mass = real_mass

    def rows(self, draws: Draws) -> Tensor:
        """Return min(1, gamma softmax(x / tau)); the key is not read."""
        return (self.interactions_per_user * (self.logits / self.temperature).softmax(1)).clamp(max=1)

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return the weighted mean row mass of the mean field, relative to real users'; None if not penalised."""
        if self.mass_penalty == 0:
            return None
        mass = MeanFieldInteractions.rows(self, Draws(0)).sum(1).mean()
        return self.mass_penalty * mass / self.real_mass


class SampledInteractions(MeanFieldInteractions):
    r"""Rows drawn from the prior as published, with fresh noise g from the key for each of the gamma draws.

    .. math:: X_S = \min\Big(1, \sum_{j=1}^{\gamma} \mathrm{softmax}\big((x + g_j)/\tau\big)\Big)

    Differs from:
        the release, which uses one noise key twice (gamma - 1 distinct draws), and penalises the mass of the drawn
        rows; this class penalises the mass of the mean field. Before clipping, both masses are gamma.

    Source: Sachdeva et al., "Infinite recommendation networks", NeurIPS 2022, Sec. 4; survey Sec. 4.7.
    """

    def rows(self, draws: Draws) -> Tensor:
        """Return one sampled matrix."""
        options = (self.temperature, self.interactions_per_user, draws)
        total: Tensor = _GumbelSum.apply(self.logits, *options)  # type: ignore[no-untyped-call]
        return total.clamp(max=1)


class BinaryInteractions(InteractionPrior):
    r"""Binary users: each has exactly the gamma items with its largest logits.

    .. math:: X_S = \mathbb{1}[x_{ui} \text{ among the } \gamma \text{ largest of } x_u]

    The gradient passes straight through to the logits. Stored are the chosen items' indices.

    Args:
        logits: ``(users, items)`` initial x.
        interactions_per_user: gamma, exact.

    Raises:
        ConfigError: more interactions than items.

    Source: Bengio et al., 2013 (straight-through estimator); the interaction budget of Sachdeva et al., NeurIPS 2022.
    """

    even = False

    def __init__(self, logits: Tensor, *, interactions_per_user: int = 200) -> None:
        super().__init__(logits)
        self.interactions_per_user = at_least_one(interactions_per_user)
        if interactions_per_user > logits.shape[1]:
            raise ConfigError(f"{interactions_per_user} interactions per user exceed the {logits.shape[1]} items")

    def rows(self, draws: Draws) -> Tensor:
        """Return the rows of zeros and ones; the key is not read."""
        rows: Tensor = _StraightThroughTop.apply(self.logits, self.interactions_per_user)  # type: ignore[no-untyped-call]
        return rows

    def stored_bytes(self) -> int:
        """Return the bytes of all users' item indices in the smallest integer type that fits."""
        return self.logits.shape[0] * self.interactions_per_user * index_bytes(self.logits.shape[1])


def at_least_one(interactions_per_user: int) -> int:
    """Return ``interactions_per_user`` after checking that it is at least 1.

    Raises:
        ConfigError: it is smaller.
    """
    if interactions_per_user < 1:
        raise ConfigError(f"a synthetic user needs at least one interaction, got {interactions_per_user}")
    return interactions_per_user


class _StraightThroughTop(torch.autograd.Function):
    """Ones at the largest entries of each row; backward the identity."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, count: int) -> Tensor:
        best = logits.topk(count, dim=1).indices
        return torch.zeros_like(logits).scatter_(1, best, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _GumbelSum(torch.autograd.Function):
    r"""The sum of gamma Gumbel-softmax draws, a few at a time.

    With p_j the draws and c the cotangent, the gradient is
    :math:`(c \odot \sum_j p_j - \sum_j p_j \langle c, p_j \rangle) / \tau`, so the backward pass needs each draw again:
    some are kept, the others are recomputed from their keys.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, count: int, draws: Draws) -> Tensor:
        total, saved = torch.zeros_like(logits), []
        capacity = KEPT_NUMBERS if ctx.needs_input_grad[0] else 0
        for index, size in _chunks(count, logits.numel()):
            samples = _draw(logits, temperature, size, draws.fold("gumbel", index))
            total += samples.sum(0)
            capacity -= samples.numel()
            saved.append(samples if capacity >= 0 else None)
        ctx.save_for_backward(logits, total)
        ctx.saved_samples, ctx.options = saved, (temperature, count, draws)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, total = ctx.saved_tensors
        temperature, count, draws = ctx.options
        result = gradient * total
        for (index, size), samples in zip(_chunks(count, logits.numel()), ctx.saved_samples, strict=True):
            if samples is None:
                samples = _draw(logits, temperature, size, draws.fold("gumbel", index))
            inner = torch.einsum("jui,ui->ju", samples, gradient)
            result -= torch.einsum("jui,ju->ui", samples, inner)
        return result / temperature, None, None, None


def _chunks(count: int, numel: int) -> Iterator[tuple[int, int]]:
    """Yield the index and size of each chunk of draws."""
    size = max(1, CHUNK_NUMBERS // numel)
    for index, start in enumerate(range(0, count, size)):
        yield index, min(size, count - start)


def _draw(logits: Tensor, temperature: float, size: int, key: Draws) -> Tensor:
    """Return ``size`` draws of softmax((x + g) / tau), ``(size, users, items)``."""
    noisy = key.to(logits.device).gumbel(size, *logits.shape).to(logits.dtype).add_(logits)
    return noisy.div_(temperature).softmax(2)
