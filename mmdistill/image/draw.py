"""Pictures of distilled images, and the files that other tools read."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError, UnsupportedError
from mmdistill.exporters import PREPROCESSING, exporter, task_exporter
from mmdistill.image.augment import strengths_in_use
from mmdistill.image.data import to_unit_range
from mmdistill.image.moments import destandardised
from mmdistill.image.task import ImageTask
from mmdistill.image.units import stored_units
from mmdistill.labels import classes_of
from mmdistill.names import as_file_name
from mmdistill.reporting.figures import CAPTION
from mmdistill.runtime import atomic_write, remove_parts
from mmdistill.store import write_json, write_tensors, write_torch
from mmdistill.task import Batch, Task, TaskInfo

TARGET_WIDTH = 1600
"""Images are enlarged by the largest whole factor that keeps a grid within this width, in pixels."""
MOST_PIXELS = 20_000_000
"""The largest picture; of larger sets, only the first samples of each class, or some classes, are drawn."""
LARGEST_TILE = 112
GAP = 3
MARGIN = 12
FONT_SIZE = 20
LONGEST_NAME = 60
"""Characters of a folder's name; each may take four of the 255 bytes that systems allow."""
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³")}
"""Names that Windows reserves for devices, with any suffix after a dot."""
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


def _image_task(task: Task) -> ImageTask:
    if not isinstance(task, ImageTask):
        raise UnsupportedError(f"an image task is needed, got {type(task).__name__}")
    return task


def _contents(batch: Batch, count: int, classes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return a set's images, targets and classes on the CPU, sorted by class.

    Args:
        batch: the set.
        count: C.
        classes: by image; None: :func:`~mmdistill.labels.classes_of` the targets.
    """
    if isinstance(batch.inputs, dict) or isinstance(batch.targets, dict) or batch.inputs.ndim != 4:
        raise UnsupportedError("distilled images are one tensor of four axes with one target tensor")
    images, targets = batch.inputs.detach().float().cpu(), batch.targets.detach().cpu()
    classes = classes_of(targets, count) if classes is None else classes
    order = classes.argsort(stable=True)
    return images[order].contiguous(), targets[order].contiguous(), classes[order]


def to_picture_bytes(task: ImageTask, images: Tensor) -> Tensor:
    """Return normalised images as uint8 pixels of one or three channels, ``(n, channels, height, width)``."""
    pixels = _to_bytes(task.data.denormalise(images))
    return pixels if pixels.shape[1] in (1, 3) else pixels[:, :1]


def _to_bytes(pixels: Tensor) -> Tensor:
    """Return pixels in [0, 1] as uint8."""
    return (pixels * 255).round().to(torch.uint8)


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Draw synthetic images, one class per row, enlarged without smoothing; return the picture's path.

    If not all fit into :data:`MOST_PIXELS`, the picture's caption says how many are drawn.
    """
    image_task = _image_task(task)
    names = image_task.data.class_names
    images, _, classes = _contents(batch, len(names))
    most = int(classes.bincount().max())
    height, width = images.shape[2:]
    per_class, count = largest_grid(names, most, height, width)
    rows = [to_picture_bytes(image_task, images[classes == index][:per_class]) for index in range(count)]
    picture, info = picture_grid(rows, names[:count]), PngInfo()
    captions = [f"{per_class:,} of {most:,} per class"] if per_class < most else []
    captions += [f"{count:,} of {len(names):,} classes"] if count < len(names) else []
    if captions:
        info.add_text(CAPTION, ", ".join(captions))
    path = folder / "images.png"
    with atomic_write(path) as handle:
        picture.save(handle, format="PNG", pnginfo=info)
    return [path]


class _Layout(NamedTuple):
    """The layout of a picture: rows of images with their names, in blocks side by side.

    Args:
        factor: by which images are enlarged.
        font_size: of the names.
        label_width: pixels of a row's name with its margins.
        block_width: pixels of a row with its name.
        rows_per_block: rows in a block.
        size: width and height of the picture.
    """

    factor: int
    font_size: int
    label_width: int
    block_width: int
    rows_per_block: int
    size: tuple[int, int]


def _layout(names: Sequence[str], columns: int, height: int, width: int) -> _Layout:
    """Return the layout of a row of ``columns`` images for each name; enlarges less if the picture is too large."""
    factor = max(1, min(LARGEST_TILE // max(height, width), TARGET_WIDTH // (columns * width) or 1))
    while True:
        tile_height, tile_width = height * factor, width * factor
        font_size = max(8, min(FONT_SIZE, tile_height))
        label_width = _label_width(tuple(names), font_size)
        block_width = label_width + columns * (tile_width + GAP) - GAP + MARGIN
        blocks = max(1, round(math.sqrt(len(names) * (tile_height + GAP) / block_width)))
        rows_per_block = -(-len(names) // blocks)
        size = (
            -(-len(names) // rows_per_block) * block_width,
            2 * MARGIN + rows_per_block * (tile_height + GAP) - GAP,
        )
        if factor == 1 or math.prod(size) <= MOST_PIXELS:
            return _Layout(factor, font_size, label_width, block_width, rows_per_block, size)
        factor -= 1


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has Latin, Greek and Cyrillic letters; Pillow's own lacks accents."""
    from matplotlib import get_data_path  # a slow import

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


@lru_cache(64)
def _label_width(names: tuple[str, ...], size: int) -> int:
    """Return the pixels of the longest name, with its margins."""
    font = _font(size)
    return int(max(font.getlength(name) for name in names)) + 2 * MARGIN


def largest_grid(names: Sequence[str], most: int, height: int, width: int) -> tuple[int, int]:
    """Return how many images of each class, and how many classes, fit into :data:`MOST_PIXELS`.

    Args:
        names: of all classes.
        most: images of the largest class.
        height: of an image, in pixels.
        width: of an image, in pixels.
    """

    def fits(per_class: int, count: int) -> bool:
        return math.prod(_layout(names[:count], per_class, height, width).size) <= MOST_PIXELS

    def largest(most: int, fits: Callable[[int], bool]) -> int:
        """Bisect for the largest fitting number from 1 (which need not fit) to ``most``."""
        low, high = (most, most) if fits(most) else (1, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    per_class = largest(most, lambda per_class: fits(per_class, len(names)))
    return per_class, largest(len(names), lambda count: fits(per_class, count))


def picture_grid(rows: list[Tensor], names: tuple[str, ...]) -> Image.Image:
    """Return a picture of rows of images with the rows' names at their left.

    Many short rows are put into blocks side by side, so that the picture is about as wide as high.

    Shapes:
        each row ``(n, channels, height, width)`` uint8; rows may differ in n.
    """
    height, width = rows[0].shape[2:]
    layout = _layout(names, max(len(row) for row in rows), height, width)
    tile_height, tile_width = height * layout.factor, width * layout.factor
    font = _font(layout.font_size)
    picture = Image.new("RGB", layout.size, BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for position, (row, name) in enumerate(zip(rows, names, strict=True)):
        block, row_in_block = divmod(position, layout.rows_per_block)
        left = block * layout.block_width + layout.label_width
        top = MARGIN + row_in_block * (tile_height + GAP)
        pen.text((left - MARGIN, top + tile_height / 2), name, fill=INK, font=font, anchor="rm")
        for column, pixels in enumerate(row):
            tile = to_picture(pixels).resize((tile_width, tile_height), Image.Resampling.NEAREST)
            picture.paste(tile, (left + column * (tile_width + GAP), top))
    return picture


def to_picture(pixels: Tensor) -> Image.Image:
    """Return uint8 pixels ``(1, 3 or 4, height, width)`` as a picture; four channels are colours and alpha."""
    return Image.fromarray(pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).contiguous().numpy())


@exporter
def export_tensors(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``images.safetensors``: normalised images, labels, the normalisation as metadata, whitening as tensors."""
    info = distilled.info
    images, targets, _ = _contents(distilled.batch, len(info.class_names), distilled.classes)
    metadata = {
        "class_names": json.dumps(list(info.class_names)),
        "preprocessing": json.dumps(dict(info.preprocessing)),
    }
    path = folder / "images.safetensors"
    write_tensors(path, {"images": images, "labels": targets, **info.tensors}, metadata)
    return [path]


def folder_name(name: str) -> str:
    """Return a folder name for a class that every system allows; Windows forbids some names and characters."""
    allowed = as_file_name(name)[:LONGEST_NAME].lstrip(".").rstrip(". ") or "_"
    return f"_{allowed}" if allowed.partition(".")[0].rstrip().casefold() in DEVICES else allowed


def export_names(called: Sequence[str]) -> list[str]:
    """Return folder names for classes; numbered if sorting would reorder them or if two differ by case alone."""
    names = [folder_name(name) for name in called]
    if sorted(names) != names or len({name.casefold() for name in names}) < len(names):
        digits = len(str(len(names) - 1))
        names = [f"{index:0{digits}d}-{name}" for index, name in enumerate(names)]
    return names


@task_exporter
def export_folder(distilled: DistilledSet, folder: Path, task: Callable[[], Task]) -> list[Path]:
    """Write one PNG per image into a folder per class, for torchvision's ``ImageFolder``.

    Pixels are clamped and rounded to bytes, and soft labels become their largest class; the other exports keep both.

    Raises:
        ConfigError: the folder already holds other pictures, which would be read as samples of this set.
        UnsupportedError: images with other than 1, 3 or 4 channels, or a class without images, which would shift the
            numbers of the others.
    """
    class_names = distilled.info.class_names
    images, _, classes = _contents(distilled.batch, len(class_names), distilled.classes)
    if images.shape[1] not in (1, 3, 4):
        raise UnsupportedError(f"pictures have 1, 3 or 4 channels, these {images.shape[1]}; export pt or tensors")
    counts = classes.bincount(minlength=len(class_names)).tolist()
    if 0 in counts:
        raise UnsupportedError(
            f"class {class_names[counts.index(0)]!r} is the largest label of no image, so it has "
            "no folder, and those of the others would be read as other classes; export pt or tensors"
        )
    names = export_names(class_names)
    pixels = _to_bytes(_to_pixels(images, distilled.info, task))
    paths = [folder / "images" / names[label] / f"{index:06d}.png" for index, label in enumerate(classes.tolist())]
    for subfolder in {folder / "images", *(path.parent for path in paths)}:
        remove_parts(subfolder)
    others = sorted({path for path in (folder / "images").rglob("*") if path.is_file()} - set(paths))
    if others:
        raise ConfigError(f"{others[0]} is no picture of this set, and would be read as one; choose another folder")
    for path, image in zip(paths, pixels, strict=True):
        with atomic_write(path) as handle:
            to_picture(image).save(handle, format="PNG")
    return paths


def _to_pixels(images: Tensor, info: TaskInfo, task: Callable[[], Task]) -> Tensor:
    """Return normalised images as pixels in [0, 1]; whitened ones need the task."""
    if not {"mean", "std", "range"} <= info.preprocessing.keys():
        return _image_task(task()).data.denormalise(images)
    units = stored_units(info)
    return to_unit_range(destandardised(images, tuple(units["mean"]), tuple(units["std"])), units["range"])


@exporter
def export_pt(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``images.pt`` and ``labels.pt``, plain tensors sorted by class, for the field's evaluators.

    ``preprocessing.json`` beside them says how to convert raw images to the units of ``images.pt``.
    """
    images, targets, _ = _contents(distilled.batch, len(distilled.info.class_names), distilled.classes)
    return [*_save_pair(images, targets, folder), _save_units(distilled.info, folder)]


@exporter
def export_ddranking(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``ddranking/images.pt`` and ``ddranking/labels.pt`` for the package ``ddranking``.

    Images are ``(K * ipc, 3, height, width)``, normalised, class after class; grey ones repeat their channel.
    A learned rate is in ``learned.json`` beside the folder; importing the folder reads it too.
    ``preprocessing.json`` is as for :func:`export_pt`, with the channels of the data.

    Raises:
        UnsupportedError: whitened images, since ddranking tests on images that are not; classes of different sizes; or
            images with neither 1 nor 3 channels.
    """
    info, count = distilled.info, len(distilled.info.class_names)
    if "whitening" in info.preprocessing:
        whitening: Any = info.preprocessing["whitening"]
        raise UnsupportedError(
            f"ddranking tests on images that are normalised channel by channel, and this set is whitened "
            f"({whitening['kind']}): its scores would be those of chance. Use 'mmdistill evaluate --scores "
            "robust', or export tensors, which hold the matrix for test images"
        )
    images, targets, classes = _contents(distilled.batch, count, distilled.classes)
    counts = classes.bincount(minlength=count)
    if int(counts.min()) != int(counts.max()):
        raise UnsupportedError(
            f"ddranking takes equally many images of each class, this set {int(counts.min())} to {int(counts.max())}"
        )
    if images.shape[1] not in (1, 3):
        raise UnsupportedError(f"ddranking takes colour images, these have {images.shape[1]} channels")
    inner = folder / "ddranking"  # apart from the export ``pt``, whose images may have one channel
    return [*_save_pair(images.expand(-1, 3, -1, -1).contiguous(), targets, inner), _save_units(info, inner)]


def _save_pair(images: Tensor, labels: Tensor, folder: Path) -> list[Path]:
    """Write two plain tensors in torch's own format."""
    return [write_torch(folder / "images.pt", images), write_torch(folder / "labels.pt", labels)]


def _save_units(info: TaskInfo, folder: Path) -> Path:
    """Write the data's preprocessing and class names, by which test images get the units of the exported ones."""
    units = {**info.preprocessing, "class_names": list(info.class_names)}
    if isinstance(augmentation := units.get("augmentation"), Mapping):
        units["augmentation"] = strengths_in_use(augmentation)
    if info.tensors:
        units["note"] = "images are whitened; the matrix for test images is in the export 'tensors'"
    path = folder / PREPROCESSING
    write_json(path, units)
    return path


EXPORTS = {
    "tensors": export_tensors,
    "folder": export_folder,
    "pt": export_pt,
    "ddranking": export_ddranking,
}
"""Writers by format name."""
