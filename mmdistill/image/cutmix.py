"""CutMix of minibatches, by which IDC's networks and some papers' judges train."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.image.augment import SiameseAugmentation, image_inputs
from mmdistill.labels import as_probabilities
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Task, one_tensor


@dataclass(frozen=True)
class MixedMinibatches:
    """Augment a minibatch per sample, then sometimes mix it with itself by CutMix, as IDC trains its networks.

    Args:
        augmentation: of each image; None: none.
        cutmix: the probability that a minibatch is mixed.
    Shapes:
        batches of images ``(n, channels, height, width)``; targets come back as ``(n, C)`` soft labels if
        ``cutmix`` and both sides have several pixels.
    Raises:
        ConfigError: ``cutmix`` is not a probability.
    Source: Kim et al., ICML 2022.
    """

    augmentation: SiameseAugmentation | None = None
    cutmix: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.cutmix <= 1:
            raise ConfigError(f"cutmix is a probability, got {self.cutmix}")

    def __call__(self, task: Task, draws: Draws, batch: Batch) -> Batch:
        """Return the minibatch to train on, as it is if its images have a side of one pixel.

        Raises:
            ConfigError: CutMix in a task without classes.
        """
        images = image_inputs(batch.inputs)
        if self.augmentation is not None:
            images = self.augmentation.augmented(draws.fold("augment"), images, shared=False)
        batch = Batch(images, batch.targets, batch.weight)
        if not self.cutmix or min(images.shape[-2:]) == 1:
            return batch
        if task.num_classes is None:
            raise ConfigError("CutMix mixes the labels of classes, which this task does not have")
        return cut_and_mix(draws.fold("mix"), batch, 1, self.cutmix, task.num_classes)


def cut_and_mix(draws: Draws, batch: Batch, groups: int, probability: float, num_classes: int) -> Batch:
    """Mix minibatches by CutMix: paste a box from another image of the group, and mix the labels by area.

    All groups share one box, but each is shuffled on its own. The box has the image's aspect, an area share uniform in
    [0, 1), and its centre anywhere, so that a part may lie outside.

    Args:
        draws: the key.
        batch: flat, one minibatch after the other.
        groups: how many minibatches it holds.
        probability: of mixing at all.
        num_classes: C.

    Shapes:
        batch.inputs ``(groups * m, channels, height, width)``; targets become ``(groups * m, C)`` soft labels.
    Raises:
        ShapeError: images or targets that are a named dict.

    Source: Yun et al., ICCV 2019, with beta = 1; Kim et al., ICML 2022.
    """
    images, targets = image_inputs(batch.inputs), one_tensor(batch.targets, "CutMix")
    key = draws.to(images.device)
    size = len(images) // groups
    partner = key.fold("partner").uniform(groups, size).argsort(1)
    partner = (partner + size * torch.arange(groups, device=images.device)[:, None]).flatten()
    box = cutmix_box(key, probability, *images.shape[-2:])
    share = 1 - box.to(images.dtype).mean()
    labels = as_probabilities(targets, num_classes, images.dtype)
    mixed = torch.where(box, images[partner], images)
    return Batch(mixed, share * labels + (1 - share) * labels[partner], batch.weight)


def cutmix_box(draws: Draws, probability: float, height: int, width: int) -> Tensor:
    """Return a mask ``(height, width)`` that is true inside CutMix's box; false everywhere without mixing."""
    u = draws.fold("box").uniform(4)
    inside = (u[0] < probability)[None]
    masks = []
    for side, centre in ((height, u[2]), (width, u[3])):
        half = ((side * (1 - u[1]).sqrt()).floor() / 2).floor()
        middle = (centre * side).floor()
        position = torch.arange(side, device=u.device)
        masks.append((position >= middle - half) & (position < middle + half) & inside)
    return masks[0][:, None] & masks[1][None]
