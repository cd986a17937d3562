"""Storage by loops, in float64: combinations of images, wrap-around crops, IT-GAN's inversion and its losses."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def combinations(coefficients: Array, images: Array) -> Array:
    """Sample r of class c is the sum over k of a_crk x_ck, class by class."""
    classes, samples, count = coefficients.shape
    made = []
    for c in range(classes):
        for r in range(samples):
            total = np.zeros(images.shape[2:])
            for k in range(count):
                total = total + coefficients[c, r, k] * images[c, k]
            made.append(total)
    return np.stack(made)


def crop(canvas: Array, row: int, column: int, height: int, width: int) -> Array:
    """A crop of a canvas ``(channels, H, W)`` that goes on at the other side where it leaves the canvas."""
    channels, tall, wide = canvas.shape
    made = np.zeros((channels, height, width))
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                made[channel, y, x] = canvas[channel, (row + y) % tall, (column + x) % wide]
    return made


def paired(features: Array, wanted: Array, classes: list[int]) -> float:
    """Second part of Eq. 28: squared distances of paired features, averaged in each class and summed over classes."""
    total = 0.0
    for c in sorted(set(classes)):
        rows = [j for j, other in enumerate(classes) if other == c]
        for j in rows:
            total += sum((features[j, d] - wanted[j, d]) ** 2 for d in range(features.shape[1])) / len(rows)
    return float(total)


def inverted(images: Array, generator: Array, features: Array, pixel_weight: float) -> Array:
    """Eq. 27 for linear maps: each image's latent by least squares over its features, then its weighted pixels.

    The generator is ``(d, pixels)``, the features ``(pixels, k)``, images ``(n, pixels)``.
    """
    found = []
    for image in images:
        rows = np.concatenate([(generator @ features).T, pixel_weight**0.5 * generator.T])
        wanted = np.concatenate([image @ features, pixel_weight**0.5 * image])
        found.append(np.linalg.lstsq(rows, wanted, rcond=None)[0])
    return np.stack(found)


def convolved(image: Array, weight: Array, bias: Array, padding: int = 0) -> Array:
    """A convolution ``(out, in, k, k)`` of one image ``(in, H, W)``, with zeros around it."""
    out, _, size, _ = weight.shape
    wide = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    height, width = wide.shape[1] - size + 1, wide.shape[2] - size + 1
    made = np.zeros((out, height, width))
    for o in range(out):
        for y in range(height):
            for x in range(width):
                made[o, y, x] = bias[o] + (weight[o] * wide[:, y : y + size, x : x + size]).sum()
    return made


def spread(image: Array, weight: Array, bias: Array, stride: int = 1, padding: int = 0) -> Array:
    """A transposed convolution ``(in, out, k, k)``: every pixel adds its weighted kernel; the padding is cut off."""
    channels, out, size, _ = weight.shape
    height, width = ((side - 1) * stride + size for side in image.shape[1:])
    made = np.zeros((out, height, width))
    for c in range(channels):
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                made[:, y * stride : y * stride + size, x * stride : x * stride + size] += image[c, y, x] * weight[c]
    return made[:, padding : height - padding, padding : width - padding] + bias[:, None, None]


def perturbed(weight: Array, direction: Array, strength: float) -> Array:
    """EDD's perturbation: each filter moves along its direction, scaled to the filter's own norm."""
    moved = weight.copy()
    for row in range(len(weight)):
        norm = np.sqrt((weight[row] ** 2).sum())
        moved[row] += strength * norm * direction[row] / np.sqrt((direction[row] ** 2).sum())
    return moved
