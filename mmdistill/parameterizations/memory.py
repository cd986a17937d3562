"""Addressing matrices: each sample is a linear combination of a few bases that all classes share (Eq. 29)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
from mmdistill.rehearsal import is_rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Task, Tensors

MOST_PER_CLASS = 128
"""Most samples per class of a memory of given bases; the published ones of ten classes have 28 to 115."""
MOST_IN_ALL = 20_000
"""Most samples of a memory of given bases; the bytes of many classes or large images hold more than a step reads."""


class AddressedCodes(Decoded):
    r"""Learn a memory of K codes, addressing matrices and decoders: all combinations pass through every decoder.

    Code j of class c is ``y_c A_j memory`` (Eq. 29), to which Eq. 30 applies; alone behind
    :class:`~mmdistill.parameterizations.decoder.Upsampling`, these are the published images.

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
    Source: Deng and Russakovsky, NeurIPS 2022; survey Sec. 3.4.3; decoders behind a memory are this library's.
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
        self.separable = tiles == 1 and len(decoders) == 1

    def part(self, rows: Tensor, draws: Draws) -> Batch:
        """Decode only the samples at ``rows``; with tiles or several decoders, all are decoded."""
        if not self.separable:  # each row may be of a different combination, so decoding only these would save little
            return super().part(rows, draws)
        inputs = self.images_of(self.codes_of(rows))
        return Batch(inputs, self.labels()[rows], inputs.new_ones(len(inputs)))

    def codes_of(self, rows: Tensor | None = None) -> Tensor:
        """Return the combinations of codes at ``rows``; None: all."""
        flat = self.addresses.transpose(0, 1).flatten(0, 1)
        codes: Tensor = torch.tensordot(flat if rows is None else flat.index_select(0, rows), self.memory, 1)
        return codes

    @classmethod
    def rebuilt(
        cls, plain: Mapping[str, Any], tensors: Tensors, labels: Labels, classes: Tensor, num_classes: int
    ) -> "AddressedCodes":
        """Rebuild the stored memory, addresses and decoders."""
        memory = tensors["memory"]
        decoders = stored_decoders(plain, tensors, memory.dtype)
        return cls(memory, tensors["addresses"], decoders, labels, plain["tiles"])


def addressed_codes(
    task: Task,
    room: ImageBudget,
    init: InitKind,
    draws: Draws,
    kind: DecoderKind,
    multiple: int,
    bases: int = 0,
    warm_up: int = 300,
) -> AddressedCodes:
    """Build a memory of codes with addresses within a budget, beside decoders.

    Either the number of combinations is given and that of codes follows, or the other way round; the fewer there are of
    one, the more of the other.

    Args:
        task: a task of images with classes.
        room: the budget.
        init: how real images are chosen; memory and addresses start as the best approximation of their codes, and
            decoded images are fitted to them. With ``noise``, they approximate noise or, with ``bases``, start as
            :func:`small_start`, and nothing is fitted.
        draws: the key.
        kind: makes the decoders, as for :func:`~mmdistill.parameterizations.decoder.decoded_codes`.
        multiple: combinations per raw image.
        bases: codes per raw image of a class, see :func:`memory_sizes`; 0: their number follows from the combinations'.
        warm_up: steps of fitting.
    Raises:
        ConfigError: combinations and codes that do not fit into the bytes.
    """
    decoders = kind(room, draws)
    combinations, codes = memory_sizes(room, decoders, multiple, bases)

    def make(start: tuple[Tensor, Tensor], labels: Labels) -> AddressedCodes:
        memory, addresses = start
        by_class = addresses.view(room.num_classes, combinations, codes).transpose(0, 1)
        return AddressedCodes(memory, by_class, decoders.modules, labels, room.tiles)

    def make_near(encoded: Tensor, labels: Labels) -> AddressedCodes:
        return make(best_approximation(encoded, codes, draws), labels)

    if bases and init == "noise":
        key, total = draws.fold("memory").to(task.device), combinations * room.num_classes
        labels = room.labels(combinations, len(decoders.modules))
        return make(small_start(total, codes, decoders.code_shape(room), key), labels).to(task.device)
    return start_from_images(task, room, combinations, decoders, make_near, init, draws, warm_up)


def memory_sizes(room: ImageBudget, decoders: Decoders, multiple: int, bases: int = 0) -> tuple[int, int]:
    """Return the combinations per class and the codes of a memory within a budget, beside its decoders.

    With ``bases``, combinations take the bytes that are left, up to :data:`MOST_PER_CLASS` samples per class and
    :data:`MOST_IN_ALL`, or up to ``multiple`` per raw image if that is more. Bytes beyond that go to more codes.

    Args: as for :func:`addressed_codes`.
    Raises:
        ConfigError: a multiple below 1, or combinations and codes that do not fit into the bytes.
    """
    if multiple < 1:
        raise ConfigError(f"combinations per raw image are at least 1, got {multiple}")
    styles, decoder_bytes = len(decoders.modules), bytes_of(decoders.modules)
    code_numel = decoders.code_shape(room).numel()
    label_bytes = room.num_classes * room.code_label_bytes(styles)

    def codes_beside(combinations: int, room: ImageBudget) -> int:
        """Return how many codes fit beside the decoders and the labels and addresses of ``combinations`` per class."""
        left = room.stored_bytes - decoder_bytes - combinations * label_bytes
        return left // (FLOAT_BYTES * (code_numel + combinations * room.num_classes))

    combinations = multiple * room.per_class
    if bases:
        codes = bases * room.per_class
        left = room.stored_bytes - decoder_bytes - FLOAT_BYTES * code_numel * codes
        fitting = left // (FLOAT_BYTES * room.num_classes * codes + label_bytes)
        if fitting < 1:
            raise ConfigError(
                f"{bases} bases for each raw image of a class leave no sample in {room.stored_bytes:,} bytes; choose "
                "--parameterization addressed, of as many bases as fit (few classes need few)"
            )
        most = min(MOST_PER_CLASS, MOST_IN_ALL // room.num_classes) // (room.samples_per_image * styles)
        combinations = max(most, combinations)
        if fitting <= combinations:
            return fitting, codes
    codes = codes_beside(combinations, room)
    if codes < 1:
        advice = room.enough(lambda larger: codes_beside(multiple * larger.per_class, larger) >= 1, multiple)
        raise ConfigError(
            f"the budget is {room.stored_bytes:,} bytes, of which {decoder_bytes:,} go to decoders and "
            f"{combinations * label_bytes:,} to labels, and too few are left for one code and "
            f"{combinations * room.num_classes:,} combinations; {advice}"
        )
    return combinations, codes


def small_start(total: int, bases: int, shape: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor]:
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
