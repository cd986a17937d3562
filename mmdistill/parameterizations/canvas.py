"""Textures: one tileable canvas per class, whose crops are the samples (survey, Sec. 4.10)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdistill.errors import ConfigError
from mmdistill.labels import Labels
from mmdistill.parameterizations.budget import FLOAT_BYTES, ImageBudget
from mmdistill.parameterizations.tiles import ImageCodes
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Task, Tensors


class Canvases(ImageCodes):
    """Learn a canvas per class; each decoding crops it at random positions, so that every part learns and edges meet.

    The position of a crop is uniform, and crops wrap around the canvas's edges, as in MTT's published code.

    Differs from: that code keeps a canvas of twice the side for each image, and its judges draw new crops in every
    step. Here one canvas per class takes the bytes of the class's images, and the finished set holds the crops that the
    run's last key draws, since a set is samples, which judges take as they are.

    Args:
        canvases: initial canvases ``(C, channels, H, W)``, normalised.
        labels: one target per class, or one per sample.
        size: height and width of a crop.
        crops: crops of each canvas in a decoding.
        tiles: tiles per side of a crop, see :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    Shapes:
        decodes ``(C crops tiles^2, channels, height, width)`` in normalised units, class by class.
    Raises:
        ConfigError: crops larger than the canvas, or no crops.
    Source: Cazenavette et al., CVPR Workshops 2022; survey Sec. 4.10.
    """

    redraws = True

    def __init__(self, canvases: Tensor, labels: Labels, size: tuple[int, int], crops: int, tiles: int = 1) -> None:
        if canvases.ndim != 4 or any(a < b for a, b in zip(canvases.shape[2:], size, strict=True)) or crops < 1:
            raise ConfigError(
                f"expected canvases (C, channels, H, W) of at least {size[0]} x {size[1]} pixels and a crop of each, "
                f"got {tuple(canvases.shape)} and {crops} crops"
            )
        num_classes = len(canvases)
        super().__init__(labels, torch.arange(num_classes).repeat_interleave(crops), num_classes, tiles)
        self.canvases = nn.Parameter(canvases.clone())
        self.size = size
        self.crops = crops

    def forward(self, draws: Draws) -> Batch:
        """Crop every canvas at random positions."""
        return self._crop(draws.to(self.canvases.device))

    def finished(self, draws: Draws) -> Batch:
        """Crop at positions drawn on the CPU, so that codes decode to the same set on every device."""
        return self._crop(draws.to("cpu"))

    def _crop(self, draws: Draws) -> Batch:
        """Crop every canvas at positions drawn on the key's device."""
        num_classes, _, *sides = self.canvases.shape
        key, device = draws.fold("crops"), self.canvases.device
        count, offsets = num_classes * self.crops, [torch.arange(length, device=device) for length in self.size]
        rows, columns = (
            (key.fold(name).integers(side, count).to(device)[:, None] + offset) % side
            for name, side, offset in zip(("rows", "columns"), sides, offsets, strict=True)
        )
        owner = torch.arange(num_classes, device=device).repeat_interleave(self.crops)
        crops = self.canvases[owner[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return self.batch_of(crops)

    def plain_values(self) -> Mapping[str, object]:
        """Return the size and number of crops, and the tiles."""
        return {"size": list(self.size), "crops": self.crops, "tiles": self.tiles}

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "Canvases":
        """Rebuild the stored canvases."""
        height, width = plain["size"]
        crops, tiles = plain["crops"], plain["tiles"]
        if num_classes * crops * tiles**2 != len(classes):  # before the crops' positions take memory
            raise ConfigError(f"{crops} crops of {num_classes} canvases are not {len(classes)} samples")
        return cls(tensors["canvases"], labels, (height, width), crops, tiles)


def class_canvases(task: Task, room: ImageBudget, init: InitKind, draws: Draws, multiple: int = 4) -> Canvases:
    """Build one canvas per class within a budget, of the images' aspect ratio, tiled with real images.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how the tiles are chosen; ``noise`` draws N(0, 1).
        draws: the key.
        multiple: crops per raw image of the budget.
    Raises:
        ConfigError: a budget below one image per class, or a multiple below 1.
    """
    if multiple < 1:
        raise ConfigError(f"crops per raw image are at least 1, got {multiple}")
    channels, height, width = room.shape
    crops = room.per_class * multiple

    def area(room: ImageBudget) -> int:
        """Return the most pixels that a canvas can have."""
        label_bytes = room.code_label_bytes(room.per_class * multiple)
        return (room.stored_bytes // room.num_classes - label_bytes) // (FLOAT_BYTES * channels)

    def fits(room: ImageBudget) -> bool:
        return area(room) >= height * width

    if not fits(room):
        raise ConfigError(
            f"{room.stored_bytes:,} bytes hold no canvas of {height} x {width} pixels for each of {room.num_classes} "
            f"classes beside the labels of {crops} crops; {room.enough(fits, multiple)}"
        )
    tall, wide = math.isqrt(area(room) * height // width), math.isqrt(area(room) * width // height)
    down, across = math.ceil(tall / height), math.ceil(wide / width)
    tiles = room.targets(task, down * across, init, draws)
    grid = tiles.view(room.num_classes, down, across, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    canvases = grid.reshape(room.num_classes, channels, down * height, across * width)[:, :, :tall, :wide]
    return Canvases(canvases, room.labels(1, crops), (height, width), crops, room.tiles).to(task.device)
