"""Multi-formation with loops in float64: cut a stored image into tiles, interpolate each linearly along both axes."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def interpolation_row(position: int, full: int, small: int) -> Array:
    """The weights of the small grid's points in one point of the full grid; pixel centres coincide at the middle."""
    centre = (position + 0.5) * small / full - 0.5
    centre = max(centre, 0.0)
    lower = int(np.floor(centre))
    upper = min(lower + 1, small - 1)
    row = np.zeros(small)
    row[lower] += 1 - (centre - lower)
    row[upper] += centre - lower
    return row


def upsampled(tile: Array, height: int, width: int) -> Array:
    result = np.zeros((height, width))
    for y in range(height):
        rows = interpolation_row(y, height, tile.shape[0])
        for x in range(width):
            columns = interpolation_row(x, width, tile.shape[1])
            for i, down in enumerate(rows):
                for j, right in enumerate(columns):
                    result[y, x] += down * right * tile[i, j]
    return result


def edges(side: int, factor: int) -> list[int]:
    """Where tiles begin and the last one ends; as many of the first as there are pixels over have one more."""
    found = [0]
    for index in range(factor):
        found.append(found[-1] + side // factor + (1 if index < side - factor * (side // factor) else 0))
    return found


def multi_formation(images: Array, factor: int, mean: Array, std: Array) -> Array:
    """Each image's tiles row by row, every channel interpolated to full size, then normalised."""
    count, channels, height, width = images.shape
    rows, columns = edges(height, factor), edges(width, factor)
    decoded = []
    for image in range(count):
        for down in range(factor):
            for right in range(factor):
                sample = np.zeros((channels, height, width))
                for channel in range(channels):
                    band = images[image, channel, rows[down] : rows[down + 1]]
                    tile = band[:, columns[right] : columns[right + 1]]
                    sample[channel] = (upsampled(tile, height, width) - mean[channel]) / std[channel]
                decoded.append(sample)
    return np.stack(decoded)
