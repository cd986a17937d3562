"""Performance matching by unrolled training on images: published settings, runs for the digits, reduced schedules."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch.nn import functional as F

from mmdistill.image.methods.family import Conditions, MethodFamily
from mmdistill.image.storage import addressed
from mmdistill.labels import LabelKind
from mmdistill.method import Method, Storage
from mmdistill.methods import CORE_METHODS, fresh, row_of, stepped_on_s, trained_on_s
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw, raw_samples, raw_start
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Task, one_tensor


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


def _ld_settings(ipc: int) -> Settings:
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
        settings=_ld_settings,
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
"""Performance matching methods of images alone, and a baseline."""


def _labelled_rat(table: Mapping[int, WindowRow]) -> Method:
    """Return RaT-BPTT with learned labels and a table's settings, as in these commands."""
    settings = partial(_labelled_rat_settings, table=table)
    return replace(UNROLLED_METHODS["rat-bptt"], settings=settings, label="soft")


UNROLLED_CIFAR100: dict[str, Method] = {
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=partial(_addmem_settings, classes=100)),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=partial(_bptt_settings, classes=100)),
    "rat-bptt": _labelled_rat(RAT_CIFAR100),
}
UNROLLED_TINY: dict[str, Method] = {
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=partial(_addmem_settings, classes=200)),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=partial(_bptt_settings, classes=200)),
    "rat-bptt": _labelled_rat(RAT_TINY),
}
"""Published settings of these data sets, if they differ from CIFAR-10's."""


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


def _short_rat(ipc: int) -> Settings:
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


def _short_bptt(settings: Settings, inner_steps: int, inner_lr: float) -> Settings:
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
    return replace(_short_rat(ipc), optimizers={"codes": OptimizerSpec("adam", 0.03, cosine=True)})


def _short_ld(ipc: int) -> Settings:
    """Return settings in which students train like judges, up to 200 epochs of the set, and unroll five steps."""
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


_SHORT_LD = replace(UNROLLED_METHODS["ld"], network=trained_on_s, settings=_short_ld)
"""LD whose networks train by SGD for five epochs of the set between two steps, not by Adam for one minibatch."""
UNROLLED_DIGITS: dict[str, Method] = {
    "dd": replace(CORE_METHODS["dd"], settings=_digits_dd),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=lambda ipc: _short_bptt(_digits_dd(ipc), 60, 0.02)),
    "addmem": replace(
        UNROLLED_METHODS["addmem"], settings=_digits_addmem, parameterization=addressed(factor=1, multiple=2)
    ),
    "rat-bptt": replace(UNROLLED_METHODS["rat-bptt"], settings=_short_rat),
    "ld": _SHORT_LD,
}
"""Short runs by method, chosen on a validation split of the digits' training images."""


def _reduced_dd(ipc: int) -> Settings:
    """Return settings with as many inner steps as published, slowly learned rates, and clipped gradients.

    Now and then a student's gradient is ten times as long as usual. Rates that grow fast lower the loss sooner, but
    then some students diverge.
    """
    return replace(_digits_dd(ipc), steps=150, inner_steps=30, inner_parts=1 if ipc < 10 else 5)


def _reduced_rat(ipc: int) -> Settings:
    """Return the digits' settings with a longer training at one image per class."""
    return replace(_short_rat(ipc), inner_steps=150 if ipc < 10 else 200, inner_window=30)


def _reduced_addmem(ipc: int) -> Settings:
    """Return RaT-BPTT's settings: as many inner steps as published, but gradients flow only through a window.

    From ten images per class on the rate is slow: a fast one moves memory and addresses away from their good start.
    """
    rate = 0.03 if ipc < 10 else 0.003
    return replace(_reduced_rat(ipc), optimizers={"codes": OptimizerSpec("adam", rate, cosine=True)})


UNROLLED_REDUCED: dict[str, Method] = {
    "dd": replace(CORE_METHODS["dd"], settings=_reduced_dd),
    "bptt": replace(UNROLLED_METHODS["bptt"], settings=lambda ipc: _short_bptt(_reduced_dd(ipc), 100, 0.01)),
    "addmem": replace(UNROLLED_METHODS["addmem"], settings=_reduced_addmem, parameterization=addressed()),
    "rat-bptt": replace(UNROLLED_METHODS["rat-bptt"], settings=_reduced_rat),
    "ld": _SHORT_LD,
    "random-soft": UNROLLED_METHODS["random-soft"].with_settings(teacher_epochs=1),
}
"""Schedules of minutes on one core for 28 x 28 greyscale images, at width 32.

Rates were chosen by the loss on training images; AddMem's, DD's and RaT-BPTT's, and LD's at one image per class, were
tried on held-out images.
"""
UNROLLED_CONDITIONS = {
    "addmem": Conditions(protocol="addmem"),
    "bptt": Conditions(protocol="addmem", whiten={"kip": {"cifar10": (1,)}}),
    "rat-bptt": Conditions(whiten={"kip": {"cifar10": (10,), "cifar100": (1, 10)}}),
    "ld": Conditions(model="lenet", model_on=("mnist",)),
}
"""Conditions of published numbers.

BPTT's and RaT-BPTT's code does not standardise channels before whitening. RaT-BPTT's commands for Tiny-ImageNet do not
whiten, but its code reads whitened images. LD's network on CIFAR (AlexCifarNet: two convolutions with local response
norm) is not implemented.
"""
UNROLLED = MethodFamily(
    UNROLLED_METHODS,
    presets={"digits": UNROLLED_DIGITS, "cifar100": UNROLLED_CIFAR100, "tiny-imagenet": UNROLLED_TINY},
    reduced=UNROLLED_REDUCED,
    conditions=UNROLLED_CONDITIONS,
)
"""Performance matching through unrolled trainings."""
