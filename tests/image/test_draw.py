"""Pictures of image sets: every image is there once, and many classes make no strip."""

import json
from pathlib import Path

import pytest
import torch

from mmdistill import distill, export, image_task
from mmdistill.image.draw import picture_grid


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


def test_exported_preprocessing_says_nothing_of_operations_that_there_are_not(tmp_path: Path) -> None:
    found = distill(image_task("digits", width=8), "dm", ipc=1, settings={"steps": 1, "real_batch": 2})
    export(found, "pt", tmp_path)
    (path,) = tmp_path.rglob("preprocessing.json")
    augmentation = json.loads(path.read_text())["augmentation"]
    assert "flip" not in augmentation["operations"]
    assert "flip" not in augmentation
    assert {"cutout", "brightness"} <= augmentation.keys()
    assert "flip" in found.info.preprocessing["augmentation"]  # type: ignore[operator]  # as ever in sets
