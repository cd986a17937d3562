"""Augmentation and mixing of the judges' minibatches."""

from dataclasses import dataclass

from torch import Tensor

from mmdistill.image.augment import WARPS, Operation, SiameseAugmentation, image_inputs
from mmdistill.image.crops import LARGE, RATIO, draw_boxes, resized_crops
from mmdistill.image.cutmix import cut_and_mix
from mmdistill.image.dc_augment import crop_scale_rotate
from mmdistill.image.protocols import Plan
from mmdistill.runtime import Draws
from mmdistill.task import Batch

SHARES = {"rded": 0.5, "sre2l": 0.08}
"""By augmentation, the least share of a large image's area that a random crop has."""


@dataclass(frozen=True)
class Views:
    """Augment and mix the minibatches of judges as their plan says.

    Args:
        dsa: DSA's augmentation of these images.
        mirror: whether a mirror image keeps its class.
        classes: C.
    """

    dsa: SiameseAugmentation
    mirror: bool
    classes: int

    def __call__(self, plan: Plan, networks: int, draws: Draws, flat: Batch) -> Batch:
        """Augment and mix the networks' minibatches, which come one after the other in a flat batch."""
        batch = flat._replace(inputs=self._augment(plan, networks, draws, image_inputs(flat.inputs)))
        if not plan.cutmix:
            return batch
        return cut_and_mix(draws.fold("mix"), batch, networks, plan.cutmix, self.classes)

    def _augment(self, plan: Plan, networks: int, draws: Draws, images: Tensor) -> Tensor:
        flip: tuple[Operation, ...] = ("flip",) if self.mirror else ()
        if plan.augment == "dsa":
            return self.dsa.augmented(draws, images, networks, shared=False)
        if plan.augment == "idc":
            warps = SiameseAugmentation(WARPS, ("color", *flip))
            return warps.augmented(draws, images, networks, shared=False)
        if plan.augment == "dc":
            return crop_scale_rotate(draws, images, networks)
        if plan.augment == "none":
            return images
        height, width = images.shape[2:]
        large = min(height, width) >= LARGE
        if large:
            key = draws.fold("boxes").to(images.device)
            boxes = draw_boxes(key, (len(images), 1), height, width, SHARES[plan.augment], RATIO)
            images = resized_crops(images, boxes, height, width)[:, 0]
        if plan.augment == "sre2l" and not large:
            return SiameseAugmentation(("crop",), flip).augmented(draws, images, networks, shared=False)
        return SiameseAugmentation(flip).augmented(draws, images, networks, shared=False) if flip else images
