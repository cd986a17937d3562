"""Copies of images, byte for byte: test images that are also in the training set, and repeats within a set."""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmdistill.execution.portions import samples_at_once
from mmdistill.files.columns import shared_note

if TYPE_CHECKING:
    from mmdistill.image.data import ImageData

AT_ONCE = 1000
"""Images whose bytes are summed per chunk, fewer if they are large."""


def note_shared(data: "ImageData") -> "ImageData":
    """Return the data with a note on test images that are also training images, if there are any."""
    train, test = data.train_images, data.test_images
    return replace(data, notes=(*data.notes, *shared_note(count_shared(train, test), len(test), "images")))


def count_shared(train: Tensor, test: Tensor) -> int:
    """Return how many test images are, byte for byte, training images.

    Only images with equal checksums are hashed and compared.

    Shapes:
        train ``(N, channels, height, width)`` and test ``(n, ...)``, uint8 or float32.
    """
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        return 0
    train_sums, test_sums = _checksums(train), _checksums(test)
    hashes = {_digest(train[row]) for row in torch.isin(train_sums, test_sums).nonzero().flatten().tolist()}
    return sum(_digest(test[row]) in hashes for row in torch.isin(test_sums, train_sums).nonzero().flatten().tolist())


def alike_images(images: Tensor) -> Tensor:
    """Return for each image the index of its first copy, byte for byte.

    Shapes:
        images ``(N, channels, height, width)``; returns ``(N,)`` int64.
    """
    _, inverse, counts = torch.unique(_checksums(images), return_inverse=True, return_counts=True)
    first_copies, row_of_hash = torch.arange(len(images)), dict[bytes, int]()
    for row in (counts[inverse] > 1).nonzero().flatten().tolist():
        first_copies[row] = row_of_hash.setdefault(_digest(images[row]), row)
    return first_copies


def _checksums(images: Tensor) -> Tensor:
    """Return a checksum of each image, ``(N,)`` int64: the sum of its 64-bit, 32-bit or 8-bit words."""
    size = images[:1].numel() * images.element_size()
    word = next(kind for kind in (np.int64, np.int32, np.uint8) if size % np.dtype(kind).itemsize == 0)
    chunks = torch.split(images, samples_at_once(AT_ONCE, images))
    arrays = (chunk.flatten(1).contiguous().cpu().numpy() for chunk in chunks)
    return torch.from_numpy(np.concatenate([array.view(word).sum(1, dtype=np.int64) for array in arrays]))


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().cpu().numpy().data, digest_size=16).digest()
