"""Images made of the crops of real images that a trained network recognises best (RDED)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.allocation import shares_of
from mmdistill.checks import require_at_least
from mmdistill.coresets import require_samples
from mmdistill.execution.portions import concatenated
from mmdistill.image.crops import LARGE, draw_boxes, resized_crops
from mmdistill.image.methods.family import Conditions, MethodFamily
from mmdistill.labels import make_labels
from mmdistill.method import Method
from mmdistill.methods import fresh
from mmdistill.networks.teacher import trained_teacher
from mmdistill.parameterizations.raw import Raw
from mmdistill.parameterizations.tiles import join_tiles, require_tiles, tile_sides
from mmdistill.parameterizations.upsample import image_shape, require_images
from mmdistill.rules import random_subset
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import NetworkState, Task

AT_ONCE = {"cuda": 1 << 24, "cpu": 1 << 16}
"""Values in the crops that are processed together; on a CPU few enough for its caches."""


@dataclass(frozen=True)
class CropSettings(Settings):
    """Settings of images that are made of crops.

    Args:
        candidates: real images of each class to crop; a smaller class gives all.
        crops: random crops of each candidate, of which the best counts.
        tiles: crops per side of an image; 0: as published, two if its sides have :data:`LARGE` pixels or more, else
            one.
    Raises:
        ConfigError: a value that is too small.
    """

    candidates: int = 300
    crops: int = 5
    tiles: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        require_at_least(self, {"candidates": 1, "crops": 1, "tiles": 0})


def tiles_per_side(settings: CropSettings, height: int, width: int) -> int:
    """Return the number of crops per side of an image."""
    return settings.tiles or (2 if min(height, width) >= LARGE else 1)


def centred(crops: Tensor, height: int, width: int) -> Tensor:
    """Return small images centred in larger ones; the border is 0, which is the mean colour in normalised units."""
    top, left = height - crops.shape[-2], width - crops.shape[-1]
    return F.pad(crops, (left // 2, left - left // 2, top // 2, top - top // 2))


def _images_at_once(task: Task, crops: int) -> int:
    """Return how many images, of ``crops`` crops each, to process together."""
    return max(AT_ONCE.get(task.device.type, 1 << 24) // (math.prod(image_shape(task)) * crops), 1)


@torch.no_grad()
def crop_losses(task: Task, teacher: NetworkState, rows: Tensor, classes: Tensor, boxes: Tensor, tiles: int) -> Tensor:
    """Return a teacher's cross entropy on crops of real images, each with its image's class.

    A crop is resized to a tile (the smaller size if the tiles differ) and centred in an image.

    Args:
        task: the task.
        teacher: the network.
        rows: ``(n,)`` indices of real images.
        classes: ``(n,)``, the images' classes.
        boxes: ``(n, m, 4)``, m crops of each image.
        tiles: per side of an image.
    Shapes:
        returns ``(n, m)``, in nats.
    """
    at_once = _images_at_once(task, boxes.shape[1])

    def losses() -> Iterator[Tensor]:
        chunks = zip(*(torch.split(tensor, at_once) for tensor in (rows, boxes, classes)), strict=True)
        for row_chunk, box_chunk, class_chunk in chunks:
            inputs = require_images(task.select(row_chunk).inputs)
            height, width = inputs.shape[2:]
            crops = resized_crops(inputs, box_chunk.to(inputs.device), height // tiles, width // tiles)
            logits, _ = task.predict(teacher, centred(crops, height, width).flatten(0, 1))
            targets = class_chunk.to(inputs.device).repeat_interleave(box_chunk.shape[1])
            yield F.cross_entropy(logits, targets, reduction="none").view(box_chunk.shape[:2])

    return concatenated(losses(), len(rows))


def best_crops(losses: Tensor, sizes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the candidates of each class whose best crops have the least losses.

    Args:
        losses: ``(n, m)`` of m crops of each candidate, class after class.
        sizes: ``(C,)`` candidates of each class.
        counts: ``(C,)`` candidates to choose of each class.
    Returns:
        The chosen candidates and their best crops, as rows and columns of the losses, ``(counts.sum(),)`` each, class
        after class, the best first.
    """
    least, crops = losses.min(1)
    by_class, firsts = torch.split(least, sizes.tolist()), sizes.cumsum(0) - sizes
    chosen = torch.cat(
        [
            first + class_losses.argsort(stable=True)[:count]
            for first, class_losses, count in zip(firsts.tolist(), by_class, counts.tolist(), strict=True)
        ]
    )
    return chosen, crops[chosen]


@torch.no_grad()
def joined_crops(task: Task, rows: Tensor, boxes: Tensor, counts: Tensor, tiles: int) -> Tensor:
    """Return images that are grids of crops of real ones; the first crops of a class's images are its best ones.

    Of n images of a class, image i has the crops i, n + i, 2 n + i, ... of the class, row by row.

    Args:
        task: the task.
        rows: indices of real images, class after class, the best first.
        boxes: one crop of each.
        counts: ``(C,)`` images of each class.
        tiles: per side of an image.
    Shapes:
        rows ``(n tiles^2,)``, boxes ``(n tiles^2, 4)``; returns ``(n, channels, height, width)``, in the task's units.
    """
    per_image = tiles**2
    ends = (counts * per_image).cumsum(0).tolist()
    crops_of_images = torch.cat(
        [
            torch.arange(end - count * per_image, end).view(per_image, count).T
            for end, count in zip(ends, counts.tolist(), strict=True)
        ]
    )

    def images() -> Iterator[Tensor]:
        for chunk in torch.split(crops_of_images, _images_at_once(task, per_image)):
            real = require_images(task.select(rows[chunk.flatten()]).inputs)
            sides = [tile_sides(side, tiles) for side in real.shape[2:]]
            sizes = [(height, width) for height in sides[0] for width in sides[1]]
            chunk_boxes = boxes[chunk].to(real.device)
            crops = [
                resized_crops(real[index::per_image], chunk_boxes[:, index, None], *size)[:, 0]
                for index, size in enumerate(sizes)
            ]
            yield join_tiles(crops, tiles)

    return concatenated(images(), len(crops_of_images))


def realistic_images(task: Task, budget: int, settings: CropSettings, draws: Draws, *, scored: bool = True) -> Raw:
    """Build images of the crops that a teacher recognises best, with its labels.

    Args:
        task: a task of images with classes.
        budget: images per class.
        settings: of crops.
        draws: the key.
        scored: whether a teacher scores the crops; without, any crops are taken, which store the same bytes.
    Raises:
        ConfigError: another task, or tiles that are too small.
        DataError: a class has fewer images than are to be chosen.
    """
    counts, classes, num_classes = shares_of(task, budget)
    _, height, width = image_shape(task)
    tiles = tiles_per_side(settings, height, width)
    require_tiles(height, width, tiles)
    crop_counts = counts * tiles**2
    require_samples(task, crop_counts)
    assert task.labels is not None  # there are classes
    sizes = torch.bincount(task.labels, minlength=num_classes).clamp(max=settings.candidates).maximum(crop_counts)
    rows = random_subset(task.labels, sizes, draws.fold("candidates"))
    boxes = draw_boxes(draws.fold("boxes").to("cpu"), (len(rows), settings.crops), height, width)
    losses = torch.zeros(boxes.shape[:2])
    if scored:
        teacher = trained_teacher(task, settings.teacher_epochs)
        losses = crop_losses(task, teacher, rows, task.labels[rows], boxes, tiles).cpu()
    chosen, crops = best_crops(losses, sizes, crop_counts)
    images = joined_crops(task, rows[chosen], boxes[chosen, crops], counts, tiles)
    return Raw(images, make_labels("teacher", classes, num_classes), classes, num_classes)


def _reduced_grey(ipc: int) -> Settings:
    """Return few candidates from ten images per class on, since the best of many digits look alike."""
    return CropSettings(steps=0, teacher_epochs=3, candidates=300 if ipc < 10 else 3 * ipc)


_rded = Method(
    "RDED",
    None,
    fresh,
    lambda ipc: CropSettings(steps=0, teacher_epochs=50),
    label="teacher",
    solve=realistic_images,
    sized=partial(realistic_images, scored=False),
    summary="crops of real images that a trained network recognises best, with its probabilities as labels",
    source="Sun et al., CVPR 2024 (one label for each image, where its judges, those of the protocol rded, ask "
    "the network anew for each augmented minibatch; a teacher of 50 epochs, where its "
    "networks are downloaded; no JPEG)",
)
REALISTIC = MethodFamily(
    {"rded": _rded},
    presets={"digits": {"rded": _rded.with_settings(teacher_epochs=60)}},
    reduced={"rded": replace(_rded, settings=_reduced_grey)},
    reduced_colour={"rded": _rded.with_settings(teacher_epochs=3)},
    conditions={"rded": Conditions(protocol="rded", model="convnet-bn")},
)
"""Images are chosen and labelled without any step. On digits the teacher trains as long as judges of the whole training
set. Of reduced schedules, the teacher's epochs and the candidates were compared on held-out images."""
