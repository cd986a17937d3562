"""The kernel ridge family on images: FRePo, RFAD and KIP, with their published settings and those for digits."""

import math
from dataclasses import replace

import torch

from mmdistill.labels import LabelKind, LearnedLabels
from mmdistill.methods import Method, OptimizerSpec, Settings, fresh
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.staggered import NetworkPool
from mmdistill.objectives.kernels import FullyConnectedKernel
from mmdistill.objectives.performance import KernelRidgeMatching
from mmdistill.objectives.ridge import InFloat64, MarginKernelRidge, RandomFeatureRidge
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.runtime import Draws
from mmdistill.task import Task


def scaled_labels(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build learned images whose learned labels start at (one-hot - 1/C) / sqrt(C / 10)."""
    found = raw_samples(task, budget, settings.init, label, draws)
    if isinstance(found.labels, LearnedLabels):
        with torch.no_grad():
            found.labels.values.div_(math.sqrt((task.num_classes or 10) / 10))
    return found


def network_pool(settings: Settings) -> NetworkSchedule:
    """Ten networks of staggered ages, each redrawn after ``outer_steps`` updates on the synthetic set."""
    return NetworkPool(max_age=settings.outer_steps, lr=settings.inner_lr, batch=settings.inner_batch)


def closed_form_ntk() -> KernelRidgeMatching:
    """Ridge regression under the NTK of a network with one hidden layer, in float64, against class-balanced batches."""
    return KernelRidgeMatching(InFloat64(FullyConnectedKernel("ntk", depth=1)), ridge=1e-6, view="classes")


def _frepo_settings(ipc: int) -> Settings:
    rate = OptimizerSpec("lamb", 3e-4, cosine=True)
    return Settings(
        steps=500_000,
        real_batch=1024,
        optimizers={"codes": rate, "labels": rate},
        outer_steps=100,
        inner_steps=1,
        inner_lr=3e-4,
        inner_batch=500,
    )


def _rfad_settings(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 1e-3)
    return Settings(
        steps=32_000,
        real_batch=5120,
        optimizers={"codes": rate, "labels": rate, "objective": OptimizerSpec("adam", 1e-2)},
    )


def _kip_settings(ipc: int) -> Settings:
    """Return the settings for ten classes, of which 500 images each make up the target batch."""
    rate = OptimizerSpec("adam", 0.04)
    return Settings(steps=5000, real_batch=500, optimizers={"codes": rate, "labels": rate})


RIDGE_METHODS: dict[str, Method] = {
    "frepo": Method(
        "FRePo",
        MarginKernelRidge,
        network_pool,
        _frepo_settings,
        parameterization=scaled_labels,
        label="learned",
        summary="ridge regression on the features of a pool of networks trained on S; learned labels with a margin",
        source="Zhou et al., NeurIPS 2022 (without mirrored prototypes)",
    ),
    "rfad": Method(
        "RFAD",
        RandomFeatureRidge,
        fresh,
        _rfad_settings,
        label="learned",
        summary="ridge regression on the features of fresh random networks, Platt scaling, learned labels",
        source="Loo et al., NeurIPS 2022 (Adam for AdaBelief, no pixel transform)",
    ),
    "kip": Method(
        "KIP",
        closed_form_ntk,
        fresh,
        _kip_settings,
        label="learned",
        summary="ridge regression under the closed-form NTK of a fully connected network, learned labels",
        source="Nguyen et al., ICLR 2021",
    ),
}
"""The members of the kernel ridge family that images have."""


def _digits_frepo(ipc: int) -> Settings:
    rate = OptimizerSpec("lamb", 0.01, cosine=True)
    return replace(
        _frepo_settings(ipc), steps=500, real_batch=256, optimizers={"codes": rate, "labels": rate}, inner_lr=3e-3
    )


def _digits_rfad(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.02, cosine=True)
    optimizers = {"codes": rate, "labels": rate, "objective": OptimizerSpec("adam", 0.05)}
    return replace(_rfad_settings(ipc), steps=200, real_batch=256, optimizers=optimizers)


def _digits_kip(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.02, cosine=True)
    # Augmented, since images that only suit the kernel transfer badly to judges that augment.
    return Settings(steps=300, real_batch=50, optimizers={"codes": rate, "labels": rate}, augment=True)


RIDGE_DIGITS: dict[str, Method] = {
    "frepo": replace(RIDGE_METHODS["frepo"], settings=_digits_frepo),
    "rfad": replace(RIDGE_METHODS["rfad"], settings=_digits_rfad),
    "kip": replace(RIDGE_METHODS["kip"], settings=_digits_kip),
}
"""Short runs for the 8 x 8 digits; chosen on a validation split."""
