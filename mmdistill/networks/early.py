"""Early-stage networks: a small pool trained on the real data for few epochs, perturbed each time one is taken."""

from dataclasses import dataclass, field

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.schedules import ScheduleState, TrainedOnT, sgd_step
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Task, Tensors

TINY = 1e-10
"""Keeps the direction of a filter of zeros finite."""


@dataclass(frozen=True)
class EarlyStagePool(TrainedOnT):
    r"""Take a perturbed network of a pool, train it on the real set between steps, take another one (EDD).

    The pool trains once, on ``epochs`` passes over the real set. Each network that is taken from it moves by
    ``strength`` times a random direction whose filters have the norms of its own:

    .. math:: \theta' = \theta + \alpha d, \quad d_{lj} \leftarrow d_{lj} \|\theta_{lj}\| / \|d_{lj}\|

    The pool derives from the run's seed, so a resumed run makes the same one again.

    Args:
        size: networks in the pool.
        epochs: of their training.
        weakest: the smallest strength; it is drawn uniformly for each network taken.
        strongest: the largest strength.
        outer_steps: as in :class:`~mmdistill.networks.schedules.TrainedNetworks`, like the following.
        inner_steps: minibatches between two outer steps.
        lr: of training, in the pool and between steps.
        momentum: of training, likewise.
        batch: minibatch size, likewise.
        augment: augment minibatches, likewise.
    Raises:
        ConfigError: an empty pool, no epochs, or strengths out of order.
    Source: Zhang et al., CVPR 2023, Sec. 3; survey Sec. 3.3.3.
    """

    size: int = 5
    epochs: int = 2
    weakest: float = 0.01
    strongest: float = 0.09
    _made: dict[int, tuple[Task, list[NetworkState]]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size < 1 or self.epochs < 0 or not 0 <= self.weakest <= self.strongest:
            raise ConfigError(
                f"a pool needs a network, no fewer than 0 epochs and 0 <= weakest <= strongest; got {self.size}, "
                f"{self.epochs}, {self.weakest} and {self.strongest}"
            )

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the live network, or at age 0 a perturbed one of the pool."""
        if state.network is not None and state.age > 0:
            return state
        pool = self.pool(task, draws)
        index = int(draws.fold("member").to("cpu").integers(self.size, 1))
        strength = draws.fold("strength").to("cpu").uniform(1, low=self.weakest, high=self.strongest)
        network = pool[index]
        params = perturbed(network.params, float(strength), draws.fold("direction").to(task.device))
        buffers = {name: tensor.clone() for name, tensor in network.buffers.items()}  # running statistics move in place
        return ScheduleState(NetworkState(params, buffers), 0, {})

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
        steps = self.epochs * -(-task.describe().num_train // self.batch)
        for step in range(steps):
            key = draws.fold("step", step)
            batch = task.sample_real(key.fold("real"), None, self.batch)
            if self.augment:
                batch = task.augment(key.fold("augment"), batch, shared=False)
            assert isinstance(batch, Batch)
            network, momentum = sgd_step(task, network, momentum, batch, self.lr, self.momentum, key)
        return network


def perturbed(params: Tensors, strength: float, draws: Draws) -> Tensors:
    """Return parameters moved along a random direction with each filter's own norm.

    A filter is a row of a weight; one-dimensional parameters (biases, norm scales) stay.
    """

    def moved(name: str, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return weight
        direction = draws.fold(name).normal(*weight.shape).to(weight.dtype).flatten(1)
        scale = weight.flatten(1).norm(dim=1) / (direction.norm(dim=1) + TINY)
        step: Tensor = strength * (scale[:, None] * direction).view_as(weight)
        return weight + step

    return {name: moved(name, weight) for name, weight in params.items()}
