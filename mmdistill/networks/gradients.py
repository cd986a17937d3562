"""Gradients with respect to a network's parameters, by name."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.task import Tensors

Beside = TypeVar("Beside")


def gradients_by_name(loss: Callable[[Tensors], Tensor], params: Tensors, *, keep_graph: bool = False) -> Tensors:
    """Return a loss's gradients by plain autograd, also where none are wanted outside.

    torch.func.grad keeps a graph of the gradient in any case, for which norms take slower kernels.

    Args:
        loss: from parameters by name to a scalar.
        params: where the gradients are taken; 0 for those that the loss does not read.
        keep_graph: whether they shall be differentiated again.
    """
    return gradients_beside(lambda leaves: (loss(leaves), None), params, keep_graph=keep_graph)[0]


def gradients_beside(
    loss: Callable[[Tensors], tuple[Tensor, Beside]], params: Tensors, *, keep_graph: bool = False
) -> tuple[Tensors, Beside]:
    """Return what :func:`gradients_by_name` does of a loss that returns something beside its scalar, and that too."""
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in params.items()}
    with torch.enable_grad():
        value, beside = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=keep_graph, materialize_grads=True)
    return dict(zip(leaves, found, strict=True)), beside


def require_reached_from(value: Tensor, known: Iterable[Tensor]) -> None:
    """Refuse a value whose gradient leads to other tensors than known ones; only its graph is looked at.

    Args:
        value: what was computed.
        known: the leaves that it may depend on.

    Raises:
        UnsupportedError: naming the shape of the first other one.
    """
    own = {id(tensor) for tensor in known}
    rest, seen = [value.grad_fn], set()
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes at which gradients arrive
        if isinstance(leaf, Tensor) and id(leaf) not in own:
            raise UnsupportedError(
                f"a tensor of shape {tuple(leaf.shape)} requires a gradient, and reaches this loss by neither its "
                "parameters nor its batch, so that its gradient would be lost: put it into the step's batch, or "
                "detach it"
            )
        rest.extend(following for following, _ in node.next_functions)
