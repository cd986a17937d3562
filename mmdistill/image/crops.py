"""Random resized crops, differentiable, for many images or candidates in one call."""

import math

import torch
from torch import Tensor

from mmdistill.runtime import Draws

LEAST_SHARE = 0.08
"""The least share of an image's area that a crop has, as in torchvision's random resized crops."""
RATIO = 4 / 3
"""The largest ratio of a crop's longer to its shorter side, as in torchvision."""
ATTEMPTS = 10
"""How often to draw a crop until it fits into its image, as in torchvision."""
LARGE = 128
"""The shorter side from which images count as photographs, which some methods crop and join."""


def draw_boxes(
    draws: Draws, shape: tuple[int, ...], height: int, width: int, least: float = LEAST_SHARE, ratio: float = 1.0
) -> Tensor:
    """Draw crops of an image: area share and log aspect ratio uniformly, then the position uniformly.

    A crop that does not fit is drawn again, up to ten times in all; if none fits it is the whole image.

    Args:
        draws: the key.
        shape: how many crops, as a shape.
        height: of the image, in pixels.
        width: of the image, in pixels.
        least: the least share of the image's area.
        ratio: the largest ratio of the longer to the shorter side, relative to the image's own sides.
    Returns:
        Top, left, height and width in whole pixels, ``(*shape, 4)`` int64.

    Differs from: torchvision, whose ratio is in pixels even if the image is not square.
    """
    drawn = (*shape, ATTEMPTS if ratio > 1 else 1)
    side = draws.fold("share").uniform(*drawn, low=least).sqrt()
    bound = math.log(ratio) / 2
    stretch = draws.fold("ratio").uniform(*drawn, low=-bound, high=bound).exp()
    sides = ((side / stretch * height).round().long(), (side * stretch * width).round().long())
    fits = (sides[0] <= height) & (sides[1] <= width)
    first_fit, any_fit = fits.byte().argmax(-1, keepdim=True), fits.any(-1)
    extents = [
        torch.where(any_fit, attempts.gather(-1, first_fit)[..., 0].clamp(1), full)
        for attempts, full in zip(sides, (height, width), strict=True)
    ]
    corners = [
        (draws.fold(name).uniform(*shape) * (full - extent + 1)).long().minimum(full - extent)
        for name, full, extent in zip(("top", "left"), (height, width), extents, strict=True)
    ]
    return torch.stack([*corners, *extents], -1)


def resized_crops(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return crops resized by antialiased bilinear interpolation.

    Rows and columns are weighted by a triangle as wide as the larger of a new and an old pixel, cut off at the crop's
    edges.

    Args:
        images: ``(n, channels, H, W)``.
        boxes: ``(n, m, 4)`` from :func:`draw_boxes`, or ``(1, m, 4)`` shared by all images.
        height: of the result.
        width: of the result.
    Shapes:
        returns ``(n, m, channels, height, width)``.
    """
    rows = _triangles(boxes[..., 0], boxes[..., 2], images.shape[2], height).to(images)
    columns = _triangles(boxes[..., 1], boxes[..., 3], images.shape[3], width).to(images)
    return rows[:, :, None] @ images[:, None] @ columns[:, :, None].mT


def _triangles(first: Tensor, extent: Tensor, side: int, new_side: int) -> Tensor:
    """Return the weights of old pixels in each new pixel along one axis, ``(*first.shape, new_side, side)``.

    Args:
        first: the crop's first old pixel.
        extent: the crop's number of old pixels.
        side: old pixels of the image.
        new_side: new pixels of the crop.
    """
    first, extent = first[..., None, None].double(), extent[..., None, None].double()
    pixels, new_pixels = (torch.arange(count, device=first.device) + 0.5 for count in (side, new_side))
    scale = extent / new_side
    weight = 1 - (pixels - (first + scale * new_pixels[:, None])).abs() / scale.clamp(min=1)
    inside = (pixels > first) & (pixels < first + extent)
    weight = weight.clamp(min=0) * inside
    return weight / weight.sum(-1, keepdim=True)
