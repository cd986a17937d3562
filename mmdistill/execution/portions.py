"""Losses with their gradients, and features without gradients, computed in portions of samples or of classes.

Also the number of samples that are computed at once where only memory and speed depend on it.
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
"""``(batch of some classes, their slice) -> scalar``, the sum of a term of each class."""

CACHED = 65_536
"""Input elements that a CPU takes through a network at once without a graph (about 80 images of 28 x 28)."""
DIFFERENTIATED = 32_768
"""Input elements that a CPU takes through a network at once with a graph (about 40 images of 28 x 28)."""

LARGE = 3 * 64 * 64
"""Elements of an image above which fewer samples are computed at once."""


def samples_at_once(usual: int, inputs: Inputs) -> int:
    """Return how many samples to compute at once: ``usual``, or fewer of images larger than 3 x 64 x 64.

    So memory is bounded by that of ``usual`` images of 3 x 64 x 64.

    Args:
        usual: the number for samples that are not large.
        inputs: one sample or more; anything but a tensor of images gets the usual number.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        return usual
    return min(usual, max(usual * LARGE // max(inputs.shape[1:].numel(), 1), 1))


def with_gradients(value: Tensor, sources: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar with the given gradients attached; it is differentiable once.

    Args:
        value: the scalar.
        sources: the tensors that it depends on.
        gradients: its gradient with respect to each source.
    """
    result: Tensor = _WithGradients.apply(value, len(sources), *sources, *gradients)  # type: ignore[no-untyped-call]
    return result


class _WithGradients(torch.autograd.Function):
    """A scalar with precomputed gradients."""

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
    """Yield the rows of each portion with its share of the weights, a scalar; one portion if all weights are 0.

    A portion whose weights are all 0 has share 0. Its weighted mean is 0 / 0, so it must not be computed.

    Args:
        weight: the samples' weights.
        size: samples in a portion; 0: all.
    """
    if not 0 < size < len(weight) or not (total := weight.sum()) > 0:
        yield slice(None), weight.new_ones(())
        return
    for start in range(0, len(weight), size):
        rows = slice(start, start + size)
        yield rows, weight[rows].sum() / total


def loss_by_portions(loss: BatchLoss, params: Tensors, batch: Batch, numbers: int | None = None) -> Tensor:
    r"""Return the weighted mean loss of a batch, differentiable once with respect to the parameters alone.

    With :math:`W_p` the weight of portion p, value and gradient are the means of those of the portions:

    .. math:: \ell = \sum_p W_p \ell_p / \sum_p W_p, \quad \nabla \ell = \sum_p W_p \nabla \ell_p / \sum_p W_p

    The gradient is computed along with the value, so only the graph of one portion is kept at a time. The whole batch
    is one portion on other devices than a CPU, or if inputs are not one tensor with a row per sample.

    Args:
        loss: the loss of a part of the batch; samples must be independent, which batch norms violate.
        params: the parameters.
        batch: the samples.
        numbers: input elements in one portion at most, unless one sample has more; None: :data:`DIFFERENTIATED`.
    """
    inputs = batch.inputs
    if not isinstance(inputs, Tensor) or inputs.device.type != "cpu" or len(inputs) != len(batch.weight):
        return loss(params, batch)
    portions = min(-(-inputs.numel() // (numbers or DIFFERENTIATED)), len(inputs))
    if portions < 2:
        return loss(params, batch)
    learned = [name for name, tensor in params.items() if tensor.requires_grad and torch.is_grad_enabled()]
    leaves = {name: tensor.detach().requires_grad_(name in learned) for name, tensor in params.items()}
    value, totals = batch.weight.new_zeros(()), [torch.zeros_like(params[name]) for name in learned]
    for rows, share in weighted_portions(batch.weight, -(-len(inputs) // portions)):
        if not share > 0:
            continue
        portion_loss = loss(leaves, take(batch, rows)) * share
        value = value + portion_loss.detach()
        if learned:
            gradients = torch.autograd.grad(portion_loss, [leaves[name] for name in learned], materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
    return with_gradients(value, [params[name] for name in learned], totals)


def features_by_portions(features: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """Return each sample's features without a graph, on a CPU with the memory of one portion's layers.

    Args:
        features: computes the features of some samples, one row each.
        inputs: the samples; inputs that are not one tensor are one portion.
    """
    with torch.no_grad():
        if not isinstance(inputs, Tensor) or inputs.device.type != "cpu" or not len(inputs):
            return features(inputs)
        size = _even_size(len(inputs), max(CACHED * len(inputs) // max(inputs.numel(), 1), 1))
        return concatenated((features(part) for part in torch.split(inputs, size)), len(inputs))


def concatenated(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Concatenate an iterator of row blocks into a preallocated tensor, so that only one block is held beside it.

    Args:
        parts: tensors of some rows each, without graphs.
        rows: the number of all rows.
    """
    result, start = None, 0
    for part in parts:
        if len(part) == rows:
            return part
        result = part.new_empty(rows, *part.shape[1:]) if result is None else result
        result[start : start + len(part)] = part
        start += len(part)
    return torch.empty(0) if result is None else result


def _even_size(total: int, largest: int) -> int:
    """Return the largest size above half of ``largest`` that divides ``total``, or ``largest`` if there is none.

    Compiled functions are faster on portions of one size.
    """
    sizes = range(min(largest, total), largest // 2, -1)
    return next((size for size in sizes if total % size == 0), largest)


def sum_by_classes(term: ClassTerm, batch: ClassBatch, size: int) -> Tensor:
    """Return the sum of all classes' terms, keeping the graph of ``size`` classes at a time.

    The gradient with respect to the batch is computed along with the value, part by part, so the sum is differentiable
    once, and only with respect to the batch. All classes are one part without gradients or if they share their inputs.

    Args:
        term: sums the terms of some classes, each of which depends on its own class only.
        batch: all classes.
        size: classes in one part.
    """
    classes = batch.num_classes
    tensors, spec = tree_flatten(batch.batch)
    sources = [tensor for tensor in tensors if tensor.requires_grad and torch.is_grad_enabled()]
    if size >= classes or batch.dims != Dims(0, 0) or not sources:
        return term(batch, slice(0, classes))
    values, parts, is_linked = [], [], False
    for start in range(0, classes, size):
        rows = slice(start, start + size)
        part = [tensor[rows].detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        value = term(ClassBatch(tree_unflatten(part, spec), Dims(0, 0)), rows)
        values.append(value.detach())
        leaves = [leaf for leaf in part if leaf.requires_grad]
        found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None] * len(leaves)
        is_linked = is_linked or any(gradient is not None for gradient in found)
        pairs = zip(leaves, found, strict=True)
        parts.append([torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in pairs])
    if not is_linked:  # a sum without a graph, so that asking for its gradients fails as it should
        return torch.stack(values).sum()
    gradients = [torch.cat(rows_of_leaf) for rows_of_leaf in zip(*parts, strict=True)]
    return with_gradients(torch.stack(values).sum(), sources, gradients)
