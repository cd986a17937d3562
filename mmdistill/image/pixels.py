"""Where a task's training images lie, and how drawn ones come to the device normalised."""

import torch
from torch import Tensor

from mmdistill.image.data import ImageData

NORMALISED_MOST = 1 << 28
"""Bytes of float32 up to which all images are normalised (and whitened) once instead of whenever they are drawn."""
NORMALISED_SHARE = 8
"""On CUDA, the part of the free memory that they may take, where that is more."""


class Pixels:
    """Training images: on the device as they fit there, else in host memory or mapped from a file.

    Images on the host are gathered there, and sent from pinned memory while the device computes. Indices that are drawn
    on :attr:`place` spare both sides from waiting.

    Args:
        data: whose training images.
        device: where they are wanted.
    """

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.data = data
        self.device = device
        self._images = _kept(data.train_images, device)
        self._ready = 4 * self._images.numel() <= _most_normalised(self._images.device)
        if self._ready:
            self._images = data.normalise(self._images)

    @property
    def place(self) -> torch.device:
        """The device that the images lie on."""
        return self._images.device

    def __call__(self, indices: Tensor) -> Tensor:
        """Return normalised images, ``(*indices.shape, channels, height, width)``, on the device."""
        images = self._images[indices.to(self.place)]
        if self.place.type != self.device.type:
            images = images.pin_memory().to(self.device, non_blocking=True)
        return images if self._ready else self.data.normalise(images)


def _most_normalised(device: torch.device) -> int:
    """Return the bytes that normalised images may take on a device."""
    if device.type != "cuda":
        return NORMALISED_MOST
    return max(NORMALISED_MOST, torch.cuda.mem_get_info(device)[0] // NORMALISED_SHARE)


def _kept(images: Tensor, device: torch.device) -> Tensor:
    """Return images on a device, or where they are if they would take more than half of what it has free."""
    if device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        return images.to(device)
    return images
