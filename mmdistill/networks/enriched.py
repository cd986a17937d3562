"""A queue of networks of all ages that train on the real set; a random one serves each step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmdistill.errors import ConfigError
from mmdistill.labels import hard_labels, in_full, soft_cross_entropy, weighted_mean
from mmdistill.networks.expert_loss import batches_networks
from mmdistill.networks.schedules import NetworkSchedule, ScheduleState, Synthetic
from mmdistill.networks.stacked import Mode, named, stack_states, stacked_gradients, state_at, state_of
from mmdistill.networks.statistics import copied, with_real_statistics
from mmdistill.networks.training import network_gradients
from mmdistill.networks.update_rules import sgd_update
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Task, Tensors, one_tensor, real_samples, take, under

MOMENTUM = "momentum."
RIGHT = "right"
"""The key of the counts of real samples that each network predicted right in training since the last recount."""
SEEN = "seen"
"""The key of the counts of all real samples that it trained on since then."""


@dataclass(frozen=True)
class EnrichedPool(NetworkSchedule):
    """Hold a queue of networks; each step a random one serves, and random ones train on the real set (IDM).

    Every ``every`` steps a fresh network joins, and once the queue is full the oldest leaves. Each network counts the
    samples that it predicts right in training, and carries that accuracy when it serves; 0 before it has trained. All
    networks lie in the state's tensors, stacked along a leading axis, so they are checkpointed like any schedule.

    Args:
        size: largest number of networks.
        first: networks in the first step.
        every: steps between two fresh networks.
        trained: number of networks that train in each step, or all if there are fewer.
        steps: minibatches that each of these trains on, drawn separately.
        lr: SGD's rate.
        momentum: SGD's momentum.
        weight_decay: L2 coefficient.
        batch: real samples of all classes in a minibatch.
        recount: steps after which all counts restart from 0; 0: never.
    Raises:
        ConfigError: a number below 1 (steps and ``recount``: 0), or ``first`` above ``size``.
    Differs from: the published code restarts its counts whenever it evaluates; hence ``recount``.
    Source: Zhao et al., CVPR 2023 (the enriched queue of models), and published code.
    """

    gives_accuracy = True

    size: int = 100
    first: int = 4
    every: int = 30
    trained: int = 2
    steps: int = 10
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    recount: int = 100
    _modes: dict[int, tuple[Task, Mode]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        least = min(self.first, self.every, self.trained, self.batch)
        if least < 1 or min(self.steps, self.recount) < 0 or self.size < self.first:
            raise ConfigError(
                f"a pool has at least 1 network in the first step and no more than pool_size, one joins every 1 step "
                f"or more, and at least 1 trains on minibatches of at least 1 sample; got pool_first {self.first}, "
                f"pool_size {self.size}, outer_steps {self.every}, pool_trained {self.trained}, inner_batch "
                f"{self.batch}, inner_steps {self.steps} and pool_recount {self.recount}"
            )

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the state with a random network and its accuracy; the first call draws the first networks."""
        pool = state.memory or _fresh_pool([task.init(draws.fold("pool", index)) for index in range(self.first)])
        if state.age and state.age % self.every == 0:
            pool = self._add(pool, task.init(draws.fold("pool")), state.age)
        member = draws.fold("member").index(len(pool[SEEN]))
        network = with_real_statistics(task, state_of(pool).map(lambda tensor: tensor[member]), draws)
        accuracy = pool[RIGHT][member] / pool[SEEN][member].clamp_min(1)
        return ScheduleState(network, state.age, pool, accuracy=accuracy)

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Train random networks on the real set; the returned state holds only the pool."""
        pool, age = state.memory, state.age + 1
        members = draws.to("cpu").fold("trained").permutation(len(pool[SEEN]))[: self.trained].tolist()
        pool = _replace_rows(pool, members, self._train(task, _rows(pool, members), draws))
        if self.recount and age % self.recount == 0:
            pool |= {name: torch.zeros_like(pool[name]) for name in (RIGHT, SEEN)}
        return ScheduleState(None, age, pool)

    def _add(self, pool: Tensors, network: NetworkState, age: int) -> Tensors:
        """Return the pool with a fresh network, in place of the oldest one if it is full."""
        fresh, count = _fresh_pool([network]), len(pool[SEEN])
        if count < self.size:
            return {name: torch.cat([tensor, fresh[name]]) for name, tensor in pool.items()}
        oldest = (self.first + age // self.every - 1) % self.size
        return _replace_rows(pool, [oldest], fresh)

    def _train(self, task: Task, pool: Tensors, draws: Draws) -> Tensors:
        """Train the networks of a pool on their minibatches and return them as a pool."""
        state, momentum, mode = state_of(pool), under(MOMENTUM, pool), self._mode(task)
        right, seen = pool[RIGHT], pool[SEEN]
        for step in range(self.steps):
            key = draws.fold("step", step)
            batches = [real_samples(task, key.fold("real", index), self.batch) for index in range(len(seen))]
            batch: Batch = tree_map(lambda *tensors: torch.stack(tensors), *batches)
            gradients, buffers = _gradients(task, state, batch, key, mode)
            right, seen = right + buffers.pop(RIGHT), seen + batch.weight.sum(1)
            params, velocity = sgd_update(state.params, gradients, momentum, self.lr, self.momentum, self.weight_decay)
            momentum |= velocity
            state = NetworkState(params, buffers)
        return _as_pool(state, momentum, right, seen)

    def _mode(self, task: Task) -> Mode:
        """Return how a task's networks train; never batched on a CPU, where batched convolutions are slow."""
        if task.device.type == "cpu":
            return "loop"
        cached = self._modes.get(id(task))
        if cached is None or cached[0] is not task:
            few = real_samples(task, Draws(0, ("try",), task.device), 2)
            cached = self._modes[id(task)] = task, "vmap" if batches_networks(task, few) else "loop"
        return cached[1]


def counting_loss(task: Task, state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
    """Return a network's cross entropy in training, and its buffers with the count of right predictions (RIGHT)."""
    outputs = in_full(task.predict(state, batch.inputs, train=True, draws=draws)[0])
    targets = one_tensor(batch.targets, "a pool that trains")
    with torch.no_grad():
        right = ((outputs.argmax(1) == hard_labels(targets)) * batch.weight).sum()
    return weighted_mean(soft_cross_entropy(outputs, targets), batch.weight), {**state.buffers, RIGHT: right}


def _gradients(task: Task, state: NetworkState, batch: Batch, draws: Draws, mode: Mode) -> tuple[Tensors, Tensors]:
    """Return the gradients of stacked networks, and the buffers and counts that :func:`counting_loss` returns."""
    if mode == "loop":
        members = range(len(batch.weight))
        results = [network_gradients(counting_loss, task, state_at(state, n), take(batch, n), draws) for n in members]
        return stack_states([NetworkState(*result) for result in results])

    def loss(state: NetworkState, batch: Batch, _: Tensors) -> tuple[Tensor, Tensors]:
        return counting_loss(task, NetworkState(state.params, copied(state.buffers)), batch, draws)

    return stacked_gradients(loss, state, batch, {}, True, "vmap")


def _fresh_pool(networks: list[NetworkState]) -> Tensors:
    """Return a pool of fresh networks."""
    state = stack_states(networks)
    zeros = torch.zeros_like(next(iter(state.params.values())).flatten(1)[:, 0])
    momentum = {name: torch.zeros_like(tensor) for name, tensor in state.params.items()}
    return _as_pool(state, momentum, zeros, zeros.clone())


def _as_pool(state: NetworkState, momentum: Tensors, right: Tensor, seen: Tensor) -> Tensors:
    """Return stacked networks with their momentum and counts, by a pool's names."""
    velocities = {MOMENTUM + name: tensor for name, tensor in momentum.items()}
    return named(state) | velocities | {RIGHT: right, SEEN: seen}


def _rows(pool: Tensors, members: list[int]) -> Tensors:
    """Return some members as a pool of their own; indices are the host's, so that nothing waits for the device."""
    return {name: torch.stack([tensor[member] for member in members]) for name, tensor in pool.items()}


def _replace_rows(pool: Tensors, members: list[int], rows: Tensors) -> Tensors:
    """Return a copy of a pool in which ``rows`` replace those of ``members``."""
    changed = copied(pool)
    for name, tensor in changed.items():
        for row, member in enumerate(members):
            tensor[member] = rows[name][row]
    return changed
