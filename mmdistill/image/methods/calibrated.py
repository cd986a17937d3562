"""Distribution matching on networks between a start and an expert, whom the images must convince: DANCE."""

from dataclasses import dataclass, replace
from functools import partial

from mmdistill.image.methods.matching import COLOR_CROP_CUTOUT, WEIGHT_DECAY
from mmdistill.image.storage import tiled
from mmdistill.method import Configured, Method
from mmdistill.methods import experts_by
from mmdistill.networks.fit import FitProtocol
from mmdistill.networks.trajectories import InterpolatedExperts
from mmdistill.objectives.calibration import CalibratedMatching
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
"""How the published code trains its experts, for as many epochs as the settings say."""


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Settings of matching that an expert calibrates.

    Args:
        calibration: the weight of the expert's loss; 0 matches features alone.
    """

    calibration: float = 1.0


def calibrated(settings: CalibrationSettings) -> CalibratedMatching:
    """Return DANCE's objective: both sides of a class augmented alike, and what the expert sees by other draws."""
    return CalibratedMatching(settings.calibration, augment=COLOR_CROP_CUTOUT.of_classes)


def _dance_settings(ipc: int) -> CalibrationSettings:
    """Return the published settings of all data sets of small images.

    The published code steps one optimizer of momentum 0.5 once per class and term: a joint step of twice the rate
    without momentum. Its rate grows with the images per class.
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


CALIBRATED_METHODS: dict[str, Method] = {
    "dance": Method(
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
}
"""By method name, with published settings."""

_dance = CALIBRATED_METHODS["dance"]


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


CALIBRATED_DIGITS: dict[str, Method] = {
    "dance": replace(
        _dance,
        objective=Configured(lambda settings: CalibratedMatching(settings.calibration)),
        settings=_digits,
        parameterization=tiled(1),
    )
}
"""Short runs for the 8 x 8 digits: plain images, and none augmented."""

DANCE_REDUCED_EXPERTS = replace(DANCE_EXPERTS, visits=6400)
"""Epochs of a hundred steps, each on images that the one before may not have seen."""


def _reduced(ipc: int, many: float = 0.03) -> CalibrationSettings:
    """Return few steps from real tiles, from ten images per class on at a rate of its own; both tried held out."""
    return replace(
        _dance_settings(ipc),
        steps=200 if ipc < 10 else 100,
        real_batch=32,
        optimizers={"codes": OptimizerSpec("adam", 0.03 if ipc < 10 else many, cosine=True)},
        expert_steps=10,
    )


CALIBRATED_REDUCED: dict[str, Method] = {
    "dance": replace(_dance, network=experts_by(DANCE_REDUCED_EXPERTS, InterpolatedExperts), settings=_reduced)
}
"""For 28 x 28 greyscale images in minutes of one core."""
CALIBRATED_REDUCED_COLOUR: dict[str, Method] = {
    "dance": replace(CALIBRATED_REDUCED["dance"], settings=partial(_reduced, many=0.01))
}
"""The same for 32 x 32 images in colour."""
