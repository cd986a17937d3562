"""Images that are both trained and tested on are noted, as texts are."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdistill import image_task
from mmdistill.image import files
from mmdistill.image.datasets import load
from mmdistill.image.repeated import count_shared
from tests.image.test_data import Pairs, bytes_like, labels_of

SAID = "{} of the {} test images are also in training, as the splits were given, so scores may be too good"


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 6, 6), (1, 5, 5)])
def test_shared_images_are_counted_by_their_bytes(shape: tuple[int, int, int]) -> None:
    train = bytes_like(1201, *shape).flatten()[1 : 1 + 1200 * math.prod(shape)].view(1200, *shape)  # at an odd place
    test = torch.cat([train[[7, 7, 1100]], train[:2].flip(-1), bytes_like(5, *shape, seed=1)])
    pixels = {one.numpy().tobytes() for one in train}
    expected = sum(one.numpy().tobytes() in pixels for one in test)
    assert expected == 3
    for scale in (1, 1 / 255):
        parts = (train, test) if scale == 1 else (train * scale, test * scale)
        assert count_shared(*parts) == expected
        assert count_shared(*(one.transpose(2, 3) for one in parts)) == expected
    assert count_shared(train, test * 1.0) == 0
    assert count_shared(train, test[:, :, :2]) == 0


def test_test_images_that_are_also_in_training_are_noted() -> None:
    images, labels = bytes_like(20, 8, 8), labels_of(20, 2)
    apart = bytes_like(6, 8, 8, seed=1)
    task = image_task((images, labels), test=(images, labels), model="mlp", width=4, mirror=False)
    assert task.describe().notes == (SAID.format(20, 20),)
    some = torch.cat([apart, images[:1]]), torch.cat([labels[:6], labels[:1]])
    for source in (some, Pairs(list(some[0]), some[1].tolist())):
        assert load((images, labels), source).notes == (SAID.format(1, 7),)
    assert load({"train": (images, labels), "test": some}).notes == (SAID.format(1, 7),)
    assert load((images, labels), (apart, labels[:6])).notes == ()
    assert "also in training" not in " ".join(load((images, labels)).notes)


def written(folder: Path, images: Tensor) -> None:
    for index, image in enumerate(images):
        place = folder / "ab"[index % 2] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place)


def test_shared_images_of_folders_and_files_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = bytes_like(10, 8, 8), labels_of(10, 2)
    written(tmp_path / "folder" / "train", images)
    written(tmp_path / "folder" / "test", images[:4])
    said = SAID.format(4, 4)
    assert said in load(tmp_path / "folder").notes
    held = {"images": images, "labels": labels, "test_images": images[:4], "test_labels": labels[:4]}
    torch.save(held, tmp_path / "data.pt")
    assert load(tmp_path / "data.pt").notes == (said,)
    monkeypatch.setattr(files, "IN_MEMORY", 64)
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    assert said not in load(tmp_path / "folder").notes
