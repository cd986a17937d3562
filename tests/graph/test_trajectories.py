from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdistill.cli import main
from mmdistill.commands.assembly import make_task
from mmdistill.config import DistillConfig
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.graph.data import GraphData, graph_from_fields
from mmdistill.graph.methods import METHODS
from mmdistill.graph.synthetic import SyntheticGraph
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.graph.trajectories import (
    STEPS_OF_EPOCH,
    GraphExperts,
    GraphTrajectoryMatching,
    graph_experts,
    rate_unit,
)
from mmdistill.labels import FixedLabels
from mmdistill.networks.experts import is_complete
from mmdistill.networks.schedules import EMPTY
from mmdistill.networks.unroll import Unrolling
from mmdistill.objectives.base import Network
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.runtime import Draws
from mmdistill.task import Batch, shares_inputs
from mmdistill.testing import as_float64, check_objective
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.toys import BlobTask

FEW = {"steps": 3, "experts": 2, "expert_steps": 4, "start_epochs": 3, "inner_steps": 4}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))


def task(model: str = "sgc") -> GraphTask:
    return graph_task(planted_graph(), model=model, width=8 if model in ("gcn", "mlp") else None, protocol=FAST)


def test_the_labelled_nodes_themselves_leave_nothing_to_match() -> None:
    """Trained on the rows that its expert trained on, a student ends where the expert ends."""
    own = task()
    settings = METHODS["sfgc"].with_settings(**FEW).settings(6)
    schedule = graph_experts(settings)
    state = schedule.fetch(own, EMPTY, Draws(4))
    assert state.network is not None
    rows = own.training_batch()
    matching = GraphTrajectoryMatching(FEW["expert_steps"] * STEPS_OF_EPOCH, InnerRate(settings.expert_lr))
    loss = matching(Network(own, state.network, state.target), rows, rows, Draws(0))
    assert float(loss.detach()) < 1e-8
    fewer = Batch({"x": rows.inputs["x"][:6]}, rows.targets[:6], rows.weight[:6])  # type: ignore[call-overload,index]
    loss = matching(Network(own, state.network, state.target), fewer, rows, Draws(0))
    assert float(loss.detach()) > 1e-3


def test_matching_on_a_graph_passes_the_battery() -> None:
    own = task()
    states = [as_float64(own.init(Draws(seed))) for seed in (0, 1)]
    inputs, labels = {"x": Draws(2).normal(6, 12).double()}, torch.arange(6) % 3
    syn = Batch(inputs, labels, torch.ones(6, dtype=torch.float64))
    network = Network(own, states[0], states[1].params)
    plain = TrajectoryMatching(4, InnerRate(0.3 * rate_unit(own)).double())
    check_objective(
        GraphTrajectoryMatching(4, InnerRate(0.3).double()),
        network,
        syn,
        syn,
        oracle=lambda: float(plain(network, syn, syn, Draws(0)).detach()),
    )


def test_experts_of_a_network_that_reads_the_graph_train_on_the_whole_of_it() -> None:
    own = task("gcn")
    settings = METHODS["sfgc"].with_settings(**FEW).settings(6)
    schedule = graph_experts(settings)
    assert isinstance(schedule, GraphExperts)
    first = schedule._open(own).snapshot(0, 0)
    last = schedule._open(own).snapshot(0, 6)
    whole = own.training_batch()
    assert float(own.loss(last, whole)) < float(own.loss(first, whole))


def test_networks_of_two_layers_train_on_a_neighbourhood_as_on_the_graph() -> None:
    own = graph_task(planted_graph(x=Draws(3).normal(120, 200)), model="gcn", width=8, protocol=FAST)
    near, whole = own.training_batch(), own._flat(torch.arange(len(own._labels)))
    assert near.weight.shape == (len(own.graph.train),)
    assert isinstance(near.inputs, dict)
    assert len(near.inputs["x"]) < len(own.graph.x)
    state = own.init(Draws(5))
    assert float(own.loss(state, near)) == pytest.approx(float(own.loss(state, whole)), rel=1e-5)


def among_themselves() -> GraphData:
    """A graph whose training nodes have no other neighbours, and features enough for their neighbourhood to be less."""
    fields = planted_fields()
    source, end = fields["edge_index"]
    mask = fields["train_mask"]
    return planted_graph(x=Draws(3).normal(120, 200), edge_index=fields["edge_index"][:, mask[source] == mask[end]])


@pytest.mark.parametrize(
    "graph",
    [graph_from_fields(planted_fields(), "planted", inductive=True), among_themselves()],
    ids=["alone", "apart"],
)
def test_networks_read_the_graph_where_training_nodes_have_no_others_near(graph: GraphData) -> None:
    """Rows of as many nodes as are trained on would pass for samples that can be taken apart."""
    own = graph_task(graph, model="gcn", width=8)
    found = own.training_batch()
    assert shares_inputs(found)
    assert isinstance(found.inputs, dict)
    assert "second" not in found.inputs


@pytest.mark.parametrize(
    "student",
    [
        {},
        {"batch": 4},
        {"parts": 2},
        {"unrolling": Unrolling(momentum=0.5)},
        {"unrolling": Unrolling(truncate=2)},
        {"unrolling": Unrolling(optimizer="adam")},
        {"rates": 5},
    ],
    ids=lambda student: next(iter(student), "plain"),
)
@pytest.mark.parametrize("model", ["sgc", "gcn"])
def test_students_end_alike_in_closed_form_and_step_by_step(model: str, student: dict[str, Any]) -> None:
    """Whatever steps they take; those that are not plain have no closed form."""
    own, options = task(model), dict(student)
    rate = InnerRate(0.1, options.pop("rates", None), learn="adam" not in str(options))
    graph, plain = (kind(5, rate, **options) for kind in (GraphTrajectoryMatching, TrajectoryMatching))
    start, x = own.init(Draws(5)), own.training_batch().inputs["x"][:8].clone().requires_grad_()  # type: ignore[index]
    syn = Batch({"x": x}, own._labels[:8], torch.ones(8))
    unit = rate_unit(own) if graph.unrolling.optimizer == "sgd" else 1.0
    network, found = Network(own, start, own.init(Draws(6)).params), []
    graph.check(own)
    for objective in (graph, plain):
        end = objective.train_student(network, syn, Draws(7))
        (slope,) = torch.autograd.grad(end[next(iter(start.params))].sum(), x)
        found.append([*end.values(), slope])
        with torch.no_grad():
            rate.value.mul_(unit)  # for the second, which has none
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_commands_distil_by_a_gcn_unless_another_network_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "graph.pt"
    torch.save(planted_fields(), path)
    for method, model, network in (
        ("sfgc", None, "gcn"),
        ("SFGC", None, "gcn"),
        ("sfgc", "sgc", "sgc"),
        ("gcond", None, "sgc"),
    ):
        _, found = make_task(DistillConfig(data=str(path), method=method, model=model, device="cpu"))
        assert isinstance(found, GraphTask)
        assert found.network_name == network


def test_an_sgc_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for model in ("gcn", "sgc"):
        assert not caplog.messages
        matching = GraphTrajectoryMatching(4, InnerRate(0.3))
        matching.check(task(model))
    assert "model='gcn'" in caplog.text
    assert float(matching.learned()["inner_lr"]) == pytest.approx(0.3 * rate_unit(task("sgc")))  # before any step


def test_the_rate_counts_in_the_lengths_of_propagated_features() -> None:
    graph = planted_graph()
    own, larger = graph_task(graph), graph_task(planted_graph(x=10 * graph.x))
    assert rate_unit(own) == pytest.approx(1 / float(own.embedding().square().sum(1).mean()))
    assert rate_unit(own) == pytest.approx(100 * rate_unit(larger), rel=1e-4)
    assert rate_unit(task("gcn")) == rate_unit(task("mlp")) == 1.0
    assert rate_unit(BlobTask()) == 1.0


def test_a_students_rate_counts_in_the_unit_of_its_graph_in_sgd_alone() -> None:
    graphs = graph_task(planted_graph()), graph_task(planted_graph(x=10 * planted_graph().x))
    by_sgd = GraphTrajectoryMatching(4, InnerRate(0.3))
    by_adam = GraphTrajectoryMatching(4, InnerRate(0.3, learn=False), unrolling=Unrolling(optimizer="adam"))
    for own in graphs:  # measured anew for another graph
        assert float(by_sgd.student_rate(own).detach()) == pytest.approx(0.3 * rate_unit(own))
        assert float(by_adam.student_rate(own).detach()) == pytest.approx(0.3)


def test_the_settings_of_experts_and_students_are_heeded(tmp_path: Path) -> None:
    changes = {"expert_folder": str(tmp_path / "mine"), "expert_sam": 0.1, "expert_gap": 0.2, "inner_momentum": 0.5}
    settings = METHODS["sfgc"].with_settings(**FEW, **changes, inner_batch=4).settings(6)
    schedule = graph_experts(settings)
    assert isinstance(schedule, GraphExperts)
    protocol = schedule.recipe_for(task()).protocol
    assert (schedule.folder_for(task()), protocol.sam, protocol.sam_gap) == (tmp_path / "mine", 0.1, 0.2)
    without = graph_experts(replace(settings, expert_lr=0.0, inner_lr=0.7))
    assert isinstance(without, GraphExperts)
    assert without.recipe_for(task()).protocol.lr == pytest.approx(0.7 * rate_unit(task()))
    matching = METHODS["sfgc"].make_objective(settings)
    assert isinstance(matching, GraphTrajectoryMatching)
    assert (matching.batch, matching.unrolling.momentum) == (4, 0.5)


def test_the_command_trains_the_experts_that_distilling_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = METHODS["sfgc"].with_settings(**FEW)
    monkeypatch.setitem(METHODS, "sfgc", few)
    path = tmp_path / "graph.pt"
    torch.save(planted_fields(), path)
    assert main(["experts", "--data", str(path), "--method", "sfgc", "--device", "cpu"]) == 0
    schedule = graph_experts(few.settings(1))
    assert isinstance(schedule, GraphExperts)
    assert is_complete(schedule.folder_for(graph_task(str(path), model="gcn")), FEW["experts"])


def test_a_run_lowers_the_distance_and_carries_its_rate() -> None:
    own = task()
    method = METHODS["sfgc"].with_settings(**{**FEW, "steps": 60})
    distiller = Distiller(own, method, 6)
    run, losses = distiller.start(), []
    assert isinstance(run.parameterization, SyntheticGraph)
    assert isinstance(run.parameterization.labels, FixedLabels)
    for _ in range(60):
        run, loss = distiller.step(run)
        losses.append(float(loss))
    assert sum(losses[-20:]) < sum(losses[:20])
    result = distill(own, "sfgc", nodes=6, settings=FEW)
    assert float(result.learned["inner_lr"]) == pytest.approx(0.3 * rate_unit(own))
    assert torch.equal(result.batch.targets, torch.tensor([0, 0, 1, 1, 2, 2]))  # type: ignore[arg-type]
