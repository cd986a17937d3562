"""Single-step parameter matching: gradients of the real and the synthetic loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmdistill.errors import ConfigError, require_choice
from mmdistill.execution.portions import sum_by_classes
from mmdistill.objectives.base import (
    MIN_CLASSES_AT_ONCE,
    Network,
    Objective,
    class_gradients,
    class_sides,
    classes_at_once,
    flatten_classes,
    require_parameters,
)
from mmdistill.objectives.distances import Distance, row_cosine, row_cosine_euclidean
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Task, Tensors, share_classes

Siamese = Callable[[Draws, ClassBatch], ClassBatch]
"""Augments a batch per class; the same key means the same augmentation."""
Reduction = Literal["per-class", "class-sum", "batch"]
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
            over classes (Eq. 9); ``batch`` those of whole batches, whatever their classes, which tasks without classes
            take too.
        weights: ``equal`` sets every w_c to 1; ``share`` to the class's synthetic samples over the largest class's, as
            sets with uneven classes need it.
        augment: an augmentation of its own instead of the task's, the same for both sides of a class.
        warm_up: when ``class-sum`` compares class by class yet; None: never.
    Shapes:
        class batches on both sides with one number of classes, or flat ones (``batch``); returns a scalar.
    Raises:
        ConfigError: another reduction or weights than these, or of whole batches what is of classes.
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
        if reduction == "batch":
            if weights != "equal" or warm_up is not None or augment is not None:
                raise ConfigError(
                    "weights, a warm-up and an augmentation of its own are those of classes, and whole batches (batch) "
                    "are compared without them"
                )
            self.view = "flat"

    def check(self, task: Task) -> None:
        """Refuse a task without the classes that are compared, and a network of which the distance compares nothing."""
        super().check(task)
        params = require_parameters(self, "compares gradients", task)
        tree = {name: parameter[None] for name, parameter in params.items()}
        self.distance(tree, tree)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the summed distance; no graph is kept for the real side."""
        syn, real = self._sides(syn, real)
        if self.augment is not None:
            syn, real = self.augment(draws, syn), self.augment(draws, real)
        shares = class_shares(syn) if self.weights == "share" else None
        reals = RealGradients(network, real)
        if self.additive(network):

            def term(part: ClassBatch, rows: slice) -> Tensor:
                some = None if shares is None else shares[rows]
                return self.within(class_gradients(network, part), reals(rows), some)

            return sum_by_classes(term, syn, classes_at_once(network, syn))
        return self.across(network, syn, reals, shares)

    def _sides(self, syn: Batch | ClassBatch, real: Batch | ClassBatch) -> tuple[ClassBatch, ClassBatch]:
        """Return both sides class by class; whole batches as one group."""
        if self.reduction != "batch":
            return class_sides(syn, real, "gradient matching")
        return one_group(flatten_classes(syn)), one_group(flatten_classes(real))

    def additive(self, network: Network) -> bool:
        """Return whether the distance is a sum of one term for each class."""
        return self.reduction == "per-class" or (self.warm_up is not None and self.warm_up.lasts(network))

    def across(self, network: Network, syn: ClassBatch, real: "RealGradients", shares: Tensor | None) -> Tensor:
        """Return the distance where it compares classes together."""
        return self.distance(self.mean_gradient(network, syn, shares), real.mean(shares)).sum()

    def mean_gradient(self, network: Network, batch: ClassBatch, shares: Tensor | None) -> Tensors:
        """Return the (weighted) mean of the classes' gradients (Eq. 9), with a class axis of one.

        Where losses are means over samples, it is the gradient of one batch of all classes whose samples weigh
        1/(C n_c), up to the loss's own normalisation.
        """
        if batch.dims.inputs is None:
            return _class_mean(class_gradients(network, batch), shares)
        weight = batch.shares if shares is None else shares[:, None] * batch.shares
        one = tree_map(lambda tensor: tensor[None], tuple(flatten_classes(batch)._replace(weight=weight.flatten())))
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

    def across(self, network: Network, syn: ClassBatch, real: "RealGradients", shares: Tensor | None) -> Tensor:
        """Return the distance within classes plus the weighted one between their means (Eq. 10)."""
        balance = syn.num_classes if self.balance is None else self.balance
        if 0 < network.classes_at_once < syn.num_classes and syn.dims == Dims(0, 0):
            return self._by_parts(network, syn, real, balance)
        own, found = class_gradients(network, syn), real(slice(0, syn.num_classes))
        means = self.distance(_class_mean(own, shares), _class_mean(found, shares)).sum()
        return self.within(own, found, shares) + balance * means

    def _by_parts(self, network: Network, syn: ClassBatch, real: "RealGradients", balance: float) -> Tensor:
        r"""Return the same with the gradients of some classes at a time, those of the synthetic side taken twice.

        What the distance between the means says of a class is its gradient at the mean of all,
        :math:`\langle \nabla_{\bar g} d, g_{S,c} \rangle / C`, once that mean is known.
        """
        classes, size, sums = syn.num_classes, network.classes_at_once, dict[str, Tensor]()

        def within(part: ClassBatch, rows: slice) -> Tensor:
            own, found = class_gradients(network, part), real(rows)
            for name, gradient in own.items():
                both = torch.stack([gradient.detach().sum(0), found[name].sum(0)])
                sums[name] = sums[name] + both if name in sums else both
            return self.within(own, found, None)

        value = sum_by_classes(within, syn, size)
        means = {name: (both[:1] / classes).requires_grad_() for name, both in sums.items()}
        with torch.enable_grad():
            between = self.distance(means, {name: both[1:] / classes for name, both in sums.items()}).sum()
        found = torch.autograd.grad(between, list(means.values()), materialize_grads=True)
        slopes = {name: slope / classes for name, slope in zip(means, found, strict=True)}

        def along(part: ClassBatch, rows: slice) -> Tensor:
            own = class_gradients(network, part)
            return torch.stack([(own[name] * slope).sum() for name, slope in slopes.items()]).sum()

        slope = sum_by_classes(along, syn, size)
        return value + balance * (between.detach() + slope - slope.detach())


class RealGradients:
    """The real side's gradients, without a graph, of the classes that are asked for.

    Where one call takes all classes they are kept, else made anew: as many as are asked for.

    Args:
        network: the network.
        real: one batch per class.
    """

    def __init__(self, network: Network, real: ClassBatch) -> None:
        self.network = network
        self.real = real
        self.size = real.num_classes if real.dims != Dims(0, 0) else classes_at_once(network, real)
        self._whole: Tensors | None = None

    def __call__(self, rows: slice) -> Tensors:
        """Return the gradients of consecutive classes."""
        classes = self.real.num_classes
        if self.size < classes and rows != slice(0, classes):
            with torch.no_grad():
                return class_gradients(self.network, self.real.part(rows.start, rows.stop))
        if self._whole is None:
            with torch.no_grad():
                self._whole = class_gradients(self.network, self.real)
        return self._whole if rows == slice(0, classes) else {name: own[rows] for name, own in self._whole.items()}

    def mean(self, shares: Tensor | None) -> Tensors:
        """Return the (weighted) mean over classes, with a class axis of one."""
        classes = self.real.num_classes
        if shares is not None or classes <= max(MIN_CLASSES_AT_ONCE, self.size):
            return _class_mean(self(slice(0, classes)), shares)
        sums: Tensors = {}
        for start in range(0, classes, self.size):
            for name, gradient in self(slice(start, start + self.size)).items():
                own = gradient.sum(0, keepdim=True)
                sums[name] = sums[name].add_(own) if name in sums else own
        return {name: total / classes for name, total in sums.items()}


def one_group(batch: Batch) -> ClassBatch:
    """Return a batch as that of one class, to which all samples belong."""
    return share_classes(batch, torch.ones(1, len(batch.weight), device=batch.weight.device))


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
