"""The field's small image networks: ConvNet, MLP, LeNet and ResNet18, for any image size that they can digest."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.networks.module import ModuleFactory
from mmdistill.registry import canonical, unknown_name

Norm = Literal["instance", "batch", "none"]
ImageShape = tuple[int, int, int]
"""Channels, height, width."""


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return a normalisation layer; ``instance`` is one affine group per channel, as the field has it.

    Raises:
        ConfigError: an unknown norm.
    """
    if norm == "instance":
        return nn.GroupNorm(channels, channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise ConfigError(f"unknown norm {norm!r}: use instance, batch or none")


def convnet_depth(height: int, width: int) -> int:
    """Return the blocks an image carries: the last leaves 4 x 4 (3 blocks at 28 and 32, 4 at 64), or 2 x 2 if tiny."""
    side = min(height, width)
    return max(2, (side + 4).bit_length() - 3)


class ConvNet(nn.Module):
    """Blocks of 3 x 3 convolution, norm, ReLU and 2 x 2 average pooling, then one linear layer.

    One-channel images of 28 x 28 get a padding of 3 in the first layer, so that they continue as if 32 x 32.

    Args:
        shape: channels, height, width of an image.
        num_classes: C.
        width: channels of every block.
        depth: the number of blocks; None is :func:`convnet_depth`: 3 at 28 and 32 pixels, 2 for the 8 x 8 digits.
        norm: ``instance``, ``batch`` or ``none``.

    Shapes:
        ``(n, channels, height, width)`` normalised pixels to ``(n, C)`` logits.

    Source: Gidaris and Komodakis, CVPR 2018, as used by Zhao et al., ICLR 2021.
    """

    def __init__(
        self,
        shape: ImageShape,
        num_classes: int,
        width: int = 128,
        depth: int | None = None,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.depth = convnet_depth(height, breadth) if depth is None else depth
        if width < 1 or self.depth < 1:
            raise ConfigError(f"a ConvNet needs width and depth of at least 1, got {width} and {self.depth}")
        first = 3 if shape == (1, 28, 28) else 1
        side, breadth = height + 2 * (first - 1), breadth + 2 * (first - 1)
        if min(side, breadth) >> self.depth < 1:
            raise ShapeError(f"images of {height} x {shape[2]} vanish in {self.depth} poolings; use a smaller depth")
        for block in range(1, self.depth + 1):
            layers = [
                nn.Conv2d(channels, width, 3, padding=first if block == 1 else 1),
                norm_layer(norm, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            self.add_module(f"block{block}", nn.Sequential(*layers))
            channels, side, breadth = width, side // 2, breadth // 2
        self.classifier = nn.Linear(width * side * breadth, num_classes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The submodules that give one feature tensor per block, the embedding last."""
        return (*(f"block{block}" for block in range(1, self.depth)), "classifier")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        for block in range(1, self.depth + 1):
            images = self.get_submodule(f"block{block}")(images)
        logits: Tensor = self.classifier(images.flatten(1))
        return logits


class MLP(nn.Module):
    """Two hidden ReLU layers on the flattened image.

    Args:
        shape: channels, height, width of an image.
        num_classes: C.
        width: units of each hidden layer.
    """

    feature_names = ("hidden1", "classifier")

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 128) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.hidden1 = nn.Sequential(nn.Linear(channels * height * breadth, width), nn.ReLU())
        self.hidden2 = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.hidden2(self.hidden1(images.flatten(1))))
        return logits


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling; one-channel images get a padding of 2 in the first layer.

    Args:
        shape: channels, height, width of an image.
        num_classes: C.
        width: channels of the first layer; the others keep the published proportions 6 : 16 : 120 : 84.

    Raises:
        UnsupportedError: images under 16 pixels.
    """

    feature_names = ("block1", "block2", "hidden1", "classifier")

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 6) -> None:
        super().__init__()
        channels, height, breadth = shape
        if min(height, breadth) < 16:
            raise UnsupportedError(f"LeNet needs images of at least 16 x 16 pixels, got {height} x {breadth}")
        padding = 2 if channels == 1 else 0
        wide, hidden1, hidden2 = width * 16 // 6, width * 20, width * 14
        self.block1 = nn.Sequential(nn.Conv2d(channels, width, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(width, wide, 5), nn.ReLU(), nn.MaxPool2d(2))
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, breadth))
        self.hidden1 = nn.Sequential(nn.Linear(wide * rows * columns, hidden1), nn.ReLU())
        self.hidden2 = nn.Sequential(nn.Linear(hidden1, hidden2), nn.ReLU())
        self.classifier = nn.Linear(hidden2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.hidden1(self.block2(self.block1(images)).flatten(1))
        logits: Tensor = self.classifier(self.hidden2(hidden))
        return logits


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, which a 1 x 1 convolution carries where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            norm_layer(norm, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm_layer(norm, width),
        )
        same = stride == 1 and channels == width
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm_layer(norm, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.main(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet18 for small images: a 3 x 3 stem without pooling, four stages of two blocks, global average pooling.

    Args:
        shape: channels, height, width of an image.
        num_classes: C.
        width: channels of the first stage; each next one doubles them.
        norm: ``instance``, ``batch`` or ``none``.

    Raises:
        UnsupportedError: images under 16 pixels, whose last stage would have one pixel, which instance norm erases.
    """

    feature_names = ("stage1", "stage2", "stage3", "classifier")

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        channels, height, breadth = shape
        if min(height, breadth) < 16:
            raise UnsupportedError(f"ResNet18 needs images of at least 16 x 16 pixels, got {height} x {breadth}")
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), norm_layer(norm, width), nn.ReLU())
        for stage in range(4):
            before, after, stride = width << max(stage - 1, 0), width << stage, 1 if stage == 0 else 2
            first = ResidualBlock(before, after, stride, norm)
            self.add_module(f"stage{stage + 1}", nn.Sequential(first, ResidualBlock(after, after, 1, norm)))
        self.classifier = nn.Linear(width << 3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(images)
        for stage in range(1, 5):
            x = self.get_submodule(f"stage{stage}")(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


TINY_WIDTH = 32
Builder = Callable[..., nn.Module]
MODELS: dict[str, tuple[type[nn.Module], int]] = {
    "convnet": (ConvNet, 1),
    "mlp": (MLP, 1),
    "lenet": (LeNet, 16),
    "resnet18": (ResNet18, 16),
}
"""Networks by name, with the smallest image side that each takes."""


def model_factory(name: str, shape: ImageShape, num_classes: int, width: int | None = None) -> ModuleFactory:
    """Return a factory of a named network for images of one shape.

    Args:
        name: a key of :data:`MODELS`.
        shape: channels, height, width of an image.
        num_classes: C.
        width: None is the network's own default; for a ConvNet on images under 16 pixels 32 instead of 128, with
            which the 8 x 8 digits distil in seconds.

    Raises:
        ConfigError: an unknown name.
    """
    key = canonical(name)
    if key not in MODELS:
        raise unknown_name("model", name, MODELS)
    build: Builder = MODELS[key][0]
    if width is None and build is ConvNet and min(shape[1:]) < 16:
        width = TINY_WIDTH
    return partial(build, shape, num_classes) if width is None else partial(build, shape, num_classes, width)


def fitting_models(shape: ImageShape) -> tuple[str, ...]:
    """Return the names of the networks that take images of this shape, the ConvNet first."""
    return tuple(name for name, (_, smallest) in MODELS.items() if min(shape[1:]) >= smallest)
