"""What is said of classes of which there is nothing to test or to choose by, and of what may be no class."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from mmdistill.errors import ConfigError
from mmdistill.files.classes import checked_class_names, missing_like, untested, unvalidated
from mmdistill.files.held_out import validating
from mmdistill.graph.data import graph_from_fields
from mmdistill.graph.sets.data import load_graph_set
from mmdistill.image import image_task
from mmdistill.image.data import build
from mmdistill.image.datasets import load
from mmdistill.text import load_text
from tests.graph.toy import planted_fields, planted_graph

UNTESTED = "no test {} is of class {}, so scores say nothing of it"
UNVALIDATED = "no validation {} is of class {}, so what validation chooses takes no account of it"


@pytest.mark.parametrize(
    "given",
    [
        ["b", "a", "c"],
        ("b", "a", "c"),
        dict.fromkeys(["b", "a", "c"]).keys(),
        iter(["b", "a", "c"]),
        np.array(["b", "a", "c"]),
        np.array(["b", "a", "c"], dtype=object),
        pd.Index(["b", "a", "c"]),
        pd.Series(["b", "a", "c"]),
        {2: "c", 0: "b", 1: "a"},
        {"2": "c", "0": "b", "1": "a"},
        {"a": 1, "b": 0, "c": 2},
        {"a": np.int64(1), "b": np.int64(0), "c": np.int64(2)},
    ],
)
def test_class_names_in_the_forms_that_tools_give(given: Any) -> None:
    assert checked_class_names(given) == ("b", "a", "c")


@pytest.mark.parametrize(
    "given",
    [
        *("abc", 3, [], {}, ["a", "a"], [5, 6], np.arange(2), torch.arange(2), {"a", "b"}, {1: "a", 2: "b"}),
        *({0: "a", 2: "b"}, {0: 5, 1: 6}, {"a": 0, "b": 0}, {"a": "b", "b": "a"}, {"a": 1.0, "b": 0.0}, [["a"], ["b"]]),
        *({0: "a", "0": "b"}, [None, "a"], np.array([["a", "b"]]), {0: "a", 1: "a"}),
    ],
)
def test_other_class_names_are_refused_by_images_and_texts_alike(given: Any) -> None:
    for load_data in (
        lambda: load_text(([f"text {row}" for row in range(20)], [0, 1] * 10), class_names=given),
        lambda: image_task((torch.rand(8, 1, 4, 4), torch.arange(8) % 2), class_names=given),
    ):
        with pytest.raises(ConfigError, match="class_names "):
            load_data()


def test_no_class_names_are_said_to_be_none() -> None:
    for given in ([], {}.keys(), np.array([])):
        with pytest.raises(ConfigError, match="class_names is empty; leave it out"):
            checked_class_names(given)


def test_twelve_class_names_by_number_keep_their_order() -> None:
    assert checked_class_names({str(row): f"n{row}" for row in range(12)}) == tuple(f"n{row}" for row in range(12))


def test_absent_classes_are_named_once_each() -> None:
    names = ("7", "odd", "-1")
    assert untested(torch.tensor([0, 1, 2, 1]), names, "node") == []
    assert untested(torch.tensor([0]), names, "node") == [UNTESTED.format("node", "'odd', -1")]
    assert unvalidated(torch.tensor([1, 2]), names, "text") == [UNVALIDATED.format("text", "7")]
    assert unvalidated(torch.tensor([], dtype=torch.long), names, "text") == []  # said otherwise


def test_images_without_test_images_of_a_class_are_noted() -> None:
    images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    notes = build("x", (images, labels), (images[:2] / 2, labels[:2]), class_names=("a", "b", "c")).notes
    assert notes == (UNTESTED.format("image", "'c'"),)
    assert not build("x", (images, labels), (images[:3] / 2, labels[:3])).notes


def test_nodes_of_one_graph_are_noted_as_texts_are() -> None:
    assert not planted_graph().notes
    fields = planted_fields()
    of_two = fields["y"] != 2
    tested = graph_from_fields({**fields, "test_mask": fields["test_mask"] & of_two}, "x")
    assert tested.notes == (UNTESTED.format("node", "2"),)
    chosen = graph_from_fields({**fields, "val_mask": fields["val_mask"] & of_two}, "x")
    assert chosen.notes == (UNVALIDATED.format("node", "2"),)


def graphs(classes: list[int]) -> list[Any]:
    ring = torch.stack([torch.arange(4), (torch.arange(4) + 1) % 4])
    return [Data(x=torch.rand(4, 2), edge_index=ring, y=torch.tensor([one])) for one in classes]


def test_graphs_and_texts_are_noted_where_nothing_validates_a_class() -> None:
    found = load_graph_set({"train": graphs([0, 1] * 3), "val": graphs([0]), "test": graphs([1, 0])})
    assert found.notes == (UNVALIDATED.format("graph", "1"),)
    texts, labels = ["a b", "c d", "e f", "g h"], ["x", "y", "x", "y"]
    told = load_text({"train": (texts, labels), "dev": (["i"], ["y"]), "test": (["j", "k"], ["x", "y"])})
    assert told.notes == (UNVALIDATED.format("text", "'x'"),)


@pytest.mark.parametrize(
    ("names", "doubtful"),
    [
        (("-1", "0", "1"), ["-1"]),
        (("-1", "0", "1", "2", "3"), ["-1"]),
        (("-1", "0"), []),
        (("-1", "1"), []),
        (("-1", "0", "5"), []),
        (("-2", "-1", "0", "1"), []),
        (("NaN", "a"), ["'NaN'"]),
    ],
)
def test_what_may_stand_for_missing_labels(names: tuple[str, ...], doubtful: list[str]) -> None:
    assert missing_like(names) == [f"the class {name} may stand for missing labels" for name in doubtful]


@pytest.mark.parametrize("label", ["", b""])
def test_a_class_without_a_name_is_noted(label: str | bytes) -> None:
    found = load((torch.rand(20, 1, 4, 4), [label, "a"] * 10))
    assert "the class '' may stand for missing labels" in found.notes


def test_a_class_of_minus_one_is_kept_and_noted_in_every_domain() -> None:
    said = "the class -1 may stand for missing labels"
    labels = [-1, 0, 1] * 20
    images = image_task((torch.rand(60, 1, 4, 4), torch.tensor(labels)), device="cpu").describe()
    assert images.class_names == ("-1", "0", "1")
    assert said in images.notes
    assert said in load_text(([f"w{i} a" for i in range(60)], labels)).notes
    found = load_graph_set(graphs(labels))
    assert found.names == ("-1", "0", "1")
    assert said in found.notes


@pytest.mark.parametrize(
    ("counts", "giving"),
    [
        ([40, 40, 3], [True, True, False]),
        ([4, 4, 4, 6], [True] * 4),
        ([4, 1], [True, False]),
        ([100] + [4] * 9, [True] * 10),
    ],
)
def test_classes_of_few_samples_validate_unless_most_have_many(counts: list[int], giving: list[bool]) -> None:
    assert validating(torch.tensor(counts)).tolist() == giving
