"""Raw storage of images that stay within the pixels' value range."""

import torch
from torch import Tensor

from mmdistill.labels import Labels
from mmdistill.parameterizations.raw import Raw
from mmdistill.parameterizations.upsample import PixelSpace


class Bounded(Raw):
    """Learn the images themselves, clamped to the pixels' value range after every step.

    Args:
        inputs: initial images ``(M, channels, height, width)``, normalised; they may lie outside the range.
        labels: the images' targets.
        classes: ``(M,)`` the class of each image.
        num_classes: C.
        space: gives the range, which may be infinite.
    """

    def __init__(
        self, inputs: Tensor, labels: Labels, classes: Tensor | None, num_classes: int | None, space: PixelSpace
    ) -> None:
        super().__init__(inputs, labels, classes, num_classes)
        self.low, self.high = (bound.to(inputs) for bound in space.bounds())

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the images."""
        self.inputs.clamp_(self.low.to(self.inputs), self.high.to(self.inputs))
