"""Raw storage of samples whose values have bounds, such as pixels."""

import torch
from torch import Tensor

from mmdistill.errors import ShapeError
from mmdistill.labels import Labels
from mmdistill.parameterizations.raw import Raw


class Bounded(Raw):
    """Learn the samples themselves, brought back within bounds after every step.

    Args:
        inputs: initial samples ``(M, ...)``, one tensor; they may begin outside.
        labels: their targets.
        classes: ``(M,)`` the class each sample stands for.
        num_classes: C.
        low: the least values, in the samples' units, which broadcast over one sample.
        high: the largest ones.
    Raises:
        ShapeError: bounds of another shape than a sample, or of which the lower one is not below.
    """

    def __init__(
        self, inputs: Tensor, labels: Labels, classes: Tensor | None, num_classes: int | None, low: Tensor, high: Tensor
    ) -> None:
        super().__init__(inputs, labels, classes, num_classes)
        shape = inputs.shape[1:]
        fits = all(
            bound.ndim == len(shape) and all(own in (1, full) for own, full in zip(bound.shape, shape, strict=True))
            for bound in (low, high)
        )
        if not fits or not bool((low < high).all()):
            raise ShapeError(
                f"samples of {tuple(shape)} have bounds of that shape, the lower below the upper, got "
                f"{tuple(low.shape)} and {tuple(high.shape)}"
            )
        self.low, self.high = low.to(inputs), high.to(inputs)

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the samples."""
        self.inputs.clamp_(self.low.to(self.inputs), self.high.to(self.inputs))
