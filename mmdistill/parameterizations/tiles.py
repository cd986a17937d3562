"""Images that are grids of small tiles, each up-sampled to a full-size sample (multi-formation, Sec. 3.4.2)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.labels import Labels
from mmdistill.parameterizations.base import Parameterization
from mmdistill.task import Batch


class ImageCodes(Parameterization):
    """Codes that decode to images, each one sample or a grid of ``tiles x tiles`` of them.

    Where the number of tiles does not divide a side, the first rows or columns of tiles are one pixel larger, so that
    every pixel belongs to a tile.

    Args:
        labels: one target per sample, or fewer, each shared by an equal run of consecutive samples (of a code or an
            image).
        classes: ``(N,)`` the class of each decoded image.
        num_classes: C.
        tiles: tiles per side of an image, each up-sampled bilinearly; 1: images are the samples.
        styles: decoders that each code passes through; the images of a code are consecutive.
    Raises:
        ConfigError: tiles below 1.
    Source: Kim et al., ICML 2022, Sec. 4 (of pixels; any codes may be cut here); survey Sec. 3.4.2.
    """

    def __init__(self, labels: Labels, classes: Tensor, num_classes: int, tiles: int = 1, styles: int = 1) -> None:
        if tiles < 1:
            raise ConfigError(f"a factor of up-sampling is at least 1, got {tiles}")
        super().__init__(labels, classes.repeat_interleave(tiles**2), num_classes)
        self.tiles = tiles
        self.styles = styles

    def samples_of(self, images: Tensor) -> Tensor:
        """Cut decoded images into samples: for each code, tile by tile in row order, each tile in all styles.

        Shapes:
            images ``(n, channels, height, width)``; returns ``(n tiles^2, channels, height, width)``.
        """
        if self.tiles == 1:
            return images
        size = images.shape[2:]
        samples = torch.stack([resized(tile, size, "bilinear") for tile in cut_tiles(images, self.tiles)], 1)
        return samples.view(-1, self.styles, self.tiles**2, *images.shape[1:]).transpose(1, 2).flatten(0, 2)

    def batch_of(self, images: Tensor) -> Batch:
        """Return the samples of all decoded images, with their targets."""
        inputs = self.samples_of(images)
        return Batch(inputs, spread_targets(self.labels(), len(inputs)), inputs.new_ones(len(inputs)))


def require_tiles(height: int, width: int, factor: int) -> None:
    """Refuse images that cannot be cut into ``factor x factor`` tiles.

    Raises:
        ConfigError: a factor below 1, or a tile side of one pixel.
    """
    if factor < 1:
        raise ConfigError(f"a factor of up-sampling is at least 1, got {factor}")
    if min(height, width) // factor < 2:
        raise ConfigError(
            f"a factor of {factor} cuts images of {height} x {width} pixels into tiles with a side of one pixel, which "
            "cannot be up-sampled; use a smaller factor"
        )


def tile_sides(side: int, factor: int) -> list[int]:
    """Return the lengths of an image's tiles along one axis; the first ones get a remainder, one pixel each."""
    return [side // factor + (index < side % factor) for index in range(factor)]


def cut_tiles(images: Tensor, factor: int) -> list[Tensor]:
    """Cut ``(M, channels, height, width)`` images; return ``factor^2`` tensors in row order, each a tile of all M."""
    rows, columns = (tile_sides(side, factor) for side in images.shape[2:])
    return [tile for band in torch.split(images, rows, 2) for tile in torch.split(band, columns, 3)]


def join_tiles(tiles: Sequence[Tensor], factor: int) -> Tensor:
    """Join tiles into images, the inverse of :func:`cut_tiles`."""
    return torch.cat([torch.cat(list(tiles[row * factor :][:factor]), 3) for row in range(factor)], 2)


def resized(images: Tensor, size: torch.Size, mode: Literal["area", "bilinear"]) -> Tensor:
    """Return images resized, down by area averages or up by bilinear interpolation."""
    return images if images.shape[2:] == size else F.interpolate(images, size=size, mode=mode)


def spread_targets(targets: Tensor, decoded: int) -> Tensor:
    """Return one target per decoded sample; each of fewer targets is shared by an equal run of consecutive samples.

    Shapes:
        targets ``(M, ...)``; returns ``(decoded, ...)``, decoded being a multiple of M.
    """
    return targets if len(targets) == decoded else targets.repeat_interleave(decoded // len(targets), 0)


def composed(images: Tensor, tiles: int) -> Tensor:
    """Return images each composed of ``tiles x tiles`` given ones, down-sampled to the size of a tile.

    Shapes:
        images ``(n tiles^2, channels, height, width)``; returns ``(n, channels, height, width)``.
    """
    if tiles == 1:
        return images
    sizes = [tile.shape[2:] for tile in cut_tiles(images[:1], tiles)]
    return join_tiles([resized(images[i :: tiles**2], size, "area") for i, size in enumerate(sizes)], tiles)
