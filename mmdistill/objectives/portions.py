"""The loss of a large batch with its gradient, and features without one, taken in portions that fit a CPU's caches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdistill.objectives.base import CACHED
from mmdistill.task import Batch, Inputs, Tensors

BatchLoss = Callable[[Tensors, Batch], Tensor]
"""``(params, batch) -> scalar``, the weighted mean over the batch's samples."""

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
