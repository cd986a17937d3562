"""Convolutions whose gradients are differentiated again by convolutions of their own shapes.

Torch's second derivative with respect to the weights convolves with kernels as large as the images, whose channels are
the samples. In bfloat16 on CPUs with AMX that is wrong (torch 2.13): the derivative for ten images of 16 x 16 is off by
its own size. It equals the weight gradient of the same convolution with the input's cotangent in place of the input,
which is what is computed here, where a CPU runs in bfloat16.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Shape(NamedTuple):
    """How a convolution moves, by spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class TwiceDifferentiable(TorchFunctionMode):
    """Meanwhile convolutions that a CPU lowers are :func:`convolution`; they can be differentiated twice, and no more.

    Those of unbatched samples, and those whose padding is a word, stay torch's.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        axes = AXES.get(func)
        if axes is None:
            return func(*args, **(kwargs or {}))
        return _convolved(func, axes, *args, **(kwargs or {}))


def convolution(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """Return the convolution of inputs ``(n, c, ...)`` with weights ``(d, c / groups, ...)``, without a bias."""
    result: Tensor = _Convolution.apply(x, weight, shape)  # type: ignore[no-untyped-call]
    return result


def _convolved(
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
    """Return what one of torch's functions returns for so many spatial axes."""
    lowered = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not lowered or isinstance(padding, str) or input.ndim != axes + 2:
        return func(input, weight, bias, stride, padding, dilation, groups)
    dtype = torch.get_autocast_dtype("cpu")
    input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    shape = Shape(_each(stride, axes), _each(padding, axes), _each(dilation, axes), groups)
    result = convolution(input, weight, shape)
    return result if bias is None else result + bias.view(-1, *[1] * axes)


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Return a value for each spatial axis."""
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * axes if len(found) == 1 else found


def _forward(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    nothing = (0,) * len(shape.stride)
    return torch.convolution(x, weight, None, shape.stride, shape.padding, shape.dilation, False, nothing, shape.groups)


def _backward(
    cotangent: Tensor, x: Tensor, weight: Tensor, shape: Shape, of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``<convolution(x, weight), cotangent>``."""
    nothing = (0,) * len(shape.stride)
    found = torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, shape.stride, shape.padding, shape.dilation, False, nothing, shape.groups,
        [of_input, of_weight, False],
    )  # fmt: skip
    return found[0], found[1]


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
    """The gradients of a convolution, bilinear in the cotangent and in what they do not belong to."""

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
        """Return the cotangents, given those of the gradients of input and weight."""
        cotangent, x, weight = ctx.saved_tensors
        shape, needed = ctx.shape, ctx.needs_input_grad
        found: list[Tensor | None] = [None, None, None]
        if needed[0]:
            parts = [] if by_input is None else [_forward(by_input, weight, shape)]
            parts += [] if by_weight is None else [_forward(x, by_weight, shape)]
            found[0] = sum(parts[1:], parts[0]) if parts else None
        if needed[1] and by_weight is not None:
            found[1] = _backward(cotangent, x, by_weight, shape, True, False)[0]
        if needed[2] and by_input is not None:
            found[2] = _backward(cotangent, by_input, weight, shape, False, True)[1]
        return *found, None, None


AXES: dict[Callable[..., Any], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
