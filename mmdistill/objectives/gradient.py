"""Single-step parameter matching: gradients of the real and the synthetic loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmdistill.errors import ConfigError, require_choice
from mmdistill.objectives.base import (
    Network,
    Objective,
    class_gradients,
    class_sides,
    classes_at_once,
    flatten_classes,
)
from mmdistill.objectives.distances import Distance, row_cosine, row_cosine_euclidean
from mmdistill.portions import sum_by_classes
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Task, Tensors

Siamese = Callable[[Draws, ClassBatch], ClassBatch]
"""Augments a batch per class; the same key means the same augmentation."""
Reduction = Literal["per-class", "class-sum"]
ClassWeights = Literal["equal", "share"]


@dataclass(frozen=True)
class WarmUp:
    """When matching the sum over classes still compares class by class, since its signal is weak at first (DCC).

    Args:
        steps: of the run that belong to its warm-up.
        age: of a network: in the run's warm-up, networks younger than so many outer steps are matched by class.
    Source: Lee et al., ICML 2022, Sec. 4.3 (bi-level warm-up).
    """

    steps: int
    age: int

    def lasts(self, network: Network) -> bool:
        """Return whether a network is matched class by class."""
        return network.step < self.steps and network.age < self.age


class GradientMatching(Objective):
    r"""Match per-class gradients of the real and the synthetic loss (Eq. 8, 9).

    .. math:: \sum_c w_c\, d(\nabla_\theta \ell(S_c; \theta), \nabla_\theta \ell(T_c; \theta))

    Args:
        distance: maps two parameter trees with a leading class axis to a ``(C,)`` tensor.
        reduction: ``per-class`` compares class by class and sums (Eq. 8); ``class-sum`` compares the mean gradients
            over classes (Eq. 9).
        weights: ``equal`` sets every w_c to 1; ``share`` to the class's synthetic samples over the largest class's, as
            sets with uneven classes need it.
        augment: an augmentation of its own instead of the task's, the same for both sides of a class.
        warm_up: when ``class-sum`` compares class by class yet; None: never.
    Shapes:
        class batches on both sides with one number of classes; returns a scalar.
    Raises:
        ConfigError: another reduction or weights than these.
        ShapeError: the class axes differ.
    Source: Zhao et al., ICLR 2021, Sec. 3; Lee et al., ICML 2022 (Eq. 9); weights: Jin et al., ICLR 2022; survey
        Sec. 3.3.3.
    """

    lowers = True
    reads_scores = False

    def __init__(
        self,
        distance: Distance = row_cosine,
        reduction: Reduction = "per-class",
        *,
        weights: ClassWeights = "equal",
        augment: Siamese | None = None,
        warm_up: WarmUp | None = None,
    ) -> None:
        super().__init__()
        require_choice("reduction", reduction, get_args(Reduction))
        require_choice("weights", weights, get_args(ClassWeights))
        self.distance = distance
        self.reduction = reduction
        self.weights = weights
        self.augment = augment
        self.siamese = augment is None
        self.warm_up = warm_up
        self.steady = warm_up is None

    def check(self, task: Task) -> None:
        """Refuse a task without classes, and a network of which the distance can compare nothing."""
        super().check(task)
        params = task.init(Draws(0, ("check",), task.device)).params
        tree = {name: parameter[None] for name, parameter in params.items()}
        self.distance(tree, tree)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the summed distance; no graph is kept for the real side."""
        syn, real = class_sides(syn, real, "gradient matching")
        if self.augment is not None:
            syn, real = self.augment(draws, syn), self.augment(draws, real)
        with torch.no_grad():
            real_gradients = class_gradients(network, real)
        shares = class_shares(syn) if self.weights == "share" else None
        if self.additive(network):

            def term(part: ClassBatch, rows: slice) -> Tensor:
                own = {name: gradient[rows] for name, gradient in real_gradients.items()}
                some = None if shares is None else shares[rows]
                return self.within(class_gradients(network, part), own, some)

            return sum_by_classes(term, syn, classes_at_once(network, syn))
        return self.across(network, syn, real_gradients, shares)

    def additive(self, network: Network) -> bool:
        """Return whether the distance is a sum of one term for each class."""
        return self.reduction == "per-class" or (self.warm_up is not None and self.warm_up.lasts(network))

    def across(self, network: Network, syn: ClassBatch, real: Tensors, shares: Tensor | None) -> Tensor:
        """Return the distance where it compares classes together, ``real`` being their gradients."""
        return self.distance(self.mean_gradient(network, syn, shares), _class_mean(real, shares)).sum()

    def mean_gradient(self, network: Network, batch: ClassBatch, shares: Tensor | None) -> Tensors:
        """Return the (weighted) mean of the classes' gradients (Eq. 9), with a class axis of one.

        Where losses are means over samples, it is the gradient of one batch of all classes whose samples weigh
        1/(C n_c), up to the loss's own normalisation.
        """
        if batch.dims.inputs is None:
            return _class_mean(class_gradients(network, batch), shares)
        flat = flatten_classes(batch)
        weight = batch.batch.weight / batch.batch.weight.sum(1, keepdim=True)
        weight = weight if shares is None else shares[:, None] * weight
        one = tree_map(lambda tensor: tensor[None], tuple(flat._replace(weight=weight.flatten())))
        return class_gradients(network, ClassBatch(Batch(*one), Dims(0, 0)))

    def within(self, syn: Tensors, real: Tensors, shares: Tensor | None) -> Tensor:
        """Return the sum of the classes' distances (Eq. 8)."""
        distances = self.distance(syn, real)
        return distances.sum() if shares is None else (shares * distances).sum()


class MultiLevelGradientMatching(GradientMatching):
    r"""Match the gradients within each class and, beside them, their mean over classes (Eq. 10).

    .. math:: \sum_c d(g_{S,c}, g_{T,c}) + \lambda\, d(\tfrac{1}{C} \sum_c g_{S,c}, \tfrac{1}{C} \sum_c g_{T,c})

    Args:
        distance: by default angle and length of each row (Eq. 11).
        balance: lambda; None is the number of classes, as in the published code, so that both levels weigh alike.
    Shapes:
        as :class:`GradientMatching`.
    Raises:
        ConfigError: a negative balance.
    Source: Jiang et al., 2022, and its published code; survey Sec. 3.3.3.
    """

    def __init__(
        self,
        distance: Distance = row_cosine_euclidean,
        balance: float | None = None,
    ) -> None:
        super().__init__(distance, "per-class")
        if balance is not None and balance < 0:
            raise ConfigError(f"the balance of the two levels must not be negative, got {balance}")
        self.balance = balance

    def additive(self, network: Network) -> bool:
        """Return False: the means over classes are compared too."""
        return False

    def across(self, network: Network, syn: ClassBatch, real: Tensors, shares: Tensor | None) -> Tensor:
        """Return the distance within classes plus the weighted one between their means (Eq. 10)."""
        own = class_gradients(network, syn)
        balance = syn.num_classes if self.balance is None else self.balance
        means = self.distance(_class_mean(own, shares), _class_mean(real, shares)).sum()
        return self.within(own, real, shares) + balance * means


def class_shares(batch: ClassBatch) -> Tensor:
    """Return each class's weight relative to the largest class's, ``(C,)``."""
    counts = batch.batch.weight.sum(1)
    return counts / counts.max()


def _class_mean(tree: Tensors, shares: Tensor | None) -> Tensors:
    """Return the (weighted) mean over classes, with a class axis of one."""
    if shares is None:
        return {name: gradient.mean(0, keepdim=True) for name, gradient in tree.items()}
    normed = shares / shares.sum()
    return {name: torch.tensordot(normed, gradient, dims=1)[None] for name, gradient in tree.items()}
