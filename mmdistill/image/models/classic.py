"""MLP, LeNet, AlexNet and VGG11 in the field's variants for small images."""

from torch import Tensor, nn

from mmdistill.errors import ConfigError
from mmdistill.image.models.layers import ImageShape, Norm, norm_layer


class MLP(nn.Module):
    """Hidden ReLU layers on the flattened image.

    Args:
        shape: channels, height, width of an image.
        num_classes: C.
        width: units of each hidden layer.
        depth: hidden layers.

    Raises:
        ConfigError: a width or depth below one.
    """

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ConfigError(f"an MLP needs width and depth of at least 1, got {width} and {depth}")
        channels, height, breadth = shape
        size = channels * height * breadth
        self.depth = depth
        for layer in range(1, depth + 1):
            self.add_module(f"hidden{layer}", nn.Sequential(nn.Linear(size, width), nn.ReLU()))
            size = width
        self.classifier = nn.Linear(size, num_classes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The hidden layers, the embedding last."""
        return (*(f"hidden{layer}" for layer in range(1, self.depth)), "classifier")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        hidden = images.flatten(1)
        for layer in range(1, self.depth + 1):
            hidden = self.get_submodule(f"hidden{layer}")(hidden)
        logits: Tensor = self.classifier(hidden)
        return logits


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling; one-channel images get a padding of 2 in the first layer.

    Args:
        shape: channels, height, width of an image, at least 16 x 16.
        num_classes: C.
        width: channels of the first layer; the others keep the published proportions 6 : 16 : 120 : 84.
    """

    feature_names = ("block1", "block2", "hidden1", "classifier")

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 6) -> None:
        super().__init__()
        channels, height, breadth = shape
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


def _block(channels: int, width: int, kernel: int, padding: int, norm: Norm, pool: bool) -> nn.Sequential:
    """Return convolution, norm and ReLU, then max pooling if ``pool``."""
    layers = [nn.Conv2d(channels, width, kernel, padding=padding), norm_layer(norm, width), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class AlexNet(nn.Module):
    """AlexNet for small images: five convolutions, three max poolings and one linear layer.

    One-channel images get a padding of 4 in the first layer, so that 28 x 28 continues as 32 x 32.

    Args:
        shape: channels, height, width of an image, at least 16 x 16.
        num_classes: C.
        width: channels of the first layer; the others keep the proportions 128 : 192 : 256 : 192 : 192.
        norm: ``none``, ``instance``, ``batch`` or ``group``.
    """

    feature_names = ("block1", "block2", "block3", "block4", "classifier")
    last_block = "block5"

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 128, norm: Norm = "none") -> None:
        super().__init__()
        channels = shape[0]
        wide, widest = width * 3 // 2, width * 2
        self.block1 = _block(channels, width, 5, 4 if channels == 1 else 2, norm, pool=True)
        self.block2 = _block(width, wide, 5, 2, norm, pool=True)
        self.block3 = _block(wide, widest, 3, 1, norm, pool=False)
        self.block4 = _block(widest, wide, 3, 1, norm, pool=False)
        self.block5 = _block(wide, wide, 3, 1, norm, pool=True)
        side, breadth = (length + 4 >> 3 if channels == 1 else length >> 3 for length in shape[1:])
        self.classifier = nn.Linear(wide * side * breadth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = self.block5(self.block4(self.block3(self.block2(self.block1(images)))))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


class VGG11(nn.Module):
    """VGG11 for small images: eight convolutions in five stages that end in max pooling, and one linear layer.

    One-channel images get a padding of 3 in the first layer, so that 28 x 28 continues as 32 x 32.

    Args:
        shape: channels, height, width of an image, at least 32 x 32 (28 x 28 with one channel).
        num_classes: C.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        norm: ``instance``, ``batch``, ``group`` or ``none``.
    """

    feature_names = ("stage1", "stage2", "stage3", "stage4", "classifier")
    last_block = "stage5"
    STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
    """Widths of each stage's convolutions, in multiples of the first one's."""

    def __init__(self, shape: ImageShape, num_classes: int, width: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        channels = shape[0]
        padding = 3 if channels == 1 else 1
        for number, multiples in enumerate(self.STAGES, 1):
            blocks = []
            for position, multiple in enumerate(multiples, 1):
                blocks.append(_block(channels, width * multiple, 3, padding, norm, pool=position == len(multiples)))
                channels, padding = width * multiple, 1
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
        side, breadth = (length + 4 >> 5 if shape[0] == 1 else length >> 5 for length in shape[1:])
        self.classifier = nn.Linear(channels * side * breadth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        for number in range(1, len(self.STAGES) + 1):
            images = self.get_submodule(f"stage{number}")(images)
        logits: Tensor = self.classifier(images.flatten(1))
        return logits
