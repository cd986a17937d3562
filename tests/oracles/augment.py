"""DSA's six operations on one image, in float64, with loops over pixels, from their description in the paper."""

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]
"""(channels, height, width)."""


def color(image: Image, brightness: float, saturation: float, contrast: float) -> Image:
    out = image + brightness
    channels, height, width = out.shape
    for i in range(height):
        for j in range(width):
            grey = sum(out[c, i, j] for c in range(channels)) / channels
            for c in range(channels):
                out[c, i, j] = (out[c, i, j] - grey) * saturation + grey
    mean = out.sum() / out.size
    return (out - mean) * contrast + mean


def crop(image: Image, down: int, right: int) -> Image:
    out = np.zeros_like(image)
    channels, height, width = image.shape
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                if 0 <= i + down < height and 0 <= j + right < width:
                    out[c, i, j] = image[c, i + down, j + right]
    return out


def cutout(image: Image, top: int, left: int, size: tuple[int, int]) -> Image:
    out = image.copy()
    for i in range(top, top + size[0]):
        for j in range(left, left + size[1]):
            if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                out[:, i, j] = 0
    return out


def flip(image: Image) -> Image:
    out = np.zeros_like(image)
    for j in range(image.shape[2]):
        out[:, :, j] = image[:, :, image.shape[2] - 1 - j]
    return out


def _bilinear(image: Image, channel: int, row: float, column: float) -> float:
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                total += image[channel, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def affine(image: Image, a: float, b: float, c: float, d: float) -> Image:
    """Read output pixel (u, v), counted from the centre, at (a u + b v, c u + d v)."""
    out = np.zeros_like(image)
    channels, height, width = image.shape
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    for channel in range(channels):
        for i in range(height):
            for j in range(width):
                u, v = i - middle_row, j - middle_column
                out[channel, i, j] = _bilinear(
                    image, channel, a * u + b * v + middle_row, c * u + d * v + middle_column
                )
    return out


def scale(image: Image, rows: float, columns: float) -> Image:
    return affine(image, rows, 0, 0, columns)


def rotate(image: Image, angle: float) -> Image:
    return affine(image, math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))
