"""Addressing matrices: each sample is a linear combination of a few bases that all classes share (Eq. 29)."""

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
    start_from_images,
    stored_decoders,
)
from mmdistill.parameterizations.tiles import ImageCodes
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Task, Tensors

MOST_PER_CLASS = 128
"""Most samples per class of a memory of given bases; the published ones of ten classes have 28 to 115."""
MOST_IN_ALL = 20_000
"""Most samples of a memory of given bases; the bytes of many classes or large images hold more than a step reads."""


class AddressedMemory(ImageCodes):
    r"""Learn a memory of K bases and R addressing matrices: image j of class c is ``y_c A_j memory`` (Eq. 29).

    Args:
        memory: initial bases ``(K, channels, height / factor, width / factor)``.
        addresses: initial addressing matrices ``(R, C, K)``.
        labels: one target per image, class by class, which its tiles share, or one per sample.
        factor: the factor by which combinations of bases are up-sampled bilinearly.
        tiles: tiles per side of an image, see :class:`~mmdistill.parameterizations.tiles.ImageCodes`.
    Shapes:
        decodes ``(C R tiles^2, channels, height, width)`` in normalised units, class by class.
    Raises:
        ConfigError: addresses that do not fit the number of bases, or a factor below 1.
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
        return self.batch_of(self._upsample(images))

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Decode only the samples at ``rows``; with tiles, all are decoded."""
        if self.tiles > 1:  # each row may be a tile of a different image, so decoding only these would save little
            return super().part(rows, draws)
        addresses = self.addresses.transpose(0, 1).flatten(0, 1).index_select(0, rows)
        inputs = torch.einsum("nk,kxyz->nxyz", addresses, self.memory)
        return Batch(self._upsample(inputs), self.labels()[rows], inputs.new_ones(len(inputs)))

    def _upsample(self, images: Tensor) -> Tensor:
        """Up-sample bilinearly by the factor."""
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
        """Rebuild the memory from the stored bases and addresses."""
        return cls(tensors["memory"], tensors["addresses"], labels, plain["factor"], plain["tiles"])


class AddressedCodes(Decoded):
    r"""Learn a memory of K codes, addressing matrices and decoders: all combinations pass through every decoder.

    Eq. 30 applied to the codes ``y_c A_j memory`` of Eq. 29.

    Args:
        memory: initial codes that all classes share ``(K, ...)``.
        addresses: initial addressing matrices ``(R, C, K)``.
        decoders: modules that map codes to images.
        labels: one target per combination, class by class, which its samples share, or one per sample.
        tiles: tiles per side of a decoded image.
    Shapes:
        decodes ``(C R len(decoders) tiles^2, channels, height, width)`` in normalised units, class by class.
    Raises:
        ConfigError: addresses that do not fit the number of codes, or no decoders.
    Source: the survey's Sec. 3.4.3; the combination of its two equations is this library's.
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
        """Return the combinations of codes at ``rows``; None: all."""
        flat = self.addresses.transpose(0, 1).flatten(0, 1)
        codes: Tensor = torch.tensordot(flat if rows is None else flat[rows], self.memory, 1)
        return codes

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "AddressedCodes":
        """Rebuild the stored memory, addresses and decoders."""
        memory = tensors["memory"]
        decoders = stored_decoders(plain, tensors, memory.dtype)
        return cls(memory, tensors["addresses"], decoders, labels, plain["tiles"])


def addressed_memory(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, factor: int = 2, multiple: int = 4, bases: int = 0
) -> AddressedMemory:
    """Build a memory with addresses within a budget.

    Either the number of samples is given and that of bases follows, or the other way round; the fewer there are of one,
    the more of the other.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how real images are chosen; memory and addresses start as their best approximation. With ``noise`` they
            approximate noise or, with ``bases``, start as :func:`small_start`.
        draws: the key.
        factor: the bases' up-sampling factor.
        multiple: samples per raw image.
        bases: bases per raw image of a class, see :func:`memory_sizes`; 0: their number follows from the samples'.
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
    """Return the samples per class and the bases of a memory within a budget.

    With ``bases``, samples take the bytes that are left, up to :data:`MOST_PER_CLASS` per class and
    :data:`MOST_IN_ALL`, or up to ``multiple`` per raw image if that is more. Bytes beyond that go to more bases.

    Args: as for :func:`addressed_memory`.
    Raises:
        ConfigError: a factor that does not divide the sides, or samples and bases that do not fit into the bytes.
    """
    room.require_divisor(factor)
    samples, count = _sizes(room, factor, multiple, bases)
    if samples < 1 or count < 1:
        if bases:
            problem = f"{bases} bases for each raw image of a class leave no sample in {room.stored_bytes:,} bytes"
            advice = "choose --parameterization addressed, of as many bases as fit (few classes need few)"
        else:
            problem = f"{samples} samples per class leave no basis in {room.stored_bytes:,} bytes"
            advice = room.enough(lambda larger: _sizes(larger, factor, multiple, bases)[1] >= 1, multiple)
        raise ConfigError(f"{problem}; {advice}")
    return samples, count


def _sizes(room: ImageBudget, factor: int, multiple: int, bases: int) -> tuple[int, int]:
    """Return the samples per class and the bases, one of them below 1 where the budget is too small."""
    basis_numel, label_bytes = room.numel // factor**2, room.num_classes * room.code_label_bytes()

    def bases_beside(samples: int) -> int:
        """Return how many bases fit beside the labels and addresses of ``samples`` per class."""
        return (room.stored_bytes - samples * label_bytes) // (FLOAT_BYTES * (basis_numel + samples * room.num_classes))

    requested = multiple * room.per_class
    if not bases:
        return requested, bases_beside(requested)
    count = bases * room.per_class
    left = room.stored_bytes - FLOAT_BYTES * basis_numel * count
    samples = left // (FLOAT_BYTES * room.num_classes * count + label_bytes)
    most = max(min(MOST_PER_CLASS, MOST_IN_ALL // room.num_classes) // room.samples_per_image, requested)
    return (samples, count) if samples <= most else (most, bases_beside(most))


def addressed_codes(
    task: Task, room: ImageBudget, init: InitKind, draws: Draws, kind: DecoderKind, multiple: int
) -> AddressedCodes:
    """Build a shared memory of as many codes as fit into a budget beside decoders and addresses.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how the real images are chosen to which decoded images are fitted; with ``noise``, nothing is fitted.
        draws: the key.
        kind: makes the decoders, as for :func:`~mmdistill.parameterizations.decoder.decoded_codes`.
        multiple: combinations per raw image.
    Raises:
        ConfigError: a budget that leaves no code.
    """
    decoders = kind(room, draws)
    combinations, codes = multiple * room.per_class, shared_codes(room, decoders, multiple)

    def make(encoded: Tensor, labels: Labels) -> AddressedCodes:
        memory, addresses = best_approximation(encoded, codes, draws)
        by_class = addresses.view(room.num_classes, combinations, codes).transpose(0, 1)
        return AddressedCodes(memory, by_class, decoders.modules, labels, room.tiles)

    return start_from_images(task, room, combinations, decoders, make, init, draws, warm_up=300)


def shared_codes(room: ImageBudget, decoders: Decoders, multiple: int) -> int:
    """Return how many codes a shared memory has room for in a budget, beside decoders and addresses.

    Args:
        room: the budget.
        decoders: the decoders.
        multiple: combinations per raw image.
    Raises:
        ConfigError: a multiple below 1, or no room for a code.
    """
    if multiple < 1:
        raise ConfigError(f"combinations per raw image are at least 1, got {multiple}")
    code_numel, decoder_bytes = decoders.code_numel(room), bytes_of(decoders.modules)
    label_bytes = room.code_label_bytes(len(decoders.modules))

    def codes_that_fit(room: ImageBudget) -> int:
        combinations = room.num_classes * room.per_class * multiple
        left = room.stored_bytes - decoder_bytes - combinations * label_bytes
        return left // (FLOAT_BYTES * (code_numel + combinations))

    codes, combinations = codes_that_fit(room), room.num_classes * room.per_class * multiple
    if codes < 1:
        raise ConfigError(
            f"the budget is {room.stored_bytes:,} bytes, of which {decoder_bytes:,} go to decoders and "
            f"{combinations * label_bytes:,} to labels, and too few are left for one code and {combinations:,} "
            f"combinations; {room.enough(lambda larger: codes_that_fit(larger) >= 1, multiple)}"
        )
    return codes


def small_start(total: int, bases: int, shape: tuple[int, int, int], draws: Draws) -> tuple[Tensor, Tensor]:
    """Draw bases and coefficients from Glorot's uniform distribution; their products are images near 0.

    Shapes:
        returns ``(K, channels, height, width)`` and ``(n, K)``.
    Source: Deng and Russakovsky, NeurIPS 2022, published code.
    """

    def draw(rows: int, columns: int, name: str) -> Tensor:
        bound = math.sqrt(6 / (rows + columns))
        return draws.fold(name).uniform(rows, columns, low=-bound, high=bound)

    return draw(bases, math.prod(shape), "bases").view(bases, *shape), draw(total, bases, "coefficients")


def best_approximation(images: Tensor, bases: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the bases and coefficients whose products are nearest to some images, by singular value decomposition.

    Bases have a root mean square of 1, so that one learning rate suits all; those beyond the images' rank are noise
    with coefficients of 0.

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
