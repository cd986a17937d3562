"""Networks that train on the synthetic graph between outer steps; parameter-free parts are computed once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from mmdistill.abilities import GivesClassGradients
from mmdistill.checks import require_below_one, require_positive
from mmdistill.graph.task import GraphTask
from mmdistill.methods import trained_by
from mmdistill.networks.schedules import ScheduleState, Synthetic, TrainedOnS
from mmdistill.networks.statistics import copied
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Task, Tensors, share_classes

LINKS = frozenset({"adjacency", "edge_index"})
"""Names of the inputs that hold edges."""
MOMENTS = "mvt"
"""Prefixes of Adam's state: its moments ``m.<parameter>`` and ``v.<parameter>``, and its steps ``t.<parameter>``."""


@dataclass(frozen=True)
class TrainedOnGraph(TrainedOnS):
    """Train on the synthetic graph with Adam, as the graph methods' published code does.

    For a network that reads only propagated features (SGC), they are computed once per inner loop, and minibatches are
    rows of them. A network that reads the structure takes the whole graph whatever the minibatch size, since its nodes
    are linked.

    Args: as for :class:`~mmdistill.networks.schedules.InnerLoopSchedule`, ``momentum`` being the first moment's decay.
    Raises:
        ConfigError: as there, or a decay or an epsilon out of range.
    Source: Jin et al., ICLR 2022, Algorithm 1.
    """

    second_decay: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_below_one(self, "momentum", "second_decay")
        require_positive(self, "epsilon")

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Train for ``inner_steps`` on the propagated graph, or drop the network after its last outer step."""

        def precompute() -> Batch:
            decoded = syn()
            if isinstance(task, GraphTask) and isinstance(decoded.inputs, dict):
                return decoded._replace(inputs=task.network.precomputed(decoded.inputs))
            return decoded

        return super().advance(task, state, precompute, draws)

    def minibatches(self, task: Task, syn: Batch, draws: Draws) -> list[Batch]:
        """Return the whole graph if its nodes are linked, else its nodes shuffled into minibatches."""
        if isinstance(syn.inputs, dict) and not LINKS.isdisjoint(syn.inputs):
            return [syn]
        return super().minibatches(task, syn, draws)

    @torch.no_grad()
    def update(
        self, task: Task, network: NetworkState, momentum: Tensors, batch: Batch, draws: Draws
    ) -> tuple[NetworkState, Tensors]:
        """Return the network and Adam's moments after one minibatch."""
        gradients, buffers = _gradients(task, network, batch, draws)
        names = list(network.params)
        params = [network.params[name].detach().clone() for name in names]
        first, second, steps = ([self._moment(momentum, kind, name, network) for name in names] for kind in MOMENTS)
        adam(
            params,
            [gradients[name] for name in names],
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self.momentum,
            beta2=self.second_decay,
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            maximize=False,
        )
        moments = {
            f"{kind}.{name}": tensor
            for kind, group in zip(MOMENTS, (first, second, steps), strict=True)
            for name, tensor in zip(names, group, strict=True)
        }
        return NetworkState(dict(zip(names, params, strict=True)), buffers), moments

    @staticmethod
    def _moment(momentum: Tensors, kind: str, name: str, network: NetworkState) -> Tensor:
        """Return a parameter's moment (or its number of steps), initially zero."""
        key = f"{kind}.{name}"
        if key in momentum:
            return momentum[key]
        parameter = network.params[name]
        return torch.zeros_like(parameter) if kind != "t" else torch.zeros((), device=parameter.device)


def _gradients(task: Task, network: NetworkState, batch: Batch, draws: Draws) -> tuple[Tensors, Tensors]:
    """Return the loss's gradient, in closed form where the task has one, and the network's updated buffers."""
    if isinstance(task, GivesClassGradients):
        one_class = share_classes(batch, torch.ones(1, len(batch.weight), device=batch.weight.device))
        closed_form = task.class_gradients(network, one_class)
        if closed_form is not None:
            return {name: gradient[0] for name, gradient in closed_form.items()}, network.buffers

    # Without a trainer, so in float32: it would lower the precision of networks on learned edges, since it does not
    # recognise that nodes share their rows.
    def loss(params: Tensors) -> tuple[Tensor, Tensors]:
        state = NetworkState(params, copied(network.buffers))
        return task.loss(state, batch, train=True, draws=draws), state.buffers

    gradients, buffers = torch.func.grad(loss, has_aux=True)(network.params)
    return gradients, buffers


trained_on_graph = trained_by(TrainedOnGraph)
"""A network trained with Adam on the synthetic graph between steps."""
