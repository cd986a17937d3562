"""Images that are, byte for byte, another one: those that are tested on and trained on as well, and repeats."""

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
"""Images whose bytes are added up at once, fewer of large ones."""


def told(data: "ImageData") -> "ImageData":
    """Return data whose test images are given with a note of those that are also in training, where there are any."""
    train, test = data.train_images, data.test_images
    return replace(data, notes=(*data.notes, *shared_note(count_shared(train, test), len(test), "images")))


def count_shared(train: Tensor, test: Tensor) -> int:
    """Return how many test images are, byte for byte, among those of training.

    Images of one sum are compared by their hash, others need none.

    Shapes:
        train ``(N, channels, height, width)`` and test ``(n, ...)``, uint8 or float32.
    """
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        return 0
    sums, others = _sums(train), _sums(test)
    known = {_digest(train[row]) for row in torch.isin(sums, others).nonzero().flatten().tolist()}
    return sum(_digest(test[row]) in known for row in torch.isin(others, sums).nonzero().flatten().tolist())


def alike_images(images: Tensor) -> Tensor:
    """Return for each image the index of the first one that is, byte for byte, the same.

    Shapes:
        images ``(N, channels, height, width)``; returns ``(N,)`` int64.
    """
    _, inverse, counts = torch.unique(_sums(images), return_inverse=True, return_counts=True)
    numbers, first = torch.arange(len(images)), dict[bytes, int]()
    for row in (counts[inverse] > 1).nonzero().flatten().tolist():
        numbers[row] = first.setdefault(_digest(images[row]), row)
    return numbers


def held_out(alike: Tensor, labels: Tensor, order: Tensor, share: float) -> Tensor:
    """Return which images make a share of each class (one at least), ``(N,)`` booleans; repeats go together.

    Of each class those are taken that are drawn first, but for repeats that are more than is left to be taken; where
    all are, the fewest, if they are not the whole class. Repeats of several classes are not taken.

    Shapes:
        alike ``(N,)`` as of :func:`alike_images`; labels ``(N,)``; order ``(N,)``, in which images are drawn.
    """
    counts, sizes, classes = labels.bincount(), alike.bincount().tolist(), labels.tolist()
    wanted = (counts * share).round().long().clamp(min=1).tolist()
    several = set(alike[labels != labels[alike]].tolist())
    drawn = [first for first in dict.fromkeys(alike[order].tolist()) if first not in several]
    left, taken = list(wanted), list[int]()
    for first in drawn:
        if sizes[first] <= left[classes[first]]:
            left[classes[first]] -= sizes[first]
            taken.append(first)
    whole = counts.tolist()
    for first in sorted(drawn, key=sizes.__getitem__):
        label = classes[first]
        if left[label] == wanted[label] and sizes[first] < whole[label]:
            left[label] -= sizes[first]
            taken.append(first)
    return torch.isin(alike, torch.tensor(taken, dtype=torch.int64))


def _sums(images: Tensor) -> Tensor:
    """Return a number for each image, ``(N,)`` int64: the sum of its bytes, eight or four at a time where they fit."""
    size = images[:1].numel() * images.element_size()
    words = next(kind for kind in (np.int64, np.int32, np.uint8) if size % np.dtype(kind).itemsize == 0)
    blocks = torch.split(images, samples_at_once(AT_ONCE, images))
    parts = (part.flatten(1).contiguous().cpu().numpy() for part in blocks)
    return torch.from_numpy(np.concatenate([part.view(words).sum(1, dtype=np.int64) for part in parts]))


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().cpu().numpy().data, digest_size=16).digest()
