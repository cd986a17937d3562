"""DC's own augmentation of minibatches, with which its judges train on MNIST."""

import math

import torch
from torch import Tensor

from mmdistill.image.augment import resample
from mmdistill.runtime import Draws

CROP = 4
"""Largest shift, in pixels."""
SCALE = 0.2
"""Sides are multiplied by U[1 - SCALE, 1 + SCALE)."""
ROTATE = 45
"""Largest angle, in degrees."""


def crop_scale_rotate(draws: Draws, images: Tensor, networks: int = 1) -> Tensor:
    """Shift, scale or rotate each image, by one of the three with equal chances and a strength of its own.

    The border is filled with the minibatch's mean of each channel after a shift, its mean over all channels after a
    rotation, and zeros after scaling.

    Args:
        draws: the key.
        images: the networks' minibatches, one after the other.
        networks: how many minibatches there are; each has means of its own.
    Shapes:
        images ``(n, channels, height, width)`` in normalised units; returns the same shape.

    Differs from:
        the published code, which scales to whole pixels with nearest neighbours; here scaling is bilinear.
    Source: Zhao et al., ICLR 2021, public code.
    """
    n, channels = images.shape[:2]
    key = draws.to(images.device)
    choice = key.fold("operation").integers(3, n)
    u = key.fold("strength").uniform(3, n)
    cropped, scaled, rotated = choice == 0, choice == 1, choice == 2
    shift = torch.stack([(u[row] * 2 * CROP).floor() - CROP for row in (0, 1)], 1) * cropped[:, None]
    one = torch.ones_like(u[0])
    rows, columns = (torch.where(scaled, 1 / (1 - SCALE + 2 * SCALE * u[row]), one) for row in (0, 1))
    angle = torch.where(rotated, ((u[2] * 2 * ROTATE).floor() - ROTATE) * math.pi / 180, torch.zeros_like(one))
    sine, cosine = angle.sin(), angle.cos()
    matrix = torch.stack([rows * cosine, sine, -sine, columns * cosine], 1).view(n, 2, 2)
    means = images.reshape(networks, -1, *images.shape[1:]).mean((1, 3, 4)).repeat_interleave(n // networks, 0)
    by_channel, of_all = means.view(n, channels, 1, 1), means.mean(1).view(n, 1, 1, 1)
    fill = torch.where(cropped.view(n, 1, 1, 1), by_channel, of_all * rotated.view(n, 1, 1, 1))
    return resample((images - fill)[:, None], matrix.to(images), shift.to(images))[:, 0] + fill
