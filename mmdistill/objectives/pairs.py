"""Operations of closed-form kernels on all pairs of samples, as autograd functions that save memory.

Autograd through the plain formulas keeps some twenty matrices of all pairs; these keep four.
"""

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def products(a: Tensor, b: Tensor, dtype: torch.dtype, inner: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inner products of a with b, and the squared norms of a's and of b's samples.

    Args:
        a: samples.
        b: samples; the same tensor as ``a`` for those of a set with itself, whose diagonal is then its squared norms.
        dtype: the type of the results, in which norms are summed.
        inner: the type in which inner products are computed.

    Shapes:
        a ``(n_a, d)``, b ``(n_b, d)``; returns ``(n_a, n_b)``, ``(n_a,)`` and ``(n_b,)``.
    """
    itself, a, b = b is a, a.to(inner), b.to(inner)
    square_a = torch.linalg.vector_norm(a, dim=1, dtype=dtype).square()  # one pass without a copy
    square_b = b.square().sum(1, dtype=dtype)
    covariance = (a @ b.T).to(dtype)
    if itself and inner != dtype:
        covariance = covariance.diagonal_scatter(square_a)
    return covariance, square_a, square_b


def relu_moments(covariance: Tensor, variance_a: Tensor, variance_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[relu(u) relu(v)] and E[relu'(u) relu'(v)] of Gaussians (u, v), with finite gradients everywhere.

    The second moment's derivative is infinite for parallel samples, as on the diagonal of K(x, x), where the true
    gradient is zero. So angles within rounding of 0 or pi are constants. A sample of variance 0 is orthogonal to every
    other.

    Shapes:
        covariance ``(..., n_a, n_b)``; variances ``(..., n_a)`` and ``(..., n_b)``; returns two tensors of the
        covariance's shape.
    Source: Cho and Saul, NeurIPS 2009, Sec. 2.
    """
    p, q = _norm(variance_a).unsqueeze(-1), _norm(variance_b).unsqueeze(-2)
    moment, slope, _ = _ReluMoments.apply(covariance, p, q)  # type: ignore[no-untyped-call]
    return moment, slope


def neighbour_sums(image: Tensor, scale: float) -> Tensor:
    """Return the scaled sums over each pixel's 3 x 3 neighbourhood, with zeros beyond the border.

    Pixels are the first two dimensions, so that a pixel's values lie in one piece of memory.

    Shapes:
        ``(h, w, ...)``; returns the same.
    """
    sums: Tensor = _NeighbourSums.apply(image, scale)  # type: ignore[no-untyped-call]
    return sums


class _NeighbourSums(torch.autograd.Function):
    """A symmetric linear map, so the backward pass is the map itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, scale: float) -> Tensor:
        columns = image * scale
        columns[1:].add_(image[:-1], alpha=scale)
        columns[:-1].add_(image[1:], alpha=scale)
        sums = columns.clone()
        sums[:, 1:] += columns[:, :-1]
        sums[:, :-1] += columns[:, 1:]
        return sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return neighbour_sums(gradient, ctx.scale), None


def _norm(square: Tensor) -> Tensor:
    """Return square roots, with gradient 0 where they are 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def _inverse(norm: Tensor) -> Tensor:
    """Return inverses, or 0 where the norm is 0."""
    return torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)


class _ReluMoments(torch.autograd.Function):
    r"""Moments m and s of a covariance g and norms p and q that broadcast with it, and the sine of the angle.

    .. math:: \cos t = \frac{g}{p q}, \quad m = p q \frac{\sin t + (\pi - t) \cos t}{2 \pi}, \quad
        s = \frac{\pi - t}{2 \pi}; \qquad \frac{\partial m}{\partial g} = s, \quad
        \frac{\partial m}{\partial p} = \frac{q \sin t}{2 \pi}, \quad
        \frac{\partial s}{\partial g} = \frac{1}{2 \pi p q \sin t}, \quad
        \frac{\partial s}{\partial p} = -\frac{g}{p} \frac{\partial s}{\partial g}
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        opposite = (g * -_inverse(p)).mul_(_inverse(q))  # minus the cosine
        square = torch.addcmul(g.new_ones(()), opposite, opposite, value=-1)
        sine = F.threshold(square, 32 * torch.finfo(g.dtype).eps, 0.0, inplace=True).sqrt_()
        supplement = torch.atan2(sine, opposite)  # pi - t
        moment = torch.addcmul(sine, supplement, opposite, value=-1).mul_(p / (2 * math.pi)).mul_(q)
        return moment, supplement.mul_(1 / (2 * math.pi)), sine

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, to_moment: Tensor | None, to_slope: Tensor | None, to_sine: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, p, q, slope, sine = ctx.saved_tensors
        _, need_p, need_q = ctx.needs_input_grad
        to_g, to_p, to_q = torch.zeros_like(g), torch.zeros_like(p), torch.zeros_like(q)
        if to_moment is not None:
            to_g = to_moment * slope
            by_sine = to_moment * sine
            to_p = (by_sine * (q / (2 * math.pi))).sum(-1, keepdim=True) if need_p else to_p
            to_q = (by_sine * (p / (2 * math.pi))).sum(-2, keepdim=True) if need_q else to_q
        if to_slope is not None or to_sine is not None:
            inverse_p, inverse_q = _inverse(p), _inverse(q)
            by_angle = [] if to_slope is None else [to_slope * (inverse_p / (2 * math.pi)) * inverse_q]
            by_angle += [] if to_sine is None else [to_sine * g * -inverse_p.square() * inverse_q.square()]
            through_angle = reduce(torch.add, by_angle) / F.threshold(sine, 0.0, math.inf)  # 0 for parallel samples
            to_g = to_g + through_angle
            through_angle = through_angle * g
            to_p = to_p - through_angle.sum(-1, keepdim=True) * inverse_p if need_p else to_p
            to_q = to_q - through_angle.sum(-2, keepdim=True) * inverse_q if need_q else to_q
        return to_g, to_p if need_p else None, to_q if need_q else None
