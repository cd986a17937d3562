"""Graphs as people bring them: without masks, in data sets, of other libraries; errors say what to do instead."""

from pathlib import Path
from typing import Any

import networkx
import pytest
import torch
from torch_geometric import transforms
from torch_geometric.data import Data, InMemoryDataset

from mmdistill.errors import DataError
from mmdistill.graph.data import SPLITTING
from mmdistill.graph.sources import load_graph
from mmdistill.registry import domain_of

NODES = 1200


def graph(*, masks: bool) -> Data:
    draw = torch.Generator().manual_seed(0)
    data = Data(
        x=torch.randn(NODES, 4, generator=draw),
        edge_index=torch.randint(0, NODES, (2, 3 * NODES), generator=draw),
        y=torch.arange(NODES) % 3,
    )
    if masks:
        for start, name in enumerate(("train_mask", "val_mask", "test_mask")):
            data[name] = torch.arange(NODES) // (NODES // 3) == start
    return data


class Owned(InMemoryDataset):
    def __init__(self, graphs: list[Data]) -> None:
        super().__init__()
        self.data, self.slices = self.collate(graphs)


def test_a_graph_without_masks_is_told_what_gives_it_some() -> None:
    data = graph(masks=False)
    with pytest.raises(DataError) as caught:
        load_graph(data)
    assert SPLITTING in str(caught.value)
    divided = eval(SPLITTING.partition(" of ")[0], {"T": transforms, "data": data})
    assert len(load_graph(divided).train) == NODES - 2 * round(0.2 * NODES)
    data.train_mask = torch.zeros(NODES, dtype=torch.bool)  # which somebody did divide
    with pytest.raises(DataError, match="no training nodes") as caught:
        load_graph(data)
    assert "RandomNodeSplit" not in str(caught.value)


def test_a_transposed_adjacency_is_named_as_the_cause() -> None:
    data = graph(masks=True)
    data.adj_t = torch.eye(NODES)  # whatever its layout
    del data.edge_index
    with pytest.raises(DataError, match=r"adj_t and no edge_index, as T.ToSparseTensor leaves a graph"):
        load_graph(data)


def test_a_data_set_or_list_of_one_graph_is_that_graph(tmp_path: Path) -> None:
    data = graph(masks=True)
    torch.save([data], tmp_path / "graphs.pt")
    assert domain_of(str(tmp_path / "graphs.pt")).name == "graph"
    sources: list[Any] = [[data], (data,), Owned([data]), tmp_path / "graphs.pt"]
    for source in sources:
        assert load_graph(source).fingerprint == load_graph(data).fingerprint


def test_data_sets_and_lists_of_graphs_are_told_from_a_graph() -> None:
    data = graph(masks=True)
    sources: list[Any] = [[data, data], (data, data), Owned([data, data])]
    for source in sources:
        with pytest.raises(
            DataError, match=r"of 2, one graph is dataset\[0\], and graph_set_task takes a list of many"
        ):
            load_graph(source)
    for nothing in ([], [1], {1}):
        with pytest.raises(DataError, match="give a name, a file"):
            load_graph(nothing)


def test_graphs_of_networkx_are_told_how_to_come() -> None:
    with pytest.raises(DataError, match=r"torch_geometric\.utils.from_networkx makes a graph of it"):
        load_graph(networkx.karate_club_graph())
