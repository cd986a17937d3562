"""Mean and deviation of each channel of images, and the units in which they are 0 and 1."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmdistill.execution.portions import samples_at_once

MOMENTS_CHUNK = 1000
"""Images per chunk when the channel moments are computed; fewer if they are large."""


@functools.lru_cache
def moments_on(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation per channel, ``(channels, 1, 1)``; cached, since a host copy waits for the device."""
    return torch.tensor(mean, device=device).view(-1, 1, 1), torch.tensor(std, device=device).view(-1, 1, 1)


def standardised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the mean from each channel of ``(..., channels, height, width)`` and divide by its deviation."""
    shift, spread = moments_on(mean, std, images.device)
    return (images - shift) / spread


def destandardised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undo :func:`standardised`."""
    shift, spread = moments_on(mean, std, images.device)
    return images * spread + shift


def channel_moments(images: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of scaled images; a constant channel gets deviation 1.

    They are rounded to six decimals, or more if all values are far below 1, as in dark images.

    Shapes:
        images ``(N, channels, height, width)`` on the CPU, not yet divided by ``scale``; returns two tuples of one
        number per channel.
    """
    chunks = torch.split(images, samples_at_once(MOMENTS_CHUNK, images))
    means, deviations = _moments_of_bytes(chunks) if images.dtype == torch.uint8 else _moments_of_floats(chunks, scale)
    unit = scale if images.dtype == torch.uint8 else 1.0
    largest = max(map(math.hypot, means, deviations)) / unit
    decimals = 6 - min(math.ceil(math.log10(largest)), 0) if largest else 6
    rounded = [round(deviation / unit, decimals) or 1.0 for deviation in deviations]
    return tuple(round(mean / unit, decimals) for mean in means), tuple(rounded)


def _moments_of_bytes(chunks: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of byte images, exactly, from a histogram of bytes."""
    counts = sum(
        torch.stack([channel.flatten().bincount(minlength=256) for channel in chunk.unbind(1)]) for chunk in chunks
    )
    assert isinstance(counts, Tensor)
    values = torch.arange(256)
    n = int(counts[0].sum())
    sums, squares = (counts @ values).tolist(), (counts @ values.square()).tolist()
    deviations = [math.sqrt((n * square - total**2) / n**2) for total, square in zip(sums, squares, strict=True)]
    return [total / n for total in sums], deviations


def _moments_of_floats(chunks: Sequence[Tensor], scale: float) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of scaled images."""
    shift = (chunks[0].double() / scale).mean((0, 2, 3), keepdim=True)  # near the mean, which limits cancellation
    sums = torch.zeros(2, chunks[0].shape[1], dtype=torch.float64)
    for chunk in chunks:
        gaps = chunk.double() / scale - shift
        sums += torch.stack([gaps.sum((0, 2, 3)), gaps.square().sum((0, 2, 3))])
    mean, mean_square = sums / sum(chunk[:, 0].numel() for chunk in chunks)
    deviations: list[float] = (mean_square - mean.square()).clamp_min(0).sqrt().tolist()
    return (mean + shift.flatten()).tolist(), deviations
