"""The ConvNet of nearly every paper of the field."""

from torch import Tensor, nn

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.image.models.layers import (
    Activation,
    Convolution,
    ImageShape,
    Norm,
    Pooling,
    activation_layer,
    norm_layer,
    pooling_layer,
)
from mmdistill.names import counted


def convnet_depth(height: int, width: int) -> int:
    """Return the default number of blocks: 3 at 28 and 32 pixels, 4 at 64; the last leaves 4 x 4, or 2 x 2 if tiny."""
    side = min(height, width)
    return max(2, (side + 4).bit_length() - 3)


def vanishing(shape: ImageShape, depth: int) -> str:
    """Return why images cannot be halved ``depth`` times, and which depth fits; empty if they can."""
    padding = 2 if shape == (1, 28, 28) else 0
    if (min(shape[1:]) + 2 * padding) >> depth:
        return ""
    fits = (min(shape[1:]) + 2 * padding).bit_length() - 1
    hint = (
        f"a depth of {fits} fits (the model convnet-d{fits})" if fits else "the models convnet-nopool and mlp take them"
    )
    return f"images of {shape[1]} x {shape[2]} vanish in {counted(depth, 'pooling')}; {hint}"


class Blocks(nn.Module):
    """Base of networks of numbered blocks, ``block1`` to the last, and a linear ``classifier``.

    Args:
        shape: channels, height, width of an image.
        width: channels of the first block.
        depth: the number of blocks; None is :func:`convnet_depth`.
        pools: whether each block halves the sides.
    Raises:
        ConfigError: a width or depth below one.
        ShapeError: images that vanish in the poolings.
    """

    classifier: nn.Linear

    def __init__(self, shape: ImageShape, width: int, depth: int | None, pools: bool) -> None:
        super().__init__()
        _, height, breadth = shape
        self.depth = convnet_depth(height, breadth) if depth is None else depth
        if width < 1 or self.depth < 1:
            raise ConfigError(f"a ConvNet needs width and depth of at least 1, got {width} and {self.depth}")
        self.first = 3 if shape == (1, 28, 28) else 1  # the first padding; 3 makes 28 x 28 continue as 32 x 32
        self.sides = height + 2 * (self.first - 1), breadth + 2 * (self.first - 1)
        if pools and (reason := vanishing(shape, self.depth)):
            raise ShapeError(reason)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The submodules with one feature tensor per block; the embedding is the last one's input."""
        return (*(f"block{block}" for block in range(1, self.depth)), "classifier")

    @property
    def last_block(self) -> str:
        """The block whose output is the embedding."""
        return f"block{self.depth}"

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        for block in range(1, self.depth + 1):
            images = self.get_submodule(f"block{block}")(images)
        logits: Tensor = self.classifier(images.flatten(1))
        return logits


class ConvNet(Blocks):
    """Blocks of 3 x 3 convolution, norm, activation and 2 x 2 pooling, then one linear layer.

    One-channel images of 28 x 28 get a padding of 3 in the first layer, so that they continue as if 32 x 32.

    Args:
        shape: channels, height, width of an image.
        num_classes: C.
        width: channels of every block, or of the first one if they double.
        depth: the number of blocks; None is :func:`convnet_depth`: 3 at 28 and 32 pixels, 2 for the 8 x 8 digits.
        norm: ``instance``, ``batch``, ``layer``, ``group`` or ``none``.
        activation: ``relu``, ``leakyrelu``, ``sigmoid``, ``swish`` or ``softplus``.
        pooling: ``avg``, ``max`` or ``none``.
        doubling: each block has twice the channels of the one before.

    Shapes:
        ``(n, channels, height, width)`` normalised pixels to ``(n, C)`` logits.

    Raises:
        ConfigError: a width or depth below one, an unknown part.
        ShapeError: images that vanish in the poolings.

    Source: Gidaris and Komodakis, CVPR 2018, as used by Zhao et al., ICLR 2021; doubling: Zhou et al., NeurIPS 2022.
    """

    def __init__(
        self,
        shape: ImageShape,
        num_classes: int,
        width: int = 128,
        depth: int | None = None,
        norm: Norm = "instance",
        activation: Activation = "relu",
        pooling: Pooling = "avg",
        doubling: bool = False,
    ) -> None:
        super().__init__(shape, width, depth, pooling != "none")
        channels, (side, breadth) = shape[0], self.sides
        for block in range(1, self.depth + 1):
            layers = [
                Convolution(channels, width, 3, self.first if block == 1 else 1, bias_cancels=norm == "instance"),
                norm_layer(norm, width, (side, breadth)),
                activation_layer(activation),
                pooling_layer(pooling),
            ]
            self.add_module(f"block{block}", nn.Sequential(*layers))
            channels, width = width, width * 2 if doubling else width
            if pooling != "none":
                side, breadth = side // 2, breadth // 2
        self.classifier = nn.Linear(channels * side * breadth, num_classes)
