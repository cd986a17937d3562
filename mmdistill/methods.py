"""Table 1 as data: methods that suit several kinds of data, with published settings, and functions to build more."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from mmdistill.files.paths import users_path
from mmdistill.method import Configured, Method, MethodTable
from mmdistill.networks.curriculum import Curriculum
from mmdistill.networks.difficulty import BY_TEN, Scoring
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import (
    FreshNetworks,
    InnerLoopSchedule,
    NetworkSchedule,
    SteppedOnS,
    TrainedOnS,
    UnreadNetwork,
)
from mmdistill.networks.trajectories import ExpertTrajectories, StartWindow, needed_epochs
from mmdistill.networks.unroll import Unrolling
from mmdistill.objectives.base import Objective
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.trajectory import Masking, TrajectoryMatching, TrajectoryMatchingConstantMemory
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.settings import OptimizerSpec, Settings


def fresh(settings: Settings) -> NetworkSchedule:
    """A new network each step."""
    return FreshNetworks()


def unread(settings: Settings) -> NetworkSchedule:
    """One network for all steps, for objectives that read none."""
    return UnreadNetwork()


def trained_by(kind: Callable[..., InnerLoopSchedule]) -> Callable[[Settings], NetworkSchedule]:
    """Return a function that makes, from settings, a schedule that trains a network between steps.

    Args:
        kind: the schedule's class, or a partial of it; the settings fill the fields of :class:`InnerLoopSchedule`.
    """

    def make(settings: Settings) -> NetworkSchedule:
        """A network trained between steps by the settings ``outer_steps``, ``inner_*`` and ``augment``."""
        return kind(
            outer_steps=settings.outer_steps,
            inner_steps=settings.inner_steps,
            lr=settings.inner_lr,
            momentum=settings.inner_momentum,
            batch=settings.inner_batch,
            augment=settings.augment,
        )

    return make


def trained_on_s(settings: Settings) -> NetworkSchedule:
    """A network trained on the synthetic set between steps, epoch by epoch, see :class:`TrainedOnS`."""
    return trained_by(TrainedOnS)(settings)


def stepped_on_s(settings: Settings) -> NetworkSchedule:
    """A network trained on the synthetic set between steps, minibatch by minibatch, see :class:`SteppedOnS`.

    Adam steps it at torch's default rate, as in LD's code; ``inner_lr`` and ``inner_momentum`` are the student's.
    """
    schedule = trained_by(SteppedOnS)(settings)
    assert isinstance(schedule, SteppedOnS)
    return replace(schedule, lr=1e-3, momentum=0.0)


def experts_by(
    protocol: FitProtocol = PUBLISHED,
    kind: type[ExpertTrajectories] = ExpertTrajectories,
    scoring: Scoring = BY_TEN,
) -> Callable[[Settings], NetworkSchedule]:
    """Return a function that makes, from settings, a schedule of experts trained for the epochs that they need.

    Args:
        protocol: how they train. Settings replace its epochs (at least those that the targets need), ``sam`` and
            ``sam_gap``, and, if set, its rate, minibatch and ``sam_adaptive``.
        kind: the schedule.
        scoring: scores how easy samples are, for experts that begin with the easy ones.
    """

    def make(settings: Settings) -> NetworkSchedule:
        """Experts' trajectories by the settings ``experts``, ``expert_*`` and ``start_*``."""
        adaptive = settings.expert_adaptive
        training = replace(
            protocol,
            epochs=max(needed_epochs(settings.start_epochs, settings.expert_steps), settings.expert_epochs),
            lr=settings.expert_lr or protocol.lr,
            batch=settings.expert_batch or protocol.batch,
            sam=settings.expert_sam,
            sam_gap=settings.expert_gap,
            sam_adaptive=protocol.sam_adaptive if adaptive is None else adaptive,
        )
        stages = settings.expert_easy, settings.expert_joining, settings.expert_leaving
        lessons = Curriculum(*stages, scoring, settings.expert_pacing)
        curriculum = None if lessons.is_whole else lessons
        recipe = ExpertRecipe(training, settings.augment, precision=settings.expert_precision, curriculum=curriculum)
        folder = users_path(settings.expert_folder) if settings.expert_folder else None
        window = StartWindow(settings.start_first, settings.start_bound, settings.start_steps)
        return kind(settings.experts, settings.start_epochs, settings.expert_steps, recipe, folder, window)

    return make


def unrolling(settings: Settings) -> Unrolling:
    """Return the unrolling of a student's training by the settings."""
    keep = None if settings.kept_steps < 0 else settings.kept_steps
    return Unrolling(settings.inner_momentum, keep=keep, optimizer=settings.inner_optimizer)


def unrolled_performance(settings: Settings) -> Objective:
    """The real loss after an unrolled training; if rates are learned, each step has its own."""
    learn = "objective" in settings.optimizers
    return UnrolledPerformance(
        settings.inner_steps,
        InnerRate(settings.inner_lr, settings.inner_steps if learn else None, "softplus", learn),
        batch=settings.inner_batch or None,
        parts=settings.inner_parts,
        augment=settings.augment,
        unrolling=unrolling(settings),
        window=settings.inner_window or None,
    )


def ridge_matching(make: Callable[[float], Objective], ridge: float) -> Configured:
    """Return a kernel ridge objective with the lambda of the settings, or ``ridge`` if they have none (0)."""
    return Configured(lambda settings: make(settings.ridge or ridge))


def trajectory_matching(kind: type[TrajectoryMatching] = TrajectoryMatching) -> Configured:
    """Return an objective, configured by the settings, that compares a student's end with an expert's.

    If the student's rate is learned, it is one for all steps.
    """

    def make(settings: Settings) -> TrajectoryMatching:
        return kind(
            settings.inner_steps,
            InnerRate(settings.inner_lr, learn="objective" in settings.optimizers),
            batch=settings.inner_batch or None,
            parts=settings.inner_parts,
            augment=settings.augment,
            unrolling=unrolling(settings),
            masking=Masking(settings.masked, settings.masked_by),
        )

    return Configured(make)


class TrajectoryRow(NamedTuple):
    """One cell of a published table of trajectory-matching settings; the rates are SGD's with momentum 0.5."""

    inner_steps: int
    expert_steps: int
    start_epochs: int
    codes_lr: float
    rate_lr: float
    inner_lr: float
    inner_batch: int = 0
    expert_gap: float = 0.0
    ema: float = 0.0


Row = TypeVar("Row")


def row_of(table: Mapping[int, Row], ipc: int) -> Row:
    """Return the row of an ipc, or of the largest tabulated ipc below it."""
    return table[max(tabulated_ipc for tabulated_ipc in table if tabulated_ipc <= max(ipc, 1))]


def tabulated(table: Mapping[int, TrajectoryRow], steps: int = 5000) -> Callable[[int], Settings]:
    """Return settings of ``steps`` steps by ipc; an ipc that the table lacks has the row of the next one below."""

    def settings(ipc: int) -> Settings:
        row = row_of(table, ipc)
        return Settings(
            steps=steps,
            real_batch=1,
            optimizers={
                "codes": OptimizerSpec("sgd", row.codes_lr, 0.5),
                "objective": OptimizerSpec("sgd", row.rate_lr, 0.5),
            },
            augment=True,
            inner_steps=row.inner_steps,
            inner_lr=row.inner_lr,
            inner_batch=row.inner_batch,
            experts=100,
            expert_steps=row.expert_steps,
            start_epochs=row.start_epochs,
            expert_gap=row.expert_gap,
            ema=row.ema,
        )

    return settings


MTT_CIFAR10 = {
    1: TrajectoryRow(50, 2, 2, 100.0, 1e-7, 0.01),
    10: TrajectoryRow(30, 2, 20, 100.0, 1e-5, 0.001),
    50: TrajectoryRow(30, 2, 40, 1000.0, 1e-5, 0.001),
}
"""MTT's published settings for CIFAR-10; those at ipc 1 and 10 are for whitened images."""
TESLA_CIFAR10 = {**MTT_CIFAR10, 1: TrajectoryRow(50, 2, 5, 500.0, 1e-7, 0.01)}
"""TESLA's published command for one image per class, at half its rate of 1000; MTT's settings for more.

Its code gives the images half the gradient of the equation (it multiplies a tuple by 2, which repeats the tuple).
"""
TESLA_STEPS = 10_000
"""Steps of TESLA's published commands, twice MTT's."""


def _dd_settings(ipc: int) -> Settings:
    """Return the published settings with the survey's momentum, annealed smoothly instead of halved every 40 epochs.

    Students' rates start at 0.02, as in the published commands except that for CIFAR-10 (0.001).
    """
    adam = OptimizerSpec("adam", 0.01, betas=(0.5, 0.999), cosine=True)
    return Settings(
        steps=20_000,
        real_batch=1024,
        optimizers={"codes": adam, "objective": adam},
        init="noise",
        inner_steps=30,
        inner_lr=0.02,
        inner_batch=0,
        inner_momentum=0.9,
        inner_parts=min(ipc, 10),
    )


def _dm_settings(ipc: int) -> Settings:
    lr = 1.0 if ipc < 100 else 10.0
    return Settings(steps=20_000, optimizers={"codes": OptimizerSpec("sgd", lr, 0.5)}, augment=True)


def _dc_loops(ipc: int) -> tuple[int, int]:
    """Return the published (outer, inner) loop counts of an ipc, or of the largest tabulated ipc below it."""
    table = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    return row_of(table, ipc)


def _dc_settings(ipc: int, augment: bool = False) -> Settings:
    outer, inner = _dc_loops(ipc)
    return Settings(
        steps=1000 * outer,
        optimizers={"codes": OptimizerSpec("sgd", 0.1, 0.5)},
        init="real" if augment else "noise",
        augment=augment,
        outer_steps=outer,
        inner_steps=inner,
    )


CORE_METHODS = MethodTable(
    {
        "dc": Method(
            "DC",
            lambda: GradientMatching(row_cosine),
            trained_on_s,
            _dc_settings,
            summary="gradient matching, row cosine, network trained on S",
            source="Zhao et al., ICLR 2021",
        ),
        "dsa": Method(
            "DSA",
            lambda: GradientMatching(row_cosine),
            trained_on_s,
            lambda ipc: _dc_settings(ipc, augment=True),
            summary="DC with differentiable siamese augmentation",
            source="Zhao and Bilen, ICML 2021",
        ),
        "dd": Method(
            "DD",
            Configured(unrolled_performance),
            fresh,
            _dd_settings,
            summary="performance matching through an unrolled training with momentum",
            source="Wang et al., 2018; Deng and Russakovsky, NeurIPS 2022",
        ),
        "mtt": Method(
            "MTT",
            trajectory_matching(),
            experts_by(),
            tabulated(MTT_CIFAR10),
            summary="trajectory matching against cached experts",
            source="Cazenavette et al., CVPR 2022",
        ),
        "tesla": Method(
            "TESLA",
            trajectory_matching(TrajectoryMatchingConstantMemory),
            experts_by(),
            tabulated(TESLA_CIFAR10, TESLA_STEPS),
            label="teacher",
            summary="MTT with a cheaper gradient, and the labels that each expert's end gives the images",
            source="Cui et al., ICML 2023 (soft labels for all data; its commands have them for ImageNet alone)",
        ),
        "dm": Method(
            "DM",
            lambda: DistributionMatching("last"),
            fresh,
            _dm_settings,
            summary="mean feature matching over random networks",
            source="Zhao and Bilen, WACV 2023",
        ),
    }
)
"""The six methods that suit several kinds of data, ``mmdistill.METHODS``, with published settings and without presets.

Images have all of them by name. Other domains list their own, perhaps by the same names (texts have ``dc`` and ``dm``);
:func:`~mmdistill.registry.method_names` lists all methods of a task.
"""
