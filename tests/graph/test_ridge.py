import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.evaluate import evaluate
from mmdistill.graph import ridge, teacher
from mmdistill.graph.data import graph_from_fields
from mmdistill.graph.methods import METHODS
from mmdistill.graph.models import glorot
from mmdistill.graph.ridge import PropagatedRidge
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.graph.teacher import TeacherRecipe, teach
from mmdistill.objectives.base import Network
from mmdistill.rehearsal import rehearsal
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Tensors
from mmdistill.testing import as_float64, check_objective
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.oracles.graph import ridge_cross_entropy
from tests.toys import BlobTask

SHORT = TeacherRecipe(networks=1, epochs=20, hops=3, width=16)


def task(model: str = "sgc", inductive: bool = False) -> GraphTask:
    graph = graph_from_fields(planted_fields(), "planted", inductive=inductive)
    return graph_task(graph, model=model, width=8 if model in ("gcn", "mlp") else None, protocol=FAST)


def synthetic(inputs: Tensors | None = None) -> Batch:
    x = Draws(3).normal(6, 12)
    return Batch(inputs or {"x": x}, Draws(4).normal(6, 3).softmax(1), torch.ones(6))


def test_the_objective_is_the_ridge_regression_on_random_perceptrons() -> None:
    own, draws = task(), Draws(7)
    objective = PropagatedRidge(nodes=10, width=5, ridge=0.1, recipe=SHORT)
    torch.nn.init.constant_(objective.log_scale, 0.4)
    network, syn = Network(own, own.init(Draws(0))), synthetic()
    found = float(objective(network, syn, own.training_batch(), draws).detach())
    targets = teach(own.parts["train"], own.parts["val"], 3, Draws(7, ("teacher",)), SHORT)
    chosen = draws.fold("real").permutation(120)[:10]
    weights = glorot(draws.fold("perceptron"), 5, 12)
    rows = own.scene.propagated(2)[chosen]
    assert isinstance(syn.inputs, dict)
    expected = ridge_cross_entropy(
        *(t.double().numpy() for t in (rows, targets[chosen], syn.inputs["x"], syn.targets, weights)),  # type: ignore[union-attr]
        ridge=0.1,
        scale=math.exp(0.4),
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_ridge_on_random_perceptrons_passes_the_battery() -> None:
    own = task(inductive=True)  # whose nodes all have labels, so that real batches are read
    nodes = own.training_batch()
    assert isinstance(nodes.inputs, dict)
    real = Batch({name: tensor.double() for name, tensor in nodes.inputs.items()}, nodes.targets, nodes.weight.double())
    syn, objective = synthetic(), PropagatedRidge(nodes=10, width=16, ridge=0.1, recipe=SHORT).double()
    assert isinstance(syn.inputs, dict)
    check_objective(
        objective,
        Network(own, as_float64(own.init(Draws(0)))),
        Batch({"x": syn.inputs["x"].double()}, syn.targets.double(), syn.weight.double()),  # type: ignore[union-attr]
        real,
    )


def test_more_samples_than_hidden_units_have_a_singular_kernel_to_double_precision() -> None:
    own = task()
    objective, inputs = PropagatedRidge(width=4, recipe=SHORT), synthetic().inputs
    between, within = objective.kernels(Network(own, own.init(Draws(0))), inputs, inputs, Draws(7))
    assert torch.equal(between, within)
    values = torch.linalg.eigvalsh(within.detach().double())
    assert bool((values[:2].abs() < 1e-13 * values[-1]).all())  # products in float32 leave 1e-8, in TF32 1e-4


def test_real_batches_are_read_where_all_nodes_have_labels() -> None:
    own = task(inductive=True)
    assert len(own.graph.train) == len(own.scene)
    objective = PropagatedRidge(nodes=4, recipe=SHORT)
    network, real = Network(own, own.init(Draws(0))), own.training_batch()
    loss = objective(network, synthetic(), real, Draws(1))
    flipped = real._replace(targets=(real.targets + 1) % 3)  # type: ignore[operator]
    assert not torch.isclose(loss, objective(network, synthetic(), flipped, Draws(1)))
    assert objective._taught is None


@pytest.mark.parametrize(("labelled", "teaches"), [(59, True), (60, False), (119, False)])
def test_a_teacher_labels_nodes_where_fewer_have_labels_than_have_none(labelled: int, teaches: bool) -> None:
    train = torch.arange(120) < labelled
    own = graph_task(planted_graph(train_mask=train, val_mask=None, test_mask=~train), protocol=FAST)
    objective = PropagatedRidge(nodes=4, recipe=SHORT)
    objective(Network(own, own.init(Draws(0))), synthetic(), own.training_batch(), Draws(1))
    assert (objective._taught is not None) == teaches
    assert bool(objective.describe_teacher(own)) == teaches


def test_a_teacher_is_trained_when_a_run_begins_but_not_in_a_rehearsal() -> None:
    own, objective = task(), PropagatedRidge(nodes=4, recipe=SHORT)
    with rehearsal():
        objective.begin(own, Draws(1).fold("objective"))
    assert objective._taught is None
    objective.begin(own, Draws(1).fold("objective"))
    taught = objective._taught
    assert taught is not None
    objective(Network(own, own.init(Draws(0))), synthetic(), own.training_batch(), Draws(1).fold("step", 0))
    assert objective._taught is taught


@pytest.mark.parametrize("settings", [{"init": "herding"}, {"syn_batch": 1}])
def test_what_a_run_refuses_is_refused_before_the_teacher_trains(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "teach", None)
    with pytest.raises(ConfigError):
        distill(task(), "krr", nodes=6, settings=settings)


def test_a_teacher_is_kept_for_its_task_and_seed_alone() -> None:
    first, objective = task(), PropagatedRidge(recipe=SHORT)
    targets = objective.taught(first, Draws(1))
    assert objective.taught(first, Draws(1)) is targets
    assert not torch.equal(objective.taught(first, Draws(2)), targets)
    changed = replace(first.graph, y=(first.graph.y + 1) % 3)
    assert not torch.equal(objective.taught(graph_task(changed, protocol=FAST), Draws(1)), targets)
    assert torch.equal(objective.taught(first, Draws(1)), targets)


def test_a_network_that_reads_the_graph_and_a_structure_are_seen_whole() -> None:
    own = task("gcn")
    objective = PropagatedRidge(nodes=30, recipe=SHORT)
    adjacency = 1 - torch.eye(6)
    network = Network(own, own.init(Draws(0)))
    x = synthetic().inputs["x"].requires_grad_(True)  # type: ignore[call-overload]
    linked = objective(network, synthetic({"x": x, "adjacency": adjacency}), own.training_batch(), Draws(1))
    apart = objective(network, synthetic({"x": x}), own.training_batch(), Draws(1))
    assert not torch.isclose(linked, apart)
    assert bool(torch.autograd.grad(linked, x)[0].abs().sum() > 0)


class Featureless(nn.Module):
    """A network without layers whose inputs could be read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(12, 3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x @ self.weight


def test_other_data_than_a_graph_and_networks_without_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="reads the nodes of a graph"):
        PropagatedRidge().check(BlobTask())
    with pytest.raises(ConfigError, match=r"PropagatedRidge reads a network's features, but that of .* has none"):
        PropagatedRidge().check(graph_task(planted_graph(), model=Featureless))


def test_the_settings_reach_the_objective() -> None:
    settings = METHODS["krr"].with_settings(real_batch=7, ridge=0.3).settings(6)
    objective = METHODS["krr"].make_objective(settings)
    assert isinstance(objective, PropagatedRidge)
    assert (objective.nodes, objective.ridge) == (7, 0.3)


@pytest.mark.slow
def test_a_distilled_set_beats_random_nodes() -> None:
    graph = graph_from_fields(planted_fields(noise=3.0), "planted")
    own = graph_task(graph, protocol=replace(FAST, epochs=200))
    gains = []
    for seed in range(3):
        result = distill(own, "krr", nodes=6, seed=seed, settings={"steps": 60, "validate_every": 20})
        found = evaluate(own, result, n=2, seed=seed, baselines=["random"])
        gains.append(found.headline().mean - found.baselines["random"][0].mean)
    assert statistics.fmean(gains) > 2 * statistics.stdev(gains) / 3**0.5


def test_without_validation_nodes_the_last_step_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "TeacherRecipe", lambda: SHORT)
    taught = list[int]()
    monkeypatch.setattr(ridge, "teach", lambda *given: taught.append(1) or teach(*given))
    own = graph_task(planted_graph(val_mask=None), protocol=FAST)
    result = distill(own, "krr", nodes=6, settings={"steps": 4, "validate_every": 2})
    assert result.steps == 4
    assert result.batch.targets.shape == (6, 3)  # type: ignore[union-attr]
    assert "platt_log_scale" in result.learned
    assert taught == [1]  # when the run begins: the operations of a step are counted without it


def test_synthetic_nodes_without_a_live_unit_predict_nothing() -> None:
    own = graph_task(planted_graph(), model="gcn", width=2, protocol=FAST)
    state = own.init(Draws(0))
    dead = state._replace(params={**state.params, "first.bias": torch.full((2,), -1e3)})
    objective, syn = PropagatedRidge(nodes=10, recipe=SHORT), synthetic()
    assert isinstance(syn.inputs, dict)
    learned = [syn.inputs["x"].requires_grad_(), objective.log_scale]
    for network in (dead, state):
        loss = objective(Network(own, network), syn, own.training_batch(), Draws(7))
        gradients = torch.autograd.grad(loss, learned)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        if network is dead:
            assert float(loss.detach()) == pytest.approx(math.log(3))
            assert not any(bool(gradient.any()) for gradient in gradients)
