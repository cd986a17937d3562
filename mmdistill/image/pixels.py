"""Storage of a task's training images, and their normalised transfer to the device."""

import torch
from torch import Tensor

from mmdistill.execution.portions import samples_at_once
from mmdistill.image.data import ImageData
from mmdistill.runtime import spare_memory_bytes

NORMALISED_MOST = 1 << 28
"""Bytes of float32 up to which all images are normalised (and whitened) once instead of at each draw."""
NORMALISED_SHARE = 8
"""On CUDA, the limit is one part in so many of the free memory, if that is more."""
NORMALISED_AT_ONCE = 2000
"""Images normalised per chunk, fewer if they are large; this takes several times their memory."""


class Pixels:
    """Training images: on the device if they fit, else in host memory or mapped from a file.

    Host images are gathered on the host and sent from pinned memory while the device computes; draw the indices on
    :attr:`place`, and neither side waits. If memory allows, the first call normalises all images.

    Args:
        data: the data with the training images.
        device: the device that gets the drawn images.
    """

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.data = data
        self.device = device
        self._images = _place(data.train_images, device)
        limit = _normalised_bytes_limit(self._images.device, data.whitening is not None)
        self._normalises_once = 4 * self._images.numel() <= limit
        self._are_normalised = False

    @property
    def place(self) -> torch.device:
        """The device that holds the images."""
        return self._images.device

    def __call__(self, indices: Tensor) -> Tensor:
        """Return normalised images, ``(*indices.shape, channels, height, width)``, on the device."""
        if self._normalises_once and not self._are_normalised:
            self._images, self._are_normalised = _normalise_all(self.data, self._images), True
        images = self._images[indices.to(self.place)]
        if self.place.type != self.device.type:
            images = images.pin_memory().to(self.device, non_blocking=True)
        return images if self._are_normalised else self.data.normalise(images)


def _normalised_bytes_limit(device: torch.device, whitened: bool) -> int:
    """Return the bytes that normalised images may take on a device; more for whitened ones, as whitening is slow."""
    if device.type != "cuda":
        return max(NORMALISED_MOST, spare_memory_bytes()) if whitened else NORMALISED_MOST
    return max(NORMALISED_MOST, torch.cuda.mem_get_info(device)[0] // NORMALISED_SHARE)


def _normalise_all(data: ImageData, images: Tensor) -> Tensor:
    """Return all images in normalised units, computed chunk by chunk."""
    normalised = torch.empty(images.shape, device=images.device)
    size = samples_at_once(NORMALISED_AT_ONCE, images)
    for raw, out in zip(torch.split(images, size), torch.split(normalised, size), strict=True):
        out.copy_(data.normalise(raw))
    return normalised


def _place(images: Tensor, device: torch.device) -> Tensor:
    """Move images to a device, unless they would take more than a quarter of its memory.

    Total memory decides, not free memory: random draws depend on the images' device, and a seed must give the same
    draws beside other processes.
    """
    if device.type != "cuda" or images.nbytes <= torch.cuda.get_device_properties(device).total_memory // 4:
        return images.to(device)
    return images
