"""Readers of image files on disk: IDX, CIFAR's binary records, image folders."""

import gzip
import hashlib
import math
import os
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdistill.bars import progress_bar
from mmdistill.errors import DataError
from mmdistill.files.class_folders import class_folders, unread_notes
from mmdistill.files.locks import sole_writer
from mmdistill.image.class_labels import Labelled
from mmdistill.image.folders import images_under, loose_images
from mmdistill.image.pictures import (
    GREY,
    TRANSPARENT,
    decode,
    each_readable,
    has_more_bands,
    has_more_frames,
    open_image,
    resized,
    resizing_notes,
    upright_size,
)
from mmdistill.runtime import atomic_write, cache_folder, remove_parts

IDX_UNSIGNED_BYTE = 8
IN_MEMORY = 2**30
"""Most bytes of decoded images that are read into memory; larger folders are decoded into a file."""
UNREAD = {
    "transparent": "the transparency of {} images is not read",
    "bands": "the bands beyond the colours of {} images are not read; in Python give arrays (N, bands, height, width)",
    "frames": "the pages or frames after the first of {} images are not read",
}
"""Notes on parts of image files that are not read."""


class _Head(NamedTuple):
    """The header of an image file.

    Args:
        grey: whether the image has one channel.
        size: height and width.
        unread: keys of :data:`UNREAD` for the parts of the file that are not read.
    """

    grey: bool
    size: tuple[int, int]
    unread: tuple[str, ...]


def find_idx(folder: Path, name: str) -> Path:
    """Return the path of an IDX file, plain or gzipped.

    Raises:
        DataError: neither exists.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name} is missing (plain or with .gz); put the published file there")


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes, plain or gzipped.

    Shapes:
        returns ``(n, height, width)`` for images, ``(n,)`` for labels, by the file's header; uint8.

    Raises:
        DataError: not an IDX file of bytes, or truncated.
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
    by_file = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing; put the published file there")
        values = np.fromfile(path, dtype=np.uint8)
        if len(values) == 0 or len(values) % size:
            raise DataError(f"{path} has {len(values)} bytes, which is not a whole number of {size}-byte records")
        by_file.append(values.reshape(-1, size))
    records = torch.from_numpy(np.concatenate(by_file))
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).clone(), records[:, label_bytes - 1].long()


def read_image_folder(folder: Path, size: int | None, held_out: bool = False) -> Labelled:
    """Read a folder with one subfolder of images per class.

    More than :data:`IN_MEMORY` bytes are decoded once into a cached file and mapped from it, so that only drawn images
    are read.

    Args:
        folder: with a subfolder per class, whose images may lie deeper. Hidden files and folders, and folders whose
            names start with two underscores, are ignored.
        size: resize every image to ``size`` x ``size``; None: all images must have one size.
        held_out: whether the caller will hold out a part of the images, which must then be in memory.

    Returns:
        images with one channel if every image is grey, else with three.

    Raises:
        DataError: no images, an empty class, unreadable images, several sizes, or too many to hold out a part.
    """
    classes = tuple(sub.name for sub in class_folders(folder))
    unread = Counter[str]()
    listing = [(path, label) for label, name in enumerate(classes) for path in images_under(folder / name, unread)]
    images, notes = read_listing(folder, [path for path, _ in listing], size, held_out)
    notes = (*loose_images(folder), *notes, *unread_notes(folder, unread))
    return Labelled(images, torch.tensor([label for _, label in listing]), classes, notes)


def read_listing(source: Path, paths: list[str], size: int | None, held_out: bool) -> tuple[Tensor, tuple[str, ...]]:
    """Read image files in order, as :func:`read_image_folder` does, and return the images with notes.

    Args:
        source: the folder or table that lists the files, for messages.
        paths: of the files.
        size: see :func:`read_image_folder`.
        held_out: see :func:`read_image_folder`.
    """
    called = f"{source.name}/" if source.is_dir() else source.name
    shape, resized_count, unread_parts = _common_shape(source, paths, size)
    count = len(paths) * math.prod(shape)
    if held_out and count > IN_MEMORY:  # refuse before anything is decoded
        raise DataError(
            f"{source} holds {len(paths):,} images, {count:,} bytes, of which no part can be held out in memory (up to "
            f"{IN_MEMORY:,} bytes); move the test images to a folder test/ beside train/, or ask for a smaller size "
            "(--size 64, or size=64 for image_task)"
        )
    if count > IN_MEMORY:
        images = _map_decoded(paths, shape, cache_folder() / "images" / f"{_listing_key(paths, shape)}.bin")
    else:
        images = torch.stack(list(each_readable(paths, partial(_decode_to_shape, shape=shape))))
    notes = [f"{called}: {note.format(unread_parts[part])}" for part, note in UNREAD.items() if unread_parts[part]]
    return images, (*resizing_notes(called, resized_count, size), *notes)


def _common_shape(folder: Path, paths: list[str], size: int | None) -> tuple[tuple[int, int, int], int, Counter[str]]:
    """Read all headers of a folder for the images' common channels, height and width.

    Then come the number of images to resize, and the number with each unread part of :data:`UNREAD`.

    Raises:
        DataError: unreadable headers, or several sizes without a ``size``.
    """
    channels, sizes, unread, unreadable = 1, Counter[tuple[int, int]](), Counter[str](), None
    try:
        for head in each_readable(paths, _read_head):
            channels = channels if head.grey else 3
            sizes[head.size] += 1
            unread.update(head.unread)
    except DataError as error:
        unreadable = error
    if unreadable is not None and (size is not None or len(sizes) < 2):
        raise unreadable
    if size is not None:
        return (channels, size, size), len(paths) - sizes[size, size], unread
    if len(sizes) > 1:
        commonest = ", ".join(f"{count} of {h} x {w}" for (h, w), count in sizes.most_common(3))
        besides = "" if unreadable is None else f"{unreadable}; besides, "
        raise DataError(
            f"{besides}images in {folder} have {len(sizes)} sizes ({commonest}); resize them, or ask for one size "
            "(--size 64, or size=64 for image_task)"
        ) from unreadable
    height, width = next(iter(sizes))
    return (channels, height, width), 0, unread


def _read_head(path: str) -> _Head:
    """Read an image file's header."""
    with open_image(path) as image:
        has_part = {
            "transparent": image.mode in TRANSPARENT or "transparency" in image.info,
            "bands": has_more_bands(image),
            "frames": has_more_frames(image),
        }
        unread = tuple(part for part, present in has_part.items() if present)
        return _Head(image.mode in GREY, upright_size(image), unread)


def _decode_to_shape(path: str, shape: tuple[int, int, int]) -> Tensor:
    """Decode an image, and resize it if it has another size."""
    image, (channels, height, width) = decode(path), shape
    if image.shape[1:] != (height, width):
        image = resized(image, height, width)
    return image.expand(channels, -1, -1)


def _listing_key(paths: list[str], shape: tuple[int, int, int]) -> str:
    """Return a hash of the files' paths, sizes and times, and of the decoded shape."""
    digest = hashlib.blake2b(f"{shape!r}\n".encode(), digest_size=16)
    for path in paths:
        state = os.stat(path)
        digest.update(os.fsencode(os.path.abspath(path)) + f" {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _map_decoded(paths: list[str], shape: tuple[int, int, int], file: Path) -> Tensor:
    """Map images from a file of decoded bytes; write it first if it is missing."""
    count = len(paths) * math.prod(shape)
    if not _is_decoded(file, count):
        with sole_writer(file.parent, wait="decode images") as alone:
            remove_parts(file.parent, alone)  # an interrupted run's part may be as large as the images
            if not _is_decoded(file, count):  # another process may have written it meanwhile
                _decode_into(file, paths, shape)
    return torch.from_file(str(file), shared=False, size=count, dtype=torch.uint8).view(len(paths), *shape)


def _is_decoded(file: Path, count: int) -> bool:
    """Return whether a file holds ``count`` decoded bytes."""
    return file.is_file() and file.stat().st_size == count


def _decode_into(file: Path, paths: list[str], shape: tuple[int, int, int]) -> None:
    """Write the decoded bytes of images into a file, one after the other."""
    with (
        atomic_write(file) as handle,
        progress_bar("decoding images", "image", visible=sys.stderr.isatty()) as show,
    ):
        for done, image in enumerate(each_readable(paths, partial(_decode_to_shape, shape=shape)), start=1):
            handle.write(image.contiguous().numpy().tobytes())
            show(done, len(paths))


def is_tiny_imagenet(folder: Path) -> bool:
    """Return whether a folder has Tiny-ImageNet's layout: classes under ``train``, one list of labels for ``val``."""
    return (folder / "train").is_dir() and (folder / "val" / "val_annotations.txt").is_file()


def read_tiny_validation(folder: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Read Tiny-ImageNet's validation images, labelled by ``val_annotations.txt``.

    Args:
        folder: with the list and the folder ``images``.
        classes: identifiers by class index.

    Shapes:
        Returns images ``(n, 3, height, width)`` uint8 and labels ``(n,)`` int64.

    Raises:
        DataError: a line without image and class, an unknown class, or an unreadable image.
    """
    listing, class_index = folder / "val_annotations.txt", {name: index for index, name in enumerate(classes)}
    images, labels = [], []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in class_index:
            raise DataError(
                f"{listing}, line {number}: expected an image and one of the classes under train/, got {line!r}"
            )
        images.append(decode(str(folder / "images" / fields[0])).expand(3, -1, -1))
        labels.append(class_index[fields[1]])
    if not images:
        raise DataError(f"{listing} names no image; fetch it again")
    return torch.stack(images), torch.tensor(labels)


def read_tiny_names(path: Path, classes: Sequence[str]) -> list[str]:
    """Return the first word of each class from ``words.txt``, or its identifier if there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    words = {key: synonyms.split(",")[0].strip() for key, _, synonyms in (line.partition("\t") for line in lines)}
    return [words.get(name) or name for name in classes]
