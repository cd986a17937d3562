"""Images that other tools distilled, in the units of a task: tensors as the field saves them, and folders."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.image.data import ImageData
from mmdistill.image.draw import class_folders
from mmdistill.image.files import read_image_folder
from mmdistill.image.folders import is_image_folder
from mmdistill.image.task import ImageTask
from mmdistill.imports import (
    LABELS,
    Imported,
    Importer,
    ImportSource,
    by_role,
    class_targets,
    float_bytes,
    noted,
    weighed,
)
from mmdistill.names import first_few

ROLES = {
    "images": ("images", "image", "data", "x"),
    "labels": LABELS,
    "lr": ("lr",),
    "whitening": ("whitening.matrix",),
    "whitening mean": ("whitening.mean",),
}
"""What a set of images is made of, by the words that its names have."""
OTHER_RATES = ("lr_img", "lr_lr", "lr_label", "lr_init", "lr_teacher", "lr_net")
"""Rates by which a set was made, and none that was learned with it."""
TOLERANCE = 1e-3
"""How far pixels may be beyond black and white, by what resampling and rounding do."""


def read_images(task: ImageTask, source: ImportSource) -> Imported:
    """Return images and labels in the task's units.

    Read are ``images`` and ``labels`` by these names, in one file or one each; what DC, DSA and DM save, a dict whose
    ``data`` is a list of [images, labels]; and a folder of pictures for each class. ``lr`` is a learned rate.

    Raises:
        ConfigError: units that cannot be those of the images, or that cannot be told.
        DataError: other files, images of another shape, or labels of other classes.
    """
    data = task.data
    folders = [path for path in source.samples if path.is_dir()]
    if folders and len(source.samples) > 1:
        raise DataError(f"{folders[0]} is a folder of pictures, which is a set by itself; leave the other files out")
    if folders:
        if not is_image_folder(folders[0]):
            raise DataError(
                f"{folders[0]} has no subfolder of pictures for each class; of tensors name the files that hold them"
            )
        found = read_image_folder(folders[0], None)
        for note in found.notes:
            noted(note)
        parts = {"images": found.images, "labels": _named_classes(found.labels, found.classes, data)}
    else:
        parts = by_role(_one_set(source.values(), source.which), ROLES, ("images", "labels"), OTHER_RATES)
    if "whitening" in parts:
        _require_whitening(parts["whitening"], data)
    images = _shaped(parts["images"], data)
    targets = class_targets(parts["labels"], len(images), data.class_names, source.logits)
    learned = source.learned()
    if "lr" in parts:
        learned = {"inner_lr": parts["lr"].float().squeeze()} | learned
    stored = weighed(images.float(), targets)
    size = float_bytes(stored, len(data.class_names)) - 3 * images.numel() * (images.dtype == torch.uint8)
    return Imported(stored._replace(inputs=_in_task_units(images, data, source.units)), size, learned)


def _one_set(found: dict[str, Any], which: int | None) -> Mapping[str, Any]:
    """Return one of the sets that DC, DSA and DM keep in a list, by name; other values as they are.

    Raises:
        ConfigError: one that there is not, or none of several.
    """
    sets = found.get("data")
    if not isinstance(sets, list | tuple):
        if which is not None:
            raise ConfigError("'which' chooses among the sets of a file, and there is one here; leave it out")
        return found
    if not sets or not all(isinstance(one, list | tuple) and len(one) == 2 for one in sets):
        raise DataError("'data' should be a list of [images, labels], as DC, DSA and DM save their sets")
    if which is None and len(sets) > 1:
        raise ConfigError(f"the file holds {len(sets)} sets; say which, from 0 to {len(sets) - 1} (--which, which=)")
    if (which or 0) >= len(sets):
        raise ConfigError(f"the file holds {len(sets)} set(s), so there is no number {which}")
    return dict(zip(("images", "labels"), sets[which or 0], strict=True))


def _named_classes(labels: Tensor, folders: list[str], data: ImageData) -> Tensor:
    """Return the classes of pictures by the names of their folders: those of classes, also as exports write them.

    Where one is another name, all may end in the number of their class: ``00003``, ``new003``.

    Raises:
        DataError: a folder of another name.
    """
    names = data.class_names
    known = dict(zip(class_folders(names), range(len(names)), strict=True)) | {name: i for i, name in enumerate(names)}
    if others := [name for name in folders if name not in known]:
        ends = {name: re.fullmatch(r"[A-Za-z_]*(\d+)", name) for name in folders}
        known = {name: int(end[1]) for name, end in ends.items() if end and int(end[1]) < len(names)}
        if len(set(known.values())) < len(folders):
            raise DataError(
                f"the folder {others[0]!r} is none of the classes of {data.name} ({first_few(names)}), and no number"
            )
    return torch.tensor([known[name] for name in folders])[labels]


def _require_whitening(matrix: Tensor, data: ImageData) -> None:
    """Refuse images that another matrix has whitened than the task's.

    Raises:
        DataError: they are, or the task whitens none.
    """
    own = None if data.whitening is None else data.whitening.matrix.cpu()
    if own is None or own.shape != matrix.shape or not torch.allclose(own, matrix.to(own), rtol=1e-3, atol=1e-5):
        raise DataError("these images are whitened, and not as the task's are; choose their whitening (--whiten)")


def _shaped(images: Tensor, data: ImageData) -> Tensor:
    """Return images of the data's shape; grey ones as colours, and colours that are all alike as grey, where asked.

    Raises:
        DataError: another shape, another type, or NaN.
    """
    channels = data.shape[0]
    if images.ndim == 3 and channels == 1:
        images = images[:, None]
    if images.ndim == 4 and images.shape[2:] == data.shape[1:] and images.shape[1] != channels:
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        elif channels == 1 and bool((images == images[:, :1]).all()):
            images = images[:, :1]
    if images.ndim != 4 or images.shape[1:] != data.shape or not len(images):
        last = images.ndim == 4 and images.shape[1:] == (*data.shape[1:], channels)
        hint = "; bring the channels forward: images.permute(0, 3, 1, 2)" if last else ""
        raise DataError(
            f"images of {data.name} are (n, {', '.join(map(str, data.shape))}), got {tuple(images.shape)}{hint}"
        )
    if images.is_floating_point():
        if not bool(images.isfinite().all()):
            raise DataError("images hold NaN or infinite values")
        return images.float()
    if images.dtype != torch.uint8:
        raise DataError(f"images are bytes (uint8) or floats, got {images.dtype}")
    return images


def _in_task_units(images: Tensor, data: ImageData, units: str | None) -> Tensor:
    """Return images as the task's networks read them.

    Raises:
        ConfigError: pixels out of their range, bytes that are said to be normalised, or floats that may be either, or
            that are pixels of another scale as it seems.
    """
    low, high = data.value_range
    if images.dtype == torch.uint8:
        if units == "normalised":
            raise ConfigError("these images are bytes, so they are pixels and not normalised")
        scaled = low + images.float() / 255 * (high - low)
        return data.normalise(scaled * data.scale)
    least, largest = (float(value) for value in torch.aminmax(images))
    inside = low - TOLERANCE <= least and largest <= high + TOLERANCE
    if units is None and inside:
        raise ConfigError(
            f"these images lie between {least:.3g} and {largest:.3g}, which pixels do and normalised images may: say "
            "which they are (--units pixels or --units normalised; units= in Python)"
        )
    doubtful = units is None and data.whitening is None and _like_bytes(images, data)
    if doubtful or (units == "pixels" and not inside):
        hint = "; bytes in floats are divided by 255 first" if high < 2 < largest and least >= 0 else ""
        other = "; of normalised ones say so (--units normalised, units='normalised')" if doubtful else ""
        raise ConfigError(
            f"pixels of {data.name} lie between {low:g} and {high:g}, and these between {least:.3g} and "
            f"{largest:.3g}: they are no pixels, or of another scale{hint}{other}"
        )
    return data.normalise(images * data.scale) if units == "pixels" else images


def _like_bytes(images: Tensor, data: ImageData) -> bool:
    """Return whether floats are such as no normalised images are: none below 0, and all whole or some far too large."""
    brightest = data.normalise(torch.full((data.shape[0], 1, 1), data.value_range[1] * data.scale)).max()
    return bool((images >= 0).all()) and bool((images == images.round()).all() or images.max() > 5 * brightest)


IMPORTS = Importer(
    read_images,
    ImageTask,
    ".pt, .npz or .safetensors with images and labels, in one file or one each; what DC, DSA and DM save; or a folder "
    "with one subfolder of pictures per class",
    ("units", "which", "logits", "inner_lr"),
)
"""Reads sets of images."""
