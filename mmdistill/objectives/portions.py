"""Losses with their gradients, and features without, in portions: of batches by samples, of classes by class."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from mmdistill.objectives.base import CACHED
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, Tensors

BatchLoss = Callable[[Tensors, Batch], Tensor]
"""``(params, batch) -> scalar``, the weighted mean over the batch's samples."""
ClassTerm = Callable[[ClassBatch, slice], Tensor]
"""``(some classes, which they are) -> scalar``, the sum of a term of each."""

DIFFERENTIATED = 32_768
"""Numbers of inputs that a CPU takes through a network at once where it keeps a graph (about 40 images of 28 x 28)."""


def loss_by_portions(loss: BatchLoss, params: Tensors, batch: Batch, numbers: int | None = None) -> Tensor:
    r"""Return the weighted mean loss of a batch, differentiable once with respect to the parameters alone.

    With :math:`W_p` the weight of portion p, value and gradient are the means of those of the portions:

    .. math:: \ell = \sum_p W_p \ell_p / \sum_p W_p, \quad \nabla \ell = \sum_p W_p \nabla \ell_p / \sum_p W_p

    The gradient is taken along with the value, so no more than the graph of one portion is ever kept. On other devices
    than a CPU, and of inputs that are not one tensor of a row per sample, the whole batch is one portion.

    Args:
        loss: of a part of the batch; samples must not depend on each other, as they do under batch norms.
        params: the parameters.
        batch: the samples.
        numbers: of inputs in one portion, at most, but for a single sample of more; None: :data:`DIFFERENTIATED`.
    """
    inputs = batch.inputs
    if not isinstance(inputs, Tensor) or inputs.device.type != "cpu" or len(inputs) != len(batch.weight):
        return loss(params, batch)
    portions = min(-(-inputs.numel() // (numbers or DIFFERENTIATED)), len(inputs))
    if portions < 2:
        return loss(params, batch)
    names, tensors = tuple(params), list(params.values())
    size = -(-len(inputs) // portions)
    result: Tensor = _ByPortions.apply(loss, names, batch, size, *tensors)  # type: ignore[no-untyped-call]
    return result


class _ByPortions(torch.autograd.Function):
    """The value, with its gradient computed beside it."""

    @staticmethod
    def forward(ctx: Any, loss: BatchLoss, names: tuple[str, ...], batch: Batch, size: int, *tensors: Tensor) -> Tensor:
        differentiated = any(ctx.needs_input_grad)
        leaves = [tensor.detach().requires_grad_(differentiated) for tensor in tensors]
        params, whole = dict(zip(names, leaves, strict=True)), batch.weight.sum()
        value = torch.zeros_like(whole)
        gradient = [torch.zeros_like(tensor) for tensor in tensors] if differentiated else []
        for start in range(0, len(batch.weight), size):
            part = _rows(batch, slice(start, start + size))
            share = part.weight.sum() / whole
            if not share > 0:  # no sample of it counts, and their mean would be none
                continue
            with torch.set_grad_enabled(differentiated):
                one = loss(params, part) * share
            value = value + one.detach()
            if differentiated:
                for total, own in zip(gradient, torch.autograd.grad(one, leaves, materialize_grads=True), strict=True):
                    total += own
        ctx.save_for_backward(*gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, None, *(adjoint * gradient for gradient in ctx.saved_tensors))


def features_by_portions(features: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """Return each sample's features without a graph, at the memory of one portion's layers on a CPU.

    Args:
        features: of some samples, one row each.
        inputs: the samples; those that are not one tensor are taken together.
    """
    with torch.no_grad():
        if not isinstance(inputs, Tensor) or inputs.device.type != "cpu" or not len(inputs):
            return features(inputs)
        size = _even(len(inputs), max(CACHED * len(inputs) // max(inputs.numel(), 1), 1))
        found = [features(part) for part in torch.split(inputs, size)]
    return found[0] if len(found) == 1 else torch.cat(found)


def _even(total: int, largest: int) -> int:
    """Return the largest size of equal portions, which compiled functions like, or if there is none near, the largest.

    A size of less than half of the largest is not near.
    """
    sizes = range(min(largest, total), largest // 2, -1)
    return next((size for size in sizes if total % size == 0), largest)


def _rows(batch: Batch, rows: slice) -> Batch:
    """Return some samples of a batch whose inputs are one tensor."""
    assert isinstance(batch.inputs, Tensor)
    targets = batch.targets
    own = {name: tensor[rows] for name, tensor in targets.items()} if isinstance(targets, dict) else targets[rows]
    return Batch(batch.inputs[rows], own, batch.weight[rows])


def sum_by_classes(term: ClassTerm, batch: ClassBatch, size: int) -> Tensor:
    """Return the sum of all classes' terms, with the graph of so many classes at a time.

    The gradient with respect to the batch is taken along with the value, part by part, so the sum is differentiable
    once, and with respect to the batch alone. Without gradients, or where classes share their inputs, all classes are
    one part.

    Args:
        term: the sum of some classes' terms, each of which reads its own class alone.
        batch: all classes.
        size: classes in one part.
    """
    classes = batch.num_classes
    tensors, spec = tree_flatten(batch.batch)
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if size >= classes or batch.dims != Dims(0, 0) or not differentiated:
        return term(batch, slice(0, classes))
    result: Tensor = _ByClasses.apply(term, spec, size, *tensors)  # type: ignore[no-untyped-call]
    return result


class _ByClasses(torch.autograd.Function):
    """The sum, with its gradient computed beside it."""

    @staticmethod
    def forward(ctx: Any, term: ClassTerm, spec: TreeSpec, size: int, *tensors: Tensor) -> Tensor:
        ctx.wanted = [index for index, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        value: Tensor | float = 0.0
        parts = []
        for start in range(0, len(tensors[0]), size):
            rows = slice(start, start + size)
            own = [tensor[rows].detach() for tensor in tensors]
            leaves = [own[index].requires_grad_() for index in ctx.wanted]
            with torch.enable_grad():
                one = term(ClassBatch(tree_unflatten(own, spec), Dims(0, 0)), rows)
            parts.append(torch.autograd.grad(one, leaves, materialize_grads=True))
            value = value + one.detach()
        ctx.save_for_backward(*(torch.cat(gradients) for gradients in zip(*parts, strict=True)))
        assert isinstance(value, Tensor)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for index, gradient in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            found[3 + index] = adjoint * gradient
        return tuple(found)
