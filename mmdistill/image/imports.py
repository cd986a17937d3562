"""Import images that other tools distilled into a task's units: tensors as the field saves them, and folders."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.image.data import ImageData, as_pixels
from mmdistill.image.draw import export_names
from mmdistill.image.files import read_image_folder
from mmdistill.image.folders import is_image_folder
from mmdistill.image.task import ImageTask
from mmdistill.image.values import DATASET, tensors_by_name, values_by_name
from mmdistill.importers import (
    LABELS,
    Imported,
    Importer,
    ImportSource,
    by_role,
    class_targets,
    float_bytes,
    names_by_role,
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
"""The parts of a set of images, with the names that each may have."""
OTHER_RATES = ("lr_img", "lr_lr", "lr_label", "lr_init", "lr_teacher", "lr_net")
"""Learning rates of a set's distillation, which are not learned with it."""
DARK = 16
"""Bytes up to this are nearly black: whole numbers of another scale, such as 0 and 1, are taken for such bytes."""
TOLERANCE = 1e-3
"""How far resampling and rounding may push pixels beyond black and white."""


def read_images(task: ImageTask, source: ImportSource) -> Imported:
    """Read images and labels, and convert them to the task's units.

    A source is one file or one each of ``images`` and ``labels``; a file as DC, DSA and DM save it, a dict whose
    ``data`` is a list of [images, labels]; or a folder of pictures for each class. ``lr`` is a learned rate. In
    Python a pair or a data set too; samples of a data set are pixels, unless the user says otherwise.

    Raises:
        ConfigError: the units cannot be those of the images, or are needed and not given.
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
        contents = read_image_folder(folders[0], None)
        for note in contents.notes:
            noted(note)
        parts = {"images": contents.images, "labels": _classes_by_folder(contents.labels, contents.names, data)}
    else:
        values = _choose_set(source.values(), source.which)
        names = names_by_role(values, ROLES, OTHER_RATES)
        values = tensors_by_name(values, names.get("images", ""), names.get("labels", ""), data)
        parts = by_role(values, ROLES, ("images", "labels"), OTHER_RATES)
    if "whitening" in parts:
        _require_whitening(parts["whitening"], data)
    images = _to_data_shape(parts["images"], data)
    targets = class_targets(parts["labels"], len(images), data.class_names, source.logits)
    learned = source.learned()
    if "lr" in parts:
        learned = {"inner_lr": parts["lr"].float().squeeze()} | learned
    stored = weighed(images.float(), targets)
    # A stored byte takes one byte, not the four of a float.
    size = float_bytes(stored, len(data.class_names)) - 3 * images.numel() * (images.dtype == torch.uint8)
    units = source.units or ("pixels" if DATASET in source.given else None)
    return Imported(stored._replace(inputs=_to_task_units(images, data, units)), size, learned)


def _choose_set(values: dict[str, Any], which: int | None) -> Mapping[str, Any]:
    """Return set number ``which`` of a list as DC, DSA and DM save it; other values as they are.

    Raises:
        ConfigError: there is no such set, or ``which`` is needed and missing.
    """
    sets = values.get("data")
    if not isinstance(sets, list | tuple):
        if which is not None:
            raise ConfigError("'which' chooses among the sets of a file, and there is one here; leave it out")
        return values
    if not sets or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in sets):
        raise DataError("'data' should be a list of [images, labels], as DC, DSA and DM save their sets")
    if which is None and len(sets) > 1:
        raise ConfigError(f"the file holds {len(sets)} sets; say which, from 0 to {len(sets) - 1} (--which, which=)")
    if (which or 0) >= len(sets):
        raise ConfigError(f"the file holds {len(sets)} set(s), so there is no number {which}")
    return dict(zip(("images", "labels"), sets[which or 0], strict=True))


def _classes_by_folder(labels: Tensor, folders: tuple[str, ...], data: ImageData) -> Tensor:
    """Return the pictures' classes by their folders' names: class names, or these as exports write them.

    If some folder has another name, all must end in the number of their class: ``00003``, ``new003``.

    Raises:
        DataError: a folder with another name.
    """
    names = data.class_names
    classes = dict(zip(export_names(names), range(len(names)), strict=True))
    classes |= {name: index for index, name in enumerate(names)}
    if others := [name for name in folders if name not in classes]:
        numbers = {name: re.fullmatch(r"[A-Za-z_]*(\d+)", name) for name in folders}
        classes = {name: int(match[1]) for name, match in numbers.items() if match and int(match[1]) < len(names)}
        if len(set(classes.values())) < len(folders):
            raise DataError(
                f"the folder {others[0]!r} is none of the classes of {data.name} ({first_few(names)}), and no number"
            )
    return torch.tensor([classes[name] for name in folders])[labels]


def _require_whitening(matrix: Tensor, data: ImageData) -> None:
    """Refuse images that were not whitened by the task's matrix.

    Raises:
        DataError: the matrices differ, or the task does not whiten.
    """
    expected = None if data.whitening is None else data.whitening.matrix.cpu()
    if (
        expected is None
        or expected.shape != matrix.shape
        or not torch.allclose(expected, matrix.to(expected), rtol=1e-3, atol=1e-5)
    ):
        raise DataError("these images are whitened, and not as the task's are; choose their whitening (--whiten)")


def _to_data_shape(images: Tensor, data: ImageData) -> Tensor:
    """Return images in the data's shape, the channels brought forward if they stand last.

    Grey becomes colour, and colour with equal channels grey, if needed.

    Raises:
        DataError: another shape, another type, or NaN.
    """
    channels = data.shape[0]
    if images.ndim == 3 and channels == 1:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1:] == (*data.shape[1:], channels) != data.shape:
        images = images.movedim(-1, 1)
    if images.ndim == 4 and images.shape[2:] == data.shape[1:] and images.shape[1] != channels:
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        elif channels == 1 and bool((images == images[:, :1]).all()):
            images = images[:, :1]
    if images.ndim != 4 or images.shape[1:] != data.shape or not len(images):
        raise DataError(f"images of {data.name} are (n, {', '.join(map(str, data.shape))}), got {tuple(images.shape)}")
    images = as_pixels(images, "images")
    if not images.is_floating_point():
        return images
    if not bool(images.isfinite().all()):
        raise DataError("images hold NaN or infinite values")
    return images.float()


def _to_task_units(images: Tensor, data: ImageData, units: str | None) -> Tensor:
    """Normalise images, unless they are normalised already.

    Raises:
        ConfigError: pixels out of range; bytes declared normalised; or, without ``units``, floats that may be pixels or
            that look like pixels of another scale.
    """
    low, high = data.value_range
    if images.dtype == torch.uint8:
        if units == "normalised":
            raise ConfigError("these images are bytes, so they are pixels and not normalised")
        if int(images.max()) <= DARK and min(data.std) * 255 > DARK:
            noted(
                f"the brightest byte is {int(images.max())}, and white is 255: the set's images are nearly black; of "
                "another scale give floats in the units of pixels"
            )
        scaled = low + images.float() / 255 * (high - low)
        return data.normalise(scaled * data.scale)
    least, largest = (float(value) for value in torch.aminmax(images))
    inside = low - TOLERANCE <= least and largest <= high + TOLERANCE
    if units is None and inside:
        raise ConfigError(
            f"these images lie between {least:.3g} and {largest:.3g}, which pixels do and normalised images may: say "
            "which they are (--units pixels or --units normalised; units= in Python)"
        )
    ambiguous = units is None and data.whitening is None and _look_like_bytes(images, data)
    if ambiguous or (units == "pixels" and not inside):
        scale_hint = "; bytes in floats are divided by 255 first" if high < 2 < largest and least >= 0 else ""
        units_hint = "; of normalised ones say so (--units normalised, units='normalised')" if ambiguous else ""
        raise ConfigError(
            f"pixels of {data.name} lie between {low:g} and {high:g}, and these between {least:.3g} and "
            f"{largest:.3g}: they are no pixels, or of another scale{scale_hint}{units_hint}"
        )
    return data.normalise(images * data.scale) if units == "pixels" else images


def _look_like_bytes(images: Tensor, data: ImageData) -> bool:
    """Return whether floats are unlike normalised images: none negative, and all whole or some far too large."""
    brightest = data.normalise(torch.full((data.shape[0], 1, 1), data.value_range[1] * data.scale)).max()
    return bool((images >= 0).all()) and bool((images == images.round()).all() or images.max() > 5 * brightest)


IMPORTS = Importer(
    read_images,
    ImageTask,
    ".pt, .npz or .safetensors with images and labels, in one file or one each; what DC, DSA and DM save; or a folder "
    "with one subfolder of pictures per class",
    ("units", "which", "logits", "inner_lr"),
    values_by_name,
)
"""Reads sets of images."""
