"""Network schedules: which network an outer step sees, and how it is updated (Algorithm 1, lines 3-4)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.labels import hard_labels
from mmdistill.networks.statistics import with_real_statistics
from mmdistill.networks.training import network_gradients, network_outputs, training_loss
from mmdistill.networks.update_rules import adam_update, sgd_update
from mmdistill.runtime import Draws
from mmdistill.task import (
    Batch,
    NetworkState,
    Task,
    Tensors,
    augmented,
    num_samples,
    one_tensor,
    real_samples,
    take,
)

Synthetic = Callable[[], Batch]
Prepare = Callable[[Task, Draws, Batch], Batch]
"""``(task, key, minibatch) -> minibatch``: augments or mixes a minibatch before a network trains on it."""


class ScheduleState(NamedTuple):
    """All that a schedule carries from step to step.

    ``target``, ``target_buffers`` and ``accuracy`` live for one outer step and are never stored.

    Args:
        network: the live network, None before the first fetch.
        age: outer steps it has served.
        memory: other tensors by name: the network's momentum or moments, past accuracies, a pool of networks.
        target: parameters that a student starting at the network should reach, from schedules with targets.
        target_buffers: the target's running statistics, where they differ from the network's.
        accuracy: the network's accuracy on real samples, a scalar on the device, from schedules that count it.
    """

    network: NetworkState | None
    age: int
    memory: Tensors
    target: Tensors | None = None
    target_buffers: Tensors | None = None
    accuracy: Tensor | None = None


EMPTY = ScheduleState(None, 0, {})
ACCURACIES = "accuracies"
"""The key of past accuracies in the memory of :class:`AccuracyDriven`, beside the momentum."""


class NetworkSchedule(ABC):
    """Gives each outer step a network, then updates it; state stays outside."""

    gives_target = False
    """Whether fetched states carry a target."""
    gives_accuracy = False
    """Whether fetched states carry the network's accuracy."""

    def make_ready(self, task: Task) -> None:  # noqa: B027 - most schedules need nothing
        """Load or train what the schedule needs, before the first step; nothing by default."""

    def require_ready(self, task: Task) -> None:  # noqa: B027 - most schedules need nothing
        """Refuse to resume a run if what :meth:`make_ready` made is gone and remaking it could differ.

        Raises:
            CheckpointError: naming what is gone.
        """

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return a state with the live network, or a fresh one at age 0; its norms use statistics of real samples."""
        if state.network is None or state.age == 0:
            return ScheduleState(with_real_statistics(task, task.init(draws), draws), 0, {})
        return state._replace(network=with_real_statistics(task, state.network, draws))

    @abstractmethod
    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Return the state after an outer step.

        A schedule stores nothing on itself between steps, since checkpoints hold only the returned state. To use a
        network again, return it with a higher ``age``; :meth:`fetch` draws another one at age 0. Return ``EMPTY`` to
        have the next step draw one. ``memory`` maps names to tensors, without nesting.

        Args:
            task: the task.
            state: the state that :meth:`fetch` returned for this step.
            syn: decodes the current synthetic set, without a graph.
            draws: the key of everything random here.
        """


def require_advanced(schedule: NetworkSchedule, before: ScheduleState, after: object) -> ScheduleState:
    """Return the state after a schedule's ``advance`` if a run can continue and resume from it.

    Args:
        schedule: the schedule that advanced.
        before: its state before.
        after: the value that its ``advance`` returned.
    Raises:
        ConfigError: not a :class:`ScheduleState`, memory other than tensors by name, or a network that grew no older.
    """
    name = f"{type(schedule).__name__}.advance"
    if not isinstance(after, ScheduleState):
        raise ConfigError(
            f"{name} returns a ScheduleState, got {type(after).__name__}; EMPTY has the next step draw a network, "
            "state._replace(age=state.age + 1) keeps this one"
        )
    if after.network is not None and not isinstance(after.network, NetworkState):
        raise ConfigError(f"{name} returns a network as a NetworkState or None, got {type(after.network).__name__}")
    if not isinstance(after.memory, dict):
        raise ConfigError(f"{name} returns memory as a dict of tensors by name, got {type(after.memory).__name__}")
    for key, value in after.memory.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ConfigError(
                f"{name} keeps {key!r} in its memory, a {type(value).__name__}, where checkpoints hold tensors by "
                "name; give each tensor a name of its own ('mean.weight')"
            )
    uses_default_fetch = type(schedule).fetch is NetworkSchedule.fetch
    if uses_default_fetch and after.network is not None and (type(after.age) is not int or after.age <= before.age):
        raise ConfigError(
            f"{name} keeps the network at age {after.age!r} after {before.age}, so that it would be drawn anew; return "
            "a higher age, or EMPTY for another network"
        )
    return after


class FreshNetworks(NetworkSchedule):
    """A newly initialised network each step, never trained (DM)."""

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Forget the network."""
        return EMPTY


class UnreadNetwork(FreshNetworks):
    """One network, drawn in the first step and never trained: for objectives that read no network (KIP)."""

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Keep the network."""
        return state._replace(age=state.age + 1)


@dataclass(frozen=True)
class InnerLoopSchedule(NetworkSchedule):
    """Base of the schedules that train one network between outer steps and redraw it after ``outer_steps``.

    Args:
        outer_steps: updates of the synthetic data per network.
        inner_steps: network updates (epochs over S in :class:`TrainedOnS`) between two outer steps; none after the
            last.
        lr: the network's learning rate.
        momentum: the network's momentum.
        batch: minibatch size.
        augment: augment each minibatch per sample.
        weight_decay: L2 coefficient of the network's training.
        prepare: prepares each minibatch instead of the task's augmentation; None leaves it to ``augment``.
    Raises:
        ConfigError: no outer step, a negative number of inner steps, or empty minibatches.
    """

    outer_steps: int = 10
    inner_steps: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    batch: int = 256
    augment: bool = False
    weight_decay: float = 0.0
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        if min(self.outer_steps, self.batch) < 1 or self.inner_steps < 0:
            raise ConfigError(
                f"networks serve at least 1 outer step and train on minibatches of at least 1 sample, with no fewer "
                f"than 0 steps between; got outer_steps {self.outer_steps}, inner_batch {self.batch} and inner_steps "
                f"{self.inner_steps}"
            )

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Train for ``inner_steps``, or forget the network after its last outer step."""
        age = state.age + 1
        if age >= self.outer_steps or state.network is None:
            return EMPTY
        network, momentum, current = state.network, state.memory, syn()
        should_stop = self.stopping_rule(task, network, draws)
        for step in range(self.inner_steps):
            network, momentum = self.inner_step(task, network, momentum, current, draws.fold(step))
            if should_stop(network):
                break
        return ScheduleState(network, age, momentum)

    def stopping_rule(self, task: Task, network: NetworkState, draws: Draws) -> Callable[[NetworkState], bool]:
        """Return a function that tells after each inner step whether to stop; never by default."""
        return lambda _: False

    def inner_step(
        self, task: Task, network: NetworkState, momentum: Tensors, syn: Batch, draws: Draws
    ) -> tuple[NetworkState, Tensors]:
        """Return the network and its momentum after the minibatches of one inner step."""
        for index, batch in enumerate(self.minibatches(task, syn, draws)):
            network, momentum = self.update(task, network, momentum, batch, draws.fold(index))
        return network, momentum

    def update(
        self, task: Task, network: NetworkState, momentum: Tensors, batch: Batch, draws: Draws
    ) -> tuple[NetworkState, Tensors]:
        """Return the network and its momentum after one minibatch, prepared or augmented."""
        if self.prepare is not None:
            batch = self.prepare(task, draws.fold("augment"), batch)
        elif self.augment:
            batch = augmented(task, draws.fold("augment"), batch, shared=False)
        return self.take_step(task, network, momentum, batch, draws)

    def take_step(
        self, task: Task, network: NetworkState, momentum: Tensors, batch: Batch, draws: Draws
    ) -> tuple[NetworkState, Tensors]:
        """Return the network and its momentum after one step of SGD."""
        return sgd_step(task, network, momentum, batch, self.lr, self.momentum, draws, self.weight_decay)

    @abstractmethod
    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return the minibatches of one inner step."""


class TrainedOnS(InnerLoopSchedule):
    """Train on the synthetic set: an inner step is one epoch over it (DC, DSA, GCond)."""

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return the synthetic set shuffled into minibatches, or whole if it fits one or its samples share inputs."""
        count = syn.weight.shape[0]
        if count <= self.batch or num_samples(syn.inputs) != count:
            return [syn]
        order = draws.fold("order").to(syn.weight.device).permutation(count)
        return [take(syn, order[start : start + self.batch]) for start in range(0, count, self.batch)]


class SteppedOnS(TrainedOnS):
    """Train on the synthetic set by Adam; an inner step is one minibatch (LD).

    It uses ``lr`` and ignores momentum and weight decay.
    """

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return one minibatch of the shuffled set."""
        return super().minibatches(task, syn, draws)[:1]

    def take_step(
        self, task: Task, network: NetworkState, momentum: Tensors, batch: Batch, draws: Draws
    ) -> tuple[NetworkState, Tensors]:
        """Return the network and its moments after one step of Adam."""
        gradients, buffers = network_gradients(training_loss, task, network, batch, draws)
        params, moments = adam_update(network.params, gradients, momentum, self.lr)
        return NetworkState(params, buffers), moments


@dataclass(frozen=True)
class TrainedUntilOverfitting(TrainedOnS):
    """Train on the synthetic set until the network overfits, as its loss on real samples tells (EGM).

    Each inner loop draws one real minibatch and ends after the first epoch that raises its loss, or after
    ``inner_steps``. Reading the loss back waits for the device, but saves the remaining epochs.

    Args:
        watched: real samples in that minibatch.
    Raises:
        ConfigError: no samples.
    Source: Jiang et al., 2022, published code (its commands for the tables fix numbers of epochs that were found this
        way: 50, 40, 30, 20, then 10, and 5 from the tenth outer step on).
    """

    watched: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.watched < 1:
            raise ConfigError(f"overfitting is seen on at least 1 real sample, got {self.watched}")

    def stopping_rule(self, task: Task, network: NetworkState, draws: Draws) -> Callable[[NetworkState], bool]:
        """Return a function that tells whether the loss of one real minibatch has risen since the last call."""
        real = real_samples(task, draws.fold("watched"), self.watched)
        loss = _loss(task, network, real)

        def has_risen(network: NetworkState) -> bool:
            nonlocal loss
            before, loss = loss, _loss(task, network, real)
            return loss > before

        return has_risen


@dataclass(frozen=True)
class AccuracyDriven(TrainedOnS):
    """Train on the synthetic set, as long as the accuracy on real samples demands (CAFE's dynamic bi-level schedule).

    Between two outer steps the network trains until its accuracy has moved by more than ``moved`` within the last
    ``window`` epochs, or for ``inner_steps``. The network is redrawn once its accuracy has moved by less than
    ``settled`` over the last ``window`` outer steps, or after ``outer_steps``. Both accuracies are read back from the
    device, since they decide what runs next.

    Args:
        window: number of latest accuracies that are compared.
        settled: the range below which a network has nothing more to teach (the paper's lambda 1).
        moved: the range above which a network differs enough from the one of the last outer step (lambda 2).
        watched: real samples, drawn anew for each accuracy.
    Raises:
        ConfigError: a window of fewer than two, no samples, or negative ranges.
    Differs from: the published code bounds neither loop, and adds a tenth of the previous accuracy to each accuracy.
    Source: Wang et al., CVPR 2022, Sec. 3.4.
    """

    window: int = 10
    settled: float = 0.04
    moved: float = 0.03
    watched: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2 or self.watched < 1 or min(self.settled, self.moved) < 0:
            raise ConfigError(
                f"accuracies are watched over a window of at least 2, on at least 1 sample, for ranges of at least 0; "
                f"got {self.window}, {self.watched}, {self.settled} and {self.moved}"
            )

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Train until the accuracy has moved, or forget the network if it has settled."""
        age = state.age + 1
        if state.network is None or age >= self.outer_steps:
            return EMPTY
        network, momentum, current = state.network, state.memory, syn()
        outer = self.real_accuracy(task, network, draws.fold("outer"))[None]
        if ACCURACIES in state.memory:
            outer = torch.cat([state.memory[ACCURACIES], outer])
        if len(outer) == self.window and float(outer.max() - outer.min()) < self.settled:
            return EMPTY
        inner: list[float] = []
        for step in range(self.inner_steps):
            network, momentum = self.inner_step(task, network, momentum, current, draws.fold(step))
            inner.append(float(self.real_accuracy(task, network, draws.fold("inner", step))))
            recent = inner[-self.window :]
            if len(recent) == self.window and max(recent) - min(recent) > self.moved:
                break
        return ScheduleState(network, age, {**momentum, ACCURACIES: outer[1 - self.window :]})

    def real_accuracy(self, task: Task, network: NetworkState, draws: Draws) -> Tensor:
        """Return the accuracy on real samples, a scalar."""
        return accuracy(task, network, real_samples(task, draws, self.watched))


class TrainedOnT(InnerLoopSchedule):
    """Train on the real set: an inner step is one real minibatch (IDC)."""

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return one real minibatch."""
        return [real_samples(task, draws.fold("inner"), self.batch)]


def accuracy(task: Task, network: NetworkState, batch: Batch) -> Tensor:
    """Return the weighted share of samples whose predicted class is theirs (that of the largest label), a scalar."""
    classes = hard_labels(one_tensor(batch.targets, "accuracy"))
    predicted = network_outputs(task, network, batch.inputs).argmax(1)
    return ((predicted == classes) * batch.weight).sum() / batch.weight.sum()


@torch.no_grad()
def _loss(task: Task, network: NetworkState, batch: Batch) -> float:
    """Return a batch's mean loss, read back from the device."""
    return float(task.loss(network, batch))


def sgd_step(
    task: Task,
    network: NetworkState,
    momentum: Tensors,
    batch: Batch,
    lr: float,
    beta: float,
    draws: Draws,
    weight_decay: float = 0.0,
) -> tuple[NetworkState, Tensors]:
    """Return the network and its momentum buffers after one SGD step (Eq. 3).

    Shapes:
        a flat batch; momentum by parameter in the parameter's shape; other entries are ignored. It is empty before the
        first step, and the returned one is empty if ``beta`` is 0.
    """
    gradients, buffers = network_gradients(training_loss, task, network, batch, draws)
    params, momentum = sgd_update(network.params, gradients, momentum, lr, beta, weight_decay)
    return NetworkState(params, buffers), momentum
