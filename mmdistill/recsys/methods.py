"""Methods for interactions: Distill-CF, with the sampled prior as published and with its mean field."""

from mmdistill.methods import Method, fresh
from mmdistill.objectives.kernels import FullyConnectedKernel
from mmdistill.objectives.performance import KernelRidgeMatching, multinomial
from mmdistill.recsys.synthetic import interaction_prior
from mmdistill.settings import OptimizerSpec, Settings

SOURCE = "Sachdeva et al., NeurIPS 2022"
ALL_USERS = 1_000_000_000
"""As ``real_batch``: every real user in each step."""


def _published(users: int) -> Settings:
    return Settings(
        steps=500, real_batch=ALL_USERS, optimizers={"codes": OptimizerSpec("adam", 0.04)}, validate_every=40
    )


def _mean_field(users: int) -> Settings:
    # More users fit faster and over-fit sooner: on ML-1M validation peaks near step 125 with 500 and 300 with 100.
    adam = OptimizerSpec("adam", 0.04)
    steps = 150 if users >= 300 else 400
    return Settings(steps=steps, real_batch=512, optimizers={"codes": adam, "objective": adam}, validate_every=25)


METHODS = {
    "distill-cf": Method(
        "Distill-CF",
        lambda: KernelRidgeMatching(FullyConnectedKernel(), 1.0, loss=multinomial),
        fresh,
        _published,
        parameterization=interaction_prior("sampled", interactions_per_user=200, mass_penalty=1e-3),
        domains=("recsys",),
        summary="kernel ridge matching with the infinite autoencoder, sampled interaction prior (slow on a CPU)",
        source=SOURCE,
    ),
    "distill-cf-meanfield": Method(
        "Distill-CF, mean field",
        lambda: KernelRidgeMatching(FullyConnectedKernel(), 1.0, loss=multinomial, learn_ridge=True),
        fresh,
        _mean_field,
        parameterization=interaction_prior("mean-field"),
        domains=("recsys",),
        summary="the same with the prior's mean field and a learned ridge: about a minute",
        source=SOURCE,
    ),
}
"""Both are the same :class:`KernelRidgeMatching`; they differ in parameterization and settings."""
