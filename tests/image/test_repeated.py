"""Repeats of images: noted, kept on one side of a split that is made here, as those of texts are."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdistill import image_task
from mmdistill.errors import DataError
from mmdistill.image import files
from mmdistill.image.datasets import load
from mmdistill.image.repeated import alike_images, count_shared
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


def pixels(images: Tensor) -> set[bytes]:
    return {one.numpy().tobytes() for one in images}


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_repeats_stay_on_one_side_of_the_split(scale: float) -> None:
    """Of class 0 images come three times, of class 1 one comes ten times, of class 2 none comes twice."""
    images = bytes_like(60, 8, 8)
    rows = torch.cat([torch.arange(20).repeat(3), torch.tensor([20]).repeat(10), torch.arange(21, 60)])
    labels = torch.tensor([0] * 60 + [1] * 10 + [1] * 19 + [2] * 20)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    pair = (images[rows] * scale)[order], labels[order]
    for seed in range(5):
        found = load(pair, seed=seed)
        assert not pixels(found.train_images) & pixels(found.test_images)
        assert found.test_labels.bincount().tolist() == [12, 6, 4]
        assert len(found.train_labels) == len(rows) - 22
        assert found.notes[-1] == f"49 of {len(rows)} images occur before in the data"
        assert torch.equal(load(pair, seed=seed).test_images, found.test_images)
    assert not torch.equal(load(pair, seed=5).test_images, found.test_images)


def test_images_of_several_classes_are_not_tested_on() -> None:
    images = bytes_like(30, 4, 4)
    both = torch.cat([images, images[:10]]), torch.tensor([0] * 20 + [1] * 10 + [1] * 10)
    found = load(both)
    assert found.test_labels.bincount().tolist() == [4, 4]
    assert not pixels(found.test_images) & pixels(images[:10])
    with pytest.raises(DataError, match="custom has no test split, and too few different images to hold one out; give"):
        load((torch.cat([images, images]), torch.arange(60) // 30))


def test_of_few_different_images_the_rarest_are_tested_on_and_one_alone_is_not() -> None:
    rows, labels = torch.tensor([0] * 6 + [1] * 4 + [2] * 5 + [3] * 5), torch.tensor([0] * 10 + [1] * 5 + [2] * 5)
    images = torch.cat([bytes_like(5, 4, 4)[rows], bytes_like(5, 4, 4, seed=1)])
    found = load((images, torch.cat([labels, torch.tensor([3] * 5)])), class_names=["a", "b", "c", "d"])
    assert found.test_labels.tolist() == [0] * 4 + [3]
    assert "no test image is of class 'b', 'c', so scores say nothing of it" in found.notes


def test_copies_stay_in_training_where_their_class_has_else_only_images_of_several_classes() -> None:
    images = bytes_like(12, 4, 4)[[*range(11), *[11] * 6, 10]]
    assert load((images, torch.tensor([0] * 11 + [1] * 7))).test_labels.tolist() == [0, 0]


def test_images_are_numbered_by_their_bytes() -> None:
    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    images[1, 0, 0, 0], images[2, 0, 2, 0], images[4, 0, 0, 0] = 1, 1, 1  # two of one sum that differ
    assert alike_images(images).tolist() == [0, 1, 2, 0, 1, 0]
