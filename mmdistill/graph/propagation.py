"""The symmetric normalised adjacency and its products, sparse for the real graph and dense for a synthetic one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import UnsupportedError
from mmdistill.task import Tensors

Operator = Callable[[Tensor], Tensor]
COLUMNS = 128
"""Features that are propagated at a time without gradients, which bounds the memory beside the result."""


def normalise_dense(adjacency: Tensor) -> Tensor:
    r"""Return :math:`D^{-1/2} (A + I) D^{-1/2}` of a dense weighted adjacency, differentiably.

    Shapes:
        adjacency ``(..., n, n)``, symmetric, non-negative, zero diagonal; returns the same shape.
    Source: Kipf and Welling, ICLR 2017, Eq. 2.
    """
    looped = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    scale = looped.sum(-1).rsqrt()
    return scale.unsqueeze(-1) * looped * scale.unsqueeze(-2)


@contextmanager
def _without_sparse_warnings() -> Iterator[None]:
    """Within this context torch does not warn of sparse matrices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        # Torch 2.11 warns although check_invariants is given.
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        yield


def sparse_rows(pointer: Tensor, column: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return compressed rows as a torch sparse matrix that shares their memory, unchecked."""
    with _without_sparse_warnings():
        return torch.sparse_csr_tensor(pointer, column, weight, shape, check_invariants=False)


def sparse_entries(places: Tensor, values: Tensor, shape: tuple[int, ...], *, coalesced: bool = False) -> Tensor:
    """Return entries as a torch sparse matrix, unchecked.

    Args:
        places: their rows and columns, ``(2, n)``.
        values: the entries.
        shape: of the matrix.
        coalesced: whether the entries are sorted and none occurs twice.
    """
    with _without_sparse_warnings():
        return torch.sparse_coo_tensor(places, values, shape, is_coalesced=coalesced or None, check_invariants=False)


class _SymmetricProduct(torch.autograd.Function):
    """The normalised adjacency times a dense matrix; it is its own backward, so all orders of derivatives exist."""

    @staticmethod
    def forward(pointer: Tensor, column: Tensor, weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        """Return the product with each column of ``x``."""
        matrix = sparse_rows(pointer, column, weight.to(x.dtype), (len(scale), len(scale)))
        factor = scale.to(x.dtype).unsqueeze(1)
        scaled = factor * x
        with torch.autocast(x.device.type, enabled=False):  # not all devices have sparse bfloat16 products
            return (matrix @ scaled).add_(scaled).mul_(factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save the constant matrix."""
        ctx.save_for_backward(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None, Tensor]:
        """Multiply by the transpose, which is the matrix itself."""
        return None, None, None, None, _SymmetricProduct.apply(*ctx.saved_tensors, gradients[0])  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        """Fold the batch into the columns: torch's own sparse product has no batching rule."""
        *graph, x = inputs
        if any(dim is not None for dim in in_dims[:-1]) or in_dims[-1] is None:
            raise UnsupportedError("the sparse adjacency is one constant graph; batch dense adjacencies instead")
        columns = x.movedim(in_dims[-1], -1)
        product: Tensor = _SymmetricProduct.apply(*graph, columns.flatten(1))  # type: ignore[no-untyped-call]
        return product.reshape(columns.shape), columns.ndim - 1


def propagate(graph: Tensors, x: Tensor) -> Tensor:
    r"""Return :math:`\hat A x` on a real graph, in float32 for bfloat16.

    It batches under vmap; the graph gets no gradient.

    Args:
        graph: as :meth:`~mmdistill.graph.adjacency.Adjacency.normalised` returns.
        x: what to propagate.

    Shapes:
        x ``(N, d)``; returns ``(N, d)``.
    """
    parts = (graph["pointer"], graph["column"], graph["weight"], graph["scale"])
    full = x.float() if x.dtype == torch.bfloat16 else x
    result: Tensor = _SymmetricProduct.apply(*parts, full)  # type: ignore[no-untyped-call]
    return result


class _ConstantProduct(torch.autograd.Function):
    """A constant sparse matrix times a dense one; the backward pass uses the given transpose."""

    @staticmethod
    def forward(matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """Return the product."""
        return matrix @ x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save the transpose."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        """Multiply by the transpose."""
        (transposed,) = ctx.saved_tensors
        return None, None, transposed @ gradients[0]


def constant_product(matrix: Tensor, transposed: Tensor | None, x: Tensor) -> Tensor:
    """Return a constant matrix times ``x``, differentiable in ``x``, for compressed rows once.

    Torch's own gradient of sparse products needs coordinates, which it multiplies in one thread.

    Args:
        matrix: dense, coordinates or compressed rows.
        transposed: its transpose in compressed rows, if gradients through compressed rows are needed; else None.
        x: the dense factor.

    Shapes:
        matrix ``(r, d)``; transposed ``(d, r)``; x ``(d, h)``; returns ``(r, h)``.
    """
    if transposed is None:
        return matrix @ x
    product: Tensor = _ConstantProduct.apply(matrix, transposed, x)  # type: ignore[no-untyped-call]
    return product


def offsets(counts: Tensor) -> Tensor:
    """Return where each row begins, and the last one ends, ``(n + 1,)``, for rows of ``counts`` entries ``(n,)``."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def compressed_rows(matrix: Tensor) -> Tensor:
    """Return the non-zeros of a dense or sparse matrix as compressed rows."""
    coordinates = matrix.to_sparse().coalesce()
    row, column = coordinates.indices()
    pointer = offsets(torch.bincount(row, minlength=len(matrix)))
    return sparse_rows(pointer, column, coordinates.values(), (len(matrix), matrix.shape[1]))


@torch.no_grad()
def propagate_columns(graph: Tensors, x: Tensor) -> Tensor:
    """Propagate as :func:`propagate` does, without gradients, a few columns at a time.

    Shapes:
        x ``(N, d)``; returns ``(N, d)``.
    """
    out = torch.empty_like(x)
    for start in range(0, x.shape[1], COLUMNS):
        out[:, start : start + COLUMNS] = propagate(graph, x[:, start : start + COLUMNS])
    return out


def normalised_matrix(graph: Tensors) -> Tensor:
    r"""Return :math:`\hat A`, self-loops included, as sparse coordinates, whose products have gradients.

    Args:
        graph: as :meth:`~mmdistill.graph.adjacency.Adjacency.normalised` returns.

    Shapes:
        Returns ``(N, N)``.
    """
    scale = graph["scale"]
    nodes = torch.arange(len(scale), device=scale.device)
    row = torch.cat([torch.repeat_interleave(nodes, graph["pointer"].diff().long()), nodes])
    column = torch.cat([graph["column"].long(), nodes])
    weight = torch.cat([graph["weight"], torch.ones_like(scale)]) * scale[row] * scale[column]
    size = (len(nodes), len(nodes))
    return sparse_entries(torch.stack([row, column]), weight, size).coalesce()


def by_rows(rows: Tensor) -> Operator:
    """Return multiplication by some rows of an adjacency; rows of several groups are stacked.

    Shapes:
        rows ``(g * n, r)`` of g groups; the result maps ``(g * r, d)`` to ``(g * n, d)``.
    """

    def multiply(x: Tensor) -> Tensor:
        groups = x.reshape(-1, rows.shape[1], x.shape[1])
        return (rows.reshape(len(groups), -1, rows.shape[1]) @ groups).flatten(0, 1)

    return multiply


def operator(inputs: Tensors) -> Operator:
    r"""Return multiplication by the normalised adjacency that the inputs of a network carry.

    ``adjacency`` is a raw dense one (a synthetic graph); ``pointer``, ``column``, ``weight`` and ``scale`` are the
    normalised rows of a sparse one (the real graph); without either, :math:`A' = I`.

    Shapes:
        ``adjacency`` is ``(..., n, n)``, ``pointer`` ``(N + 1,)``; the result maps ``(..., n, d)`` (of a real graph
        ``(N, d)``) to the same shape.
    """
    if "adjacency" in inputs:
        dense = normalise_dense(inputs["adjacency"])
        return lambda x: dense @ x
    if "pointer" in inputs:
        return lambda x: propagate(inputs, x)
    return lambda x: x
