"""Minibatches that copies without weight fill up: batch norms read those samples alone that count."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmdistill.image import ImageTask, image_task
from mmdistill.image.judge_training import JudgeTraining
from mmdistill.image.protocols import CLASSIFICATION, Plan
from mmdistill.networks.minibatches import Order, drawn_sizes, fixed_order, learned_steps, part_sizes, shuffled_order
from mmdistill.networks.stacked import state_at
from mmdistill.objectives.base import Network
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState

KEY = Draws(3)
STEPS, RATE = 4, 0.05


@pytest.fixture(scope="module")
def normed() -> ImageTask:
    return image_task("digits", model="convnet-d2-w4-bn", judge_augment=False)


def some(task: ImageTask, count: int) -> Batch:
    batch = task.select(torch.arange(count))
    assert isinstance(batch.inputs, Tensor)
    return batch


def trained(task: ImageTask, start: NetworkState, batch: Batch, order: Order) -> dict[str, Tensor]:
    """Return parameters after plain SGD on the samples of each step that count."""
    module = task.network.factory()
    module.load_state_dict({**start.params, **start.buffers})
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    for rows, present in zip(order.table, order.present, strict=True):
        own = rows[present > 0]
        optimizer.zero_grad()
        cross_entropy(module(batch.inputs[own]), batch.targets[own]).backward()  # type: ignore[index]
        optimizer.step()
    return dict(module.named_parameters())


def require_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [4, 5])
def test_students_with_batch_norms_take_a_rest_as_it_is(normed: ImageTask, batch: int) -> None:
    syn, start = some(normed, 10), normed.init(KEY)
    objective = UnrolledPerformance(STEPS, InnerRate(RATE), batch=batch)
    end = objective.train_student(Network(normed, start), syn, KEY)
    order = shuffled_order(KEY.fold("order"), 10, STEPS, batch)
    assert order.present.sum(1).tolist() == drawn_sizes(10, STEPS, batch)
    require_close(end, trained(normed, start, syn, order))


def test_students_and_judges_with_batch_norms_take_uneven_parts_as_they_are(normed: ImageTask) -> None:
    syn, start = some(normed, 10), normed.init(KEY.fold("init", 0))
    objective = UnrolledPerformance(STEPS, InnerRate(RATE, STEPS), parts=3)
    order = fixed_order(10, STEPS, 3, torch.device("cpu"))
    assert order.present.sum(1).tolist() == part_sizes(10, STEPS, 3) == [4, 3, 3, 4]
    expected = trained(normed, start, syn, order)
    require_close(objective.train_student(Network(normed, start), syn, KEY), expected)
    judge = JudgeTraining(
        normed.network, "own", 10, Plan(CLASSIFICATION, "none"), None, learned_steps(syn, objective.learned())
    )
    fitted = judge._fit(syn, 1, KEY, "loop")
    require_close(state_at(fitted, 0).params, expected)


def test_gradients_reach_the_samples_of_a_rest(normed: ImageTask) -> None:
    syn = some(normed, 5)
    assert isinstance(syn.inputs, Tensor)
    images = syn.inputs.clone().requires_grad_()
    objective = UnrolledPerformance(2, InnerRate(RATE), batch=4)
    end = objective.train_student(Network(normed, normed.init(KEY)), syn._replace(inputs=images), KEY)
    (gradient,) = torch.autograd.grad(sum(tensor.square().sum() for tensor in end.values()), images)
    assert bool(gradient.flatten(1).any(1).all())


def test_the_real_loss_of_a_student_drops_nothing_out_and_keeps_statistics(normed: ImageTask) -> None:
    dropping = image_task("digits", model=lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)))
    for task in (dropping, normed):
        start = task.init(KEY)
        network, kept = Network(task, start), {name: buffer.clone() for name, buffer in start.buffers.items()}
        syn, real = some(task, 6), task.select(torch.arange(20, 60))
        objective = UnrolledPerformance(2, InnerRate(RATE))
        value = objective(network, syn, real, KEY)
        end = NetworkState(objective.train_student(network, syn, KEY), {name: t.clone() for name, t in kept.items()})
        torch.testing.assert_close(value, task.loss(end, real, train=task is normed))
        assert all(torch.equal(start.buffers[name], buffer) for name, buffer in kept.items())


def test_a_network_of_one_s_own_with_torch_s_batch_norms_too() -> None:
    class Own(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10))

    task = image_task("digits", model=Own)
    syn, start = some(task, 6), task.init(KEY)
    objective = UnrolledPerformance(2, InnerRate(RATE), batch=4)
    end = objective.train_student(Network(task, start), syn, KEY)
    require_close(end, trained(task, start, syn, shuffled_order(KEY.fold("order"), 6, 2, 4)))
