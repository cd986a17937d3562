"""Readers of image files as they lie on disk: IDX, CIFAR's binary records, image folders, safetensors."""

import gzip
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as transforms

from mmdistill.errors import DataError

IDX_UNSIGNED_BYTE = 8


def find_idx(folder: Path, name: str) -> Path:
    """Return an IDX file under its plain or gzipped name.

    Raises:
        DataError: neither is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name} is missing (plain or with .gz); put the published file there")


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes, plain or gzipped.

    Shapes:
        as the file's header says: ``(n, height, width)`` for images, ``(n,)`` for labels; uint8.

    Raises:
        DataError: not such a file, or cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != IDX_UNSIGNED_BYTE or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an IDX file of bytes; fetch it again")
    start = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:start], dtype=">u4"))
    expected = int(np.prod(shape, dtype=np.int64))
    if len(raw) - start != expected:
        raise DataError(
            f"{path} should hold {expected} values after its header, but has {len(raw) - start}: fetch it again"
        )
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy())


def read_cifar_binary(paths: list[Path], label_bytes: int) -> tuple[Tensor, Tensor]:
    """Read CIFAR's binary records: label bytes (the last one counts), then 3 x 32 x 32 pixels.

    Shapes:
        Returns images ``(n, 3, 32, 32)`` uint8 and labels ``(n,)`` int64.

    Raises:
        DataError: a file is missing or does not hold whole records.
    """
    size = label_bytes + 3072
    parts = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing; put the published file there")
        values = np.fromfile(path, dtype=np.uint8)
        if len(values) == 0 or len(values) % size:
            raise DataError(f"{path} has {len(values)} bytes, which is not a whole number of {size}-byte records")
        parts.append(values.reshape(-1, size))
    records = torch.from_numpy(np.concatenate(parts))
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).clone(), records[:, label_bytes - 1].long()


def is_image_folder(folder: Path) -> bool:
    """Whether a folder has a subfolder per class that holds images, or such folders under ``train``."""
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
    if not folder.is_dir():
        return False
    start = folder / "train" if (folder / "train").is_dir() else folder
    return any(file.suffix.lower() in suffixes for sub in start.iterdir() if sub.is_dir() for file in sub.iterdir())


def read_image_folder(folder: Path, size: int | None) -> tuple[Tensor, Tensor, list[str]]:
    """Read a folder with one subfolder of images per class.

    Args:
        folder: read with torchvision's ``ImageFolder``.
        size: resize every image to ``size`` x ``size``; None keeps them, and then all must have one size.

    Shapes:
        Returns images ``(n, channels, height, width)`` uint8 (one channel where every image is grey), labels
        ``(n,)`` int64, and the class names.

    Raises:
        DataError: no images, an empty class, an unreadable image, or several sizes.
    """
    try:
        listing = ImageFolder(str(folder), loader=lambda path: path)
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no image folder: {error}") from error
    images = []
    for path, _ in listing.samples:
        image = _decode(path)
        images.append(image if size is None else transforms.resize(image, [size, size], antialias=True))
    sizes = Counter(tuple(image.shape[1:]) for image in images)
    if len(sizes) > 1:
        found = ", ".join(f"{count} of {h} x {w}" for (h, w), count in sizes.most_common(3))
        raise DataError(
            f"images in {folder} have {len(sizes)} sizes ({found}); resize them, or pass size= to image_task"
        )
    if any(image.shape[0] == 3 for image in images):
        images = [image.expand(3, -1, -1) for image in images]
    return torch.stack(images), torch.tensor(listing.targets), listing.classes


def _decode(path: str) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode = "L" if image.mode in ("1", "L", "I;16") else "RGB"
            pixels: Tensor = transforms.pil_to_tensor(image.convert(mode))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
    return pixels


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether a folder has Tiny-ImageNet's layout: classes under ``train``, a list of labels for all of ``val``."""
    return (folder / "train").is_dir() and (folder / "val" / "val_annotations.txt").is_file()


def read_tiny_validation(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Read Tiny-ImageNet's validation images, whose classes stand in ``val_annotations.txt``.

    Args:
        folder: with the list and the folder ``images``.
        classes: identifiers by class index.

    Shapes:
        Returns images ``(n, 3, height, width)`` uint8 and labels ``(n,)`` int64.

    Raises:
        DataError: a line that names no image and class, an unknown class, or an unreadable image.
    """
    listing, position = folder / "val_annotations.txt", {name: index for index, name in enumerate(classes)}
    images, labels = [], []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in position:
            raise DataError(
                f"{listing}, line {number}: expected an image and one of the classes under train/, got {line!r}"
            )
        images.append(_decode(str(folder / "images" / fields[0])).expand(3, -1, -1))
        labels.append(position[fields[1]])
    if not images:
        raise DataError(f"{listing} names no image; fetch it again")
    return torch.stack(images), torch.tensor(labels)


def read_tiny_names(path: Path, classes: list[str]) -> list[str]:
    """Return the first word of each class from ``words.txt``; its identifier where that says nothing."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    words = {key: rest.split(",")[0].strip() for key, _, rest in (line.partition("\t") for line in lines)}
    return [words.get(name) or name for name in classes]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file ({error})") from error
    return tensors
