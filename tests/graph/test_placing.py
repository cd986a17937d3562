from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn.models import basic_gnn

from mmdistill.errors import DataError, ShapeError
from mmdistill.graph.draw import graph_tensors
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Tensors
from tests.graph.toy import FAST, planted_graph

GRAPH = planted_graph()


def task() -> GraphTask:
    return graph_task(GRAPH, protocol=replace(FAST, epochs=20))


def chosen(own: GraphTask) -> tuple[Batch, Tensors]:
    """Return training nodes with weighted edges among them, and the same in torch-geometric's fields."""
    batch = own.select(torch.arange(18))
    assert isinstance(batch.inputs, dict)
    weighted = batch._replace(inputs={**batch.inputs, "adjacency": 0.9 * batch.inputs["adjacency"]})
    fields = graph_tensors(weighted)
    return weighted, {name: fields[name] for name in ("x", "edge_index", "edge_weight")}


@pytest.mark.parametrize("judge", ["gcn", "sgc", "graphsage", "gat"])
@pytest.mark.parametrize("most", [2048, 1], ids=["dense", "sparse"])
def test_judges_read_edges_in_either_form(judge: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.graph.placing.DENSE_NODES", most)
    own = task()
    weighted, fields = chosen(own)
    scores = own.evaluate(weighted, judge, Draws(0), 3, {}).values["accuracy"]
    assert own.evaluate(weighted._replace(inputs=fields), judge, Draws(0), 3, {}).values["accuracy"] == scores
    without = weighted._replace(inputs={"x": fields["x"]})
    assert own.evaluate(without, judge, Draws(0), 3, {}).values["accuracy"] != scores


def pyg_gcn() -> nn.Module:
    module: nn.Module = basic_gnn.GCN(12, 8, 2, 3)
    return module


@pytest.mark.parametrize("most", [2048, 1], ids=["dense", "sparse"])
@pytest.mark.parametrize("model", ["gcn", pyg_gcn], ids=["gcn", "module"])
def test_what_a_network_trains_on_is_the_real_graph_to_each_judge(
    model: str | Callable[[], nn.Module], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdistill.graph.placing.DENSE_NODES", most)
    own = graph_task(GRAPH, model=model, protocol=FAST)
    for judge in ("gcn", "sgc", "graphsage"):
        given = own.evaluate(own.training_batch(), judge, Draws(0), 3, {}).values["accuracy"]
        whole = own.evaluate(None, judge, Draws(0), 3, {}).values["accuracy"]
        # Dropout is drawn for the nodes that are read, of the training nodes their neighbours alone.
        assert given == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(18)}, r"must be \(n, 12\), got \(18,\)"),
        ({"x": torch.ones(1, 18, 12)}, r"must be \(n, 12\), got \(1, 18, 12\)"),
        ({"adjacency": torch.ones(17, 17)}, r"18 synthetic nodes have a weight per pair, \(18, 18\), got \(17, 17\)"),
        ({"adjacency": torch.ones(18)}, r"a weight per pair, \(18, 18\), got \(18,\)"),
    ],
)
def test_nodes_and_weights_of_other_shapes_are_refused(changed: dict[str, Tensor], message: str) -> None:
    own = task()
    batch, _ = chosen(own)
    assert isinstance(batch.inputs, dict)
    with pytest.raises(ShapeError, match=message):
        own.evaluate(batch._replace(inputs={**batch.inputs, **changed}), "gcn", Draws(0), 1, {})


def test_edges_of_nodes_that_there_are_not_are_refused() -> None:
    own = task()
    batch, fields = chosen(own)
    outside = {**fields, "edge_index": torch.tensor([[0, 3], [18, 3]]), "edge_weight": torch.ones(2)}
    with pytest.raises(DataError, match="names nodes 0 to 18, but x has 18 rows"):
        own.validate(batch._replace(inputs=outside), Draws(0), {})
