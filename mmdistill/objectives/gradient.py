"""Single-step parameter matching: gradients of the real and the synthetic loss."""

from typing import Literal

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.objectives.base import Network, Objective, class_gradients
from mmdistill.objectives.distances import Distance, row_cosine, row_cosine_euclidean
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task, Tensors


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

    def check(self, task: Task) -> None:
        """Refuse a task without classes, and a network of which the distance can compare nothing."""
        super().check(task)
        params = task.init(Draws(0, ("check",), task.device)).params
        tree = {name: parameter[None] for name, parameter in params.items()}
        self.distance(tree, tree)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the summed distance; no graph is kept for the real side."""
        if not isinstance(syn, ClassBatch) or not isinstance(real, ClassBatch):
            raise ConfigError("gradient matching reads one batch per class on both sides")
        if syn.num_classes != real.num_classes:
            raise ShapeError(f"{syn.num_classes} synthetic classes against {real.num_classes} real ones")
        with torch.no_grad():
            real_gradients = class_gradients(network, real, self.mode)
        syn_gradients = class_gradients(network, syn, self.mode)
        return self.compare(syn_gradients, real_gradients)

    def compare(self, syn: Tensors, real: Tensors) -> Tensor:
        """Return the scalar distance of two trees of per-class gradients."""
        if self.reduction == "class-sum":
            return self.distance(_class_mean(syn), _class_mean(real)).sum()
        return self.distance(syn, real).sum()


class MultiLevelGradientMatching(GradientMatching):
    r"""Match the gradients within each class and, beside them, their mean over classes (Eq. 10).

    .. math:: \sum_c d(g_{S,c}, g_{T,c}) + \lambda\, d(\tfrac{1}{C} \sum_c g_{S,c}, \tfrac{1}{C} \sum_c g_{T,c})

    Args:
        distance: by default angle and length of each row (Eq. 11).
        balance: lambda.
        mode: how per-class gradients are computed.
    Shapes:
        as :class:`GradientMatching`.
    Raises:
        ConfigError: a negative balance.
    Source: Jiang et al., 2022; survey Sec. 3.3.3.
    """

    def __init__(
        self,
        distance: Distance = row_cosine_euclidean,
        balance: float = 1.0,
        mode: Literal["vmap", "loop"] = "vmap",
    ) -> None:
        super().__init__(distance, "per-class", mode)
        if balance < 0:
            raise ConfigError(f"the balance of the two levels must not be negative, got {balance}")
        self.balance = balance

    def compare(self, syn: Tensors, real: Tensors) -> Tensor:
        """Return the distance within classes plus the weighted one between their means."""
        return self.distance(syn, real).sum() + self.balance * self.distance(_class_mean(syn), _class_mean(real)).sum()


def _class_mean(tree: Tensors) -> Tensors:
    """Return the mean over classes, with a class axis of one."""
    return {name: gradient.mean(0, keepdim=True) for name, gradient in tree.items()}
