"""What is drawn for networks that train: epochs, networks, steps and minibatches draw apart."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import EMPTY, AccuracyDriven, TrainedOnS, TrainedOnT
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors
from tests.toys import BlobTask, RecordedTask

KEY = Draws(5)


class Drawn(NamedTuple):
    """What networks drew: samples ``(epochs, steps, networks, batch)``, and each step's keys."""

    samples: Tensor
    augmentations: list[Draws]
    noises: list[Draws]


def drawn(epochs: int = 3, networks: int = 2, batch: int = 5) -> Drawn:
    """Train networks on ten samples."""
    task, augmentations, noises, seen = BlobTask(), list[Draws](), list[Draws](), list[Tensor]()
    data = Batch(torch.arange(10)[:, None], torch.arange(10) % 3, torch.ones(10))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        assert isinstance(batch.inputs, Tensor)
        return task.loss(state, batch._replace(inputs=batch.inputs.float().expand(-1, 4))), state.buffers

    def augment(draws: Draws, batch: Batch) -> Batch:
        assert isinstance(batch.inputs, Tensor)
        augmentations.append(draws)
        seen.append(batch.inputs.view(networks, -1))
        return batch

    def noise(draws: Draws, count: int) -> Tensors:
        noises.append(draws)
        return {"noise": draws.normal(count)}

    fit_networks(task.init, loss, data, FitProtocol(epochs, batch=batch), networks, KEY, augment=augment, noise=noise)
    return Drawn(torch.stack(seen).view(epochs, -1, networks, batch), augmentations, noises)


def apart(draws: list[Draws]) -> bool:
    return len({each.path for each in draws}) == len(draws)


def test_an_epoch_visits_each_sample_once_in_an_order_of_its_own() -> None:
    samples = drawn().samples.movedim(2, 0).flatten(2)  # networks, epochs, visits
    assert torch.equal(samples.sort(2).values, torch.arange(10).expand(2, 3, -1))
    for own in samples:
        assert len(own.unique(dim=0)) == 3


def test_networks_that_train_together_have_orders_of_their_own() -> None:
    for one, other in drawn().samples.movedim(2, 1).flatten(2):
        assert not torch.equal(one, other)


def test_steps_of_a_training_draw_apart() -> None:
    _, augmentations, noises = drawn()
    assert len(augmentations) == len(noises) == 6
    assert apart(augmentations + noises)


def test_inner_steps_on_the_real_set_draw_apart() -> None:
    task = RecordedTask()
    schedule = TrainedOnT(outer_steps=5, inner_steps=3, lr=0.1, batch=8, augment=True)
    schedule.advance(task, schedule.fetch(task, EMPTY, KEY), lambda: task.select(torch.arange(9)), KEY)
    assert len(task.augmented) == len(task.drawn) == 3
    assert apart([draws for draws, *_ in task.augmented])
    assert apart(task.drawn)


@pytest.mark.parametrize("kind", [TrainedOnS, AccuracyDriven])
def test_minibatches_of_inner_epochs_are_augmented_apart(kind: type[TrainedOnS]) -> None:
    task = RecordedTask()
    schedule = kind(outer_steps=5, inner_steps=2, lr=0.1, batch=3, augment=True)
    schedule.advance(task, schedule.fetch(task, EMPTY, KEY), lambda: task.select(torch.arange(9)), KEY)
    assert len(task.augmented) == 6
    assert apart([draws for draws, *_ in task.augmented])


def test_inner_epochs_shuffle_the_synthetic_set_anew() -> None:
    task = RecordedTask()
    schedule = TrainedOnS(outer_steps=5, inner_steps=4, lr=0.1, batch=3)
    batch = Batch(torch.arange(9.0)[:, None].expand(-1, 4), torch.arange(9) % 3, torch.ones(9))
    schedule.advance(task, schedule.fetch(task, EMPTY, KEY), lambda: batch, KEY)
    orders = torch.stack([seen.inputs[:, 0] for _, seen in task.losses]).view(4, 9)  # type: ignore[call-overload, index]
    assert torch.equal(orders.sort(1).values, torch.arange(9.0).expand(4, -1))
    assert len({*map(tuple, orders.tolist()), tuple(range(9))}) == 5


def test_accuracies_that_drive_a_training_are_those_of_fresh_real_samples() -> None:
    task = RecordedTask()
    schedule = AccuracyDriven(outer_steps=5, inner_steps=3, window=5, watched=8)
    schedule.advance(task, schedule.fetch(task, EMPTY, KEY), lambda: task.select(torch.arange(9)), KEY)
    assert len(task.drawn) == 4
    assert apart(task.drawn)
