"""Pictures of image sets: every image is there once, and many classes make no strip."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmdistill import distill, export, image_task
from mmdistill.image.draw import MOST_PIXELS, draw, largest_grid, picture_grid
from mmdistill.reporting.report import write_report


@pytest.mark.parametrize(
    ("classes", "each", "side"), [(100, 1, 32), (100, 10, 32), (200, 1, 64), (10, 1, 8), (10, 10, 8)]
)
def test_pictures_are_about_as_wide_as_high(classes: int, each: int, side: int) -> None:
    rows = [torch.zeros(each, 3, side, side, dtype=torch.uint8)] * classes
    wide, high = picture_grid(rows, tuple(str(name) for name in range(classes))).size
    assert 0.5 < wide / high < 2


@pytest.mark.parametrize("classes", [1, 7, 10, 23])
def test_every_image_is_drawn_once_also_in_blocks_that_are_not_full(classes: int) -> None:
    rows = [torch.full((2, 1, 4, 4), 10 + index, dtype=torch.uint8) for index in range(classes)]
    rows[0] = rows[0][:1]
    picture = torch.frombuffer(bytearray(picture_grid(rows, ("",) * classes).tobytes()), dtype=torch.uint8).view(-1, 3)
    grey = picture[(picture == picture[:, :1]).all(1), 0]
    counts = torch.stack([(grey == 10 + index).sum() for index in range(classes)]).tolist()
    tile = 112 * 112
    assert counts == [tile, *[2 * tile] * (classes - 1)]


def test_names_of_other_letters_are_drawn_as_such_and_not_as_boxes() -> None:
    rows = [torch.zeros(1, 1, 8, 8, dtype=torch.uint8)]
    drawn = [picture_grid(rows, (letter,)).tobytes() for letter in "eéèôûçñßαβжшłğ\uffff"]
    assert len(set(drawn)) == len(drawn)  # U+FFFF is no character, so its picture is the box


@pytest.mark.parametrize(
    ("classes", "most", "side", "expected"),
    [
        (10, 50, 32, (50, 10)),  # as all that is in the tables
        (10, 50, 64, (50, 10)),
        (200, 1, 64, (1, 200)),
        (100, 50, 32, (50, 100)),
        (1000, 1, 32, (1, 1000)),  # enlarged less
        (1000, 50, 64, (2, 1000)),
        (1000, 10, 224, (1, 228)),
    ],
)
def test_pictures_of_many_images_show_some_of_each_class(
    classes: int, most: int, side: int, expected: tuple[int, int]
) -> None:
    names = tuple(f"n{index:08d}" for index in range(classes))
    each, count = largest_grid(names, most, side, side)
    assert (each, count) == expected
    if count * each < classes * most:
        size = picture_grid([torch.zeros(each, 1, side, side, dtype=torch.uint8)] * count, names[:count]).size
        assert 0.5 * MOST_PIXELS < size[0] * size[1] <= MOST_PIXELS


def test_the_report_says_which_images_its_picture_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = image_task("digits", width=4)
    found = distill(task, "dm", ipc=5, settings={"steps": 0})

    def heading() -> str:
        (path,) = draw(task, found.batch, tmp_path)
        pages = write_report(tmp_path, found, {}, [path])
        (line,) = [line for line in pages[0].read_text().splitlines() if line.startswith("## images")]
        assert f"<h2>{line.removeprefix('## ')}</h2>" in pages[1].read_text()
        return line

    assert heading() == "## images"
    for most, said in (
        (10_000, "## images (3 of 5 per class)"),
        (5_000, "## images (1 of 5 per class, 7 of 10 classes)"),
    ):
        monkeypatch.setattr(sys.modules[draw.__module__], "MOST_PIXELS", most)
        assert heading() == said
        with Image.open(tmp_path / "images.png") as picture:
            assert picture.size[0] * picture.size[1] <= most


def test_exported_preprocessing_says_nothing_of_operations_that_there_are_not(tmp_path: Path) -> None:
    found = distill(image_task("digits", width=8), "dm", ipc=1, settings={"steps": 1, "real_batch": 2})
    export(found, "pt", tmp_path)
    (path,) = tmp_path.rglob("preprocessing.json")
    augmentation = json.loads(path.read_text())["augmentation"]
    assert "flip" not in augmentation["operations"]
    assert "flip" not in augmentation
    assert {"cutout", "brightness"} <= augmentation.keys()
    assert "flip" in found.info.preprocessing["augmentation"]  # type: ignore[operator]  # as ever in sets
