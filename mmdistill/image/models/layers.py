"""Parts that the small image networks share: norms, activations, pooling, and a batch norm without side effects."""

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
"""Groups of a group norm, as the field has it."""


class SharpSoftplus(nn.Softplus):
    """A softplus of beta 60: a ReLU whose kink is round, so that second derivatives see it (RCIG)."""

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
    """Batch norm that replaces its running statistics instead of writing into them.

    So it can be differentiated and batched over networks (``torch.func.vmap``), which writing into buffers that come
    from outside cannot. Training normalises by the batch, testing by the running statistics, as always.
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
    r"""A group norm of one channel a group, in plain arithmetic where it is compiled for a CPU.

    Torch's own is transposed there and back in the backward pass, since convolutions compiled for a CPU are laid out
    channel by channel. Here variances are differences of two moments about a pivot k, a constant to differentiation,

    .. math:: \sigma^2 = \overline{(x - k)^2} - (\overline{x - k})^2

    which is exact with all its derivatives for any k, and takes one pass over the gradient less than centring. The
    pivot is the mean of the middle row, a share f of the pixels, so that (mean - k)^2 is at most (1 - f) / f variances
    and the difference loses no more than that many roundings.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        if not compiles_for_cpu(input):
            return super().forward(input)
        dims = (-2, -1)
        moved = input - input[:, :, input.shape[2] // 2, None].mean(-1, keepdim=True).detach()
        mean = moved.mean(dims, keepdim=True)
        variance = (moved.square().mean(dims, keepdim=True) - mean.square()).clamp_min(0)
        scale = (variance + self.eps).rsqrt() * self.weight.view(-1, 1, 1)
        return moved * scale + (self.bias.view(-1, 1, 1) - mean * scale)


class Convolution(nn.Conv2d):
    """A square convolution of stride 1; compiled for a CPU it takes one channel as a matrix product of patches.

    The strides of one channel do not tell its order, so that torch would lay out all that follows as it was before.

    Args:
        channels: of the input.
        width: of the output.
        size: of the window.
        padding: zeros around the input.
        bias_cancels: an instance norm follows, which takes any bias away: compiled for a CPU it is left out, because
            its gradient, zero but for rounding, takes as long as that of the weights.
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
    """Average pooling of 2 x 2, written as what is fast on a CPU, by itself or compiled with its neighbours.

    Torch's own loop takes up to eight times as long. Rows are unbound and added, not sliced, since a slice's gradient
    is written into zeros, and added to the other's; columns are added by a product with a matrix of quarters, since
    the gradient of unbound columns is woven together number by number. What compiles well is one mean.
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
    """Return a normalisation layer; ``instance`` is one affine group per channel, as the field has it.

    Args:
        norm: ``instance``, ``batch``, ``layer``, ``group`` or ``none``.
        channels: of its input.
        sides: height and width of its input, which a layer norm needs.

    Raises:
        ConfigError: an unknown norm, or a layer norm in a network that has none.
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
    """Return an activation.

    Raises:
        ConfigError: an unknown one.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {activation!r}: use {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]()


def pooling_layer(pooling: Pooling) -> nn.Module:
    """Return a pooling layer that halves both sides, or none.

    Raises:
        ConfigError: an unknown one.
    """
    if pooling == "avg":
        return AveragePool2d()
    if pooling == "max":
        return nn.MaxPool2d(2)
    if pooling == "none":
        return nn.Identity()
    raise ConfigError(f"unknown pooling {pooling!r}: use avg, max or none")
