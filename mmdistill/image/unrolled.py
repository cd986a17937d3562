"""The families of trajectory and unrolled performance matching on images, and their settings by data set."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from mmdistill.image.storage import addressed, hallucinated
from mmdistill.labels import LabelKind
from mmdistill.methods import (
    CORE_METHODS,
    MTT_CIFAR10,
    TESLA_STEPS,
    Configured,
    Method,
    Storage,
    TrajectoryRow,
    experts_by,
    fresh,
    tabulated,
    trained_on_s,
    trajectory_matching,
)
from mmdistill.networks.experts import PUBLISHED
from mmdistill.networks.fit import FitProtocol
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.trajectory import PrunedTrajectoryMatching
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw, raw_samples
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Task

DIGITS_EXPERTS = FitProtocol(epochs=0, lr=0.02, momentum=0.0, weight_decay=0.0, batch=64, decay_at=())
"""Smaller minibatches and twice the published rate, so that an epoch of the small data set moves an expert."""
DIGITS_FAST_EXPERTS = replace(DIGITS_EXPERTS, lr=0.1)
"""Experts that soon know the digits: what TESLA labels images by, and what ten images per class learn to follow."""
EARLY_EPOCHS = 3
"""From so many first epochs experts know less than ten real images per class teach."""


def _experts_by(early: FitProtocol, late: FitProtocol) -> Callable[[Settings], NetworkSchedule]:
    """Return experts that train by one protocol where starts are early, and by another one where they are not."""
    by_early, by_late = experts_by(early), experts_by(late)
    return lambda settings: (by_early if settings.start_epochs <= EARLY_EPOCHS else by_late)(settings)


FTD_EXPERTS = replace(PUBLISHED, sam_adaptive=True)
"""Adaptive sharpness-aware training with a surrogate gap, as the published code runs it by default."""
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
"""Of whitened images at ipc 1 and 50."""
HABA_CIFAR10 = {**MTT_CIFAR10, 50: TrajectoryRow(30, 2, 20, 100.0, 1e-5, 0.01)}
MTT_TINY = {
    1: TrajectoryRow(10, 2, 10, 10_000.0, 1e-4, 0.01),
    10: TrajectoryRow(20, 2, 40, 10_000.0, 1e-4, 0.01, inner_batch=200),
    50: TrajectoryRow(20, 2, 40, 10_000.0, 1e-4, 0.01, inner_batch=300),
}


def ftd_settings(table: Mapping[int, TrajectoryRow]) -> Callable[[int], Settings]:
    """Return a table's settings with experts that train for flatness at rho 0.01."""
    return lambda ipc: replace(tabulated(table)(ipc), expert_sam=0.01)


def styled_trajectory(settings: Settings) -> StyleAdversary:
    """Trajectory matching in which the hallucinators take turns, one a step, and an adversary keeps them apart."""
    return StyleAdversary(trajectory_matching().make(settings), settings.inner_parts)


def hallucinated_styles(
    task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws
) -> Parameterization:
    """Bases in as many styles as the settings have parts."""
    return hallucinated(settings.inner_parts)(task, budget, settings, label, draws)


def fixed_images(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build real images that stay as they are, with labels that are learned."""
    found = raw_samples(task, budget, settings.init, label, draws)
    batch = found(draws)
    return Raw(batch.inputs, found.labels, found.classes, found.num_classes, learn=())


def labelled_images(task: Task, budget: int, draws: Draws) -> Parameterization:
    """Draw real images that a teacher shall label."""
    return raw_samples(task, budget, "real", "teacher", draws)


def _haba_settings(ipc: int) -> Settings:
    """Return the published settings for CIFAR-10: MTT's, with more momentum, longer, and five styles."""
    settings = tabulated(HABA_CIFAR10)(ipc)
    rate = OptimizerSpec("sgd", 100.0, 0.95)
    learned = replace(settings.optimizers["objective"], momentum=0.9)
    optimizers = {"codes": rate, "decoder": rate, "objective": learned}
    return replace(settings, steps=15_000, optimizers=optimizers, inner_parts=5)


def _addmem_settings(ipc: int) -> Settings:
    """Return the published settings for ten classes: ten samples of each per step and 64 real ones, a fixed rate.

    No number of steps is published. Minibatches are drawn from all samples, not so many of each class.
    """
    rate = OptimizerSpec("sgd", 0.1, 0.5)
    return Settings(
        steps=50_000,
        real_batch=640,
        optimizers={"codes": rate},
        init="noise",
        inner_steps=150,
        inner_lr=0.01,
        inner_batch=100,
        inner_momentum=0.9,
        clip=2.0,
    )


def _ld_settings(ipc: int) -> Settings:
    """Return the published rates; a network lives for a fixed number of steps instead of until it stops improving."""
    return Settings(
        steps=20_000,
        real_batch=1024,
        optimizers={"labels": OptimizerSpec("adam", 1e-3)},
        outer_steps=200,
        inner_steps=1,
        inner_lr=0.01,
        inner_batch=50,
    )


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


def _digits_mtt(ipc: int) -> Settings:
    """Return settings in which ten images per class follow later epochs, of experts that know more than they teach."""
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
    """Return MTT's settings with ends further on, since an expert that has hardly learned labels the images badly."""
    settings = _digits_mtt(ipc)
    if ipc < 10:
        return replace(settings, steps=60, init="herding", inner_lr=0.05, start_epochs=2)
    return replace(settings, inner_steps=30, inner_lr=0.1, expert_steps=5, start_epochs=10)


def _digits_addmem(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.03, cosine=True)
    return replace(_digits_dd(ipc), optimizers={**_digits_dd(ipc).optimizers, "codes": rate})


def _short_ld(ipc: int) -> Settings:
    """Return settings in which students train as judges do, five steps at a time, up to 200 epochs of the set."""
    return replace(
        _ld_settings(ipc),
        steps=300,
        real_batch=128,
        init="herding",
        augment=True,
        outer_steps=40,
        inner_steps=5,
        inner_momentum=0.9,
        optimizers={"labels": OptimizerSpec("adam", 0.05, cosine=True)},
    )


UNROLLED_METHODS: dict[str, Method] = {
    "ftd": replace(
        CORE_METHODS["mtt"],
        title="FTD",
        network=experts_by(FTD_EXPERTS),
        settings=ftd_settings(FTD_CIFAR10),
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
        parameterization=Storage(hallucinated_styles),
        summary="MTT; bases that five small hallucinators render, kept apart by an adversary",
        source="Liu et al., NeurIPS 2022 (styles in turn for drawn ones)",
    ),
    "addmem": replace(
        CORE_METHODS["dd"],
        title="AddMem",
        settings=_addmem_settings,
        parameterization=addressed(),
        summary="performance matching with momentum; images are combinations of bases that classes share",
        source="Deng and Russakovsky, NeurIPS 2022 (fixed labels, as its code has; bases of unit size for tiny ones)",
    ),
    "ld": replace(
        CORE_METHODS["dd"],
        title="LD",
        network=trained_on_s,
        settings=_ld_settings,
        parameterization=fixed_images,
        label="softmax",
        summary="labels alone are learned, for fixed real images, by performance matching",
        source="Bohdal et al., 2020 (softmax for projected labels, which start near the images' classes; networks of a "
        "fixed life, trained by SGD)",
    ),
    "random-soft": Method(
        "Random, soft",
        None,
        fresh,
        lambda ipc: Settings(steps=0),
        label="teacher",
        solve=labelled_images,
        summary="random real images with a trained network's probabilities as labels: a baseline",
        source="Qin et al., NeurIPS 2024",
    ),
}
"""Relatives of trajectory and performance matching that images have."""

UNROLLED_CIFAR100: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], settings=tabulated(MTT_CIFAR100)),
    "tesla": replace(CORE_METHODS["tesla"], settings=tabulated(MTT_CIFAR100, TESLA_STEPS)),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], settings=tabulated(MTT_CIFAR100)),
    "ftd": replace(UNROLLED_METHODS["ftd"], settings=ftd_settings(FTD_CIFAR100)),
}
UNROLLED_TINY: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], settings=tabulated(MTT_TINY)),
    "tesla": replace(CORE_METHODS["tesla"], settings=tabulated(MTT_TINY, TESLA_STEPS)),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], settings=tabulated(MTT_TINY)),
    "ftd": replace(UNROLLED_METHODS["ftd"], settings=ftd_settings(FTD_TINY)),
}
UNROLLED_PRESETS = {"cifar100": UNROLLED_CIFAR100, "tiny-imagenet": UNROLLED_TINY}
"""Published settings by data set name, where they differ from those of CIFAR-10."""

_digits_experts = _experts_by(DIGITS_EXPERTS, DIGITS_FAST_EXPERTS)
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
    "addmem": replace(
        UNROLLED_METHODS["addmem"], settings=_digits_addmem, parameterization=addressed(factor=1, multiple=2)
    ),
    "ld": replace(UNROLLED_METHODS["ld"], settings=_short_ld),
}
"""Short runs for the 8 x 8 digits; chosen on a validation split of their training images."""

REDUCED_EXPERTS = FitProtocol(epochs=0, lr=0.01, momentum=0.0, weight_decay=0.0, batch=32, decay_at=(), visits=3200)
"""Epochs of a hundred steps, each on images that the one before may not have seen."""


def _reduced_mtt(ipc: int) -> Settings:
    """Return settings in which a student of 20 steps follows one epoch of an expert.

    Over longer ways the student learns so large a rate that judges, which add momentum to it, are worse off than with
    the images that the set starts from. A student is taught no more than its experts know: after four such epochs that
    is less than ten real images per class teach, so from there on starts go on to later epochs.
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
    """Return MTT's settings with longer ways, slow images, and starts in as many epochs as experts have before."""
    settings = _reduced_mtt(ipc)
    optimizers = {**settings.optimizers, "codes": OptimizerSpec("adam", rate, cosine=True)}
    return replace(settings, steps=steps, optimizers=optimizers, inner_lr=0.04, expert_steps=2, start_epochs=14)


def _reduced_tesla(ipc: int) -> Settings:
    """Return MTT's settings with ends further on, since an expert that has hardly learned labels the images badly."""
    if ipc < 10:
        return replace(_reduced_mtt(ipc), steps=100, inner_lr=0.05, expert_steps=2, start_epochs=2)
    return _reduced_late(ipc, rate=0.02, steps=80)


def _reduced_haba(ipc: int) -> Settings:
    """Return slow rates and late starts: rendered bases start so well that experts who know less only spoil them."""
    settings = _reduced_late(ipc, rate=0.03, steps=100)
    optimizers = {**settings.optimizers, "decoder": OptimizerSpec("adam", 0.003)}
    return replace(settings, optimizers=optimizers, inner_batch=0, inner_parts=5)


def _reduced_dd(ipc: int) -> Settings:
    """Return settings with as many inner steps as published, whose rates grow slowly, and cut gradients.

    Now and then a student's gradient is ten times as long as usual. Rates that grow fast fit the loss sooner, and then
    some students diverge.
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


def _reduced_addmem(ipc: int) -> Settings:
    rates = {name: OptimizerSpec("adam", 0.03, cosine=True) for name in ("codes", "objective")}
    parts = 2 if ipc < 10 else 5
    return replace(_reduced_dd(ipc), steps=120, optimizers=rates, inner_steps=15, inner_parts=parts, clip=0.0)


_reduced_experts = _experts_by(REDUCED_EXPERTS, replace(REDUCED_EXPERTS, lr=0.02))
UNROLLED_REDUCED: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], network=_reduced_experts, settings=_reduced_mtt),
    "tesla": replace(
        CORE_METHODS["tesla"], network=experts_by(replace(REDUCED_EXPERTS, lr=0.02)), settings=_reduced_tesla
    ),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], network=_reduced_experts, settings=_reduced_mtt),
    "ftd": replace(
        UNROLLED_METHODS["ftd"],
        network=_experts_by(
            replace(REDUCED_EXPERTS, sam_adaptive=True), replace(REDUCED_EXPERTS, lr=0.02, sam_adaptive=True)
        ),
        settings=lambda ipc: replace(_reduced_mtt(ipc), expert_sam=0.01, expert_gap=0.3, ema=0.9),
    ),
    "haba": replace(UNROLLED_METHODS["haba"], network=_reduced_experts, settings=_reduced_haba),
    "dd": replace(CORE_METHODS["dd"], settings=_reduced_dd),
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=_reduced_addmem),
    "ld": replace(UNROLLED_METHODS["ld"], settings=_short_ld),
    "random-soft": UNROLLED_METHODS["random-soft"].with_settings(teacher_epochs=1),
}
"""For 28 x 28 greyscale images in minutes of one core, at width 32; the experts' training comes once beside.

Rates follow the loss on training images; DD's, HaBa's, MTT's and TESLA's, and at one image per class LD's, were tried
on held-out images.
"""
