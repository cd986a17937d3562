"""Where a task's training images lie, and how drawn ones come to the device normalised."""

import torch
from torch import Tensor

from mmdistill.execution.portions import samples_at_once
from mmdistill.image.data import ImageData
from mmdistill.runtime import spare_memory_bytes

NORMALISED_MOST = 1 << 28
"""Bytes of float32 up to which all images are normalised (and whitened) once instead of whenever they are drawn."""
NORMALISED_SHARE = 8
"""On CUDA, the part of the free memory that they may take, where that is more."""
NORMALISED_AT_ONCE = 2000
"""Images that are normalised together, fewer of large ones, which takes several times their memory."""


class Pixels:
    """Training images: on the device as they fit there, else in host memory or mapped from a file.

    Images on the host are gathered there, and sent from pinned memory while the device computes. Indices that are drawn
    on :attr:`place` spare both sides from waiting. Where memory allows it, all are normalised when the first are drawn.

    Args:
        data: whose training images.
        device: where they are wanted.
    """

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.data = data
        self.device = device
        self._images = _kept(data.train_images, device)
        self._once = 4 * self._images.numel() <= _most_normalised(self._images.device, data.whitening is not None)
        self._ready = False

    @property
    def place(self) -> torch.device:
        """The device that the images lie on."""
        return self._images.device

    def __call__(self, indices: Tensor) -> Tensor:
        """Return normalised images, ``(*indices.shape, channels, height, width)``, on the device."""
        if self._once and not self._ready:
            self._images, self._ready = _normalised(self.data, self._images), True
        images = self._images[indices.to(self.place)]
        if self.place.type != self.device.type:
            images = images.pin_memory().to(self.device, non_blocking=True)
        return images if self._ready else self.data.normalise(images)


def _most_normalised(device: torch.device, whitened: bool) -> int:
    """Return the bytes that normalised images may take on a device; whitening costs too much to be done each time."""
    if device.type != "cuda":
        return max(NORMALISED_MOST, spare_memory_bytes()) if whitened else NORMALISED_MOST
    return max(NORMALISED_MOST, torch.cuda.mem_get_info(device)[0] // NORMALISED_SHARE)


def _normalised(data: ImageData, images: Tensor) -> Tensor:
    """Return all images in normalised units."""
    found = torch.empty(images.shape, device=images.device)
    size = samples_at_once(NORMALISED_AT_ONCE, images)
    for raw, place in zip(torch.split(images, size), torch.split(found, size), strict=True):
        place.copy_(data.normalise(raw))
    return found


def _kept(images: Tensor, device: torch.device) -> Tensor:
    """Return images on a device, or where they are if they would take more than a quarter of its memory.

    Not of what is free there: random draws follow the place, and a seed must mean the same beside other processes.
    """
    if device.type != "cuda" or images.nbytes <= torch.cuda.get_device_properties(device).total_memory // 4:
        return images.to(device)
    return images
