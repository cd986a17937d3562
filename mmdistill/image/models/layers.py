"""Layers of the small image networks: norms, activations, pooling, and a batch norm without in-place updates."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.execution.compilation import is_compiling

Norm = Literal["instance", "batch", "layer", "group", "none"]
Activation = Literal["relu", "leakyrelu", "sigmoid", "swish", "softplus"]
Pooling = Literal["avg", "max", "none"]
ImageShape = tuple[int, int, int]
"""Channels, height, width."""

GROUPS = 4
"""Groups of a group norm, as usual in the field."""


class SharpSoftplus(nn.Softplus):
    """A softplus of beta 60: a ReLU with a rounded kink, which has second derivatives (RCIG)."""

    def __init__(self) -> None:
        super().__init__(beta=60.0)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
    "softplus": SharpSoftplus,
}


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that replaces its running statistics instead of updating them in place.

    Therefore it can be differentiated and batched over networks (``torch.func.vmap``), which forbid in-place updates of
    buffers from outside. As usual, training normalises by the batch and testing by the running statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        mean, var = self.running_mean.clone(), self.running_var.clone()
        momentum = 0.1 if self.momentum is None else self.momentum
        output = F.batch_norm(input, mean, var, self.weight, self.bias, True, momentum, self.eps)
        self.running_mean, self.running_var = mean.detach(), var.detach()
        return output


def compiles_for_cpu(x: Tensor) -> bool:
    """Return whether a layer that reads this tensor is being compiled for a CPU."""
    return x.device.type == "cpu" and is_compiling()


class InstanceNorm(nn.GroupNorm):
    r"""A group norm of one channel per group, in plain arithmetic if it is compiled for a CPU.

    Compiled for a CPU, convolutions are laid out channels-last, and torch's own norm would transpose back and forth in
    the backward pass. Here the variance is the difference of two moments about a pivot k, a constant to autograd,

    .. math:: \sigma^2 = \overline{(x - k)^2} - (\overline{x - k})^2

    which is exact with all its derivatives for any k, and needs one pass over the gradient less than centring. The
    pivot is the mean of the middle row, a share f of the pixels, so (mean - k)^2 is at most (1 - f) / f variances,
    which bounds the rounding error of the difference.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        if not compiles_for_cpu(input):
            return super().forward(input)
        dims = (-2, -1)
        pivot = input[:, :, input.shape[2] // 2, None].mean(-1, keepdim=True).detach()
        moved = input - pivot
        mean = moved.mean(dims, keepdim=True)
        variance = (moved.square().mean(dims, keepdim=True) - mean.square()).clamp_min(0)
        scale = (variance + self.eps).rsqrt() * self.weight.view(-1, 1, 1)
        return moved * scale + (self.bias.view(-1, 1, 1) - mean * scale)


class Convolution(nn.Conv2d):
    """A square convolution of stride 1; for one channel, compiled for a CPU, it is a matrix product of patches.

    The strides of a single channel do not show whether it is channels-last, so torch would not use that layout in the
    layers that follow.

    Args:
        channels: of the input.
        width: channels of the output.
        size: of the window.
        padding: zeros around the input.
        bias_cancels: an instance norm follows, which removes any bias. Compiled for a CPU the bias is then left out:
            its gradient, zero up to rounding, would take as long as that of the weights.
    """

    def __init__(self, channels: int, width: int, size: int, padding: int, bias_cancels: bool) -> None:
        super().__init__(channels, width, size, padding=padding)
        self.bias_cancels = bias_cancels

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolved input."""
        if not compiles_for_cpu(input):
            return super().forward(input)
        bias = None if self.bias_cancels else self.bias
        if input.shape[1] > 1:
            return F.conv2d(input, self.weight, bias, padding=int(self.padding[0]))
        size, padded = self.weight.shape[-1], F.pad(input[:, 0], (int(self.padding[0]),) * 4)
        height, width = (side - size + 1 for side in padded.shape[-2:])
        patches = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
        product: Tensor = torch.stack(patches, -1).view(-1, size * size) @ self.weight.flatten(1).T
        if bias is not None:
            product = product + bias
        return product.view(-1, height, width, self.weight.shape[0]).permute(0, 3, 1, 2)


class AveragePool2d(nn.Module):
    """Average pooling of 2 x 2 that is fast on a CPU, eager or compiled with its neighbours.

    Torch's own loop takes up to eight times as long. Eagerly, rows are unbound and added, since a slice's gradient is
    written into zeros and added to the other's; columns are added by a product with a matrix of quarters, since the
    gradient of unbound columns is interleaved value by value. A single mean compiles well.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, channels, height // 2, width // 2)``."""
        if x.device.type != "cpu":
            return F.avg_pool2d(x, 2)
        n, channels, height, width = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
        if x.shape[2:] != (2 * height, 2 * width):
            x = x[..., : 2 * height, : 2 * width]
        if is_compiling():
            return x.reshape(n, channels, height, 2, width, 2).mean((3, 5))
        upper, lower = x.reshape(n, channels, height, 2, 2 * width).unbind(3)
        quarters = torch.full((width,), 0.25, dtype=x.dtype, device=x.device).diag().repeat_interleave(2, 0)
        pooled: Tensor = (upper + lower) @ quarters
        return pooled


def norm_layer(norm: Norm, channels: int, sides: tuple[int, int] | None = None) -> nn.Module:
    """Return a normalisation layer; ``instance`` is an affine group norm with one channel per group.

    Args:
        norm: ``instance``, ``batch``, ``layer``, ``group`` or ``none``.
        channels: of its input.
        sides: height and width of its input, which a layer norm needs.

    Raises:
        ConfigError: an unknown norm, a layer norm without ``sides``, or channels that groups do not divide.
    """
    if norm == "instance":
        return InstanceNorm(channels)
    if norm == "batch":
        return BatchNorm2d(channels)
    if norm == "group":
        if channels % GROUPS:
            raise ConfigError(
                f"a group norm has {GROUPS} groups, so the width must be a multiple of it, got {channels}"
            )
        return nn.GroupNorm(GROUPS, channels)
    if norm == "layer" and sides is not None:
        return nn.LayerNorm([channels, *sides])
    if norm == "none":
        return nn.Identity()
    raise ConfigError(f"no norm {norm!r} here: use instance, batch, group or none (or, in a ConvNet, layer)")


def activation_layer(activation: Activation) -> nn.Module:
    """Return an activation layer.

    Raises:
        ConfigError: an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {activation!r}: use {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]()


def pooling_layer(pooling: Pooling) -> nn.Module:
    """Return a pooling layer that halves both sides, or the identity.

    Raises:
        ConfigError: an unknown pooling.
    """
    if pooling == "avg":
        return AveragePool2d()
    if pooling == "max":
        return nn.MaxPool2d(2)
    if pooling == "none":
        return nn.Identity()
    raise ConfigError(f"unknown pooling {pooling!r}: use avg, max or none")
