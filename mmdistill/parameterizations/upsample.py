"""Multi-formation: each stored image is a grid of small tiles that are up-sampled to full size (Sec. 3.4.2)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.coresets import InitKind, allocate, choose_repeatedly
from mmdistill.errors import ConfigError
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, Task


class PixelSpace(NamedTuple):
    """How pixels become a task's normalised units, and where they may lie.

    Shapes:
        mean and std ``(channels, 1, 1)``, in pixels; low and high bound them.
    """

    mean: Tensor
    std: Tensor
    low: float
    high: float


class MultiFormation(Parameterization):
    """Learn images of which each holds ``factor x factor`` tiles, each decoded to one sample by bilinear up-sampling.

    Stored are pixels, which stay within the data's value range; decoded are normalised samples. They take the bytes
    of as many raw images and give ``factor ** 2`` times the samples.

    Args:
        pixels: initial images ``(M, channels, height, width)``, in pixels.
        labels: one target per stored image, which its tiles share, or one per decoded sample.
        classes: ``(M,)`` the class each stored image stands for.
        num_classes: C.
        factor: tiles per side; 1 stores plain images.
        space: how pixels are normalised and bounded.
    Shapes:
        decodes ``(M factor^2, channels, height, width)``, the tiles of an image row by row, one image after the other.
    Raises:
        ConfigError: a side that the factor does not divide, or a tile side of one pixel.
    Source: Kim et al., ICML 2022, Sec. 4; survey Sec. 3.4.2.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, pixels: Tensor, labels: Labels, classes: Tensor, num_classes: int, factor: int, space: PixelSpace
    ) -> None:
        require_tiles(pixels.shape, factor)
        super().__init__(labels, classes.repeat_interleave(factor**2), num_classes)
        self.factor = factor
        self.low, self.high = space.low, space.high
        self.pixels = nn.Parameter(pixels.clamp(self.low, self.high))
        self.register_buffer("_mean", space.mean.clone(), persistent=False)
        self.register_buffer("_std", space.std.clone(), persistent=False)

    def forward(self, draws: Draws) -> Batch:
        """Cut, up-sample and normalise."""
        tiles = cut_tiles(self.pixels, self.factor)
        size = self.pixels.shape[2:]
        if self.factor > 1:
            tiles = F.interpolate(tiles, size=size, mode="bilinear", align_corners=False)
        inputs = (tiles - self._mean) / self._std
        return Batch(inputs, spread_targets(self.labels(), len(inputs)), inputs.new_ones(len(inputs)))

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the stored pixels to the data's value range."""
        self.pixels.clamp_(self.low, self.high)


def require_tiles(shape: torch.Size, factor: int) -> None:
    """Refuse images that cannot be cut.

    Raises:
        ConfigError: no images, a factor below 1, a side that it does not divide, a tile side of one pixel.
    """
    if len(shape) != 4:
        raise ConfigError(f"up-sampling reads images (n, channels, height, width), got {tuple(shape)}")
    height, width = shape[2:]
    if factor < 1 or height % factor or width % factor:
        raise ConfigError(
            f"a factor of {factor} does not divide images of {height} x {width} pixels; use a common divisor"
        )
    if min(height, width) // factor < 2:
        raise ConfigError(
            f"a factor of {factor} cuts images of {height} x {width} pixels into tiles with a side of one pixel, which "
            "cannot be up-sampled; use a smaller factor"
        )


def cut_tiles(images: Tensor, factor: int) -> Tensor:
    """Return ``(M factor^2, channels, height / factor, width / factor)`` tiles, those of one image row by row."""
    count, channels, height, width = images.shape
    rows, columns = height // factor, width // factor
    grid = images.view(count, channels, factor, rows, factor, columns)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(count * factor**2, channels, rows, columns)


def join_tiles(tiles: Tensor, factor: int) -> Tensor:
    """Return the images that :func:`cut_tiles` would cut into these tiles."""
    count, channels, rows, columns = tiles.shape
    grid = tiles.view(count // factor**2, factor, factor, channels, rows, columns)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, factor * rows, factor * columns)


def spread_targets(targets: Tensor, decoded: int) -> Tensor:
    """Return one target per decoded sample; fewer targets are shared by equal runs of consecutive samples."""
    return targets if len(targets) == decoded else targets.repeat_interleave(decoded // len(targets), 0)


def require_images(inputs: Inputs) -> Tensor:
    """Return inputs that are images.

    Raises:
        ConfigError: any other kind of inputs.
    """
    if isinstance(inputs, dict) or inputs.ndim != 4:
        got = f"a dict of {', '.join(inputs)}" if isinstance(inputs, dict) else f"shape {tuple(inputs.shape)}"
        raise ConfigError(f"this parameterization stores images (n, channels, height, width), the task has {got}")
    return inputs


def pixel_space(task: Task, channels: int) -> PixelSpace:
    """Return a task's normalisation and value range; without any, its units are pixels that know no bounds."""
    known = task.describe().preprocessing
    mean, std, bounds = (known.get(name) for name in ("mean", "std", "range"))

    def per_channel(values: object, default: float) -> Tensor:
        listed = values if isinstance(values, list | tuple) else [default] * channels
        return torch.tensor(listed, dtype=torch.float32, device=task.device).view(-1, 1, 1)

    low, high = bounds if isinstance(bounds, list | tuple) else (-float("inf"), float("inf"))
    return PixelSpace(per_channel(mean, 0.0), per_channel(std, 1.0), float(low), float(high))


def multi_formation(
    task: Task, budget: int, init: InitKind, label: LabelKind, draws: Draws, factor: int = 2
) -> MultiFormation:
    """Build multi-formation for a budget of full-size images, from tiles of down-sampled real images or from noise.

    Args:
        task: a task of images with classes.
        budget: stored images per class.
        init: how the real images are chosen, repeatedly where a class has fewer than tiles, or ``noise`` around the
            middle of the value range.
        label: the kind of labels; fixed ones are stored once per image, learned ones once per decoded sample.
        draws: the key.
        factor: tiles per side.
    Raises:
        ConfigError: a task of something else, or a factor that does not fit.
    Differs from: the published code starts tiles from every second pixel of a class's first images, here from the
        means of neighbouring pixels.
    """
    if task.labels is None or task.num_classes is None:
        raise ConfigError(f"{task.describe().data!r} has no classes; multi-formation stores images by class")
    shape = require_images(task.select(torch.zeros(1, dtype=torch.long)).inputs).shape
    require_tiles(shape, factor)
    space = pixel_space(task, shape[1])
    counts = allocate(budget, task.describe().budget, task.labels, task.num_classes)
    classes = torch.repeat_interleave(torch.arange(task.num_classes), counts).to(task.device)
    if init == "noise":
        low, high = (space.low, space.high) if space.high < float("inf") else (-2.0, 2.0)
        spread = draws.fold("noise").to(task.device).normal(len(classes), *shape[1:]) / 4 + 0.5
        pixels = low + (high - low) * spread
    else:
        chosen = task.select(choose_repeatedly(task, init, counts * factor**2, draws))
        images = require_images(chosen.inputs) * space.std + space.mean
        pixels = join_tiles(F.avg_pool2d(images, factor), factor)
    targets = classes if label == "fixed" else classes.repeat_interleave(factor**2)
    labels = make_labels(label, targets, task.num_classes)
    return MultiFormation(pixels, labels, classes, task.num_classes, factor, space)
