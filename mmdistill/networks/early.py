"""Early-stage networks: a small pool trained on the real data for few epochs; each one taken is perturbed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.schedules import ScheduleState, TrainedOnT
from mmdistill.networks.statistics import with_real_statistics
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Task, Tensors, real_samples


@dataclass(frozen=True)
class EarlyStagePool(TrainedOnT):
    r"""Take a perturbed network of a pool, train it on the real set between steps, then take another one (EDD).

    The pool trains once, for ``epochs`` passes over the real set. Each network taken from it moves along random
    directions k of random strengths :math:`\alpha_k`, whose filters are scaled to the norms of the network's filters:

    .. math:: \theta' = \theta + \sum_k \alpha_k d_k, \quad d_{klj} \leftarrow d_{klj} \|\theta_{lj}\| / \|d_{klj}\|

    The pool derives from the run's seed, so a resumed run makes the same pool again.

    Args:
        size: networks in the pool.
        epochs: passes over the real set that train each of them, also fractional.
        weakest: the smallest strength; strengths are drawn uniformly for each network taken.
        strongest: the largest strength.
        directions: number of directions; the published code adds two.
        outer_steps: as in :class:`~mmdistill.networks.schedules.InnerLoopSchedule`.
        inner_steps: minibatches between two outer steps.
        lr: learning rate of the pool's training and of that between steps.
        momentum: of both trainings.
        batch: minibatch size of both trainings.
        augment: augment minibatches of both trainings.
        weight_decay: of both trainings.
        prepare: prepares minibatches of both trainings instead of the task's augmentation.
    Raises:
        ConfigError: an empty pool, a negative number of epochs or directions, or strengths out of order.
    Differs from: the published code keeps each network at its epoch of best test accuracy, here at its last.
    Source: Zhang et al., CVPR 2023, Sec. 3; survey Sec. 3.3.3.
    """

    size: int = 5
    epochs: float = 2
    weakest: float = 0.01
    strongest: float = 0.09
    directions: int = 2
    _pools: dict[int, tuple[Task, list[NetworkState]]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or min(self.epochs, self.directions) < 0 or not 0 <= self.weakest <= self.strongest:
            raise ConfigError(
                f"a pool needs a network, no fewer than 0 epochs and directions and 0 <= weakest <= strongest; got "
                f"{self.size}, {self.epochs}, {self.directions}, {self.weakest} and {self.strongest}"
            )

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the live network, or a perturbed network of the pool where there is none."""
        if state.network is not None:
            return super().fetch(task, state, draws)
        pool = self.pool(task, draws)
        index = draws.fold("member").index(self.size)
        strengths = draws.fold("strength").to("cpu").uniform(self.directions, low=self.weakest, high=self.strongest)
        member = pool[index]
        params = perturbed(member.params, strengths.tolist(), draws.fold("direction").to(task.device))
        network = with_real_statistics(task, NetworkState(params, member.buffers), draws)
        return ScheduleState(network, 0, {})

    def pool(self, task: Task, draws: Draws) -> list[NetworkState]:
        """Return the pool of a task for a run's seed, training it at the first call."""
        cached = self._pools.get(draws.seed)
        if cached is not None and cached[0] is task:
            return cached[1]
        key = Draws(draws.seed, ("pool",), draws.device)
        pool = [self._train(task, key.fold(index)) for index in range(self.size)]
        self._pools[draws.seed] = task, pool
        return pool

    def _train(self, task: Task, draws: Draws) -> NetworkState:
        network = task.init(draws.fold("init"))
        momentum: Tensors = {}
        steps = math.ceil(self.epochs * math.ceil(task.describe().num_train / self.batch))
        for step in range(steps):
            key = draws.fold("step", step)
            batch = real_samples(task, key.fold("real"), self.batch)
            network, momentum = self.update(task, network, momentum, batch, key)
        return network


def perturbed(params: Tensors, strengths: Sequence[float], draws: Draws) -> Tensors:
    """Return parameters moved along one random direction per strength, scaled to the norm of each filter.

    A filter is a row of a weight; one-dimensional parameters (biases, norm scales) stay.
    """

    def perturb(name: str, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return weight
        norms, total = weight.flatten(1).norm(dim=1), weight
        for index, strength in enumerate(strengths):
            direction = draws.fold(name, index).normal(*weight.shape).to(weight.dtype).flatten(1)
            lengths = direction.norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)  # a single weight may draw 0
            scale = strength * norms / lengths
            total = total + (scale[:, None] * direction).view_as(weight)
        return total

    return {name: perturb(name, weight) for name, weight in params.items()}
