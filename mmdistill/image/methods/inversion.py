"""Inversion of a trained network: images that it recognises, with its batch norms' statistics (SRe2L)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmdistill.checks import require_at_least
from mmdistill.errors import ConfigError
from mmdistill.image.crops import RATIO, draw_boxes, resized_crops
from mmdistill.image.methods.family import Conditions, MethodFamily
from mmdistill.labels import LabelKind
from mmdistill.method import Configured, Method, Storage
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.teacher import TrainedNetwork
from mmdistill.objectives.inversion import BatchNormInversion
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.bounded import Bounded
from mmdistill.parameterizations.raw import raw_start
from mmdistill.parameterizations.upsample import pixel_space, require_images
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Task


@dataclass(frozen=True)
class InversionSettings(Settings):
    """Settings of inverting a trained network.

    Args:
        bn_weight: the weight of the batch norms' statistics.
        bn_first: factor of the first batch norm's statistics.
        jitter: the largest shift of all images in a step, in pixels; shifts are cyclic.
        jitter_both: shift up and to the left too, as the published code does on Tiny-ImageNet alone.
        crop_share: the least area share of a step's crop, which is the same for all images and mirrored with even
            chances; 0: whole images.
        bn_together: match the statistics of all images together instead of those of one image per class.
    Raises:
        ConfigError: a negative value, or a share above 1.
    """

    bn_weight: float = 0.01
    bn_first: float = 10.0
    jitter: int = 4
    jitter_both: bool = False
    crop_share: float = 0.0
    bn_together: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        require_at_least(self, {"bn_weight": 0.0, "bn_first": 0.0, "jitter": 0, "crop_share": 0.0})
        Shaken(self.jitter, self.crop_share, self.jitter_both)


@dataclass(frozen=True)
class Shaken:
    """Apply one random crop and shift to all images of a step, so that no position is special.

    Args:
        shift: the largest shift, in pixels; shifts are cyclic.
        share: the least area share of a crop, which is mirrored with even chances; 0: neither crop nor mirror.
        both: shift up and to the left too, not only down and to the right.
    Raises:
        ConfigError: a share above 1.
    """

    shift: int = 4
    share: float = 0.0
    both: bool = False

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ConfigError(f"a crop has a share of an image between 0 and 1 (crop_share), got {self.share:g}")

    def __call__(self, draws: Draws, images: Tensor) -> Tensor:
        """Crop and shift images ``(n, channels, height, width)``; those with a side of one pixel stay as they are."""
        key, (height, width) = draws.to(images.device), images.shape[2:]
        if min(height, width) == 1:
            return images
        if self.share:
            box = draw_boxes(key.fold("crop"), (1, 1), height, width, self.share, RATIO)
            images = resized_crops(images, box, height, width)[:, 0]
            images = torch.where(key.fold("mirror").uniform(1) < 0.5, images.flip(3), images)
        least = -self.shift if self.both else 0
        down, right = least + key.fold("shift").integers(self.shift - least + 1, 2)
        rows = (torch.arange(height, device=images.device) - down) % height
        columns = (torch.arange(width, device=images.device) - right) % width
        return images.index_select(2, rows).index_select(3, columns)


def recovery(settings: InversionSettings) -> BatchNormInversion:
    """Return SRe2L's objective."""
    return BatchNormInversion(
        settings.bn_weight,
        settings.bn_first,
        seen=Shaken(settings.jitter, settings.crop_share, settings.jitter_both),
        together=settings.bn_together,
    )


def taught(settings: Settings) -> NetworkSchedule:
    """Return the schedule of one network, trained on the real data for ``settings.teacher_epochs``."""
    return TrainedNetwork(settings.teacher_epochs)


def bounded_images(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build raw images clamped to the range of pixels; whitened ones are unbounded."""
    start = raw_start(task, budget, settings.init, label, draws)
    images = require_images(start.inputs)
    return Bounded(images, start.labels, start.classes, start.num_classes, pixel_space(task, images.shape[1]))


def _sre2l_settings(ipc: int) -> InversionSettings:
    """Return the published command for CIFAR-100, the only one for images of 32 x 32."""
    rate = OptimizerSpec("adam", 0.25, betas=(0.5, 0.9), cosine=True)
    return InversionSettings(steps=1000, optimizers={"codes": rate}, init="noise", teacher_epochs=200)


def _tiny_settings(ipc: int) -> InversionSettings:
    settings = replace(_sre2l_settings(ipc), steps=4000, bn_weight=1.0, jitter_both=True, crop_share=0.08)
    return replace(settings, optimizers={"codes": replace(settings.optimizers["codes"], lr=0.1)})


_sre2l = Method(
    "SRe2L",
    Configured(recovery),
    taught,
    _sre2l_settings,
    Storage(bounded_images, "raw images within the range of pixels"),
    label="teacher",
    summary="images that a trained network recognises and whose statistics are those of its batch norms",
    source="Yin et al., NeurIPS 2023 (one label for each image, where its judges, those of the protocol sre2l, ask "
    "the network anew for each augmented minibatch; the network's rate is constant; no JPEG)",
)
_reduced = _sre2l.with_settings(steps=300, bn_weight=1.0, teacher_epochs=5)
INVERSION = MethodFamily(
    {"sre2l": _sre2l},
    presets={
        "digits": {"sre2l": _sre2l.with_settings(steps=200, teacher_epochs=60, jitter=1)},
        "tiny-imagenet": {"sre2l": replace(_sre2l, settings=_tiny_settings)},
    },
    reduced={"sre2l": _reduced},
    reduced_colour={"sre2l": _reduced.with_settings(teacher_epochs=10)},
    conditions={"sre2l": Conditions(protocol="sre2l", model="resnet18-bn")},
)
"""On digits the teacher trains as long as judges of the whole training set. Of reduced schedules, weight and rate were
compared on held-out images of CIFAR-10, at ten per class."""
