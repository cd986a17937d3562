"""Losses with their gradients, and features without, in portions: of batches by samples, of classes by class.

Also how many samples are read together where nothing but memory and speed depends on it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from mmdistill.task import Batch, ClassBatch, Dims, Inputs, Tensors, take

BatchLoss = Callable[[Tensors, Batch], Tensor]
"""``(params, batch) -> scalar``, the weighted mean over the batch's samples."""
ClassTerm = Callable[[ClassBatch, slice], Tensor]
"""``(some classes, which they are) -> scalar``, the sum of a term of each."""

CACHED = 65_536
"""Numbers of inputs that a CPU takes through a network at once for their features (about 80 images of 28 x 28)."""
DIFFERENTIATED = 32_768
"""Numbers of inputs that a CPU takes through a network at once where it keeps a graph (about 40 images of 28 x 28)."""

LARGE = 3 * 64 * 64
"""Numbers of an image from which fewer of them go together than of smaller ones."""


def samples_at_once(usual: int, inputs: Inputs) -> int:
    """Return how many samples are read together: as many as usual, of large images as many as hold as many numbers.

    So memory is bounded by what images of 3 x 64 x 64 take, and those of up to this size go together as ever.

    Args:
        usual: samples where they are not large.
        inputs: one sample or more; what is no tensor of images goes together as usual.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        return usual
    return min(usual, max(usual * LARGE // max(inputs.shape[1:].numel(), 1), 1))


def with_gradients(value: Tensor, sources: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar that is differentiable once, by gradients that were computed beside it.

    Args:
        value: the scalar.
        sources: what it depends on.
        gradients: its gradient with respect to each.
    """
    result: Tensor = _Known.apply(value, len(sources), *sources, *gradients)  # type: ignore[no-untyped-call]
    return result


class _Known(torch.autograd.Function):
    """A scalar whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return value.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return (None, None, *(adjoint * gradient for gradient in gradients), *(None for _ in gradients))


def weighted_portions(weight: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each portion with its share of the weights, a scalar; where no sample counts, all at once.

    The mean over a portion of which no sample counts is none, and must not be taken: its share is 0.

    Args:
        weight: of each sample.
        size: samples in a portion; 0: all.
    """
    if not 0 < size < len(weight) or not (whole := weight.sum()) > 0:
        yield slice(None), weight.new_ones(())
        return
    for start in range(0, len(weight), size):
        rows = slice(start, start + size)
        yield rows, weight[rows].sum() / whole


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
    wanted = [name for name, tensor in params.items() if tensor.requires_grad and torch.is_grad_enabled()]
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in params.items()}
    value, gradients = batch.weight.new_zeros(()), [torch.zeros_like(params[name]) for name in wanted]
    for rows, share in weighted_portions(batch.weight, -(-len(inputs) // portions)):
        if not share > 0:
            continue
        one = loss(leaves, take(batch, rows)) * share
        value = value + one.detach()
        if wanted:
            found = torch.autograd.grad(one, [leaves[name] for name in wanted], materialize_grads=True)
            for total, own in zip(gradients, found, strict=True):
                total += own
    return with_gradients(value, [params[name] for name in wanted], gradients)


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
        return filled((features(part) for part in torch.split(inputs, size)), len(inputs))


def filled(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Return parts one below the other, of which no more than one is held beside the whole.

    Args:
        parts: tensors of some rows each, one after the other, that nothing differentiates.
        rows: of all of them.
    """
    whole, start = None, 0
    for part in parts:
        if len(part) == rows:
            return part
        whole = part.new_empty(rows, *part.shape[1:]) if whole is None else whole
        whole[start : start + len(part)] = part
        start += len(part)
    return torch.empty(0) if whole is None else whole


def _even(total: int, largest: int) -> int:
    """Return the largest size of equal portions, which compiled functions like, or if there is none near, the largest.

    A size of less than half of the largest is not near.
    """
    sizes = range(min(largest, total), largest // 2, -1)
    return next((size for size in sizes if total % size == 0), largest)


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
    sources = [tensor for tensor in tensors if tensor.requires_grad and torch.is_grad_enabled()]
    if size >= classes or batch.dims != Dims(0, 0) or not sources:
        return term(batch, slice(0, classes))
    values, parts, linked = [], [], False
    for start in range(0, classes, size):
        rows = slice(start, start + size)
        own = [tensor[rows].detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        one = term(ClassBatch(tree_unflatten(own, spec), Dims(0, 0)), rows)
        values.append(one.detach())
        leaves = [leaf for leaf in own if leaf.requires_grad]
        found = torch.autograd.grad(one, leaves, allow_unused=True) if one.requires_grad else [None] * len(leaves)
        linked = linked or any(gradient is not None for gradient in found)
        pairs = zip(leaves, found, strict=True)
        parts.append([torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in pairs])
    if not linked:  # which whoever asks for gradients must be told
        return torch.stack(values).sum()
    gradients = [torch.cat(found) for found in zip(*parts, strict=True)]
    return with_gradients(torch.stack(values).sum(), sources, gradients)
