"""A pool of networks at different points of their training on the synthetic set, one of which serves each step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.labels import in_full, regression_targets, weighted_mean
from mmdistill.networks.schedules import NetworkSchedule, ScheduleState, Synthetic
from mmdistill.networks.stacked import named, state_of
from mmdistill.networks.training import network_gradients
from mmdistill.networks.update_rules import adam_moments, adam_update
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Task, Tensors, augmented, num_samples, one_tensor, take, under

AGES = "ages"
MEMBER = "member"


@dataclass(frozen=True)
class NetworkPool(NetworkSchedule):
    """Hold n networks; each outer step sees a random one, which then takes one Adam step on the synthetic set.

    A member that serves with a counter beyond ``max_age`` is redrawn instead of stepped. Member i starts with its
    counter at ``i * max_age / n``, so that resets never fall together; nobody has trained before the first step. Both
    as in the published implementation.

    All of the pool lies in the state's named tensors: for member i its parameters, buffers and both moments, and the
    counters of all members, so that it is checkpointed like any schedule.

    Args:
        size: n.
        max_age: the most that a member's counter may be for it to be stepped again.
        lr: Adam's learning rate.
        batch: samples of the synthetic set per step; all where there are no more.
        augment: augment them per sample.

    Raises:
        ConfigError: a number below 1, or a rate that is not positive.

    Source: Zhou et al., NeurIPS 2022, Algorithm 1; survey Eq. 6.
    """

    size: int = 10
    max_age: int = 100
    lr: float = 3e-4
    batch: int = 500
    augment: bool = False

    def __post_init__(self) -> None:
        if min(self.size, self.max_age, self.batch) < 1 or self.lr <= 0:
            raise ConfigError(
                f"a pool's size, max_age and batch are at least 1 and its rate is positive, got {self.size}, "
                f"{self.max_age}, {self.batch} and {self.lr}"
            )

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the state with a random member as its network; the first call draws all members."""
        pool = state.memory or self._first(task, draws.fold("pool"))
        member = draws.fold(MEMBER).index(self.size)
        return ScheduleState(_network(member, pool), state.age, {**pool, MEMBER: torch.tensor(member)})

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Step the network that served, or redraw it at its age; the state then holds the pool alone.

        Raises:
            ConfigError: a state without the network that :meth:`fetch` gives it.
        """
        pool = dict(state.memory)
        member = int(pool.pop(MEMBER))
        ages = pool[AGES].cpu().clone()  # a checkpoint comes back to the device, where reading them would wait
        if state.network is None:
            raise ConfigError("a pool advances the network that it fetched")
        if int(ages[member]) > self.max_age:
            ages[member] = 0
            pool |= _fresh(member, task.init(draws.fold("redraw")))
        else:
            current, network = syn(), state.network
            for key in self.keys(draws):
                ages[member] += 1
                pool |= self._trained(task, pool, member, network, self.prepared(task, current), key)
                network = _network(member, pool)
        pool[AGES] = ages
        return ScheduleState(None, state.age + 1, pool)

    def keys(self, draws: Draws) -> list[Draws]:
        """Return the key of each step that a member takes when it has served; here one."""
        return [draws]

    def prepared(self, task: Task, syn: Batch) -> Batch:
        """Return what members train on; here the set as it is."""
        return syn

    def _first(self, task: Task, draws: Draws) -> Tensors:
        """Draw all members and stagger their counters."""
        pool: Tensors = {AGES: torch.arange(self.size) * self.max_age // self.size}
        for index in range(self.size):
            pool |= _fresh(index, task.init(draws.fold(index)))
        return pool

    def _trained(
        self, task: Task, pool: Tensors, member: int, network: NetworkState, syn: Batch, draws: Draws
    ) -> Tensors:
        """Return a member's tensors after one Adam step."""
        count = syn.weight.shape[0]
        if count > self.batch and num_samples(syn.inputs) == count:
            syn = take(syn, draws.fold("order").to(syn.weight.device).permutation(count)[: self.batch])
        if self.augment:
            syn = augmented(task, draws.fold("augment"), syn, shared=False)
        gradients, buffers = network_gradients(regression_loss, task, network, syn, draws)
        params, moments = adam_update(network.params, gradients, under(f"{member}.", pool), self.lr)
        return _named(member, NetworkState(params, buffers), moments)


@dataclass(frozen=True)
class BusyPool(NetworkPool):
    """A pool whose members take several steps at a time: a number that is drawn, from 1 on.

    Args:
        steps: the most.
        join: what joins the set in training (its mirror images); None: nothing.
    Raises:
        ConfigError: no steps.
    Differs from: the published code draws all members alike at first, and redraws one as soon as it has reached its
        age; here both are as in :class:`NetworkPool`.
    Source: Loo et al., ICML 2023, published code.
    """

    steps: int = 15
    join: Callable[[Task, Batch], Batch] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"members of a pool take at least 1 step at a time, got {self.steps}")

    def keys(self, draws: Draws) -> list[Draws]:
        """Return as many keys as are drawn."""
        count = 1 + draws.fold("count").index(self.steps)
        return [draws.fold(step) for step in range(count)]

    def prepared(self, task: Task, syn: Batch) -> Batch:
        """Return the set with what joins it."""
        return syn if self.join is None else self.join(task, syn)


def regression_loss(task: Task, state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
    """Return half the summed squared error per sample, averaged, and the moved buffers."""
    output = in_full(task.predict(state, batch.inputs, train=True, draws=draws)[0])
    goal = regression_targets(one_tensor(batch.targets, "a pool's regression"), output.shape[1], output.dtype)
    return weighted_mean(0.5 * (output - goal).square().sum(1), batch.weight), state.buffers


def _fresh(index: int, network: NetworkState) -> Tensors:
    """Return a fresh member's tensors under its own names."""
    return _named(index, network, adam_moments(network.params))


def _named(index: int, network: NetworkState, moments: Tensors) -> Tensors:
    """Return a member's tensors under its own names."""
    return {f"{index}.{name}": tensor for name, tensor in (moments | named(network)).items()}


def _network(index: int, pool: Tensors) -> NetworkState:
    """Return a member's network."""
    return state_of(under(f"{index}.", pool))
