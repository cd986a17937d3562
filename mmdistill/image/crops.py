"""Random crops of images at another size, differentiable, each image's or candidate's in one call."""

import math

import torch
from torch import Tensor

from mmdistill.runtime import Draws

LEAST_SHARE = 0.08
"""The least share of an image's area that a crop has, as torchvision's random resized crops."""
RATIO = 4 / 3
"""The largest ratio of a crop's width to its height, and of its height to its width, as torchvision's."""
ATTEMPTS = 10
"""How often a crop that does not fit into its image is drawn, as torchvision's."""
LARGE = 128
"""The shorter side of images from which on methods of photographs crop and join them."""


def draw_boxes(
    draws: Draws, shape: tuple[int, ...], height: int, width: int, least: float = LEAST_SHARE, ratio: float = 1.0
) -> Tensor:
    """Draw crops of an image: their share of its area uniformly, the logarithm of their ratio too, then their place.

    A crop that would not fit is drawn anew, ten times in all, after which it is the whole image.

    Args:
        draws: the key.
        shape: of the crops' numbers.
        height: of the image, in pixels.
        width: of the image, in pixels.
        least: the least share of the image's area.
        ratio: the largest ratio of width to height, in units of the image's own, and of height to width.
    Returns:
        Top, left, height and width in whole pixels, ``(*shape, 4)`` int64.

    Differs from: torchvision's random resized crops, whose ratio is that of pixels also where an image is no square.
    """
    drawn = (*shape, ATTEMPTS if ratio > 1 else 1)
    side = draws.fold("share").uniform(*drawn, low=least).sqrt()
    bound = math.log(ratio) / 2
    stretch = draws.fold("ratio").uniform(*drawn, low=-bound, high=bound).exp()
    sides = ((side / stretch * height).round().long(), (side * stretch * width).round().long())
    fits = (sides[0] <= height) & (sides[1] <= width)
    first, found = fits.byte().argmax(-1, keepdim=True), fits.any(-1)
    extents = [
        torch.where(found, tried.gather(-1, first)[..., 0].clamp(1), full)
        for tried, full in zip(sides, (height, width), strict=True)
    ]
    places = [
        (draws.fold(name).uniform(*shape) * (full - extent + 1)).long().minimum(full - extent)
        for name, full, extent in zip(("top", "left"), (height, width), extents, strict=True)
    ]
    return torch.stack([*places, *extents], -1)


def resized_crops(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return crops of images at another size, by bilinear interpolation that averages where a crop becomes smaller.

    Rows and columns are weighted by a triangle of the width of a new pixel, of an old one where that is wider, cut off
    at the crop's edges.

    Args:
        images: ``(n, channels, H, W)``.
        boxes: ``(n, m, 4)``, as of :func:`draw_boxes`, or ``(1, m, 4)`` of all images alike.
        height: of the result.
        width: of the result.
    Shapes:
        returns ``(n, m, channels, height, width)``.
    """
    rows = _triangles(boxes[..., 0], boxes[..., 2], images.shape[2], height).to(images)
    columns = _triangles(boxes[..., 1], boxes[..., 3], images.shape[3], width).to(images)
    return rows[:, :, None] @ images[:, None] @ columns[:, :, None].mT


def _triangles(first: Tensor, extent: Tensor, side: int, wanted: int) -> Tensor:
    """Return the weights of a side's pixels in those of a resized part of it, ``(*first.shape, wanted, side)``."""
    first, extent = first[..., None, None].double(), extent[..., None, None].double()
    pixels, new = (torch.arange(count, device=first.device) + 0.5 for count in (side, wanted))
    scale = extent / wanted
    weight = 1 - (pixels - (first + scale * new[:, None])).abs() / scale.clamp(min=1)
    inside = (pixels > first) & (pixels < first + extent)
    weight = weight.clamp(min=0) * inside
    return weight / weight.sum(-1, keepdim=True)
