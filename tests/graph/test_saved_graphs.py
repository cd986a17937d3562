"""Graphs as torch-geometric leaves them in files: used ones, batches, and whole data sets."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric import transforms
from torch_geometric.data import Batch, Data, InMemoryDataset

from mmdistill.errors import DataError
from mmdistill.graph.files import holds_list, read_graphs
from mmdistill.graph.imports import read_values
from mmdistill.graph.sets import load_graph_set
from mmdistill.graph.sources import load_graph
from mmdistill.registry import domain_of
from tests.graph.sets.test_lists import listed
from tests.graph.sets.toy import rings
from tests.graph.toy import planted_fields

COUNT = 40


def asked(data: Data) -> Data:
    assert data.is_node_attr("x")
    return data


USES: dict[str, Callable[[Data], Data]] = {
    "undirected": transforms.ToUndirected(),
    "sorted": Data.sort,
    "asked": asked,
    "batched": lambda data: Batch.from_data_list([data]),
}


@pytest.mark.parametrize("use", USES)
def test_graphs_are_read_after_use(use: str, tmp_path: Path) -> None:
    torch.save(USES[use](Data(**planted_fields())), tmp_path / "graph.pt")
    assert load_graph(tmp_path / "graph.pt").fingerprint == load_graph(Data(**planted_fields())).fingerprint
    assert {*planted_fields()} <= {*read_values(tmp_path / "graph.pt")}  # where a set of another tool is imported


@pytest.mark.parametrize("use", USES)
def test_lists_of_graphs_are_read_after_use(use: str, tmp_path: Path) -> None:
    graphs = listed(rings(tmp_path))
    expected = load_graph_set(graphs).fingerprint
    torch.save([USES[use](graph) for graph in graphs], tmp_path / "graphs.pt")
    assert load_graph_set(tmp_path / "graphs.pt").fingerprint == expected


def test_no_factory_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save(defaultdict(set, {"a": 1}), tmp_path / "sets.pt")
    assert read_graphs(tmp_path / "sets.pt") == {"a": 1}
    assert type(read_graphs(tmp_path / "sets.pt")) is dict
    torch.save(defaultdict(print), tmp_path / "code.pt")
    with pytest.raises(DataError, match="is not run"):
        read_graphs(tmp_path / "code.pt")


def test_what_torch_read_before_it_reads_after(tmp_path: Path) -> None:
    torch.save(Data(**planted_fields()), tmp_path / "graph.pt")
    before = set(torch.serialization.get_safe_globals())
    assert Data in before
    load_graph(tmp_path / "graph.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def saved_forms(graphs: list[Data]) -> dict[str, Any]:
    """Return what torch-geometric's data sets have saved over the years, and what people save."""
    joined, bounds = InMemoryDataset.collate(graphs)
    return {
        "data": (joined, bounds),
        "fields": (joined.to_dict(), bounds, Data),
        "with sizes": (joined.to_dict(), bounds, {}, Data),
        "tuple": tuple(graphs),
        "two": tuple(graphs[:2]),
    }


@pytest.mark.parametrize("form", ["data", "fields", "with sizes", "tuple"])
def test_a_saved_data_set_of_several_graphs_is_a_set_and_no_graph(form: str, tmp_path: Path) -> None:
    graphs, path = listed(rings(tmp_path)), tmp_path / "data.pt"
    torch.save(saved_forms(graphs)[form], path)
    assert load_graph_set(path).fingerprint == load_graph_set(graphs).fingerprint
    assert domain_of(str(path)).name == "graph-set"
    with pytest.raises(DataError, match=rf"list of {COUNT}, .* and graph_set_task takes a list of many"):
        load_graph(path)


def test_two_graphs_with_masks_are_not_joined_to_one(tmp_path: Path) -> None:
    for form, saved in saved_forms([Data(**planted_fields())] * 2).items():
        torch.save(saved, tmp_path / "data.pt")
        with pytest.raises(DataError, match=r"list of 2, one graph is dataset\[0\]"):
            load_graph(tmp_path / "data.pt")
        assert domain_of(str(tmp_path / "data.pt")).name == "graph-set", form


@pytest.mark.parametrize("form", ["data", "fields", "with sizes", "tuple"])
def test_a_saved_data_set_of_one_graph_is_that_graph(form: str, tmp_path: Path) -> None:
    graph, path = Data(**planted_fields()), tmp_path / "data.pt"
    torch.save(saved_forms([graph])[form], path)
    assert load_graph(path).fingerprint == load_graph(graph).fingerprint
    assert domain_of(str(path)).name == "graph"


def test_bounds_that_do_not_fit_their_graphs_are_damage(tmp_path: Path) -> None:
    joined, bounds = InMemoryDataset.collate(listed(rings(tmp_path)))
    bounds["x"] = bounds["x"][:3]
    torch.save((joined, bounds), tmp_path / "data.pt")
    with pytest.raises(DataError, match="bounds of its graphs"):
        load_graph_set(tmp_path / "data.pt")
    assert domain_of(str(tmp_path / "data.pt")).name == "graph"


def test_a_saved_list_for_each_split_is_the_mapping_of_python(tmp_path: Path) -> None:
    graphs, path = listed(rings(tmp_path)), tmp_path / "splits.pt"
    for parts in ({"train": graphs[:20], "valid": graphs[20:30], "test": graphs[30:]}, {"train": graphs}):
        torch.save(parts, path)
        assert load_graph_set(path).fingerprint == load_graph_set(parts).fingerprint
        assert domain_of(str(path)).name == "graph-set"
    torch.save({"images": [1, 2], "labels": [0, 1]}, path)
    assert not holds_list(path)


def test_sparse_node_features_of_a_set_are_made_dense(tmp_path: Path) -> None:
    graphs = listed(rings(tmp_path))
    expected = load_graph_set(graphs).fingerprint
    for graph in graphs:
        graph.x = graph.x.to_sparse()
    assert load_graph_set(graphs).fingerprint == expected
