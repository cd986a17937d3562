import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections import UserList
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision import datasets as published

from mmdistill.errors import ConfigError, DataError, UnsupportedError
from mmdistill.graph.sources import load_graph
from mmdistill.image import files, folders, image_task, known
from mmdistill.image.data import build, extremes
from mmdistill.image.data import split as held_out
from mmdistill.image.datasets import accepts, load
from mmdistill.image.moments import channel_moments
from mmdistill.image.task import MIRRORED
from mmdistill.registry import domain_of
from mmdistill.runtime import Draws, data_root
from tests.toys import Sizes

needs_mnist = pytest.mark.skipif(
    not (data_root() / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").is_file(),
    reason="needs MNIST/raw under MMDISTILL_DATA",
)

IDX_NAMES = [name for split in known.IDX_SPLITS for name in split]


def bytes_like(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def labels_of(n: int, classes: int = 10) -> Tensor:
    return torch.arange(n) % classes


def idx_bytes(values: Tensor) -> bytes:
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def write_idx(folder: Path, zipped: bool) -> dict[str, Tensor]:
    folder.mkdir(parents=True)
    parts = {
        IDX_NAMES[0]: bytes_like(20, 28, 28),
        IDX_NAMES[1]: labels_of(20),
        IDX_NAMES[2]: bytes_like(10, 28, 28, seed=1),
        IDX_NAMES[3]: labels_of(10),
    }
    for name, values in parts.items():
        raw = idx_bytes(values)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    return parts


def write_cifar_binary(folder: Path, n: int = 10, label_bytes: int = 1) -> Tensor:
    folder.mkdir(parents=True)
    names = (
        [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        if label_bytes == 1
        else ["train.bin", "test.bin"]
    )
    classes = 10 if label_bytes == 1 else 100
    images = bytes_like(n, 3, 32, 32)
    for name in names:
        label = labels_of(n, classes).to(torch.uint8)[:, None]
        record = torch.cat([label // 5] * (label_bytes - 1) + [label, images.flatten(1)], 1)
        record.numpy().tofile(folder / name)
    return images


def write_images(
    folder: Path,
    names: tuple[str, ...] = ("cat", "dog"),
    n: int = 5,
    size: int = 8,
    mode: str = "RGB",
    shade: int = 0,
) -> None:
    for position, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(n):
            shape = (size, size) if mode == "L" else (size, size, 3)
            pixels = np.full(shape, 20 * index + 5 * position + shade, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_what_of_a_folder_is_not_read_is_said(tmp_path: Path) -> None:
    for shade, part in enumerate(("train", "Val")):
        write_images(tmp_path / "pets" / part, shade=shade)
    held_out = "test: the images of Val/, as there is no test/"
    assert load(tmp_path / "pets", mirror=False).notes == (held_out,)
    cat = tmp_path / "pets" / "train" / "cat"
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(cat / "clear.png")
    Image.new("P", (8, 8)).save(cat / "moving.gif")
    Image.new("P", (8, 8)).save(cat / "blank.png", transparency=0)
    (cat / ".hidden.gif").touch()
    (cat / "cat.xml").touch()
    data = load(tmp_path / "pets", mirror=False)
    unread = (
        "train/: the transparency of 2 images is not read",
        "train/: files of other kinds are not read: 1 .gif, 1 .xml",
    )
    assert data.notes == (held_out, *unread)
    assert len(data.train_images) == 12
    write_images(tmp_path / "pets" / "test", shade=1)
    assert load(tmp_path / "pets", mirror=False).notes == ("the images of Val/ are not read", *unread)
    *notes, split, repeats = load(tmp_path / "pets" / "train", mirror=False).notes
    assert split.startswith("test: 20% of the images of each class")
    assert repeats == "1 of 12 images occur before in the data"
    assert tuple(notes) == unread


def test_digits_are_split_by_class_without_a_download() -> None:
    data = load("Digits")
    assert (len(data.train_labels), len(data.test_labels)) == (1297, 500)
    assert data.test_labels.bincount().tolist() == [50] * 10
    assert data.shape == (1, 8, 8)
    assert int(data.train_images.max()) == 16
    assert not data.mirror
    assert data.stored_bytes == 1297 * 65
    pixels = data.normalise(data.train_images)
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3
    torch.testing.assert_close(data.denormalise(pixels), data.train_images / 16)
    assert load("digits").fingerprint == data.fingerprint


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_plain_or_gzipped(tmp_path: Path, zipped: bool) -> None:
    parts = write_idx(tmp_path / "raw", zipped)
    assert accepts(tmp_path / "raw")
    data = load(tmp_path / "raw")
    assert torch.equal(data.train_images[:, 0], parts[IDX_NAMES[0]])
    assert torch.equal(data.test_labels, parts[IDX_NAMES[3]])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_idx_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    write_idx(tmp_path / "raw", zipped)
    path = tmp_path / "raw" / (IDX_NAMES[0] + (".gz" if zipped else ""))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="fetch it again"):
        load(tmp_path / "raw")


def test_other_damage_to_idx_files(tmp_path: Path) -> None:
    write_idx(tmp_path / "raw", False)
    (tmp_path / "raw" / IDX_NAMES[0]).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="is not an IDX file"):
        load(tmp_path / "raw")
    (tmp_path / "raw" / IDX_NAMES[3]).unlink()
    write_idx(tmp_path / "other", False)
    (tmp_path / "raw" / IDX_NAMES[0]).write_bytes((tmp_path / "other" / IDX_NAMES[0]).read_bytes())
    with pytest.raises(DataError, match=f"{IDX_NAMES[3]} is missing"):
        load(tmp_path / "raw")


def test_mnist_is_found_under_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    write_idx(tmp_path / "MNIST" / "raw", True)
    data = load("mnist")
    assert data.mean == (0.1307,)
    assert not data.mirror
    write_idx(tmp_path / "FashionMNIST" / "raw", True)
    assert load("fashion_mnist").class_names[0] == "T-shirt/top"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_a_failed_download_says_what_is_missing_and_where_to_put_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))

    def offline(self: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(published.MNIST, "download", offline)
    monkeypatch.setattr(published.CIFAR10, "download", offline)
    monkeypatch.setattr(published.SVHN, "download", offline)
    with pytest.raises(DataError, match=r"is missing and its download failed \(no route to host\); put .*") as caught:
        load(name)
    assert str(tmp_path / "data") in str(caught.value)


def test_cifar_in_its_binary_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    images = write_cifar_binary(tmp_path / "cifar-10-batches-bin")
    data = load("cifar10")
    assert data.train_images.shape == (50, 3, 32, 32)
    assert torch.equal(data.test_images, images)
    assert data.test_labels.tolist() == list(range(10))
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(f"name{i}" for i in range(10)))
    assert load(tmp_path / "cifar-10-batches-bin").class_names[3] == "name3"
    write_cifar_binary(tmp_path / "cifar-100-binary", 100, 2)
    assert load("cifar100").test_labels.tolist() == list(range(100))


def test_damaged_cifar_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar_binary(folder)
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="not a whole number of 3073-byte records"):
        load(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin is missing"):
        load(folder)


def write_cifar_python(root: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Write a small python layout, and tell torchvision its checksums."""
    folder = root / published.CIFAR10.base_folder
    folder.mkdir(parents=True)
    images = bytes_like(10, 3, 32, 32)

    def put(name: str, content: object) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    entry = {"data": images.flatten(1).numpy(), "labels": list(range(10))}
    monkeypatch.setattr(published.CIFAR10, "train_list", [["data_batch_1", put("data_batch_1", entry)]])
    monkeypatch.setattr(published.CIFAR10, "test_list", [["test_batch", put("test_batch", entry)]])
    names = {"label_names": [f"name{i}" for i in range(10)]}
    meta = {"filename": "batches.meta", "key": "label_names", "md5": put("batches.meta", names)}
    monkeypatch.setattr(published.CIFAR10, "meta", meta)
    return images


def test_cifar_in_its_python_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    images = write_cifar_python(tmp_path, monkeypatch)
    data = load("cifar10")
    assert torch.equal(data.train_images, images)
    assert data.class_names[2] == "name2"
    (tmp_path / published.CIFAR10.base_folder / "data_batch_1").write_bytes(b"cut")
    with pytest.raises(DataError, match="differs from the published checksums"):
        load("cifar10")


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    images, labels = bytes_like(10, 3, 32, 32), [10, *range(1, 10)]  # 10 stands for the digit 0
    known = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images.permute(2, 3, 1, 0).numpy(), "y": np.array(labels)[:, None]})
        known[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(published.SVHN, "split_list", known)
    data = load("svhn")
    assert torch.equal(data.train_images, images)
    assert data.test_labels.tolist() == list(range(10))
    assert not data.mirror
    path.write_bytes(b"cut")
    with pytest.raises(DataError, match="differs from the published checksum"):
        load("svhn")


def test_an_image_folder_is_split_by_class(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    assert accepts(tmp_path / "pets")
    data = load(tmp_path / "pets")
    assert data.class_names == ("cat", "dog")
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    assert data.test_labels.tolist() == [0, 1]
    assert load(str(tmp_path / "pets")).fingerprint == data.fingerprint


def test_many_classes_are_split_without_a_look_at_all_labels_for_each() -> None:
    labels = Draws(2).permutation(1200) % 240
    images = torch.arange(1200).view(-1, 1, 1, 1)
    with Sizes() as sizes:
        train, _, test, classes = held_out("own", images, labels, torch.arange(1200), 7)
    assert sizes.total < 30 * 1200
    assert classes.bincount().tolist() == [1] * 240
    order = Draws(7, ("split",)).permutation(1200)
    first = [int(order[labels[order] == index][0]) for index in range(240)]  # of each class in the drawn order
    assert test.flatten().tolist() == sorted(first)
    assert sorted([*train.flatten().tolist(), *first]) == list(range(1200))


def test_what_is_held_out_for_testing_is_said(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    note = "test: 20% of the images of each class, held out of training, seed 3"
    assert image_task(tmp_path / "pets", width=4, seed=3).describe().preprocessing["splits"] == [note]
    assert "splits" not in image_task("digits", width=4).describe().preprocessing


def test_an_image_folder_with_its_own_test_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train", mode="L")
    write_images(tmp_path / "test", names=("dog",), n=2, mode="L")
    data = load(tmp_path)
    assert data.shape == (1, 8, 8)
    assert data.test_labels.tolist() == [1, 1]
    write_images(tmp_path / "test", names=("fox",), n=1)
    with pytest.raises(DataError, match="class 'fox'"):
        load(tmp_path)


def test_a_folder_for_testing_without_images_is_refused_before_images_are_read(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"broken")
    (tmp_path / "test").mkdir()
    said = (
        "test holds no pictures; put pictures of each class into a subfolder, or move test/ away: then a fifth of each"
    )
    with pytest.raises(DataError, match=said):
        load(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "train" / "cat" / "0.png").unlink()
    assert len(load(tmp_path).test_labels) == 2


def test_images_to_test_on_without_classes_are_not_read(tmp_path: Path) -> None:
    """As published competitions have them, without labels."""
    write_images(tmp_path / "train")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "0.png")
    data = load(tmp_path)
    assert len(data.test_labels) == 2
    assert data.notes[0] == "the images of test/ are of no class and are not read"


def test_the_image_folder_in_a_folder_is_named(tmp_path: Path) -> None:
    for place in ("train", "test"):
        write_images(tmp_path / "archive" / "data" / place)
    for path in (tmp_path, tmp_path / "archive"):
        for read in (load, domain_of):
            with pytest.raises((ConfigError, DataError), match=f"and {tmp_path / 'archive' / 'data'} does: give that"):
                read(str(path))
    shutil.copytree(tmp_path / "archive" / "data", tmp_path / "archive" / "more")
    with pytest.raises(DataError, match="holds no image data"):
        load(tmp_path)


def test_validation_images_of_classes_are_tested_on_where_those_for_testing_have_none(tmp_path: Path) -> None:
    for place in ("train", "val"):
        write_images(tmp_path / place)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "0.png")
    data = load(tmp_path)
    assert len(data.test_labels) == len(data.train_labels)
    assert "test: the images of val/, as those of test/ are of no class" in data.notes
    assert "the images of test/ are not read" in data.notes


def test_a_folder_that_holds_but_one_of_images_names_that(tmp_path: Path) -> None:
    write_images(tmp_path / "archive")
    with pytest.raises(DataError, match=r"holds archive/ alone, which holds folders of images: give .*archive$"):
        load(tmp_path)


@pytest.mark.parametrize("inside", ["", "train"])
def test_images_beside_a_table_of_labels_are_told_of_subfolders(tmp_path: Path, inside: str) -> None:
    write_images(tmp_path / inside, names=("images",))
    said = "images of .* are all in one subfolder, images/; .* two classes: put the images of each into one of its own"
    with pytest.raises(DataError, match=f"{said}$"):
        load(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label")
    with pytest.raises(DataError, match=rf"{said}, or in Python give them with the labels of labels\.csv: image_task"):
        load(tmp_path)


def test_loose_images_beside_classes_are_said(tmp_path: Path) -> None:
    write_images(tmp_path / "pets" / "train")
    for place in ("train/0.png", "train/1.JPG", "train/.hidden.png", "2.png", "read.me"):
        (tmp_path / "pets" / place).touch()
    (tmp_path / "pets" / "train" / "cat.png").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "pets" / "train" / "cat" / name).rename(tmp_path / "pets" / "train" / "cat.png" / name)
    found = load(tmp_path / "pets")
    assert [note for note in found.notes if "not read" in note] == [
        "pets/: 1 images beside the subfolders are not read",
        "train/: 2 images beside the subfolders are not read",
    ]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[("Training", "Testing"), ("TRAIN", "Test"), ("train", "valid"), ("training", "Validation")],
        *[("training_set", "test_set"), ("train_data", "test-data"), ("trainset", "testset"), ("train", "validate")],
        *[("Train_Set", "Validation_Set"), ("seg_train/seg_train", "seg_test/seg_test"), ("images train", "eval")],
        *[("train", "dev"), ("Train", "Dev set")],
    ],
)
def test_splits_of_a_folder_go_by_the_fields_names(tmp_path: Path, train: str, test: str) -> None:
    write_images(tmp_path / train)
    write_images(tmp_path / test, names=("dog",), n=2)
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.test_labels.tolist() == [1, 1]
    tested = f"test: the images of {test.partition('/')[0]}/"
    assert any(note.startswith(tested) for note in data.notes) == (test.lower() not in ("test", "testing"))


@pytest.mark.parametrize(("place", "name"), [(".", "dev"), ("dev", "early")])
def test_classes_may_be_called_train_and_dev(tmp_path: Path, place: str, name: str) -> None:
    write_images(tmp_path, names=("train", "plane"))
    write_images(tmp_path / place, names=(name,), shade=1)
    data = load(tmp_path)
    assert data.class_names == ("dev", "plane", "train")
    shutil.rmtree(tmp_path / "plane")
    assert load(tmp_path).class_names == ("dev", "train")


@pytest.mark.parametrize("mark", [".", "_", "__", "-"])
def test_folders_set_aside_are_no_splits(tmp_path: Path, mark: str) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / f"{mark}test", shade=1)
    assert "held out of training, seed 0" in " ".join(load(tmp_path).notes)
    write_images(tmp_path / "test", shade=2)
    write_images(tmp_path / f"{mark}train", shade=3)
    assert load(tmp_path).train_images.max() == 85


def test_folders_beside_which_nothing_tests_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path, names=("seg_train", "mail_train", "test1"))
    assert load(tmp_path).class_names == ("mail_train", "seg_train", "test1")


def test_folders_of_the_same_subfolders_may_be_splits(tmp_path: Path) -> None:
    for shade, part in enumerate(("my_train", "my_test")):
        write_images(tmp_path / "splits" / part, shade=shade)
        write_images(tmp_path / "classes" / part.removeprefix("my_t"), shade=shade)
    said = r"my_test/ and my_train/ hold the same subfolders \(cat, dog\). If these are the "
    with pytest.raises(DataError, match=said):
        load(tmp_path / "splits")
    read = load(tmp_path / "classes")
    note = "est/ and rain/ are classes, whatever their subfolders, which are the same (cat, dog)"
    assert (read.class_names, note in read.notes) == (("est", "rain"), True)
    shutil.rmtree(tmp_path / "splits" / "my_test" / "cat")
    assert load(tmp_path / "splits").class_names == ("my_test", "my_train")


def test_bad_image_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "mixed")
    Image.fromarray(np.zeros((9, 8, 3), dtype=np.uint8)).save(tmp_path / "mixed" / "cat" / "9.png")
    with pytest.raises(DataError, match=r"2 sizes \(10 of 8 x 8, 1 of 9 x 8\)"):
        load(tmp_path / "mixed")
    assert load(tmp_path / "mixed", size=4).shape == (3, 4, 4)
    write_images(tmp_path / "empty")
    (tmp_path / "empty" / "eel").mkdir()
    with pytest.raises(DataError, match="eel"):
        load(tmp_path / "empty")
    write_images(tmp_path / "broken")
    (tmp_path / "broken" / "cat" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        load(tmp_path / "broken")
    write_images(tmp_path / "few", n=1)
    with pytest.raises(DataError, match="class 'cat' has too few images to hold one out"):
        load(tmp_path / "few")


def test_what_systems_leave_in_folders_is_no_class_and_no_image(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    before = load(tmp_path / "pets")
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "pets" / hidden).mkdir()
        (tmp_path / "pets" / "cat" / hidden).mkdir()
        shutil.copy(tmp_path / "pets" / "cat" / "0.png", tmp_path / "pets" / "cat" / hidden / "0.png")
    (tmp_path / "pets" / "cat" / "._0.png").write_bytes(b"a resource fork")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    assert load(tmp_path / "pets").fingerprint == before.fingerprint
    assert before.class_names == load(tmp_path / "pets").class_names


def test_a_path_is_no_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load(Path("digits")).name == load("./digits").name == str(tmp_path / "digits")


def test_arrays_of_any_strides_and_byte_order(tmp_path: Path) -> None:
    images, labels = np.arange(20 * 64, dtype="f4").reshape(20, 1, 8, 8), np.arange(20) % 2
    expected = load((images[..., ::-1].copy(), labels)).fingerprint
    assert load((images[..., ::-1], labels)).fingerprint == expected
    assert load((images[..., ::-1].astype(">f4"), labels.astype(">i8"))).fingerprint == expected
    fixed = images[..., ::-1].copy()
    fixed.setflags(write=False)
    assert load((fixed, labels)).fingerprint == expected
    for same in (labels.astype(object), labels.astype(str)):
        assert load((images[..., ::-1], same)).fingerprint == expected
    with pytest.raises(DataError, match=r"holds an array of .*; expected one of numbers"):
        load((images.astype(str), labels))


def test_arrays_that_may_be_larger_than_memory_are_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", bytes_like(10, 1, 6, 5).numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.arange(10) % 2
    labels.flags.writeable = False
    data = load((mapped, labels), (mapped, labels))
    assert data.train_images.data_ptr() == mapped.ctypes.data


def test_only_folders_are_hidden_by_two_underscores(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    count = len(load(tmp_path / "pets").train_images)
    (tmp_path / "pets" / "cat" / "0.png").rename(tmp_path / "pets" / "cat" / "__0.png")
    assert len(load(tmp_path / "pets").train_images) == count


def test_a_folder_is_told_by_the_images_that_are_read(tmp_path: Path) -> None:
    for place in ("deep/a/session", "hidden/__pycache__", "hidden/a/.thumbnails", "others/docs/img", "others/raw/.x"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").touch()
    assert folders.is_image_folder(tmp_path / "deep")
    assert not folders.is_image_folder(tmp_path / "hidden")
    assert not folders.is_image_folder(tmp_path / "others")


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    before = load(tmp_path / "pets").fingerprint
    for name, target in (("back", ".."), ("self", ".")):
        (tmp_path / "pets" / "cat" / name).symlink_to(target, target_is_directory=True)
    assert load(tmp_path / "pets").fingerprint == before


def test_images_deeper_in_a_class_are_found_in_a_fixed_order(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "dog" / "more").mkdir()
    Image.fromarray(np.full((8, 8, 3), 9, dtype=np.uint8)).save(tmp_path / "pets" / "dog" / "more" / "0.PNG")
    ours = files.read_image_folder(tmp_path / "pets", None)
    theirs = published.ImageFolder(str(tmp_path / "pets"))
    assert ours[1].tolist() == theirs.targets
    assert torch.equal(ours[0], torch.stack([files.decode(path) for path, _ in theirs.samples]))


@pytest.mark.parametrize("values", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_a_byte_are_refused_rather_than_cut_off(tmp_path: Path, values: type) -> None:
    write_images(tmp_path / "scan", mode="L")
    deep = Image.fromarray(np.full((8, 8), 1000, dtype=values))
    deep.save(tmp_path / "scan" / "cat" / "0.png" if values is np.uint16 else tmp_path / "scan" / "cat" / "9.tiff")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        load(tmp_path / "scan")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        load(Pairs([deep] * 4, [0, 1, 0, 1]))


@pytest.mark.parametrize("most", [2**30, 0])
def test_all_damaged_pictures_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(files, "IN_MEMORY", most)
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "pets")
    whole = (tmp_path / "pets" / "cat" / "0.png").read_bytes()
    for name in ("cat/1.png", "dog/0.png"):  # whose headers are whole
        (tmp_path / "pets" / name).write_bytes(whole[: len(whole) - 30])
    with pytest.raises(DataError, match=r"2 files in .*pets cannot be read as images: cat/1\.png \(.*, dog/0\.png \("):
        files.read_image_folder(tmp_path / "pets", None)
    for name in ("cat/1.png", "dog/0.png"):
        (tmp_path / "pets" / name).write_text("no image")
    said = r"cat/1\.png \(cannot identify image file\), dog/0\.png .*\); replace or remove them"
    with pytest.raises(DataError, match=f"{said}$"):
        files.read_image_folder(tmp_path / "pets", None)
    Image.new("RGB", (9, 9)).save(tmp_path / "pets" / "dog" / "9.png")
    with pytest.raises(DataError, match=f"{said}; besides, images in .* have 2 sizes"):
        files.read_image_folder(tmp_path / "pets", None)
    assert not list((tmp_path / "cache").rglob("*.bin*"))


def test_a_picture_too_large_to_decode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "pets")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(
        DataError, match=r"10 files in .* cannot be read as images: cat/0\.png \(.* and 5 more; replace"
    ):
        load(tmp_path / "pets")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "size is a whole number of at least 1, got 0"),
        (-3, "got -3"),
        (10**5, "size is at most 4,096, got 100,000"),
        ("16", "got '16'"),
        (1.5, "got 1.5"),
        (True, "got True"),
    ],
)
def test_sizes_that_no_image_has(tmp_path: Path, size: Any, message: str) -> None:
    write_images(tmp_path / "pets")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "pets", size=size)


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    pair = (torch.rand(10, 1, 4, 4), labels_of(10, 2))
    with pytest.raises(ConfigError, match="a size is for the images of a folder"):
        load("digits", size=4)
    for source, said in (("digits", "brings its own"), (tmp_path / "pets", "in test/"), ("a.npz", "as test_images")):
        with pytest.raises(ConfigError, match=f"takes no test data beside it.* {said}"):
            load(source, pair)
    with pytest.raises(ConfigError, match="not a name or path"):
        load(pair, "digits")


def test_what_a_killed_decoding_left_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "IN_MEMORY", 100)
    write_images(tmp_path / "net" / "train", n=6)
    write_images(tmp_path / "net" / "test", n=2)
    left = tmp_path / "cache" / "images" / ".some.bin.abcd.mmdistill-part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of the images")
    load(tmp_path / "net", size=8)
    assert not left.exists()
    assert len(list(left.parent.iterdir())) == 2


def test_a_large_folder_is_mapped_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "net"
    write_images(root / "train", n=6)
    write_images(root / "val", n=2)
    Image.fromarray(np.full((16, 12), 7, dtype=np.uint8)).save(root / "train" / "cat" / "9.png")
    small = load(root, size=8)
    monkeypatch.setattr(files, "IN_MEMORY", 100)
    data = load(root, size=8)
    assert data.shape == (3, 8, 8)
    assert torch.equal(data.train_images, small.train_images)
    assert (data.fingerprint, data.mean, data.std) == (small.fingerprint, small.mean, small.std)
    decoded = sorted((tmp_path / "cache" / "images").iterdir())
    assert sorted(path.stat().st_size for path in decoded) == [4 * 192, 13 * 192]
    with monkeypatch.context() as patched:
        patched.setattr(files, "decode", lambda path: pytest.fail("decoded again"))
        load(root, size=8)
    task = image_task(root, size=8, width=4)
    assert torch.equal(task.select(torch.tensor([3])).inputs, data.normalise(data.train_images[3:4]))
    Image.fromarray(np.full((4, 4, 3), 99, dtype=np.uint8)).save(root / "train" / "cat" / "0.png")
    assert not torch.equal(load(root, size=8).train_images[0], data.train_images[0])
    with pytest.raises(DataError, match="move the test images to a folder test/"):
        load(root / "train", size=8)


def test_a_large_folder_without_test_images_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "pets", n=6)
    monkeypatch.setattr(files, "IN_MEMORY", 100)
    monkeypatch.setattr(files, "_decode_to_shape", lambda path, shape: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"pets holds 12 images, 2,304 bytes, .* in memory \(up to 100 bytes\); move"):
        load(tmp_path / "pets", size=8)
    assert not list(tmp_path.rglob("*.bin"))


def test_images_are_decoded_once_whatever_bytes_their_names_are(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b\udcff"]
    for path in paths:
        path.touch()
    keys = {files._listing_key([str(path)], (1, 8, 8)) for path in paths}
    assert len(keys) == 2


def test_the_whole_of_a_huge_set_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.image.task.WHOLE_MOST", 1000)
    task = image_task("digits", width=4)
    with pytest.raises(UnsupportedError, match="leave the baseline 'whole' out"):
        task.evaluate(None, "convnet", Draws(0), 1, {})


def test_moments_do_not_cancel() -> None:
    images = 1e6 + torch.randn(1500, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = channel_moments(images, 1.0)
    assert mean == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert std == pytest.approx(images.std((0, 2, 3), correction=0).tolist(), abs=1e-5)


@pytest.mark.parametrize("unit", [1e-3, 1e-7, 1e-12])
def test_moments_of_dark_images_are_exact(unit: float) -> None:
    images = unit * torch.rand(50, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[:, 1] = unit / 3
    mean, std = channel_moments(images, 1.0)
    assert mean == pytest.approx(images.mean((0, 2, 3)).tolist(), rel=1e-5, abs=0)
    assert std == pytest.approx([float(images[:, 0].std(correction=0)), 1.0], rel=1e-5, abs=0)


@pytest.mark.parametrize(("shape", "scale"), [((1, 28, 28), 255.0), ((3, 32, 32), 255.0), ((2, 8, 8), 16.0)])
def test_moments_of_bytes_are_exact(shape: tuple[int, ...], scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.image.moments.MOMENTS_CHUNK", 70)
    images = bytes_like(300, *shape)
    images[:, -1] //= 3
    for found in (images, torch.full_like(images, 7)):
        mean, std = channel_moments(found, scale)
        whole = found.double() / scale
        assert mean == tuple(round(value, 6) for value in whole.mean((0, 2, 3)).tolist())
        assert std == tuple(round(value, 6) or 1.0 for value in whole.std((0, 2, 3), correction=0).tolist())
        assert (mean, std) == channel_moments(found.double(), scale)


def test_moments_of_large_images_are_read_with_the_memory_of_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def split(images: Tensor, size: int) -> tuple[Tensor, ...]:
        seen.append(size)
        return images.split(size)

    monkeypatch.setattr(torch, "split", split)
    for side, expected in ((32, 1000), (64, 1000), (224, 81)):
        for kind in (torch.uint8, torch.float32):
            channel_moments(torch.zeros(2, 3, side, side, dtype=kind), 1.0)
            assert seen.pop() == expected


def test_safetensors_of_images(tmp_path: Path) -> None:
    tensors = {"images": bytes_like(20, 1, 8, 8), "labels": labels_of(20, 4)}
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(tensors, path)
    assert accepts(path)
    assert len(load(path).test_labels) == 4
    safetensors.torch.save_file({**tensors, "test_images": bytes_like(4, 1, 8, 8)}, path)
    with pytest.raises(DataError, match="holds test_images alone"):
        load(path)
    extra = {"test_images": bytes_like(4, 1, 8, 8), "test_labels": labels_of(4)}
    safetensors.torch.save_file({**tensors, **extra}, path)
    assert len(load(path).train_labels) == 20
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    assert not accepts(path)
    with pytest.raises(DataError, match=r"images and labels .*, got x"):
        load(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="is damaged"):
        load(path)


def test_images_stay_as_they_were_read_when_their_file_is_overwritten(tmp_path: Path) -> None:
    tensors = {"images": bytes_like(20, 1, 8, 8), "labels": labels_of(20)}
    tensors |= {"test_images": bytes_like(4, 1, 8, 8), "test_labels": labels_of(4)}
    path = tmp_path / "mine.SafeTensors"
    safetensors.torch.save_file(tensors, path)
    data = load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(data.train_images, bytes_like(20, 1, 8, 8))
    assert torch.equal(data.test_images, bytes_like(4, 1, 8, 8))
    assert torch.equal(data.train_labels, labels_of(20))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_safetensors_of_images_in_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"b\xe9") / "mine.safetensors"
    path.parent.mkdir()
    path.write_bytes(safetensors.torch.save({"images": bytes_like(20, 1, 8, 8), "labels": labels_of(20)}))
    assert accepts(path)
    assert len(load(path).train_labels) == 10


@pytest.mark.parametrize("ending", [".npz", ".pt"])
def test_archives_of_numpy_and_torch(tmp_path: Path, ending: str) -> None:
    tensors = {"images": bytes_like(20, 8, 8), "labels": labels_of(20)}
    path, expected = tmp_path / f"mine{ending}", load((tensors["images"], tensors["labels"]))

    def save(held: dict[str, Any]) -> None:
        if ending == ".pt":
            torch.save(held, path)
        else:
            np.savez(path, **{name: np.asarray(value) for name, value in held.items()})

    save(tensors)
    assert domain_of(str(path)).name == "image"
    assert load(path).fingerprint == expected.fingerprint
    save({**tensors, "test_images": tensors["images"][:4], "test_labels": tensors["labels"][:4], "more": torch.ones(1)})
    assert len(load(path).train_labels) == 20
    if ending == ".pt":
        save({"images": tensors["images"].numpy(), "labels": tensors["labels"].numpy()})
        assert accepts(path)
        assert load(path).fingerprint == expected.fingerprint
    save({**tensors, "labels": ["cat"] * 20})
    with pytest.raises(DataError, match="mine"):
        load(path)
    save({"x": torch.ones(1)})
    assert not accepts(path)
    with pytest.raises(DataError, match=r"named images and labels \(and test_images .* got x"):
        load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not accepts(path)
    with pytest.raises(DataError, match="is damaged"):
        load(path)


@pytest.mark.parametrize("ending", [".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("Test.Data", "Testing-Targets"),
        ("images", "labels", "images_val", "labels_val"),
    ],
)
def test_files_of_splits_are_tested_on_their_own(tmp_path: Path, ending: str, names: tuple[str, ...]) -> None:
    path, values = tmp_path / f"mine{ending}", [bytes_like(20, 8, 8), labels_of(20), bytes_like(6, 8, 8), labels_of(6)]
    names = names if len(names) == 4 else ("TRAIN_IMAGE", "train-label", *names)
    save_tensors(path, dict(zip(names, values, strict=True)) | {"more": torch.ones(1)})
    assert domain_of(str(path)).name == "image"
    found, expected = load(path), load((values[0], values[1]), test=(values[2], values[3]))
    assert (found.fingerprint, found.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    assert len(found.test_labels) == 6
    validated = ["test: the split val, as there is no test"] if "images_val" in names else []
    assert [note for note in found.notes if "val" in note] == validated


def save_tensors(path: Path, held: dict[str, Any]) -> None:
    if path.suffix == ".pt":
        torch.save(held, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(value) for name, value in held.items()})
    else:
        safetensors.torch.save_file(held, path)


def test_dicts_of_splits(tmp_path: Path) -> None:
    train, test, path = (bytes_like(20, 8, 8), labels_of(20)), (bytes_like(6, 8, 8), labels_of(6)), tmp_path / "a.pt"
    expected = load(train, test=test)
    for images, labels in (("images", "labels"), ("x", "y"), ("data", "targets"), (0, 1)):
        named = [part if images == 0 else dict(zip((images, labels), part, strict=True)) for part in (train, test)]
        held = {"train": named[0], "test": named[1], "val": named[0], "meta": {"version": 2}}
        torch.save(held, path)
        if images != 0:
            assert domain_of(str(path)).name == "image"
        for source in (path, held):
            found = load(source)
            assert (found.fingerprint, found.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
            assert found.notes[:2] == ("the split val is not read", "the split meta is not read")
    for held, said in (
        (
            {"train": {"images": train[0]}},
            r"'train', which has images; expected are one of images, image, .* and one of labels, label, ",
        ),
        ({"train": {"images": train[0], "x": train[0], "labels": train[1]}}, r"which has images, x, labels; expected"),
        ({"train_images": train[0], "labels": train[1], "test_x": test[0]}, "test_x alone; test images need"),
        ({"images": train[0], "labels": train[1], "x_train": train[0]}, "images and x_train, both images of train"),
        ({"test": {"images": train[0], "labels": train[1]}}, "splits named train and test of such, got test"),
    ):
        torch.save(held, path)
        with pytest.raises(DataError, match=said):
            load(path)
    torch.save({"train": {"x": torch.ones(3, 2), "edge_index": torch.zeros(2, 0), "y": labels_of(3)}}, path)
    assert not accepts(path)


def test_nothing_is_run_from_torchs_and_numpys_files(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"images": Runs(), "labels": labels_of(2)}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", images=np.array([Runs()], dtype=object), labels=np.arange(2))
    for path in (tmp_path / "a.pt", tmp_path / "a.npz"):
        assert accepts(path)
        with pytest.raises(DataError, match="cannot be read") as refused:
            load(path)
        assert "weights_only" not in str(refused.value)  # torch's advice is to run the code after all
    assert not (tmp_path / "ran").exists()


def test_an_array_of_more_numbers_than_there_are_is_refused(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**300,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", head.getvalue())
        archive.writestr("labels.npy", head.getvalue())
    with pytest.raises(DataError, match="is damaged"):
        load(tmp_path / "a.npz")


def test_other_files_of_tensors_are_told_what_images_need(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", bytes_like(2, 8, 8).numpy())
    with pytest.raises(ConfigError, match=r"images need labels: numpy\.savez"):
        domain_of(str(tmp_path / "a.npy"))
    torch.save((bytes_like(2, 8, 8), labels_of(2)), tmp_path / "a.pt")
    assert domain_of(str(tmp_path / "a.pt")).name == "graph"
    torch.save({"pictures": bytes_like(2, 8, 8), "targets": labels_of(2)}, tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"a file of images has tensors named images and labels"):
        load_graph(tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"holds a tuple; of images save a dict"):
        load(tmp_path / "a.pt")


class Pairs:
    """A map-style data set, as users write them."""

    def __init__(self, samples: list[Any], labels: list[Any]) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.samples[index], self.labels[index]


def test_a_map_style_data_set_of_tensors_pictures_or_arrays() -> None:
    pixels = bytes_like(10, 6, 5)
    labels = [int(label) for label in labels_of(10, 2)]
    expected = None
    for samples in (
        [p[None] for p in pixels],
        [Image.fromarray(p.numpy()) for p in pixels],
        [p.numpy() for p in pixels],
    ):
        data = load(Pairs(samples, labels))
        assert data.shape == (1, 6, 5)
        expected = expected or data.fingerprint
        assert data.fingerprint == expected
    data = load(Pairs(list(pixels), labels), Pairs(list(pixels[:4]), labels[:4]))
    assert len(data.test_labels) == 4


def test_a_torchvision_data_set_brings_its_class_names(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert load(published.ImageFolder(str(tmp_path))).class_names == ("cat", "dog")


def test_the_classes_of_test_data_are_told_by_name() -> None:
    train, test = (Pairs(list(bytes_like(n, 6, 5)), [i % 3 for i in range(n)]) for n in (30, 6))
    train.classes, test.classes = ["a", "b", "c"], ("c", "a")  # type: ignore[attr-defined]
    test.labels = [0, 1, 0, 1, 0, 0]
    assert load(train, test).test_labels.tolist() == [2, 0, 2, 0, 2, 2]
    test.classes = ["c", "d"]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="the test data have a class 'd' that the training data lack"):
        load(train, test)
    test.classes = ["a"]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="name 1 classes and have labels from 0 to 1"):
        load(train, test)
    for unnamed in (3, []):
        train.classes = unnamed  # type: ignore[attr-defined]
        assert load(train, test).class_names == ("0", "1", "2")


def test_parts_of_a_data_set_have_its_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", names=("ant", "bee", "cat", "dog"))
    write_images(tmp_path / "test", names=("bee", "dog"), n=2)
    whole, test = (published.ImageFolder(str(tmp_path / part)) for part in ("train", "test"))
    for train in (Subset(whole, range(20)), ConcatDataset([whole, Subset(whole, [0])])):
        for names in (None, whole.classes):
            read = load(train, test, class_names=names)
            assert read.class_names == ("ant", "bee", "cat", "dog")
            assert read.test_labels.tolist() == [1, 1, 3, 3]
    images = bytes_like(20, 3, 8, 8)
    assert load((images, labels_of(20, 4)), test, class_names=whole.classes).test_labels.tolist() == [1, 1, 3, 3]
    without_ant = Subset(whole, range(5, 20))
    read = load(without_ant, test)
    assert (read.class_names, read.test_labels.tolist()) == (("bee", "cat", "dog"), [0, 0, 2, 2])
    assert "classes without a training image are left out: ant" in read.notes
    assert load(without_ant, Subset(whole, [5, 19])).test_labels.tolist() == [0, 2]
    assert load(without_ant, Pairs(list(images[:2]), [1, 3])).test_labels.tolist() == [0, 2]
    with pytest.raises(DataError, match="have a class 'ant' that the training data lack"):
        load(without_ant, whole)
    with pytest.raises(DataError, match=r"join data sets of the classes \(.*\) and \(.*\), whose labels differ"):
        load(ConcatDataset([whole, test]))


def test_parts_of_a_data_set_whose_labels_are_transformed_do_not_have_its_classes(tmp_path: Path) -> None:
    write_images(tmp_path, names=("ant", "bee", "cat", "dog"))
    images_alone = published.ImageFolder(str(tmp_path), transform=lambda image: image)
    halved = published.ImageFolder(str(tmp_path), target_transform=lambda label: label // 2)
    together = Pairs(list(bytes_like(20, 6, 5)), [index % 2 for index in range(20)])
    together.classes, together.transforms = images_alone.classes, lambda image, label: (image, label)  # type: ignore[attr-defined]
    for whole in (halved, together):
        for part in (Subset(whole, range(20)), ConcatDataset([whole]), ConcatDataset([Subset(whole, range(20))])):
            assert load(part).class_names == ("0", "1")
    assert load(Subset(images_alone, range(20))).class_names == ("ant", "bee", "cat", "dog")


class Flipped(Pairs):
    """A data set whose samples a random transform changes at each reading."""

    def __init__(self, samples: list[Any], labels: list[Any]) -> None:
        super().__init__(samples, labels)
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample, label = super().__getitem__(index)
        return sample.flip(-1) if torch.rand((), generator=self.generator) < 0.5 else sample, label


def test_samples_that_change_with_each_reading_are_refused() -> None:
    images, labels = list(torch.rand(40, 1, 4, 4)), labels_of(40, 2).tolist()
    said = r"the {} data: item \d+ changes from one reading to the next, .* give the data set without it"
    with pytest.raises(DataError, match=said.format("training")):
        load(Flipped(images, labels))
    with pytest.raises(DataError, match=said.format("test")):
        load(Pairs(images, labels), Flipped(images, labels))
    images[0][0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        load(Pairs(images, labels))


def test_labels_may_be_a_column_of_a_table() -> None:
    images, labels = torch.rand(10, 1, 8, 8), labels_of(10, 2)
    column = pd.DataFrame({"label": labels.tolist()}, index=range(5, 15))["label"]
    assert torch.equal(load((images, column)).train_labels, load((images, labels)).train_labels)
    assert torch.equal(load((images, labels), (images, column)).test_labels, labels)
    with pytest.raises(DataError, match="label 1 is no class index but nan"):
        load((images[:2], pd.Series([0, None])))


def test_samples_are_listed_in_columns_of_tables_and_arrays_of_objects(tmp_path: Path) -> None:
    pixels, labels = bytes_like(10, 6, 5).numpy(), labels_of(10, 2).tolist()
    expected = load((pixels, labels))
    pictures = [Image.fromarray(part) for part in pixels]
    files = [tmp_path / f"{index}.png" for index in range(10)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    coded = [{"bytes": file.read_bytes(), "path": "0.png"} for file in files]
    for samples in (pictures, list(pixels), pixels.tolist(), files, list(map(str, files)), coded):
        objects = np.empty(10, dtype=object)
        for index, sample in enumerate(samples):
            objects[index] = sample
        columns = (samples, objects, pd.DataFrame({"images": samples})["images"], UserList(samples))
        for column in columns:
            assert load((column, pd.Series(labels))).fingerprint == expected.fingerprint
        assert load((samples, UserList(labels))).fingerprint == expected.fingerprint
        assert load(Pairs(list(samples), labels)).fingerprint == expected.fingerprint
    assert load((pixels.astype(object), labels)).fingerprint == expected.fingerprint
    for samples in (pictures, files, coded):
        assert load((samples, labels), size=4).shape == (1, 4, 4)
        assert load(Pairs(list(samples), labels), size=4).shape == (1, 4, 4)


def test_two_pairs_are_to_train_and_to_test_on() -> None:
    images, labels = bytes_like(10, 6, 5), labels_of(10, 2)
    train, test = (images[:6].numpy(), labels[:6, None].numpy()), (images[6:].numpy(), labels[6:, None].numpy())
    expected = load(train, test)
    listed = [[part.tolist() for part in pair] for pair in (train, test)]
    mixed = [(images, part.tolist()) for images, part in (train, test)]
    for pairs in ((train, test), [train, list(test)], mixed, listed):
        read = load(pairs)  # type: ignore[arg-type]
        assert (read.fingerprint, read.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    with pytest.raises(ConfigError, match="the data bring their own test data"):
        load((train, test), test)
    alone = load(([images[0].numpy(), images[1].numpy()] * 2, [0, 1] * 2), train)
    assert len(alone.train_images) == 4


class ByName:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: str) -> int:
        return {"images": 0, "labels": 1}[name]


def test_bad_samples() -> None:
    pixel = torch.zeros(1, 4, 4)
    cases = [
        (Pairs([], []), "is empty"),
        (Pairs([pixel, torch.zeros(1, 4, 5)], [0, 1]), "item 1 is"),
        (Pairs([torch.zeros(4)], [0]), "expected \\(channels, height, width\\)"),
        (Pairs(["a"], [0]), "item 0 is the path 'a', and there is no such file"),
        (Pairs([{"path": None}], [0]), "holds a NoneType; expected a tensor, an array, a PIL image or the path of one"),
        (Pairs([{"bytes": b"?"}], [0]), r"item 0 cannot be read as an image \(cannot identify image file\); replace"),
        (Pairs([[[0], [0, 1]]], [0]), "item 0 is a list whose rows have several lengths"),
        ((pixel, pixel, [0], [0]), r"got 4 of them; of four give two pairs, \(train_images, .* test=\(test_images"),
        (([0, 1], [pixel[0], pixel[0]]), r"expected images|item 0 holds a int; expected a tensor, an array"),
        (Pairs([pixel] * 2, ["cat", 0]), "label 1 is 0, others are names such as 'cat'"),
        (Pairs([pixel], ["cat"]), "the single class 'cat'"),
        (Pairs([pixel], [0.5]), "no class index but 0.5"),
        (Pairs([pixel], [float("nan")]), "no class index but nan"),
        (DataLoader(TensorDataset(pixel, torch.zeros(1)), 1), "give the data set that it loads"),
        ({"images": pixel}, "the data hold images; expected are one of images, image"),
        ({"pictures": pixel}, "the splits train and test, or images and labels, got pictures"),
        (pd.DataFrame({"images": [0]}), r"give its images and labels as a pair, \(data"),
        ([pixel], "no \\(sample, label\\) pair"),
        (iter([pixel]), "no map-style data set"),
        (ByName(), r"ByName is no pair of images and labels, .* by number .* item 0 failed \(KeyError: 0\)"),
        ((pixel,), r"expected \(images, labels\), got 1"),
        (("a", [0]), "images are a tensor, an array or a list of samples, got str"),
    ]
    for source, message in cases:
        with pytest.raises(DataError, match=message):
            load(source)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a list of texts in the order of the class indices, got tensor"):
        load((pixel, [0]), class_names=pixel)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_that_stand_last_are_brought_forward(channels: int, tmp_path: Path) -> None:
    images, labels = torch.rand(10, channels, 8, 6 if channels > 1 else 8), labels_of(10, 2)
    last = images.permute(0, 2, 3, 1)
    for train, test in [(last, last), (last, images), (images, last)]:
        read = load((train, labels), (test, labels))
        assert torch.equal(read.train_images, images)
        assert torch.equal(read.test_images, images)
        moved = [name for name, part in (("training images", train), ("test images", test)) if part is last]
        assert [note for note in read.notes if "is read as" in note] == [
            f"{name}: {tuple(last.shape)} is read as (N, height, width, channels)" for name in moved
        ]
    np.savez(tmp_path / "medical.npz", train_images=last.numpy(), train_labels=labels[:, None].numpy())
    held_out = load(str(tmp_path / "medical.npz"))
    assert len(held_out.train_images) + len(held_out.test_images) == 10
    assert held_out.shape == images.shape[1:]
    samples = load([(sample.numpy(), label) for sample, label in zip(last, labels.tolist(), strict=True)])
    assert samples.shape == images.shape[1:]


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.uint16])
def test_whole_numbers_up_to_255_are_bytes(kind: torch.dtype) -> None:
    images, labels = bytes_like(10, 6, 5), labels_of(10, 2)
    read, expected = (
        load((images.to(kind), labels), (images.to(kind), labels)),
        load((images, labels), (images, labels)),
    )
    assert (read.fingerprint, read.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    notes = [f"{part} images: whole numbers from 0 to 255 are read as bytes" for part in ("training", "test")]
    assert [note for note in read.notes if note not in expected.notes] == notes
    with pytest.raises(DataError, match=r"test images of .* got torch.*int.* from 0 to 257"):
        load((images.to(kind), labels), ((torch.arange(30).view(1, 6, 5) * 257 // 29).to(kind), labels[:1]))


class LargestResult(TorchDispatchMode):
    """Records the largest number of values that an operation returns."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        result = func(*args, **(kwargs or {}))
        self.values = max(self.values, result.numel() if isinstance(result, Tensor) else 0)
        return result


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int16, torch.int64, torch.float32, torch.float16])
def test_the_range_of_images_is_found_without_a_copy(kind: torch.dtype) -> None:
    images = torch.arange(100).view(10, 10).to(kind)
    for view in (images, images.t(), images[:, :1].expand(10, 10)):
        with LargestResult() as largest:
            assert extremes(view) == (float(view.min()), float(view.max()))
        assert largest.values == 1


def test_the_range_of_unsigned_numbers_beyond_those_with_a_sign_is_positive() -> None:
    assert extremes(torch.tensor([1, 2**63 + 2**62], dtype=torch.uint64)) == (1.0, 1.5 * 2**63)


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 4, 4), (12, 100, 1), (5, 6, 7), (1, 3, 3)])
def test_channels_stay_where_they_may_stand_first(shape: tuple[int, ...]) -> None:
    images, labels = torch.rand(10, *shape), labels_of(10, 2)
    read = load((images, labels), (images, labels))
    assert torch.equal(read.train_images, images)
    assert not any("is read as" in note for note in read.notes)


@pytest.mark.parametrize("shape", [(8, 4, 4), (8, 3, 3), (8, 2, 3), (5, 4, 3), (64, 1, 3)])
def test_channels_that_may_stand_last_of_small_sides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"looks like \(N, height, width, channels\) .* images.permute\(0, 3, 1, 2\)"):
        load((torch.rand(10, *shape), labels_of(10, 2)))


def test_bad_tensors() -> None:
    # Seeded, since a message with a pixel below 0.0001 would have an exponent.
    images, labels = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), labels_of(10, 2)
    broken = images.clone()
    broken[3, 0, 1, 1] = torch.nan
    assert torch.equal(load((images, labels[:, None])).train_labels, load((images, labels)).train_labels)
    cases = [
        ((images, labels * 0), "the single class 0"),
        ((images, labels[:9]), "expected images"),
        ((images, labels + 0.5), "the training data: label 0 is no class index but 0.5"),
        ((images, labels / 0.0), "label 0 is no class index but nan"),
        ((broken, labels), "1 hold NaN or infinite pixels, the first at index 3"),
        ((images.long() - 1, labels), r"must be bytes \(0 to 255\) or floats, got torch.int64 from -1 to -1"),
        (
            ((images * 65535).to(torch.uint16), labels),
            r"got torch.uint16 from .* images.astype\('float32'\) makes floats",
        ),
    ]
    for source, message in cases:
        with pytest.raises(DataError, match=message):
            load(source)
    with pytest.raises(DataError, match="up to 1, got 0 to 2"):
        load((images, labels), (images[:3], torch.arange(3)))
    with pytest.raises(DataError, match="they must agree"):
        load((images, labels), (torch.rand(4, 1, 5, 5), labels[:4]))
    pixels = (images * 255).to(torch.uint8)
    with pytest.raises(
        DataError, match=r"are uint8 from \d to 2\d\d, test images float32 from 0.* to 0\.\d+; give both"
    ):
        load((pixels, labels), (images, labels))
    with pytest.raises(DataError, match=r"are float32 .*, test images uint8 .* in one type and scale"):
        load((images, labels), (pixels, labels))
    with pytest.raises(DataError, match="in one type and scale"):
        load((images, labels), (pixels.float(), labels))
    with pytest.raises(DataError, match="no training image of class b"):
        build("named", (images, labels * 2), None, class_names=("a", "b", "c"))
    with pytest.raises(DataError, match=r"class 0: the labels run from 1 to 2, .* subtract 1 from each label"):
        build("numbered", (images, labels + 1), None)
    with pytest.raises(DataError, match=r"up to 1, got 1 to 2: the labels run from 1 to 2"):
        load((images, labels + 1), class_names=["a", "b"])
    assert torch.equal(load((images, labels.tolist()), (images, labels.tolist())).test_labels, labels)
    with pytest.raises(DataError, match=r"the training data: label 1 is no class index but 0\.5"):
        load((images, [0, 0.5] * 5))  # type: ignore[arg-type,list-item]


def test_unknown_names_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        load("mnits")
    (tmp_path / "photos").mkdir()
    for name, said in (("photo", "nor is there a file or folder 'photo'"), ("./photo", "an existing file or folder")):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=f"{said}.*did you mean 'photos'"):
            load(name)
    (tmp_path / "nothing").mkdir()
    assert not accepts(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no image data"):
        load(tmp_path / "nothing")


def test_refusals_of_data_in_memory_use_the_users_name_and_say_where_vectors_belong() -> None:
    vectors = torch.rand(60, 30), labels_of(60, 2)
    with pytest.raises(
        DataError, match=r"training images of cancer: .* got \(60, 30\) .* vectors .* a task of your own"
    ):
        image_task(vectors, name="cancer")
    with pytest.raises(DataError, match=r"training images of custom: .* a task of your own"):
        load(vectors)
    with pytest.raises(DataError, match=r"got \(1, 60, 1, 1, 1\) and \(60,\)$"):
        load((vectors[0][None, :, :1, None, None], vectors[1]))
    images = torch.rand(60, 1, 4, 4)
    assert (
        load((images, vectors[1]), name="cells").name
        == image_task((images, vectors[1]), name="cells", model="mlp").data.name
        == "cells"
    )
    with pytest.raises(ConfigError, match="'Digits' is a known data set"):
        load((images, vectors[1]), name="Digits")


def test_arrays_and_tensors_of_a_graph_are_taken_as_they_are() -> None:
    images, labels = torch.rand(10, 1, 4, 4), labels_of(10, 2)
    expected = load((images, labels)).fingerprint
    assert load((images.numpy(), labels.numpy())).fingerprint == expected
    assert load((images.clone().requires_grad_(), labels)).fingerprint == expected


def test_labels_may_be_names() -> None:
    images, given = bytes_like(12, 3, 3), ["dog", "emu", "cat"] * 4
    names, numbers = np.unique(given, return_inverse=True)
    expected = load((images, numbers), class_names=list(names))
    for labels in (given, tuple(given), np.array(given), np.array(given, dtype=object), pd.Series(given)):
        found = load((images, labels))
        assert found.class_names == ("cat", "dog", "emu")
        assert found.fingerprint == expected.fingerprint
    assert load(Pairs(list(images), given)).fingerprint == expected.fingerprint
    with pytest.raises(DataError, match=r"array of complex|pixels must be"):
        load((images.numpy().astype(complex), [0, 1, 2] * 4))


def test_names_for_labels_count_the_classes_of_the_training_data() -> None:
    images, given = bytes_like(12, 3, 3), ["10", "9", "2"] * 4
    found = load((images, given), (images[:2], ["9", "9"]))
    assert found.class_names == ("2", "9", "10")
    assert found.test_labels.tolist() == [1, 1]
    found = load((images, given), Pairs(list(images[:2]), ["10", "2"]), class_names=["9", "10", "2"])
    assert found.train_labels[:3].tolist() == [1, 0, 2]
    assert found.test_labels.tolist() == [1, 2]
    test = Pairs(list(images[:3]), [0, 1, 1])
    test.classes = ["9", "10"]  # type: ignore[attr-defined]
    assert load((images, given), test).test_labels.tolist() == [1, 2, 2]
    indices = load((images, ["0", "1", "0"] * 4), (images[:1], ["1"]), class_names=["a", "b"])
    assert (indices.train_labels[:3].tolist(), indices.test_labels.tolist()) == ([0, 1, 0], [1])
    with pytest.raises(DataError, match=r"the test data: label 0 is '8', which is no class .*there are: 2, 9, 10"):
        load((images, given), (images[:1], ["8"]))
    with pytest.raises(DataError, match="the label '9' is a name, and the labels of the training data are numbers"):
        load((images, [0, 1, 2] * 4), (images[:1], ["9"]))


class Rows(list[dict[str, Any]]):
    """A data set whose rows name their values, with what Hugging Face's say of their columns."""

    features: Mapping[str, Any] = {"label": SimpleNamespace(names=["cat", "dog"])}


def test_rows_may_name_their_image_and_label() -> None:
    pixels, labels = bytes_like(10, 6, 5), [int(label) for label in labels_of(10, 2)]
    pictures = [Image.fromarray(p.numpy()) for p in pixels]
    rows = Rows([{"id": 7, "img": image, "label": label} for image, label in zip(pictures, labels, strict=True)])
    found = load(rows)
    assert found.class_names == ("cat", "dog")
    assert found.fingerprint == load((pixels, labels)).fingerprint == load((pictures, labels)).fingerprint
    with pytest.raises(DataError, match=r"item 0 names picture, label; an image is looked for under image, img"):
        load([{"picture": pixels[0], "label": 0}])
    with pytest.raises(DataError, match="10 images and 9 labels"):
        load((pictures, labels[:9]))


def test_a_mapping_holds_splits_or_tensors() -> None:
    pixels, labels = bytes_like(20, 6, 5), labels_of(20, 2)
    train, test = (pixels[:12], labels[:12]), (pixels[12:], labels[12:])
    expected = load(train, test)
    by_name = {"images": train[0], "labels": train[1], "test_images": test[0], "test_labels": test[1]}
    validated = {"train": train, "validation": test, "unlabelled": test}
    for source in ({"train": train, "test": test}, {"Train": train, "test": test, "val": train}, by_name, validated):
        found = load(source)
        assert (found.fingerprint, found.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    assert found.notes == ("test: the split validation, as there is no test", "the split unlabelled is not read")
    assert load({"train": train}, test).test_fingerprint == expected.test_fingerprint
    assert len(load({"train": train}).test_labels) == 2
    with pytest.raises(ConfigError, match="bring their own test data"):
        load({"train": train, "test": test}, test)
    with pytest.raises(DataError, match="has the splits train and test, or images and labels, got test"):
        load({"test": test})
    with pytest.raises(DataError, match="'train' and 'Training' both name the train split; join them"):
        load({"train": train, "Training": test})
    doubly = load({"train": train, "eval": train, "val": train, "dev": test})
    assert doubly.test_fingerprint == expected.test_fingerprint
    assert doubly.notes[0] == "test: the split dev, as there is no test"
    assert {*doubly.notes[1:]} == {"the split eval is not read", "the split val is not read"}
    tested = load({"train": train, "dev": train, "test": test, "valid": train})
    assert tested.test_fingerprint == expected.test_fingerprint
    assert tested.notes == ("the split dev is not read", "the split valid is not read")
    with pytest.raises(DataError, match="hold test_images alone"):
        load({"images": train[0], "labels": train[1], "test_images": test[0]})


def test_images_and_labels_of_a_mapping_go_by_the_names_of_the_field() -> None:
    pixels, labels = bytes_like(20, 6, 5), labels_of(20, 2)
    expected = load((pixels, labels))
    for names in (("images", "target"), ("images", "y"), ("X", "y"), ("data", "targets"), ("image", "labels")):
        assert load(dict(zip(names, (pixels, labels), strict=True))).fingerprint == expected.fingerprint
    bunch = {"data": pixels.flatten(1), "images": pixels, "target": labels, "target_names": np.array(["cat", "dog"])}
    found = load({**bunch, "frame": None, "DESCR": "pets"})
    assert (found.fingerprint, found.class_names) == (expected.fingerprint, ("cat", "dog"))
    assert [note for note in found.notes if "not read" in note] == []
    assert load(bunch, class_names=["a", "b"]).class_names == ("a", "b")
    assert "the split groups is not read" in load({**bunch, "groups": labels}).notes
    digits = load(load_digits())
    assert digits.shape == (1, 8, 8)
    assert digits.class_names == tuple("0123456789")
    for source, said in (
        (
            {"X": pixels, "kind": labels},
            "the data hold X, kind; expected are one of images, image, .* and one of labels",
        ),
        ({"imgs": pixels, "x": pixels, "y": labels}, "the data hold imgs, x, y; expected are one of"),
        (
            {"X": pixels, "y": labels, "x_test": pixels, "y_test": labels},
            "got X, y, x_test, y_test; call those to train on X_train, y_train",
        ),
        ({"X": pixels, "y": labels, "Xtest": pixels, "ytest": labels}, "X, y, Xtest, ytest, and Xtest may be data to"),
        ({"X": pixels, "y": labels, "holdout": (pixels, labels)}, "X, y, holdout, and holdout may be data to"),
        ({"X": pixels, "y": labels, "more": pixels.tolist(), 7: pixels.numpy()}, "and more, 7 may be data to"),
    ):
        with pytest.raises(DataError, match=said):
            load(source)


def test_target_names_are_those_of_numbered_labels_alone() -> None:
    pixels, labels = bytes_like(20, 6, 5), labels_of(20, 2)
    words = ["dog" if label else "cat" for label in labels.tolist()]
    pair, names = {"images": pixels, "target": labels}, {"target_names": ["a", "b", "c"]}
    assert load(pair | {"target_names": ("a", "b")}).class_names == ("a", "b")
    assert load(pair | {"target": labels + 4} | names).class_names == ("4", "5")
    assert load(pair | {"target": words} | names).class_names == ("cat", "dog")
    for other in (["class"], 3, "ab", np.array("ab"), [1, 2], None):
        assert load(pair | {"target_names": other}).class_names == ("0", "1")
    splits = load({"train": (pixels, labels), "test": (pixels, labels), "target_names": ["a", "b"]})
    assert splits.class_names == ("0", "1")
    assert "the split target_names is not read" in splits.notes


def test_labels_in_a_file_may_be_names(tmp_path: Path) -> None:
    pixels, labels = bytes_like(20, 6, 5), np.array(["dog", "cat"] * 10)
    tested = {"test_images": pixels[:4].numpy(), "test_labels": labels[:4]}
    np.savez(tmp_path / "a.npz", images=pixels.numpy(), labels=labels, **tested)
    found = load(tmp_path / "a.npz")
    assert found.class_names == ("cat", "dog")
    assert found.test_labels.tolist() == [1, 0, 1, 0]
    torch.save({"images": pixels, "labels": labels.tolist()}, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").class_names == ("cat", "dog")


@pytest.mark.parametrize(("images", "epochs"), [(200, 1000), (257, 500), (2000, 125), (50_000, 30)])
def test_a_whole_set_of_ones_own_trains_for_a_thousand_updates(images: int, epochs: int) -> None:
    pair = bytes_like(images, 2, 2), labels_of(images)
    assert build("custom", pair, pair).whole_epochs == epochs
    assert build("custom", pair, pair, whole_epochs=5).whole_epochs == 5


def test_float_images_keep_their_range_in_pictures() -> None:
    images = torch.linspace(-3, 5, 160).view(10, 1, 4, 4)
    data = load((images, labels_of(10, 2)))
    low, high = data.value_range
    shown = data.denormalise(data.normalise(data.train_images))
    torch.testing.assert_close(shown, (data.train_images - low) / (high - low), atol=1e-5, rtol=0)


@pytest.mark.data
@needs_mnist
def test_the_real_mnist() -> None:
    data = load("mnist")
    assert (len(data.train_labels), len(data.test_labels)) == (60_000, 10_000)
    pixels = data.normalise(data.train_images[:2000])
    assert abs(float(pixels.mean())) < 0.02
    assert data.stored_bytes == 60_000 * 785


def make_tiny_imagenet(root: Path) -> Path:
    folder = root / "tiny-imagenet-200"
    lines = []
    for index, name in enumerate(("n01", "n02")):
        for split, count in (("train", 3), ("val", 1)):
            place = folder / "train" / name / "images" if split == "train" else folder / "val" / "images"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture = np.full((64, 64, 3) if number else (64, 64), 100 * index + number, np.uint8)
                Image.fromarray(picture).save(place / f"{split}_{name}_{number}.JPEG")
        lines.append(f"val_{name}_0.JPEG\t{name}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn09\tother\n")
    return folder


def test_tiny_imagenet_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="unpack the published tiny-imagenet-200"):
        load("tiny-imagenet")
    folder = make_tiny_imagenet(tmp_path)
    assert accepts(folder)
    for found in (load("Tiny_ImageNet"), load(folder)):
        assert found.shape == (3, 64, 64)
        assert found.class_names == ("goldfish", "n02")
        assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert found.test_labels.tolist() == [1, 0]
        assert [int(image.float().mean().round()) for image in found.test_images] == [100, 0]
    (folder / "val" / "val_annotations.txt").write_text("a.JPEG\tn77\n")
    with pytest.raises(DataError, match="line 1: expected an image and one of the classes"):
        load(folder)


@pytest.mark.parametrize("header", [b"P6\n8 \xd6\n255\n", b"P5\n8 8\n", b"P6\n99999999999 8\n255\n"])
def test_a_picture_with_a_damaged_header_is_named(header: bytes, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
        (tmp_path / name / "2.ppm").write_bytes(header)
    with pytest.raises(DataError, match=r"2 files in .* cannot be read as images: a/2\.ppm \(.*b/2\.ppm"):
        load(tmp_path)


def test_images_without_pixels_or_with_a_single_value_are_refused() -> None:
    labels = torch.arange(40) % 2
    with pytest.raises(DataError, match=r"images of shape \(0, 8, 8\) have no pixels"):
        image_task((torch.rand(40, 0, 8, 8), labels))
    alike = torch.full((40, 1, 8, 8), 0.5), labels
    with pytest.raises(DataError, match=r"are all alike: every pixel is 0.5"):
        image_task(alike, test=alike)
    with pytest.raises(DataError, match=r"custom has no test split, and too few different images to hold one out"):
        image_task(alike)


def test_names_of_classes_and_mirroring_are_the_users_to_say(tmp_path: Path) -> None:
    images, labels = bytes_like(40, 1, 8, 8), labels_of(40, 2)
    task = image_task((images, labels), class_names=["cat", "dog"], mirror=False, width=4)
    assert task.describe().class_names == ("cat", "dog")
    assert "flip" not in task.augmentation.describe()["operations"]  # type: ignore[operator]
    assert MIRRORED not in task.describe().notes
    usual = image_task((images, labels), width=4)
    assert "flip" in usual.augmentation.describe()["operations"]  # type: ignore[operator]
    assert MIRRORED in usual.describe().notes
    assert image_task("digits", mirror=True, width=4).data.mirror
    plain = image_task(usual.data, mirror=False, width=4)
    assert not plain.data.mirror
    assert MIRRORED not in plain.describe().notes
    with pytest.raises(DataError, match="labels"):
        image_task((images, labels), class_names=["cat"])
    with pytest.raises(ConfigError, match="brings its own"):
        image_task("digits", class_names=["cat", "dog"])
    with pytest.raises(ConfigError, match="have their test images, names and size; leave class_names out"):
        image_task(usual.data, class_names=["cat", "dog"])
    for wrong in (5, "abc", [1, 2], ["cat", "cat"]):
        with pytest.raises(ConfigError, match="class_names"):
            image_task((images, labels), class_names=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mirror is True or False, got 'no'"):
        image_task((images, labels), mirror="no")  # type: ignore[arg-type]


def test_given_names_of_classes_may_be_spelt_otherwise_by_test_data() -> None:
    images, labels = bytes_like(20, 6, 5), labels_of(20, 2)
    train, test = Pairs(list(images), labels.tolist()), Pairs(list(images[:4]), [0, 1, 0, 1])
    test.classes = ["Ant", "Bee"]  # type: ignore[attr-defined]
    note = "the test data's classes are called Ant, Bee, and are taken in this order"
    for classes in (None, ["0 - ant", "1 - bee"]):
        train.classes = classes  # type: ignore[attr-defined]
        read = load(train, test, class_names=["ant", "bee"])
        assert (read.class_names, read.test_labels.tolist()) == (("ant", "bee"), [0, 1, 0, 1])
        assert note in read.notes
        swapped = load(train, test, class_names=["Bee", "Ant"])
        assert swapped.test_labels.tolist() == [1, 0, 1, 0]
        assert note not in swapped.notes
    for names, given in (("Ant", "Bee", "Cat"), ["ant", "bee"]), (("Ant", "Bee"), None):
        test.classes = names  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="the test data have a class 'Ant' that the training data lack"):
            load(train, test, class_names=given)


def test_names_of_classes_replace_those_of_a_data_set_and_its_test_set() -> None:
    class Named(TensorDataset):
        classes = ("cat", "dog")

    train, test = (Named(torch.rand(20, 1, 8, 8), labels_of(20, 2)) for _ in range(2))
    task = image_task(train, test=test, class_names=["Katze", "Hund"], width=4)
    assert task.describe().class_names == ("Katze", "Hund")
    assert torch.equal(task.data.test_labels, labels_of(20, 2))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path / "vehicles", ("bus", "car", "train"))
    assert load(tmp_path / "vehicles").class_names == ("bus", "car", "train")
    write_images(tmp_path / "split" / "train", ("diesel", "steam"))
    write_images(tmp_path / "split", ("bus",))
    found = load(tmp_path / "split")
    assert found.class_names == ("diesel", "steam")
    assert "the images of bus/ beside train/ are not read" in found.notes
