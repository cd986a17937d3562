"""Performance matching by implicit gradients of a linearised network: RCIG, with its settings."""

from dataclasses import dataclass, replace

from mmdistill.image.methods.family import CIFAR, Conditions, MethodFamily
from mmdistill.image.methods.ridge import with_its_mirror
from mmdistill.method import Configured, Method
from mmdistill.networks.quadratic import AdamDescent, ConjugateGradients, QuadraticSolver
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.staggered import BusyPool
from mmdistill.objectives.base import Network
from mmdistill.objectives.implicit import ImplicitPerformance
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch


@dataclass(frozen=True)
class ImplicitSettings(Settings):
    """Settings of implicit gradients.

    Args:
        l2: lambda of the inner problem divided by the number of synthetic samples, in the embeddings' units.
        solve_steps: of each solver, for the inner and for the adjoint problem.
        solve_lr: Adam's rate in the inner problem; 0: conjugate gradients.
        adjoint_lr: Adam's rate in the adjoint problem; 0: conjugate gradients.
        pool: networks in the pool.
        pool_steps: the most training steps of a network of the pool after it has served.
    """

    l2: float = 5e-4
    solve_steps: int = 20
    solve_lr: float = 0.0
    adjoint_lr: float = 0.0
    pool: int = 30
    pool_steps: int = 15


class MirroredImplicit(ImplicitPerformance):
    """Implicit gradients whose inner problem includes the samples' mirror images, by :func:`with_its_mirror`."""

    def joined(self, network: Network, syn: Batch) -> Batch:
        """Return the samples with their mirror images, if :func:`with_its_mirror` adds them."""
        return with_its_mirror(network.task, syn)


def solver(steps: int, lr: float) -> QuadraticSolver:
    """Return Adam at the rate, or conjugate gradients if that is 0."""
    return AdamDescent(steps, lr) if lr else ConjugateGradients(steps)


def implicit(settings: ImplicitSettings) -> ImplicitPerformance:
    """Return RCIG's objective for some settings."""
    inner, adjoint = (solver(settings.solve_steps, lr) for lr in (settings.solve_lr, settings.adjoint_lr))
    return MirroredImplicit(settings.l2, inner, adjoint)


def busy_pool(settings: ImplicitSettings) -> NetworkSchedule:
    """Return a pool of networks of staggered ages that train on the synthetic set and its mirror images."""
    return BusyPool(
        settings.pool,
        settings.outer_steps,
        settings.inner_lr,
        settings.inner_batch,
        False,
        settings.pool_steps,
        with_its_mirror,
    )


def _rcig_settings(ipc: int) -> ImplicitSettings:
    """Return the published settings, for ``freponet``.

    The published code takes 10,000 steps; its own set of one image per class of CIFAR-10 took 15,000.
    """
    rate = OptimizerSpec("adabelief", 0.003)
    return ImplicitSettings(
        steps=15_000 if ipc < 10 else 10_000,
        real_batch=1024,
        optimizers={"codes": rate, "labels": rate, "objective": OptimizerSpec("adabelief", 0.03)},
        outer_steps=100,
        inner_lr=5e-5,
        inner_batch=1000,
        ema=0.99,
        ema_start=False,
    )


def _digits(ipc: int) -> ImplicitSettings:
    rate = OptimizerSpec("adabelief", 0.01, cosine=True)
    return replace(
        _rcig_settings(ipc),
        steps=200,
        real_batch=256,
        optimizers={"codes": rate, "labels": rate, "objective": OptimizerSpec("adabelief", 0.03)},
        solve_steps=5,
        ema=0.0,
    )


def _reduced(ipc: int) -> ImplicitSettings:
    """Return few steps from herded images, augmented like the judges, with few matrix-vector products in each.

    Five conjugate gradient steps give the gradient's direction (a cosine of .99 at one image per class). The rate at
    one image per class was chosen on held-out images.
    """
    rate = OptimizerSpec("adabelief", 0.03 if ipc < 10 else 0.01, cosine=True)
    return replace(
        _rcig_settings(ipc),
        steps=300 if ipc < 10 else 100,
        real_batch=64 if ipc < 10 else 128,
        optimizers={"codes": rate, "labels": rate, "objective": OptimizerSpec("adabelief", 0.03)},
        init="herding",
        augment=True,
        l2=5e-4 if ipc < 10 else 5e-3,
        solve_steps=5,
        pool=10,
        pool_steps=3,
        inner_lr=3e-4,
        ema=0.0,
    )


_rcig = Method(
    "RCIG",
    Configured(implicit),
    busy_pool,
    _rcig_settings,
    label="unrestricted",
    summary="the real loss of a linearised network of a pool, trained to its minimum on S, by implicit gradients; "
    "learned labels and scale",
    source="Loo et al., ICML 2023 (conjugate gradients for Adam at rates that the code finds and moves)",
)
IMPLICIT = MethodFamily(
    {"rcig": _rcig},
    presets={"digits": {"rcig": replace(_rcig, settings=_digits)}},
    reduced={"rcig": replace(_rcig, settings=_reduced)},
    conditions={
        "rcig": Conditions(
            protocol="rcig", model="freponet-softplus", whiten={"frepo": {**CIFAR, "tiny-imagenet": (1, 10)}}
        )
    },
)
