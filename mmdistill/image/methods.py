"""Methods of the image domain, and the settings that fit the embedded digits."""

from dataclasses import replace

from mmdistill.methods import CORE_METHODS, Method, OptimizerSpec, Settings, trained_on_s
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


METHODS: dict[str, Method] = {
    "krr": Method(
        "KRR-Feature",
        lambda: KernelRidgeMatching(FeatureKernel(), ridge=1e-6, scale="trace"),
        trained_on_s,
        _krr_settings,
        label="learned",
        summary="kernel ridge regression on the features of a network trained on S, learned labels",
        source="after Zhou et al., NeurIPS 2022 (FRePo, without its pool)",
    ),
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
    return replace(_krr_settings(ipc), steps=500, real_batch=256)


DIGITS: dict[str, Method] = {
    "dm": replace(CORE_METHODS["dm"], settings=_digits_dm),
    "dc": replace(CORE_METHODS["dc"], settings=_digits_dc),
    "dsa": replace(CORE_METHODS["dsa"], settings=lambda ipc: _digits_dc(ipc, augment=True)),
    "krr": replace(METHODS["krr"], settings=_digits_krr),
}
"""Short runs for the 8 x 8 digits, whose published settings do not exist; chosen on a validation split."""
PRESETS = {"digits": DIGITS}
"""Methods by data set name, where its settings differ."""
