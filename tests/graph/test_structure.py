import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.graph.methods import METHODS
from mmdistill.graph.schedules import TrainedOnGraph
from mmdistill.graph.structure import BernoulliEdges, PairwiseMLP, bernoulli_edges, initial_logits, pairwise_mlp
from mmdistill.graph.synthetic import Structure, SyntheticGraph, label_nodes, with_structure
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.networks.schedules import ScheduleState
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, TaskInfo
from mmdistill.testing import as_float64, check_objective
from tests.graph.toy import FAST, planted_graph
from tests.oracles import graph as oracle

STRUCTURED = ("gcond", "doscond", "gcdm")
NODES = 7


def task(model: str = "sgc") -> GraphTask:
    return graph_task(planted_graph(), model=model, width=16 if model in ("gcn", "mlp") else None, protocol=FAST)


def features() -> Tensor:
    return Draws(1).normal(NODES, 12, dtype=torch.float64)


def mlp(depth: int = 3) -> PairwiseMLP:
    structure = PairwiseMLP(12, Draws(0), width=5, depth=depth).double()
    with torch.no_grad():
        for index, vector in enumerate([*structure.scales, *structure.shifts, structure.bias]):
            vector += 0.3 * Draws(2).fold(index).normal(*vector.shape)
    return structure


STRUCTURES: dict[str, Structure] = {
    "pairwise": mlp(),
    "bernoulli": BernoulliEdges(Draws(3).normal(NODES, NODES, dtype=torch.float64)),
}


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_edges_of_pairs_equal_the_oracle(depth: int) -> None:
    structure = mlp(depth)
    expected = oracle.pairwise_edges(
        features().numpy(),
        torch.cat([structure.source, structure.target], 1).detach().numpy(),
        [weight.detach().numpy() for weight in structure.hidden],
        structure.last.detach().numpy(),
        float(structure.bias.detach()),
        [scale.detach().numpy() for scale in structure.scales],
        [shift.detach().numpy() for shift in structure.shifts],
    )
    assert torch.allclose(structure(features(), Draws(0)), torch.from_numpy(expected), atol=1e-10)


def test_layers_of_equal_size_start_from_weights_of_their_own() -> None:
    structure = PairwiseMLP(12, Draws(0), width=5, depth=4)
    assert not torch.equal(structure.source, structure.target)
    assert not torch.equal(*structure.hidden)
    source, target, hidden, last = structure.source, structure.target, structure.hidden[0], structure.last
    for weight, inputs in ((source, 24), (target, 24), (hidden, 5), (last, 5)):
        assert 0.6 < float(weight.detach().abs().max()) * inputs**0.5 < 1  # as torch's linear layers


@pytest.mark.parametrize("name", STRUCTURES)
def test_edges_are_weights_between_different_nodes(name: str) -> None:
    structure = STRUCTURES[name]
    for edges in (structure(features(), Draws(0)).detach(), structure.finished(features()).detach()):
        assert edges.shape == (NODES, NODES)
        assert torch.equal(edges, edges.mT)
        assert float(edges.diagonal().abs().max()) == 0
        assert 0 <= float(edges.min()) <= float(edges.max()) <= 1


def test_gradients_flow_through_the_pairs_to_the_features() -> None:
    structure = mlp()
    assert torch.autograd.gradcheck(lambda x: structure(x, Draws(0)), (features()[:4].requires_grad_(),))


def test_weak_edges_are_dropped_in_use_only() -> None:
    structure = mlp()
    edges = structure(features(), Draws(0)).detach()
    structure.cut = float(edges.max() + edges[edges > 0].min()) / 2
    kept = structure.finished(features()).detach()
    assert 0 < int((kept > 0).sum()) < int((edges > 0).sum())
    assert torch.equal(kept, torch.where(edges > structure.cut, edges, 0.0))


def test_bernoulli_edges_are_relaxed_samples_that_cool() -> None:
    logits = Draws(4).normal(NODES, NODES, dtype=torch.float64)
    structure = BernoulliEdges(logits, cooling=4)
    graph = label_nodes(features(), torch.tensor([3, NODES - 3]), 2, structure=structure)
    for step in range(6):
        temperature = max(0.01 ** (step / 4), 0.01)
        assert float(structure.temperature()) == pytest.approx(temperature)
        noise = Draws(5).fold("edges").uniform(NODES * (NODES - 1) // 2, low=1e-6, high=1 - 1e-6)
        got, index = structure(features(), Draws(5)).detach(), 0
        for i in range(NODES):
            for j in range(i + 1, NODES):
                chance = (math.log(noise[index]) - math.log1p(-noise[index]) + float(logits[i, j])) / temperature
                if abs(chance) < 30:  # the oracle's exponential
                    expected = oracle.concrete_edge(float(logits[i, j]), float(noise[index]), temperature)
                    assert float(got[i, j]) == pytest.approx(expected, abs=1e-4)
                index += 1
        graph.project()
    assert torch.equal(structure.finished(features()) > 0, (logits.triu(1) + logits.triu(1).mT) > 0)


def test_more_edges_than_at_the_start_cost() -> None:
    structure = BernoulliEdges(torch.zeros(4, 4), penalty_weight=0.1)
    assert float(structure.penalty().detach()) == 0
    with torch.no_grad():
        structure.logits.fill_(2.0)
    cost = pytest.approx(0.1 * (1 / (1 + math.exp(-2)) - 0.5))
    assert float(structure.penalty().detach()) == cost
    graph = label_nodes(torch.ones(4, 2), torch.tensor([2, 2]), 2, structure=structure)
    price = graph.penalty(lambda inputs: (), {})
    assert price is not None
    assert float(price.detach()) == cost
    with torch.no_grad():
        structure.logits.fill_(-2.0)
    assert float(structure.penalty().detach()) == 0  # fewer cost nothing


def test_padding_changes_neither_the_penalty_nor_its_gradient() -> None:
    logits = Draws(2).normal(1, 4, 4)
    padded = torch.full((2, 9, 9), -4.0)
    padded[0, :4, :4] = logits[0]
    present = torch.zeros(2, 9)
    present[0, :4] = 1
    present[1, :1] = 1  # one node, no pair
    tight, wide = BernoulliEdges(logits), BernoulliEdges(padded, present=present)
    assert float(wide.density) == pytest.approx(float(tight.density))
    for structure in (tight, wide):
        structure.logits.data += 1.0
        structure.penalty().backward()  # type: ignore[no-untyped-call]
    assert float(wide.penalty().detach()) == pytest.approx(float(tight.penalty().detach()))
    assert wide.logits.grad is not None
    assert tight.logits.grad is not None
    assert wide.logits.grad[wide.pairs > 0].tolist() == pytest.approx(tight.logits.grad[0].tolist())
    assert int(wide.logits.grad.count_nonzero()) == 6


def test_a_structure_starts_from_the_edges_of_the_real_nodes() -> None:
    start = task().select(torch.arange(9)).inputs
    assert isinstance(start, dict)
    assert torch.equal(initial_logits(start) > 0, start["adjacency"] > 0)


@pytest.mark.parametrize(("name", "least", "most"), [("gcond", 0.02, 0.1), ("gcdm", 0.0, 0.02)])
def test_learned_edges_start_few(name: str, least: float, most: float) -> None:
    made = Distiller(task(), METHODS[name], 9).rehearse()
    edges = made(Draws(0)).inputs["adjacency"].detach()  # type: ignore[call-overload]
    assert least < float(edges.sum()) / (9 * 8) < most


def structured(nodes: int = 6) -> SyntheticGraph:
    counts = torch.tensor([3, 2, nodes - 5])
    return label_nodes(Draws(1).normal(nodes, 12), counts, 3, structure=PairwiseMLP(12, Draws(0), 4))


def test_gradient_matching_with_learned_edges_equals_the_oracle() -> None:
    own, graph = task(), structured().double()
    state = as_float64(own.init(Draws(4)))
    syn = graph.class_batches(graph(Draws(0)))
    real = own.sample_real(Draws(0), torch.arange(3), 4)
    assert isinstance(real, ClassBatch)
    assert isinstance(real.batch.inputs, dict)
    assert isinstance(syn.batch.inputs, dict)
    inputs = {name: tensor.detach() for name, tensor in syn.batch.inputs.items()}
    syn = ClassBatch(Batch(inputs, *syn.batch[1:]), syn.dims)
    rows = real.batch.inputs["x"].double()
    real = ClassBatch(Batch({"x": rows}, real.batch.targets, real.batch.weight.double()), real.dims)
    expected = oracle.gradient_matching(
        oracle.propagated(inputs["adjacency"].numpy(), inputs["x"].numpy(), 2),
        [0, 0, 0, 1, 1, 2],
        rows.flatten(0, 1).numpy(),
        real.batch.targets.flatten().tolist(),  # type: ignore[union-attr]
        state.params["weight"].numpy(),
        state.params["bias"].numpy(),
        by_share=True,
    )
    objective = GradientMatching(row_cosine, weights="share")
    check_objective(objective, Network(own, state), syn, real, oracle=lambda: expected)


@pytest.mark.parametrize("model", ["sgc", "gcn", "mlp"])
def test_training_on_the_graph_computes_what_does_not_learn_once(model: str) -> None:
    own, graph = task(model), structured()
    batch = graph(Draws(0))
    assert isinstance(batch.inputs, dict)
    state = own.init(Draws(3))
    settled = own.network.precomputed(batch.inputs)
    assert torch.allclose(own.network.logits(state, settled)[0], own.network.logits(state, batch.inputs)[0], atol=1e-5)


@pytest.mark.parametrize("model", ["sgc", "gcn"])
def test_inner_training_is_full_batch_adam(model: str) -> None:
    own, graph = task(model), structured()
    if model == "gcn":
        own.network.dropout = 0.0  # type: ignore[attr-defined]
    start = own.init(Draws(3))
    batch, decay = (2, 0.3) if model == "gcn" else (99, 0.0)
    schedule = TrainedOnGraph(5, 4, lr=0.05, momentum=0.9, batch=batch, weight_decay=decay)

    def syn() -> Batch:
        with torch.no_grad():
            return Batch(*graph(Draws(0)))

    state = schedule.advance(own, ScheduleState(start, 0, {}), syn, Draws(9))
    state = schedule.advance(own, state, syn, Draws(9))
    params = {name: tensor.clone().requires_grad_() for name, tensor in start.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.05, weight_decay=decay)
    for _ in range(8):
        optimizer.zero_grad()
        own.loss(start._replace(params=params), syn()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert state.network is not None
    for name, tensor in state.network.params.items():
        assert torch.allclose(tensor, params[name], atol=1e-4)
    if model == "sgc":
        rows = oracle.propagated(syn().inputs["adjacency"].numpy(), syn().inputs["x"].numpy(), 2)  # type: ignore[call-overload]
        first = [start.params[name].double().numpy() for name in ("weight", "bias")]
        weight, _ = oracle.adam_training(rows, [0, 0, 0, 1, 1, 2], first[0], first[1], 8, 0.05)
        assert torch.allclose(state.network.params["weight"].double(), torch.from_numpy(weight), atol=1e-4)


def test_minibatches_of_an_sgc_are_rows_of_the_propagated_graph() -> None:
    own, graph, schedule = task(), structured(), TrainedOnGraph(5, 3, batch=2)
    with torch.no_grad():
        batch = graph(Draws(0))
        rows = batch._replace(inputs={"x": own.network.embed(batch.inputs)})  # type: ignore[union-attr, arg-type]
    start = ScheduleState(own.init(Draws(3)), 0, {})
    one, same = (schedule.advance(own, start, lambda syn=syn: syn, Draws(9)).network for syn in (batch, rows))  # type: ignore[misc]
    assert one is not None
    assert same is not None
    torch.testing.assert_close(one.params, same.params)


def test_schedules_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="second_decay is at least 0 and below 1, got 1"):
        TrainedOnGraph(second_decay=1.0)
    with pytest.raises(ConfigError, match="momentum is at least 0 and below 1, got 1"):
        TrainedOnGraph(momentum=1.0)
    with pytest.raises(ConfigError, match="epsilon is above 0, got 0"):
        TrainedOnGraph(epsilon=0.0)
    with pytest.raises(ConfigError, match="at least 1 outer step"):
        TrainedOnGraph(outer_steps=0)


def test_linked_nodes_are_never_cut_into_minibatches_and_settled_rows_may_be() -> None:
    own, graph = task("gcn"), structured(40)
    schedule = TrainedOnGraph(batch=8)
    batch = graph(Draws(0))
    assert [len(part.weight) for part in schedule.minibatches(own, batch, Draws(0))] == [40]
    rows = batch._replace(inputs={"x": graph.codes.detach()})
    assert [len(part.weight) for part in schedule.minibatches(own, rows, Draws(0))] == [8] * 5


def test_features_and_structure_step_in_turn() -> None:
    distiller = Distiller(task(), METHODS["gcdm"], 6)
    run, moved = distiller.start(), []
    for _ in range(50):
        graph = run.parameterization
        assert isinstance(graph, SyntheticGraph)
        assert isinstance(graph.decoder, PairwiseMLP)
        before = graph.codes.detach().clone(), graph.decoder.last.detach().clone()
        run, _ = distiller.step(run)
        moved.append((not torch.equal(before[0], graph.codes), not torch.equal(before[1], graph.decoder.last)))
    assert moved == [(False, True)] * 10 + [(True, False)] * 40


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_methods_keep_labels_count_edges_and_are_judged_with_them(name: str) -> None:
    own = task()
    one, same = (distill(own, name, nodes=6, seed=1, settings={"steps": 25}) for _ in range(2))
    assert isinstance(one.batch.inputs, dict)
    assert isinstance(same.batch.inputs, dict)
    edges = one.batch.inputs["adjacency"]
    assert edges.shape == (6, 6)
    assert torch.equal(edges, same.batch.inputs["adjacency"])
    assert one.batch.targets.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    # DosCond may drop all edges, and those of GCDM start below the cut.
    assert float(edges[edges > 0].min()) >= 0.05 if bool((edges > 0).any()) else name != "gcond"
    assert one.stored_bytes == 6 * 12 * 4 + 6 + 4 * 15
    without = one.batch._replace(inputs={"x": one.batch.inputs["x"]})
    linked, apart = (
        own.judging.fit(part, "gcn", Draws(0), 1, FAST)  # type: ignore[arg-type]
        for part in (one.batch, without)
    )
    assert torch.equal(linked, apart) == (not bool((edges > 0).any()))
    assert own.evaluate(one.batch, "gcn", Draws(0), 1, {}).values["accuracy"][0] > 0.5  # of three classes


def test_bad_structures_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="depth is a whole number of at least 2, got 1"):
        PairwiseMLP(12, Draws(0), depth=1)
    with pytest.raises(ShapeError, match="one logit per pair"):
        BernoulliEdges(torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="one number per node"):
        BernoulliEdges(torch.zeros(2, 4, 4), present=torch.ones(4))


def test_any_structure_makes_a_method() -> None:
    settings = METHODS["gcond"].settings(6)
    for kind in (pairwise_mlp, bernoulli_edges):
        graph = with_structure(kind)(task(), 6, settings, "hard", Draws(0))
        assert graph(Draws(0)).inputs["adjacency"].shape == (6, 6)  # type: ignore[call-overload]
        assert set(graph.groups()) == {"codes", "decoder"}


class Unweighted(nn.Module):
    """Takes the weights of edges and ignores them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x.index_add(0, edge_index[1], x[edge_index[0]]))
        return out


class Unweightable(Unweighted):
    """Takes none."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index)


class Weighing(Unweighted):
    """Reads them where one is above another, with units that are dead on all nodes."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        if edge_weight is not None:
            x = x.index_add(0, edge_index[1], edge_weight[:, None] * x[edge_index[0]])
        out: Tensor = (self.layer(x) - 1e9).relu()
        return out


@pytest.mark.parametrize("method", STRUCTURED)
@pytest.mark.parametrize("network", [{"model": "mlp"}, {"hops": 0}, {"model": Unweighted}, {"model": Unweightable}])
def test_no_edges_are_learned_through_a_network_that_reads_none(method: str, network: dict[str, Any]) -> None:
    own = graph_task(planted_graph(), **network)
    distiller = Distiller(own, METHODS[method].with_settings(steps=1), 6)
    for begin in (distiller.start, distiller.rehearse):
        with pytest.raises(UnsupportedError, match=r"method without structure .*gcond-x, gcdm-x or krr"):
            begin()


class Embedding(Unweighted):
    """Embeds before it propagates."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        logits: Tensor = self.layer(x)
        if edge_weight is not None:
            logits = logits.index_add(0, edge_index[1], edge_weight[:, None] * logits[edge_index[0]])
        return logits


def test_embeddings_are_not_matched_where_they_read_no_edges() -> None:
    own = graph_task(planted_graph(), model=Embedding)
    for method in ("gcond", "doscond", "gcdm-x"):
        distill(own, METHODS[method], nodes=6, settings={"steps": 1})
    distiller = Distiller(own, METHODS["gcdm"].with_settings(steps=1), 6)
    for begin in (distiller.start, distiller.rehearse):
        with pytest.raises(UnsupportedError, match=r"embedding of the network \(.*\) reads no edge .*gcond-x, gcdm-x"):
            begin()


@pytest.mark.parametrize("network", [{"model": "gcn"}, {"hops": 1}, {"model": Weighing}])
def test_edges_are_learned_through_a_network_that_reads_them(network: dict[str, Any]) -> None:
    made = Distiller(graph_task(planted_graph(), **network), METHODS["gcdm"].with_settings(steps=1), 6).rehearse()
    assert set(made.groups()) == {"codes", "decoder"}


@pytest.mark.parametrize(("nodes", "width", "cut"), [(2708, 128, 0.05), (50_000, 256, 0.01)])
def test_large_graphs_have_a_wider_mlp_and_keep_lighter_edges(nodes: int, width: int, cut: float) -> None:
    class Sized(GraphTask):
        def __init__(self) -> None:
            self.device = torch.device("cpu")

        def describe(self) -> TaskInfo:
            return replace(task().describe(), preprocessing={"nodes": nodes})

    made = pairwise_mlp(Sized(), {"x": features()}, Draws(0))
    assert isinstance(made, PairwiseMLP)
    assert (made.source.shape, made.cut) == ((width, 12), cut)
