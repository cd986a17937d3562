"""Trajectory matching on images: published settings, short runs for the digits, and reduced schedules."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from mmdistill.image.methods.family import Cells, Conditions, MethodFamily
from mmdistill.image.storage import hallucinated
from mmdistill.labels import LabelKind
from mmdistill.method import Configured, Method, Storage
from mmdistill.methods import (
    CORE_METHODS,
    MTT_CIFAR10,
    TESLA_STEPS,
    TrajectoryRow,
    experts_by,
    tabulated,
    trajectory_matching,
)
from mmdistill.networks.expert_recipe import PUBLISHED
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.trajectory import PrunedTrajectoryMatching
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Task

FTD_EXPERTS = replace(PUBLISHED, sam_adaptive=True)
"""Adaptive sharpness-aware training with a surrogate gap, the published code's default."""
FTD_CIFAR10 = {
    1: TrajectoryRow(50, 2, 2, 100.0, 1e-7, 0.01, expert_gap=0.3, ema=0.9999),
    10: TrajectoryRow(30, 2, 20, 100.0, 1e-5, 0.001, expert_gap=0.3, ema=0.9995),
    50: TrajectoryRow(30, 2, 40, 1000.0, 1e-5, 0.01, expert_gap=1.0, ema=0.999),
}
FTD_CIFAR100 = {
    1: TrajectoryRow(40, 3, 20, 1000.0, 1e-5, 0.01, expert_gap=1.0, ema=0.9995),
    10: TrajectoryRow(20, 2, 40, 1000.0, 1e-5, 0.01, expert_gap=1.0, ema=0.9995),
    50: TrajectoryRow(80, 2, 40, 1000.0, 1e-5, 0.01, inner_batch=1000, expert_gap=1.0, ema=0.999),
}
FTD_TINY = {
    1: TrajectoryRow(30, 2, 10, 10_000.0, 1e-4, 0.01, expert_gap=1.0, ema=0.999),
    10: TrajectoryRow(20, 2, 40, 10_000.0, 1e-4, 0.01, inner_batch=500, expert_gap=1.0, ema=0.999),
}
MTT_CIFAR100 = {
    1: TrajectoryRow(20, 3, 20, 1000.0, 1e-5, 0.01),
    10: TrajectoryRow(20, 2, 20, 1000.0, 1e-5, 0.01),
    50: TrajectoryRow(80, 2, 40, 1000.0, 1e-5, 0.01, inner_batch=125),
}
"""Images are whitened at ipc 1 and 50."""
HABA_CIFAR10 = {**MTT_CIFAR10, 50: TrajectoryRow(30, 2, 20, 100.0, 1e-5, 0.01)}
TESLA_CIFAR100 = {**MTT_CIFAR100, 50: MTT_CIFAR100[50]._replace(codes_lr=500.0)}
"""At ipc 50 TESLA's published command, at half its rate; below, MTT's settings."""
MTT_TINY = {
    1: TrajectoryRow(10, 2, 10, 10_000.0, 1e-4, 0.01),
    10: TrajectoryRow(20, 2, 40, 10_000.0, 1e-4, 0.01, inner_batch=200),
    50: TrajectoryRow(20, 2, 40, 10_000.0, 1e-4, 0.01, inner_batch=300),
}


def _ftd_settings(table: Mapping[int, TrajectoryRow]) -> Callable[[int], Settings]:
    """Return a table's settings with sharpness-aware experts at rho 0.01."""
    return lambda ipc: replace(tabulated(table)(ipc), expert_sam=0.01)


def styled_trajectory(settings: Settings) -> StyleAdversary:
    """Return trajectory matching with one hallucinator per step, in turn, and an adversary that keeps them apart."""
    return StyleAdversary(trajectory_matching().make(settings), settings.inner_parts)


def hallucinated_styles(
    task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws
) -> Parameterization:
    """Build bases with ``settings.inner_parts`` hallucinators."""
    return hallucinated(settings.inner_parts)(task, budget, settings, label, draws)


def _haba_settings(ipc: int, table: Mapping[int, TrajectoryRow] = HABA_CIFAR10) -> Settings:
    """Return the published settings for CIFAR-10: MTT's with more momentum, more steps, and five styles.

    Other data sets have no published commands; they take MTT's table and the same rates.
    """
    settings = tabulated(table)(ipc)
    rate = OptimizerSpec("sgd", 100.0, 0.95)
    learned = replace(settings.optimizers["objective"], momentum=0.9)
    optimizers = {"codes": rate, "decoder": rate, "objective": learned}
    return replace(settings, steps=15_000, optimizers=optimizers, inner_batch=0, inner_parts=5)


TRAJECTORY_METHODS: dict[str, Method] = {
    "ftd": replace(
        CORE_METHODS["mtt"],
        title="FTD",
        network=experts_by(FTD_EXPERTS),
        settings=_ftd_settings(FTD_CIFAR10),
        summary="MTT against flat experts (sharpness-aware training), with a running average of the images",
        source="Du et al., CVPR 2023",
    ),
    "ddpp": replace(
        CORE_METHODS["mtt"],
        title="DDPP",
        objective=trajectory_matching(PrunedTrajectoryMatching),
        summary="MTT over the parameters that a student can match",
        source="Li et al., 2022 (similarity after the letter of the survey; threshold 0.1 of our own)",
    ),
    "haba": replace(
        CORE_METHODS["mtt"],
        title="HaBa",
        objective=Configured(styled_trajectory),
        settings=_haba_settings,
        parameterization=Storage(hallucinated_styles, fills=True),
        summary="MTT; bases that five small hallucinators render, kept apart by an adversary",
        source="Liu et al., NeurIPS 2022 (styles in turn for drawn ones, samples that start near real images, a "
        "rate not held above 0.001)",
    ),
}
"""Trajectory matching methods of images alone."""
TRAJECTORY_CIFAR100: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], settings=tabulated(MTT_CIFAR100)),
    "tesla": replace(CORE_METHODS["tesla"], settings=tabulated(TESLA_CIFAR100, TESLA_STEPS)),
    "ddpp": replace(TRAJECTORY_METHODS["ddpp"], settings=tabulated(MTT_CIFAR100)),
    "ftd": replace(TRAJECTORY_METHODS["ftd"], settings=_ftd_settings(FTD_CIFAR100)),
    "haba": replace(TRAJECTORY_METHODS["haba"], settings=partial(_haba_settings, table=MTT_CIFAR100)),
}
TRAJECTORY_TINY: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], settings=tabulated(MTT_TINY)),
    "tesla": replace(CORE_METHODS["tesla"], settings=tabulated(MTT_TINY, TESLA_STEPS)),
    "ddpp": replace(TRAJECTORY_METHODS["ddpp"], settings=tabulated(MTT_TINY)),
    "ftd": replace(TRAJECTORY_METHODS["ftd"], settings=_ftd_settings(FTD_TINY)),
    "haba": replace(TRAJECTORY_METHODS["haba"], settings=partial(_haba_settings, table=MTT_TINY)),
}
"""Published settings of these data sets, if they differ from CIFAR-10's."""
DIGITS_EXPERTS = FitProtocol(epochs=0, lr=0.02, momentum=0.0, weight_decay=0.0, batch=64, decay_at=())
"""Smaller minibatches and twice the published rate, so that an epoch of the small data set moves an expert."""
DIGITS_FAST_EXPERTS = replace(DIGITS_EXPERTS, lr=0.1)
"""Experts that learn the digits fast: they label TESLA's images, and ten images per class match them."""
EARLY_EPOCHS = 3
"""After this many epochs, experts still know less than ten real images per class teach."""


def _experts_by_start(early: FitProtocol, late: FitProtocol) -> Callable[[Settings], NetworkSchedule]:
    """Return experts that train by ``early`` if all starts are within :data:`EARLY_EPOCHS`, else by ``late``."""
    early_experts, late_experts = experts_by(early), experts_by(late)
    return lambda settings: (early_experts if settings.start_epochs <= EARLY_EPOCHS else late_experts)(settings)


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


_digits_experts = _experts_by_start(DIGITS_EXPERTS, DIGITS_FAST_EXPERTS)
TRAJECTORY_DIGITS: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], network=_digits_experts, settings=_digits_mtt),
    "tesla": replace(CORE_METHODS["tesla"], network=experts_by(DIGITS_FAST_EXPERTS), settings=_digits_tesla),
    "ftd": replace(
        TRAJECTORY_METHODS["ftd"],
        network=_digits_experts,
        settings=lambda ipc: replace(_digits_mtt(ipc), expert_sam=0.01, ema=0.9),
    ),
    "ddpp": replace(TRAJECTORY_METHODS["ddpp"], network=_digits_experts, settings=_digits_mtt),
    "haba": replace(TRAJECTORY_METHODS["haba"], network=_digits_experts, settings=_digits_haba),
}
"""Short runs by method, chosen on a validation split of the digits' training images."""
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


_reduced_experts = _experts_by_start(REDUCED_EXPERTS, replace(REDUCED_EXPERTS, lr=0.02))
TRAJECTORY_REDUCED: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], network=_reduced_experts, settings=_reduced_mtt),
    "tesla": replace(
        CORE_METHODS["tesla"], network=experts_by(replace(REDUCED_EXPERTS, lr=0.02)), settings=_reduced_tesla
    ),
    "ddpp": replace(TRAJECTORY_METHODS["ddpp"], network=_reduced_experts, settings=_reduced_mtt),
    "ftd": replace(
        TRAJECTORY_METHODS["ftd"],
        network=_experts_by_start(
            replace(REDUCED_EXPERTS, sam_adaptive=True), replace(REDUCED_EXPERTS, lr=0.02, sam_adaptive=True)
        ),
        settings=lambda ipc: replace(_reduced_mtt(ipc), expert_sam=0.01, expert_gap=0.3, ema=0.9),
    ),
    "haba": replace(TRAJECTORY_METHODS["haba"], network=_reduced_experts, settings=_reduced_haba),
}
"""Schedules of minutes on one core for 28 x 28 greyscale images, at width 32; experts train once in addition.

Rates were chosen by the loss on training images; HaBa's, MTT's and TESLA's were tried on held-out images.
"""
_MTT: dict[str, Cells] = {"mtt": {"cifar10": (1, 10), "cifar100": (1, 50)}}
_HABA: Cells = {"cifar10": (2, 10, 11, 50, 51), "cifar100": (2, 50, 51)}  # images of as many bases, or one fewer
TRAJECTORY_CONDITIONS = {
    "mtt": Conditions(protocol="mtt", whiten=_MTT),
    "ftd": Conditions(protocol="mtt", whiten={"mtt": {"cifar10": (1, 10), "cifar100": (1, 10, 50)}}),
    "ddpp": Conditions(protocol="mtt", whiten=_MTT),
    "tesla": Conditions(protocol="mtt", whiten={"mtt": {"cifar10": (10,), "cifar100": (1, 50)}}),
    "haba": Conditions(protocol="mtt", whiten={"mtt": _HABA}),
}
"""Conditions of published numbers; TESLA and HaBa take MTT's whitening where they have no command."""
TRAJECTORY = MethodFamily(
    TRAJECTORY_METHODS,
    presets={"digits": TRAJECTORY_DIGITS, "cifar100": TRAJECTORY_CIFAR100, "tiny-imagenet": TRAJECTORY_TINY},
    reduced=TRAJECTORY_REDUCED,
    conditions=TRAJECTORY_CONDITIONS,
)
"""Trajectory matching."""
