"""Trajectory matching and unrolled performance matching on images, with published settings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch.nn import functional as F

from mmdistill.image.methods.family import Cells, Conditions
from mmdistill.image.storage import addressed, hallucinated
from mmdistill.labels import LabelKind
from mmdistill.method import Configured, Method, Storage
from mmdistill.methods import (
    CORE_METHODS,
    MTT_CIFAR10,
    TESLA_STEPS,
    TrajectoryRow,
    experts_by,
    fresh,
    row_of,
    stepped_on_s,
    tabulated,
    trajectory_matching,
)
from mmdistill.networks.expert_recipe import PUBLISHED
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.trajectory import PrunedTrajectoryMatching
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw, raw_samples, raw_start
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Task, one_tensor

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


def ftd_settings(table: Mapping[int, TrajectoryRow]) -> Callable[[int], Settings]:
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


def fixed_images(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build fixed real images with learned labels."""
    return Raw(*raw_start(task, budget, settings.init, label, draws, learned=False), learn=())


def unit_noise(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build learned images; those that start from noise have norm 1, as in RaT-BPTT's published code.

    A rate of 1e-3 then moves a pixel of 3 x 32 x 32 by a twentieth of its size, not by a thousandth.

    Raises:
        ConfigError: a task without classes.
        ShapeError: samples that are a named dict.
    """
    start = raw_start(task, budget, settings.init, label, draws)
    if settings.init != "noise":
        return Raw(*start)
    inputs = one_tensor(start.inputs, "a norm of images")
    return Raw(*start._replace(inputs=F.normalize(inputs.flatten(1)).view_as(inputs)))


UNIT_NOISE = Storage(unit_noise, "the images themselves")
"""BPTT's and RaT-BPTT's storage."""


def labelled_images(task: Task, budget: int, settings: Settings, draws: Draws) -> Parameterization:
    """Draw real images with a teacher's labels."""
    return raw_samples(task, budget, "real", "teacher", draws, learned=False)


def _haba_settings(ipc: int, table: Mapping[int, TrajectoryRow] = HABA_CIFAR10) -> Settings:
    """Return the published settings for CIFAR-10: MTT's with more momentum, more steps, and five styles.

    Other data sets have no published commands; they take MTT's table and the same rates.
    """
    settings = tabulated(table)(ipc)
    rate = OptimizerSpec("sgd", 100.0, 0.95)
    learned = replace(settings.optimizers["objective"], momentum=0.9)
    optimizers = {"codes": rate, "decoder": rate, "objective": learned}
    return replace(settings, steps=15_000, optimizers=optimizers, inner_batch=0, inner_parts=5)


def _addmem_settings(ipc: int, classes: int = 10) -> Settings:
    """Return the published settings: 32 samples and 64 real images per class in each step, a fixed rate.

    The code's configuration allows 500,000 steps. Here minibatches of samples and of real images are drawn from all
    classes together, not balanced. More than ten classes have no published command; the one for ten would take ten
    random classes in each step, where here minibatches grow with the number of classes.
    """
    rate = OptimizerSpec("sgd", 0.1, 0.5)
    return Settings(
        steps=50_000,
        real_batch=64 * classes,
        optimizers={"codes": rate},
        init="noise",
        inner_steps=150,
        inner_lr=0.01,
        inner_batch=32 * classes,
        inner_momentum=0.9,
        clip=2.0,
    )


def _bptt_settings(ipc: int, classes: int = 10) -> Settings:
    """Return the published settings: AddMem's, with ten samples per class in each step.

    The only published command is for one image per class.
    """
    return replace(_addmem_settings(ipc, classes), inner_batch=10 * classes)


class WindowRow(NamedTuple):
    """A published command of RaT-BPTT: students' most steps, window and minibatch; the images' rate; the real batch."""

    inner_steps: int
    inner_window: int
    inner_batch: int
    lr: float
    real_batch: int = 5000


RAT_CIFAR10 = {1: WindowRow(200, 60, 100, 1e-3)}
"""The only command, for ten (whitened) images per class; it serves any number of images."""
RAT_CIFAR100 = {1: WindowRow(130, 90, 100, 3e-4), 10: WindowRow(300, 100, 100, 1e-3)}
"""Images are whitened; in the command for one image per class, every student takes 130 steps."""
RAT_TINY = {1: WindowRow(300, 100, 50, 3e-4, real_batch=1000)}
"""The command for ten images per class. A second one has students that all take 270 steps, windows of 90, and 2000 real
images."""


def _rat_settings(ipc: int, table: Mapping[int, WindowRow] = RAT_CIFAR10) -> Settings:
    """Return a table's settings by ipc; in between, those of the largest tabulated ipc below.

    The commands' minibatches are balanced (ten samples per class of CIFAR-10, else one, from 50 random classes of
    Tiny-ImageNet); here they are drawn from all samples. The commands allow ten times the steps (Tiny-ImageNet's a
    hundred times). Here each step draws a new student length; the code keeps one for an epoch. Learned labels share the
    images' rate.
    """
    row = row_of(table, ipc)
    return Settings(
        steps=60_000,
        real_batch=row.real_batch,
        optimizers={"codes": OptimizerSpec("adam", row.lr)},
        init="noise",
        augment=True,
        inner_steps=row.inner_steps,
        inner_window=row.inner_window,
        inner_optimizer="adam",
        inner_lr=1e-3,
        inner_batch=row.inner_batch,
    )


def _labelled_rat_settings(ipc: int, table: Mapping[int, WindowRow]) -> Settings:
    """Return a table's settings with learned labels."""
    settings = _rat_settings(ipc, table)
    return replace(settings, optimizers={**settings.optimizers, "labels": settings.optimizers["codes"]})


def ld_settings(ipc: int) -> Settings:
    """Return the published rates.

    A network serves a fixed number of steps, about as many as by the published rule, which replaces it once the real
    loss has not fallen for 50 steps.
    """
    return Settings(
        steps=20_000,
        real_batch=1024,
        optimizers={"labels": OptimizerSpec("adam", 1e-3)},
        outer_steps=500,
        inner_steps=1,
        inner_lr=0.01,
        inner_batch=50,
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
        parameterization=Storage(hallucinated_styles, fills=True),
        summary="MTT; bases that five small hallucinators render, kept apart by an adversary",
        source="Liu et al., NeurIPS 2022 (styles in turn for drawn ones, samples that start near real images, a "
        "rate not held above 0.001)",
    ),
    "addmem": replace(
        CORE_METHODS["dd"],
        title="AddMem",
        settings=_addmem_settings,
        parameterization=addressed(bases=16),
        summary="performance matching with momentum; images are combinations of bases that classes share",
        source="Deng and Russakovsky, NeurIPS 2022 (fixed labels, as its code has; 16 bases per raw image of a class; "
        "minibatches, real ones too, are drawn from all samples, not so many of each class)",
    ),
    "bptt": replace(
        CORE_METHODS["dd"],
        title="BPTT",
        settings=_bptt_settings,
        parameterization=UNIT_NOISE,
        summary="performance matching through a long training with momentum, at a fixed rate",
        source="Deng and Russakovsky, NeurIPS 2022 (images start at norm 1, for 1.4; minibatches, real ones too, are "
        "drawn from all samples, not so many of each class); [84] of the survey, whose DD has its momentum",
    ),
    "rat-bptt": replace(
        CORE_METHODS["dd"],
        title="RaT-BPTT",
        settings=_rat_settings,
        parameterization=UNIT_NOISE,
        summary="performance matching through a random window of a long training",
        source="Feng et al., ICLR 2024 (without a command of its own, a data set takes the settings of ten images per "
        "class of CIFAR-10; DSA's augmentation of synthetic images alone, gradients not cut at twice their running "
        "norm; softmax for learned labels held above 0; ends always random, which its commands fix for some data)",
    ),
    "ld": replace(
        CORE_METHODS["dd"],
        title="LD",
        network=stepped_on_s,
        settings=ld_settings,
        parameterization=Storage(fixed_images),
        label="soft",
        summary="labels alone are learned, for fixed real images, by performance matching",
        source="Bohdal et al., 2020 (softmax for projected labels, which start near the images' classes; networks of a "
        "fixed life, on minibatches of their own)",
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
"""Trajectory and performance matching methods of images alone."""


def _labelled_rat(table: Mapping[int, WindowRow]) -> Method:
    """Return RaT-BPTT with learned labels and a table's settings, as in these commands."""
    settings = partial(_labelled_rat_settings, table=table)
    return replace(UNROLLED_METHODS["rat-bptt"], settings=settings, label="soft")


UNROLLED_CIFAR100: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], settings=tabulated(MTT_CIFAR100)),
    "tesla": replace(CORE_METHODS["tesla"], settings=tabulated(TESLA_CIFAR100, TESLA_STEPS)),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], settings=tabulated(MTT_CIFAR100)),
    "ftd": replace(UNROLLED_METHODS["ftd"], settings=ftd_settings(FTD_CIFAR100)),
    "haba": replace(UNROLLED_METHODS["haba"], settings=partial(_haba_settings, table=MTT_CIFAR100)),
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=partial(_addmem_settings, classes=100)),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=partial(_bptt_settings, classes=100)),
    "rat-bptt": _labelled_rat(RAT_CIFAR100),
}
UNROLLED_TINY: dict[str, Method] = {
    "mtt": replace(CORE_METHODS["mtt"], settings=tabulated(MTT_TINY)),
    "tesla": replace(CORE_METHODS["tesla"], settings=tabulated(MTT_TINY, TESLA_STEPS)),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], settings=tabulated(MTT_TINY)),
    "ftd": replace(UNROLLED_METHODS["ftd"], settings=ftd_settings(FTD_TINY)),
    "haba": replace(UNROLLED_METHODS["haba"], settings=partial(_haba_settings, table=MTT_TINY)),
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=partial(_addmem_settings, classes=200)),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=partial(_bptt_settings, classes=200)),
    "rat-bptt": _labelled_rat(RAT_TINY),
}
UNROLLED_PRESETS = {"cifar100": UNROLLED_CIFAR100, "tiny-imagenet": UNROLLED_TINY}
"""Published settings by data set name, if they differ from CIFAR-10's."""
_MTT: dict[str, Cells] = {"mtt": {"cifar10": (1, 10), "cifar100": (1, 50)}}
_HABA: Cells = {"cifar10": (2, 10, 11, 50, 51), "cifar100": (2, 50, 51)}  # images of as many bases, or one fewer
UNROLLED_CONDITIONS = {
    "mtt": Conditions(protocol="mtt", whiten=_MTT),
    "ftd": Conditions(protocol="mtt", whiten={"mtt": {"cifar10": (1, 10), "cifar100": (1, 10, 50)}}),
    "ddpp": Conditions(protocol="mtt", whiten=_MTT),
    "tesla": Conditions(protocol="mtt", whiten={"mtt": {"cifar10": (10,), "cifar100": (1, 50)}}),
    "haba": Conditions(protocol="mtt", whiten={"mtt": _HABA}),
    "addmem": Conditions(protocol="addmem"),
    "bptt": Conditions(protocol="addmem", whiten={"kip": {"cifar10": (1,)}}),
    "rat-bptt": Conditions(whiten={"kip": {"cifar10": (10,), "cifar100": (1, 10)}}),
    "ld": Conditions(model="lenet", model_on=("mnist",)),
}
"""Conditions of published numbers; TESLA and HaBa take MTT's whitening where they have no command.

BPTT's and RaT-BPTT's code does not standardise channels before whitening. RaT-BPTT's commands for Tiny-ImageNet do not
whiten, but its code reads whitened images. LD's network on CIFAR (AlexCifarNet: two convolutions with local response
norm) is not implemented.
"""
