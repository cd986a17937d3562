"""FRePo's network: a ConvNet that normalises before each convolution and doubles its channels."""

import math

from torch import Tensor, nn

from mmdistill.image.models.convnet import Blocks
from mmdistill.image.models.layers import (
    Activation,
    BatchNorm2d,
    Convolution,
    ImageShape,
    Norm,
    activation_layer,
    norm_layer,
    pooling_layer,
)

TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal variable truncated at two."""
FOLLOWING = 0.9
"""The newest batch's share in the running statistics of batch norms."""


def lecun_normal_(weight: Tensor) -> None:
    """Draw weights in place from a normal distribution truncated at two deviations, with variance 1 / fan-in."""
    std = 1 / (math.sqrt(weight[0].numel()) * TRUNCATED)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class LeCunConvolution(Convolution):
    """A convolution with weights initialised by :func:`lecun_normal_` and a zero bias."""

    def reset_parameters(self) -> None:
        """Draw the weights."""
        _reset(self)


class LeCunLinear(nn.Linear):
    """A linear layer with the same initialisation."""

    def reset_parameters(self) -> None:
        """Draw the weights."""
        _reset(self)


def _reset(layer: nn.Conv2d | nn.Linear) -> None:
    lecun_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class PreNormConvNet(Blocks):
    """Blocks of norm, 3 x 3 convolution, activation and 2 x 2 pooling, each twice as wide as the last.

    The first block has no norm, and none follows the last, so the embedding is not normalised. Batch norms' running
    statistics weigh the last batch by nine tenths.

    Args:
        shape: channels, height, width of an image; one-channel images of 28 x 28 get a padding of 3 in the first layer.
        num_classes: C.
        width: channels of the first block.
        depth: the number of blocks; None is :func:`~mmdistill.image.models.convnet.convnet_depth`.
        norm: ``none``, ``batch``, ``instance``, ``layer`` or ``group``.
        activation: ``relu``, ``leakyrelu``, ``sigmoid``, ``swish`` or ``softplus`` (RCIG's).

    Shapes:
        ``(n, channels, height, width)`` normalised pixels to ``(n, C)`` logits.

    Raises:
        ConfigError: a width or depth below one, an unknown norm.
        ShapeError: images that vanish in the poolings.

    Differs from: the published code keeps biased variances as running statistics, torch unbiased ones.
    Source: Zhou et al., NeurIPS 2022, published code.
    """

    def __init__(
        self,
        shape: ImageShape,
        num_classes: int,
        width: int = 128,
        depth: int | None = None,
        norm: Norm = "none",
        activation: Activation = "relu",
    ) -> None:
        super().__init__(shape, width, depth, pools=True)
        channels, (side, breadth) = shape[0], self.sides
        for block in range(1, self.depth + 1):
            normalise = nn.Identity() if block == 1 else norm_layer(norm, channels, (side, breadth))
            if isinstance(normalise, BatchNorm2d):
                normalise.momentum = FOLLOWING
            convolve = LeCunConvolution(channels, width, 3, self.first if block == 1 else 1, bias_cancels=False)
            layers = (normalise, convolve, activation_layer(activation), pooling_layer("avg"))
            self.add_module(f"block{block}", nn.Sequential(*layers))
            channels, width = width, width * 2
            side, breadth = side // 2, breadth // 2
        self.classifier = LeCunLinear(channels * side * breadth, num_classes)
