"""Addressing matrices: samples are linear combinations of a few bases that all classes share (Eq. 29)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.errors import ConfigError
from mmdistill.labels import Labels
from mmdistill.parameterizations.budget import FLOAT_BYTES, ImageBudget, bytes_of
from mmdistill.parameterizations.decoder import (
    Decoded,
    DecoderKind,
    Decoders,
    started,
    stored_decoders,
)
from mmdistill.parameterizations.tiles import ImageCodes
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Task, Tensors

MOST_PER_CLASS = 128
MOST_IN_ALL = 20_000
"""Samples to which a memory of given bases decodes, at most: the published ones of ten classes are 28 to 115 of each,
and those that the bytes of many classes, or of large images, hold would be more than any step reads."""


class AddressedMemory(ImageCodes):
    r"""Learn a memory of K bases and R addressing matrices: image j of class c is ``y_c A_j memory`` (Eq. 29).

    Args:
        memory: initial bases ``(K, channels, height / factor, width / factor)``.
        addresses: initial addressing matrices ``(R, C, K)``.
        labels: one target per image, class by class, which its tiles share, or one per sample.
        factor: the bases' combination is up-sampled bilinearly by it.
        tiles: per side of an image, see :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    Shapes:
        decodes ``(C R tiles^2, channels, height, width)`` in normalised units, class by class.
    Raises:
        ConfigError: addresses for another number of bases, or a factor below 1.
    Source: Deng and Russakovsky, NeurIPS 2022; survey Sec. 3.4.3, Eq. 29.
    """

    def __init__(self, memory: Tensor, addresses: Tensor, labels: Labels, factor: int = 1, tiles: int = 1) -> None:
        if addresses.ndim != 3 or memory.ndim != 4 or addresses.shape[2] != len(memory) or factor < 1:
            raise ConfigError(
                "expected addresses (R, C, K), a memory (K, channels, height, width) and a factor from 1, got "
                f"{tuple(addresses.shape)}, {tuple(memory.shape)} and {factor}"
            )
        images, num_classes = addresses.shape[:2]
        classes = torch.arange(num_classes, device=addresses.device).repeat_interleave(images)
        super().__init__(labels, classes, num_classes, tiles)
        self.memory = nn.Parameter(memory.clone())
        self.addresses = nn.Parameter(addresses.clone())
        self.factor = factor
        self.separable = tiles == 1

    def forward(self, draws: Draws) -> Batch:
        """Combine the bases and up-sample."""
        images = torch.einsum("jck,kxyz->cjxyz", self.addresses, self.memory).flatten(0, 1)
        return self.batch_of(self._enlarged(images))

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Decode some samples alone."""
        if self.tiles > 1:  # rows of which each may be another image's, all of whose tiles were then cut for one
            return super().part(rows, draws)
        own = self.addresses.transpose(0, 1).flatten(0, 1).index_select(0, rows)
        inputs = torch.einsum("nk,kxyz->nxyz", own, self.memory)
        return Batch(self._enlarged(inputs), self.labels()[rows], inputs.new_ones(len(inputs)))

    def _enlarged(self, images: Tensor) -> Tensor:
        if self.factor == 1:
            return images
        return F.interpolate(images, scale_factor=self.factor, mode="bilinear", align_corners=False)

    def plain_values(self) -> Mapping[str, object]:
        """Return the factor and the tiles."""
        return {"factor": self.factor, "tiles": self.tiles}

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "AddressedMemory":
        """Return what combines the stored bases."""
        return cls(tensors["memory"], tensors["addresses"], labels, plain["factor"], plain["tiles"])


class AddressedCodes(Decoded):
    r"""Learn a memory of K codes, addressing matrices and decoders: all combinations pass through every decoder.

    Eq. 30 of the codes ``y_c A_j memory`` of Eq. 29.

    Args:
        memory: initial codes that all classes share ``(K, ...)``.
        addresses: initial addressing matrices ``(R, C, K)``.
        decoders: modules from codes to images.
        labels: one target per combination, class by class, which its samples share, or one per sample.
        tiles: per side of a decoded image.
    Shapes:
        decodes ``(C R len(decoders) tiles^2, channels, height, width)`` in normalised units, class by class.
    Raises:
        ConfigError: addresses for another number of codes, or no decoders.
    Source: the two of the survey's Sec. 3.4.3 together, which no paper has.
    """

    def __init__(
        self, memory: Tensor, addresses: Tensor, decoders: Sequence[nn.Module], labels: Labels, tiles: int = 1
    ) -> None:
        if addresses.ndim != 3 or addresses.shape[2] != len(memory):
            raise ConfigError(
                f"expected addresses (R, C, K) of a memory (K, ...), got {tuple(addresses.shape)} and "
                f"{tuple(memory.shape)}"
            )
        combinations, num_classes = addresses.shape[:2]
        classes = torch.arange(num_classes, device=addresses.device).repeat_interleave(combinations)
        super().__init__(decoders, labels, classes, num_classes, tiles)
        self.memory = nn.Parameter(memory.clone())
        self.addresses = nn.Parameter(addresses.clone())

    def codes_of(self, rows: Tensor | None = None) -> Tensor:
        """Return some combinations, or all."""
        flat = self.addresses.transpose(0, 1).flatten(0, 1)
        codes: Tensor = torch.tensordot(flat if rows is None else flat[rows], self.memory, 1)
        return codes

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "AddressedCodes":
        """Return what decodes the combinations of the stored codes by the stored decoders."""
        memory = tensors["memory"]
        decoders = stored_decoders(plain, tensors, memory.dtype)
        return cls(memory, tensors["addresses"], decoders, labels, plain["tiles"])


def addressed_memory(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, factor: int = 2, multiple: int = 4, bases: int = 0
) -> AddressedMemory:
    """Build a memory with addresses within a budget.

    The number of bases follows from that of samples, or that of samples from that of bases; the fewer of the one, the
    more of the other.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how the real images are chosen of which memory and addresses start as the best approximation. ``noise``
            approximates noise, or where the bases are given starts both as small as :func:`small_start` has them.
        draws: the key.
        factor: up-sampling of the bases.
        multiple: how many samples stand for each raw image.
        bases: how many stand for each raw image of a class, see :func:`memory_sizes`; 0 leaves them to the samples.
    Raises:
        ConfigError: a factor that does not divide the sides, or samples and bases that do not fit into the bytes.
    """
    samples, count = memory_sizes(room, factor, multiple, bases)
    if bases and init == "noise":
        shape = (room.shape[0], room.shape[1] // factor, room.shape[2] // factor)
        memory, addresses = small_start(samples * room.num_classes, count, shape, draws.fold("memory").to(task.device))
    else:
        targets = F.avg_pool2d(room.targets(task, samples, init, draws), factor)
        memory, addresses = best_approximation(targets, count, draws)
    by_sample = addresses.view(room.num_classes, samples, count).transpose(0, 1)
    return AddressedMemory(memory, by_sample, room.labels(samples, 1), factor, room.tiles).to(task.device)


def memory_sizes(room: ImageBudget, factor: int = 2, multiple: int = 4, bases: int = 0) -> tuple[int, int]:
    """Return how many samples of each class a memory within a budget has, and how many bases.

    Given bases leave room for as many samples as the rest of the bytes hold, up to :data:`MOST_PER_CLASS` of each class
    and :data:`MOST_IN_ALL`, or ``multiple`` for each raw image where these are more. Then the bytes go to more bases.

    Args: as for :func:`addressed_memory`.
    Raises:
        ConfigError: a factor that does not divide the sides, or samples and bases that do not fit into the bytes.
    """
    room.require_divisor(factor)
    samples, count = _sizes(room, factor, multiple, bases)
    if samples < 1 or count < 1:
        told = f"{bases} bases for each raw image of a class leave no sample in {room.stored_bytes:,} bytes"
        wanted = "choose --parameterization addressed, of as many bases as fit (few classes need few)"
        if not bases:
            told = f"{samples} samples per class leave no basis in {room.stored_bytes:,} bytes"
            wanted = room.enough(lambda larger: _sizes(larger, factor, multiple, bases)[1] >= 1, multiple)
        raise ConfigError(f"{told}; {wanted}")
    return samples, count


def _sizes(room: ImageBudget, factor: int, multiple: int, bases: int) -> tuple[int, int]:
    """Return the samples of each class and the bases, below 1 where the budget holds none."""
    basis, per_label = room.numel // factor**2, room.num_classes * room.code_label_bytes()

    def beside(samples: int) -> int:
        return (room.stored_bytes - samples * per_label) // (FLOAT_BYTES * (basis + samples * room.num_classes))

    wanted = multiple * room.per_class
    if not bases:
        return wanted, beside(wanted)
    count = bases * room.per_class
    left = room.stored_bytes - FLOAT_BYTES * basis * count
    samples = left // (FLOAT_BYTES * room.num_classes * count + per_label)
    most = max(min(MOST_PER_CLASS, MOST_IN_ALL // room.num_classes) // room.samples_per_image, wanted)
    return (samples, count) if samples <= most else (most, beside(most))


def addressed_codes(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, kind: DecoderKind, multiple: int
) -> AddressedCodes:
    """Build combinations of as many codes that classes share as fit into a budget beside decoders and addresses.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how real images are chosen, to which steps bring the decoded ones; with ``noise``, none are fitted.
        draws: the key.
        kind: of decoders, as for :func:`~mmdistill.parameterizations.decoder.decoded_codes`.
        multiple: how many combinations stand for each raw image.
    Raises:
        ConfigError: a budget that leaves no code.
    """
    decoders = kind(room, draws)
    combinations, codes = multiple * room.per_class, shared_codes(room, decoders, multiple)

    def make(wanted: Tensor, labels: Labels) -> AddressedCodes:
        memory, addresses = best_approximation(wanted, codes, draws)
        by_class = addresses.view(room.num_classes, combinations, codes).transpose(0, 1)
        return AddressedCodes(memory, by_class, decoders.modules, labels, room.tiles)

    return started(task, room, combinations, decoders, make, init, draws, warm_up=300)


def shared_codes(room: ImageBudget, decoders: Decoders, multiple: int) -> int:
    """Return how many codes that all classes share fit into a budget, beside decoders and addresses.

    Args:
        room: the budget.
        decoders: the decoders.
        multiple: how many combinations stand for each raw image.
    Raises:
        ConfigError: a multiple below 1, or room for no code.
    """
    if multiple < 1:
        raise ConfigError(f"combinations per raw image are at least 1, got {multiple}")
    numel, taken = decoders.code_numel(room), bytes_of(decoders.modules)
    labels = room.code_label_bytes(len(decoders.modules))

    def fitting(room: ImageBudget) -> int:
        combinations = room.num_classes * room.per_class * multiple
        return (room.stored_bytes - taken - combinations * labels) // (FLOAT_BYTES * (numel + combinations))

    found, combinations = fitting(room), room.num_classes * room.per_class * multiple
    if found < 1:
        raise ConfigError(
            f"the budget is {room.stored_bytes:,} bytes, of which {taken:,} go to decoders and "
            f"{combinations * labels:,} to labels, and too few are left for one code and {combinations:,} "
            f"combinations; {room.enough(lambda larger: fitting(larger) >= 1, multiple)}"
        )
    return found


def small_start(total: int, bases: int, shape: tuple[int, int, int], draws: Draws) -> tuple[Tensor, Tensor]:
    """Return bases and coefficients from Glorot's uniform distribution, whose products are images near 0.

    Shapes:
        returns ``(K, channels, height, width)`` and ``(n, K)``.
    Source: Deng and Russakovsky, NeurIPS 2022, published code.
    """

    def drawn(rows: int, columns: int, name: str) -> Tensor:
        bound = math.sqrt(6 / (rows + columns))
        return draws.fold(name).uniform(rows, columns, low=-bound, high=bound)

    return drawn(bases, math.prod(shape), "bases").view(bases, *shape), drawn(total, bases, "coefficients")


def best_approximation(images: Tensor, bases: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the bases and coefficients whose products are nearest to some images, by singular values.

    Bases have unit root mean square, so that one learning rate suits all of them; those beyond the images' rank are
    noise that no coefficient uses yet.

    Shapes:
        images ``(n, channels, height, width)``; returns ``(K, channels, height, width)`` and ``(n, K)``.
    """
    if is_rehearsal():
        return images.new_zeros(bases, *images.shape[1:]), images.new_zeros(len(images), bases)
    left, values, right = torch.linalg.svd(images.flatten(1), full_matrices=False)
    rank, width = min(bases, len(values)), right.shape[1]
    memory = draws.fold("memory").to(images.device).normal(bases, width)
    memory[:rank] = right[:rank] * width**0.5
    addresses = images.new_zeros(len(images), bases)
    addresses[:, :rank] = left[:, :rank] * values[:rank] / width**0.5
    return memory.view(bases, *images.shape[1:]), addresses
