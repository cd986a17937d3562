"""Gradient and distribution matching on images: IDC, EDD, DCC, EGM and CAFE, and settings for small data sets."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mmdistill.image.augment import SiameseAugmentation
from mmdistill.image.cutmix import MixedMinibatches
from mmdistill.image.methods.family import Conditions, MethodFamily
from mmdistill.image.storage import tiled
from mmdistill.method import Configured, Method
from mmdistill.methods import CORE_METHODS, trained_by
from mmdistill.networks.early import EarlyStagePool
from mmdistill.networks.schedules import AccuracyDriven, TrainedOnS, TrainedOnT, TrainedUntilOverfitting
from mmdistill.objectives.base import Objective
from mmdistill.objectives.discrimination import DiscriminativeMatching
from mmdistill.objectives.distances import Distance, conv_absolute_error, conv_squared_error, row_cosine
from mmdistill.objectives.gradient import GradientMatching, MultiLevelGradientMatching, WarmUp
from mmdistill.settings import OptimizerSpec, Settings

COLOR_CROP = SiameseAugmentation(operations=("crop",), always=("color",))
COLOR_CROP_CUTOUT = SiameseAugmentation(operations=("crop",), always=("color", "cutout"))
CUTMIXED = MixedMinibatches(COLOR_CROP, cutmix=0.5)
"""Minibatches of IDC's networks, except on digits."""
UNMIXED = MixedMinibatches(COLOR_CROP, cutmix=0.0)
"""Minibatches of IDC's networks on digits in tiles, which a hole or a part of another digit would make unreadable."""
WEIGHT_DECAY = 5e-4


def conv_matching(distance: Distance, augmentation: SiameseAugmentation) -> Callable[[], Objective]:
    """Return a builder of gradient matching by a distance of convolutions, under a siamese augmentation."""
    return lambda: GradientMatching(distance, augment=augmentation.of_classes)


def _idc_settings(ipc: int, lr: float = 5e-3, inner_steps: int = 32, networks: int = 2000) -> Settings:
    """Return IDC's settings; the defaults are CIFAR-10's, whose networks see 2000 images between steps.

    The published code steps one optimizer of momentum 0.5 once per class, which is a joint step of twice the rate
    without momentum. It clamps pixels at each new network; here each step does. The objective and the schedule have
    their own augmentation.
    """
    return Settings(
        steps=100 * networks,
        real_batch=64,
        syn_batch=128,
        optimizers={"codes": OptimizerSpec("sgd", 2 * lr * ipc / 10)},
        outer_steps=100,
        inner_steps=inner_steps,
        inner_momentum=0.9,
        inner_batch=64,
    )


def _edd_settings(ipc: int, lr: float = 1e-2, inner_steps: int = 32) -> Settings:
    """Return IDC's settings with a fifth of its networks (the code's default is a quarter) and twice CIFAR's rate."""
    return _idc_settings(ipc, lr, inner_steps, networks=400)


def _dcc_settings(ipc: int) -> Settings:
    """Return DSA's settings; a network serves ten steps even at one image per class."""
    settings = CORE_METHODS["dsa"].settings(ipc)
    if settings.outer_steps > 1:
        return settings
    return replace(settings, steps=10_000, outer_steps=10, inner_steps=5)


def contrastive(settings: Settings) -> Objective:
    """Return DCC's objective; in the first quarter of the run, a network's first ten steps match class by class."""
    return GradientMatching(row_cosine, "class-sum", warm_up=WarmUp(settings.steps // 4, 10))


def _with_momentum(settings: Settings) -> Settings:
    """Return settings with the momentum of EGM's networks."""
    return replace(settings, inner_momentum=0.5)


def _egm_settings(ipc: int) -> Settings:
    """Return DC's settings, with momentum and at most 50 epochs between two steps."""
    return replace(_with_momentum(CORE_METHODS["dc"].settings(ipc)), inner_steps=50)


def _cafe_settings(ipc: int, augment: bool = False) -> Settings:
    """Return CAFE's rates for 2000 networks of ten steps each, annealed smoothly instead of in three halvings.

    The published code's unbounded loops are bounded here.
    """
    return Settings(
        steps=20_000,
        optimizers={"codes": OptimizerSpec("sgd", 0.1, 0.5, cosine=True)},
        init="noise",
        augment=augment,
        outer_steps=50,
        inner_steps=100,
    )


_METHODS: dict[str, Method] = {
    "idc": Method(
        "IDC",
        conv_matching(conv_squared_error, COLOR_CROP_CUTOUT),
        trained_by(partial(TrainedOnT, weight_decay=WEIGHT_DECAY, prepare=CUTMIXED)),
        _idc_settings,
        tiled(2),
        summary="gradient matching on networks trained on T; each image stores 2 x 2 up-sampled tiles",
        source="Kim et al., ICML 2022",
    ),
    "edd": Method(
        "EDD",
        conv_matching(conv_squared_error, COLOR_CROP_CUTOUT),
        trained_by(partial(EarlyStagePool, weight_decay=WEIGHT_DECAY, prepare=CUTMIXED)),
        _edd_settings,
        tiled(2),
        summary="IDC with a pool of early-stage networks and perturbed weights",
        source="Zhang et al., CVPR 2023",
    ),
    "dcc": Method(
        "DCC",
        Configured(contrastive),
        trained_by(TrainedOnS),
        _dcc_settings,
        summary="gradients matched after their sum over classes, with DSA",
        source="Lee et al., ICML 2022",
    ),
    "egm": Method(
        "EGM",
        MultiLevelGradientMatching,
        trained_by(TrainedUntilOverfitting),
        _egm_settings,
        summary="gradients matched per class and in their mean, by angle and length; networks stop when they overfit S",
        source="Jiang et al., 2022 (epochs between steps by the code's rule, not by the numbers that it found once)",
    ),
    "cafe": Method(
        "CAFE",
        DiscriminativeMatching,
        trained_by(AccuracyDriven),
        _cafe_settings,
        summary="mean features of every layer, and synthetic centres that classify real samples",
        source="Wang et al., CVPR 2022 (a rate annealed smoothly, not in three halvings; limited loops)",
    ),
}
_METHODS["cafe+dsa"] = replace(
    _METHODS["cafe"],
    title="CAFE+DSA",
    settings=partial(_cafe_settings, augment=True),
    summary="CAFE with differentiable siamese augmentation",
)


def _by_absolute_error(digits: bool, lr: float) -> dict[str, Method]:
    """Return IDC and EDD as published for greyscale images: L1 distance, a lower rate, less training between steps."""
    objective = conv_matching(conv_absolute_error, COLOR_CROP if digits else COLOR_CROP_CUTOUT)
    prepare = UNMIXED if digits else CUTMIXED
    return {
        name: replace(
            _METHODS[name],
            objective=objective,
            network=trained_by(partial(kind, weight_decay=WEIGHT_DECAY, prepare=prepare)),
            settings=partial(settings, lr=lr, inner_steps=8),
        )
        for name, kind, settings in (("idc", TrainedOnT, _idc_settings), ("edd", EarlyStagePool, _edd_settings))
    }


def _digits_dm(ipc: int) -> Settings:
    return Settings(steps=500, real_batch=64, optimizers={"codes": OptimizerSpec("sgd", 1.0, 0.5)}, augment=True)


def _digits_dc(ipc: int, augment: bool = False) -> Settings:
    return Settings(
        steps=200,
        real_batch=64,
        optimizers={"codes": OptimizerSpec("sgd", 0.1, 0.5)},
        augment=augment,
        outer_steps=10,
        inner_steps=5,
    )


def _digits_plain_dc(ipc: int) -> Settings:
    """Return DC's settings; below ten images per class, a fresh network for every step, and an annealed rate."""
    settings = _digits_dc(ipc)
    if ipc >= 10:
        return settings
    rate = OptimizerSpec("sgd", 0.5, 0.5, cosine=True)
    return replace(settings, optimizers={"codes": rate}, init="herding", outer_steps=1)


def _digits_idc(ipc: int) -> Settings:
    settings = _idc_settings(ipc, lr=0.035, inner_steps=2)
    return replace(settings, steps=200, outer_steps=20, init="herding")


def _on_digits(name: str, kind: Callable[..., TrainedOnT]) -> Method:
    """Return IDC or EDD for 8 x 8 digits, without tiles (4 x 4 pixels are unreadable) and without augmentation."""
    return replace(
        _METHODS[name],
        objective=lambda: GradientMatching(conv_squared_error),
        network=trained_by(partial(kind, weight_decay=WEIGHT_DECAY)),
        settings=_digits_idc,
        parameterization=tiled(1),
    )


def _reduced(ipc: int, augment: bool = False) -> Settings:
    """Return few steps from herded images, at five or ten times the published rate.

    At one image per class each step has a fresh network, as published; the rates were compared on held-out images.
    """
    return Settings(
        steps=400 if ipc < 10 else 200,
        real_batch=48,
        optimizers={"codes": OptimizerSpec("sgd", 0.5 if ipc < 10 else 1.0, 0.5)},
        init="herding",
        augment=augment,
        outer_steps=1 if ipc < 10 else 10,
        inner_steps=2,
    )


def _reduced_cafe(ipc: int, augment: bool = False) -> Settings:
    rate = OptimizerSpec("adam", 0.05 if ipc < 10 else 0.02, cosine=True)
    settings = replace(_reduced(ipc, augment), steps=200, outer_steps=20, inner_steps=8)
    return replace(settings, optimizers={"codes": rate})


def _reduced_idc(ipc: int) -> Settings:
    return Settings(
        steps=120,
        real_batch=24,
        optimizers={"codes": OptimizerSpec("adam", 0.03, cosine=True)},
        outer_steps=20,
        inner_steps=4,
        inner_batch=64,
        inner_momentum=0.9,
    )


def _reduced_dm(ipc: int) -> Settings:
    rate = OptimizerSpec("sgd", 10.0, 0.5)
    return Settings(steps=600 if ipc < 10 else 1000, real_batch=32, optimizers={"codes": rate}, augment=True)


def _reduced_dm_in_colour(ipc: int) -> Settings:
    """Return the published rate below ten images per class, where ten times as much turns them into noise.

    From ten images on, each has so small a share of its class's mean that the fast rate works; it is annealed, since
    wide networks have large gradients.
    """
    fast = ipc >= 10
    rate = OptimizerSpec("sgd", 10.0 if fast else 1.0, 0.5, cosine=fast)
    return replace(_reduced_dm(ipc), optimizers={"codes": rate})


_small_pool = partial(EarlyStagePool, size=3, epochs=0.1, weight_decay=WEIGHT_DECAY)
_accuracy_driven = trained_by(partial(AccuracyDriven, window=4, watched=256))
_on_mnist = _by_absolute_error(digits=True, lr=1e-4)
MATCHING = MethodFamily(
    _METHODS,
    presets={
        "digits": {
            "dm": replace(CORE_METHODS["dm"], settings=_digits_dm),
            "dc": replace(CORE_METHODS["dc"], settings=_digits_plain_dc),
            "dsa": replace(CORE_METHODS["dsa"], settings=partial(_digits_dc, augment=True)),
            "dcc": replace(_METHODS["dcc"], settings=partial(_digits_dc, augment=True)),
            "egm": replace(_METHODS["egm"], settings=lambda ipc: _with_momentum(_digits_plain_dc(ipc))),
            "cafe": replace(_METHODS["cafe"], settings=_digits_dc),
            "cafe+dsa": replace(_METHODS["cafe+dsa"], settings=partial(_digits_dc, augment=True)),
            "idc": _on_digits("idc", TrainedOnT),
            "edd": _on_digits("edd", EarlyStagePool),
        },
        "cifar100": {"dm": CORE_METHODS["dm"].with_settings(optimizers={"codes": OptimizerSpec("sgd", 1.0, 0.5)})},
        "mnist": _on_mnist,
        "fashion-mnist": _by_absolute_error(digits=False, lr=1e-4 * (28 / 32) ** 2),
        "svhn": {
            "idc": replace(_METHODS["idc"], settings=partial(_idc_settings, inner_steps=8)),
            "edd": replace(_METHODS["edd"], settings=partial(_edd_settings, lr=5e-3, inner_steps=8)),
        },
    },
    reduced={
        "dm": replace(CORE_METHODS["dm"], settings=_reduced_dm),
        "dc": replace(CORE_METHODS["dc"], settings=_reduced),
        "dsa": replace(CORE_METHODS["dsa"], settings=partial(_reduced, augment=True)),
        "dcc": replace(_METHODS["dcc"], settings=partial(_reduced, augment=True)),
        "egm": replace(_METHODS["egm"], settings=lambda ipc: _with_momentum(_reduced(ipc))),
        "cafe": replace(_METHODS["cafe"], settings=_reduced_cafe, network=_accuracy_driven),
        "cafe+dsa": replace(
            _METHODS["cafe+dsa"], settings=partial(_reduced_cafe, augment=True), network=_accuracy_driven
        ),
        "idc": replace(_on_mnist["idc"], settings=_reduced_idc),
        "edd": replace(
            _on_mnist["edd"], settings=_reduced_idc, network=trained_by(partial(_small_pool, prepare=UNMIXED))
        ),
    },
    reduced_colour={
        "dm": replace(CORE_METHODS["dm"], settings=_reduced_dm_in_colour),
        "idc": replace(_METHODS["idc"], settings=_reduced_idc),
        "edd": replace(
            _METHODS["edd"], settings=_reduced_idc, network=trained_by(partial(_small_pool, prepare=CUTMIXED))
        ),
    },
    conditions={
        "dc": Conditions(protocol="dc"),
        "egm": Conditions(protocol="dc"),
        "cafe": Conditions(protocol="cafe"),
        "idc": Conditions(protocol="idc"),
        "edd": Conditions(protocol="idc"),
    },
)
"""``cafe+dsa`` is CAFE under siamese augmentation.

Published rates are the code's, scaled as it scales them. On digits, DM's, DC's and DSA's settings were chosen on a
validation split; DCC, EGM and CAFE take DC's; IDC's and EDD's were chosen likewise for one image per class at width 32,
and scale with the number of images. Of reduced schedules, those of DC, DSA and DCC, IDC's at one image per class and
DM's in colour were tried on held-out training images; the others were not searched. In colour IDC and EDD use squared
distances and CutMix, as published.
"""
