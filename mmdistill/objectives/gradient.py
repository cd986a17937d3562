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
    """When ``class-sum`` matching still compares class by class, since its signal is weak at first (DCC).

    Args:
        steps: outer steps of the run's warm-up.
        age: during the warm-up, networks that have served fewer outer steps than this are matched class by class.
    Source: Lee et al., ICML 2022, Sec. 4.3 (bi-level warm-up).
    """

    steps: int
    age: int

    def lasts(self, network: Network) -> bool:
        """Return whether the warm-up matches this network class by class."""
        return network.step < self.steps and network.age < self.age


class GradientMatching(Objective):
    r"""Match per-class gradients of the real and the synthetic loss (Eq. 8, 9).

    .. math:: \sum_c w_c\, d(\nabla_\theta \ell(S_c; \theta), \nabla_\theta \ell(T_c; \theta))

    Args:
        distance: maps two parameter trees with a leading class axis to a ``(C,)`` tensor.
        reduction: ``per-class`` compares class by class and sums (Eq. 8); ``class-sum`` compares the mean gradients
            over classes (Eq. 9); ``batch`` compares the gradients of whole batches and works without classes too.
        weights: ``equal`` sets every w_c to 1; ``share`` sets it to the class's number of synthetic samples over the
            largest class's, for sets with uneven classes.
        augment: an augmentation that replaces the task's, the same for both sides of a class.
        warm_up: when ``class-sum`` still compares class by class; None: never.
    Shapes:
        class batches on both sides with the same number of classes, or flat ones (``batch``); returns a scalar.
    Raises:
        ConfigError: an unknown reduction or weights, or class-wise options with ``batch``.
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
        """Refuse a task without the classes that are compared, and a network with nothing for the distance."""
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
                part_shares = None if shares is None else shares[rows]
                return self.within(class_gradients(network, part), reals(rows), part_shares)

            return sum_by_classes(term, syn, classes_at_once(network, syn))
        return self.across(network, syn, reals, shares)

    def _sides(self, syn: Batch | ClassBatch, real: Batch | ClassBatch) -> tuple[ClassBatch, ClassBatch]:
        """Return both sides class by class; for ``batch``, all samples of a side as one class."""
        if self.reduction != "batch":
            return class_sides(syn, real, "gradient matching")
        return one_group(flatten_classes(syn)), one_group(flatten_classes(real))

    def additive(self, network: Network) -> bool:
        """Return whether the distance is a sum of one term for each class."""
        return self.reduction == "per-class" or (self.warm_up is not None and self.warm_up.lasts(network))

    def across(self, network: Network, syn: ClassBatch, real: "RealGradients", shares: Tensor | None) -> Tensor:
        """Return the distance between the classes' mean gradients, where the distance is not a sum over classes."""
        return self.distance(self.mean_gradient(network, syn, shares), real.mean(shares)).sum()

    def mean_gradient(self, network: Network, batch: ClassBatch, shares: Tensor | None) -> Tensors:
        """Return the (weighted) mean of the classes' gradients (Eq. 9), with a class axis of one.

        Losses are means over samples, so this is the gradient of one flat batch whose samples weigh 1/(C n_c), up to
        the loss's own normalisation. Where classes share their inputs, their gradients are computed and averaged.
        """
        if batch.dims.inputs is None:
            return _class_mean(class_gradients(network, batch), shares)
        weight = batch.shares if shares is None else shares[:, None] * batch.shares
        flat = flatten_classes(batch)._replace(weight=weight.flatten())
        one_class = tree_map(lambda tensor: tensor[None], tuple(flat))
        return class_gradients(network, ClassBatch(Batch(*one_class), Dims(0, 0)))

    def within(self, syn: Tensors, real: Tensors, shares: Tensor | None) -> Tensor:
        """Return the sum of the classes' distances (Eq. 8)."""
        distances = self.distance(syn, real)
        return distances.sum() if shares is None else (shares * distances).sum()


class MultiLevelGradientMatching(GradientMatching):
    r"""Match the gradients of each class and their mean over classes (Eq. 10).

    .. math:: \sum_c d(g_{S,c}, g_{T,c}) + \lambda\, d(\tfrac{1}{C} \sum_c g_{S,c}, \tfrac{1}{C} \sum_c g_{T,c})

    Args:
        distance: by default the angle and the length of each row (Eq. 11).
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
            return self._across_in_parts(network, syn, real, balance)
        syn_gradients, real_gradients = class_gradients(network, syn), real(slice(0, syn.num_classes))
        between = self.distance(_class_mean(syn_gradients, shares), _class_mean(real_gradients, shares)).sum()
        return self.within(syn_gradients, real_gradients, shares) + balance * between

    def _across_in_parts(self, network: Network, syn: ClassBatch, real: "RealGradients", balance: float) -> Tensor:
        r"""Return the same, holding the gradients of a few classes at a time.

        The synthetic gradients are computed twice. The first pass sums the distances within classes and finds the means
        of both sides. The second pass carries the gradient of the distance between the means, to which each class
        contributes :math:`\langle \nabla_{\bar g} d, g_{S,c} \rangle / C` with a constant :math:`\nabla_{\bar g} d`.
        """
        classes, size, sums = syn.num_classes, network.classes_at_once, dict[str, Tensor]()

        def within(part: ClassBatch, rows: slice) -> Tensor:
            syn_gradients, real_gradients = class_gradients(network, part), real(rows)
            for name, gradient in syn_gradients.items():
                both = torch.stack([gradient.detach().sum(0), real_gradients[name].sum(0)])
                sums[name] = sums[name] + both if name in sums else both
            return self.within(syn_gradients, real_gradients, None)

        value = sum_by_classes(within, syn, size)
        means = {name: (both[:1] / classes).requires_grad_() for name, both in sums.items()}
        with torch.enable_grad():
            between = self.distance(means, {name: both[1:] / classes for name, both in sums.items()}).sum()
        slopes = torch.autograd.grad(between, list(means.values()), materialize_grads=True)
        cotangents = {name: slope / classes for name, slope in zip(means, slopes, strict=True)}

        def product(part: ClassBatch, rows: slice) -> Tensor:
            gradients = class_gradients(network, part)
            return torch.stack([(gradients[name] * cotangent).sum() for name, cotangent in cotangents.items()]).sum()

        products = sum_by_classes(product, syn, size)
        # The value is the distance itself; the products, minus their own value, add its gradient.
        return value + balance * (between.detach() + products - products.detach())


class RealGradients:
    """The real side's class gradients, without a graph.

    They are computed once and cached where one call takes all classes; else each call computes those it returns.

    Args:
        network: the network.
        real: one batch per class.
    """

    def __init__(self, network: Network, real: ClassBatch) -> None:
        self.network = network
        self.real = real
        self.size = classes_at_once(network, real)
        self._whole: Tensors | None = None

    def __call__(self, rows: slice) -> Tensors:
        """Return the gradients of the classes ``rows``, which are consecutive."""
        if self.size < self.real.num_classes:
            with torch.no_grad():
                return class_gradients(self.network, self.real.part(rows.start, rows.stop))
        if self._whole is None:
            with torch.no_grad():
                self._whole = class_gradients(self.network, self.real)
        return {name: gradient[rows] for name, gradient in self._whole.items()}

    def mean(self, shares: Tensor | None) -> Tensors:
        """Return the (weighted) mean over classes, with a class axis of one.

        If ``classes_at_once`` is set, it holds the gradients of so many classes at a time.
        """
        classes = self.real.num_classes
        if classes <= (self.size if self.network.classes_at_once else max(MIN_CLASSES_AT_ONCE, self.size)):
            return _class_mean(self(slice(0, classes)), shares)
        sums: Tensors = {}
        for start in range(0, classes, self.size):
            rows = slice(start, start + self.size)
            for name, gradient in self(rows).items():
                part_sum = _class_sum(gradient, None if shares is None else shares[rows])
                sums[name] = sums[name].add_(part_sum) if name in sums else part_sum
        total = classes if shares is None else shares.sum()
        return {name: summed / total for name, summed in sums.items()}


def one_group(batch: Batch) -> ClassBatch:
    """Return a class batch of one class that holds all samples."""
    return share_classes(batch, torch.ones(1, len(batch.weight), device=batch.weight.device))


def class_shares(batch: ClassBatch) -> Tensor:
    """Return each class's summed weight relative to the largest class's, ``(C,)``."""
    counts = batch.batch.weight.sum(1)
    return counts / counts.max()


def _class_mean(tree: Tensors, shares: Tensor | None) -> Tensors:
    """Return the (weighted) mean over classes, with a class axis of one."""
    if shares is None:
        return {name: gradient.mean(0, keepdim=True) for name, gradient in tree.items()}
    normed = shares / shares.sum()
    return {name: _class_sum(gradient, normed) for name, gradient in tree.items()}


def _class_sum(gradient: Tensor, shares: Tensor | None) -> Tensor:
    """Return the (weighted) sum over the class axis, which then is one."""
    return gradient.sum(0, keepdim=True) if shares is None else torch.tensordot(shares, gradient, dims=1)[None]
