import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import add_self_loops

from mmdistill.graph.architectures import ARCHITECTURES, SharedTerms, TwoConvolutions, averaging, make_architecture
from mmdistill.graph.task import graph_task
from mmdistill.runtime import Draws
from mmdistill.task import Batch
from tests.graph.toy import FAST, planted_graph

GRAPH = planted_graph()
NODES = len(GRAPH.x)


def dense() -> Tensor:
    weights = torch.zeros(NODES, NODES)
    weights[GRAPH.edge_index[0], GRAPH.edge_index[1]] = GRAPH.edge_weight
    return weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_graph_as_edges_and_as_dense_weights_gives_the_same_logits(name: str) -> None:
    network = make_architecture(name, 12, 3, 16, 0.5, "cpu")
    state = network.init(Draws(0))
    raw = {"x": GRAPH.x, "edge_index": GRAPH.edge_index, "edge_weight": GRAPH.edge_weight}
    by_edges, _ = network.logits(state, raw)
    by_weights, _ = network.logits(state, network.precomputed({"x": GRAPH.x, "adjacency": dense()}))
    assert by_edges.shape == (NODES, 3)
    assert torch.allclose(by_edges, by_weights, atol=1e-4)


@pytest.mark.parametrize("name", ["appnp", "chebnet", "graphsage"])
def test_weights_of_edges_matter(name: str) -> None:
    network = make_architecture(name, 12, 3, 16, 0.5, "cpu")
    state = network.init(Draws(0))
    weights = dense() * Draws(1).uniform(NODES, NODES)
    full, _ = network.logits(state, {"x": GRAPH.x, "adjacency": dense()})
    weighted, _ = network.logits(state, {"x": GRAPH.x, "adjacency": (weights + weights.mT) / 2})
    assert not torch.allclose(full, weighted, atol=1e-3)


def test_chebnet_shares_one_weight_among_its_two_terms() -> None:
    module = make_architecture("chebnet", 12, 3, 16, 0.0, "cpu").functional.module
    assert isinstance(module, TwoConvolutions)
    first = module.first
    assert isinstance(first, SharedTerms)
    weights = dense() + torch.eye(NODES)
    scale = weights.sum(1).rsqrt()
    expected = first.linear(GRAPH.x + (scale[:, None] * weights * scale) @ GRAPH.x)
    assert torch.allclose(first(GRAPH.x, GRAPH.edge_index, GRAPH.edge_weight), expected, atol=1e-5)
    none = torch.empty(2, 0, dtype=torch.long)
    assert torch.allclose(first(GRAPH.x, none, torch.empty(0)), first.linear(2 * GRAPH.x), atol=1e-5)


def test_graphsage_is_the_mean_over_a_node_and_its_neighbours() -> None:
    module = make_architecture("graphsage", 12, 3, 16, 0.0, "cpu").functional.module
    assert isinstance(module, TwoConvolutions)
    sage = SAGEConv(12, 16, aggr="mean")
    with torch.no_grad():
        for own, theirs in ((module.first.lin_rel, sage.lin_l), (module.first.lin_root, sage.lin_r)):
            assert isinstance(own, nn.Module)
            theirs.load_state_dict(own.state_dict())
        edges, weight = averaging(GRAPH.edge_index, GRAPH.edge_weight, NODES)
        assert torch.allclose(
            module.first(GRAPH.x, edges, weight), sage(GRAPH.x, add_self_loops(edges[:, :-NODES])[0]), atol=1e-5
        )


def test_attention_reads_all_real_edges_and_the_heavy_pairs_of_a_synthetic_graph() -> None:
    network = make_architecture("gat", 12, 3, 16, 0.5, "cpu")
    state = network.init(Draws(0))
    edges = {"edge_index": GRAPH.edge_index, "edge_weight": GRAPH.edge_weight}
    full, _ = network.logits(state, {"x": GRAPH.x, **edges})
    light, _ = network.logits(state, {"x": GRAPH.x, **edges, "edge_weight": 0.4 * GRAPH.edge_weight})
    assert torch.equal(light, full)
    weights = torch.tensor([[0.0, 0.9, 0.4], [0.9, 0.0, 0.5], [0.4, 0.5, 0.0]])
    heavy = network.precomputed({"x": GRAPH.x[:3], "adjacency": weights})
    assert heavy["edge_index"].tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    none = network.precomputed({"x": GRAPH.x[:3], "adjacency": torch.zeros(3, 3)})
    assert network.logits(state, none)[0].shape == (3, 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_judge_graphs_with_and_without_structure(name: str) -> None:
    own = graph_task(GRAPH, protocol=FAST)
    structured = own.select(torch.arange(18))
    assert isinstance(structured.inputs, dict)
    without = Batch({"x": structured.inputs["x"]}, structured.targets, structured.weight)
    for batch in (structured, without, None):
        assert own.evaluate(batch, name, Draws(0), 1, {}).values["accuracy"][0] > 0.4
