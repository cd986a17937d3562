"""Network schedules: which network an outer step sees, and how it moves on (Algorithm 1, lines 3-4)."""

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
from mmdistill.networks.update_rules import adam_update
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
"""Turns a minibatch into what a network trains on (augmented, mixed): ``(task, key, minibatch)``."""


class ScheduleState(NamedTuple):
    """All that a schedule carries from step to step.

    Args:
        network: the live network, None before the first fetch.
        age: outer steps it has served.
        memory: what else is kept, by name: the network's momentum or moments, accuracies seen, a pool of networks.
        target: parameters that a student starting from it shall reach, from schedules that give any; it lives for
            one outer step and is never stored.
        target_buffers: the target's running statistics, where they are not the network's; they live as long.
        accuracy: the share of real samples that the network has been right on, from schedules that count it; a scalar
            on the device, which lives as long.
    """

    network: NetworkState | None
    age: int
    memory: Tensors
    target: Tensors | None = None
    target_buffers: Tensors | None = None
    accuracy: Tensor | None = None


EMPTY = ScheduleState(None, 0, {})
ACCURACIES = "accuracies"
"""The name under which :class:`AccuracyDriven` keeps what it has seen, beside the momentum."""


class NetworkSchedule(ABC):
    """Gives each outer step a network, then updates it; state stays outside."""

    gives_target = False
    """Whether fetched states carry a target."""
    gives_accuracy = False
    """Whether they carry the network's accuracy."""

    def make_ready(self, task: Task) -> None:  # noqa: B027 - most schedules need nothing
        """Make what the schedule needs from the cache, before the first step; nothing by default."""

    def require_ready(self, task: Task) -> None:  # noqa: B027 - most schedules need nothing
        """Refuse that a run goes on where what :meth:`make_ready` made for it is gone and would become something else.

        Raises:
            CheckpointError: naming what is gone.
        """

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return a state that holds a network: the live one, or a fresh one at age 0, with norms of real statistics."""
        if state.network is None or state.age == 0:
            return ScheduleState(with_real_statistics(task, task.init(draws), draws), 0, {})
        return state._replace(network=with_real_statistics(task, state.network, draws))

    @abstractmethod
    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Return the state after an outer step.

        A schedule keeps nothing in itself from step to step, since checkpoints hold the returned state alone. To serve
        again, a network is returned at a higher ``age``: :meth:`fetch` draws another one at age 0. ``EMPTY`` has the
        next step draw one. ``memory`` maps names to tensors, with no mappings within.

        Args:
            task: the task.
            state: what :meth:`fetch` returned for this step.
            syn: decodes the current synthetic set, without a graph.
            draws: the key of all that is random here.
        """


def require_advanced(schedule: NetworkSchedule, before: ScheduleState, after: object) -> ScheduleState:
    """Return the state that a schedule has advanced to, if a run can go on and resume from it.

    Args:
        schedule: whose it is.
        before: the state that it advanced from.
        after: what it returned.
    Raises:
        ConfigError: no :class:`ScheduleState`, other memory than tensors by name, or a network that grew no older.
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
    fetches = type(schedule).fetch is NetworkSchedule.fetch
    if fetches and after.network is not None and (type(after.age) is not int or after.age <= before.age):
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
    """One network, drawn in the first step and never trained: for objectives that read none (KIP)."""

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Keep the network."""
        return state._replace(age=state.age + 1)


@dataclass(frozen=True)
class InnerLoopSchedule(NetworkSchedule):
    """Base of the schedules that train one network between outer steps and redraw it after ``outer_steps``.

    Args:
        outer_steps: updates of the synthetic data per network.
        inner_steps: network updates (epochs over S in :class:`TrainedOnS`) between two of them; none after the last.
        lr: the network's learning rate.
        momentum: the network's momentum.
        batch: minibatch size.
        augment: augment each minibatch per sample.
        weight_decay: L2 coefficient of the network's training.
        prepare: what becomes of each minibatch instead of the task's augmentation; None leaves it to ``augment``.
    Raises:
        ConfigError: no outer step, a negative number of inner ones, or minibatches of no sample.
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
        enough = self.stopping(task, network, draws)
        for step in range(self.inner_steps):
            network, momentum = self.inner_step(task, network, momentum, current, draws.fold(step))
            if enough(network):
                break
        return ScheduleState(network, age, momentum)

    def stopping(self, task: Task, network: NetworkState, draws: Draws) -> Callable[[NetworkState], bool]:
        """Return what says, after each step of an inner loop that starts at a network, whether it is the last."""
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
        """Return the network and its momentum after one minibatch, augmented as the schedule says."""
        if self.prepare is not None:
            batch = self.prepare(task, draws.fold("augment"), batch)
        elif self.augment:
            batch = augmented(task, draws.fold("augment"), batch, shared=False)
        return self.taken(task, network, momentum, batch, draws)

    def taken(
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
        """Return the synthetic set, shuffled into minibatches; whole where it fits one or shares its inputs."""
        count = syn.weight.shape[0]
        if count <= self.batch or num_samples(syn.inputs) != count:
            return [syn]
        order = draws.fold("order").to(syn.weight.device).permutation(count)
        return [take(syn, order[start : start + self.batch]) for start in range(0, count, self.batch)]


class SteppedOnS(TrainedOnS):
    """Train on the synthetic set by Adam, an inner step being one minibatch of it (LD).

    It reads ``lr``, and no momentum or weight decay.
    """

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return one minibatch of the shuffled set."""
        return super().minibatches(task, syn, draws)[:1]

    def taken(
        self, task: Task, network: NetworkState, momentum: Tensors, batch: Batch, draws: Draws
    ) -> tuple[NetworkState, Tensors]:
        """Return the network and its moments after one step of Adam."""
        gradients, buffers = network_gradients(training_loss, task, network, batch, draws)
        params, moments = adam_update(network.params, gradients, momentum, self.lr)
        return NetworkState(params, buffers), moments


@dataclass(frozen=True)
class TrainedUntilOverfitting(TrainedOnS):
    """Train on the synthetic set, but no further once the network fits real samples worse again (EGM).

    One real minibatch is drawn for all of an inner loop, which ends after the first epoch that raises its loss, at most
    after ``inner_steps``. The loss is read back after each epoch, which is what saves the others.

    Args:
        watched: real samples in that minibatch.
    Raises:
        ConfigError: no samples.
    Source: Jiang et al., 2022, published code (its commands for the tables take numbers of epochs that were found so:
        50, 40, 30, 20, then 10, and from the tenth outer step on 5).
    """

    watched: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.watched < 1:
            raise ConfigError(f"overfitting is seen on at least 1 real sample, got {self.watched}")

    def stopping(self, task: Task, network: NetworkState, draws: Draws) -> Callable[[NetworkState], bool]:
        """Return whether the loss of one real minibatch has risen."""
        real = real_samples(task, draws.fold("watched"), self.watched)
        least = _loss(task, network, real)

        def risen(network: NetworkState) -> bool:
            nonlocal least
            before, least = least, _loss(task, network, real)
            return least > before

        return risen


@dataclass(frozen=True)
class AccuracyDriven(TrainedOnS):
    """Train on the synthetic set for as long as the accuracy on real samples says (CAFE's dynamic bi-level schedule).

    Between two outer steps the network trains until its accuracy has moved by more than ``moved`` within the last
    ``window`` epochs, at most ``inner_steps``; it is redrawn when, over the last ``window`` outer steps, its accuracy
    has moved by less than ``settled``, at most after ``outer_steps``. Both are read back, since both decide what runs
    next.

    Args:
        window: accuracies that are looked at.
        settled: the range below which a network has nothing more to teach (the paper's lambda 1).
        moved: the range above which a network differs enough from the last outer step's (lambda 2).
        watched: real samples, drawn anew for each accuracy.
    Raises:
        ConfigError: a window of fewer than two, no samples, or negative ranges.
    Differs from: the published code has no largest number of either, and adds a tenth of the previous accuracy to each.
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
        network, current = state.network, syn()
        now = self.real_accuracy(task, network, draws.fold("outer"))
        seen = torch.cat([state.memory[ACCURACIES], now[None]]) if ACCURACIES in state.memory else now[None]
        if len(seen) == self.window and float(seen.max() - seen.min()) < self.settled:
            return EMPTY
        momentum = {name: tensor for name, tensor in state.memory.items() if name != ACCURACIES}
        recent: list[float] = []
        for step in range(self.inner_steps):
            network, momentum = self.inner_step(task, network, momentum, current, draws.fold(step))
            recent.append(float(self.real_accuracy(task, network, draws.fold("inner", step))))
            last = recent[-self.window :]
            if len(last) == self.window and max(last) - min(last) > self.moved:
                break
        return ScheduleState(network, age, {**momentum, ACCURACIES: seen[1 - self.window :]})

    def real_accuracy(self, task: Task, network: NetworkState, draws: Draws) -> Tensor:
        """Return the accuracy on real samples, a scalar."""
        return accuracy(task, network, real_samples(task, draws, self.watched))


class TrainedOnT(InnerLoopSchedule):
    """Train on the real set: an inner step is one minibatch of it (IDC)."""

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return one real minibatch."""
        return [real_samples(task, draws.fold("inner"), self.batch)]


def accuracy(task: Task, network: NetworkState, batch: Batch) -> Tensor:
    """Return the share of samples whose largest output is at their class (the largest soft label), a scalar."""
    classes = hard_labels(one_tensor(batch.targets, "accuracy"))
    found = network_outputs(task, network, batch.inputs).argmax(1)
    return ((found == classes) * batch.weight).sum() / batch.weight.sum()


@torch.no_grad()
def _loss(task: Task, network: NetworkState, batch: Batch) -> float:
    """Return the mean loss of samples, read back."""
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
        a flat batch; momentum by parameter in the parameter's shape, empty before the first step and, as what is
        returned, without ``beta``.
    """
    gradients, buffers = network_gradients(training_loss, task, network, batch, draws)
    params, momentum = sgd_update(network.params, gradients, momentum, lr, beta, weight_decay)
    return NetworkState(params, buffers), momentum


@torch.no_grad()
def sgd_update(
    params: Tensors, gradients: Tensors, momentum: Tensors, lr: float, beta: float, weight_decay: float = 0.0
) -> tuple[Tensors, Tensors]:
    """Return parameters and momentum buffers after :func:`sgd_step`, by operations on all parameters at once."""
    names, values = list(params), list(params.values())
    change = tuple(gradients[name] for name in names)
    if weight_decay:
        change = torch._foreach_add(change, torch._foreach_mul(values, weight_decay))
    if beta and momentum:
        change = torch._foreach_add(torch._foreach_mul([momentum[name] for name in names], beta), change)
    moved = torch._foreach_sub(values, torch._foreach_mul(change, lr))
    return dict(zip(names, moved, strict=True)), dict(zip(names, change, strict=True)) if beta else {}
