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
