"""Running statistics of batch norms: moved by training, and those of real samples where networks are matched."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmdistill.image import ImageTask, image_task
from mmdistill.networks.early import EarlyStagePool
from mmdistill.networks.enriched import EnrichedPool
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import train_experts
from mmdistill.networks.minibatches import repeat_steps
from mmdistill.networks.schedules import (
    EMPTY,
    FreshNetworks,
    NetworkSchedule,
    TrainedOnS,
    TrainedOnT,
    accuracy,
    sgd_step,
)
from mmdistill.networks.staggered import NetworkPool
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.objectives.base import Network
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance, student_loss
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState
from tests.text.corpus import small_task, tiny_transformer, token_corpus_task

KEY = Draws(6)


def small(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """One block: its norm reads the convolution of the images alone."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.fixture(scope="module", params=["own", "convnet"])
def task(request: pytest.FixtureRequest) -> ImageTask:
    """A network with torch's norm, which writes into its statistics, and one with ours, which replaces them."""
    return image_task("digits", model=small) if request.param == "own" else image_task("digits", model="convnet-bn-w4")


def statistics(task: ImageTask, network: NetworkState, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance of what the first norm reads."""
    first = next(module for module in task.network.module.modules() if isinstance(module, nn.Conv2d))
    name = next(name for name, module in task.network.module.named_modules() if module is first)
    convolved = nn.functional.conv2d(
        images, network.params[f"{name}.weight"], network.params[f"{name}.bias"], padding=first.padding
    )
    by_channel = convolved.transpose(0, 1).flatten(1)
    return by_channel.mean(1), by_channel.var(1)


def first(network: NetworkState, suffix: str) -> Tensor:
    return next(tensor for name, tensor in network.buffers.items() if name.endswith(suffix))


def test_a_training_step_moves_them_by_the_batch(task: ImageTask) -> None:
    network, batch = task.init(KEY), task.select(torch.arange(30))
    before = {name: tensor.clone() for name, tensor in network.buffers.items()}
    moved, _ = sgd_step(task, network, {}, batch, 0.1, 0.0, KEY)
    mean, variance = statistics(task, network, batch.inputs)  # type: ignore[arg-type]
    torch.testing.assert_close(first(moved, "running_mean"), 0.1 * mean)
    torch.testing.assert_close(first(moved, "running_var"), 0.9 + 0.1 * variance)
    assert all(torch.equal(network.buffers[name], before[name]) for name in before)  # the step is a pure function


def syn(task: ImageTask) -> Batch:
    return task.select(torch.arange(10))


def test_a_step_of_a_pools_member_moves_them_by_the_synthetic_set(task: ImageTask) -> None:
    pool = NetworkPool(size=1, max_age=9)
    before = pool.fetch(task, EMPTY, KEY)
    assert before.network is not None
    mean, variance = statistics(task, before.network, syn(task).inputs)  # type: ignore[arg-type]
    after = pool.fetch(task, pool.advance(task, before, lambda: syn(task), KEY), KEY)
    assert after.network is not None
    torch.testing.assert_close(first(after.network, "running_mean"), 0.1 * mean)
    torch.testing.assert_close(first(after.network, "running_var"), 0.9 + 0.1 * variance)


@pytest.mark.parametrize(
    "make",
    [
        FreshNetworks,
        TrainedOnS,
        TrainedOnT,
        partial(EarlyStagePool, size=1, epochs=0.1, batch=32),
        partial(EnrichedPool, first=1, size=2, batch=32),
    ],
)
def test_networks_that_are_matched_have_those_of_real_samples(
    task: ImageTask, make: Callable[[], NetworkSchedule]
) -> None:
    schedule = make()
    if not isinstance(schedule, FreshNetworks):
        steps = "steps" if isinstance(schedule, EnrichedPool) else "inner_steps"
        schedule = replace(schedule, **{steps: 2})  # type: ignore[type-var]
    state = EMPTY
    for step in range(2):
        key = KEY.fold("step", step)
        state = schedule.fetch(task, state, key)
        assert state.network is not None
        drawn = task.sample_real(key.fold("statistics"), torch.arange(10), 16)
        images = drawn.batch.inputs.flatten(0, 1)  # type: ignore[union-attr]
        mean, variance = statistics(task, state.network, images)
        torch.testing.assert_close(first(state.network, "running_mean"), mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(first(state.network, "running_var"), variance)
        logits, _ = task.predict(state.network, images)
        spread = logits.std(0)
        assert float(spread.max()) < 10
        state = schedule.advance(task, state, lambda: syn(task), key.fold("inner"))


def test_experts_keep_theirs(task: ImageTask, tmp_path: Path) -> None:
    recipe = ExpertRecipe(replace(PUBLISHED, epochs=8, momentum=0.9, batch=64), augment=False)
    expert = train_experts(task, tmp_path, 1, recipe).snapshot(0, 8)
    known = task.select(torch.arange(500))
    assert float(accuracy(task, expert, known)) > 0.7
    assert float(first(expert, "running_mean").abs().max()) > 1e-3


def test_a_target_labels_by_its_own(task: ImageTask, tmp_path: Path) -> None:
    recipe = ExpertRecipe(replace(PUBLISHED, epochs=3, momentum=0.9, batch=64), augment=False)
    schedule = ExpertTrajectories(experts=1, start_epochs=1, expert_steps=3, recipe=recipe, folder=tmp_path)
    found = schedule.fetch(task, EMPTY, KEY)
    assert found.network is not None
    assert found.target is not None
    experts = train_experts(task, tmp_path, 1, recipe)
    images = syn(task).inputs
    expected, _ = task.predict(experts.snapshot(0, 3), images)
    labels, _ = task.predict(NetworkState(found.target, found.network.buffers), images)
    torch.testing.assert_close(labels, expected)
    for name, tensor in experts.snapshot(0, 0).params.items():
        assert torch.equal(found.network.params[name], tensor)


def test_the_real_loss_of_a_student_reads_the_real_batch(task: ImageTask) -> None:
    objective = UnrolledPerformance(2, InnerRate(0.1))
    network, synthetic, real = Network(task, task.init(KEY)), syn(task), task.select(torch.arange(40, 80))
    student = network.state.params
    for _ in range(2):
        step = Batch(*(part[0] for part in repeat_steps(synthetic, 1)))  # type: ignore[index]
        student = sgd_step(task, NetworkState(student, network.state.buffers), {}, step, 0.1, 0.0, KEY)[0].params
    fresh = NetworkState(student, {name: tensor.clone() for name, tensor in network.state.buffers.items()})
    expected = task.loss(fresh, real, train=True)
    torch.testing.assert_close(objective(network, synthetic, real, KEY), expected)


def test_a_students_steps_leave_those_that_it_starts_from(task: ImageTask) -> None:
    network = task.init(KEY)
    before = {name: tensor.clone() for name, tensor in network.buffers.items()}
    student_loss(Network(task, network), KEY)(network.params, syn(task), 0)
    assert before
    assert all(torch.equal(network.buffers[name], tensor) for name, tensor in before.items())


def test_a_student_of_more_than_a_few_samples_may_take_one_step(task: ImageTask) -> None:
    objective = UnrolledPerformance(1, InnerRate(0.1))
    network = Network(task, task.init(KEY))
    end = objective.train_student(network, task.select(torch.arange(20)), KEY)
    expected = sgd_step(task, network.state, {}, task.select(torch.arange(20)), 0.1, 0.0, KEY)[0].params
    torch.testing.assert_close(end, expected)


def test_a_matched_network_normalises_by_them_from_the_first_call_on(task: ImageTask) -> None:
    network = FreshNetworks().fetch(task, EMPTY, KEY).network
    assert network is not None
    kept = {name: tensor.clone() for name, tensor in network.buffers.items()}
    images = syn(task).inputs
    assert isinstance(images, Tensor)
    together, _ = task.predict(network, images)
    alone, _ = task.predict(network, images[:1])
    torch.testing.assert_close(together[:1], alone)
    assert all(torch.equal(network.buffers[name], kept[name]) for name in kept)


def test_a_class_of_few_images_counts_by_those_that_it_has() -> None:
    """Nine classes of 32 images, which all are of a value by class, and one of four."""
    labels = torch.cat([torch.arange(9).repeat_interleave(32), torch.full((4,), 9)])
    images = (labels.float() / 10).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    images[-4:, ..., :4] += torch.tensor([0.1, 0.2, 0.3, 0.4]).view(-1, 1, 1, 1)
    task = image_task((images, labels), test=(images, labels), model=small)
    network = task.settle(task.init(KEY), KEY.fold("settle"))
    each = task.data.normalise(torch.cat([images[:288:32].repeat_interleave(16, 0), images[-4:].repeat(4, 1, 1, 1)]))
    mean, variance = statistics(task, network, each)
    assert torch.allclose(first(network, "running_mean"), mean, atol=1e-5)
    assert torch.allclose(first(network, "running_var"), variance, rtol=1e-4)


def test_networks_without_such_norms_are_left_alone() -> None:
    task = image_task("digits", width=4)
    key = KEY.fold("step")
    found = FreshNetworks().fetch(task, EMPTY, key).network
    assert found is not None
    for name, tensor in task.init(key).params.items():
        assert torch.equal(found.params[name], tensor)
    assert task.settle(found, KEY) is found


def test_networks_on_texts_have_those_of_real_texts() -> None:
    dim = small_task().dim
    task = small_task(model=lambda: nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, 3)))
    network = FreshNetworks().fetch(task, EMPTY, KEY).network
    assert network is not None
    drawn = task.sample_real(KEY.fold("statistics"), torch.arange(3), 16)
    assert isinstance(drawn, ClassBatch)
    points = drawn.batch.inputs[drawn.batch.weight > 0]  # type: ignore[index]
    torch.testing.assert_close(network.buffers["0.running_mean"], points.mean(0))


class Pooled(nn.Module):
    """A network that averages a text's vectors and normalises them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(dim), nn.Linear(dim, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(self.norm(inputs["vectors"].mean(1)))
        return logits


def test_networks_on_tokens_have_those_of_real_texts(tmp_path: Path) -> None:
    folder = tiny_transformer(tmp_path / "bert")
    dim = token_corpus_task(folder).vocabulary.dim
    task = token_corpus_task(folder, lambda: Pooled(dim))
    network = FreshNetworks().fetch(task, EMPTY, KEY).network
    assert network is not None
    drawn = task.sample_real(KEY.fold("statistics"), torch.arange(3), 16)
    assert isinstance(drawn, ClassBatch)
    vectors = drawn.batch.inputs["vectors"][drawn.batch.weight > 0]  # type: ignore[call-overload]
    torch.testing.assert_close(network.buffers["norm.running_mean"], vectors.mean(1).mean(0))
