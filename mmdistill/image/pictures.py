"""Reading single pictures: their orientation, their channels, and their pixels as bytes."""

import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from mmdistill.errors import DataError
from mmdistill.names import first_few

Found = TypeVar("Found")
GREY = ("1", "L")
"""Modes of pictures with one channel."""
TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
"""Modes of pictures with an alpha channel, which is not read; other modes may name a transparent colour."""
WIDE = ("I", "F")
"""First letters of modes whose values do not fit into a byte; converting them would clip at 255."""
BITS_OF_TIFF, BANDS_OF_TIFF = 258, 277
"""Tags of TIFF files: bits of each sample, and samples of each pixel."""
TURNED = range(5, 9)
"""EXIF orientations of pictures whose rows are stored as columns."""
IN_HEADER = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")
"""Metadata in which a PNG file can state its orientation before its pixels."""

BYTEWISE = ("aarch64", "arm64")
"""Machines, beside those with AVX2, on which torch resizes bytes without converting them to floats."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8; 1 is how the pixels are stored.

    A PNG file's metadata after the pixels are ignored: reading them would decode the pixels.
    """
    if image.format == "PNG" and not any(name in image.info for name in IN_HEADER):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged parts
            stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # on damaged EXIF data Pillow's parser may raise anything; the pixels may still be fine
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return a picture's height and width as viewers show it, without decoding it."""
    if image.format != "TIFF" and orientation(image) in TURNED:  # for TIFF files Pillow swaps them itself
        return image.width, image.height
    return image.height, image.width


def upright(image: Image.Image) -> Image.Image:
    """Return a picture as viewers show it: rotated or mirrored by its EXIF orientation."""
    if orientation(image) == 1:
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on damaged parts
        return ImageOps.exif_transpose(image)


class UnreadableImageError(DataError):
    """A file that is not an image, or a damaged one.

    Args:
        path: of the file.
        reason: in words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image ({reason}); replace or remove it")
        self.path, self.reason = path, reason


def each_readable(paths: Iterable[str], read: Callable[[str], Found]) -> Iterator[Found]:
    """Yield ``read(path)`` for each image file; raise after the last if some could not be read.

    Raises:
        DataError: naming all unreadable files.
    """
    broken: list[UnreadableImageError] = []
    for path in paths:
        try:
            result = read(path)
        except UnreadableImageError as error:
            broken.append(error)
        else:
            yield result
    if len(broken) == 1:
        raise broken[0]
    if broken:
        folder = os.path.commonpath([os.path.dirname(error.path) for error in broken])
        files = first_few([f"{os.path.relpath(error.path, folder)} ({error.reason})" for error in broken])
        raise DataError(f"{len(broken)} files in {folder} cannot be read as images: {files}; replace or remove them")


@contextmanager
def open_image(path: str, file: BinaryIO | None = None) -> Iterator[Image.Image]:
    """Open an image file.

    Args:
        path: of the file.
        file: its bytes, if they are in memory; ``path`` then names them in messages.
    Raises:
        DataError: it cannot be read, or its values do not fit into bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?i).*exif")  # with damaged EXIF the pixels may still be fine
            with Image.open(file or path) as image:
                require_bytes(image, path)
                yield image
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on a damaged file Pillow's readers may raise anything
        raise UnreadableImageError(path, str(error).replace(f" {(file or path)!r}", "")) from error


def require_bytes(image: Image.Image, what: str) -> None:
    """Refuse a picture whose values do not fit into bytes.

    Raises:
        DataError: its channels have 16 or 32 bits, or floats.
    """
    bits = _bits_per_channel(image)
    if bits > 8 or image.mode.startswith(WIDE):
        mode = image.mode if image.mode.startswith(WIDE) else f"{image.mode};{bits}"
        raise DataError(
            f"{what} has more than 8 bits per channel (mode {mode}), and images are read as bytes: scale it to 8 "
            "bits, or give all images as float tensors"
        )


def _bits_per_channel(image: Image.Image) -> int:
    """Return the bits per channel of a PNG or TIFF file, which a colour mode does not tell; 8 for other files.

    Pillow keeps only the high 8 of 16 bits, which leaves next to nothing of a camera's 12. A PNG file's bits are known
    only until the picture is decoded.
    """
    deep = image.format == "PNG" and any(str(tile[3]).endswith(";16B") for tile in getattr(image, "tile", ()))
    return 16 if deep else max(_tiff_tags(image).get(BITS_OF_TIFF, (8,)))


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return a TIFF file's tags; empty for other files."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def has_more_bands(image: Image.Image) -> bool:
    """Return whether a TIFF file has bands beyond its colours, grey or alpha."""
    return int(_tiff_tags(image).get(BANDS_OF_TIFF, 1)) > len(image.getbands())


def has_more_frames(image: Image.Image) -> bool:
    """Return whether a file has pages or frames after the first; a camera's previews (MPO) do not count."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def decode(path: str, file: BinaryIO | None = None) -> Tensor:
    """Return the bytes of an image file, upright: ``(1, height, width)`` if it is grey, else ``(3, height, width)``.

    Args:
        path: of the file.
        file: its bytes, if they are in memory; ``path`` then names them in messages.
    Raises:
        DataError: it cannot be read, or its values do not fit into bytes.
    """
    with open_image(path, file) as image:
        return pixels_of(image)


def pixels_of(image: Image.Image) -> Tensor:
    """Return the bytes of a picture, upright: ``(1, height, width)`` if it is grey, else ``(3, height, width)``."""
    image = upright(image)
    values = np.array(image.convert("L" if image.mode in GREY else "RGB"))
    return torch.from_numpy(values).view(image.height, image.width, -1).permute(2, 0, 1)


def resizing_notes(what: str, count: int, size: int | None) -> tuple[str, ...]:
    """Return a note that ``count`` images were resized; none if ``count`` is 0."""
    if not count:
        return ()
    return (f"{what}: {count} images are resized to {size} x {size}, whatever their shape (bilinear, antialiased)",)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image's bytes at another size, bilinear and antialiased, bit for bit as torchvision's ``resize``.

    Importing torchvision takes seconds, so it is not called. As there, only some processors resize bytes directly.
    """
    bytewise = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in BYTEWISE
    values = image[None] if bytewise else image[None].float()
    result = interpolate(values, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    return result if bytewise else result.round().to(torch.uint8)
