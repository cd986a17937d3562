"""Storages of synthetic users, each with a builder that starts from real users."""

from typing import NamedTuple

from torch import Tensor

from mmdistill.abilities import Selects
from mmdistill.allocation import allocate
from mmdistill.coresets import choose_samples
from mmdistill.errors import ConfigError, DataError
from mmdistill.labels import LabelKind
from mmdistill.method import Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.recsys.synthetic import (
    BinaryInteractions,
    ExpectedInteractions,
    MeanFieldInteractions,
    SampledInteractions,
)
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind, Settings
from mmdistill.task import Batch, Task, one_tensor

TIE = 1e-3
"""Size of the noise that breaks ties between the first logits of binary users."""

MASS_RATIO = 1.5
"""Default mass of a weighted row, relative to :func:`usual_mass`; this gives 200 on ML-1M, as published."""

USUAL_DENSITY = 0.035
"""The share of all items that defaults take a mean real row to have at least: a little less than ML-1M's.

Rows of fewer items vanish beside the kernel's bias. Validation on Amazon Magazine prefers about as many.
"""


class Start(NamedTuple):
    """The starting point of a prior.

    Args:
        rows: real users' rows or noise, ``(users, items)``.
        gamma: interactions of each synthetic user.
        real_mass: mean number of interactions of the chosen real users.
    """

    rows: Tensor
    gamma: int
    real_mass: float


def binary_ratio(users: int) -> float:
    """Return the default number of a binary user's items, relative to :func:`usual_mass`.

    It exceeds 1, since each synthetic user stands for many real ones: on ML-1M, validation prefers 400 to 500 items
    with 100 users, and 700 items over 400 and over 1000 with 500 users.
    """
    return 5.3 if users >= 300 else 3.5


def usual_mass(real_mass: float, items: int) -> float:
    """Return the mean number of interactions that defaults are multiples of: real users', or more in a sparse log.

    Args:
        real_mass: the mean number of interactions of real users.
        items: the number of items.
    """
    return max(real_mass, USUAL_DENSITY * items)


def _start(
    task: Task,
    budget: int,
    settings: Settings,
    label: LabelKind,
    draws: Draws,
    ratio: float,
    interactions_per_user: int | None = None,
) -> Start:
    """Return real users as the settings choose them, and gamma.

    Gamma is the settings' value, else ``interactions_per_user``, else ``ratio`` times :func:`usual_mass`. The latter
    two are capped at a quarter of the items: beyond it, flat rows start at the clip, where nothing has a gradient.
    """
    counts = _checked_counts(task, budget, settings, label)
    rows = _real_rows(task, settings.init, counts, draws)
    items, real_mass = rows.shape[1], float(rows.sum(1).mean())
    gamma = settings.interactions_per_user
    gamma = gamma or max(1, min(interactions_per_user or round(ratio * usual_mass(real_mass, items)), items // 4))
    if settings.init == "noise":
        rows = draws.fold("noise").to(task.device).normal(*rows.shape)
    return Start(rows, gamma, real_mass)


def _checked_counts(task: Task, budget: int, settings: Settings, label: LabelKind) -> Tensor:
    """Return the number of synthetic users, ``(1,)``, after checking what a prior supports."""
    info = task.describe()
    if info.domain != "recsys":
        raise ConfigError(f"an interaction prior needs user-item interactions, and {info.data!r} is {info.domain}")
    if label != "hard":
        raise ConfigError("synthetic users are their own targets and have no labels; leave the label out")
    if budget > info.num_train:
        raise DataError(
            f"{budget} synthetic users were asked for, but {info.data!r} has {info.num_train} real ones; lower --users "
            f"(users={info.num_train} in Python)"
        )
    counts = allocate(budget, info.budget, task.labels, task.num_classes)
    gamma, items = settings.interactions_per_user, _rows(task.select(counts[:0])).shape[1]
    if gamma > items:
        raise ConfigError(f"{gamma} interactions per user were asked for, but {info.data!r} has {items} items")
    return counts


def _real_rows(task: Task, init: InitKind, counts: Tensor, draws: Draws) -> Tensor:
    """Return the rows of the real users that ``init`` chooses, ``(users, items)``."""
    return _rows(task.select(choose_samples(task, init, counts, draws)))


def _rows(batch: Batch) -> Tensor:
    return one_tensor(batch.inputs, "an interaction prior")


def mean_field_interactions() -> Storage:
    """Return a storage of users as dense weighted rows, starting from real users."""

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        rows, gamma, _ = _start(task, budget, settings, label, draws, MASS_RATIO)
        return MeanFieldInteractions(rows, interactions_per_user=gamma)

    return Storage(build, "dense weighted users")


def sampled_interactions(*, interactions_per_user: int | None = None, mass_penalty: float = 0.0) -> Storage:
    """Return a storage of users as a prior that each step samples, starting from real users.

    Args:
        interactions_per_user: gamma, capped at a quarter of the items; by default :data:`MASS_RATIO` times
            :func:`usual_mass`. A number in the settings takes precedence and is not capped.
        mass_penalty: weight of the mean row mass relative to the real one.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        rows, gamma, real_mass = _start(task, budget, settings, label, draws, MASS_RATIO, interactions_per_user)
        return SampledInteractions(rows, interactions_per_user=gamma, mass_penalty=mass_penalty, real_mass=real_mass)

    return Storage(build, "weighted users that each step samples")


def binary_interactions() -> Storage:
    """Return a storage of users as lists of items; each starts from the most frequent items of a few real users.

    A user has :func:`binary_ratio` times :func:`usual_mass` items, at most a quarter of all; a number in the settings
    takes precedence and is not capped.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        start = _start(task, budget, settings, label, draws, binary_ratio(budget))
        pooled = pooled_rows(task, *start, draws.fold("pool"))
        noise = draws.fold("ties").to(task.device).uniform(*start.rows.shape)
        return BinaryInteractions(pooled + TIE * noise, interactions_per_user=start.gamma)

    return Storage(build, "binary users, each a list of items")


def expected_interactions() -> Storage:
    """Return a storage of users as probabilities of interactions, starting from the mean rows of user clusters.

    If the settings name another start than ``real``, rows start from the users that it chooses. Rows keep their masses,
    unless the settings give interactions per user: then they are scaled to that mean mass.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        counts, key = _checked_counts(task, budget, settings, label), draws.fold("clusters")
        if settings.init == "real" and isinstance(task, Selects) and not is_rehearsal():
            rows = _rows(task.selection("clusters", counts, key))
        else:
            rows = _real_rows(task, settings.init, counts, draws)
        if settings.init == "noise":
            return ExpectedInteractions(draws.fold("noise").to(task.device).normal(*rows.shape))
        mass = settings.interactions_per_user
        return ExpectedInteractions.of(rows * (mass / float(rows.sum(1).mean())) if mass else rows)

    return Storage(build, "dense weighted users, each weight a chance")


def pooled_rows(task: Task, rows: Tensor, gamma: int, real_mass: float, draws: Draws) -> Tensor:
    """Return the mean of each row and random users' rows, enough of them for about 2 gamma interactions in all.

    If gamma is at most a real user's number of interactions, rows stay as they are.
    """
    others = max(round(2 * gamma / max(real_mass, 1.0)), 1) - 1 if gamma > real_mass else 0
    total, users = rows.clone(), task.describe().num_train
    for index in range(others):
        chosen = draws.fold(index).to("cpu").integers(users, len(rows))
        total += _rows(task.select(chosen))
    return total / (others + 1)


STORAGES = {
    "mean-field": mean_field_interactions(),
    "expected": expected_interactions(),
    "sampled": sampled_interactions(),
    "binary": binary_interactions(),
}
"""Storages that ``--parameterization`` offers, by name."""
