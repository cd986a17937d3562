"""Differentiable siamese augmentation (DSA), on tensors, without a loop over samples.

Each call draws one random operation; some methods apply further ones in every call.

One pass applies all operations: a colour change, a resampling at affine coordinates, a cut-out mask. Operations that
are not drawn get neutral parameters, so classes with different operations are augmented together and nothing waits for
the host. If images need gradients, the resampling gathers its four neighbours itself: the backward pass of
``grid_sample``, which kornia's warps use, has no deterministic CUDA kernel and no second derivative. The tests compare
the two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.checks import require_kind
from mmdistill.code_digests import is_users
from mmdistill.described import described
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.execution.precision import matrix_products
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, one_tensor

Operation = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
OPERATIONS: tuple[Operation, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
WITHOUT_FLIP: tuple[Operation, ...] = ("color", "crop", "cutout", "scale", "rotate")
"""The strategy for data whose mirror image means something else, such as digits."""
WARPS: tuple[Operation, ...] = ("crop", "scale", "rotate")
"""Operations that IDC's judges draw from, beside those that they always apply."""

TOGETHER = 1 << 23
"""Batches of up to this many values are augmented in one piece (2,700 images of 3 x 32 x 32)."""
AT_ONCE = {"cpu": 1 << 20}
"""Values per piece of a larger batch on a CPU; on other devices :data:`TOGETHER`."""
ALWAYS_POSSIBLE: tuple[Operation, ...] = ("color", "flip", "cutout")
"""Operations that can accompany another one; the rest resample, and an image is resampled only once."""


class Parameters(NamedTuple):
    """One call's parameters for each group of images; every field's first axis is the group.

    Shapes:
        brightness, saturation, contrast ``(G,)``, neutral at 0, 1, 1; matrix ``(G, 2, 2)`` and shift ``(G, 2)`` map an
        output pixel's (row, column) offset from the image centre to the source's, in pixels; hole ``(G, 2)`` is the
        first row and column cut out; holed ``(G,)`` says whether there is a hole.
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    matrix: Tensor
    shift: Tensor
    hole: Tensor
    holed: Tensor


def strengths_in_use(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return :meth:`SiameseAugmentation.describe`'s values without the ranges of operations that are never applied."""
    applied = {*described.get("operations", ()), *described.get("always", ())}
    colour = dict.fromkeys(("brightness", "saturation", "contrast"), "color")
    unused = [name for name in (*OPERATIONS, *colour) if colour.get(name, name) not in applied]
    return {name: value for name, value in described.items() if name not in unused}


def task_augmentation(given: "SiameseAugmentation | None", mirror: bool) -> "SiameseAugmentation":
    """Return a user's augmentation of a task, or DSA's.

    Args:
        given: the user's; None: DSA's with its published ranges.
        mirror: whether a mirror image keeps its class.
    Raises:
        ConfigError: another type, or one that mirrors images which must not be. (A subclass may draw what it likes.)
    """
    if given is None:
        return SiameseAugmentation(OPERATIONS if mirror else WITHOUT_FLIP)
    require_kind(SiameseAugmentation, augmentation=given)
    if not mirror and type(given) is SiameseAugmentation and "flip" in (*given.operations, *given.always):
        raise ConfigError(
            "the augmentation mirrors images (flip), and a mirror image of these data may mean something else; leave "
            "flip out of its operations (mmdistill.image.augment.WITHOUT_FLIP), or give mirror=True"
        )
    return given


@dataclass(frozen=True)
class SiameseAugmentation:
    """DSA's augmentation with its published ranges.

    Args:
        operations: each call draws one of these with equal chances.
        always: operations that every call applies beside the drawn one (IDC); mirroring and colour come first, cut-out
            last.
        flip: the probability that ``flip`` mirrors.
        scale: resize each axis by a factor whose inverse is U[1/scale, scale).
        rotate: the largest angle, in degrees.
        crop: the largest shift, as a share of the side; zeros come in.
        cutout: the side of the square set to zero, as a share of the image's.
        brightness: add U[-brightness/2, brightness/2), in normalised units.
        saturation: multiply distances from the pixel's grey value by U[0, saturation).
        contrast: multiply distances from the image's mean by U[contrast, contrast + 1).

    Raises:
        ConfigError: an unknown operation, none to draw from, or a resampling (scale, rotate, crop) in ``always``.

    Differs from:
        the published code on images that are not square: it rotates in coordinates stretched to a square, which
        shears; here rotation is in pixels.
    Source: Zhao and Bilen, ICML 2021, Sec. 3.3 and the appendix; survey Sec. 3.4.1.
    """

    operations: tuple[Operation, ...] = OPERATIONS
    always: tuple[Operation, ...] = ()
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    crop: float = 0.125
    cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not self.operations:
            got = ", ".join(self.operations) or "none"
            raise ConfigError(f"an augmentation needs one or more of {', '.join(OPERATIONS)}; got {got}")
        if not set(self.always) <= set(ALWAYS_POSSIBLE):
            raise ConfigError(
                f"only {' and '.join(ALWAYS_POSSIBLE)} can be always applied, got {', '.join(self.always)}"
            )

    def describe(self) -> dict[str, object]:
        """Return the strategy and its ranges as plain values; of a user's subclass also its name and code."""
        operations = {"operations": list(self.operations), "always": list(self.always)}
        ranges = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in operations}
        own = described(self) if is_users(type(self)) else {}  # a subclass may compute otherwise
        return own | {name: listed for name, listed in operations.items() if listed} | ranges

    def draw(self, draws: Draws, height: int, width: int, groups: int, per_group: int = 1) -> Parameters:
        """Draw parameters: one operation for each group, and its strength for each of the group's members.

        Args:
            draws: the key; equal keys give equal parameters, whatever the images.
            height: of the images, in pixels.
            width: of the images, in pixels.
            groups: how many operations to draw.
            per_group: how many strengths to draw for each group; 1 shares one (siamese matching).

        Shapes:
            Every field has a first axis of ``groups * per_group``.
        """
        choice = draws.fold("operation").integers(len(self.operations), groups).repeat_interleave(per_group)
        u = draws.fold("strength").uniform(9, groups * per_group)
        # If a call both crops and cuts out, the two need independent positions.
        hole = draws.fold("hole").uniform(2, groups * per_group) if "cutout" in self.always else u[7:]

        def applies(name: Operation) -> Tensor:
            if name in self.always:
                return torch.ones_like(choice, dtype=torch.bool)
            position = self.operations.index(name) if name in self.operations else -1
            return choice == position

        color = applies("color")
        one, zero = torch.ones_like(u[0]), torch.zeros_like(u[0])
        low = 1 / self.scale
        scaled, flipped = applies("scale"), applies("flip") & (u[6] < self.flip)
        angle = torch.where(applies("rotate"), (2 * u[5] - 1) * math.radians(self.rotate), zero)
        rows = torch.where(scaled, low + (self.scale - low) * u[3], one)
        columns = torch.where(scaled, low + (self.scale - low) * u[4], one)
        sine, cosine = angle.sin(), angle.cos()
        matrix = torch.stack([rows * cosine, sine, -sine, columns * cosine], 1).view(-1, 2, 2)
        shift = self._shift(applies("crop"), u[7], u[8], height, width)
        mirror = torch.stack([one, torch.where(flipped, -one, one)], 1)  # in source coordinates: flipping comes first
        return Parameters(
            torch.where(color, (u[0] - 0.5) * self.brightness, zero),
            torch.where(color, u[1] * self.saturation, one),
            torch.where(color, u[2] + self.contrast, one),
            mirror[:, :, None] * matrix,
            mirror * shift,
            self._hole(hole[0], hole[1], height, width),
            applies("cutout"),
        )

    def of_classes(self, draws: Draws, batch: ClassBatch, *, shared: bool = True) -> ClassBatch:
        """Augment a class batch, each class by an operation of its own; arguments as in :meth:`augmented`."""
        images, (_, targets, weight) = image_inputs(batch.batch.inputs), batch.batch
        inputs = self.augmented(draws, images.flatten(0, 1), batch.num_classes, shared=shared).view_as(images)
        return ClassBatch(Batch(inputs, targets, weight), batch.dims)

    def augmented(self, draws: Draws, images: Tensor, groups: int = 1, *, shared: bool) -> Tensor:
        """Augment images; each group of consecutive ones gets an operation of its own.

        Images with a side of one pixel are returned as they are, since they may be vectors.

        Args:
            draws: the key.
            images: ``(N, channels, height, width)``, flat.
            groups: the number of groups, a divisor of N.
            shared: one strength for all images of a group (siamese matching) instead of one for each.
        """
        members, (height, width) = 1 if shared else len(images) // groups, images.shape[-2:]
        if min(height, width) == 1:
            return images
        return self.apply(images, self.draw(draws.to(images.device), height, width, groups, members))

    def _shift(self, active: Tensor, down: Tensor, right: Tensor, height: int, width: int) -> Tensor:
        """Draw integer shifts of at most ``crop`` of each side, uniform over both signs and zero."""
        limits = [int(side * self.crop + 0.5) for side in (height, width)]
        steps = [(u * (2 * limit + 1)).floor() - limit for u, limit in zip((down, right), limits, strict=True)]
        return torch.stack(steps, 1) * active[:, None]

    def _hole(self, down: Tensor, right: Tensor, height: int, width: int) -> Tensor:
        """Draw the first row and column of the hole, whose centre is uniform over the image."""
        starts = []
        for u, side in ((down, height), (right, width)):
            size = self._hole_size(side)
            starts.append((u * (side + 1 - size % 2)).floor() - size // 2)
        return torch.stack(starts, 1)

    def _hole_size(self, side: int) -> int:
        return int(side * self.cutout + 0.5)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Augment images differentiably; each group of consecutive images shares one set of parameters.

        This takes eight times the images' memory, so without gradients, more than :data:`TOGETHER` values are augmented
        a few groups at a time.

        Shapes:
            images ``(N, channels, height, width)`` in normalised units, N a multiple of the parameters' G; returns the
            same shape.

        Raises:
            ShapeError: not a batch of images, or N is no multiple of G.
        """
        groups = len(parameters.holed)
        if images.ndim != 4 or len(images) % groups:
            raise ShapeError(
                f"expected (N, channels, height, width) with N a multiple of {groups}, got {tuple(images.shape)}"
            )
        parameters = Parameters(*(p if p.dtype == torch.bool else p.to(images.dtype) for p in parameters))
        if images.numel() <= TOGETHER or _is_differentiated(images):
            return self._apply_together(images, parameters)
        pieces = -(-images.numel() // AT_ONCE.get(images.device.type, TOGETHER))
        # Two groups at least: a batch of one matrix is multiplied by another kernel, with other bits.
        pieces = min(pieces, max(groups // 2, 1))
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        per_group, stop = len(images) // groups, 0
        for piece in zip(*(field.tensor_split(pieces) for field in parameters), strict=True):
            start, stop = stop, stop + per_group * len(piece[0])
            result[start:stop] = self._apply_together(images[start:stop], Parameters(*piece))
        return result

    def _apply_together(self, images: Tensor, parameters: Parameters) -> Tensor:
        height, width = images.shape[-2:]
        x = images.reshape(len(parameters.holed), -1, *images.shape[1:])
        x = color(x, parameters.brightness, parameters.saturation, parameters.contrast)
        x = resample(x, parameters.matrix, parameters.shift)
        sizes = self._hole_size(height), self._hole_size(width)
        x = x * hole_mask(parameters.hole, parameters.holed, sizes, height, width)[:, None, None]
        return x.flatten(0, 1)


def image_inputs(inputs: Inputs) -> Tensor:
    """Return inputs that are one tensor of images.

    Raises:
        ShapeError: named tensors.
    """
    return one_tensor(inputs, "a task of images")


def color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Shift brightness, then spread or shrink saturation, then contrast.

    ``x + b``, then ``s (x - grey) + grey`` with the pixel's mean over channels, then ``c (x - mean) + mean`` with the
    image's mean. Saturation keeps the image's mean, so all this is ``c s x + c (1 - s) grey + b + (1 - c) mean``, with
    grey and mean of the original image; b = 0, s = c = 1 return it bit for bit.

    Shapes:
        x ``(G, n, channels, height, width)``; the others ``(G,)``.
    """
    b, s, c = (p.view(-1, 1, 1, 1, 1) for p in (brightness, saturation, contrast))
    if x.shape[2] == 1:
        return c * x + (b + (1 - c) * x.mean((2, 3, 4), keepdim=True))
    grey = x.mean(2, keepdim=True)
    return c * s * x + (c * (1 - s) * grey + (b + (1 - c) * grey.mean((3, 4), keepdim=True)))


def resample(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Read each output pixel at ``matrix @ (p - centre) + shift + centre``, bilinearly, with zeros outside.

    Shapes:
        x ``(G, n, channels, height, width)``; matrix ``(G, 2, 2)``; shift ``(G, 2)``, in pixels.
    """
    groups, _, _, height, width = x.shape
    rows = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
    columns = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
    with matrix_products("float32", x.device):  # in TF32 a coordinate would be off by up to .05 pixel at 224
        source = matrix @ grid + shift[:, :, None]
    if not _is_differentiated(x):
        return _sample_without_gradients(x, source, matrix, shift)
    flat = x.reshape(groups, -1, height * width)
    result = torch.zeros_like(flat)
    columns_read = _neighbours(source[:, 1] + (width - 1) / 2, width)
    for i, row_share in _neighbours(source[:, 0] + (height - 1) / 2, height):
        for j, column_share in columns_read:
            pixels = flat.gather(2, (i * width + j)[:, None].expand_as(flat))
            result = result + pixels * (row_share * column_share)[:, None]
    return result.view_as(x)


def _is_differentiated(images: Tensor) -> bool:
    return images.requires_grad and torch.is_grad_enabled()


def _sample_without_gradients(x: Tensor, source: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Read pixels at (row, column) offsets from the centre, ``(G, 2, height * width)``, by ``grid_sample``.

    Its coordinates, in units of half a side, are rounded, so images under the identity are returned as they are.
    """
    groups, _, _, height, width = x.shape
    # Divide by numbers: a tensor of both would be copied from the host, which a CUDA graph cannot capture.
    column, row = source[:, 1] / (width / 2), source[:, 0] / (height / 2)
    coordinates = torch.stack([column, row], -1).view(groups, height, width, 2)
    sampled = F.grid_sample(x.flatten(1, 2), coordinates, align_corners=False).view_as(x)
    unmoved = (matrix == torch.eye(2, device=x.device)).all(2).all(1) & (shift == 0).all(1)
    return torch.where(unmoved.view(-1, 1, 1, 1, 1), x, sampled)


def _neighbours(position: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """Return the pixels before and after positions along one axis, each with its weight, 0 outside the image."""
    before = position.floor()
    pairs = (before, before + 1 - position), (before + 1, position - before)
    return [(i.clamp(0, side - 1).long(), share * ((i >= 0) & (i < side))) for i, share in pairs]


def hole_mask(hole: Tensor, holed: Tensor, sizes: tuple[int, int], height: int, width: int) -> Tensor:
    """Return a mask ``(G, height, width)`` that is 0 inside the hole and 1 elsewhere."""
    masks = []
    for start, size, side in zip(hole.unbind(1), sizes, (height, width), strict=True):
        position = torch.arange(side, device=hole.device)
        masks.append((position >= start[:, None]) & (position < start[:, None] + size))
    inside = masks[0][:, :, None] & masks[1][:, None, :] & holed[:, None, None]
    return (~inside).to(hole.dtype)
