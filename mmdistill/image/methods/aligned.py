"""Trajectory matching with difficulty aligned to the set's size (DATM, PAD), with published settings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from mmdistill.image.methods.family import Cells, Conditions, MethodFamily
from mmdistill.image.methods.trajectory import DIGITS_FAST_EXPERTS, EARLY_EPOCHS, FTD_EXPERTS, REDUCED_EXPERTS
from mmdistill.method import Method, Storage
from mmdistill.methods import CORE_METHODS, experts_by, row_of
from mmdistill.networks.difficulty import BY_TEN, Scoring
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.parameterizations.from_experts import known_samples
from mmdistill.settings import OptimizerSpec, Settings


class AlignedRow(NamedTuple):
    """A published configuration of DATM or PAD; rates are of SGD with momentum 0.5, or 0.9 for labels."""

    inner_steps: int
    expert_steps: int
    start_first: int
    start_bound: int
    start_epochs: int
    start_steps: int
    codes_lr: float
    labels_lr: float
    rate_lr: float
    inner_batch: int = 0
    skip_above: float = 1.0
    masked: float = 0.0


DATM_CIFAR10 = {
    1: AlignedRow(80, 2, 0, 0, 4, 0, 100.0, 5.0, 1e-7, skip_above=1.1),
    10: AlignedRow(80, 2, 0, 10, 20, 1000, 100.0, 2.0, 1e-5),
    50: AlignedRow(80, 2, 0, 20, 40, 2000, 1000.0, 2.0, 1e-5),
    500: AlignedRow(40, 2, 40, 0, 60, 0, 50.0, 10.0, 1e-5, inner_batch=1000),
    1000: AlignedRow(100, 2, 40, 0, 60, 0, 50.0, 10.0, 1e-5, inner_batch=1000),
}
DATM_CIFAR100 = {
    1: AlignedRow(40, 3, 0, 10, 20, 1000, 1000.0, 10.0, 1e-5, inner_batch=1000),
    10: AlignedRow(80, 2, 0, 30, 50, 2000, 1000.0, 10.0, 1e-5, inner_batch=1000),
    50: AlignedRow(80, 2, 20, 0, 70, 0, 1000.0, 10.0, 1e-5, inner_batch=1000),
    100: AlignedRow(80, 2, 30, 0, 70, 0, 50.0, 10.0, 1e-5, inner_batch=1000),
}
DATM_TINY = {
    1: AlignedRow(40, 2, 0, 15, 20, 2000, 10_000.0, 10.0, 1e-4, inner_batch=1000),
    10: AlignedRow(40, 2, 10, 0, 50, 0, 100.0, 10.0, 1e-4, inner_batch=500),
    50: AlignedRow(20, 2, 40, 0, 70, 0, 100.0, 10.0, 1e-4, inner_batch=1000),
}


PAD_CIFAR10 = {
    1: DATM_CIFAR10[1],
    10: DATM_CIFAR10[10]._replace(masked=0.5),
    50: DATM_CIFAR10[50]._replace(masked=0.25, expert_steps=3),
    500: AlignedRow(40, 2, 40, 60, 70, 2000, 50.0, 10.0, 1e-5, inner_batch=1000, masked=0.5),
    1000: DATM_CIFAR10[1000]._replace(masked=0.5),
}
PAD_CIFAR100 = {
    1: DATM_CIFAR100[1]._replace(masked=0.5, start_bound=20, start_epochs=30),
    10: DATM_CIFAR100[10]._replace(masked=0.5),
    50: DATM_CIFAR100[50],
    100: DATM_CIFAR100[100]._replace(masked=0.5),
}
PAD_TINY = {ipc: row._replace(masked=0.5) for ipc, row in DATM_TINY.items()}


def datm_settings(table: Mapping[int, AlignedRow]) -> Callable[[int], Settings]:
    """Return a table's settings by ipc; in between, those of the largest tabulated ipc below.

    The only published command for experts is CIFAR-10's; other data take it too. Students train on the whole set up to
    fifty images per class of CIFAR-10, else on minibatches if the set is larger than one.
    """

    def settings(ipc: int) -> Settings:
        row = row_of(table, ipc)
        return Settings(
            steps=10_000,
            real_batch=1,
            optimizers={
                "codes": OptimizerSpec("sgd", row.codes_lr, 0.5),
                "labels": OptimizerSpec("sgd", row.labels_lr, 0.9),
                "objective": OptimizerSpec("sgd", row.rate_lr, 0.5),
            },
            augment=True,
            inner_steps=row.inner_steps,
            inner_lr=0.01,
            inner_batch=row.inner_batch,
            experts=100,
            expert_steps=row.expert_steps,
            expert_epochs=100,
            expert_sam=0.01,
            expert_gap=0.3,
            start_epochs=row.start_epochs,
            start_first=row.start_first,
            start_bound=row.start_bound,
            start_steps=row.start_steps,
            skip_above=row.skip_above,
            masked=row.masked,
        )

    return settings


def pad_settings(table: Mapping[int, AlignedRow]) -> Callable[[int], Settings]:
    """Return a table's settings by ipc; experts begin with easy images and end without them.

    The only published command for experts is CIFAR-10's, for any number of images per class; other data take it too.
    """

    def settings(ipc: int) -> Settings:
        return replace(
            datm_settings(table)(ipc), expert_easy=0.75, expert_joining=20, expert_leaving=((41, 0.1), (61, 0.2))
        )

    return settings


def aligned(protocol: FitProtocol, settings: Callable[[int], Settings], scoring: Scoring = BY_TEN) -> Method:
    """Return DATM; its experts train by a protocol, and also choose and label the first images."""
    experts = experts_by(protocol, scoring=scoring)
    return replace(
        CORE_METHODS["mtt"],
        title="DATM",
        network=experts,
        settings=settings,
        parameterization=Storage(known_samples(experts), "the images themselves"),
        label="soft",
        summary="MTT from ever later epochs of flat experts, which choose and label the first images; learned labels",
        source="Guo et al., ICLR 2024 (each step draws one of all experts; images that none knows have the mean of "
        "all labels; fifty images per class of CIFAR-100 start as others do)",
    )


def prioritized(protocol: FitProtocol, settings: Callable[[int], Settings], scoring: Scoring = BY_TEN) -> Method:
    """Return PAD: DATM with settings that mask parameters and choose the samples that experts see.

    Args:
        protocol: how experts train.
        settings: PAD's.
        scoring: the networks that score the difficulty of samples.
    """
    return replace(
        aligned(protocol, settings, scoring),
        title="PAD",
        summary="DATM from experts that begin with easy images and end without them; compares deep parameters alone",
        source="Li et al., 2024 (difficulty by networks trained here, not by the published lists; masks by depth, as "
        "the paper has them, where the published code masks by distance)",
    )


def _digits(ipc: int) -> Settings:
    """Return MTT's rates for the digits, with starts that move on to later epochs of fast experts."""
    adam = OptimizerSpec("adam", 0.03)
    return Settings(
        steps=100 if ipc < 10 else 80,
        real_batch=1,
        optimizers={"codes": adam, "labels": adam, "objective": OptimizerSpec("adam", 1e-3)},
        inner_steps=20,
        inner_lr=0.05,
        inner_batch=0 if ipc < 10 else 20,
        experts=10,
        expert_steps=1,
        expert_epochs=20,
        expert_sam=0.01,
        start_epochs=EARLY_EPOCHS if ipc < 10 else 15,
        start_bound=1 if ipc < 10 else 5,
        start_steps=40,
        skip_above=1.0,
    )


def _with_pad_schedule(settings: Settings, ipc: int) -> Settings:
    """Return settings with PAD's mask for CIFAR-10, and its stages at the same shares of the experts' epochs."""
    epochs = settings.expert_epochs
    return replace(
        settings,
        masked=row_of(PAD_CIFAR10, ipc).masked,
        expert_easy=0.75,
        expert_joining=round(0.2 * epochs),
        expert_leaving=((round(0.4 * epochs), 0.1), (round(0.6 * epochs), 0.2)),
    )


_few_scorers = Scoring(5, replace(DIGITS_FAST_EXPERTS, epochs=4))


def _reduced(ipc: int) -> Settings:
    """Return MTT's reduced settings with FTD's experts, which train until they can label images.

    One image per class starts from herded images, as in the other trajectory matching methods: a random image that the
    experts know represents its class less well.
    """
    few = ipc < 10
    return Settings(
        steps=120,
        real_batch=1,
        optimizers={
            "codes": OptimizerSpec("adam", 0.1 if few else 0.05, cosine=True),
            "labels": OptimizerSpec("adam", 0.1 if few else 0.02, cosine=True),
            "objective": OptimizerSpec("adam", 1e-3),
        },
        init="herding" if few else "real",
        inner_steps=20,
        inner_lr=0.01,
        inner_batch=0 if few else 20,
        augment=True,
        experts=5,
        expert_steps=1,
        expert_epochs=8 if few else 15,
        expert_lr=0.01 if few else 0.02,
        expert_sam=0.01,
        expert_gap=0.3,
        start_epochs=EARLY_EPOCHS if few else 15,
        start_bound=1 if few else 5,
        start_steps=60,
        skip_above=1.0,
    )


_flat_experts = replace(REDUCED_EXPERTS, sam_adaptive=True)
_reduced_scorers = Scoring(5, replace(REDUCED_EXPERTS, epochs=5, lr=0.02, momentum=0.9))
_WHITENED: Cells = {"cifar10": (1, 10, 50, 500, 1000), "cifar100": (1, 10, 50, 100), "tiny-imagenet": (1, 10, 50)}
ALIGNED = MethodFamily(
    {
        "datm": aligned(FTD_EXPERTS, datm_settings(DATM_CIFAR10)),
        "pad": prioritized(FTD_EXPERTS, pad_settings(PAD_CIFAR10)),
    },
    presets={
        "digits": {
            "datm": aligned(DIGITS_FAST_EXPERTS, _digits),
            "pad": prioritized(DIGITS_FAST_EXPERTS, lambda ipc: _with_pad_schedule(_digits(ipc), ipc), _few_scorers),
        },
        "cifar100": {
            "datm": aligned(FTD_EXPERTS, datm_settings(DATM_CIFAR100)),
            "pad": prioritized(FTD_EXPERTS, pad_settings(PAD_CIFAR100)),
        },
        "tiny-imagenet": {
            "datm": aligned(FTD_EXPERTS, datm_settings(DATM_TINY)),
            "pad": prioritized(FTD_EXPERTS, pad_settings(PAD_TINY)),
        },
    },
    reduced={
        "datm": aligned(_flat_experts, _reduced),
        "pad": prioritized(_flat_experts, lambda ipc: _with_pad_schedule(_reduced(ipc), ipc), _reduced_scorers),
    },
    conditions={name: Conditions(protocol="datm", whiten={"mtt": _WHITENED}) for name in ("datm", "pad")},
)
"""Digits take MTT's rates, which were chosen on a validation split. Of the reduced schedules, at width 16 or 32, only
the start of one image per class was compared on held-out images."""
