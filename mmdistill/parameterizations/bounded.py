"""Raw storage of images that stay within the range of pixels."""

import torch
from torch import Tensor

from mmdistill.labels import Labels
from mmdistill.parameterizations.raw import Raw
from mmdistill.parameterizations.upsample import PixelSpace


class Bounded(Raw):
    """Learn the images themselves, brought back within the range of pixels after every step.

    Args:
        inputs: initial images ``(M, channels, height, width)``, normalised; they may begin outside.
        labels: their targets.
        classes: ``(M,)`` the class each image stands for.
        num_classes: C.
        space: says the range; where pixels know none, images may be anything.
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
