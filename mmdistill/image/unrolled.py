"""FTD and DDPP, and the settings with which unrolled methods fit the embedded digits."""

from dataclasses import replace

from mmdistill.methods import CORE_METHODS, Method, OptimizerSpec, Settings, experts_by, trajectory_matching
from mmdistill.networks.fit import FitProtocol
from mmdistill.objectives.trajectory import PrunedTrajectoryMatching

DIGITS_EXPERTS = FitProtocol(epochs=0, lr=0.02, momentum=0.0, weight_decay=0.0, batch=64, decay_at=())
"""Smaller minibatches and twice the published rate, so that an epoch of the small data set moves an expert."""


def _flat_settings(settings: Settings, ema: float) -> Settings:
    """Return trajectory-matching settings with flat experts and averaged images."""
    return replace(settings, expert_sam=0.01, ema=ema)


def _ftd_settings(ipc: int) -> Settings:
    return _flat_settings(CORE_METHODS["mtt"].settings(ipc), 0.9995)


def _digits_dd(ipc: int) -> Settings:
    return Settings(
        steps=100,
        real_batch=256,
        optimizers={
            "codes": OptimizerSpec("adam", 0.1, cosine=True),
            "objective": OptimizerSpec("adam", 0.02, cosine=True),
        },
        inner_steps=15,
        inner_lr=0.1,
        inner_batch=0,
        inner_momentum=0.5,
    )


def _digits_mtt(ipc: int) -> Settings:
    return Settings(
        steps=100,
        real_batch=1,
        optimizers={"codes": OptimizerSpec("adam", 0.03), "objective": OptimizerSpec("adam", 1e-3)},
        inner_steps=20,
        inner_lr=0.02,
        inner_batch=0,
        experts=10,
        expert_steps=2,
        start_epochs=3,
    )


UNROLLED_METHODS: dict[str, Method] = {
    "ftd": replace(
        CORE_METHODS["mtt"],
        title="FTD",
        settings=_ftd_settings,
        summary="MTT against flat experts (sharpness-aware training), with a running average of the images",
        source="Du et al., CVPR 2023 (SAM for its surrogate-gap variant)",
    ),
    "ddpp": replace(
        CORE_METHODS["mtt"],
        title="DDPP",
        objective=trajectory_matching(PrunedTrajectoryMatching),
        summary="MTT over the parameters that a student can match",
        source="Li et al., 2022",
    ),
}
"""Relatives of trajectory matching that images have."""

UNROLLED_DIGITS: dict[str, Method] = {
    "dd": replace(CORE_METHODS["dd"], settings=_digits_dd),
    "mtt": replace(CORE_METHODS["mtt"], network=experts_by(DIGITS_EXPERTS), settings=_digits_mtt),
    "tesla": replace(CORE_METHODS["tesla"], network=experts_by(DIGITS_EXPERTS), settings=_digits_mtt),
    "ftd": replace(
        UNROLLED_METHODS["ftd"],
        network=experts_by(DIGITS_EXPERTS),
        settings=lambda ipc: _flat_settings(_digits_mtt(ipc), 0.9),
    ),
    "ddpp": replace(UNROLLED_METHODS["ddpp"], network=experts_by(DIGITS_EXPERTS), settings=_digits_mtt),
}
"""Short runs for the 8 x 8 digits; chosen on a validation split of their training images."""
