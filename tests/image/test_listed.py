"""Tables of images: files with their labels, and rows of pixels."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.image import listed
from mmdistill.image.datasets import accepts, load
from mmdistill.registry import domain_of
from tests.image.test_data import bytes_like, write_images

NAMES = ["cat", "dog"] * 6


def write_files(folder: Path, ending: str = ".png", seed: int = 0) -> tuple[Tensor, list[str]]:
    """Write twelve images; return them with their names."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, names = bytes_like(12, 1, 6, 5, seed=seed), [f"{seed}-{index}" for index in range(12)]
    for picture, name in zip(pixels, names, strict=True):
        Image.fromarray(picture[0].numpy()).save(folder / f"{name}{ending}")
    return pixels, names


def write_table(place: Path, **columns: list[str]) -> None:
    pd.DataFrame(columns).to_csv(place, index=False)


@pytest.mark.parametrize("place", ["", "images", "train", "train_images"])
@pytest.mark.parametrize("called", ["whole", "stem", "path"])
def test_a_table_beside_images_names_their_classes(tmp_path: Path, place: str, called: str) -> None:
    pixels, names = write_files(tmp_path / place)
    path = {"whole": "{}.png", "stem": "{}", "path": f"{place}/{{}}.png".removeprefix("/")}[called]
    write_table(tmp_path / "labels.csv", id=[path.format(name) for name in names], breed=NAMES)
    expected = load((pixels, NAMES))
    assert domain_of(str(tmp_path / "labels.csv"), ("text_column",)).name == "text"
    for source in (tmp_path, tmp_path / "labels.csv"):
        assert domain_of(str(source)).name == domain_of(str(source), ("model",), "ipc", "dm").name == "image"
        read = load(source)
        assert (read.fingerprint, read.class_names) == (expected.fingerprint, ("cat", "dog"))
        assert read.notes[0] == "labels.csv: image files by the column 'id', labels by 'breed'"
        assert load(source, size=4).shape == (1, 4, 4)


def test_images_and_rows_without_each_other_are_said(tmp_path: Path) -> None:
    _, names = write_files(tmp_path / "train")
    write_files(tmp_path / "test", seed=1)
    write_table(tmp_path / "labels.csv", image=[*names[:10], "gone"], label=NAMES[:11])
    notes = load(tmp_path).notes
    assert "labels.csv: rows whose file is missing are not read: gone" in notes
    assert "train/: 2 images are in no row and are not read" in notes
    assert "test/: 12 images are in no row and are not read" in notes


def test_images_to_test_on_are_in_a_column_of_splits_or_in_a_table_of_their_own(tmp_path: Path) -> None:
    (pixels, names), (others, more) = write_files(tmp_path / "img"), write_files(tmp_path / "img", seed=1)
    expected = load((pixels, NAMES), (others[:6], NAMES[:6]))
    splits = ["train"] * 12 + ["test"] * 6 + ["val"] * 6
    write_table(tmp_path / "all.csv", file=names + more, label=NAMES * 2, split=splits)
    read = load(tmp_path)
    assert (read.fingerprint, read.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    assert "the rows for validation of all.csv are not read" in read.notes
    (tmp_path / "all.csv").unlink()
    write_table(tmp_path / "Train.csv", file=names, label=NAMES)
    write_table(tmp_path / "Test.csv", file=more[:6], label=NAMES[:6])
    for source in (tmp_path, tmp_path / "Train.csv"):
        read = load(source)
        assert (read.fingerprint, read.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    write_table(tmp_path / "Test.csv", file=more[:6], label=["cat"] * 5 + ["emu"])
    with pytest.raises(DataError, match=r"Test\.csv tests on the class 'emu', which has no row to train on"):
        load(tmp_path)
    write_table(tmp_path / "Test.csv", file=more[:6])
    assert "Test.csv is not read, since it has no labels of images" in load(tmp_path).notes


def test_tables_that_do_not_say_which_class_are_refused(tmp_path: Path) -> None:
    _, names = write_files(tmp_path)
    table = tmp_path / "labels.csv"
    cases: list[tuple[dict[str, list[str]], str]] = [
        (
            {"id": names, "age": NAMES, "kind": NAMES},
            r"several may be it \(there are: id, age, kind\); call",
        ),
        ({"id": names}, "has no column of labels"),
        ({"id": names, "label": ["", *NAMES[1:]]}, "row 1 has no label"),
        (
            {"id": names * 2, "label": NAMES + NAMES[::-1]},
            r"rows of .*png with different labels; an image has",
        ),
    ]
    for columns, said in cases:
        write_table(table, **columns)
        with pytest.raises(DataError, match=said):
            load(table)
    write_table(tmp_path / "more.csv", id=names, label=NAMES)
    with pytest.raises(DataError, match=r"has several tables of images: labels.csv, more.csv; give one"):
        load(tmp_path)


SHUFFLED = ["7", "3", "0", "11", "5", "1", "9", "2", "10", "4", "8", "6"]


@pytest.mark.parametrize(
    ("columns", "file", "label"),
    [
        ({"": "row", "image": "stem", "label": "name"}, "image", "label"),
        ({"id": "row", "image": "stem", "label": "name"}, "image", "label"),
        ({"patient": "row", "file": "stem", "diagnosis": "name"}, "file", ""),
        ({"class_id": "number", "picture": "file", "species": "name"}, "picture", "class_id"),
        ({"id": "row", "picture": "file", "label": "number"}, "picture", "label"),
        ({"image": "file", "class": "number", "label": "name", "split": "split"}, "image", "label"),
        ({"image": "file", "mask": "file", "label": "name"}, "image", "label"),
        ({"picture": "file", "Id": "name"}, "picture", "Id"),
        ({"left": "file", "right": "file", "label": "name"}, "", "several columns: left, right; call the one to read"),
        ({"plant": "stem", "label": "name"}, "", "table of files in a column 'image' and classes in"),
    ],
)
def test_the_column_of_images_is_told_by_endings_and_names(
    columns: dict[str, str], file: str, label: str, tmp_path: Path
) -> None:
    pixels = bytes_like(12, 1, 6, 5)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture[0].numpy()).save(tmp_path / f"{index}.png")
    values = {
        "row": list(map(str, range(12))),
        "stem": SHUFFLED,
        "file": [f"{stem}.png" for stem in SHUFFLED],
        "name": NAMES,
        "number": ["0", "1"] * 6,
        "split": ["train"] * 12,
    }
    write_table(tmp_path / "all.csv", **{name: values[kind] for name, kind in columns.items()})
    if not file or not label:
        with pytest.raises(DataError, match=label or "several may be it"):
            load(tmp_path / "all.csv")
        return
    read = load(tmp_path / "all.csv")
    assert read.notes[0] == f"all.csv: image files by the column '{file}', labels by '{label}'"
    expected = load((pixels[list(map(int, SHUFFLED))], [int(name == "dog") for name in NAMES]))
    assert read.fingerprint == expected.fingerprint


def test_a_table_without_labels_is_not_in_the_way_of_one_with(tmp_path: Path) -> None:
    _, names = write_files(tmp_path)
    for name in ("labels.csv", "sample_submission.csv"):
        write_table(tmp_path / name, id=names, **({"breed": NAMES} if name == "labels.csv" else {}))
    assert load(tmp_path).class_names == ("cat", "dog")


def test_a_row_may_hold_so_many_pixels_that_their_names_are_long(tmp_path: Path) -> None:
    pixels = bytes_like(4, 3, 48, 48)
    frame = pd.DataFrame(pixels.movedim(1, -1).flatten(1).numpy()).add_prefix("pixel_")
    frame.assign(label=[0, 1] * 2).to_csv(tmp_path / "all.csv", index=False)
    assert domain_of(str(tmp_path / "all.csv")).name == "image"
    assert load(tmp_path / "all.csv").fingerprint == load((pixels, [0, 1] * 2)).fingerprint


def test_subfolders_of_classes_come_before_a_table(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_table(tmp_path / "all.csv", path=[f"{name}/{index}.png" for name in ("cat", "dog") for index in range(5)])
    note = "all.csv is not read, since the subfolders are the classes; to read it, give the table itself"
    assert note in load(tmp_path).notes
    write_table(tmp_path / "texts.csv", text=["a", "b"], label=["x", "y"])
    assert not accepts(tmp_path / "texts.csv")
    assert domain_of(str(tmp_path / "texts.csv")).name == "text"


def test_tables_of_texts_and_interactions_are_so_beside_pictures(tmp_path: Path) -> None:
    _, names = write_files(tmp_path)
    paths = [f"{name}.png" for name in names]
    tables: list[tuple[dict[str, list[str]], str]] = [
        ({"id": names, "label": NAMES, "text": NAMES}, "text"),
        ({"image": paths, "label": NAMES, "sentence": NAMES}, "text"),
        ({"user": NAMES, "item": names, "rating": ["1"] * 12, "image": paths}, "recsys"),
    ]
    for columns, domain in tables:
        write_table(tmp_path / "train.csv", **columns)
        assert domain_of(str(tmp_path / "train.csv")).name == domain
        assert not accepts(tmp_path / "train.csv")
        assert not accepts(tmp_path)
    write_table(tmp_path / "train.csv", id=names, label=NAMES, title=NAMES)
    path = str(tmp_path / "train.csv")
    assert domain_of(path).name == domain_of(path, ("mirror",), "ipc").name == "image"
    assert domain_of(path, ("encoder",)).name == "text"
    assert domain_of(path, budget="users").name == domain_of(path, ("min_rating",)).name == "recsys"


def test_no_files_are_looked_for_by_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    write_table(tmp_path / "features.csv", **{f"f{index}": ["0.5"] * 10 for index in range(2000)})
    looked_for: list[str] = []
    monkeypatch.setattr(os.path, "isfile", lambda path: looked_for.append(path))
    assert accepts(tmp_path)
    assert not accepts(tmp_path / "features.csv")
    assert not looked_for


@pytest.mark.parametrize(("channels", "name"), [(1, "pixel{0}"), (3, "pix_{0:04}"), (1, "{1}x{2}")])
def test_a_row_may_hold_the_pixels(tmp_path: Path, channels: int, name: str) -> None:
    pixels = bytes_like(12, channels, 4, 4)
    columns = [name.format(index, index // 4 + 1, index % 4 + 1) for index in range(16 * channels)]
    frame = pd.DataFrame(pixels.movedim(1, -1).flatten(1).numpy(), columns=columns)
    labelled = frame.assign(label=[3, 7] * 6)
    labelled.to_csv(tmp_path / "mnist_train.csv", index=False)
    expected = load((pixels, [3, 7] * 6))
    frame.to_csv(tmp_path / "mnist_test.csv", index=False)
    for source in (tmp_path, tmp_path / "mnist_train.csv"):
        assert domain_of(str(source)).name == "image"
        read = load(source)
        assert (read.fingerprint, read.class_names) == (expected.fingerprint, ("3", "7"))
        assert read.notes[0] == f"mnist_train.csv: rows are images of {channels} x 4 x 4, labels by 'label'"
        assert "mnist_test.csv is not read, since it has no labels of images" in read.notes
    labelled[:4].to_csv(tmp_path / "mnist_test.csv", index=False)
    assert torch.equal(load(tmp_path).test_images, pixels[:4])
    with pytest.raises(ConfigError, match=r"a size is for image files, and .*mnist_train\.csv holds pixels"):
        load(tmp_path, size=8)
    for odd in (0.5, "a", -1, 256):
        labelled.astype(object).replace({columns[0]: {labelled[columns[0]][0]: odd}}).to_csv(
            tmp_path / "mnist_train.csv", index=False
        )
        with pytest.raises(DataError, match="pixels are whole numbers from 0 to 255"):
            load(tmp_path)


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    _, names = write_files(tmp_path / "img")
    write_table(tmp_path / "a.csv", image=names, is_valid=["False", "True"] * 6, label=NAMES, site=["x"] * 12)
    assert "a.csv: columns that are not read: 'is_valid', 'site'" in load(tmp_path).notes


def test_a_table_that_names_other_files_is_said_where_classes_are_missing(tmp_path: Path) -> None:
    _, names = write_files(tmp_path)
    write_table(tmp_path / "a.csv", image=[f"data\\{name}.png" for name in names], label=NAMES)
    with pytest.raises(DataError, match=r"no subfolders of them; .*; a\.csv there names no file that is found$"):
        load(tmp_path)


def test_folders_are_searched_once_for_the_files_of_many_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES[:2]:
        write_files(tmp_path / name)
    for index in range(20):
        write_table(tmp_path / f"{index}.csv", time=["1", "2"], id=["a", "b"])
    searched: list[Path] = []
    search = listed.class_folders
    monkeypatch.setattr(listed, "class_folders", lambda folder: searched.append(folder) or search(folder))
    assert listed.tables_in(tmp_path) == []
    assert searched == [tmp_path]
