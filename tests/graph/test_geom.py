"""GEOM: experts that begin with easy nodes, starts that go on to later epochs, labels and knowledge of experts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.graph import trajectories
from mmdistill.graph.difficulty import neighbourhood_entropy
from mmdistill.graph.methods import METHODS
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.graph.trajectories import (
    GRADERS,
    GraphExperts,
    GraphTrajectoryMatching,
    KnowledgeSettings,
    graph_experts,
    rate_unit,
)
from mmdistill.networks import experts
from mmdistill.networks.curriculum import Curriculum, CurriculumRows
from mmdistill.networks.experts import lessons_on
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.trajectories import StartWindow
from mmdistill.objectives.base import Network
from mmdistill.objectives.calibration import KnowledgeExtraction, expert_divergence
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors, shares_inputs
from mmdistill.testing import as_float64, check_objective
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.oracles import graph as oracle

FEW = {"steps": 3, "experts": 2, "expert_steps": 3, "start_epochs": 3, "start_steps": 2, "inner_steps": 4}
LESSONS = {"expert_easy": 0.5, "expert_joining": 3}
KEY = Draws(11)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(trajectories, "EXPERTS", replace(trajectories.EXPERTS, passes=2))
    monkeypatch.setattr(trajectories, "GRADED", 3)


def task(model: str = "gcn", wide: bool = False) -> GraphTask:
    """A toy graph; with wide features a GCN reads a neighbourhood of its training nodes, else the graph."""
    graph = planted_graph(x=Draws(3).normal(120, 200)) if wide else planted_graph()
    return graph_task(graph, model=model, width=8 if model == "gcn" else None, protocol=FAST)


def dense(own: GraphTask) -> oracle.Array:
    return own.scene.adjacency.among(torch.arange(len(own.scene))).double().numpy()


def test_difficulty_is_the_entropy_of_the_classes_around_a_node() -> None:
    own = task()
    classes = KEY.integers(4, len(own.scene))
    nodes = torch.tensor([7, 0, 55, 119])
    found = neighbourhood_entropy(own.scene.adjacency, classes, nodes)
    expected = oracle.neighbour_entropy(dense(own), classes.tolist())
    assert found.tolist() == pytest.approx([expected[node] for node in nodes.tolist()], abs=1e-6)
    assert float(neighbourhood_entropy(own.scene.adjacency, torch.zeros_like(classes), nodes).abs().max()) == 0


def test_the_weights_of_edges_do_not_count() -> None:
    fields = planted_fields()
    weight = 3 * torch.rand(fields["edge_index"].shape[1], generator=torch.Generator().manual_seed(0)) + 0.1
    weighed = graph_task(planted_graph(edge_weight=weight), protocol=FAST)
    classes, nodes = KEY.integers(4, 120), torch.arange(120)
    plain = neighbourhood_entropy(task().scene.adjacency, classes, nodes)
    assert torch.equal(neighbourhood_entropy(weighed.scene.adjacency, classes, nodes), plain)


@pytest.mark.parametrize("model", ["gcn", "sgc"])
def test_a_graph_grades_its_nodes_by_labels_and_by_what_networks_say_of_the_others(model: str) -> None:
    own = task(model)
    states = [own.init(Draws(seed)) for seed in (0, 1)]
    everything = own.seen(torch.arange(120), own.scene.y)
    said = sum(own.predict(state, everything.inputs)[0].softmax(1) for state in states)
    assert isinstance(said, Tensor)
    classes = said.argmax(1).tolist()
    for node, label in zip(own.graph.train.tolist(), own._labels.tolist(), strict=True):
        classes[node] = label
    expected = oracle.neighbour_entropy(dense(own), classes)
    assert own.difficulty(states).tolist() == pytest.approx([expected[v] for v in own.graph.train.tolist()], abs=1e-6)


def test_labels_that_training_does_not_know_do_not_count() -> None:
    states = [task().init(Draws(0))]
    y = planted_fields()["y"]
    other = torch.where(planted_fields()["train_mask"], y, (y + 1) % 3)
    own = graph_task(planted_graph(y=other), model="gcn", width=8, protocol=FAST)
    assert torch.equal(own.difficulty(states), task().difficulty(states))


@pytest.mark.parametrize("pacing", ["linear", "root", "geometric"])
def test_nodes_are_let_in_at_the_pace_of_the_code(pacing: str) -> None:
    curriculum = Curriculum(0.75, 15, pacing=pacing)  # type: ignore[arg-type]
    for epoch in range(30):
        share = oracle.pacing(0.75, epoch, 15, pacing)
        assert curriculum.part(epoch) == pytest.approx((0.0, share), abs=1e-12)
        assert int(curriculum.bounds(torch.tensor([140]), epoch)[1][0]) == int(share * 140)


def test_another_pace_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expert_pacing.*'fast'"):
        Curriculum(0.5, 3, pacing="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expert_pacing.*'fast'"):
        METHODS["geom"].with_settings(expert_pacing="fast").settings(6)


def test_the_window_grows_as_that_of_the_code() -> None:
    window = StartWindow(0, 50, 150)
    for step in range(300):
        assert window.until(200, step) == oracle.expanding_bound(50, 200, step)


@pytest.mark.parametrize(("model", "wide"), [("gcn", False), ("gcn", True), ("sgc", False)])
def test_experts_train_on_the_easiest_nodes_of_all_classes(model: str, wide: bool) -> None:
    """Whether networks read the graph, a neighbourhood or rows of features."""
    own, data = task(model, wide), task(model, wide).training_batch()
    assert shares_inputs(data) == (model == "gcn")
    curriculum = Curriculum(0.5, 3, pacing="root")
    scores = KEY.uniform(18)
    lessons = CurriculumRows(curriculum, torch.zeros(18, dtype=torch.int64), lambda: scores)
    protocol = FitProtocol(4, lr=0.3, momentum=0.0, weight_decay=0.0, batch=None, decay_at=(), passes=2)

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        return own.loss(state, batch, train=True), {}

    found = fit_networks(own.init, loss, data, protocol, 2, KEY, lessons=lessons, mode="loop")
    for index in range(2):
        params = {name: tensor.clone() for name, tensor in own.init(KEY.fold("init", index)).params.items()}
        for epoch in range(4):
            allowed = scores.argsort()[: int(oracle.pacing(0.5, epoch, 3, "root") * 18)]
            nodes = own._nodes[allowed]
            for _ in range(2):
                leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
                everything = own.seen(torch.arange(120), own.scene.y)
                logits = own.predict(NetworkState(leaves, {}), everything.inputs)[0]
                mean = F.cross_entropy(logits[nodes], own.scene.y[nodes])
                slopes = torch.autograd.grad(mean, list(leaves.values()))
                params = {
                    name: (leaf - 0.3 * slope).detach()
                    for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)
                }
        for name, tensor in params.items():
            torch.testing.assert_close(found.params[name][index], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["gcn", "sgc"])
def test_the_settings_experts_have_lessons_in_the_order_of_all_nodes(model: str) -> None:
    own = task(model)
    settings = METHODS["geom"].with_settings(**FEW, **LESSONS).settings(6)
    schedule = graph_experts(settings)
    assert isinstance(schedule, GraphExperts)
    recipe = schedule.recipe_for(own)
    assert recipe.curriculum is not None
    assert recipe.curriculum.scoring.protocol.lr == pytest.approx(settings.expert_lr * rate_unit(own))
    lessons = lessons_on(own, recipe, own.training_batch())
    assert lessons is not None
    assert lessons.count(0) == 9
    assert f"after {GRADERS} networks of 3 epochs" in schedule.describe_experts(own)
    order = experts.difficulty_scores(own, recipe.of_scorers(recipe.curriculum.scoring), GRADERS, own.training_batch())
    assert lessons.rows(0).tolist() == sorted(order.argsort(stable=True)[:9].tolist())
    assert lessons.rows(5).tolist() == list(range(18))


def soft(rows: int) -> Batch:
    labels = (2 * KEY.fold("labels").normal(rows, 3)).double().softmax(1)
    return Batch({"x": KEY.fold("x").normal(rows, 12).double()}, labels, torch.ones(rows, dtype=torch.float64))


def between(own: GraphTask) -> Network:
    ends = [as_float64(own.init(Draws(seed))) for seed in (0, 1)]
    return Network(own, ends[0], ends[1].params)


def extracting(weight: float, steps: int = 4) -> KnowledgeExtraction:
    return KnowledgeExtraction(GraphTrajectoryMatching(steps, InnerRate(0.3).double()), weight)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_the_whole_objective_equals_its_oracle(weight: float) -> None:
    own, syn = task(), soft(6)
    network = between(own)
    assert network.target is not None
    start, target = ({k: t.numpy() for k, t in tree.items()} for tree in (network.state.params, network.target))
    x, y = syn.inputs["x"].numpy(), syn.targets.numpy()  # type: ignore[call-overload,index,union-attr]
    check_objective(
        extracting(weight),
        network,
        syn,
        syn,
        oracle=lambda: oracle.geom_objective(start, target, np.asarray(x), np.asarray(y), 4, 0.3, weight),
    )


def test_what_the_expert_says_has_the_gradient_of_a_plain_divergence() -> None:
    """With respect to features and labels, the entropy of these included."""
    own, network = task(), between(task())
    syn = soft(6)._replace(weight=torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    x, logits = KEY.normal(6, 12).double().requires_grad_(), KEY.fold("l").normal(6, 3).double().requires_grad_()
    found = expert_divergence(network, syn._replace(inputs={"x": x}, targets=logits.softmax(1)))
    said = own.predict(NetworkState(network.target or {}, {}), {"x": x})[0].log_softmax(1)
    plain = F.kl_div(said, logits.log_softmax(1), reduction="none", log_target=True).sum(1)
    expected = (plain * syn.weight).sum() / 6
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(value, (x, logits)) for value in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-14)


def test_of_hard_labels_it_is_the_cross_entropy() -> None:
    own, network = task(), between(task())
    syn = soft(6)._replace(targets=torch.arange(6) % 3)
    expected = own.loss(NetworkState(network.target or {}, {}), syn)
    assert float(expert_divergence(network, syn)) == pytest.approx(float(expected), rel=1e-12)


def test_what_cannot_be_extracted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(knowledge\) must not be negative, got -1"):
        extracting(-1.0)
    own = task()
    with pytest.raises(ConfigError, match="use a schedule of cached experts"):
        extracting(1.0)(between(own)._replace(target=None), soft(6), soft(6), KEY)
    kept = extracting(0.5)
    assert (kept.view, kept.reads_real, kept.needs_target, kept.reads_scores) == ("flat", False, True, False)


def test_the_settings_reach_the_objective() -> None:
    settings = METHODS["geom"].with_settings(**FEW, knowledge=0.7).settings(6)
    assert isinstance(settings, KnowledgeSettings)
    objective = METHODS["geom"].make_objective(settings)
    assert isinstance(objective, KnowledgeExtraction)
    assert (objective.weight, type(objective.matching)) == (0.7, GraphTrajectoryMatching)
    assert isinstance(objective.matching, TrajectoryMatching)
    assert objective.matching.steps == 4


def test_first_labels_are_the_experts_logits_of_the_first_nodes() -> None:
    own = task()
    method = METHODS["geom"].with_settings(**{**FEW, "steps": 0, "ema": 0.0, "validate_every": 0})
    found = distill(own, method, nodes=6)
    settings = method.settings(6)
    schedule = graph_experts(settings)
    assert isinstance(schedule, GraphExperts)
    assert isinstance(found.batch.inputs, dict)
    logits = torch.stack([own.predict(state, {"x": found.batch.inputs["x"]})[0] for state in schedule.finals(own)])
    classes = torch.arange(3).repeat_interleave(2)
    knows = (logits.argmax(2) == classes)[..., None].float()
    some = (knows * logits).sum(0) / knows.sum(0).clamp_min(1)
    unknown = logits.mean(0)
    unknown[range(6), classes] = unknown.amax(1)
    expected = torch.where(knows.sum(0) > 0, some, unknown).softmax(1)
    assert isinstance(found.batch.targets, Tensor)
    torch.testing.assert_close(found.batch.targets, expected)
    for row in found.batch.inputs["x"]:
        assert float((own.graph.x[own.graph.train] - row).abs().sum(1).min()) < 1e-4


def test_a_run_learns_features_and_labels() -> None:
    own = task()
    first, last = (distill(own, METHODS["geom"].with_settings(**{**FEW, "steps": steps}), nodes=6) for steps in (0, 3))
    assert isinstance(first.batch.targets, Tensor)
    assert isinstance(last.batch.targets, Tensor)
    assert not torch.equal(first.batch.targets, last.batch.targets)
    assert not torch.equal(first.batch.inputs["x"], last.batch.inputs["x"])  # type: ignore[call-overload]
