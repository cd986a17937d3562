"""Gradients with respect to a network's parameters, by name."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmdistill.task import Tensors


def gradients_by_name(loss: Callable[[Tensors], Tensor], params: Tensors, *, keep_graph: bool = False) -> Tensors:
    """Return a loss's gradients by plain autograd, also where none are wanted outside.

    torch.func.grad keeps a graph of the gradient in any case, for which norms take slower kernels.

    Args:
        loss: from parameters by name to a scalar.
        params: where the gradients are taken; 0 for those that the loss does not read.
        keep_graph: whether they shall be differentiated again.
    """
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in params.items()}
    with torch.enable_grad():
        value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=keep_graph, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
