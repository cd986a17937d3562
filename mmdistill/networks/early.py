"""Early-stage networks: a small pool trained on the real data for few epochs, perturbed each time one is taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.schedules import ScheduleState, TrainedOnT
from mmdistill.networks.statistics import with_real_statistics
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Task, Tensors, real_samples

TINY = 1e-10
"""Keeps the direction of a filter of zeros finite."""


@dataclass(frozen=True)
class EarlyStagePool(TrainedOnT):
    r"""Take a perturbed network of a pool, train it on the real set between steps, take another one (EDD).

    The pool trains once, on ``epochs`` passes over the real set. Each network that is taken from it moves along
    random directions whose filters have the norms of its own, each with a strength of its own:

    .. math:: \theta' = \theta + \sum_k \alpha_k d_k, \quad d_{klj} \leftarrow d_{klj} \|\theta_{lj}\| / \|d_{klj}\|

    The pool derives from the run's seed, so a resumed run makes the same one again.

    Args:
        size: networks in the pool.
        epochs: passes over the real set that train each of them; may be part of one.
        weakest: the smallest strength; strengths are drawn uniformly for each network taken.
        strongest: the largest strength.
        directions: how many directions are added up; the published code adds two.
        outer_steps: as in :class:`~mmdistill.networks.schedules.InnerLoopSchedule`, like the following.
        inner_steps: minibatches between two outer steps.
        lr: of training, in the pool and between steps.
        momentum: of training, likewise.
        batch: minibatch size, likewise.
        augment: augment minibatches, likewise.
        weight_decay: of training, likewise.
        prepare: what becomes of minibatches, likewise.
    Raises:
        ConfigError: an empty pool, a negative number of epochs or directions, or strengths out of order.
    Differs from: the published code keeps each network's epoch of best test accuracy, here its last.
    Source: Zhang et al., CVPR 2023, Sec. 3; survey Sec. 3.3.3.
    """

    size: int = 5
    epochs: float = 2
    weakest: float = 0.01
    strongest: float = 0.09
    directions: int = 2
    _made: dict[int, tuple[Task, list[NetworkState]]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or min(self.epochs, self.directions) < 0 or not 0 <= self.weakest <= self.strongest:
            raise ConfigError(
                f"a pool needs a network, no fewer than 0 epochs and directions and 0 <= weakest <= strongest; got "
                f"{self.size}, {self.epochs}, {self.directions}, {self.weakest} and {self.strongest}"
            )

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the live network, or at age 0 a perturbed one of the pool."""
        if state.network is not None and state.age > 0:
            return super().fetch(task, state, draws)
        pool = self.pool(task, draws)
        index = draws.fold("member").index(self.size)
        strengths = draws.fold("strength").to("cpu").uniform(self.directions, low=self.weakest, high=self.strongest)
        network = pool[index]
        params = perturbed(network.params, strengths.tolist(), draws.fold("direction").to(task.device))
        taken = with_real_statistics(task, NetworkState(params, network.buffers), draws)
        return ScheduleState(taken, 0, {})

    def pool(self, task: Task, draws: Draws) -> list[NetworkState]:
        """Return the pool of a task for a run's seed, training it at the first call."""
        made = self._made.get(draws.seed)
        if made is None or made[0] is not task:
            key = Draws(draws.seed, ("pool",), draws.device)
            made = task, [self._trained(task, key.fold(index)) for index in range(self.size)]
            self._made[draws.seed] = made
        return made[1]

    def _trained(self, task: Task, draws: Draws) -> NetworkState:
        network = task.init(draws.fold("init"))
        momentum: Tensors = {}
        steps = math.ceil(self.epochs * math.ceil(task.describe().num_train / self.batch))
        for step in range(steps):
            key = draws.fold("step", step)
            batch = real_samples(task, key.fold("real"), self.batch)
            network, momentum = self.update(task, network, momentum, batch, key)
        return network


def perturbed(params: Tensors, strengths: Sequence[float], draws: Draws) -> Tensors:
    """Return parameters moved along random directions with each filter's own norm, one for each strength.

    A filter is a row of a weight; one-dimensional parameters (biases, norm scales) stay.
    """

    def moved(name: str, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return weight
        norms, total = weight.flatten(1).norm(dim=1), weight
        for index, strength in enumerate(strengths):
            direction = draws.fold(name, index).normal(*weight.shape).to(weight.dtype).flatten(1)
            scale = strength * norms / (direction.norm(dim=1) + TINY)
            total = total + (scale[:, None] * direction).view_as(weight)
        return total

    return {name: moved(name, weight) for name, weight in params.items()}
