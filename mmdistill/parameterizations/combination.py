"""Learned coefficients: each sample is a linear combination of real images of its class (survey, Sec. 4.1)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmdistill.coresets import choose_start
from mmdistill.errors import ConfigError, DataError
from mmdistill.labels import Labels
from mmdistill.parameterizations.base import index_bytes
from mmdistill.parameterizations.budget import FLOAT_BYTES, ImageBudget
from mmdistill.parameterizations.tiles import ImageCodes, composed
from mmdistill.parameterizations.upsample import PixelSpace, pixel_space, require_images
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Task, Tensors


class CombinedImages(ImageCodes):
    r"""Learn coefficients only: image r of class c is ``sum_k a_crk x_ck`` over K real images of the class.

    The images are not learned. A set that contains them (``contained``) stores them in full; one that does not stores
    their positions in the training data, and is useful only with these data.

    Args:
        coefficients: initial coefficients ``(C, R, K)``.
        images: the real images ``(C, K, channels, height, width)``: bytes, which ``space`` normalises, or normalised
            floats.
        indices: the images' positions in the training data ``(C, K)``; with tiles, those of the real images in each,
            ``(C, K tiles^2)``.
        labels: one target per combination, class by class, which its tiles share, or one per sample.
        contained: whether the set contains the images.
        space: how bytes are normalised; its upper bound is that of the bytes divided by ``scale``.
        scale: the byte value that stands for a pixel value of 1.
        tiles: tiles per side of an image, see :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    Shapes:
        decodes ``(C R tiles^2, channels, height, width)`` in normalised units, class by class.
    Raises:
        ConfigError: coefficients and images with different numbers of classes or images.
    Source: Sangermano et al., IJCNN 2022; survey Sec. 4.1.
    """

    images: Tensor
    indices: Tensor
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        coefficients: Tensor,
        images: Tensor,
        indices: Tensor,
        labels: Labels,
        contained: bool,
        space: PixelSpace,
        scale: float,
        tiles: int = 1,
    ) -> None:
        if coefficients.ndim != 3 or images.ndim != 5 or coefficients.shape[::2] != images.shape[:2]:
            raise ConfigError(
                "expected coefficients (C, R, K) and images (C, K, channels, height, width), got "
                f"{tuple(coefficients.shape)} and {tuple(images.shape)}"
            )
        num_classes, combinations = coefficients.shape[:2]
        classes = torch.arange(num_classes, device=images.device).repeat_interleave(combinations)
        super().__init__(labels, classes, num_classes, tiles)
        self.coefficients = nn.Parameter(coefficients.clone())
        self.register_buffer("images", images.clone(), persistent=contained)
        self.register_buffer("indices", indices.clone(), persistent=not contained)
        self.register_buffer("_mean", space.mean.clone(), persistent=False)
        self.register_buffer("_std", space.std.clone(), persistent=False)
        self.scale = scale

    def forward(self, draws: Draws) -> Batch:
        """Combine the images."""
        images = self.images
        if not images.is_floating_point():
            images = (images / self.scale - self._mean) / self._std
        return self.batch_of(torch.einsum("crk,ckxyz->crxyz", self.coefficients, images).flatten(0, 1))

    def plain_values(self) -> Mapping[str, object] | None:
        """Return the images' scale and space, and the tiles; None where the set does not contain the images."""
        if "images" not in self.state_dict():
            return None
        space = PixelSpace(self._mean, self._std, -math.inf, math.inf)
        return {"scale": self.scale, "tiles": self.tiles, **space.plain_values()}

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "CombinedImages":
        """Rebuild the combinations of the stored images."""
        images = tensors["images"]
        indices = torch.zeros(images.shape[:2], dtype=torch.long)
        space = PixelSpace.of(plain)
        scale, tiles = plain["scale"], plain["tiles"]
        return cls(tensors["coefficients"], images, indices, labels, True, space, scale, tiles)


def learned_coefficients(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, multiple: int = 4, contained: bool = True
) -> CombinedImages:
    """Build combinations of real images within a budget.

    Each class combines as many images as fit beside the samples' coefficients. A set that contains them stores a byte
    per pixel if the data do.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how the real images are chosen. Each sample starts as one of them or, when these run out, as the mean of
            two; with ``noise``, images are chosen at random and coefficients are N(0, 1 / K).
        draws: the key.
        multiple: samples per raw image of the budget.
        contained: whether the images are part of the set.
    Raises:
        ConfigError: a multiple below 1, or no room for two images per class.
        DataError: a class has too few real images.
    """
    if multiple < 1:
        raise ConfigError(f"samples per raw image are at least 1, got {multiple}")
    assert task.labels is not None
    channels = room.shape[0]
    scale, space = _byte_scale(task), pixel_space(task, channels)
    if not contained:
        image_bytes = room.samples_per_image * index_bytes(len(task.labels))
    else:
        image_bytes = room.numel * (1 if scale else FLOAT_BYTES)

    def images_that_fit(room: ImageBudget) -> int:
        samples = room.per_class * multiple
        class_bytes = room.stored_bytes // room.num_classes - samples * room.code_label_bytes()
        return class_bytes // (image_bytes + FLOAT_BYTES * samples)

    samples = room.per_class * multiple
    class_sizes = torch.bincount(task.labels, minlength=room.num_classes)
    smallest = int(class_sizes.argmin())
    if class_sizes[smallest] < 2 * room.samples_per_image:
        raise DataError(
            f"samples are combinations of at least {2 * room.samples_per_image} real images of their class, and class "
            f"{task.describe().class_names[smallest]} has {int(class_sizes[smallest])}; choose another "
            "--parameterization"
        )
    count = min(images_that_fit(room), int(class_sizes[smallest]) // room.samples_per_image)
    if count < 2:
        raise ConfigError(
            f"{room.stored_bytes:,} bytes leave no room for two real images per class beside {samples} samples' "
            f"coefficients; {room.enough(lambda larger: images_that_fit(larger) >= 2, multiple)}"
        )
    indices = choose_start(task, init, torch.full((room.num_classes,), count * room.samples_per_image), draws)
    images = composed(require_images(task.select(indices).inputs), room.tiles)
    if contained and scale:
        images = ((images * space.std + space.mean) * scale).round().to(torch.uint8)
    coefficients = _first_coefficients(room.num_classes, samples, count, init, draws)
    return CombinedImages(
        coefficients,
        images.view(room.num_classes, count, *room.shape),
        indices.view(room.num_classes, count * room.samples_per_image),
        room.labels(samples, 1),
        contained,
        space,
        scale,
        room.tiles,
    ).to(task.device)


def _byte_scale(task: Task) -> float:
    """Return the byte value that stands for a pixel value of 1, or 0 where the data's pixels are not bytes."""
    preprocessing: Mapping[str, object] = task.describe().preprocessing
    scale = preprocessing.get("scale")
    if not isinstance(scale, int | float) or not 1 < scale <= 255:
        return 0.0
    images = require_images(task.select(torch.arange(min(task.describe().num_train, 16))).inputs)
    space = pixel_space(task, images.shape[1])
    values = (images * space.std + space.mean) * scale
    return float(scale) if bool((values - values.round()).abs().max() < 0.01) else 0.0


def _first_coefficients(num_classes: int, samples: int, images: int, init: InitKind, draws: Draws) -> Tensor:
    """Return coefficients ``(C, R, K)`` that give single images, then means of two; or noise."""
    if init == "noise":
        noise = draws.fold("coefficients").to("cpu").normal(num_classes, samples, images)
        return noise / math.sqrt(images)
    first = torch.eye(images).repeat(samples // images + 1, 1)[:samples]
    second = first.clone()
    for row in range(images, samples):
        second[row] = first[row].roll(1 + (row // images - 1) % (images - 1))
    return torch.lerp(first, second, 0.5).expand(num_classes, -1, -1)
