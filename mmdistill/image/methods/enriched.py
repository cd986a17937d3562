"""Distribution matching on a queue of networks in training that must classify the images: IDM."""

from dataclasses import dataclass, replace
from functools import partial

from mmdistill.image.methods.calibrated import few_steps, tile_rate
from mmdistill.image.methods.family import MethodFamily
from mmdistill.image.methods.matching import WEIGHT_DECAY
from mmdistill.image.storage import tiled
from mmdistill.method import Configured, Method
from mmdistill.networks.enriched import EnrichedPool
from mmdistill.objectives.regularised import RegularisedMatching
from mmdistill.settings import OptimizerSpec, Settings


@dataclass(frozen=True)
class PoolSettings(Settings):
    """Settings of matching on a queue of networks; a fresh one joins every ``outer_steps``.

    Args:
        regularisation: the weight of the classification loss in a network of accuracy 1; 0 matches features alone.
        pool_size: the most networks in the queue.
        pool_first: networks in the first step.
        pool_trained: networks that train in each step.
        pool_recount: steps between resets of the accuracy counts; 0: never.
    """

    regularisation: float = 50.0
    pool_size: int = 100
    pool_first: int = 4
    pool_trained: int = 2
    pool_recount: int = 100


def enriched(settings: PoolSettings) -> EnrichedPool:
    """Return a queue of networks in training by the settings' ``pool_*``, ``outer_steps`` and ``inner_*``."""
    return EnrichedPool(
        size=settings.pool_size,
        first=settings.pool_first,
        every=settings.outer_steps,
        trained=settings.pool_trained,
        steps=settings.inner_steps,
        lr=settings.inner_lr,
        momentum=settings.inner_momentum,
        weight_decay=WEIGHT_DECAY,
        batch=settings.inner_batch,
        recount=settings.pool_recount,
    )


PIXEL_DEVIATION = 0.2
"""The deviation of CIFAR's channels, which converts the published code's normalised units to pixels."""


def _idm_settings(ipc: int, many: float = 10.0, inner_steps: int = 10) -> PoolSettings:
    """Return the published settings; the commands weight the loss by .5 or .1 per percent of accuracy.

    The published code steps one optimizer of rate 0.2 and momentum 0.5 once per class, which is a joint step of twice
    the rate without momentum. It learns normalised samples; here they are pixels.

    Args:
        ipc: images per class.
        many: the weight from fifty images per class on.
        inner_steps: minibatches per step from ten images per class on.
    """
    few, fifty = ipc < 10, ipc >= 50
    return PoolSettings(
        steps=20_000,
        real_batch=5000 if few else 256,
        optimizers={"codes": OptimizerSpec("sgd", 2 * 0.2 * PIXEL_DEVIATION**2)},
        augment=True,
        outer_steps=5 if few else 30,
        inner_steps=10 if few else inner_steps,
        inner_momentum=0.9,
        regularisation=many if fifty else 50.0,
        pool_recount=500 if fifty else 100,
    )


def _cifar100(ipc: int) -> PoolSettings:
    """Return the commands for CIFAR-100: at ten images per class five times the training and a weaker loss."""
    settings = _idm_settings(ipc)
    return settings if not 10 <= ipc < 50 else replace(settings, inner_steps=50, regularisation=10.0)


def _tiny(ipc: int) -> PoolSettings:
    """Return the commands for Tiny-ImageNet, which reset accuracy counts less often."""
    settings = replace(_idm_settings(ipc, many=80.0), real_batch=256, outer_steps=30)
    if ipc < 10:
        return settings
    fifty = ipc >= 50
    return replace(settings, inner_steps=50 if fifty else 10, pool_recount=1000 if fifty else 500)


def _digits(ipc: int) -> PoolSettings:
    return replace(
        _idm_settings(ipc),
        steps=200,
        real_batch=64,
        optimizers={"codes": OptimizerSpec("adam", 0.1, cosine=True)},
        init="herding",
        augment=False,
        outer_steps=20,
        inner_steps=5,
        inner_batch=64,
        pool_recount=0,
    )


def _reduced(ipc: int, many: float = 0.03) -> PoolSettings:
    """Return few steps from real tiles at DANCE's rates, with two thousand minibatches for a handful of networks.

    The loss soon outweighs the means of narrow networks' few features: from ten images per class on, a tenth of its
    weight does better on held-out images.
    """
    few = ipc < 10
    return replace(
        _idm_settings(ipc),
        steps=few_steps(ipc),
        real_batch=32,
        optimizers={"codes": tile_rate(ipc, many)},
        outer_steps=30,
        inner_steps=5 if few else 10,
        inner_batch=64,
        regularisation=50.0 if few else 5.0,
        pool_recount=0,
    )


_idm = Method(
    "IDM",
    Configured(lambda settings: RegularisedMatching(settings.regularisation)),
    enriched,
    _idm_settings,
    tiled(2),
    summary="mean features on a queue of networks that train on T, each of which must classify the samples as it "
    "does real ones; 2 x 2 up-sampled tiles",
    source="Zhao et al., CVPR 2023 (one step for all classes, of pixels, which stay in their range)",
)
ENRICHED = MethodFamily(
    {"idm": _idm},
    presets={
        "digits": {"idm": replace(_idm, settings=_digits, parameterization=tiled(1))},
        "cifar100": {"idm": replace(_idm, settings=_cifar100)},
        "tiny-imagenet": {"idm": replace(_idm, settings=_tiny)},
    },
    reduced={"idm": replace(_idm, settings=_reduced)},
    reduced_colour={"idm": replace(_idm, settings=partial(_reduced, many=0.01))},
)
"""Digits have neither tiles nor augmentation."""
