"""HaBa's adversary: its oracle, its learning, its place in a run."""

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
from mmdistill.labels import LabelKind
from mmdistill.methods import CORE_METHODS
from mmdistill.objectives.adversary import StyleAdversary, contrast
from mmdistill.objectives.base import Network
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, NetworkState, Task
from mmdistill.testing import check_objective
from tests.oracles import adversary as oracle
from tests.toys import BlobTask

KEY = Draws(4)


def made(task: BlobTask, styles: int = 2, weight: float = 0.1, lr: float = 0.001) -> StyleAdversary:
    inner = TrajectoryMatching(2, InnerRate(0.25).double())
    objective = StyleAdversary(inner, styles, weight, lr)
    objective.check(task)
    objective.begin(task, KEY)
    return objective


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return Network(task, task.init(KEY.fold("net")), task.init(KEY.fold("end")).params)


@pytest.fixture(scope="module")
def syn(task: BlobTask) -> Batch:
    """Three codes, one of each class, in two styles."""
    inputs = KEY.normal(6, 4).double()
    return Batch(inputs, torch.arange(3).repeat_interleave(2), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("classes", [[0, 1, 0, 2, 1, 2], [0, 0, 0, 1, 1]])
def test_contrast_equals_its_oracle(classes: list[int]) -> None:
    features = KEY.fold("features").normal(len(classes), 5).double()
    targets = torch.tensor(classes)
    found = contrast(features, targets)
    assert float(found) == pytest.approx(oracle.contrast(features.numpy(), classes), rel=1e-10)
    soft = torch.nn.functional.one_hot(targets, 3).double() * 0.6 + 0.1
    assert torch.equal(contrast(features, soft), found)


def test_a_step_of_the_adversary_stays_in_its_tensors(task: BlobTask, network: Network, syn: Batch) -> None:
    objective = made(task)
    assert not objective.steady  # a captured step would change them again in each replay
    held = {name: (tensor, tensor.clone()) for name, tensor in objective.named_buffers()}
    objective(network, syn, syn, KEY.fold("step"))
    assert all(tensor is held[name][0] for name, tensor in objective.named_buffers())
    assert any(not torch.equal(tensor, before) for tensor, before in held.values())


def test_a_sample_alone_in_its_class_adds_nothing() -> None:
    features = KEY.fold("features").normal(3, 5).double()
    alone = contrast(features, torch.tensor([0, 0, 1]))
    unit = torch.nn.functional.normalize(features, dim=1)
    scores = (unit @ unit.T / 0.07).fill_diagonal_(-torch.inf)
    expected = -(scores[0, 1] - scores[0].logsumexp(0) + scores[1, 0] - scores[1].logsumexp(0)) / 3
    torch.testing.assert_close(alone, expected)


def test_runs_of_other_seeds_have_other_adversaries(task: BlobTask) -> None:
    found = []
    for seed in (0, 0, 1):
        objective = StyleAdversary(TrajectoryMatching(2, InnerRate(0.25)), 2)
        objective.begin(task, Draws(seed))
        found.append(objective._part("params"))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert not all(torch.equal(tensor, found[2][name]) for name, tensor in found[0].items())


def test_likeness_is_added_and_differentiable(task: BlobTask, network: Network, syn: Batch) -> None:
    assert isinstance(syn.inputs, Tensor)
    objective, leaf = made(task), syn.inputs.clone().requires_grad_()
    adversary = NetworkState(objective._part("params"), objective._part("buffers"))
    features = task.features(adversary, syn.inputs)[-1].numpy()
    inner = objective.objective(network, syn, syn, KEY)
    value = objective(network, syn._replace(inputs=leaf), syn, KEY)
    assert float((value - inner).detach()) == pytest.approx(0.1 * oracle.likeness(features), rel=1e-8)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert bool((gradient != 0).any())


def test_the_styled_loss_passes_the_battery(task: BlobTask, network: Network, syn: Batch) -> None:
    objective = made(task, lr=0.0)  # else the adversary learns at each call
    adversary = NetworkState(objective._part("params"), objective._part("buffers"))
    features, key = task.features(adversary, syn.inputs)[-1].numpy(), Draws(0, ("objective",))
    check_objective(
        objective,
        network,
        syn,
        syn,
        oracle=lambda: float(objective.objective(network, syn, syn, key).detach()) + 0.1 * oracle.likeness(features),
        by_position="the styles of one code stand together",
    )


def test_the_adversary_learns_what_it_wants(task: BlobTask, network: Network, syn: Batch) -> None:
    objective = made(task, lr=0.05)
    before = {name: tensor.clone() for name, tensor in objective._part("params").items()}

    def wanted(params: dict[str, Tensor]) -> Tensor:
        state = NetworkState(params, {})
        features = task.features(state, syn.inputs)[-1]
        apart = (1 - torch.nn.functional.cosine_similarity(features[0::2], features[1::2])).mean() / 2
        return task.loss(state, syn) + 0.1 * (apart + contrast(features, syn.targets))

    # whichever of the two styles comes first, cosine, loss and contrast are the same
    gradient = torch.func.grad(wanted)(before)
    objective(network, syn, syn, KEY)
    for name, tensor in objective._part("params").items():
        torch.testing.assert_close(tensor, before[name] - 0.05 * gradient[name], rtol=1e-10, atol=1e-12)
    once = {name: tensor.clone() for name, tensor in objective._part("params").items()}
    again = torch.func.grad(wanted)(once)
    objective(network, syn, syn, KEY)
    for name, tensor in objective._part("params").items():
        velocity = 0.9 * gradient[name] + again[name]
        torch.testing.assert_close(tensor, once[name] - 0.05 * velocity, rtol=1e-10, atol=1e-12)
    for step in range(30):
        objective(network, syn, syn, KEY.fold(step))
    assert float(wanted(objective._part("params"))) < float(wanted(before))
    assert objective.learned().keys() == {"inner_lr"}


def test_wrong_compositions_are_refused(task: BlobTask, network: Network, syn: Batch) -> None:
    with pytest.raises(ConfigError, match="at least 2 styles"):
        StyleAdversary(UnrolledPerformance(2, InnerRate(0.1)), 1)
    with pytest.raises(ConfigError, match="flat batch"):
        StyleAdversary(DistributionMatching(), 2)
    with pytest.raises(ConfigError, match="6 samples are not 4 styles"):
        made(task, 4)(network, syn, syn, KEY)


def test_counting_operations_leaves_the_adversary_as_it_is() -> None:
    def objective() -> StyleAdversary:
        return StyleAdversary(UnrolledPerformance(2, InnerRate(0.1)), styles=2)

    def pairs(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        made = raw_samples(task, budget, settings.init, label, draws)
        made.styles = 2
        return made

    distiller = Distiller(BlobTask(), replace(CORE_METHODS["dd"], objective=objective, parameterization=pairs), 2)
    run = distiller.start()
    before = {name: tensor.clone() for name, tensor in run.objective.state_dict().items()}
    assert distiller.operations(run) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.objective.state_dict().items())


@pytest.mark.usefixtures("short_fits")
def test_haba_runs_and_resumes_with_its_adversary(tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=4)
    method = get_method(DOMAIN, "haba", "digits")
    settings = {"steps": 4, "inner_steps": 3, "inner_parts": 2, "experts": 1, "expert_folder": str(tmp_path / "e")}
    settings |= {"start_epochs": 2, "expert_steps": 1}
    whole = distill(task, method, ipc=4, settings=settings)
    distill(task, method, ipc=4, settings=settings, out=tmp_path / "run", checkpoint_every=2)
    sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1].unlink()
    again = distill(task, method, ipc=4, settings=settings, out=tmp_path / "run", checkpoint_every=2, resume=True)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]
    assert np.isfinite(whole.batch.inputs.numpy()).all()  # type: ignore[union-attr]
    assert whole.stored_bytes <= 40 * (64 * 4 + 1)


def test_the_two_styles_of_a_step_are_drawn_among_all(task: BlobTask) -> None:
    objective, batch = made(task, styles=3), task.select(torch.arange(6))
    drawn = [objective._draw_pairs(batch._replace(inputs=torch.arange(6)), KEY.fold(step)).inputs for step in range(30)]
    assert {tuple(sorted(rows.tolist())) for rows in drawn} == {(0, 1, 3, 4), (0, 2, 3, 5), (1, 2, 4, 5)}  # type: ignore[union-attr]
