"""Single pictures: which way up they are, of what channels, and their pixels as bytes."""

import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

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
"""Modes of pictures with a channel of opacity, which is not read; others may name a transparent colour."""
WIDE = ("I", "F")
"""How the modes of pictures start whose values do not fit into a byte; converting them would cut these off at 255."""
BITS_OF_TIFF, BANDS_OF_TIFF = 258, 277
"""Tags of TIFF files: bits of each sample, and samples of each pixel."""
TURNED = range(5, 9)
"""EXIF orientations of pictures whose rows are stored as columns."""
IN_HEADER = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")
"""Where a PNG file names its orientation before its pixels."""

BYTEWISE = ("aarch64", "arm64")
"""Machines beside those with AVX2 on which torch resizes bytes without floats between."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8; 1 is how the pixels are stored.

    What a PNG file may say of it behind its pixels is not looked for, since that takes to decode them.
    """
    if image.format == "PNG" and not any(name in image.info for name in IN_HEADER):
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged parts
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data make Pillow's parser raise anything, and say nothing of the pixels
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of a picture that is not decoded yet, as viewers show it."""
    if image.format != "TIFF" and orientation(image) in TURNED:  # of TIFF files Pillow swaps them itself
        return image.width, image.height
    return image.height, image.width


def upright(image: Image.Image) -> Image.Image:
    """Return a picture as viewers show it: turned or mirrored as its EXIF data say."""
    if orientation(image) == 1:
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on damaged parts
        return ImageOps.exif_transpose(image)


class UnreadableImageError(DataError):
    """A file that is no image, or a damaged one.

    Args:
        path: of the file.
        reason: in words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image ({reason}); replace or remove it")
        self.path, self.reason = path, reason


def each_readable(paths: Iterable[str], read: Callable[[str], Found]) -> Iterator[Found]:
    """Yield what is read of image files, one after the other, and in the end refuse those that cannot be read.

    Raises:
        DataError: naming the unreadable files together.
    """
    broken: list[UnreadableImageError] = []
    for path in paths:
        try:
            found = read(path)
        except UnreadableImageError as error:
            broken.append(error)
        else:
            yield found
    if len(broken) == 1:
        raise broken[0]
    if broken:
        folder = os.path.commonpath([os.path.dirname(error.path) for error in broken])
        named = first_few([f"{os.path.relpath(error.path, folder)} ({error.reason})" for error in broken])
        raise DataError(f"{len(broken)} files in {folder} cannot be read as images: {named}; replace or remove them")


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        DataError: it cannot be read, or not as bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?i).*exif")  # on damaged parts, which say nothing of the pixels
            with Image.open(path) as image:
                require_bytes(image, path)
                yield image
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise anything
        raise UnreadableImageError(path, str(error).replace(f" {path!r}", "")) from error


def require_bytes(image: Image.Image, what: str) -> None:
    """Refuse a picture whose values a byte cannot hold.

    Raises:
        DataError: one of 16 or 32 bits or of floats per channel.
    """
    bits = _bits_per_channel(image)
    if bits > 8 or image.mode.startswith(WIDE):
        mode = image.mode if image.mode.startswith(WIDE) else f"{image.mode};{bits}"
        raise DataError(
            f"{what} has more than 8 bits per channel (mode {mode}), and images are read as bytes: scale it to 8 "
            "bits, or give all images as float tensors"
        )


def _bits_per_channel(image: Image.Image) -> int:
    """Return how many bits a PNG or TIFF file has per channel, of which modes of colours say nothing; 8 of any other.

    Of 16 bits Pillow keeps the high 8, which leaves next to nothing of a camera's 12. Of a PNG file it is known until
    the picture is decoded.
    """
    deep = image.format == "PNG" and any(str(tile[3]).endswith(";16B") for tile in getattr(image, "tile", ()))
    return 16 if deep else max(_tags(image).get(BITS_OF_TIFF, (8,)))


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Return a TIFF file's tags; none of another."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def has_more_bands(image: Image.Image) -> bool:
    """Return whether a TIFF file has bands beside those that are read of it as colours, grey or opacity."""
    return int(_tags(image).get(BANDS_OF_TIFF, 1)) > len(image.getbands())


def has_more_frames(image: Image.Image) -> bool:
    """Return whether a file has pages or frames beside the first, other than a camera's previews of a photo."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def decode(path: str) -> Tensor:
    """Return the bytes of an image file, upright: ``(1, height, width)`` where it is grey, else ``(3, height, width)``.

    Raises:
        DataError: it cannot be read, or not as bytes.
    """
    with opened(path) as image:
        return pixels_of(image)


def pixels_of(image: Image.Image) -> Tensor:
    """Return the bytes of a picture, upright: ``(1, height, width)`` where it is grey, else ``(3, height, width)``."""
    image = upright(image)
    values = np.array(image.convert("L" if image.mode in GREY else "RGB"))
    return torch.from_numpy(values).view(image.height, image.width, -1).permute(2, 0, 1)


def resizing_notes(what: str, count: int, size: int | None) -> tuple[str, ...]:
    """Return the note that so many images of something were resized; none where no image was."""
    fitted = f"are resized to {size} x {size}, whatever their shape (bilinear, antialiased)"
    return (f"{what}: {count} images {fitted}",) if count else ()


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Return an image's bytes at another size, bilinear and antialiased: the bits of torchvision's ``resize``.

    That one is not called, since importing it takes seconds. As there, only some processors resize bytes as they are.
    """
    bytewise = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in BYTEWISE
    values = image[None] if bytewise else image[None].float()
    found = interpolate(values, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    return found if bytewise else found.round().to(torch.uint8)
