"""Short runs of trajectory and unrolled performance matching for the 8 x 8 digits."""

from collections.abc import Callable
from dataclasses import replace

from mmdistill.image.methods.unrolled import UNROLLED_METHODS, ld_settings
from mmdistill.image.storage import addressed
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS, experts_by, trained_on_s
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.settings import OptimizerSpec, Settings

DIGITS_EXPERTS = FitProtocol(epochs=0, lr=0.02, momentum=0.0, weight_decay=0.0, batch=64, decay_at=())
"""Smaller minibatches and twice the published rate, so that an epoch of the small data set moves an expert."""
DIGITS_FAST_EXPERTS = replace(DIGITS_EXPERTS, lr=0.1)
"""Experts that learn the digits fast: they label TESLA's images, and ten images per class match them."""
EARLY_EPOCHS = 3
"""After this many epochs, experts still know less than ten real images per class teach."""


def experts_by_start(early: FitProtocol, late: FitProtocol) -> Callable[[Settings], NetworkSchedule]:
    """Return experts that train by ``early`` if all starts are within :data:`EARLY_EPOCHS`, else by ``late``."""
    early_experts, late_experts = experts_by(early), experts_by(late)
    return lambda settings: (early_experts if settings.start_epochs <= EARLY_EPOCHS else late_experts)(settings)


def _digits_dd(ipc: int) -> Settings:
    return Settings(
        steps=200,
        real_batch=256,
        optimizers={
            "codes": OptimizerSpec("adam", 0.1, cosine=True),
            "objective": OptimizerSpec("adam", 0.01, cosine=True),
        },
        init="herding",
        inner_steps=15,
        inner_lr=0.05,
        inner_batch=0,
        inner_momentum=0.5,
        clip=0.3,
    )


def short_rat(ipc: int) -> Settings:
    """Return settings with enough steps for students to learn the digits; at one image per class more do not help."""
    settings = Settings(
        steps=150,
        real_batch=256,
        optimizers={"codes": OptimizerSpec("adam", 0.05, cosine=True)},
        init="herding",
        augment=True,
        inner_steps=100,
        inner_window=20,
        inner_optimizer="adam",
        inner_lr=1e-3,
        inner_batch=25,
        clip=0.3,
    )
    return settings if ipc < 10 else replace(settings, inner_steps=200, inner_window=30, inner_lr=0.005)


def _digits_mtt(ipc: int) -> Settings:
    """Return settings in which ten images per class match later epochs of experts, which know more than they teach."""
    settings = Settings(
        steps=100,
        real_batch=1,
        optimizers={"codes": OptimizerSpec("adam", 0.03), "objective": OptimizerSpec("adam", 1e-3)},
        inner_steps=20,
        inner_lr=0.02,
        inner_batch=0,
        experts=10,
        expert_steps=2,
        start_epochs=EARLY_EPOCHS,
    )
    if ipc < 10:
        return settings
    return replace(settings, steps=80, init="herding", inner_lr=0.05, inner_batch=20, expert_steps=1, start_epochs=15)


def _digits_haba(ipc: int) -> Settings:
    settings = _digits_mtt(ipc)
    optimizers = {**settings.optimizers, "decoder": OptimizerSpec("adam", 0.003)}
    return replace(settings, optimizers=optimizers, inner_batch=0, inner_parts=2)


def _digits_tesla(ipc: int) -> Settings:
    """Return MTT's settings with later targets, since an expert early in its training labels the images badly."""
    settings = _digits_mtt(ipc)
    if ipc < 10:
        return replace(settings, steps=60, init="herding", inner_lr=0.05, start_epochs=2)
    return replace(settings, inner_steps=30, inner_lr=0.1, expert_steps=5, start_epochs=10)


def short_bptt(settings: Settings, inner_steps: int, inner_lr: float) -> Settings:
    """Return DD's short settings with students that take more steps, on minibatches and at a fixed rate."""
    return replace(
        settings,
        optimizers={"codes": OptimizerSpec("adam", 0.05, cosine=True)},
        inner_steps=inner_steps,
        inner_lr=inner_lr,
        inner_batch=25,
        inner_momentum=0.9,
        inner_parts=1,
    )


def _digits_addmem(ipc: int) -> Settings:
    """Return RaT-BPTT's settings: gradients flow only through a window of a long training."""
    return replace(short_rat(ipc), optimizers={"codes": OptimizerSpec("adam", 0.03, cosine=True)})


def _short_ld(ipc: int) -> Settings:
    """Return settings in which students train like judges, up to 200 epochs of the set, and unroll five steps."""
    return replace(
        ld_settings(ipc),
        steps=300,
        real_batch=128,
        init="herding",
        augment=True,
        outer_steps=40,
        inner_steps=5,
        inner_momentum=0.9,
        optimizers={"labels": OptimizerSpec("adam", 0.05, cosine=True)},
    )


SHORT_LD = replace(UNROLLED_METHODS["ld"], network=trained_on_s, settings=_short_ld)
"""LD whose networks train by SGD for five epochs of the set between two steps, not by Adam for one minibatch."""
_digits_experts = experts_by_start(DIGITS_EXPERTS, DIGITS_FAST_EXPERTS)
UNROLLED_DIGITS: dict[str, Method] = {
    "dd": replace(CORE_METHODS["dd"], settings=_digits_dd),
    "mtt": replace(CORE_METHODS["mtt"], network=_digits_experts, settings=_digits_mtt),
    "tesla": replace(CORE_METHODS["tesla"], network=experts_by(DIGITS_FAST_EXPERTS), settings=_digits_tesla),
    "ftd": replace(
        UNROLLED_METHODS["ftd"],
        network=_digits_experts,
        settings=lambda ipc: replace(_digits_mtt(ipc), expert_sam=0.01, ema=0.9),
    ),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], network=_digits_experts, settings=_digits_mtt),
    "haba": replace(UNROLLED_METHODS["haba"], network=_digits_experts, settings=_digits_haba),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=lambda ipc: short_bptt(_digits_dd(ipc), 60, 0.02)),
    "addmem": replace(
        UNROLLED_METHODS["addmem"], settings=_digits_addmem, parameterization=addressed(factor=1, multiple=2)
    ),
    "rat-bptt": replace(UNROLLED_METHODS["rat-bptt"], settings=short_rat),
    "ld": SHORT_LD,
}
"""Short runs by method, chosen on a validation split of the digits' training images."""
