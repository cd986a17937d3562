"""Matching on networks between an initialisation and an expert, which must classify the images: DANCE and NCFM."""

from dataclasses import dataclass, replace
from functools import partial

from mmdistill.image.methods.family import Conditions, MethodFamily
from mmdistill.image.methods.matching import COLOR_CROP_CUTOUT, WEIGHT_DECAY
from mmdistill.image.storage import tiled
from mmdistill.method import Configured, Method
from mmdistill.methods import experts_by
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.trajectories import InterpolatedExperts
from mmdistill.objectives.calibration import CalibratedMatching
from mmdistill.objectives.characteristic import CharacteristicMatching
from mmdistill.objectives.gradient import Siamese
from mmdistill.settings import OptimizerSpec, Settings

DANCE_EXPERTS = FitProtocol(
    epochs=0,
    lr=0.01,
    momentum=0.9,
    weight_decay=WEIGHT_DECAY,
    batch=64,
    decay_at=(2 / 3, 5 / 6),
    decay=0.2,
    restart=False,
)
"""The published training of DANCE's experts; the settings state their epochs."""
NCFM_EXPERTS = replace(DANCE_EXPERTS, batch=128)
"""The published training of NCFM's experts."""
SAMPLER_RATE = OptimizerSpec("sgd", 0.001, 0.5, maximize=True)
"""The optimizer of NCFM's sampler, if there is one."""


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Settings of matching calibrated by an expert.

    Args:
        calibration: the weight of the expert's loss; 0 matches features alone.
    """

    calibration: float = 1.0


@dataclass(frozen=True)
class CharacteristicSettings(CalibrationSettings):
    """Settings of matching characteristic functions, calibrated by an expert.

    Args:
        frequencies: the number of random frequencies at which the functions are compared.
        amplitude: the weight of amplitudes in the comparison; phases have the rest.
        minmax: whether a network learns to sample frequencies at which the functions differ.
    """

    frequencies: int = 4096
    amplitude: float = 0.5
    minmax: bool = False


def calibrated(settings: CalibrationSettings) -> CalibratedMatching:
    """Return DANCE's objective: siamese augmentation of each class, and other draws for the expert's input."""
    return CalibratedMatching(settings.calibration, augment=COLOR_CROP_CUTOUT.of_classes)


def characteristic(settings: CharacteristicSettings, augment: Siamese | None = None) -> CalibratedMatching:
    """Return NCFM's objective, under the given augmentation or the task's."""
    matching = CharacteristicMatching(settings.frequencies, settings.amplitude, minmax=settings.minmax)
    return CalibratedMatching(settings.calibration, matching=matching, augment=augment)


def _dance_settings(ipc: int) -> CalibrationSettings:
    """Return the published settings for all data sets of small images.

    The published code steps one optimizer of momentum 0.5 once per class and term, which is a joint step of twice the
    rate without momentum. Its rate grows with the images per class.
    """
    return CalibrationSettings(
        steps=10_000,
        real_batch=128,
        syn_batch=200,
        optimizers={"codes": OptimizerSpec("sgd", 2 * 0.01 * ipc)},
        augment=True,
        experts=5,
        expert_steps=60,
        start_epochs=1,
    )


def _ncfm_settings(ipc: int) -> CharacteristicSettings:
    """Return the published settings for all data sets of small images.

    The published code steps one optimizer at a rate of 0.001 once per class and term; processes share the classes,
    eight in its command. If a process has one or two classes, a round moves all images about as far as a joint step of
    twice the rate.
    """
    return CharacteristicSettings(
        steps=20_000,
        real_batch=1024,
        optimizers={
            "codes": OptimizerSpec("adamw", 2 * 0.001, weight_decay=WEIGHT_DECAY, cosine=True),
            "objective": SAMPLER_RATE,
        },
        augment=True,
        experts=20,
        expert_steps=60,
        start_epochs=1,
    )


def _digits(ipc: int) -> CalibrationSettings:
    return replace(
        _dance_settings(ipc),
        steps=200,
        real_batch=64,
        optimizers={"codes": OptimizerSpec("adam", 0.03, cosine=True)},
        init="herding",
        augment=False,
        expert_steps=10,
    )


def _ncfm_digits(ipc: int) -> CharacteristicSettings:
    return replace(
        _ncfm_settings(ipc),
        steps=200,
        real_batch=64,
        optimizers={"codes": OptimizerSpec("adam", 0.03, cosine=True), "objective": SAMPLER_RATE},
        init="herding",
        augment=False,
        experts=5,
        expert_steps=10,
        frequencies=1024,
    )


DANCE_REDUCED_EXPERTS = replace(DANCE_EXPERTS, visits=6400)
"""Epochs of a hundred steps, each on a new random part of the training images."""


def few_steps(ipc: int) -> int:
    """Return the steps of a reduced schedule with tiles (DANCE, NCFM, IDM)."""
    return 200 if ipc < 10 else 100


def tile_rate(ipc: int, many: float) -> OptimizerSpec:
    """Return these schedules' optimizer of tiles; ``many`` is the rate from ten images per class on."""
    return OptimizerSpec("adam", 0.03 if ipc < 10 else many, cosine=True)


def _reduced(ipc: int, many: float = 0.03) -> CalibrationSettings:
    """Return few steps from real tiles; both rates were tried on held-out images."""
    return replace(
        _dance_settings(ipc),
        steps=few_steps(ipc),
        real_batch=32,
        optimizers={"codes": tile_rate(ipc, many)},
        expert_steps=10,
    )


def _ncfm_reduced(ipc: int, many: float = 0.03, calibration: float = 1.0) -> CharacteristicSettings:
    """Return few steps from real tiles, with DANCE's experts and rates; in colour the expert's weight was tried."""
    return replace(
        _ncfm_settings(ipc),
        steps=few_steps(ipc),
        real_batch=128,
        optimizers={"codes": tile_rate(ipc, many), "objective": SAMPLER_RATE},
        experts=5,
        expert_steps=10,
        frequencies=1024,
        calibration=calibration,
    )


_dance = Method(
    "DANCE",
    Configured(calibrated),
    experts_by(DANCE_EXPERTS, InterpolatedExperts),
    _dance_settings,
    tiled(2),
    summary="mean features on networks between a start and an expert's end, which must classify the samples; "
    "2 x 2 up-sampled tiles",
    source="Zhang et al., IJCAI 2024 (both terms in one step, not in turn class by class; experts augmented by "
    "DSA, without CutMix)",
)
_ncfm = Method(
    "NCFM",
    Configured(partial(characteristic, augment=COLOR_CROP_CUTOUT.of_classes)),
    experts_by(NCFM_EXPERTS, InterpolatedExperts),
    _ncfm_settings,
    tiled(2),
    summary="characteristic functions of features at random frequencies, on networks between a start and an "
    "expert's end, which must classify the samples; 2 x 2 up-sampled tiles",
    source="Wang et al., CVPR 2025 (both terms in one step; frequencies are learned with minmax alone, which its "
    "configurations leave out too; experts augmented by DSA, without CutMix)",
)
_digits_dance = replace(
    _dance,
    objective=Configured(lambda settings: CalibratedMatching(settings.calibration)),
    settings=_digits,
    parameterization=tiled(1),
)
_digits_ncfm = replace(
    _ncfm,
    objective=Configured(characteristic),
    network=_dance.network,
    settings=_ncfm_digits,
    parameterization=tiled(1),
)
_interpolated = experts_by(DANCE_REDUCED_EXPERTS, InterpolatedExperts)
_reduced_dance = replace(_dance, network=_interpolated, settings=_reduced)
_reduced_ncfm = replace(_ncfm, network=_interpolated, settings=_ncfm_reduced)
CALIBRATED = MethodFamily(
    {"dance": _dance, "ncfm": _ncfm},
    presets={"digits": {"dance": _digits_dance, "ncfm": _digits_ncfm}},
    reduced={"dance": _reduced_dance, "ncfm": _reduced_ncfm},
    reduced_colour={
        "dance": replace(_reduced_dance, settings=partial(_reduced, many=0.01)),
        "ncfm": replace(_reduced_ncfm, settings=partial(_ncfm_reduced, many=0.01, calibration=4.0)),
    },
    conditions={"dance": Conditions(protocol="dance"), "ncfm": Conditions(protocol="ncfm")},
)
"""Digits have neither tiles nor augmentation. In colour DANCE's rates were compared on held-out images; NCFM takes
them."""
