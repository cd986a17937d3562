"""Lists of torch-geometric's graphs as a set, in Python and from a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from mmdistill.cli import main
from mmdistill.distill import distill
from mmdistill.errors import ConfigError, DataError
from mmdistill.graph.files import holds_list
from mmdistill.graph.sets import GraphSet, graph_set_task, load_graph_set
from mmdistill.graph.sets.splits import stratified
from mmdistill.registry import domain_of
from mmdistill.runtime import Draws
from tests.graph.sets.toy import FAST, rings


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> GraphSet:
    return rings(tmp_path_factory.mktemp("sets"))


def listed(graphs: GraphSet) -> list[Data]:
    found = []
    for index, (first, last) in enumerate(zip(graphs.start[:-1].tolist(), graphs.start[1:].tolist(), strict=True)):
        own = (graphs.edge_index[0] >= first) & (graphs.edge_index[0] < last)
        edges = graphs.edge_index[:, own] - first
        found.append(Data(x=graphs.x[first:last], edge_index=edges, y=graphs.y[index : index + 1]))
    return found


class Dataset:
    """What torch-geometric's data sets are to a reader: a length and items."""

    def __init__(self, graphs: list[Data]) -> None:
        self.graphs = graphs

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Data:
        return self.graphs[index]


def test_a_list_is_the_set_that_its_files_would_be(graphs: GraphSet, tmp_path: Path) -> None:
    torch.save(listed(graphs), tmp_path / "rings.pt")
    assert holds_list(tmp_path / "rings.pt")
    for source in (listed(graphs), Dataset(listed(graphs)), tmp_path / "rings.pt"):
        found = load_graph_set(source)  # type: ignore[arg-type]
        for name in ("x", "edge_index", "start", "y", "train", "val", "test"):
            assert torch.equal(getattr(found, name), getattr(graphs, name)), name
    assert graph_set_task(listed(graphs)).graphs.num_classes == 2


def test_a_file_with_a_list_is_a_set_of_graphs_on_the_command_line(
    graphs: GraphSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(listed(graphs), tmp_path / "rings.pt")
    torch.save(listed(graphs)[0], tmp_path / "ring.pt")
    assert domain_of(str(tmp_path / "rings.pt")).name == "graph-set"
    assert domain_of(str(tmp_path / "ring.pt")).name == "graph"
    given = ["--data", str(tmp_path / "rings.pt"), "--method", "doscond", "--ipc", "1", "--steps", "2"]
    fast = ["--judge-epochs", "2", "--networks", "1", "--baselines", "none", "--width", "8"]
    assert main(["distill", *given, *fast, "--out", str(tmp_path / "run")]) == 0
    assert "note: random split 0" in capsys.readouterr().out


def test_graphs_without_features_get_their_degree_and_attributes_are_left_out(graphs: GraphSet) -> None:
    plain = [Data(edge_index=one.edge_index, y=one.y, edge_attr=torch.ones(1)) for one in listed(graphs)]
    plain[3].num_nodes = int(graphs.sizes[3]) + 1
    found = load_graph_set(plain)
    assert int(found.sizes[3]) == int(graphs.sizes[3]) + 1
    assert found.notes[0] == "edge_attr of 40 graphs is not read"
    assert "nodes have no features and get their degree" in found.notes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "the list: graph 1 needs a class, one whole number y"),
        ({"y": torch.tensor([[1.0, 1.0]])}, "graph 1 needs a class, one whole number y"),
        ({"y": torch.eye(2)}, "graph 1 needs a class, one whole number y"),
        ({"y": torch.tensor([[0, 1]])}, "classes y are one-hot rows in some graphs, or of several lengths"),
        ({"y": torch.tensor([0, 1])}, "graph 1 needs a class, one whole number y"),
        ({"y": torch.tensor([0.5])}, "graph 1 needs a class, one whole number y, and has 0.5"),
        ({"y": torch.tensor([[float("nan")]])}, "graph 1 needs a class, one whole number y, and has nan"),
        ({"edge_index": None}, r"graph 1 needs edge_index \(2, E\)"),
        ({"edge_index": torch.tensor([[0], [99]])}, "nodes, and edges of nodes 0 to 99"),
        ({"x": torch.ones(6, 3)}, r"different numbers of node features \(3, 8\)"),
        ({"x": torch.ones(6)}, r"graph 1 needs node features x \(n, d\), or none"),
    ],
)
def test_what_is_no_graph_of_a_set_is_named(graphs: GraphSet, changes: dict[str, Any], message: str) -> None:
    found = listed(graphs)
    found[1] = Data(**{**found[1].to_dict(), **changes})
    with pytest.raises(DataError, match=message):
        load_graph_set(found)


def test_classes_in_floats_and_in_a_row_of_their_own_are_taken(graphs: GraphSet) -> None:
    one = listed(graphs)
    found = load_graph_set([Data(x=each.x, edge_index=each.edge_index, y=each.y.float().view(1, 1)) for each in one])
    assert (found.fingerprint, found.names) == (load_graph_set(one).fingerprint, ("0", "1"))
    some = [Data(x=each.x, edge_index=each.edge_index, y=float(each.y)) for each in one[:7]]
    assert load_graph_set([*some, *one[7:]]).fingerprint == found.fingerprint


def test_one_hot_classes_and_sparse_features_are_taken(graphs: GraphSet) -> None:
    one = listed(graphs)
    rows = [torch.eye(2)[each.y] for each in one]
    found = load_graph_set([Data(x=each.x, edge_index=each.edge_index, y=y) for each, y in zip(one, rows, strict=True)])
    assert found.fingerprint == graphs.fingerprint
    assert found.notes[0] == "labels y are one-hot: classes are its 2 columns"
    for layout in (torch.sparse_coo, torch.sparse_csr):
        thin = [Data(x=each.x.to_sparse(layout=layout), edge_index=each.edge_index, y=each.y) for each in one]
        assert load_graph_set(thin).fingerprint == graphs.fingerprint


@pytest.mark.parametrize(
    ("few", "parts"), [(2, (1, 0, 1)), (3, (2, 0, 1)), (5, (4, 0, 1)), (6, (4, 1, 1)), (9, (7, 1, 1)), (10, (8, 1, 1))]
)
def test_a_class_of_few_graphs_trains_and_tests(graphs: GraphSet, few: int, parts: tuple[int, ...]) -> None:
    one = listed(graphs)
    found = load_graph_set([*one[::2], *one[1::2][:few]])
    counted = [torch.bincount(found.y[part], minlength=2).tolist() for part in (found.train, found.val, found.test)]
    assert counted == [[16, parts[0]], [2, parts[1]], [2, parts[2]]]
    assert torch.cat([found.train, found.val, found.test]).sort().values.tolist() == list(range(20 + few))
    assert any("no validation graph is of class 1" in note for note in found.notes) == (parts[1] == 0)
    if few < 6:  # with its own test graphs
        given = load_graph_set({"train": [*one[::2], *one[1::2][: few - 1]], "test": one})
        assert torch.bincount(given.y[given.val], minlength=2).tolist() == [2, 0]


def test_where_all_classes_are_small_each_validates() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    counted = [torch.bincount(y[part], minlength=3).tolist() for part in stratified(y, 0, ("a", "b", "c"))]
    assert counted == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    with pytest.raises(DataError, match=r"classes of two graphs leave none to validate with; .*graph_set_task\({"):
        stratified(y[[0, 1, 3, 4]], 0, ("a", "b"))
    with pytest.raises(DataError, match=r"class b has a single graph, .*graph_set_task\({\"train\""):
        stratified(y[:4], 0, ("a", "b"))


def test_lists_by_name_of_split_are_published_splits(graphs: GraphSet) -> None:
    one = listed(graphs)
    parts = {"test": one[:6], "Val": Dataset(one[6:12]), "training": one[12:]}
    found = load_graph_set(parts)  # type: ignore[arg-type]
    assert torch.equal(found.y[found.test], graphs.y[:6])
    assert torch.equal(found.y[found.val], graphs.y[6:12])
    assert torch.equal(found.sizes[found.train], graphs.sizes[12:])
    assert found.notes == ()
    assert load_graph_set(dict(reversed(parts.items()))).fingerprint == found.fingerprint  # type: ignore[arg-type]
    task = graph_set_task(parts, width=4, protocol=FAST)  # type: ignore[arg-type]
    assert len(distill(task, "doscond", ipc=1, settings={"steps": 1}).batch.weight) == 2
    assert task.evaluate(None, "gcn", Draws(0), 1, {}).values["accuracy"][0] >= 0


def test_a_split_that_is_missing_is_held_out_of_the_training_graphs(graphs: GraphSet) -> None:
    one = listed(graphs)
    found = load_graph_set({"train": one[:30], "test": one[30:]}, seed=1)
    assert torch.equal(found.test, torch.arange(30, 40))
    assert torch.cat([found.train, found.val]).sort().values.tolist() == list(range(30))
    assert torch.bincount(found.y[found.val]).tolist() == [2, 2]
    assert found.notes == ("validation: 10% of the training graphs of each class, at random, seed 1",)
    assert not torch.equal(found.val, load_graph_set({"train": one[:30], "test": one[30:]}, seed=2).val)
    both = load_graph_set({"train": one})
    assert [len(part) for part in (both.train, both.val, both.test)] == [32, 4, 4]
    assert [note.partition(":")[0] for note in both.notes] == ["test", "validation"]


class ByName:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: str) -> list[object]:
        return {"graphs": [object()], "more": [object()]}[name]


def test_splits_that_cannot_be_used_are_named(graphs: GraphSet) -> None:
    one = listed(graphs)
    first, second = one[::2], one[1::2]  # of the two classes
    told = load_graph_set({"train": one[:20], "val": one[20:], "test": first})
    assert told.notes == ("no test graph is of class 1, so scores say nothing of it",)
    with pytest.raises(ConfigError, match="unknown split 'tests'; did you mean 'test'"):
        load_graph_set({"train": one, "tests": one})
    for parts, message in (
        ({"val": one, "test": one}, "no training split; there are: val, test"),
        ({"train": one, "val": one, "dev": one}, "'val' and 'dev' both name the dev split"),
        ({"train": one, "val": []}, "val is an empty list"),
        ({"train": one, "test": 3}, "test: a set of graphs is .* got int"),
        ({"train": one, "test": [one[0], 3]}, "test: graph 1 is int"),
        ({"train": one, "test": ByName()}, r"test: ByName is no list of graphs, .* by number .*\(KeyError: 0\)"),
        ({"train": first, "val": one, "test": one}, "class 1 has no training graph"),
        ({"train": first, "test": one}, "class 1 has no training graph"),
        ({"train": [*first, second[0]]}, 'class 1 has a single training graph, and none is left for test; .* "test": '),
        ({"train": [first[0], second[0]], "test": one}, "class 0 has a single training graph, .* for validation; add"),
        (dict(one[0].to_dict()), "a list of torch-geometric's Data, got dict"),
    ):
        with pytest.raises(DataError, match=message):
            load_graph_set(parts)  # type: ignore[arg-type]


def test_what_is_no_list_of_graphs_is_refused(graphs: GraphSet, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "numbers.pt")
    with pytest.raises(DataError, match="graph 0 is int, and a torch-geometric Data with edge_index and y is expected"):
        load_graph_set(tmp_path / "numbers.pt")
    for nothing in ([], 3):
        with pytest.raises(DataError, match="list of"):
            load_graph_set(nothing)  # type: ignore[arg-type]
    (tmp_path / "damaged.pt").write_bytes(b"PK no archive")
    assert not holds_list(tmp_path / "damaged.pt")
