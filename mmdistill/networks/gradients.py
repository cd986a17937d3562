"""Gradients with respect to a network's parameters, by name."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.task import Tensors

Beside = TypeVar("Beside")


def gradients_by_name(loss: Callable[[Tensors], Tensor], params: Tensors, *, keep_graph: bool = False) -> Tensors:
    """Return a loss's gradients by plain autograd, also under ``torch.no_grad``.

    ``torch.func.grad`` always keeps a graph of the gradient, for which norms take slower kernels.

    Args:
        loss: maps parameters by name to a scalar.
        params: where the gradients are taken; parameters that the loss does not read have gradient 0.
        keep_graph: keep the graph, so that gradients can be differentiated again.
    """
    return gradients_beside(lambda leaves: (loss(leaves), None), params, keep_graph=keep_graph)[0]


def gradients_beside(
    loss: Callable[[Tensors], tuple[Tensor, Beside]], params: Tensors, *, keep_graph: bool = False
) -> tuple[Tensors, Beside]:
    """Return a loss's gradients like :func:`gradients_by_name`, and what the loss returns beside its scalar."""
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in params.items()}
    with torch.enable_grad():
        value, beside = loss(leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()), create_graph=keep_graph, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), beside


def require_reached_from(value: Tensor, known: Iterable[Tensor]) -> None:
    """Refuse a value whose graph reaches leaves other than the known ones.

    Args:
        value: the computed value.
        known: the leaves that it may depend on.

    Raises:
        UnsupportedError: naming the shape of the first other leaf.
    """
    known_ids = {id(tensor) for tensor in known}
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # only nodes that accumulate a leaf's gradient have one
        if isinstance(leaf, Tensor) and id(leaf) not in known_ids:
            raise UnsupportedError(
                f"a tensor of shape {tuple(leaf.shape)} requires a gradient, and reaches this loss by neither its "
                "parameters nor its batch, so that its gradient would be lost: put it into the step's batch, or "
                "detach it"
            )
        pending.extend(next_node for next_node, _ in node.next_functions)
