"""Multi-step parameter matching: where a student ends against where an expert ended (Eq. 12, 13)."""

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.networks.unroll import Unrolling, unroll_held
from mmdistill.objectives.base import Network
from mmdistill.objectives.unrolled import InnerRate, UnrolledObjective, flat, student_loss
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Tensors


class TrajectoryMatching(UnrolledObjective):
    r"""Match the end of an expert's trajectory from the same start (Eq. 12, 13).

    .. math:: \|\theta_S^{(T_s)} - \theta_T^{(T_t)}\|^2 / \|\theta^{(0)} - \theta_T^{(T_t)}\|^2

    The start is the network's state, the end its ``target``; both come from a schedule of experts.

    Args: as for :class:`~mmdistill.objectives.unrolled.UnrolledObjective`.
    Shapes:
        flat batches, of which the real one is not read; returns a scalar.
    Raises:
        ConfigError: a network without a target.
        ShapeError: the target has other parameters than the network.
    Source: Cazenavette et al., CVPR 2022, Sec. 3.2; survey Sec. 3.3.3.
    """

    needs_target = True

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the normalised squared distance."""
        start, target = network.state.params, required_target(network)
        return normalised_distance(self.train_student(network, syn, draws), target, start)


class TrajectoryMatchingConstantMemory(TrajectoryMatching):
    """Trajectory matching with a cheaper, approximate gradient: later states are held fixed (TESLA).

    The value is that of :class:`TrajectoryMatching`. Its gradient with respect to step i's batch is
    ``2 [lr (target - start) + lr^2 G]^T d g_i / d x_i / ||start - target||^2`` with ``G`` the sum of all steps'
    gradients: the effect of ``x_i`` on the gradients of later steps is dropped.

    Args: as for :class:`~mmdistill.objectives.unrolled.UnrolledObjective`.
    Raises:
        ConfigError: truncation or kept activations, which have no meaning here.
    Source: Cui et al., ICML 2023, Sec. 3; survey Sec. 3.3.3.
    """

    def __init__(
        self,
        steps: int,
        rate: InnerRate,
        *,
        batch: int | None = None,
        parts: int = 1,
        augment: bool = False,
        unrolling: Unrolling | None = None,
    ) -> None:
        super().__init__(steps, rate, batch=batch, parts=parts, augment=augment, unrolling=unrolling)
        if self.unrolling.truncate is not None or self.unrolling.keep:
            raise ConfigError("later states are held fixed already, so there is nothing to truncate or keep")

    def train_student(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Tensors:
        """Return the student's last parameters, with the approximate gradient."""
        steps = self.step_batches(network.task, flat(syn), draws)
        loss = student_loss(network, draws.fold("student"))
        return unroll_held(loss, network.state.params, steps, self.rate(), self.unrolling.momentum)


def required_target(network: Network) -> Tensors:
    """Return the network's target.

    Raises:
        ConfigError: it has none.
        ShapeError: it does not fit the network.
    """
    if network.target is None:
        raise ConfigError("trajectory matching needs an expert's end point; use a schedule of cached experts")
    for name, start in network.state.params.items():
        found = network.target.get(name)
        if found is None or found.shape != start.shape:
            got = "no such parameter" if found is None else tuple(found.shape)
            raise ShapeError(f"the expert's target has {got} for {name}, the network has {tuple(start.shape)}")
    return network.target


def normalised_distance(end: Tensors, target: Tensors, start: Tensors) -> Tensor:
    """Return the squared distance of two end points over that of the second one and the start (Eq. 13)."""
    reached = torch.stack([(end[name] - target[name]).square().sum() for name in end]).sum()
    moved = torch.stack([(start[name] - target[name]).square().sum() for name in end]).sum()
    return reached / moved
