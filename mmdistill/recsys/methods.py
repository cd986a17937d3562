"""Methods for interactions: Distill-CF as published, its mean field, from cluster means, binary, and with EASE."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.methods import Method, fresh
from mmdistill.objectives.base import Network
from mmdistill.objectives.performance import Kernel, KernelRidgeMatching, LinearKernel, multinomial, without_diagonal
from mmdistill.recsys.storage import (
    binary_interactions,
    expected_interactions,
    mean_field_interactions,
    sampled_interactions,
)
from mmdistill.recsys.task import RecsysTask
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Inputs, Task

SOURCE = "Sachdeva et al., NeurIPS 2022"
ALL_USERS = 1_000_000_000
"""As ``real_batch``: every real user in each step."""


@dataclass(frozen=True)
class AutoencoderKernel(Kernel):
    """The kernel of the task's infinitely wide autoencoder, whose depth the task knows (``--model infinite-d2``)."""

    def __call__(self, network: Network, a: Inputs, b: Inputs) -> Tensor:
        """Return the kernel of two sets of users."""
        return _recsys(network.task).kernel(network, a, b)

    def check(self, task: Task) -> None:
        """Refuse tasks of other data."""
        _recsys(task)


def _recsys(task: Task) -> RecsysTask:
    if not isinstance(task, RecsysTask):
        raise ConfigError(f"the autoencoder's kernel belongs to interactions, not to a {type(task).__name__}")
    return task


def wide_autoencoder() -> KernelRidgeMatching:
    """The infinitely wide autoencoder with a fixed ridge, as published."""
    return KernelRidgeMatching(AutoencoderKernel(), 1.0, loss=multinomial)


def learned_ridge(start: float) -> Callable[[], KernelRidgeMatching]:
    """Return a maker of the infinitely wide autoencoder whose ridge is learned from a start."""
    return lambda: KernelRidgeMatching(AutoencoderKernel(), start, loss=multinomial, learn_ridge=True)


def ease() -> KernelRidgeMatching:
    """EASE, fitted in its dual form on the synthetic users, with a learned ridge."""
    return KernelRidgeMatching(
        LinearKernel(), 1.0, "absolute", loss=multinomial, learn_ridge=True, readout=without_diagonal
    )


def _published(users: int) -> Settings:
    return Settings(
        steps=500, real_batch=ALL_USERS, optimizers={"codes": OptimizerSpec("adam", 0.04)}, validate_every=40
    )


def _mean_field(users: int) -> Settings:
    # More users fit faster and over-fit sooner: on ML-1M validation peaks near step 125 with 500 and 300 with 100.
    adam = OptimizerSpec("adam", 0.04)
    steps = 150 if users >= 300 else 400
    return Settings(steps=steps, real_batch=512, optimizers={"codes": adam, "objective": adam}, validate_every=25)


def _clusters(users: int) -> Settings:
    # Cluster means hold every user already, so many or large steps memorise users: on ML-1M validation soon falls.
    codes, ridge = OptimizerSpec("adam", 0.01, cosine=True), OptimizerSpec("adam", 0.02)
    return Settings(50, 512, optimizers={"codes": codes, "objective": ridge}, validate_every=10)


def _binary(users: int) -> Settings:
    codes, ridge = OptimizerSpec("adam", 0.06, cosine=True), OptimizerSpec("adam", 0.04)
    steps = 150 if users >= 300 else 300
    return Settings(steps, 512, optimizers={"codes": codes, "objective": ridge}, validate_every=25)


METHODS = {
    "distill-cf": Method(
        "Distill-CF",
        wide_autoencoder,
        fresh,
        _published,
        parameterization=sampled_interactions(interactions_per_user=200, mass_penalty=1e-3),
        domains=("recsys",),
        summary="kernel ridge matching with the infinite autoencoder, sampled interaction prior (slow on a CPU)",
        source=SOURCE,
    ),
    "distill-cf-meanfield": Method(
        "Distill-CF, mean field",
        learned_ridge(1.0),
        fresh,
        _mean_field,
        parameterization=mean_field_interactions(),
        domains=("recsys",),
        summary="the same with the prior's mean field and a learned ridge: about a minute",
        source=SOURCE,
    ),
    "distill-cf-clusters": Method(
        "Distill-CF from cluster means",
        learned_ridge(0.2),
        fresh,
        _clusters,
        parameterization=expected_interactions(),
        domains=("recsys",),
        summary="weighted users that keep how popular items are, from cluster means: for likelihoods (Mult-VAE) too",
        source=SOURCE,
    ),
    "distill-cf-binary": Method(
        "Distill-CF, binary users",
        learned_ridge(0.3),
        fresh,
        _binary,
        parameterization=binary_interactions(),
        domains=("recsys",),
        summary="users that are lists of items (--interactions-per-user), learned straight through: any recommender",
        source=f"{SOURCE}; straight-through estimator: Bengio et al., 2013",
    ),
    "distill-ease": Method(
        "Distill-CF with EASE",
        ease,
        fresh,
        _mean_field,
        parameterization=mean_field_interactions(),
        domains=("recsys",),
        summary="the mean field with EASE as inner model, in its dual form on the synthetic users",
        source=f"{SOURCE}; Steck, WWW 2019",
    ),
}
"""All are the same :class:`KernelRidgeMatching`; they differ in kernel, readout, parameterization and settings."""


def _reduced(users: int) -> Settings:
    codes, ridge = OptimizerSpec("adam", 0.2, cosine=True), OptimizerSpec("adam", 0.04)
    return Settings(100, 512, optimizers={"codes": codes, "objective": ridge}, validate_every=20)


REDUCED = {
    "*": {"distill-cf": replace(METHODS["distill-cf"], objective=learned_ridge(0.01), settings=_reduced)},
}
"""The sampled prior for a CPU. With the published rate and a ridge fixed at 1, rows hardly leave their flat start in a
hundred steps, nor does their mean field; with a small learned ridge and five times the rate these steps are enough."""
