"""Texts as files in a folder for each class, as aclImdb, BBC News and 20 Newsgroups are published."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdistill import registry
from mmdistill.errors import ConfigError, DataError
from mmdistill.image.datasets import accepts as accepts_images
from mmdistill.text.data import TextData, accepts, load_text

CLASSES = ("neg", "pos")
NAMED = "classes are the folders neg, pos"


def write_classes(folder: Path, *, count: int = 10, ending: str = ".txt", start: str = "") -> Path:
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            (folder / name / f"{row:02}{ending}").write_text(f"{start}{name} text {row}\n", encoding="utf-8")
    return folder


def unread(data: TextData) -> list[str]:
    return [note for note in data.notes if "not read" in note]


@pytest.mark.parametrize("ending", [".txt", "", ".TXT"])
def test_a_folder_for_each_class_is_held_out_from(tmp_path: Path, ending: str) -> None:
    write_classes(tmp_path, ending=ending)
    (tmp_path / ".git").mkdir()
    (tmp_path / "neg" / ".DS_Store").write_bytes(b"\0")
    found = load_text(tmp_path)
    texts = [f"{name} text {row}" for name in CLASSES for row in range(10)]
    assert found.fingerprint == load_text((texts, ["neg"] * 10 + ["pos"] * 10)).fingerprint
    assert (found.class_names, found.name) == (CLASSES, str(tmp_path))
    assert found.notes[:2] == (NAMED, "test: 20% of the data, stratified, seed 0")
    assert not unread(found)
    assert accepts(tmp_path)
    assert registry.domain_of(str(tmp_path)).name == "text"


@pytest.mark.parametrize("names", [("train", "test", "dev"), ("Training", "Testing", "val")])
def test_folders_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for part, start in zip(names, ("a ", "b ", "c "), strict=True):
        write_classes(tmp_path / part, start=start, count=3)
    found = load_text(tmp_path)
    first = [part.texts[0] for part in (found.train, found.test, found.dev)]
    assert first == ["a neg text 0", "b neg text 0", "c neg text 0"]
    assert found.notes == (NAMED,)
    assert registry.domain_of(str(tmp_path)).name == "text"


def test_what_is_beside_the_classes_is_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / part, start=f"{part} ", count=6)
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0_0.txt").write_text("of no class")
    (tmp_path / "train" / "urls_pos.txt").write_text("http")
    (tmp_path / "train" / "pos" / "labels.feat").write_text("1:2")
    (tmp_path / "more").mkdir()
    (tmp_path / "README").write_text("so")
    found = load_text(tmp_path)
    assert found.class_names == CLASSES
    assert unread(found) == [
        "more/ beside the splits is not read",
        f"{tmp_path.name}/: 1 texts beside the subfolders are not read",
        "the texts of train/unsup/ have no class and are not read",
        "train/: 1 texts beside the subfolders are not read",
        "train/: files of other kinds are not read: 1 .feat",
    ]


@pytest.mark.parametrize("names", [("train", "test"), ("train", "test", "dev"), ("pos", "unsup"), ("pos", "Val")])
def test_folders_of_splits_and_of_no_class_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        for row in range(6):
            (tmp_path / name / f"{row}.txt").write_text(f"{name} {row}")
    assert not accepts(tmp_path)
    with pytest.raises(DataError, match=r"expected train\.tsv"):
        load_text(tmp_path)


def test_a_split_within_a_split_is_no_class(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / part, start=f"{part} ", count=4)
    (tmp_path / "test" / "pos").rename(tmp_path / "test" / "valid")
    with pytest.raises(DataError, match=r"test/valid is called like a split, and a class was expected"):
        load_text(tmp_path)


def test_validation_alone_and_unlabelled_test_texts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_classes(tmp_path / part, start=f"{part} ", count=4)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.txt").write_text("of no class")
    found = load_text(tmp_path)
    assert found.test.texts[0] == "val neg text 0"
    assert "test: the validation split, as there is no test split with labels" in found.notes
    assert unread(found) == ["test/: 1 texts beside the subfolders are not read"]
    (tmp_path / "train").rename(tmp_path / "Training")
    (tmp_path / "Training" / "so").mkdir()
    for name in ("a", "b"):
        (tmp_path / "Training" / "so" / name).write_text(name)
    (tmp_path / "val").rename(tmp_path / "Dev")  # which is read before, and lacks the class
    assert "classes are the folders neg, pos, so" in load_text(tmp_path).notes


def test_unusable_text_files_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    for place in ("pos/03.txt", "pos/05.txt", "neg/04.txt"):
        (tmp_path / place).write_bytes("first\ncaf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"neg/04\.txt is not UTF-8 throughout: line 2 .* \(3 such files\)"):
        load_text(tmp_path)
    (tmp_path / "neg" / "04.txt").write_text("so")
    for row in (3, 5):
        (tmp_path / "pos" / f"0{row}.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"pos/03\.txt holds no text \(2 such files\)"):
        load_text(tmp_path)
    with pytest.raises(ConfigError, match=r"a text in each file.*leave text_column out"):
        load_text(tmp_path, text_column="text")


def test_other_folders_are_not_texts(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (alone / "raw").mkdir(parents=True)
    (alone / "raw" / "A.txt").write_text("1, 2")
    binary = write_classes(tmp_path / "binary", ending="")
    (binary / "pos" / "00").write_bytes(b"\0\0\x08\x03")
    other = write_classes(tmp_path / "other", count=1)
    for row in range(2):
        (other / "pos" / f"{row}.pt").touch()
    for folder in (alone, binary, other, tmp_path):
        assert not accepts(folder)
    with pytest.raises(DataError, match=r"expected train\.tsv .*, or a subfolder of text files for each class"):
        load_text(alone)


def test_pictures_with_captions_are_images_alone(tmp_path: Path) -> None:
    write_classes(tmp_path)
    assert not accepts_images(tmp_path)
    for name in CLASSES:
        for row in range(10):
            Image.fromarray(np.full((4, 4), row, "uint8")).save(tmp_path / name / f"{row:02}.png")
    assert accepts_images(tmp_path)
    assert not accepts(tmp_path)
    assert registry.domain_of(str(tmp_path)).name == "image"
