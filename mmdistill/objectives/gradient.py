"""Single-step parameter matching: gradients of the real and the synthetic loss."""

from typing import Literal

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.objectives.base import Network, Objective, class_gradients
from mmdistill.objectives.distances import Distance, row_cosine
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch


class GradientMatching(Objective):
    r"""Match per-class gradients of the real and the synthetic loss (Eq. 8, 9).

    .. math:: \sum_c d(\nabla_\theta \ell(S_c; \theta), \nabla_\theta \ell(T_c; \theta))

    Args:
        distance: maps two parameter trees with a leading class axis to a ``(C,)`` tensor.
        reduction: ``per-class`` compares class by class and sums (Eq. 8); ``class-sum`` compares the mean gradients
            over classes (Eq. 9).
        mode: how per-class gradients are computed, see :func:`class_gradients`.
    Shapes:
        class batches on both sides with one number of classes; returns a scalar.
    Raises:
        ShapeError: the class axes differ.
    Source: Zhao et al., ICLR 2021, Sec. 3; Lee et al., ICML 2022 (Eq. 9); survey Sec. 3.3.3.
    """

    def __init__(
        self,
        distance: Distance = row_cosine,
        reduction: Literal["per-class", "class-sum"] = "per-class",
        mode: Literal["vmap", "loop"] = "vmap",
    ) -> None:
        super().__init__()
        self.distance = distance
        self.reduction = reduction
        self.mode = mode

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the summed distance; no graph is kept for the real side."""
        if not isinstance(syn, ClassBatch) or not isinstance(real, ClassBatch):
            raise ConfigError("gradient matching reads one batch per class on both sides")
        if syn.num_classes != real.num_classes:
            raise ShapeError(f"{syn.num_classes} synthetic classes against {real.num_classes} real ones")
        with torch.no_grad():
            real_gradients = class_gradients(network, real, self.mode)
        syn_gradients = class_gradients(network, syn, self.mode)
        if self.reduction == "class-sum":
            real_gradients = {name: g.mean(0, keepdim=True) for name, g in real_gradients.items()}
            syn_gradients = {name: g.mean(0, keepdim=True) for name, g in syn_gradients.items()}
        return self.distance(syn_gradients, real_gradients).sum()
