"""ResNets for small images: a 3 x 3 stem without pooling, four stages, global average pooling."""

from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.image.models.layers import ImageShape, Norm, norm_layer

STAGES: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks of each stage by the number of layers."""
BOTTLENECK_FROM = 50
"""The least number of layers with bottleneck blocks."""


def _shortcut(channels: int, width: int, stride: int, norm: Norm) -> nn.Module:
    """Return the identity, or a 1 x 1 convolution if the shape changes."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm_layer(norm, width))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            norm_layer(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm_layer(norm, width),
        )
        self.shortcut = _shortcut(channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.main(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, with a shortcut; the last has four times the channels."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        wide = width * self.expansion
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            norm_layer(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            norm_layer(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, wide, 1, bias=False),
            norm_layer(norm, wide),
        )
        self.shortcut = _shortcut(channels, wide, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.main(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet of 18, 34, 50, 101 or 152 layers for small images.

    Args:
        shape: channels, height, width of an image, at least 16 x 16; below, instance norm erases the last stage.
        num_classes: C.
        layers: 18, 34, 50, 101 or 152.
        width: channels of the first stage; each further stage has twice as many.
        norm: ``instance``, ``batch``, ``group`` or ``none``.

    Raises:
        ConfigError: another number of layers.
    """

    feature_names = ("stage1", "stage2", "stage3", "classifier")
    last_block = "stage4"

    def __init__(
        self, shape: ImageShape, num_classes: int, layers: int, width: int = 64, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        if layers not in STAGES:
            raise ConfigError(f"a ResNet has {', '.join(map(str, STAGES))} layers, got {layers}")
        block = BasicBlock if layers < BOTTLENECK_FROM else Bottleneck
        channels = width
        self.stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, 1, 1, bias=False), norm_layer(norm, width), nn.ReLU())
        for stage, blocks in enumerate(STAGES[layers]):
            body: list[nn.Module] = []
            for position in range(blocks):
                stride = 2 if stage > 0 and position == 0 else 1
                body.append(block(channels, width << stage, stride, norm))
                channels = (width << stage) * block.expansion
            self.add_module(f"stage{stage + 1}", nn.Sequential(*body))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(images)
        for stage in range(1, 5):
            x = self.get_submodule(f"stage{stage}")(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
