"""The symmetric normalised adjacency and its products, sparse for the real graph and dense for a synthetic one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.task import Tensors

Operator = Callable[[Tensor], Tensor]


def normalise_edges(edge_index: Tensor, edge_weight: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    r"""Return the non-zeros of :math:`\hat A = D^{-1/2} (A + I) D^{-1/2}`.

    Shapes:
        edge_index ``(2, E)`` undirected, without self-loops; returns ``(2, E + N)`` sorted by row then column, and
        ``(E + N,)``.
    Source: Kipf and Welling, ICLR 2017, Eq. 2.
    """
    loop = torch.arange(nodes, device=edge_index.device)
    edges = torch.cat([edge_index, loop.expand(2, -1)], 1)
    weight = torch.cat([edge_weight, torch.ones(nodes, device=edge_weight.device)])
    order = torch.argsort(edges[0] * nodes + edges[1])
    edges, weight = edges[:, order], weight[order]
    degree = torch.zeros(nodes, device=weight.device).index_add_(0, edges[0], weight)
    return edges, weight * (degree[edges[0]] * degree[edges[1]]).rsqrt()


def normalise_dense(adjacency: Tensor) -> Tensor:
    r"""Return :math:`D^{-1/2} (A + I) D^{-1/2}` of a dense weighted adjacency, differentiably.

    Shapes:
        adjacency ``(..., n, n)``, symmetric, non-negative, zero diagonal; returns the same shape.
    """
    looped = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    scale = looped.sum(-1).rsqrt()
    return scale.unsqueeze(-1) * looped * scale.unsqueeze(-2)


class _SymmetricProduct(torch.autograd.Function):
    """A sparse symmetric constant times a dense matrix; its own backward, so any order of derivative exists."""

    @staticmethod
    def forward(edge_index: Tensor, edge_weight: Tensor, x: Tensor) -> Tensor:
        """Return the product; columns of ``x`` may be anything."""
        nodes = x.shape[0]
        weight = edge_weight.to(x.dtype)
        matrix = torch.sparse_coo_tensor(edge_index, weight, (nodes, nodes), is_coalesced=True, check_invariants=False)
        return matrix @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep the constant."""
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        """Multiply by the transpose, which is the matrix itself."""
        edge_index, edge_weight = ctx.saved_tensors
        return None, None, propagate(edge_index, edge_weight, gradients[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], edge_index: Tensor, edge_weight: Tensor, x: Tensor
    ) -> tuple[Tensor, int]:
        """Fold the batch into the columns: torch's own sparse product has no batching rule."""
        if in_dims[0] is not None or in_dims[1] is not None or in_dims[2] is None:
            raise UnsupportedError("the sparse adjacency is one constant graph; batch dense adjacencies instead")
        columns = x.movedim(in_dims[2], -1)
        product = propagate(edge_index, edge_weight, columns.flatten(1))
        return product.reshape(columns.shape), columns.ndim - 1


def propagate(edge_index: Tensor, edge_weight: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`\hat A x` for the sorted non-zeros of a symmetric matrix; batches under vmap, no gradient to it.

    Shapes:
        edge_index ``(2, E)`` sorted by row then column; edge_weight ``(E,)``; x ``(N, d)``; returns ``(N, d)``.
    """
    result: Tensor = _SymmetricProduct.apply(edge_index, edge_weight, x)  # type: ignore[no-untyped-call]
    return result


def operator(inputs: Tensors) -> Operator:
    r"""Return multiplication by the normalised adjacency that the inputs of a network carry.

    ``adjacency`` is a raw dense one (a synthetic graph), ``edge_index`` with ``edge_weight`` the normalised non-zeros
    of a sparse one (the real graph), and without either :math:`A' = I`.
    """
    if "adjacency" in inputs:
        dense = normalise_dense(inputs["adjacency"])
        return lambda x: dense @ x
    if "edge_index" in inputs:
        edge_index, edge_weight = inputs["edge_index"], inputs["edge_weight"]
        return lambda x: propagate(edge_index, edge_weight, x)
    return lambda x: x
