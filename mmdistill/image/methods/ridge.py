"""The kernel ridge family on images: KRR, FRePo, RFAD and KIP, with published, digits' and reduced settings."""

import math
from dataclasses import replace
from functools import partial

import torch

from mmdistill.errors import ConfigError
from mmdistill.image.methods.family import CIFAR, Conditions, MethodFamily
from mmdistill.image.task import ImageTask
from mmdistill.labels import FixedLabels, LabelKind, LearnedLabels, centred_one_hot
from mmdistill.method import ByClasses, Method
from mmdistill.methods import fresh, ridge_matching, trained_on_s, unread
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.staggered import NetworkPool
from mmdistill.objectives.base import Network, flatten_classes
from mmdistill.objectives.infinite_width import ConvolutionalKernel, FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import FeatureKernel, KernelRidgeMatching
from mmdistill.objectives.ridge import MarginKernelRidge, RandomFeatureRidge
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw, raw_start
from mmdistill.parameterizations.transform import Transformed
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, ClassBatch, Task, one_tensor

MIRRORED = 500
"""The largest set to which the published code's settings add mirror images."""


class MirroredKernelRidge(MarginKernelRidge):
    """FRePo's objective; the regression on a small set includes its mirror images, with the same labels.

    Only colour images that may be mirrored get them (objects, not digits; the published code leaves out greyscale
    clothes too). Networks train without mirror images.

    Args:
        ridge: lambda, scaled by trace.
        limit: the most synthetic images, in all, that are mirrored.

    Source: Zhou et al., NeurIPS 2022, published implementation.
    """

    def __init__(self, ridge: float = 1e-6, limit: int = MIRRORED) -> None:
        super().__init__(ridge)
        self.limit = limit

    def forward(
        self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws
    ) -> torch.Tensor:
        """Return the squared error of the ridge prediction and the margin term."""
        syn = with_its_mirror(network.task, flatten_classes(syn), self.limit)
        return super().forward(network, syn, real, draws)


def with_its_mirror(task: Task, syn: Batch, limit: int = MIRRORED) -> Batch:
    """Add mirror images to a flat set of at most ``limit`` images, if :func:`may_mirror` allows it."""
    return with_mirror_images(syn) if may_mirror(task) and len(syn.weight) <= limit else syn


def may_mirror(task: Task) -> bool:
    """Return whether a task's images are in colour, keep their class when mirrored, and may be augmented at all."""
    return isinstance(task, ImageTask) and task.data.mirror and task.data.shape[0] == 3 and task.data.planar


def with_mirror_images(batch: Batch) -> Batch:
    """Return ``(2 n, ...)`` samples: those of a flat batch of images, then their left-right mirror images.

    Raises:
        ShapeError: images or targets that are a named dict.
    """
    images, targets = one_tensor(batch.inputs, "mirroring"), one_tensor(batch.targets, "mirroring")
    both = torch.cat([images, images.flip(-1)])
    return Batch(both, torch.cat([targets, targets]), torch.cat([batch.weight, batch.weight]))


def scaled_labels(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build learned images with labels, learned or fixed, that start at (one-hot - 1/C) / sqrt(C / 10).

    Differs from: other storages (``--parameterization``), whose labels start at one-hot - 1/C, as usual.

    Raises:
        ConfigError: softmax labels, which a regression on centred targets cannot reach.
    """
    start = raw_start(task, budget, settings.init, "unrestricted", draws)
    if label not in ("unrestricted", "hard"):
        raise ConfigError(
            "scaled labels, with which this method stores its samples (scaled_labels), are hard or unrestricted ones "
            "(--label hard or unrestricted); another way of storing them (parameterization) may have others"
        )
    values = centred_one_hot(start.classes, start.num_classes) / math.sqrt(start.num_classes / 10)
    labels = LearnedLabels(values) if label == "unrestricted" else FixedLabels(values, "hard")
    return Raw(*start._replace(labels=labels))


def transformed(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build learned images with one learned linear map of their pixels.

    Raises:
        ConfigError: a task without classes.
        ShapeError: samples that are a named dict.
    """
    return Transformed(*raw_start(task, budget, settings.init, label, draws))


def network_pool(settings: Settings) -> NetworkSchedule:
    """Return ten networks of staggered ages, each redrawn after ``outer_steps`` updates on the synthetic set."""
    return NetworkPool(max_age=settings.outer_steps, lr=settings.inner_lr, batch=settings.inner_batch)


def closed_form_ntk(ridge: float) -> KernelRidgeMatching:
    """Return ridge regression under a one-hidden-layer NTK, in float64, against class-balanced batches."""
    return KernelRidgeMatching(FullyConnectedKernel("ntk", depth=1, dtype=torch.float64), ridge, view="classes")


def convolutional_ntk(ridge: float) -> KernelRidgeMatching:
    """Return ridge regression under the NTK of three convolutions without pooling, likewise."""
    return KernelRidgeMatching(ConvolutionalKernel("ntk", depth=3, dtype=torch.float64), ridge, view="classes")


def _frepo_settings(ipc: int) -> Settings:
    """Return the published settings, for ``freponet-bn``; judges are ``freponet``, without norm."""
    rate = OptimizerSpec("lamb", 3e-4, cosine=True, floor=0.1)
    return Settings(
        steps=500_000,
        real_batch=1024,
        optimizers={"codes": rate, "labels": rate},
        outer_steps=100,
        inner_lr=3e-4,
        inner_batch=1000,
    )


def _rfad_settings(ipc: int) -> Settings:
    """Return the published settings, for ``convnet-w256-nn``.

    The steps are the published code's maximum; it stops earlier once a validation loss has not fallen for 1000 steps.
    """
    rate = OptimizerSpec("adabelief", 1e-3)
    return Settings(
        steps=100_000,
        real_batch=5120,
        optimizers={
            "codes": rate,
            "labels": rate,
            "decoder": OptimizerSpec("adabelief", 5e-5),
            "objective": OptimizerSpec("adabelief", 1e-2),
        },
    )


def _kip_settings(ipc: int, classes: int = 10) -> Settings:
    """Return the settings; real batches are 5000 images, balanced over the classes, also for the user's own data.

    The published code recommends 1000 steps or more.
    """
    rate = OptimizerSpec("adam", 0.04)
    return Settings(steps=5000, real_batch=max(5000 // classes, 1), optimizers={"codes": rate, "labels": rate})


def _krr_settings(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.01, cosine=True)
    return Settings(
        steps=5000,
        real_batch=1024,
        optimizers={"codes": rate, "labels": rate},
        outer_steps=100,
        inner_steps=1,
    )


_METHODS: dict[str, Method] = {
    "krr": Method(
        "KRR-Feature",
        ridge_matching(partial(KernelRidgeMatching, FeatureKernel()), 1e-6),
        trained_on_s,
        _krr_settings,
        label="unrestricted",
        summary="kernel ridge regression on the features of a network trained on S, learned labels",
        source="after Zhou et al., NeurIPS 2022 (FRePo, without its pool)",
    ),
    "frepo": Method(
        "FRePo",
        ridge_matching(MirroredKernelRidge, 1e-6),
        network_pool,
        _frepo_settings,
        parameterization=scaled_labels,
        label="unrestricted",
        summary="ridge regression on the features of a pool of networks trained on S; learned labels with a margin",
        source="Zhou et al., NeurIPS 2022",
    ),
    "rfad": Method(
        "RFAD",
        ridge_matching(partial(RandomFeatureRidge, 8), 5e-3),
        fresh,
        _rfad_settings,
        parameterization=transformed,
        label="unrestricted",
        summary="ridge regression on the features of fresh random networks, Platt scaling, learned labels",
        source="Loo et al., NeurIPS 2022 (a fixed number of steps for early stopping)",
    ),
    "kip": Method(
        "KIP",
        ridge_matching(closed_form_ntk, 1e-6),
        unread,
        ByClasses(_kip_settings),
        label="unrestricted",
        summary="ridge regression under the closed-form NTK of a fully connected network, learned labels",
        source="Nguyen et al., ICLR 2021",
        judge="ntk",
    ),
    "kip-conv": Method(
        "KIP-Conv",
        ridge_matching(convolutional_ntk, 1e-6),
        unread,
        ByClasses(_kip_settings),
        label="unrestricted",
        summary="KIP under the closed-form NTK of three convolutions without pooling",
        source="Nguyen et al., ICLR 2021 and NeurIPS 2021 (without its pooling)",
        judge="ntk-conv",
    ),
}


def _digits_frepo(ipc: int) -> Settings:
    rate = OptimizerSpec("lamb", 0.01, cosine=True, floor=0.1)
    return replace(
        _frepo_settings(ipc), steps=500, real_batch=256, optimizers={"codes": rate, "labels": rate}, inner_lr=3e-3
    )


def _digits_krr(ipc: int) -> Settings:
    """Return a start from herded images, and a slower rate from ten images per class on: more images overfit."""
    rate = OptimizerSpec("adam", 0.01 if ipc < 10 else 0.005, cosine=True)
    return Settings(
        steps=500,
        real_batch=256,
        optimizers={"codes": rate, "labels": rate},
        init="herding",
        outer_steps=100,
        inner_steps=1 if ipc < 10 else 5,
    )


def _digits_rfad(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.02, cosine=True)
    optimizers = {
        "codes": rate,
        "labels": rate,
        "decoder": OptimizerSpec("adam", 5e-5),
        "objective": OptimizerSpec("adam", 0.05),
    }
    return replace(_rfad_settings(ipc), steps=200, real_batch=256, optimizers=optimizers)


def _digits_kip(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.02, cosine=True)
    # Images learned without augmentation suit the kernel alone, and transfer badly to judges that augment.
    return Settings(steps=300, real_batch=50, optimizers={"codes": rate, "labels": rate}, augment=True)


def _narrow_ridge(ipc: int) -> float:
    """Return lambda for narrow networks: the published one (0) below ten images per class, a larger one from ten on.

    If there are about as many samples (with FRePo's mirror images) as features, regression with the published 1e-6 is
    ill-conditioned: the loss of a thousand samples and 1,024 features starts at 16, with 0.1 at 0.32. Wide networks
    have far more features.
    """
    return 0.0 if ipc < 10 else 0.1


def _reduced(published: Settings, steps: int, ipc: int, **rates: OptimizerSpec) -> Settings:
    """Return fewer, smaller steps from herded images, augmented like the judges, which otherwise gain little."""
    optimizers = {**published.optimizers, **rates}
    real = 64 if ipc < 10 else 128
    return replace(published, steps=steps, real_batch=real, optimizers=optimizers, init="herding", augment=True)


def _reduced_krr(ipc: int) -> Settings:
    rate = OptimizerSpec("adam", 0.02 if ipc < 10 else 0.01, cosine=True)
    settings = _reduced(_krr_settings(ipc), 800 if ipc < 10 else 400, ipc, codes=rate, labels=rate)
    return replace(settings, ridge=_narrow_ridge(ipc))


def _reduced_frepo(ipc: int) -> Settings:
    """Return settings with the pool's published rate: a faster one gains nothing at width 16 and loses at 64."""
    rate = OptimizerSpec("lamb", 0.003 if ipc < 10 else 0.01, cosine=True)
    settings = _reduced(_frepo_settings(ipc), 1500 if ipc < 10 else 600, ipc, codes=rate, labels=rate)
    return replace(settings, real_batch=128, ridge=_narrow_ridge(ipc))


def _reduced_rfad(ipc: int) -> Settings:
    rate = OptimizerSpec("adabelief", 0.01, cosine=True)
    decoder, scale = OptimizerSpec("adabelief", 1e-4), OptimizerSpec("adabelief", 0.05)
    steps = 1500 if ipc < 10 else 500
    return _reduced(_rfad_settings(ipc), steps, ipc, codes=rate, labels=rate, decoder=decoder, objective=scale)


def _reduced_kip(ipc: int) -> Settings:
    """Return settings for ``mlp-w1024``, a finite network of this kernel's kind.

    On held-out images such networks gain most from fast rates, and ConvNets gain nothing: sets that fit a fully
    connected kernel suit fully connected networks.
    """
    rate = OptimizerSpec("adam", 0.02, cosine=True)
    return replace(_reduced(_kip_settings(ipc), 400, ipc, codes=rate, labels=rate), real_batch=100)


def _reduced_kip_conv(ipc: int) -> Settings:
    """Return slow rates: images that move far fit the kernel alone, and no network."""
    rate = OptimizerSpec("adam", 0.005, cosine=True)
    return replace(_reduced(_kip_settings(ipc), 150, ipc, codes=rate, labels=rate), real_batch=5)


KERNEL_RIDGE = MethodFamily(
    _METHODS,
    presets={
        "digits": {
            "krr": replace(_METHODS["krr"], settings=_digits_krr),
            "frepo": replace(_METHODS["frepo"], settings=_digits_frepo),
            "rfad": replace(_METHODS["rfad"], settings=_digits_rfad),
            "kip": replace(_METHODS["kip"], settings=_digits_kip),
            "kip-conv": replace(_METHODS["kip-conv"], settings=_digits_kip),
        },
        **{
            data: {
                name: replace(_METHODS[name], settings=partial(_kip_settings, classes=classes))
                for name in ("kip", "kip-conv")
            }
            for data, classes in (("cifar100", 100), ("tiny-imagenet", 200))
        },
    },
    reduced={
        "krr": replace(_METHODS["krr"], settings=_reduced_krr),
        "frepo": replace(_METHODS["frepo"], settings=_reduced_frepo),
        "rfad": replace(
            _METHODS["rfad"], objective=ridge_matching(partial(RandomFeatureRidge, 2), 5e-3), settings=_reduced_rfad
        ),
        "kip": replace(_METHODS["kip"], settings=_reduced_kip),
        "kip-conv": replace(_METHODS["kip-conv"], settings=_reduced_kip_conv),
    },
    conditions={
        "frepo": Conditions(
            protocol="frepo", model="freponet-bn", whiten={"frepo": {**CIFAR, "tiny-imagenet": (1, 10)}}
        ),
        "rfad": Conditions(
            protocol="rfad", model="convnet-w256-nn", whiten={"frepo": CIFAR, "kip": {"svhn": (1, 10, 50)}}
        ),
        "kip": Conditions(protocol="kip", whiten={"kip": CIFAR}),
        "kip-conv": Conditions(protocol="kip", whiten={"kip": CIFAR}),
    },
)
"""The kernel ridge family; the digits' settings were chosen on a validation split.

Reduced schedules start from herded images, and RFAD's has two random networks instead of eight. Published whitening
differs: RFAD's code does not subtract the mean image, and FRePo's standardises channels by other deviations.
"""
