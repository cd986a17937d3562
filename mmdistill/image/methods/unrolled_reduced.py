"""Reduced schedules of trajectory and unrolled performance matching for 28 x 28 greyscale images, and their family."""

from dataclasses import replace

from mmdistill.image.methods.family import MethodFamily
from mmdistill.image.methods.unrolled import UNROLLED_CONDITIONS, UNROLLED_METHODS, UNROLLED_PRESETS
from mmdistill.image.methods.unrolled_digits import (
    EARLY_EPOCHS,
    SHORT_LD,
    UNROLLED_DIGITS,
    experts_by_start,
    short_bptt,
    short_rat,
)
from mmdistill.image.storage import addressed
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS, experts_by
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.settings import OptimizerSpec, Settings

REDUCED_EXPERTS = FitProtocol(epochs=0, lr=0.01, momentum=0.0, weight_decay=0.0, batch=32, decay_at=(), visits=3200)
"""Epochs of a hundred steps, each on a new random part of the training images."""


def _reduced_mtt(ipc: int) -> Settings:
    """Return settings in which a student of 20 steps matches one epoch of an expert.

    To match more, the student would learn so large a rate that judges, which add momentum to it, do worse than with the
    initial images. A student learns no more than its experts know, which after four such epochs is less than ten real
    images per class teach; so from ten images per class on, starts reach later epochs.
    """
    return Settings(
        steps=120,
        real_batch=1,
        optimizers={
            "codes": OptimizerSpec("adam", 0.1 if ipc < 10 else 0.05, cosine=True),
            "objective": OptimizerSpec("adam", 1e-3),
        },
        init="herding",
        inner_steps=20,
        inner_lr=0.01,
        inner_batch=0 if ipc < 10 else 20,
        augment=True,
        experts=5,
        expert_steps=1,
        start_epochs=EARLY_EPOCHS if ipc < 10 else 15,
    )


def _reduced_late(ipc: int, rate: float, steps: int) -> Settings:
    """Return MTT's settings with targets two epochs away, slow images, and starts up to epoch 14."""
    settings = _reduced_mtt(ipc)
    optimizers = {**settings.optimizers, "codes": OptimizerSpec("adam", rate, cosine=True)}
    return replace(settings, steps=steps, optimizers=optimizers, inner_lr=0.04, expert_steps=2, start_epochs=14)


def _reduced_tesla(ipc: int) -> Settings:
    """Return MTT's settings with later targets, since an expert early in its training labels the images badly."""
    if ipc < 10:
        return replace(_reduced_mtt(ipc), steps=100, inner_lr=0.05, expert_steps=2, start_epochs=2)
    return _reduced_late(ipc, rate=0.02, steps=80)


def _reduced_haba(ipc: int) -> Settings:
    """Return slow rates and late starts: rendered bases start so well that early experts only spoil them."""
    settings = _reduced_late(ipc, rate=0.03, steps=100)
    optimizers = {**settings.optimizers, "decoder": OptimizerSpec("adam", 0.003)}
    return replace(settings, optimizers=optimizers, inner_batch=0, inner_parts=5)


def _reduced_dd(ipc: int) -> Settings:
    """Return settings with as many inner steps as published, slowly learned rates, and clipped gradients.

    Now and then a student's gradient is ten times as long as usual. Rates that grow fast lower the loss sooner, but
    then some students diverge.
    """
    return Settings(
        steps=150,
        real_batch=256,
        optimizers={
            "codes": OptimizerSpec("adam", 0.1, cosine=True),
            "objective": OptimizerSpec("adam", 0.01, cosine=True),
        },
        init="herding",
        inner_steps=30,
        inner_lr=0.05,
        inner_batch=0,
        inner_momentum=0.5,
        inner_parts=1 if ipc < 10 else 5,
        clip=0.3,
    )


def _reduced_rat(ipc: int) -> Settings:
    """Return the digits' settings with a longer training at one image per class."""
    return replace(short_rat(ipc), inner_steps=150 if ipc < 10 else 200, inner_window=30)


def _reduced_addmem(ipc: int) -> Settings:
    """Return RaT-BPTT's settings: as many inner steps as published, but gradients flow only through a window.

    From ten images per class on the rate is slow: a fast one moves memory and addresses away from their good start.
    """
    rate = 0.03 if ipc < 10 else 0.003
    return replace(_reduced_rat(ipc), optimizers={"codes": OptimizerSpec("adam", rate, cosine=True)})


_reduced_experts = experts_by_start(REDUCED_EXPERTS, replace(REDUCED_EXPERTS, lr=0.02))
UNROLLED_REDUCED: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], network=_reduced_experts, settings=_reduced_mtt),
    "tesla": replace(
        CORE_METHODS["tesla"], network=experts_by(replace(REDUCED_EXPERTS, lr=0.02)), settings=_reduced_tesla
    ),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], network=_reduced_experts, settings=_reduced_mtt),
    "ftd": replace(
        UNROLLED_METHODS["ftd"],
        network=experts_by_start(
            replace(REDUCED_EXPERTS, sam_adaptive=True), replace(REDUCED_EXPERTS, lr=0.02, sam_adaptive=True)
        ),
        settings=lambda ipc: replace(_reduced_mtt(ipc), expert_sam=0.01, expert_gap=0.3, ema=0.9),
    ),
    "haba": replace(UNROLLED_METHODS["haba"], network=_reduced_experts, settings=_reduced_haba),
    "dd": replace(CORE_METHODS["dd"], settings=_reduced_dd),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=lambda ipc: short_bptt(_reduced_dd(ipc), 100, 0.01)),
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=_reduced_addmem, parameterization=addressed()),
    "rat-bptt": replace(UNROLLED_METHODS["rat-bptt"], settings=_reduced_rat),
    "ld": SHORT_LD,
    "random-soft": UNROLLED_METHODS["random-soft"].with_settings(teacher_epochs=1),
}
"""Schedules of minutes on one core for 28 x 28 greyscale images, at width 32; experts train once in addition.

Rates were chosen by the loss on training images; AddMem's, DD's, RaT-BPTT's, HaBa's, MTT's and TESLA's, and LD's at one
image per class, were tried on held-out images.
"""
UNROLLED = MethodFamily(
    UNROLLED_METHODS,
    presets={"digits": UNROLLED_DIGITS, **UNROLLED_PRESETS},
    reduced=UNROLLED_REDUCED,
    conditions=UNROLLED_CONDITIONS,
)
"""Trajectory and unrolled performance matching."""
