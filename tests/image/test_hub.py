"""Images by their name on the Hugging Face hub, and pictures of several sizes in data sets."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from mmdistill import registry
from mmdistill.errors import ConfigError, DataError
from mmdistill.files import hub
from mmdistill.image import image_task
from mmdistill.image.datasets import load

SIZES = ((6, 5), (8, 12))


class Image:
    """A column of pictures, which is known by the name of its type."""


class Split:
    """As much of a split of the package datasets as is read."""

    def __init__(self, labels: list[int], sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
        draws = np.random.default_rng(len(labels))
        shapes = [sizes[index % len(sizes)] for index in range(len(labels))]
        pictures = [Pillow.fromarray(draws.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]
        self.columns: dict[str, list[Any]] = {"image": pictures, "label": labels}
        self.column_names = list(self.columns)
        self.features = {"image": Image(), "label": SimpleNamespace(names=["cat", "dog"])}

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the hub has, by name."""
    found: dict[str, Any] = {}
    module = SimpleNamespace(
        load_dataset=lambda name, config: found[name if config is None else f"{name}:{config}"],
        load_from_disk=lambda name: found[f"saved {name}"],
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
    hub.has_images.cache_clear()
    yield found
    hub.has_images.cache_clear()


def test_a_set_of_the_hub_is_of_the_kind_of_its_columns(sets: dict[str, Any]) -> None:
    texts = SimpleNamespace(features={"text": SimpleNamespace(), "label": SimpleNamespace(names=["a", "b"])})
    sets.update({"pets": {"train": Split([0, 1] * 4)}, "news:short": {"train": texts}})
    assert registry.domain_of("hf:pets").name == "image"
    assert registry.domain_of("HF:news:short").name == "text"
    assert registry.located("hf:pets") == "hf:pets"
    assert registry.located("hf:") == "hf:"


def test_a_folder_of_the_hubs_files_is_found_from_anywhere(
    sets: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, odd = tmp_path / "pets", tmp_path / "odd:name"
    for one in (folder, odd):
        one.mkdir()
        sets[str(one)] = {"train": Split([0, 1] * 4, (SIZES[0],))}
    sets[f"{folder}:small"] = {"train": Split([0, 1] * 3, (SIZES[0],))}
    sets["others"] = {"train": Split([0, 1] * 5, (SIZES[0],))}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, absolute, images in (
        ("hf:pets", f"hf:{folder}", 8),
        ("HF:./pets:small", f"hf:{folder}:small", 6),
        ("hf:~/pets", f"hf:{folder}", 8),
        ("hf:odd:name", f"hf:{odd}", 8),
        ("hf:others", "hf:others", 10),
    ):
        monkeypatch.chdir(tmp_path)
        data, found = load(name), registry.located(name)
        assert (found, data.name) == (absolute, absolute)
        monkeypatch.chdir("/")
        again = load(found)
        assert again.fingerprint == data.fingerprint
        assert len(again.train_labels) + len(again.test_labels) == images


def test_folders_that_were_saved_to_disk_are_read_and_others_told_of_their_prefix(
    sets: dict[str, Any], tmp_path: Path
) -> None:
    whole, single = tmp_path / "whole", tmp_path / "single"
    for folder, file in ((whole, "dataset_dict.json"), (single, "state.json")):
        folder.mkdir()
        (folder / file).touch()
    one = (SIZES[0],)
    sets[f"saved {single}"] = Split([0, 1] * 4, one)
    sets[f"saved {whole}"] = {"train": sets[f"saved {single}"], "test": Split([0, 1], one)}
    assert load(f"hf:{single}").class_names == ("cat", "dog")
    assert len(load(f"hf:{whole}").test_labels) == 2
    assert registry.domain_of(f"hf:{single}").name == "image"
    (single / "data-00000-of-00001.arrow").touch()
    (whole / "data").mkdir()
    (whole / "data" / "train-0.parquet").touch()
    for folder in (single, whole):
        for read in (load, registry.domain_of):
            with pytest.raises((ConfigError, DataError), match=f"files of Hugging Face's datasets: give hf:{folder}"):
                read(str(folder))


def test_images_of_the_hub_come_with_their_splits_and_classes(sets: dict[str, Any]) -> None:
    one = (SIZES[0],)
    sets["pets"] = {"train": Split([0, 1] * 4, one), "test": Split([1, 0, 1], one)}
    data = load("hf:pets")
    assert (data.name, data.class_names, data.shape) == ("hf:pets", ("cat", "dog"), (3, 6, 5))
    assert data.test_labels.tolist() == [1, 0, 1]
    assert not data.mirror_known
    assert data.fingerprint == load(sets["pets"]).fingerprint
    for given in ({"test": data}, {"class_names": ["a", "b"]}):
        with pytest.raises(ConfigError, match=r"'hf:pets' (takes no test data|brings its own)"):
            load("hf:pets", **given)  # type: ignore[arg-type]


def test_a_test_split_whose_labels_are_hidden_gives_way_to_that_for_validation(sets: dict[str, Any]) -> None:
    one = (SIZES[0],)
    sets["pets"] = {"train": Split([0, 1] * 4, one), "validation": Split([1, 1, 0], one), "test": Split([-1] * 5, one)}
    data = load("hf:pets")
    assert data.test_labels.tolist() == [1, 1, 0]
    assert data.notes == (
        "test: the split validation, as there is no other",
        "the split test is not read, since its labels are hidden",
    )
    del sets["pets"]["validation"]
    alone = load("hf:pets")
    assert len(alone.test_labels) == 2  # held out of training
    assert alone.notes[0] == "the split test is not read, since its labels are hidden"


def test_pictures_of_several_sizes_are_resized_where_a_size_is_asked_for(sets: dict[str, Any]) -> None:
    sets["pets"] = {"train": Split([0, 1] * 4), "test": Split([1, 0])}
    with pytest.raises(DataError, match=r"bring all samples to one shape and type, of pictures by asking for a size"):
        load("hf:pets")
    data = image_task("hf:pets", size=8).data
    assert data.shape == (3, 8, 8)
    assert data.notes[0].startswith("the training data: 8 images are resized to 8 x 8, whatever their shape (bilinear")
    first = torch.from_numpy(np.array(sets["pets"]["train"][0]["image"])).permute(2, 0, 1)
    expected = torch.nn.functional.interpolate(first[None].float(), (8, 8), mode="bilinear", antialias=True)[0]
    assert (data.train_images[0].float() - expected).abs().max() <= 1  # bytes are resized as bytes
    pictures, labels = sets["pets"]["train"].columns.values()
    assert load((pictures, labels), size=8).shape == (3, 8, 8)
    assert load(sets["pets"]["train"], size=8).shape == (3, 8, 8)


def test_a_size_of_tensors_is_refused() -> None:
    images, labels = torch.rand(10, 1, 4, 4), torch.arange(10) % 2
    for source in ((images, labels), (list(images), labels), {"images": images, "labels": labels}):
        with pytest.raises(ConfigError, match="a size is for pictures, and the training data are tensors or arrays"):
            load(source, size=2)
