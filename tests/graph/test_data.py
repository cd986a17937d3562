import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import safetensors.torch
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import OneHotDegree
from torch_geometric.utils import dense_to_sparse, from_networkx

from mmdistill.cli import main
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError, DataError
from mmdistill.graph import DOMAIN, graph_task, load_graph
from mmdistill.graph.adjacency import undirected
from mmdistill.graph.data import MASKS
from mmdistill.runtime import data_root
from tests.graph.toy import planted_fields, planted_graph

needs_cora = pytest.mark.skipif(
    not (data_root() / "Cora" / "raw" / "ind.cora.x").is_file(), reason="needs Cora/raw under MMDISTILL_DATA"
)


def as_data(**changes: Any) -> Data:
    return Data.from_dict({**planted_fields(), **changes})


def test_a_data_object_a_pt_file_and_safetensors_give_one_graph(tmp_path: Path) -> None:
    data = as_data()
    torch.save(data, tmp_path / "data.pt")
    torch.save(planted_fields(), tmp_path / "plain.pt")
    safetensors.torch.save_file({k: v.contiguous() for k, v in planted_fields().items()}, tmp_path / "data.safetensors")
    expected = load_graph(data).fingerprint
    for name in ("data.pt", "plain.pt", "data.safetensors"):
        assert load_graph(tmp_path / name).fingerprint == expected
        assert DOMAIN.accepts(tmp_path / name)


def test_arrays_in_files_of_torch_are_tensors(tmp_path: Path) -> None:
    torch.save({name: value.numpy() for name, value in planted_fields().items()}, tmp_path / "arrays.pt")
    assert load_graph(tmp_path / "arrays.pt").fingerprint == planted_graph().fingerprint


def test_a_graph_stays_as_it_was_read_when_its_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "data.SafeTensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in planted_fields().items()}, path)
    assert DOMAIN.accepts(path)
    graph = load_graph(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(graph.x, load_graph(as_data()).x)
    assert torch.equal(graph.y, load_graph(as_data()).y)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_graph_in_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"b\xe9") / "data.safetensors"
    path.parent.mkdir()
    path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in planted_fields().items()}))
    assert DOMAIN.accepts(path)
    assert load_graph(path).fingerprint == load_graph(as_data()).fingerprint


def test_edges_become_undirected_unique_and_free_of_loops() -> None:
    graph = planted_graph(edge_index=torch.tensor([[0, 0, 1, 2, 3], [1, 1, 0, 2, 4]]))
    assert graph.edge_index.tolist() == [[0, 1, 3, 4], [1, 0, 4, 3]]
    assert graph.edge_weight.tolist() == [1, 1, 1, 1]
    said = " ".join(graph.notes)
    for word in ("1 self-loops", "1 duplicate", "1 reverse", "116 isolated"):
        assert word in said


def test_edge_weights_are_kept_and_the_largest_of_duplicates_wins() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 0, 3]])
    graph = planted_graph(edge_index=edges, edge_weight=torch.tensor([0.5, 2.0, 0.25]))
    assert graph.edge_weight.tolist() == [2.0, 2.0, 0.25, 0.25]


def test_arrays_are_read_as_tensors_are() -> None:
    given = {key: one.numpy() for key, one in planted_fields().items() if isinstance(one, torch.Tensor)}
    found = load_graph({**given, "names": np.array(["a"] * 120)})
    assert found.fingerprint == load_graph(as_data()).fingerprint
    with pytest.raises(DataError, match="user graph: x holds an array of <U1; expected one of numbers"):
        load_graph({**given, "x": np.array(["a"] * 120)})


def test_a_graph_without_edges_is_a_set_of_nodes() -> None:
    graph = planted_graph(edge_index=torch.zeros(2, 0, dtype=torch.long))
    assert graph.edge_index.shape == (2, 0)


def test_missing_validation_nodes_are_stated() -> None:
    assert any("no validation nodes" in note for note in planted_graph(val_mask=None).notes)


@pytest.mark.parametrize(
    ("scale", "shift", "said"),
    [(1.0, 0.0, ""), (1e-4, 0.0, "close to 0"), (1.0, 1e4, "far from 0"), (0.0, 1.0, "same features"), (1e4, 0.0, "")],
)
def test_features_that_networks_hardly_learn_from_are_stated(scale: float, shift: float, said: str) -> None:
    notes = [note for note in planted_graph(x=scale * planted_fields()["x"] + shift).notes if "networks learn" in note]
    assert [said in note for note in notes] == ([True] if said else [])


@pytest.mark.parametrize(("value", "said"), [(10.0, False), (1e3, True), (1e30, True)])
def test_a_node_whose_features_outweigh_all_others_is_stated(value: float, said: bool) -> None:
    x = planted_fields()["x"].clone()
    x[100:] = 0  # nodes without features have no part in the median
    x[7] = value
    assert any("the features of node 7 have a norm of" in note for note in planted_graph(x=x).notes) == said


def test_attributes_of_edges_that_are_not_read_are_stated() -> None:
    edges = planted_fields()["edge_index"].shape[1]
    told = "edge_attr is not read (weights of edges are read from edge_weight)"
    attributes: list[torch.Tensor] = [torch.rand(edges, 3), torch.rand(edges) - 0.5, torch.arange(edges) % 4]
    kinds, some = (torch.arange(edges) % 3 + 1).float(), torch.rand(edges) + 0.1
    attributes += [kinds, kinds[:, None], some * (kinds < 3), torch.zeros(edges, 1), torch.full((edges,), 1e38)]
    for attribute in (*attributes, torch.full((edges,), torch.nan), torch.rand(edges - 1)):
        graph = load_graph(as_data(edge_attr=attribute))
        assert graph.notes == (told,)
        assert graph.edge_weight.unique().tolist() == [1]
    both = load_graph(as_data(edge_attr=torch.rand(edges), edge_weight=torch.full((edges,), 2.0)))
    assert (both.notes, both.edge_weight.unique().tolist()) == ((told,), [2])
    assert load_graph(as_data(weight=torch.rand(120))).notes == (told.replace("edge_attr", "weight"),)
    for values in (np.array(["a"] * edges), np.array([None] * edges), np.zeros(edges)):
        for key in ("edge_attr", "weight"):
            assert load_graph({**planted_fields(), key: values}).notes == (told.replace("edge_attr", key),)


@pytest.mark.parametrize("key", ["weight", "edge_attr"])
def test_weights_of_edges_are_read_from_their_usual_names(key: str) -> None:
    ends = planted_fields()["edge_index"]
    weight = (ends.sum(0) % 5 + 1) / 4
    expected = load_graph(as_data(edge_weight=weight))
    for given in (weight, weight[:, None].double(), weight.numpy()):
        graph = load_graph({**planted_fields(), key: given})
        assert graph.fingerprint == expected.fingerprint
        said = f"weights of edges are read from {key} (larger means closer; leave {key} out if it is something else)"
        assert graph.notes == (said,)


def test_weights_that_tools_leave_are_read() -> None:
    fields = planted_fields()
    nodes = nx.Graph()
    nodes.add_nodes_from((node, {"x": fields["x"][node].tolist()}) for node in range(120))
    nodes.add_edges_from((*ends, {"weight": 3}) for ends in fields["edge_index"].T.tolist())
    data = from_networkx(nodes)
    for key in ("y", "train_mask", "val_mask", "test_mask"):
        data[key] = fields[key]
    assert load_graph(data).edge_weight.unique().tolist() == [3]
    ends, weight = dense_to_sparse(torch.full((120, 120), 0.5))
    assert load_graph(as_data(edge_index=ends, edge_attr=weight)).edge_weight.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    "names",
    [
        ("train_idx", "val_idx", "test_idx"),
        ("train_idx", "valid_idx", "test_idx"),
        ("idx_train", "idx_val", "idx_test"),
        ("train_mask", "valid_mask", "test_mask"),
    ],
)
def test_splits_are_read_from_their_usual_names(names: tuple[str, ...]) -> None:
    fields, given = planted_fields(), planted_fields()
    for mask, key in zip(("train_mask", "val_mask", "test_mask"), names, strict=True):
        del given[mask]
        given[key] = fields[mask] if key.endswith("mask") else fields[mask].nonzero()[:, 0].flip(0).int()
    graph = load_graph(given)
    assert graph.fingerprint == load_graph(fields).fingerprint
    assert graph.test_fingerprint == load_graph(fields).test_fingerprint
    changed = [key for key in names if key not in fields]
    masks = [mask for mask in ("train_mask", "val_mask", "test_mask") if mask not in names]
    assert graph.notes == tuple(f"{mask} is read from {key}" for mask, key in zip(masks, changed, strict=True))
    both = load_graph(fields | {key: given[key] for key in changed})
    assert both.fingerprint == graph.fingerprint
    assert both.notes == tuple(f"{key} is not read, since {mask} is" for mask, key in zip(masks, changed, strict=True))
    arrays = {key: value.numpy() for key, value in given.items()}
    assert load_graph(arrays).fingerprint == graph.fingerprint


def test_one_of_several_names_of_a_split_is_read_and_an_empty_one_may_have_any_type() -> None:
    fields = planted_fields()
    ids = {"train_idx": fields["train_mask"].nonzero()[:, 0], "idx_train": torch.arange(3)}
    others = {key: fields[key] for key in ("x", "edge_index", "y", "test_mask")}
    graph = load_graph({**others, **ids, "val_idx": np.array([])})
    assert graph.train.tolist() == ids["train_idx"].tolist()
    assert graph.notes[:3] == (
        "idx_train is not read, since train_idx is",
        "train_mask is read from train_idx",
        "val_mask is read from val_idx",
    )
    assert "no validation nodes" in graph.notes[3]


def test_one_hot_labels_are_classes() -> None:
    fields = planted_fields()
    for kind in (torch.float32, torch.int64, torch.bool):
        graph = planted_graph(y=torch.nn.functional.one_hot(fields["y"]).to(kind))
        assert graph.fingerprint == planted_graph().fingerprint
        assert graph.notes == ("labels y are one-hot: classes are its 3 columns",)
    wide = planted_graph(y=torch.nn.functional.one_hot(2 * fields["y"], 7))
    assert wide.notes[0] == "labels y are one-hot: classes are the 3 of its 7 columns that are in use"
    two = torch.nn.functional.one_hot(fields["y"])
    two[3, :2] = 1
    with pytest.raises(DataError, match="multi-label graphs cannot be condensed"):
        planted_graph(y=two)


def test_several_splits_are_columns() -> None:
    fields = planted_fields()
    masks = {k: torch.stack([v, v.roll(3)], 1) for k, v in fields.items() if k.endswith("mask")}
    assert load_graph(as_data(**masks), split=1).train.tolist() == fields["train_mask"].roll(3).nonzero()[:, 0].tolist()
    assert load_graph(as_data(**masks), split=1).notes == (
        "train_mask: split 1 of 2 is read",
        "val_mask: split 1 of 2 is read",
        "test_mask: split 1 of 2 is read",
    )
    one = {name: mask[:, :1] for name, mask in masks.items()}
    assert load_graph(as_data(**one)).notes == ()
    with pytest.raises(DataError, match="no split 2"):
        load_graph(as_data(**masks), split=2)


def nan_features() -> torch.Tensor:
    x = planted_fields()["x"].clone()
    x[5, 2] = torch.nan
    return x


def labels(**at: int) -> torch.Tensor:
    y = planted_fields()["y"].clone()
    for node, value in at.items():
        y[int(node[1:])] = value
    return y


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_mask": None}, "no training nodes"),
        ({"x": torch.zeros(120, 3)}, "all node features are 0; give nodes some"),
        ({"train_mask": torch.zeros(120, dtype=torch.bool)}, "no training nodes"),
        ({"test_mask": None}, "no test nodes"),
        ({"x": None}, r"no node features, a tensor 'x' .* len\(data\.y\), T\.OneHotDegree\(max_degree\)\(data\) of"),
        ({"x": None, "y": None}, "needs a tensor 'x', it is missing; a graph has x"),
        ({"x": nan_features()}, "first: node 5"),
        ({"x": torch.ones(120)}, "must be \\(nodes, features\\)"),
        ({"y": None}, "needs a tensor 'y'"),
        ({"y": torch.full((120,), 0.5)}, "class indices"),
        ({"y": torch.arange(119)}, "one class index per node"),
        ({"y": torch.ones(120, 4)}, "multi-label graphs cannot be condensed"),
        ({"y": labels(n20=7)}, "class 7 has no training node; label some, or take its nodes out of the splits"),
        ({"y": labels(n0=-1)}, "training labels must be 0 or more .* got -1"),
        ({"y": torch.where(torch.arange(120) == 20, 1, 2 * labels())}, "class 1 has no training node; label some"),
        ({"y": 0 * labels() + 3}, "the single class 3"),
        ({"x": planted_fields()["x"] + 0j}, "must be real"),
        ({"edge_index": None}, "needs a tensor 'edge_index'"),
        ({"edge_index": torch.tensor([[0], [120]])}, "names nodes 0 to 120"),
        ({"edge_index": torch.zeros(3, 4, dtype=torch.long)}, "integer \\(2, edges\\)"),
        ({"edge_weight": -torch.ones(planted_fields()["edge_index"].shape[1])}, "finite number >= 0"),
        ({"edge_weight": torch.full((planted_fields()["edge_index"].shape[1],), 3e38)}, "more than float32 holds"),
        ({"edge_weight": planted_fields()["edge_index"][0] + 1j}, "edge_weight must be real"),
        ({"edge_index": planted_fields()["edge_index"] > 5}, "integer \\(2, edges\\)"),
        ({"edge_index": planted_fields()["edge_index"] + 0j}, "integer \\(2, edges\\)"),
        ({"train_mask": torch.arange(120)}, r"must be boolean .*index_fill_\(0, ids, True\) makes one of node numbers"),
        ({"test_mask": torch.arange(120) % 2}, r"must be boolean .*test_mask\.bool\(\) makes one of zeros and ones"),
        (
            {"train_mask": None, "train_idx": torch.tensor([0, 120])},
            "train_idx must hold different node numbers from 0 to",
        ),
        ({"train_mask": None, "train_idx": torch.tensor([-1, 3])}, r"or give a boolean train_mask \(120,\)"),
        ({"train_mask": None, "train_idx": torch.tensor([1, 1])}, "must hold different node numbers"),
        ({"train_mask": None, "train_idx": torch.tensor([0.0])}, r"got torch.float32 \(1,\)"),
        ({"train_mask": None, "train_idx": torch.tensor([[0]])}, r"got torch.int64 \(1, 1\)"),
        ({"test_mask": torch.ones(120, dtype=torch.bool)}, "both the training and the test mask"),
    ],
)
def test_bad_graphs_are_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        planted_graph(**changes)


def test_unknown_names_suggest_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'cora'"):
        load_graph("corra")
    with pytest.raises(DataError, match=r"there is no file .*graph\.pt"):
        load_graph(tmp_path / "graph.pt")
    (tmp_path / "graph.csv").write_text("a,b")
    with pytest.raises(DataError, match="no graph file"):
        load_graph(tmp_path / "graph.csv")
    with pytest.raises(DataError, match="got list"):
        load_graph([1, 2])


def test_labels_as_whole_floats_are_taken_as_classes() -> None:
    graph = planted_graph(y=planted_fields()["y"].double())
    assert graph.y.dtype == torch.int64
    assert torch.equal(graph.y, planted_graph().y)


def test_labels_with_gaps_are_numbered_by_their_order() -> None:
    plain, own = planted_graph(), torch.tensor([5, 70, 10**12])
    graph = planted_graph(y=own[planted_fields()["y"]])
    assert torch.equal(graph.y, plain.y)
    assert (graph.num_classes, graph.class_names) == (3, ("5", "70", "1000000000000"))
    assert (graph.fingerprint, graph.test_fingerprint) == (plain.fingerprint, plain.test_fingerprint)
    assert graph.notes == ("classes are numbered in the order of their labels: 5, 70, 1000000000000",)
    assert (plain.class_names, plain.notes) == (("0", "1", "2"), ())
    assert graph_task(graph).describe().class_names == graph.class_names


def test_what_is_said_to_give_nodes_features_gives_them() -> None:
    data = as_data(x=None)
    data.num_nodes = len(data.y)  # as isolated nodes at the end are in no edge
    assert load_graph(OneHotDegree(40)(data)).x.shape == (120, 41)


def test_what_is_no_class_of_the_training_nodes_is_unknown_outside_of_the_splits() -> None:
    fields = planted_fields()
    y, test = 2 * fields["y"], fields["test_mask"].clone()
    y[110:114], test[110:114] = torch.tensor([-1, 1, 3, 9]), False
    assert planted_graph(y=y, test_mask=test).y[109:115].tolist() == [1, -1, -1, -1, -1, 0]


def test_heterogeneous_graphs_are_refused_as_objects_and_as_files(tmp_path: Path) -> None:
    data = HeteroData()
    data["paper"].x = torch.zeros(3, 2)
    data["paper", "cites", "paper"].edge_index = torch.zeros(2, 1, dtype=torch.long)
    torch.save(data, tmp_path / "hetero.pt")
    for source in (data, tmp_path / "hetero.pt"):
        with pytest.raises(DataError, match=r"is heterogeneous .* data\.to_homogeneous"):
            load_graph(source)
    assert DOMAIN.accepts(tmp_path / "hetero.pt")


class Trap:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap"),))


def test_damaged_files_and_pickled_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for name in ("trap.pt", "cut.pt", "cut.safetensors"):
        with pytest.raises(DataError, match="cannot be read"):
            load_graph(tmp_path / name)
        # Torch's files without images are claimed as graphs, so that the command line too says what is wrong with one.
        assert DOMAIN.accepts(tmp_path / name) == name.endswith(".pt")
    assert not (tmp_path / "trap").exists()


def test_the_command_line_chooses_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = planted_fields()
    masks = {name: torch.stack([fields[name], fields[name].roll(3)], 1) for name in MASKS}
    torch.save({**fields, **masks}, tmp_path / "graph.pt")
    run, given = str(tmp_path / "run"), ["--data", str(tmp_path / "graph.pt"), "--nodes", "3"]
    fast = ["--judge-epochs", "2", "--networks", "1", "--baselines", "none"]
    assert main(["distill", *given, *fast, "--method", "propagated-means", "--split", "1", "--out", run]) == 0
    assert "train_mask: split 1 of 2 is read" in capsys.readouterr().out
    saved = DistilledSet.load(Path(run))
    assert saved.info.fingerprint == load_graph(tmp_path / "graph.pt", split=1).fingerprint
    assert main(["evaluate", run, *fast]) == 0  # on the same split
    assert main(["distill", *given, "--method", "gcond-x", "--split", "2", "--dry-run"]) == 2
    assert "train_mask has 2 splits, there is no split 2" in capsys.readouterr().err
    assert main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--split", "1"]) == 2
    assert "--split is for graph data" in capsys.readouterr().err


def test_the_command_line_says_why_a_saved_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Trap()}, tmp_path / "trap.pt")
    torch.save((torch.zeros(4, 1, 2, 2), torch.arange(4)), tmp_path / "images.pt")
    for name, message in (("trap.pt", "a graph of plain tensors"), ("images.pt", "images are saved by name")):
        assert main(["distill", "--data", str(tmp_path / name), "--method", "gcond-x", "--nodes", "3"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "trap").exists()


def test_missing_planetoid_files_say_which_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(root: str, name: str) -> None:
        raise OSError("no network")

    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch_geometric.datasets.Planetoid", unreachable)
    with pytest.raises(DataError, match=r"Cora lacks raw/ind\.cora\.x.*download failed"):
        load_graph("cora")


@pytest.mark.data
@needs_cora
def test_cora_is_the_published_graph() -> None:
    graph = load_graph("Cora")
    assert graph.x.shape == (2708, 1433)
    assert graph.edge_index.shape == (2, 10556)
    assert (len(graph.train), len(graph.val), len(graph.test), graph.num_classes) == (140, 500, 1000, 7)
    assert torch.allclose(graph.x.sum(1), torch.ones(2708))


def test_the_fingerprint_tells_validation_nodes_and_no_test_labels() -> None:
    graph = planted_graph()
    prints = {graph.fingerprint}
    prints.add(replace(graph, val=graph.val[1:]).fingerprint)
    prints.add(replace(graph, train=torch.cat([graph.train, graph.val[:1]]), val=graph.val[1:]).fingerprint)
    y = graph.y.clone()
    y[graph.val[0]] += 1
    prints.add(replace(graph, y=y).fingerprint)
    assert len(prints) == 4
    y = graph.y.clone()
    y[graph.test] = 0
    other = replace(graph, y=y)
    assert other.fingerprint == graph.fingerprint
    assert other.test_fingerprint != graph.test_fingerprint


def test_edges_of_two_weights_are_noted() -> None:
    edges = torch.tensor([[0, 1, 4, 4, 2], [1, 0, 5, 5, 3]])
    adjacency, notes = undirected(edges, torch.tensor([1.0, 5.0, 1.0, 2.0, 1.0]), 6)
    assert "1 duplicate edges merged, of which the largest weight stays" in notes
    assert "1 edges have another weight in the other direction; the larger one stays" in notes
    assert adjacency.matrix[0, 1] == adjacency.matrix[1, 0] == 5
    assert not any("weight" in note for note in undirected(edges, None, 6)[1])
