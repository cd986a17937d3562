"""DDPP's pruned distance, FTD's flat experts and averaged images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import DOMAIN, image_task
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import default_folder
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.sharpness import uphill, without_gap
from mmdistill.networks.stacked import state_at
from mmdistill.objectives.base import Network
from mmdistill.objectives.trajectory import (
    PrunedTrajectoryMatching,
    TrajectoryMatching,
    TrajectoryMatchingConstantMemory,
    similarity,
)
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, NetworkState
from mmdistill.testing import check_objective
from tests.oracles import objectives as networks
from tests.oracles import unroll as oracle
from tests.toys import BlobTask, matched_network, six_samples

KEY = Draws(12)
RATE = 0.25


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return matched_network(task, KEY)


@pytest.fixture(scope="module")
def syn(task: BlobTask) -> Batch:
    return six_samples(task, KEY)


def numpy_of(params: dict[str, Tensor]) -> networks.Params:
    return {name: p.numpy() for name, p in params.items()}


@pytest.mark.parametrize("threshold", [-1.0, 0.1, 0.6])
def test_the_pruned_distance_equals_its_oracle(threshold: float, network: Network, syn: Batch) -> None:
    assert network.target is not None
    start, target = numpy_of(network.state.params), numpy_of(network.target)
    steps = [(syn.inputs.numpy(), np.eye(3)[syn.targets.numpy()])] * 2  # type: ignore[union-attr]
    check_objective(
        PrunedTrajectoryMatching(2, InnerRate(RATE).double(), threshold), network, syn, syn,
        oracle=lambda: oracle.pruned_trajectory(start, target, steps, [RATE] * 2, threshold),
    )  # fmt: skip


def test_where_nothing_would_be_left_all_counts(network: Network, syn: Batch) -> None:
    rate = InnerRate(1e-9).double()
    far = network._replace(target={name: -p for name, p in network.state.params.items()})
    pruned, plain = (
        build(1, rate)(far, syn, syn, KEY).detach() for build in (PrunedTrajectoryMatching, TrajectoryMatching)
    )
    assert float(pruned) == pytest.approx(float(plain))
    with pytest.raises(ConfigError, match="leaves nothing"):
        PrunedTrajectoryMatching(1, rate, 1.0)


def test_pruning_goes_with_the_constant_memory_gradient(network: Network, syn: Batch) -> None:
    class Both(PrunedTrajectoryMatching, TrajectoryMatchingConstantMemory):
        pass

    def found(kind: type[TrajectoryMatching], steps: int) -> tuple[Tensor, Tensor]:
        leaf = syn.inputs.clone().requires_grad_()  # type: ignore[union-attr]
        value = kind(steps, InnerRate(RATE).double())(network, syn._replace(inputs=leaf), syn, KEY)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    # The mask is known once the student has arrived, before any gradient is taken; one step holds no later states.
    for steps, same in ((1, True), (3, False)):
        (value, gradient), (exact_value, exact) = found(Both, steps), found(PrunedTrajectoryMatching, steps)
        assert torch.equal(value, exact_value)
        assert torch.allclose(gradient, exact, rtol=1e-10) == same


def test_sharpness_of_no_gradient_is_none() -> None:
    zeros = {"w": torch.zeros(2, 3)}
    state = NetworkState({"w": torch.ones(2, 3)}, {})
    assert torch.equal(uphill(state, zeros, 0.1, adaptive=False).params["w"], state.params["w"])
    assert torch.equal(without_gap(zeros, zeros, 0.5)["w"], zeros["w"])


def test_similarity() -> None:
    a, b = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0]), torch.tensor([1.0, 1.0, 3.0, 0.0, 2.0])
    assert similarity(a, b).tolist() == [0.5, 1.0, 0.0, 1.0, -2.0]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("gap", [0.0, 0.4])
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_sharpness_aware_steps_equal_their_oracle(mode: str, gap: float, adaptive: bool, task: BlobTask) -> None:
    batch = task.select(torch.tensor([0, 31, 62, 5]))
    protocol = FitProtocol(
        2, lr=0.1, momentum=0.0, weight_decay=0.0, batch=None, decay_at=(), sam=0.3, sam_gap=gap, sam_adaptive=adaptive
    )
    fitted = fit_networks(
        task.init, lambda state, one, noise: (task.loss(state, one), {}), batch, protocol, 2, KEY,
        mode=mode,  # type: ignore[arg-type]
    )  # fmt: skip
    x, y = batch.inputs.numpy(), np.eye(3)[batch.targets.numpy()]  # type: ignore[union-attr]
    params = numpy_of(task.init(KEY.fold("init", 1)).params)
    for _ in range(2):
        params = oracle.sharpness_aware_step(params, x, y, 0.1, 0.3, gap, adaptive)
    for name, tensor in state_at(fitted, 1).params.items():
        torch.testing.assert_close(tensor, torch.from_numpy(params[name]), rtol=1e-10, atol=1e-12)


def test_flat_experts_are_other_experts() -> None:
    task = BlobTask()
    changes = ({}, {"sam": 0.01}, {"sam": 0.01, "sam_gap": 0.3}, {"sam": 0.01, "sam_adaptive": True}, {"visits": 9})
    folders = {default_folder(task, ExpertRecipe(replace(PUBLISHED, **change))) for change in changes}  # type: ignore[arg-type]
    assert len(folders) == len(changes)


def averaging(decay: float, validate_every: int = 0) -> dict[str, object]:
    return {"steps": 4, "real_batch": 8, "ema": decay, "validate_every": validate_every}


def test_the_average_is_the_result_and_resumes(tmp_path: Path) -> None:
    task, method = BlobTask(), CORE_METHODS["dm"]
    distiller = Distiller(task, method.with_settings(**averaging(0.75)), 1)
    run = distiller.start()
    expected = run.parameterization(KEY).inputs.detach().clone()
    for _ in range(4):
        run, _ = distiller.step(run)
        expected = 0.75 * expected + 0.25 * run.parameterization(KEY).inputs.detach()
    whole = distill(task, method, ipc=1, settings=averaging(0.75))
    torch.testing.assert_close(whole.batch.inputs, expected)
    distill(task, method, ipc=1, settings=averaging(0.75), out=tmp_path, checkpoint_every=2)
    sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1].unlink()
    again = distill(task, method, ipc=1, settings=averaging(0.75), out=tmp_path, resume=True, checkpoint_every=2)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]


def test_the_average_is_of_pixels_within_their_range() -> None:
    task = image_task("digits", model="mlp", width=4)
    stored = CORE_METHODS["dm"].stored_as(DOMAIN.parameterizations["upsample-2"])
    rates = {"codes": OptimizerSpec("sgd", 1e4)}
    distiller = Distiller(task, stored.with_settings(**averaging(0.5), optimizers=rates), 1)
    run = distiller.start()
    for _ in range(3):
        run, _ = distiller.step(run)
    assert run.average is not None
    assert 0 <= float(run.average["pixels"].min()) < float(run.average["pixels"].max()) <= 1


@pytest.mark.parametrize("name", ["ftd", "ddpp"])
def test_the_methods_run_on_digits(name: str, tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=4)
    settings = {"steps": 2, "inner_steps": 3, "experts": 1, "expert_folder": str(tmp_path)}
    result = distill(task, get_method(DOMAIN, name, "digits"), ipc=1, settings=settings)
    assert bool(result.batch.inputs.isfinite().all())  # type: ignore[union-attr]
    published: Settings = get_method(DOMAIN, name).settings(1)
    found = (published.expert_sam, published.expert_gap, published.ema)
    assert found == ((0.01, 0.3, 0.9999) if name == "ftd" else (0.0, 0.0, 0.0))
