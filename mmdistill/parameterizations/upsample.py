"""Multi-formation of pixels: each stored image is a grid of small tiles (Sec. 3.4.2)."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmdistill.allocation import shares_of
from mmdistill.coresets import choose_start
from mmdistill.errors import ConfigError
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.parameterizations.starts import start_inputs
from mmdistill.parameterizations.tiles import ImageCodes, composed, require_tiles
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Inputs, Task, Tensors


class PixelSpace(NamedTuple):
    """The normalisation of a task's pixels, and their value range.

    Args:
        mean: ``(channels, 1, 1)``, in pixel values.
        std: likewise.
        low: the least pixel value, perhaps minus infinity.
        high: the largest pixel value, perhaps infinity.
    """

    mean: Tensor
    std: Tensor
    low: float
    high: float

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the least and largest normalised values of each channel, ``(channels, 1, 1)``."""
        return (self.low - self.mean) / self.std, (self.high - self.mean) / self.std

    def plain_values(self) -> dict[str, object]:
        """Return the space as plain values, with None for infinite bounds."""
        low, high = (None if math.isinf(bound) else bound for bound in (self.low, self.high))
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist(), "low": low, "high": high}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "PixelSpace":
        """Return the space of :meth:`plain_values`."""
        mean, std = (torch.tensor(plain[name]).view(-1, 1, 1) for name in ("mean", "std"))
        low, high = plain["low"], plain["high"]
        return PixelSpace(mean, std, -math.inf if low is None else low, math.inf if high is None else high)


class MultiFormation(ImageCodes):
    """Learn images of ``factor x factor`` tiles each, and decode each tile to a sample by bilinear up-sampling.

    The stored images are pixels within the data's value range; decoded samples are normalised. M images take the bytes
    of M raw ones and give ``M factor^2`` samples.

    Args:
        pixels: initial images ``(M, channels, height, width)``, in pixel values.
        labels: one target per stored image, which its tiles share, or one per decoded sample.
        classes: ``(M,)`` the class of each stored image.
        num_classes: C.
        factor: tiles per side; 1 stores plain images.
        space: the pixels' normalisation and value range.
    Shapes:
        decodes ``(M factor^2, channels, height, width)``, image by image, the tiles of each in row order.
    Raises:
        ConfigError: a factor below 1, or a tile side of one pixel.
    Differs from: the published code starts from the same uneven tiles but decodes equal ones, from an image padded with
        grey pixels: samples at the edges have a grey stripe and, for some sides, samples mix parts of two tiles.
    Source: Kim et al., ICML 2022, Sec. 4; survey Sec. 3.4.2.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, pixels: Tensor, labels: Labels, classes: Tensor, num_classes: int, factor: int, space: PixelSpace
    ) -> None:
        height, width = require_images(pixels).shape[2:]
        require_tiles(height, width, factor)
        super().__init__(labels, classes, num_classes, factor)
        self.low, self.high = space.low, space.high
        self.pixels = nn.Parameter(pixels.clamp(self.low, self.high))
        self.register_buffer("_mean", space.mean.clone(), persistent=False)
        self.register_buffer("_std", space.std.clone(), persistent=False)

    def forward(self, draws: Draws) -> Batch:
        """Cut, up-sample and normalise."""
        return self.batch_of(self.pixels)

    def samples_of(self, images: Tensor) -> Tensor:
        """Cut images into samples and normalise them."""
        return (super().samples_of(images) - self._mean) / self._std

    def plain_values(self) -> Mapping[str, object]:
        """Return the factor and the pixels' space."""
        return {"factor": self.tiles, **PixelSpace(self._mean, self._std, self.low, self.high).plain_values()}

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "MultiFormation":
        """Rebuild the stored pixels."""
        factor = plain["factor"]
        return cls(tensors["pixels"], labels, classes[:: factor**2], num_classes, factor, PixelSpace.of(plain))

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the stored pixels to the data's value range."""
        self.pixels.clamp_(self.low, self.high)


def require_images(inputs: Inputs) -> Tensor:
    """Return the inputs, which must be images.

    Raises:
        ConfigError: they are not ``(n, channels, height, width)``.
    """
    if isinstance(inputs, dict) or inputs.ndim != 4:
        got = f"a dict of {', '.join(inputs)}" if isinstance(inputs, dict) else f"shape {tuple(inputs.shape)}"
        raise ConfigError(f"this parameterization stores images (n, channels, height, width), got {got}")
    return inputs


def image_shape(task: Task) -> tuple[int, int, int]:
    """Return channels, height and width of a task's images.

    Raises:
        ConfigError: the samples are not images.
    """
    channels, height, width = require_images(task.select(torch.zeros(1, dtype=torch.long)).inputs).shape[1:]
    return channels, height, width


def pixel_space(task: Task, channels: int) -> PixelSpace:
    """Return a task's normalisation and value range; by default, mean 0, deviation 1 and no bounds."""
    preprocessing = task.describe().preprocessing
    mean, std, bounds = (preprocessing.get(name) for name in ("mean", "std", "range"))

    def per_channel(values: object, default: float) -> Tensor:
        by_channel = values if isinstance(values, list | tuple) else [default] * channels
        return torch.tensor(by_channel, dtype=torch.float32, device=task.device).view(-1, 1, 1)

    low, high = bounds if isinstance(bounds, list | tuple) else (-float("inf"), float("inf"))
    return PixelSpace(per_channel(mean, 0.0), per_channel(std, 1.0), float(low), float(high))


def multi_formation(
    task: Task, budget: int, init: InitKind, label: LabelKind, draws: Draws, factor: int = 2
) -> MultiFormation:
    """Build multi-formation for a budget of full-size images, from tiles of down-sampled real images or from noise.

    Args:
        task: a task of images with classes.
        budget: stored images per class.
        init: how the real images are chosen, with noisy copies in classes that have fewer images than tiles; or
            ``noise`` around the middle of the value range.
        label: the kind of labels; fixed ones are stored once per image, learned ones once per decoded sample.
        draws: the key.
        factor: tiles per side.
    Raises:
        ConfigError: a task that is not of images with classes, or a factor that does not fit.
    Differs from: the published code starts tiles from every second pixel of a class's first images; here each pixel of
        a tile is the mean of neighbouring ones.
    """
    counts, classes, num_classes = shares_of(task, budget)
    shape = image_shape(task)
    require_tiles(*shape[1:], factor)
    space = pixel_space(task, shape[0])
    if init == "noise":
        low, high = (space.low, space.high) if space.high < float("inf") else (-2.0, 2.0)
        noise = draws.fold("noise").to(task.device).normal(len(classes), *shape) / 4 + 0.5
        pixels = low + (high - low) * noise
    else:
        tiles = start_inputs(
            task, partial(choose_start, task, init, draws=draws), counts * factor**2, draws, parts=True
        )
        pixels = composed(require_images(tiles) * space.std + space.mean, factor)
    targets = classes if label == "hard" else classes.repeat_interleave(factor**2)
    labels = make_labels(label, targets, num_classes)
    return MultiFormation(pixels, labels, classes, num_classes, factor, space)
