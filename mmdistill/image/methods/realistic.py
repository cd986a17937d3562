"""Images that are crops of real ones, those that a trained network recognises best, joined where they are small."""

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
from mmdistill.errors import ConfigError
from mmdistill.execution.portions import filled
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
"""Numbers in the crops that are made and looked at together; on a CPU so few that its caches hold them."""


@dataclass(frozen=True)
class CropSettings(Settings):
    """Settings of images that are made of crops.

    Args:
        candidates: real images of each class that are looked at; of a smaller class all.
        crops: random crops of each of them, of which the best counts.
        tiles: crops per side of an image; 0: as published, two from :data:`LARGE` pixels per side on and one below.
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
    """Return how many crops stand side by side in an image."""
    return settings.tiles or (2 if min(height, width) >= LARGE else 1)


def centred(crops: Tensor, height: int, width: int) -> Tensor:
    """Return small images in the middle of larger ones that are 0 elsewhere, in normalised units the mean colour."""
    top, left = height - crops.shape[-2], width - crops.shape[-1]
    return F.pad(crops, (left // 2, left - left // 2, top // 2, top - top // 2))


def _images_at_once(task: Task, crops: int) -> int:
    """Return of how many images so many crops each are looked at together."""
    return max(AT_ONCE.get(task.device.type, 1 << 24) // (math.prod(image_shape(task)) * crops), 1)


@torch.no_grad()
def crop_losses(task: Task, teacher: NetworkState, rows: Tensor, classes: Tensor, boxes: Tensor, tiles: int) -> Tensor:
    """Return a teacher's cross entropy on crops of real images, each taken for its image's class.

    A crop is made as large as a tile, where a side leaves a remainder as the smaller ones, and shown in the middle of
    an image.

    Args:
        task: the task.
        teacher: the network.
        rows: ``(n,)``, which real images.
        classes: ``(n,)``, theirs.
        boxes: ``(n, m, 4)`` crops of each.
        tiles: per side of an image.
    Shapes:
        returns ``(n, m)``, in nats.
    """
    at_once = _images_at_once(task, boxes.shape[1])

    def losses() -> Iterator[Tensor]:
        for part, own, known in zip(*(torch.split(tensor, at_once) for tensor in (rows, boxes, classes)), strict=True):
            inputs = require_images(task.select(part).inputs)
            height, width = inputs.shape[2:]
            crops = resized_crops(inputs, own.to(inputs.device), height // tiles, width // tiles)
            logits, _ = task.predict(teacher, centred(crops, height, width).flatten(0, 1))
            targets = known.to(inputs.device).repeat_interleave(own.shape[1])
            yield F.cross_entropy(logits, targets, reduction="none").view(own.shape[:2])

    return filled(losses(), len(rows))


def best_crops(losses: Tensor, sizes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return which candidates' best crops are the best of their class, and which crops these are.

    Args:
        losses: ``(n, m)`` of m crops of each candidate, class after class.
        sizes: ``(C,)`` candidates of each class.
        counts: ``(C,)`` how many are wanted.
    Returns:
        Rows and columns of the losses, ``(counts.sum(),)`` each, class after class, the best first.
    """
    best, crops = losses.min(1)
    groups, firsts = torch.split(best, sizes.tolist()), sizes.cumsum(0) - sizes
    chosen = torch.cat(
        [
            first + own.argsort(stable=True)[:wanted]
            for first, own, wanted in zip(firsts.tolist(), groups, counts.tolist(), strict=True)
        ]
    )
    return chosen, crops[chosen]


@torch.no_grad()
def joined_crops(task: Task, rows: Tensor, boxes: Tensor, counts: Tensor, tiles: int) -> Tensor:
    """Return images of which each is a grid of crops of real ones: its class's best comes first in its first image.

    Of n images of a class, image i has the crops i, n + i, 2 n + i, ... of the class, row by row.

    Args:
        task: the task.
        rows: which real images, class after class, the best first.
        boxes: a crop of each.
        counts: ``(C,)`` images of each class.
        tiles: per side of an image.
    Shapes:
        rows ``(n tiles^2,)``, boxes ``(n tiles^2, 4)``; returns ``(n, channels, height, width)``, in the task's units.
    """
    each = tiles**2
    ends = (counts * each).cumsum(0).tolist()
    tables = [
        torch.arange(end - count * each, end).view(each, count).T
        for end, count in zip(ends, counts.tolist(), strict=True)
    ]
    table = torch.cat(tables)

    def images() -> Iterator[Tensor]:
        for part in torch.split(table, _images_at_once(task, each)):
            real = require_images(task.select(rows[part.flatten()]).inputs)
            sides = [tile_sides(side, tiles) for side in real.shape[2:]]
            sizes = [(height, width) for height in sides[0] for width in sides[1]]
            own = boxes[part].to(real.device)
            cut = [
                resized_crops(real[index::each], own[:, index, None], *size)[:, 0] for index, size in enumerate(sizes)
            ]
            yield join_tiles(cut, tiles)

    return filled(images(), len(table))


def realistic_images(task: Task, budget: int, settings: Settings, draws: Draws, *, scored: bool = True) -> Raw:
    """Build images of the crops that a teacher recognises best, which it shall label.

    Args:
        task: a task of images with classes.
        budget: images per class.
        settings: :class:`CropSettings`.
        draws: the key.
        scored: whether a teacher looks at the crops; else any are taken, which take the same bytes.
    Raises:
        ConfigError: a task of something else, tiles that are too small, or settings without a word on crops.
        DataError: a class has fewer images than its crops come from.
    """
    if not isinstance(settings, CropSettings):
        raise ConfigError(f"images of crops are made by CropSettings, got {type(settings).__name__}")
    counts, classes, num_classes = shares_of(task, budget)
    _, height, width = image_shape(task)
    tiles = tiles_per_side(settings, height, width)
    require_tiles(height, width, tiles)
    wanted = counts * tiles**2
    require_samples(task, wanted)
    assert task.labels is not None  # there are classes
    sizes = torch.bincount(task.labels, minlength=num_classes).clamp(max=settings.candidates).maximum(wanted)
    rows = random_subset(task.labels, sizes, draws.fold("candidates"))
    boxes = draw_boxes(draws.fold("boxes").to("cpu"), (len(rows), settings.crops), height, width)
    losses = torch.zeros(boxes.shape[:2])
    if scored:
        teacher = trained_teacher(task, settings.teacher_epochs)
        losses = crop_losses(task, teacher, rows, task.labels[rows], boxes, tiles).cpu()
    chosen, crops = best_crops(losses, sizes, wanted)
    images = joined_crops(task, rows[chosen], boxes[chosen, crops], counts, tiles)
    return Raw(images, make_labels("teacher", classes, num_classes), classes, num_classes)


def _reduced_grey(ipc: int) -> Settings:
    """Return few candidates where several images per class are made: the best of many digits are all alike."""
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
"""Chosen and labelled without any step. On digits the teacher trains for as long as networks on all of them do. Of
reduced schedules, the teacher's epochs and the candidates were compared on held-out images."""
