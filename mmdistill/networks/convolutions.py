"""Convolutions whose second derivatives are convolutions of the same shapes, for CPUs in bfloat16.

torch's second derivative with respect to the weights convolves with kernels as large as the images, whose channels are
the samples. In bfloat16 on CPUs with AMX that is wrong (torch 2.13): for ten images of 16 x 16 the error is as large as
the derivative. The derivative equals the weight gradient of the same convolution with the input's cotangent in place of
the input, which is computed here instead.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Shape(NamedTuple):
    """The stride, padding and dilation of a convolution by spatial axis, and its groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class TwiceDifferentiable(TorchFunctionMode):
    """Within this context convolutions under autocast on a CPU are :func:`convolution`, differentiable twice at most.

    Convolutions of unbatched samples, and those with padding given as a word, stay torch's.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        axes = AXES.get(func)
        if axes is None:
            return func(*args, **(kwargs or {}))
        return _convolve(func, axes, *args, **(kwargs or {}))


def convolution(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """Return the convolution of inputs ``(n, c, ...)`` with weights ``(d, c / groups, ...)``, without a bias."""
    result: Tensor = _Convolution.apply(x, weight, shape)  # type: ignore[no-untyped-call]
    return result


def _convolve(
    func: Callable[..., Tensor],
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute torch's ``func`` for ``axes`` spatial axes, by :func:`convolution` if autocast lowers it on a CPU."""
    is_lowered = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not is_lowered or isinstance(padding, str) or input.ndim != axes + 2:
        return func(input, weight, bias, stride, padding, dilation, groups)
    dtype = torch.get_autocast_dtype("cpu")
    input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    shape = Shape(_per_axis(stride, axes), _per_axis(padding, axes), _per_axis(dilation, axes), groups)
    result = convolution(input, weight, shape)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return a value for each spatial axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _forward(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    output_padding = (0,) * len(shape.stride)
    return torch.convolution(
        x, weight, None, shape.stride, shape.padding, shape.dilation, False, output_padding, shape.groups
    )


def _backward(
    cotangent: Tensor, x: Tensor, weight: Tensor, shape: Shape, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``<convolution(x, weight), cotangent>``."""
    output_padding = (0,) * len(shape.stride)
    gradients = torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, shape.stride, shape.padding, shape.dilation, False, output_padding, shape.groups,
        [of_input, of_weight, False],
    )  # fmt: skip
    return gradients[0], gradients[1]


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient is :class:`_Gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return _forward(x, weight, shape)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[:2])
        return *_Gradient.apply(cotangent, x, weight, ctx.shape, needed), None  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """The gradients of a convolution; each is bilinear in the cotangent and the other operand."""

    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, x: Tensor, weight: Tensor, shape: Shape, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(cotangent, x, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return _backward(cotangent, x, weight, shape, *needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_input: Tensor | None, by_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the cotangents of cotangent, input and weight, given those of the gradients of input and weight."""
        cotangent, x, weight = ctx.saved_tensors
        shape, needed = ctx.shape, ctx.needs_input_grad
        of_cotangent: Tensor | None = None
        of_input: Tensor | None = None
        of_weight: Tensor | None = None
        if needed[0]:
            parts = [] if by_input is None else [_forward(by_input, weight, shape)]
            parts += [] if by_weight is None else [_forward(x, by_weight, shape)]
            of_cotangent = sum(parts[1:], parts[0]) if parts else None
        if needed[1] and by_weight is not None:
            of_input = _backward(cotangent, x, by_weight, shape, True, False)[0]
        if needed[2] and by_input is not None:
            of_weight = _backward(cotangent, by_input, weight, shape, False, True)[1]
        return of_cotangent, of_input, of_weight, None, None


AXES: dict[Callable[..., Any], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
