"""Network schedules: which network an outer step sees, and how it moves on (Algorithm 1, lines 3-4)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, NetworkState, Task, Tensors, map_inputs, num_samples

Synthetic = Callable[[], Batch]


class ScheduleState(NamedTuple):
    """A schedule's whole memory.

    Args:
        network: the live network, None before the first fetch.
        age: outer steps it has served.
        momentum: its momentum buffers, or all else that a schedule of several networks keeps, by name.
        target: parameters that a student starting from it shall reach, from schedules that give any; it lives for
            one outer step and is never stored.
    """

    network: NetworkState | None
    age: int
    momentum: Tensors
    target: Tensors | None = None


EMPTY = ScheduleState(None, 0, {})


class NetworkSchedule(ABC):
    """Gives each outer step a network, then updates it; state stays outside."""

    gives_target = False
    """Whether fetched states carry a target."""

    def initial(self) -> ScheduleState:
        """Return the state before the first step."""
        return EMPTY

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return a state that holds a network: the live one, or a fresh one at age 0."""
        if state.network is None or state.age == 0:
            return ScheduleState(task.init(draws), 0, {})
        return state

    @abstractmethod
    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Return the state after an outer step; ``syn`` decodes the current synthetic set, without a graph."""


class FreshNetworks(NetworkSchedule):
    """A newly initialised network each step, never trained (DM)."""

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Forget the network."""
        return EMPTY


@dataclass(frozen=True)
class TrainedNetworks(NetworkSchedule):
    """Base of the schedules that train one network between outer steps and redraw it after ``outer_steps``.

    Args:
        outer_steps: updates of the synthetic data per network.
        inner_steps: network updates (epochs over S in :class:`TrainedOnS`) between two of them; none after the last.
        lr: the network's learning rate.
        momentum: the network's momentum.
        batch: minibatch size.
        augment: augment each minibatch per sample.
    """

    outer_steps: int = 10
    inner_steps: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    batch: int = 256
    augment: bool = False

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Train for ``inner_steps``, or forget the network after its last outer step."""
        age = state.age + 1
        if age >= self.outer_steps or state.network is None:
            return EMPTY
        network, momentum, current = state.network, state.momentum, syn()
        for step in range(self.inner_steps):
            for index, batch in enumerate(self.minibatches(task, current, draws.fold(step))):
                key = draws.fold(step, index)
                if self.augment:
                    augmented = task.augment(key.fold("augment"), batch, shared=False)
                    assert isinstance(augmented, Batch)
                    batch = augmented
                network, momentum = sgd_step(task, network, momentum, batch, self.lr, self.momentum, key)
        return ScheduleState(network, age, momentum)

    @abstractmethod
    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return the minibatches of one inner step."""


class TrainedOnS(TrainedNetworks):
    """Train on the synthetic set: an inner step is one epoch over it (DC, DSA, GCond)."""

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return the synthetic set, shuffled into minibatches; whole where it fits one or shares its inputs."""
        count = syn.weight.shape[0]
        if count <= self.batch or num_samples(syn.inputs) != count:
            return [syn]
        order = draws.fold("order").to(syn.weight.device).permutation(count)
        return [take(syn, order[start : start + self.batch]) for start in range(0, count, self.batch)]


class TrainedOnT(TrainedNetworks):
    """Train on the real set: an inner step is one minibatch of it (IDC)."""

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return one real minibatch."""
        real = task.sample_real(draws.fold("inner"), None, self.batch)
        assert not isinstance(real, ClassBatch)
        return [real]


def take(batch: Batch, indices: Tensor) -> Batch:
    """Return some samples of a flat batch."""
    return Batch(
        map_inputs(lambda t: t[indices], batch.inputs),
        map_inputs(lambda t: t[indices], batch.targets),
        batch.weight[indices],
    )


def sgd_step(
    task: Task, network: NetworkState, momentum: Tensors, batch: Batch, lr: float, beta: float, draws: Draws
) -> tuple[NetworkState, Tensors]:
    """Return the network and its momentum buffers after one SGD step (Eq. 3)."""

    def loss(params: Tensors) -> tuple[Tensor, Tensors]:
        state = NetworkState(params, network.buffers)
        return task.loss(state, batch, train=True, draws=draws), {}

    with torch.no_grad():
        gradients, _ = torch.func.grad(loss, has_aux=True)(network.params)
        if beta:
            gradients = {n: beta * momentum[n] + g if n in momentum else g for n, g in gradients.items()}
        params = {name: p - lr * gradients[name] for name, p in network.params.items()}
    return NetworkState(params, network.buffers), gradients if beta else {}
