"""A distilled set's units, used without the task: normalise raw images, and turn its images back into pixels."""

from functools import partial
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmdistill.checks import are_numbers
from mmdistill.distilled import DistilledSet, is_number, stored_value
from mmdistill.errors import DataError, ShapeError, UnsupportedError
from mmdistill.execution.isolation import isolated, recordable
from mmdistill.image.data import SCALES_APART, as_pixels
from mmdistill.image.moments import destandardised, standardised
from mmdistill.image.whitening import Whitening
from mmdistill.task import TaskInfo, one_tensor

_whitenings: WeakKeyDictionary[DistilledSet, Whitening] = WeakKeyDictionary()
"""Whitenings by set; each caches its matrix on the devices on which it was used."""


@isolated
def normalised(images: Any, found: DistilledSet) -> Tensor:
    """Return raw images, such as test images, in the units of a set, for networks that train on it.

    The numbers are those of the task's own normalisation, whitening included.

    Args:
        images: a tensor or an array on the scale of the raw training images.
        found: the set.

    Shapes:
        images ``(..., channels, height, width)``, ``(..., height, width, channels)``, or ``(n, height, width)`` with
        one channel; returns ``(..., channels, height, width)``, float32.
    Raises:
        UnsupportedError: the set is not of images.
        ShapeError: the images' shape is not the set's.
        DataError: the pixels' scale is not the set's.
    """
    units, whitening, mean, std = _units(found)
    raw = recordable(_as_tensor(images).detach())
    shape = tuple(units["shape"])
    raw = raw.movedim(-1, -3) if raw.shape[-3:] == (*shape[1:], shape[0]) != shape else raw
    raw = raw[:, None] if raw.ndim == 3 and raw.shape[-3:] != shape and shape[0] == 1 else raw
    if raw.shape[-3:] != shape:
        raise ShapeError(
            f"images of {found.info.data} are (..., channels, height, width) and end with {shape}, got "
            f"{tuple(raw.shape)}"
        )
    _require_scale(raw, units, found)
    scaled = raw.to(torch.float32) / units["scale"]
    if mean:
        scaled = standardised(scaled, mean, std)
    return scaled if whitening is None else whitening.apply(scaled)


@isolated
def to_pixels(found: DistilledSet) -> Tensor:
    """Return a set's images as pixels on the scale of the original data, clamped to their range.

    Byte data give bytes. A set does not know the range of whitened floats; 0 to 1 is assumed.

    Shapes:
        returns ``(n, channels, height, width)``, uint8 or float32; :func:`normalised` inverts this up to rounding and
        clamping.
    Raises:
        UnsupportedError: the set is not of images, or whitened by ``kip``, which removes each image's brightness and
            contrast.
    """
    units, whitening, mean, std = _units(found)
    if whitening is not None and whitening.kind == "kip":
        raise UnsupportedError(
            "whitening by 'kip' takes each image's brightness and contrast away; with the task, the export 'folder' "
            "gives pictures of the training images' mean ones"
        )
    images = one_tensor(found.batch.inputs).float()
    if whitening is not None:
        flat = torch.linalg.solve(whitening.matrix.double(), images.flatten(1).double().T).T
        images = (flat.float() + whitening.mean).view_as(images)
    if mean:
        images = destandardised(images, mean, std)
    low, high = units.get("range", (0.0, 1.0))
    raw: Tensor = images.clamp(low, high) * units["scale"]
    return raw if units["scale"] == 1 else raw.round().to(torch.uint8)


def _as_tensor(images: Any) -> Tensor:
    """Return images as a tensor.

    Raises:
        DataError: not an array of numbers, or not of bytes or floats.
    """
    try:
        tensor = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"images are a tensor or an array, got {type(images).__name__}") from error
    return as_pixels(tensor, "images")


def _units(found: DistilledSet) -> tuple[dict[str, Any], Whitening | None, tuple[float, ...], tuple[float, ...]]:
    """Return a set's preprocessing, its whitening, and the moments that standardise channels (empty: none do).

    Raises:
        UnsupportedError: the set is not of images.
        CheckpointError: the set is damaged.
    """
    if found.info.domain != "image":
        raise UnsupportedError(f"this set is of {found.info.domain} data, which have no pixels")
    units = stored_units(found.info)
    description = units.get("whitening")
    moments = units if description is None else description
    mean, std = (tuple(moments.get(name, ())) for name in ("mean", "std"))
    if description is None:
        return units, None, mean, std
    if found not in _whitenings:
        tensors = found.info.tensors
        no_inverse = torch.empty(0)  # `to_pixels` solves instead, so `normalised` need not wait for an inverse
        _whitenings[found] = Whitening(
            description["kind"], tensors["whitening.mean"], tensors["whitening.matrix"], no_inverse
        )
    return units, _whitenings[found], mean, std


def stored_units(info: TaskInfo) -> dict[str, Any]:
    """Return a set's preprocessing once its values are valid.

    Raises:
        CheckpointError: a value has the wrong type or length, as in an edited file.
    """
    stored_value(info, "scale", is_number, "number")
    channels = stored_value(info, "shape", partial(are_numbers, kind=Real, count=3), "list of 3 numbers")[0]
    for name, count in (("mean", channels), ("std", channels), ("range", 2)):
        if name in info.preprocessing:
            stored_value(info, name, partial(are_numbers, kind=Real, count=count), f"list of {count} numbers")
    return dict(info.preprocessing)


def _require_scale(images: Tensor, units: dict[str, Any], found: DistilledSet) -> None:
    """Refuse pixels that are clearly not on the scale of a set's data, such as bytes as floats up to 1."""
    if not images.numel():
        return
    scale, limits = units["scale"], units.get("range", (0.0, 1.0))
    largest, limit = float(images.abs().max()), scale * max(abs(limits[0]), abs(limits[1]))
    floats_of_bytes = images.is_floating_point() and scale > 1
    rescaled = floats_of_bytes and (largest <= 1 or bool((images < 0).any()))
    if largest and (rescaled or largest > SCALES_APART * limit or limit > SCALES_APART * largest):
        raise DataError(
            f"raw images of {found.info.data} reach up to {limit:g}, and these up to {largest:g}; give them as the "
            "training images were, neither scaled nor normalised"
        )
