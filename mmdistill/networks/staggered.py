"""A pool of networks at different stages of training on the synthetic set; a random one serves each step."""

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
    counter at ``i * max_age / n``, so that resets never coincide, although no member has trained before the first step.
    Both are as in the published implementation.

    The state's named tensors hold the whole pool: each member's parameters, buffers and both moments, and the counters
    of all members. So it is checkpointed like any schedule.

    Args:
        size: n.
        max_age: the largest counter at which a member is stepped again.
        lr: Adam's learning rate.
        batch: samples of the synthetic set per step; all if there are no more.
        augment: augment these samples, each on its own.

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
        """Step the network that served, or redraw it if it is too old; the returned state holds only the pool.

        Raises:
            ConfigError: a state without the network that :meth:`fetch` returns.
        """
        pool = dict(state.memory)
        member = int(pool.pop(MEMBER))
        ages = pool[AGES].cpu().clone()  # resuming puts them on the device, where each read would wait
        if state.network is None:
            raise ConfigError("a pool advances the network that it fetched")
        if int(ages[member]) > self.max_age:
            ages[member] = 0
            pool |= _fresh(member, task.init(draws.fold("redraw")))
        else:
            current, network = syn(), state.network
            for key in self.keys(draws):
                ages[member] += 1
                pool |= self._train(task, pool, member, network, self.prepared(task, current), key)
                network = _network(member, pool)
        pool[AGES] = ages
        return ScheduleState(None, state.age + 1, pool)

    def keys(self, draws: Draws) -> list[Draws]:
        """Return a key for each step that a member takes after serving; here one."""
        return [draws]

    def prepared(self, task: Task, syn: Batch) -> Batch:
        """Return the samples that members train on; here the synthetic set."""
        return syn

    def _first(self, task: Task, draws: Draws) -> Tensors:
        """Draw all members and stagger their counters."""
        pool: Tensors = {AGES: torch.arange(self.size) * self.max_age // self.size}
        for index in range(self.size):
            pool |= _fresh(index, task.init(draws.fold(index)))
        return pool

    def _train(
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
    """A pool whose members take a random number of steps after serving, from 1 to ``steps``.

    Args:
        steps: the largest number.
        join: adds samples to the set in training (its mirror images); None adds nothing.
    Raises:
        ConfigError: no steps.
    Differs from: the published code starts all members at one age, and redraws a member as soon as it has reached
        ``max_age``; here both are as in :class:`NetworkPool`.
    Source: Loo et al., ICML 2023, published code.
    """

    steps: int = 15
    join: Callable[[Task, Batch], Batch] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"members of a pool take at least 1 step at a time, got {self.steps}")

    def keys(self, draws: Draws) -> list[Draws]:
        """Return a random number of keys."""
        count = 1 + draws.fold("count").index(self.steps)
        return [draws.fold(step) for step in range(count)]

    def prepared(self, task: Task, syn: Batch) -> Batch:
        """Return the synthetic set with the samples that ``join`` adds."""
        return syn if self.join is None else self.join(task, syn)


def regression_loss(task: Task, state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
    """Return half the squared error summed over outputs and averaged over samples, and the updated buffers."""
    output = in_full(task.predict(state, batch.inputs, train=True, draws=draws)[0])
    target = regression_targets(one_tensor(batch.targets, "a pool's regression"), output.shape[1], output.dtype)
    return weighted_mean(0.5 * (output - target).square().sum(1), batch.weight), state.buffers


def _fresh(index: int, network: NetworkState) -> Tensors:
    """Return a fresh member's tensors by the pool's names."""
    return _named(index, network, adam_moments(network.params))


def _named(index: int, network: NetworkState, moments: Tensors) -> Tensors:
    """Return a member's tensors by the pool's names."""
    return {f"{index}.{name}": tensor for name, tensor in (moments | named(network)).items()}


def _network(index: int, pool: Tensors) -> NetworkState:
    """Return a member's network."""
    return state_of(under(f"{index}.", pool))
