from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn.models import basic_gnn

from mmdistill import distill, evaluate, save_evaluation
from mmdistill.errors import ConfigError, DataError, ShapeError
from mmdistill.graph.architectures import make_architecture
from mmdistill.graph.judges import (
    JudgeProtocol,
    Sample,
    StackedJudges,
    protocol_for,
    scores_of,
)
from mmdistill.graph.models import GCN, SGC
from mmdistill.graph.scene import View
from mmdistill.graph.synthetic import Structure, SyntheticGraph, label_nodes
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.labels import FixedLabels
from mmdistill.metrics import read_metrics, recorded
from mmdistill.objectives.base import Network, Objective, class_sides, class_summary
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.runs.folder import METRICS
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, share_classes
from mmdistill.testing import as_float64, check_class_gradients, check_objective, check_objective_on, check_task
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.oracles import graph as oracle

GRAPH = planted_graph()


def pyg_gcn() -> nn.Module:
    module: nn.Module = basic_gnn.GCN(12, 8, 2, 3)
    return module


def task(model: str | Callable[[], nn.Module] = "sgc") -> GraphTask:
    return graph_task(GRAPH, model=model, width=16 if model in ("gcn", "mlp") else None, protocol=FAST)


@pytest.mark.parametrize("model", ["sgc", "gcn", "mlp", pyg_gcn], ids=["sgc", "gcn", "mlp", "module"])
def test_conformance(model: str | Callable[[], nn.Module]) -> None:
    check_task(task(model), judge="gcn" if isinstance(model, str) else "model")


class Moments(Objective):
    """Matches each class's mean squared embedding."""

    reads_labels = False

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        s, r = (self.moments(network, side) for side in class_sides(syn, real, "moments"))
        return (s - r.detach()).square().sum()

    def moments(self, network: Network, side: ClassBatch) -> Tensor:
        embeddings, weight = class_summary(network, side, -1)[1], side.batch.weight
        assert embeddings.shape[:2] == weight.shape
        return (weight[..., None] * embeddings.square()).sum(1) / weight.sum(1, keepdim=True)


def test_objectives_are_checked_on_nodes_as_they_are_stored() -> None:
    shared: list[bool] = []

    def expected(network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch) -> float:
        assert isinstance(syn, ClassBatch)
        assert isinstance(real, ClassBatch)
        shared.append(syn.dims.inputs is None and real.dims.inputs == 0)
        s, r = (
            [network.features(side.one_class(c).inputs)[-1][side.one_class(c).weight > 0] for c in range(3)]
            for side in (syn, real)
        )
        return sum(float((a.square().mean(0) - b.square().mean(0)).square().sum()) for a, b in zip(s, r, strict=True))

    check_objective_on(task(), Moments, oracle=expected)
    assert shared == [True]


def test_shared_nodes_are_given_to_each_class_without_copies() -> None:
    own = task("gcn")
    network, real = Network(own, own.init(Draws(0))), own.parts["train"].whole(True)
    batch = share_classes(real._replace(weight=torch.ones(120)), torch.eye(3).repeat(1, 40))
    embeddings = class_summary(network, batch, -1)[1]
    assert embeddings.shape[:2] == (3, 120)
    assert embeddings.stride(0) == 0


def test_the_bytes_of_the_whole_are_those_of_what_training_sees() -> None:
    edges = GRAPH.edge_index
    whole = 120 * 12 * 4 + 16 * edges.shape[1] + 120 * 8 + 3 * 120
    assert task().describe().stored_bytes == whole
    weighted = planted_graph(edge_index=edges, edge_weight=torch.full((edges.shape[1],), 0.5))
    assert graph_task(weighted).describe().stored_bytes == whole + 4 * edges.shape[1]
    seen = int((edges < 18).all(0).sum())
    inductive = graph_task(replace(GRAPH, inductive=True)).describe()
    assert inductive.stored_bytes == 18 * 12 * 4 + 16 * seen + 18 * 8 + 3 * 18


def synthetic(nodes: int = 6) -> SyntheticGraph:
    return label_nodes(Draws(1).normal(nodes, 12), torch.full((3,), nodes // 3), 3)


@pytest.mark.parametrize("model", ["sgc", "gcn", pyg_gcn], ids=["sgc", "gcn", "module"])
def test_class_gradients_of_a_shared_synthetic_graph_agree_in_all_modes(
    model: str | Callable[[], nn.Module],
) -> None:
    graph = synthetic()
    batch = graph.class_batches(graph(Draws(0))._replace(inputs={"x": graph.codes.detach()}))
    assert batch.dims == Dims(None, None)
    own = task(model)
    check_class_gradients(own, own.init(Draws(2)), batch)
    structured = Batch(
        {"x": graph.codes.detach(), "adjacency": own.select(torch.arange(6)).inputs["adjacency"]}, *batch.batch[1:]
    )  # type: ignore[call-overload]
    check_class_gradients(own, own.init(Draws(2)), ClassBatch(structured, batch.dims))


def wide(batch: ClassBatch) -> ClassBatch:
    inputs, targets, weight = batch.batch
    assert isinstance(inputs, dict)
    return ClassBatch(Batch({k: v.detach().double() for k, v in inputs.items()}, targets, weight.double()), batch.dims)


def test_gradient_matching_of_a_graph_equals_the_oracle() -> None:
    own, graph = task(), synthetic()
    state = as_float64(own.init(Draws(4)))
    syn, real = wide(graph.class_batches(graph(Draws(0)))), wide(own.sample_real(Draws(0), torch.arange(3), 4))  # type: ignore[arg-type]
    rows = real.batch.inputs["x"]  # type: ignore[call-overload]
    assert rows.shape == (3, 4, 12)
    expected = oracle.gradient_matching(
        graph.codes.detach().double().numpy(),
        [0, 0, 1, 1, 2, 2],
        rows.flatten(0, 1).numpy(),
        real.batch.targets.flatten().tolist(),  # type: ignore[union-attr]
        state.params["weight"].numpy(),
        state.params["bias"].numpy(),
    )
    check_objective(GradientMatching(row_cosine), Network(own, state), syn, real, oracle=lambda: expected)


def test_mean_matching_of_a_graph_equals_the_oracle() -> None:
    own, graph = task(), synthetic()
    syn, real = wide(graph.class_batches(graph(Draws(0)))), wide(own.sample_real(Draws(0), torch.arange(3), 6))  # type: ignore[arg-type]
    weights = torch.zeros(120, 120)
    weights[GRAPH.edge_index[0], GRAPH.edge_index[1]] = 1
    train = GRAPH.train
    expected = oracle.mean_matching(
        graph.codes.detach().double().numpy(),
        [0, 0, 1, 1, 2, 2],
        oracle.propagated(weights.double().numpy(), GRAPH.x.double().numpy(), 2)[train],
        GRAPH.y[train].tolist(),
        3,
    )
    state = as_float64(own.init(Draws(4)))
    got = DistributionMatching("last")(Network(own, state), syn, real, Draws(0))
    assert float(got) == pytest.approx(expected, rel=1e-5)  # the real nodes were propagated in float32


def test_the_real_graph_gives_sgc_one_gradient_in_rows_and_whole() -> None:
    own = task()
    state = own.init(Draws(0))
    rows = own.sample_real(Draws(0), torch.arange(3), 100)
    assert isinstance(rows, ClassBatch)
    membership = torch.zeros(3, 120)
    membership[GRAPH.y[GRAPH.train], GRAPH.train] = 1
    whole = share_classes(Batch(own.real_inputs(), GRAPH.y, torch.ones(120)), membership)
    for name, gradient in (own.class_gradients(state, rows) or {}).items():
        assert torch.allclose(gradient, (own.class_gradients(state, whole) or {})[name], atol=1e-5)


def test_samples_are_of_their_class_without_repeats_and_padded_with_weight_0() -> None:
    mask = planted_fields()["train_mask"].clone()
    mask[[1, 4]] = False
    own = graph_task(planted_graph(train_mask=mask), protocol=FAST)
    batch = own.sample_real(Draws(3), torch.tensor([1, 2]), 6)
    assert isinstance(batch, ClassBatch)
    assert batch.batch.weight.sum(1).tolist() == [4, 6]
    for index, label in enumerate((1, 2)):
        one = batch.one_class(index)
        kept = one.weight > 0
        assert (one.targets[kept] == label).all()  # type: ignore[index]
        assert len(torch.unique(one.inputs["x"][kept], dim=0)) == int(kept.sum())  # type: ignore[call-overload]


def test_select_is_the_induced_subgraph() -> None:
    own = task()
    indices = torch.tensor([[3, 0, 11], [5, 6, 2]])
    inputs = own.select(indices).inputs
    assert isinstance(inputs, dict)
    edges = {tuple(pair) for pair in GRAPH.edge_index.T.tolist()}
    for row in range(2):
        nodes = GRAPH.train[indices[row]].tolist()
        assert torch.equal(inputs["x"][row], GRAPH.x[nodes])
        for i, a in enumerate(nodes):
            for j, b in enumerate(nodes):
                assert float(inputs["adjacency"][row, i, j]) == float((a, b) in edges)


def train_one_by_one(own: GraphTask, network: GCN | SGC, batch: Batch, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets = batch.targets
    assert isinstance(batch.inputs, dict)
    assert isinstance(targets, torch.Tensor)
    sample = Batch({k: v.detach() for k, v in batch.inputs.items()}, targets, batch.weight)
    keys = [Draws(8).fold("network", index) for index in range(count)]
    return oracle.trained_one_by_one(network, keys, sample, own.parts["val"], own.parts["test"], FAST)


@pytest.mark.parametrize("model", ["sgc", "gcn"])
def test_whole_batches_of_linked_nodes_are_matched(model: str) -> None:
    check_objective_on(task(model), lambda: GradientMatching(row_cosine, "batch"), n=3)


@pytest.mark.parametrize("judge", ["gcn", "sgc"])
@pytest.mark.parametrize("structured", [False, True])
def test_judges_side_by_side_equal_judges_one_by_one(judge: str, structured: bool) -> None:
    own = task()
    batch = own.select(torch.arange(9)) if structured else synthetic()(Draws(0))
    batch = Batch({k: v.detach() for k, v in batch.inputs.items()}, *batch[1:])  # type: ignore[union-attr]
    network = GCN(12, 3, FAST.width) if judge == "gcn" else SGC(12, 3)
    expected, scores = train_one_by_one(own, network, batch, 2)
    fitted = own.judging.fit(batch, judge, Draws(8), 2, FAST)
    assert torch.allclose(fitted, expected, atol=2e-3, rtol=2e-3)  # 60 Adam steps amplify float32 rounding
    assert torch.allclose(own.judging.validation(batch, judge, Draws(8), 2, FAST), scores)


@pytest.mark.parametrize("judge", ["graphsage", "gat", "appnp", "chebnet"])
@pytest.mark.parametrize("structured", [False, True])
def test_judges_of_other_architectures_equal_judges_one_by_one(judge: str, structured: bool) -> None:
    own, still = task(), replace(FAST, epochs=20, dropout=0.0, weight_decay=0.1)
    batch = own.select(torch.arange(9))
    assert isinstance(batch.inputs, dict)
    if not structured:
        batch = batch._replace(inputs={"x": batch.inputs["x"]})
    network = make_architecture(judge, 12, 3, still.width, 0.0, "cpu")
    keys = [Draws(8).fold("init", index) for index in range(2)]
    expected, _ = oracle.trained_one_by_one(network, keys, batch, own.parts["val"], own.parts["test"], still)
    assert torch.allclose(own.judging.fit(batch, judge, Draws(8), 2, still), expected, atol=2e-3, rtol=2e-3)


def test_the_whole_graph_judges_like_the_loop_over_it() -> None:
    own = task("gcn")
    still = replace(FAST, dropout=0.0)  # the stack draws dropout for the nodes it reads, the loop for all
    network = GCN(12, 3, FAST.width, dropout=0.0)
    sample = own.sample_real(Draws(0), None, 10_000)
    assert isinstance(sample, Batch)
    inputs = Batch(own.real_inputs(), sample.targets, sample.weight)  # type: ignore[arg-type]
    keys = [Draws(8).fold("network", index) for index in range(2)]
    expected, _ = oracle.trained_one_by_one(network, keys, inputs, own.parts["val"], own.parts["test"], still)
    assert torch.allclose(own.judging.fit(None, "gcn", Draws(8), 2, still), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("judge", ["gcn", "graphsage"])
def test_more_judges_change_none_of_the_first(judge: str) -> None:
    own, batch = task(), synthetic()(Draws(0))
    few, many = (own.evaluate(batch, judge, Draws(2), n, {}).values["accuracy"] for n in (2, 4))
    assert many[:2] == pytest.approx(few, abs=0.02)


def test_without_validation_nodes_the_last_epoch_counts() -> None:
    own = graph_task(planted_graph(val_mask=None), protocol=FAST)
    batch = own.select(torch.arange(18))
    assert own.evaluate(batch, "sgc", Draws(0), 2, {}).values["accuracy"][0] > 0.5
    assert own.validate(batch, Draws(0), {}) is None


def with_other_test_labels() -> GraphTask:
    """Return the task with every test node in another class."""
    y = GRAPH.y.clone()
    y[GRAPH.test] = (y[GRAPH.test] + 1) % 3
    return graph_task(replace(GRAPH, y=y), protocol=FAST)


def test_validation_reads_no_test_label() -> None:
    own, other = task(), with_other_test_labels()
    batch = own.select(torch.arange(18))
    assert own.validate(batch, Draws(0), {}) == other.validate(batch, Draws(0), {})


def test_validation_prepares_no_test_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = task()
    batch = own.select(torch.arange(18))
    monkeypatch.setitem(own.judging.parts, "test", None)  # type: ignore[arg-type]
    assert own.validate(batch, Draws(0), {}) == task().validate(batch, Draws(0), {})


@pytest.mark.parametrize("judge", ["gcn", "gat"])
def test_the_chosen_judges_read_no_test_label(judge: str) -> None:
    own, other = (task.judging.fit(None, judge, Draws(0), 2, FAST) for task in (task(), with_other_test_labels()))
    assert torch.equal(own, other)


def test_collapse_to_one_class_is_reported() -> None:
    own = task()
    batch = Batch({"x": own.scene.x}, torch.zeros(120, dtype=torch.long), torch.ones(120))
    scores = own.evaluate(batch, "gcn", Draws(0), 2, {})
    assert [note.split(" is")[0] for note in scores.notes] == ["class 1", "class 2"]
    assert scores.values["accuracy"] == pytest.approx((1 / 3, 1 / 3), abs=0.02)


def test_a_class_without_test_samples_shifts_no_other_ones_warning() -> None:
    hits, truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([0, 0, 2, 2])
    scores = scores_of("gcn", hits, truth, ("a", "b", "c"))
    assert scores.notes == ("class c is nearly never recognised (test accuracy 0.00)",)
    assert scores.values == {"accuracy": (0.5,)}


def test_which_class_a_node_is_of_moves_with_the_graph() -> None:
    assert synthetic().to("meta").membership.device.type == "meta"
    assert "membership" not in synthetic().state_dict()


def test_soft_labels_train_judges() -> None:
    own, graph = task(), synthetic()
    soft = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    hard = own.evaluate(graph(Draws(0)), "sgc", Draws(0), 1, {})
    assert own.evaluate(Batch({"x": graph.codes}, soft, torch.ones(6)), "sgc", Draws(0), 1, {}) == hard


class Similar(Structure):
    def forward(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        return torch.sigmoid(x @ x.T) * (1 - torch.eye(len(x)))

    def finished(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x, Draws(0))


def test_a_structure_is_decoded_in_its_own_group_and_reaches_the_features() -> None:
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    graph = SyntheticGraph(Draws(0).normal(6, 12), FixedLabels(classes), classes, 3, Similar())
    batch = graph(Draws(0))
    assert batch.inputs["adjacency"].shape == (6, 6)  # type: ignore[call-overload]
    own = task()
    loss = GradientMatching(row_cosine)(
        Network(own, own.init(Draws(1))),
        graph.class_batches(batch),
        own.sample_real(Draws(0), torch.arange(3), 4),
        Draws(0),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert graph.codes.grad is not None
    assert float(graph.codes.grad.norm()) > 0


def test_bad_calls_are_refused_in_words() -> None:
    own = task()
    batch = synthetic()(Draws(0))
    with pytest.raises(ConfigError, match="did you mean 'gcn'"):
        own.evaluate(batch, "gcnn", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="must be \\(n, 12\\)"):
        own.evaluate(Batch({"x": torch.zeros(6, 5)}, batch.targets, batch.weight), "gcn", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="node features 'x'"):
        own.predict(own.init(Draws(0)), torch.zeros(3, 12))
    with pytest.raises(ConfigError, match="graph model"):
        graph_task(GRAPH, model="transformer")
    with pytest.raises(ShapeError, match="6 nodes as labelled"):
        SyntheticGraph(torch.zeros(4, 12), FixedLabels(torch.zeros(6).long()), torch.zeros(6).long(), 3)
    with pytest.raises(DataError):
        graph_task({"x": torch.zeros(3, 2)})


def test_stacked_judges_draw_what_the_functional_network_draws() -> None:
    stacked = StackedJudges(GCN(12, 3, 16, dropout=0.0), Draws(1), range(2))
    network = GCN(12, 3, 16)
    x = GRAPH.x[:5]
    for index, logits in enumerate(stacked.logits(stacked.params, View(x))):
        expected, _ = network.logits(network.init(Draws(1).fold("network", index)), {"x": x})
        assert torch.allclose(logits, expected, atol=1e-5)
    assert Sample(View(x), torch.zeros(5), torch.ones(5)).view.second is None


class Echo(nn.Module):
    """Returns what is asked of it, whatever it reads."""

    def __init__(self, output: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.layer, self.output = nn.Linear(12, 3), output

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> object:
        return self.output(self.layer(x))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda logits: (logits, logits), "the network returned a tuple"),
        (lambda logits: logits[:, :2], r"returned \(2, 2\); it must return \(nodes, 3\) logits"),
        (lambda logits: logits @ torch.ones(7), "cannot run on nodes of 12 features"),
    ],
)
def test_modules_that_cannot_work_are_refused_when_the_task_is_built(
    output: Callable[[torch.Tensor], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task(lambda: Echo(output))


def test_what_would_not_be_read_is_refused() -> None:
    for model, named in (("gcn", "gcn"), ("mlp", "mlp"), (pyg_gcn, "a module of your own")):
        with pytest.raises(ConfigError, match=f"{named} takes no hops; leave them out"):
            graph_task(GRAPH, model=model, hops=2)  # type: ignore[arg-type]
    for reading in ({"inductive": True}, {"inductive": False}, {"split": 0}):
        with pytest.raises(ConfigError, match=r"graph data that are loaded have their split .* leave these out"):
            graph_task(GRAPH, **reading)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="user graph has one split of its nodes; there is no split 5"):
        graph_task(planted_fields(), split=5)
    assert graph_task(planted_fields(), hops=1, split=0).network.hops == 1


def test_networks_are_called_by_their_names() -> None:
    assert [task(model).network_name for model in ("sgc", "gcn", "mlp", pyg_gcn)] == ["sgc", "gcn", "mlp", ""]
    assert graph_task(GRAPH, hops=1).network_name == "sgc(hops=1)"


def test_sizes_that_cannot_be_are_refused() -> None:
    for sizes in ({"width": 0}, {"hops": -1}, {"hops": "2"}):
        with pytest.raises(ConfigError, match="is a whole number of at least"):
            graph_task(GRAPH, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is a whole number of at least 1, got 0"),
        ({"epochs": -3}, "epochs is a whole number of at least 1, got -3"),
        ({"epochs": 2.5}, "epochs is a whole number of at least 1, got 2.5"),
        ({"width": "8"}, "width is a whole number of at least 1, got '8'"),
        ({"validate_every": 0}, "validate_every is a whole number of at least 1, got 0"),
        ({"lr": 0.0}, "lr is above 0, got 0"),
        ({"lr": float("inf")}, "lr is a number of at least 0, got inf"),
        ({"weight_decay": -1.0}, "weight_decay is a number of at least 0, got -1.0"),
        ({"dropout": 1.0}, "dropout is at least 0 and below 1, got 1"),
        ({"dropout": -0.1}, "dropout is a number of at least 0, got -0.1"),
    ],
)
def test_protocols_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeProtocol(**changes)


def test_judges_train_by_the_published_protocol_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def protocol(name: str) -> tuple[float, float]:
        found = protocol_for(replace(GRAPH, name=name))
        return found.weight_decay, found.dropout

    assert (protocol("cora"), protocol("mine.pt")) == ((5e-4, 0.5), (5e-4, 0.5))
    monkeypatch.setattr("mmdistill.graph.data.LARGE", 0)
    assert [protocol(name) for name in ("ogbn-arxiv", "flickr", "reddit")] == [(0.0, 0.5), (5e-4, 0.0), (5e-4, 0.5)]
    assert [protocol(name) for name in ("ogbn-products", "mine.pt")] == [(0.0, 0.5), (0.0, 0.5)]
    assert protocol_for(GRAPH).validate_every == 20


def test_a_module_of_ones_own_is_the_default_judge_and_named_ones_stand_beside_it(tmp_path: Path) -> None:
    own = task(pyg_gcn)
    assert (task("gcn").judges[0], own.judges[0], own.judges[1]) == ("gcn", "model", "gcn")
    how = {"nodes": 6, "settings": {"steps": 1}, "out": tmp_path}
    found = distill(own, "gcdm-x", **how)  # type: ignore[arg-type]
    named = evaluate(own, found, judges=["gcn"], n=1, baselines=["random"])
    save_evaluation(own, found, named, tmp_path)
    again = distill(task(pyg_gcn), "gcdm-x", **how, resume="auto")  # type: ignore[arg-type]
    usual = evaluate(own, again, n=1, baselines=["random"])
    assert [entry.judge for entry in (*usual.results, *usual.baselines["random"])] == ["model", "model"]
    save_evaluation(own, again, usual, tmp_path)
    kept = recorded(read_metrics(tmp_path / METRICS))
    assert [entry.judge for entry in kept.results] == ["gcn", "model"]
    assert kept.results[0] == named.results[0]
    assert [entry.judge for entry in kept.baselines["random"]] == ["gcn", "model"]


def test_given_modules_judge_as_the_module_distilled_with_does(tmp_path: Path) -> None:
    usual, own = task(), task(pyg_gcn)
    batch = usual.select(torch.arange(6))
    beside = usual.with_judge("pyg-gcn", pyg_gcn)
    scores = [t.evaluate(batch, judge, Draws(0), 2, {}) for t, judge in ((own, "model"), (beside, "pyg-gcn"))]
    assert scores[0].values == scores[1].values
    found = distill(usual, "gcdm-x", nodes=6, settings={"steps": 1})
    judges = {"gcn": None, "pyg-gcn": pyg_gcn, "sage": lambda: basic_gnn.GraphSAGE(12, 8, 2, 3)}
    save_evaluation(usual, found, evaluate(usual, found, judges=judges, n=1, baselines=["random"]), tmp_path)
    kept = read_metrics(tmp_path / METRICS)
    assert [entry["judge"] for entry in kept["results"]] == list(judges)
    names = [entry["judging"].get("network", "").split("(")[0] for entry in kept["results"]]
    assert names == ["", "GCN", "GraphSAGE"]
    with pytest.raises(ConfigError, match="the judge 'mine': the network cannot run on nodes of 12 features"):
        evaluate(usual, found, judges={"mine": lambda: basic_gnn.GCN(5, 8, 2, 3)}, n=1)
