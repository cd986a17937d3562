"""Labels of images are numbered by one rule, whatever holds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.image.class_labels import as_list
from mmdistill.image.datasets import load
from tests.image.test_data import Pairs, bytes_like, labels_of

CONTAINERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda labels: labels,
    "array": lambda labels: labels.numpy(),
    "list": lambda labels: labels.tolist(),
    "list of arrays": lambda labels: list(labels.numpy()),
    "list of tensors": list,
    "column": lambda labels: pd.Series(labels.numpy()),
    "objects": lambda labels: np.array(labels.tolist(), dtype=object),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 1], ("0", "1")),
        ([0.0, 1.0], ("0", "1")),
        ([False, True], ("False", "True")),
        ([1, 2], ("1", "2")),
        ([-1, 1], ("-1", "1")),
        ([3, 5], ("3", "5")),
        ([0.0, 7.0], ("0", "7")),
        ([9, 10], ("9", "10")),
    ],
)
def test_labels_are_numbered_alike_in_every_container(
    container: Callable[[Tensor], Any], values: list[Any], names: tuple[str, ...]
) -> None:
    images, order = bytes_like(12, 4, 4), labels_of(12, 2)
    labels = torch.tensor(values)[order]
    found = load((images, container(labels)), (images, container(labels.flip(0))))
    assert found.class_names == names
    assert torch.equal(found.train_labels, order)
    assert torch.equal(found.test_labels, order.flip(0))
    assert found.fingerprint == load((images, order), (images, order)).fingerprint
    data_set = Pairs(list(images), list(container(labels)))
    assert torch.equal(load(data_set, data_set).train_labels, order)
    assert load(data_set).class_names == names


def test_arrays_of_objects_are_read_image_by_image() -> None:
    images, order = bytes_like(12, 4, 4), labels_of(12, 2)
    objects = np.array(list(images.numpy()), dtype=object)
    assert objects.ndim == 3
    assert isinstance(as_list(objects)[0], np.ndarray)
    expected = load((images, order)).fingerprint
    assert load((objects, order)).fingerprint == expected
    assert load((objects, np.array(torch.eye(2)[order].tolist(), dtype=object))).fingerprint == expected
    assert load((objects, np.array(order[:, None].tolist(), dtype=object))).fingerprint == expected


def test_one_hot_labels_are_read_as_classes_and_several_for_an_image_are_refused() -> None:
    images, order = bytes_like(12, 4, 4), labels_of(12, 3)
    rows = torch.eye(3)[order]
    learned = rows.clone().requires_grad_()
    for one_hot in (
        rows,
        rows.long(),
        rows.bool(),
        rows.numpy(),
        rows.tolist(),
        list(rows),
        list(rows.int().numpy()),
        learned,
        list(learned),
    ):
        for given in ((images, one_hot), Pairs(list(images), list(one_hot))):
            found = load(given, (images, order))
            assert torch.equal(found.train_labels, order)
            assert "the training data: one-hot labels are read as classes" in found.notes
    for column in (order[:, None].numpy(), order[:, None].tolist(), np.array([["a"], ["b"], ["c"]])[order]):
        assert torch.equal(load((images, column), (images, column)).train_labels, order)
    several = rows.clone()
    several[4] = torch.tensor([1, 0, 1])
    cases = [
        (several, r"row 4 of the labels has 2 ones \(multi-label\); an image has one class: choose one"),
        (rows.roll(1) * 0.9, r"got \(12, 3\) of numbers other than 0 and 1; of a probability for each class give lab"),
        ([["a", "b"]] * 12, "a label is a list of 2; an image has one class"),
        ([[1, 2], [1]] * 6, "a label is a list of 2; an image has one class"),
    ]
    for labels, said in cases:
        for given in ((images, labels), Pairs(list(images), list(labels))):
            with pytest.raises(DataError, match=said):
                load(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "container",
    [
        pd.Categorical,
        pd.array,
        lambda words: pd.array(words, dtype="string"),
        lambda words: pd.DataFrame({"c": words}, dtype="category")["c"].values,
        lambda words: np.array(words).astype(bytes),
        lambda words: [word.encode() for word in words],
        lambda words: np.array([word.encode() for word in words], dtype=object),
        lambda words: list(np.array(words)),
        np.array,
    ],
)
def test_words_are_classes_in_every_container_and_become_plain_texts(container: Callable[[list[str]], Any]) -> None:
    images, order = bytes_like(12, 4, 4), labels_of(12, 3)
    words = container([("a", "b", "ü" if container is np.array else "c")[index] for index in order])
    found = load((images, words), (images, words))
    assert torch.equal(found.test_labels, order)
    assert [type(name) for name in found.class_names] == [str, str, str]
    assert load(Pairs(list(images), list(words))).fingerprint == load((images, order)).fingerprint


def test_messages_show_labels_without_the_types_of_their_containers() -> None:
    images = bytes_like(2, 4, 4)
    for labels, said in (
        (np.array(["a", 1.5], dtype=object), "label 1 is 1.5, others are names such as 'a'"),
        ([np.str_("a"), np.float64(1.5)], "label 1 is 1.5, others are names such as 'a'"),
        ([np.int64(0), np.float64(1.5)], "label 1 is no class index but 1.5"),
        ([torch.tensor(0), torch.tensor(1.5)], "label 1 is no class index but 1.5"),
    ):
        with pytest.raises(DataError, match=said):
            load((images, labels))


def test_labels_in_files_are_numbered_alike(tmp_path: Path) -> None:
    images, order = bytes_like(12, 4, 4), labels_of(12, 2)
    for labels in (torch.tensor([3, 5])[order], torch.tensor([3.0, 5.0])[order]):
        held = {"images": images, "labels": labels, "test_images": images.clone(), "test_labels": labels.clone()}
        safetensors.torch.save_file(held, tmp_path / "data.safetensors")
        torch.save(held, tmp_path / "data.pt")
        np.savez(tmp_path / "data.npz", **{name: tensor.numpy() for name, tensor in held.items()})
        for path in tmp_path.iterdir():
            found = load(path)
            assert found.class_names == ("3", "5")
            assert torch.equal(found.train_labels, order)
            assert torch.equal(found.test_labels, order)


def test_numbered_labels_of_test_data_are_those_of_training() -> None:
    images = bytes_like(12, 4, 4)
    few = torch.tensor([0, 1, 3]).repeat(4)
    assert load((images, few), (images[:2], torch.tensor([3, 1]))).test_labels.tolist() == [2, 1]
    said = r"the test data: label 2 is 2, a class that the training data lack \(they have: 0, 1, 3\); add training"
    for there in (torch.tensor([0, 1, 2, 3]), [0, 1, 2, 3]):
        with pytest.raises(DataError, match=said):
            load((images, few), (images[:4], there))
    with pytest.raises(DataError, match="up to 2, got 1 to 3: the labels run from 1 to 3"):
        load((images, labels_of(12, 3)), (images[:3], torch.tensor([1, 2, 3])))
    with pytest.raises(DataError, match="the labels of the training data are numbers"):
        load((images, few), (images[:1], ["3"]))
    for names in (["a", "b", "c"], ["0", "1", "3"]):
        with pytest.raises(DataError, match="from 0 up to 2, got 0 to 3"):
            load((images, few), class_names=names)
    picked = Pairs(list(images), [3, 5] * 6)
    assert load(picked).class_names == ("3", "5")
    picked.classes = [str(digit) for digit in range(10)]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"no training image of class 0, 1, 2, 4, 6 \(of 10 classes\)"):
        load(picked)
    assert load((images, [3, 5] * 6), picked).test_labels.tolist() == [0, 1] * 6
