"""Images of the crops that a network recognises best, crop by crop, written from the paper and its figure."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def crop(image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """A crop (top, left, height, width) of ``(channels, H, W)``, by torch's own bilinear interpolation."""
    top, left, height, width = box
    window = image[None, :, top : top + height, left : left + width]
    return F.interpolate(window, size, mode="bilinear", align_corners=False, antialias=True)[0]


def score(image: Tensor, label: int, shape: tuple[int, ...], network: Callable[[Tensor], Tensor]) -> float:
    """The realism of a crop, log p(label), shown in the middle of zeros of an image's shape."""
    shown = torch.zeros(shape, dtype=image.dtype)
    top, left = (shape[1] - image.shape[1]) // 2, (shape[2] - image.shape[2]) // 2
    shown[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    logits = network(shown[None])[0]
    return float(logits[label] - torch.log(sum(torch.exp(logit) for logit in logits)))


def images(
    candidates: list[list[Tensor]],
    boxes: list[list[list[tuple[int, int, int, int]]]],
    ipc: int,
    tiles: int,
    network: Callable[[Tensor], Tensor],
) -> Tensor:
    """The images of all classes, from each class's candidates and the crops of each of these."""
    shape = tuple(candidates[0][0].shape)
    small = (shape[1] // tiles, shape[2] // tiles)
    heights, widths = ([side // tiles + (i < side % tiles) for i in range(tiles)] for side in shape[1:])
    made = []
    for label, (own, their_boxes) in enumerate(zip(candidates, boxes, strict=True)):
        found = []
        for image, tried in zip(own, their_boxes, strict=True):
            scores = [score(crop(image, box, small), label, shape, network) for box in tried]
            best = max(range(len(scores)), key=scores.__getitem__)
            found.append((scores[best], image, tried[best]))
        found.sort(key=lambda one: -one[0])
        for index in range(ipc):
            canvas = torch.zeros(shape, dtype=found[0][1].dtype)
            for row in range(tiles):
                for column in range(tiles):
                    _, image, box = found[(row * tiles + column) * ipc + index]
                    top, left = sum(heights[:row]), sum(widths[:column])
                    height, width = heights[row], widths[column]
                    canvas[:, top : top + height, left : left + width] = crop(image, box, (height, width))
            made.append(canvas)
    return torch.stack(made)


def random_box(
    chance: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random resized crop of a square image, as torchvision documents its own."""
    for _ in range(10):
        area = height * width * chance.uniform(*scale)
        aspect = math.exp(chance.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top, left = chance.integers(0, height - high + 1), chance.integers(0, width - wide + 1)
            return int(top), int(left), high, wide
    return 0, 0, height, width
