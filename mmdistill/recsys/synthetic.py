"""Synthetic users as a learned prior over interactions (Distill-CF)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdistill.coresets import allocate, choose_samples
from mmdistill.errors import ConfigError, DataError, ShapeError
from mmdistill.labels import LabelKind, NoLabels
from mmdistill.methods import Parameterizer
from mmdistill.parameterizations.base import FeatureMap, Parameterization
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, Task

PriorMode = Literal["sampled", "mean-field"]


class InteractionPrior(Parameterization):
    r"""Logits of which items each synthetic user interacts with; the samples are weighted interaction rows.

    ``sampled`` draws as published, with fresh noise g from the key for each of the gamma draws:

    .. math:: X_S = \min\Big(1, \sum_{j=1}^{\gamma} \mathrm{softmax}\big((x + g_j)/\tau\big)\Big)

    ``mean-field`` replaces the draws by gamma times the softmax of x/tau, to which they tend as tau grows (each draw is
    then nearly flat in its noise, and gamma of them average it away): one softmax instead of gamma, and no noise in the
    gradient.

    Args:
        logits: ``(users, items)`` initial x.
        interactions_per_user: gamma; the mass of a row before clipping.
        temperature: tau.
        mode: ``sampled`` or ``mean-field``.
        mass_penalty: weight of the mean row mass in :meth:`penalty`.
        real_mass: what the mean row mass is divided by there: that of real users.

    Shapes:
        a decoded batch has inputs and targets ``(users, items)`` in [0, 1], which are the same tensor.

    Differs from:
        the release, which uses one noise key twice (gamma - 1 distinct draws), and whose penalty is the mass of
        the drawn rows where this is the mass of the mean field: before clipping both are gamma.

    Source: Sachdeva et al., "Infinite recommendation networks", NeurIPS 2022, Sec. 4; survey Sec. 4.7.
    """

    def __init__(
        self,
        logits: Tensor,
        *,
        interactions_per_user: int = 200,
        temperature: float = 10.0,
        mode: PriorMode = "mean-field",
        mass_penalty: float = 0.0,
        real_mass: float = 1.0,
    ) -> None:
        super().__init__(NoLabels(), None, None)
        if logits.ndim != 2 or 0 in logits.shape:
            raise ShapeError(f"the prior's logits are (users, items), got {tuple(logits.shape)}")
        if mode not in ("sampled", "mean-field"):
            raise ConfigError(f"the interaction prior is 'sampled' or 'mean-field', not {mode!r}")
        if interactions_per_user < 1 or temperature <= 0 or real_mass <= 0:
            raise ConfigError(
                "interactions_per_user, temperature and real_mass must be positive, got "
                f"{interactions_per_user}, {temperature} and {real_mass}"
            )
        self.logits = nn.Parameter(logits.clone())
        self.interactions_per_user = interactions_per_user
        self.temperature = temperature
        self.mode = mode
        self.mass_penalty = mass_penalty
        self.real_mass = real_mass

    def forward(self, draws: Draws) -> Batch:
        """Return the synthetic users; the key serves the sampled mode."""
        rows = self.mean_field() if self.mode == "mean-field" else self.sample(draws)
        return Batch(rows, rows, torch.ones(len(rows), device=rows.device))

    def mean_field(self) -> Tensor:
        """Return min(1, gamma softmax(x / tau))."""
        return (self.interactions_per_user * (self.logits / self.temperature).softmax(1)).clamp(max=1)

    def sample(self, draws: Draws) -> Tensor:
        """Return one sampled matrix.

        All gamma draws at once would take gamma times the memory of the matrix (1.5 GB for 500 users of 3706
        items). They are summed one by one, and the backward pass makes each again from its own key.
        """
        total = torch.zeros_like(self.logits)
        for index in range(self.interactions_per_user):
            key = draws.fold("gumbel", index).to(self.logits.device)
            if torch.is_grad_enabled():
                one = checkpoint(self._draw, self.logits, key, use_reentrant=False, preserve_rng_state=False)
            else:
                one = self._draw(self.logits, key)
            total = total + one
        return total.clamp(max=1)

    def _draw(self, logits: Tensor, key: Draws) -> Tensor:
        return ((logits + key.gumbel(*logits.shape)) / self.temperature).softmax(1)

    def penalty(self, features: FeatureMap) -> Tensor | None:
        """Return the weighted mean row mass, relative to real users'; None where it is not penalised."""
        if self.mass_penalty == 0:
            return None
        return self.mass_penalty * self.mean_field().sum(1).mean() / self.real_mass


MASS_RATIO = 1.5
"""Default gamma over the mean row of the real data; 200, the published value, is this on MovieLens-1M."""


def interaction_prior(
    mode: PriorMode,
    *,
    interactions_per_user: int | None = None,
    temperature: float = 10.0,
    mass_penalty: float = 0.0,
    scale: float = 1.0,
) -> Parameterizer:
    """Return a builder of priors that start from real users.

    Args:
        mode: ``sampled`` or ``mean-field``.
        interactions_per_user: gamma; by default 1.5 times the mean real row. Never more than a quarter of the items:
            with more, flat rows start at the clip, where nothing has a gradient.
        temperature: tau.
        mass_penalty: weight of the mean row mass relative to the real one.
        scale: the initial logit of an item that the real user has; others start at 0.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        info = task.describe()
        if info.domain != "recsys":
            raise ConfigError(f"an interaction prior needs user-item interactions, and {info.data!r} is {info.domain}")
        if label != "fixed":
            raise ConfigError(f"synthetic users are their own targets, so labels cannot be {label!r}")
        if budget > info.num_train:
            raise DataError(
                f"{budget} synthetic users were asked for, but {info.data!r} has {info.num_train} real ones"
            )
        counts = allocate(budget, info.budget, task.labels, task.num_classes)
        rows = task.select(choose_samples(task, settings.init, counts, draws)).inputs
        if isinstance(rows, dict):
            raise ConfigError("an interaction prior starts from one tensor of rows, not from a named dict")
        real_mass = float(rows.sum(1).mean())
        gamma = round(MASS_RATIO * real_mass) if interactions_per_user is None else interactions_per_user
        if settings.init == "noise":
            rows = draws.fold("noise").to(task.device).normal(*rows.shape)
        return InteractionPrior(
            scale * rows,
            interactions_per_user=max(1, min(gamma, rows.shape[1] // 4)),
            temperature=temperature,
            mode=mode,
            mass_penalty=mass_penalty,
            real_mass=real_mass,
        )

    return build
