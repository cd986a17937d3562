"""Pictures as phones and people store them: turned by EXIF data, of several modes, beside files of other kinds."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from mmdistill.errors import DataError
from mmdistill.image import files
from mmdistill.image.datasets import load
from mmdistill.image.pictures import decode, pixels_of, resized
from mmdistill.image.samples import read_labelled

HEIGHT, WIDTH = 8, 12


def picture(seed: int, mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def write(folder: Path, ending: str, orientation: int = 1, **shape: int) -> None:
    for seed, label in enumerate(("cat", "dog")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(3):
            image = picture(3 * seed + number, **shape)
            image.save(folder / label / f"{number}.{ending}", exif=turned(orientation))


class Samples:
    """A map-style data set."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], index % 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
def test_pictures_are_read_as_viewers_show_them(tmp_path: Path, ending: str, orientation: int) -> None:
    write(tmp_path, ending, orientation)
    path = tmp_path / "cat" / "0.png"
    path = path.with_suffix(f".{ending}")
    with Image.open(path) as stored:
        shown = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    assert torch.equal(decode(str(path)), torch.from_numpy(shown).permute(2, 0, 1))
    images, *_ = files.read_image_folder(tmp_path, None)
    assert images.shape[1:] == ((3, WIDTH, HEIGHT) if orientation >= 5 else (3, HEIGHT, WIDTH))
    assert torch.equal(images[0], decode(str(path)))


def test_turned_and_upright_pictures_of_one_shown_size_need_no_resizing(tmp_path: Path) -> None:
    write(tmp_path, "jpg", 6)
    write(tmp_path, "png", height=WIDTH, width=HEIGHT)
    assert load(tmp_path).shape == (3, WIDTH, HEIGHT)


def test_damaged_exif_data_are_no_orientation(tmp_path: Path) -> None:
    write(tmp_path, "png")
    for label in ("cat", "dog"):
        picture(9).save(tmp_path / label / "9.jpg", dpi=(72, 72), exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff")
    assert load(tmp_path).shape == (3, HEIGHT, WIDTH)


def test_pictures_of_data_sets_are_turned_too(tmp_path: Path) -> None:
    write(tmp_path, "jpg", 6)
    names = sorted(tmp_path.rglob("*.jpg"))
    found = load(Samples([Image.open(path) for path in names]))
    assert found.shape == (3, WIDTH, HEIGHT)
    # As torchvision's own image folder opens them.
    again = load(Samples([Image.open(path).convert("RGB") for path in names]))
    assert again.fingerprint == found.fingerprint


def test_every_file_that_is_not_read_is_counted_but_hidden_ones(tmp_path: Path) -> None:
    write(tmp_path, "jpg")
    for name in ("a.HEIC", "b.heic", "c.dng", "d.npy", "e.svg", "README", ".DS_Store"):
        (tmp_path / "dog" / name).touch()
    (tmp_path / "cat" / "f.heic").touch()
    (note,) = [note for note in load(tmp_path).notes if "not read" in note]
    assert note.endswith(": 1 without an ending, 1 .dng, 3 .heic, 1 .npy, 1 .svg")


def test_other_endings_of_jpeg_files_are_read(tmp_path: Path) -> None:
    write(tmp_path, "jpg")
    for ending in ("jfif", "jpe"):
        (tmp_path / "dog" / "2.jpg").rename(tmp_path / "dog" / f"2.{ending}")
        write(tmp_path, "jpg")
    found = files.read_image_folder(tmp_path, None)
    assert found.labels.tolist() == [0] * 3 + [1] * 5
    assert found.notes == ()


def test_resizing_is_said(tmp_path: Path) -> None:
    write(tmp_path, "png")
    (note,) = [note for note in load(tmp_path, size=6).notes if "resized" in note]
    assert note == f"{tmp_path.name}/: 6 images are resized to 6 x 6, whatever their shape (bilinear, antialiased)"
    write(tmp_path / "square", "png", height=6, width=6)
    assert not [note for note in load(tmp_path / "square", size=6).notes if "resized" in note]


@pytest.mark.parametrize("modes", [("L", "RGB"), ("RGB", "L"), ("1", "L"), ("1", "RGB"), ("P", "L"), ("LA", "L")])
def test_pictures_of_several_modes_come_as_from_a_folder(tmp_path: Path, modes: tuple[str, str]) -> None:
    images = [picture(number, modes[number % 2]) for number in range(8)]
    for number, image in enumerate(images):
        place = tmp_path / str(number % 2)
        place.mkdir(exist_ok=True)
        image.save(place / f"{number}.png")
    images_of_folder, *_ = files.read_image_folder(tmp_path, None)
    gathered, labels, *_ = read_labelled(Samples(images), "the data")
    assert torch.equal(gathered[labels.argsort(stable=True)], images_of_folder)


def test_pictures_of_one_mode_keep_their_channels() -> None:
    for mode, channels in (("L", 1), ("RGB", 3), ("1", 1), ("RGBA", 3)):
        assert load(Samples([picture(number, mode) for number in range(8)])).shape == (channels, HEIGHT, WIDTH)


def test_pictures_of_several_sizes_are_refused_still() -> None:
    with pytest.raises(DataError, match="bring all samples to one shape"):
        load(Samples([picture(number, height=6 + number) for number in range(8)]))


@pytest.mark.parametrize("capability", ["here", "DEFAULT"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (7, 5), (28, 28), (31, 33), (64, 48), (101, 37), (256, 255), (333, 500)]
)
def test_pixels_and_resized_ones_have_the_bits_of_torchvision(
    height: int, width: int, mode: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capability != "here":  # processors without AVX2, on which bytes go through floats
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    image = picture(0, mode, height, width)
    pixels = pixels_of(image)
    assert torch.equal(pixels, pil_to_tensor(image))
    for size in ((2, 2), (7, 7), (16, 16), (33, 33), (64, 64), (97, 61), (128, 128)):
        for values in (pixels, pixels.contiguous()):
            assert torch.equal(resized(values, *size), resize(values, list(size), antialias=True)), size


def test_reading_a_folder_of_pictures_does_not_wait_for_torchvision(tmp_path: Path) -> None:
    write(tmp_path, "png")
    reading = "from mmdistill.image import image_task; print(image_task(sys.argv[1], size=4, width=8))"
    code = f"import sys; {reading}; print([name for name in sys.modules if 'torchvision' in name])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def deep_png(path: Path, channels: int) -> None:
    """Write a picture of 16 bits per channel, of which Pillow reads but cannot write those of several channels."""
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + bytes(range(2 * channels * WIDTH)) for _ in range(HEIGHT))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def banded_tiff(path: Path, bands: int, bits: int = 8) -> None:
    """Write a TIFF file of a colour picture with bands beyond, of which it does not say what they are."""
    size, start = HEIGHT * WIDTH * bands * bits // 8, 512
    tags = [(256, 1, WIDTH), (257, 1, HEIGHT), (258, bands, 256), (259, 1, 1), (262, 1, 2), (273, 1, start)]
    tags += [(277, 1, bands), (278, 1, HEIGHT), (279, 1, size)]
    tags += [(338, bands - 3, 0)] if bands > 3 else []  # up to two, and both unspecified
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", tag, 3, count, value) for tag, count, value in tags)
    head = head.ljust(256, b"\0") + struct.pack(f"<{bands}H", *[bits] * bands)
    path.write_bytes(head.ljust(start, b"\0") + (np.arange(size) % 251).astype(np.uint8).tobytes())


def refused(path: Path, mode: str) -> None:
    said = rf"more than 8 bits per channel \(mode {mode}\), and .*: scale it to 8 bits"
    with pytest.raises(DataError, match=said):
        decode(str(path))
    with Image.open(path) as image, pytest.raises(DataError, match=said):
        load(Samples([image] * 4))


def test_pictures_of_16_bits_are_refused_whatever_their_channels(tmp_path: Path) -> None:
    for channels, mode in ((2, "RGBA"), (3, "RGB"), (4, "RGBA")):
        deep_png(tmp_path / "deep.png", channels)
        refused(tmp_path / "deep.png", f"{mode};16")
    for bands in (3, 4):
        banded_tiff(tmp_path / "deep.tif", bands, bits=16)
        refused(tmp_path / "deep.tif", "RGB;16")
    write(tmp_path / "photos", "png")
    deep_png(tmp_path / "photos" / "dog" / "deep.png", 3)
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits per channel"):
        load(tmp_path / "photos")


def unread(folder: Path) -> list[str]:
    return [note.removeprefix(f"{folder.name}/: ") for note in load(folder).notes if "not read" in note]


@pytest.mark.parametrize("bands", [3, 4, 5])
def test_bands_that_are_not_read_are_said(tmp_path: Path, bands: int) -> None:
    write(tmp_path, "png")
    banded_tiff(tmp_path / "dog" / "many.tif", bands)
    said = "the bands beyond the colours of 1 images are not read; in Python give arrays (N, bands, height, width)"
    assert unread(tmp_path) == ([said] if bands > 3 else [])
    values = torch.from_numpy(np.arange(HEIGHT * WIDTH * bands) % 251).view(HEIGHT, WIDTH, bands)
    assert torch.equal(decode(str(tmp_path / "dog" / "many.tif")), values[..., :3].permute(2, 0, 1).byte())


def test_pictures_of_all_their_bands_have_no_note(tmp_path: Path) -> None:
    write(tmp_path, "png")
    for mode in ("1", "L", "P", "CMYK", "RGB", "YCbCr"):
        picture(7, mode).save(tmp_path / "cat" / f"{mode}.tif")
    assert unread(tmp_path) == []
    picture(7, "RGBA").save(tmp_path / "cat" / "clear.tif")
    assert unread(tmp_path) == ["the transparency of 1 images is not read"]


@pytest.mark.parametrize("ending", ["tif", "png", "webp", "mpo"])
def test_frames_that_are_not_read_are_said(tmp_path: Path, ending: str) -> None:
    """But of photos with a second picture, of which cameras make a preview."""
    write(tmp_path, "jpg")
    for label in ("cat", "dog"):
        place = tmp_path / label / f"two.{ending}"
        picture(8).save(place, save_all=True, append_images=[picture(9)])
        if ending == "mpo":
            place.rename(place.with_suffix(".jpg"))
    said = "the pages or frames after the first of 2 images are not read"
    assert unread(tmp_path) == ([said] if ending != "mpo" else [])
