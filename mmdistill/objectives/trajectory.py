"""Multi-step parameter matching: where a student ends against where an expert ended (Eq. 12, 13)."""

from dataclasses import dataclass
from typing import NamedTuple, Unpack, get_args

import torch
from torch import Tensor

from mmdistill.checks import require_below_one
from mmdistill.choices import MaskedBy
from mmdistill.errors import ConfigError, ShapeError, require_choice
from mmdistill.networks.step_programs import StepPrograms
from mmdistill.networks.unroll import StepLoss, unroll_held
from mmdistill.objectives.base import Network
from mmdistill.objectives.unrolled import InnerRate, StudentOptions, UnrolledObjective
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Tensors


class Ends(NamedTuple):
    """Where a student ends, where an expert ends, and where both began: trees of the same tensors."""

    end: Tensors
    target: Tensors
    start: Tensors


@dataclass(frozen=True)
class Masking:
    """Which parameters trajectories are compared without (PAD).

    Args:
        share: of all parameters, rounded down to a whole number of them.
        by: ``depth`` leaves out the first ones in the order of the network's layers, in which one layer may be cut;
            ``distance`` leaves out those in which the student ends nearest to the target, chosen without a gradient.
    Raises:
        ConfigError: a share of 1 or more, or an unknown choice.
    Source: Li et al., 2024 (PAD), Sec. 3.2, which leaves out the shallow layers; its published code reads the same
    share and leaves out what is nearest.
    """

    share: float = 0.0
    by: MaskedBy = "depth"

    def __post_init__(self) -> None:
        require_below_one(self, "share")
        require_choice("what masks parameters (masked_by)", self.by, get_args(MaskedBy))

    def kept(self, ends: Ends) -> Ends:
        """Return what is compared, of trees in the order of depth."""
        left = int(self.share * sum(tensor.numel() for tensor in ends.start.values()))
        if not left:
            return ends
        if self.by == "depth":
            return Ends(*(without_first(tree, left) for tree in ends))
        end, target, start = (torch.cat([tensor.flatten() for tensor in tree.values()]) for tree in ends)
        distances = (end.detach() - target).square()
        rows = distances.topk(len(distances) - left, sorted=False).indices
        return Ends(*({"kept": flat[rows]} for flat in (end, target, start)))


ALL_COMPARED = Masking()


class TrajectoryOptions(StudentOptions, total=False):
    """What else an objective that compares trajectories may be given, see :class:`TrajectoryMatching`."""

    masking: Masking


class TrajectoryMatching(UnrolledObjective):
    r"""Match the end of an expert's trajectory from the same start (Eq. 12, 13).

    .. math:: \|\theta_S^{(T_s)} - \theta_T^{(T_t)}\|^2 / \|\theta^{(0)} - \theta_T^{(T_t)}\|^2

    The start is the network's state, the end its ``target``; both come from a schedule of experts.

    Args:
        masking: which parameters both distances leave out.

    All others are those of :class:`~mmdistill.objectives.unrolled.UnrolledObjective`.

    Shapes:
        flat batches, of which the real one is not read; returns a scalar.
    Raises:
        ConfigError: a network without a target.
        ShapeError: the target has other parameters than the network.
    Source: Cazenavette et al., CVPR 2022, Sec. 3.2; survey Sec. 3.3.3.
    """

    needs_target = True
    reads_real = False
    masking = ALL_COMPARED
    """An attribute of those with another one alone, so that the others are described as they were without masks."""

    def __init__(
        self, steps: int, rate: InnerRate, *, masking: Masking = ALL_COMPARED, **student: Unpack[StudentOptions]
    ) -> None:
        super().__init__(steps, rate, **student)
        if masking.share:
            self.masking = masking

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the normalised squared distance."""
        return normalised_distance(*self.ends(network, syn, draws))

    def ends(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Ends:
        """Return what is compared, after the student's training."""
        start, target = network.state.params, required_target(network)
        end = self.train_student(network, syn, draws)
        return self.masking.kept(Ends(*({name: tree[name] for name in start} for tree in (end, target, start))))


class TrajectoryMatchingConstantMemory(TrajectoryMatching):
    """Trajectory matching with a cheaper, approximate gradient: later states are held fixed (TESLA).

    The value is that of :class:`TrajectoryMatching`. Its gradient with respect to step i's batch is
    ``2 [lr (target - start) + lr^2 G]^T d g_i / d x_i / ||start - target||^2`` with ``G`` the sum of all steps'
    gradients: the effect of ``x_i`` on the gradients of later steps is dropped.

    Differs from: the published code, whose images get half of this gradient; their rates here are half of its rates.

    Args: as for :class:`TrajectoryMatching`.
    Shapes: those of :class:`TrajectoryMatching`.
    Raises:
        ConfigError: truncation or kept activations, which have no meaning here, or another optimizer than SGD.
    Source: Cui et al., ICML 2023, Sec. 3; survey Sec. 3.3.3.
    """

    def __init__(self, steps: int, rate: InnerRate, **student: Unpack[TrajectoryOptions]) -> None:
        super().__init__(steps, rate, **student)
        if self.unrolling.truncate is not None or self.unrolling.keep:
            raise ConfigError("later states are held fixed already, so there is nothing to truncate or keep")
        if self.unrolling.optimizer != "sgd":
            raise ConfigError(f"states are held fixed for students of SGD alone, got {self.unrolling.optimizer}")

    def unrolled(
        self, loss: StepLoss, start: Tensors, steps: Batch, rate: Tensor, programs: StepPrograms | None
    ) -> Tensors:
        """Return the parameters after all steps, with the approximate gradient; by programs where any apply."""
        return unroll_held(loss, start, steps, rate, self.unrolling, programs)


class PrunedTrajectoryMatching(TrajectoryMatching):
    """Trajectory matching without the parameters that the student cannot come near (DDPP).

    A parameter is left out of both distances while its similarity ``min(s / t, t / s)`` between the student's end s and
    the expert's end t is below a threshold; the choice itself has no gradient. Where all would be left out, all count.
    What a mask leaves out is left out before.

    Args:
        threshold: below 1; similarities lie at 1 for equal parameters and below 0 for other signs.

    All others are those of :class:`TrajectoryMatching`.

    Shapes: those of :class:`TrajectoryMatching`.
    Raises:
        ConfigError: a threshold of 1 or more, which leaves nothing.
    Source: Li et al., 2022 (DDPP); survey Sec. 3.3.3.
    """

    def __init__(
        self, steps: int, rate: InnerRate, threshold: float = 0.1, **student: Unpack[TrajectoryOptions]
    ) -> None:
        super().__init__(steps, rate, **student)
        if not threshold < 1:
            raise ConfigError(f"equal parameters have similarity 1, so a threshold of {threshold} leaves nothing")
        self.threshold = threshold

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the normalised squared distance over the parameters that are kept."""
        end, target, start = self.ends(network, syn, draws)
        kept = {name: similarity(end[name].detach(), target[name]) >= self.threshold for name in end}
        some = torch.stack([mask.any() for mask in kept.values()]).any()
        weight = {name: (mask | ~some).to(target[name].dtype) for name, mask in kept.items()}

        def masked(params: Tensors) -> Tensors:
            return {name: weight[name] * tensor for name, tensor in params.items()}

        return normalised_distance(masked(end), masked(target), masked(start))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return min(a/b, b/a) elementwise: 1 for equal values, 0 where only one is 0, negative for other signs."""
    smaller, larger = torch.minimum(a.abs(), b.abs()), torch.maximum(a.abs(), b.abs())
    ratio = torch.where(larger > 0, smaller / larger, 1.0)
    return torch.where(a * b < 0, -1 / ratio, ratio)


def without_first(params: Tensors, count: int) -> Tensors:
    """Return parameters without so many of the first ones; the tensor that is cut is flat."""
    found = {}
    for name, tensor in params.items():
        cut = min(count, tensor.numel())
        count -= cut
        if cut < tensor.numel():
            found[name] = tensor.flatten()[cut:] if cut else tensor
    return found


def required_target(network: Network) -> Tensors:
    """Return the network's target.

    Raises:
        ConfigError: it has none.
        ShapeError: it does not fit the network.
    """
    if network.target is None:
        raise ConfigError("there is no expert's end point for this network; use a schedule of cached experts")
    for name, start in network.state.params.items():
        found = network.target.get(name)
        if found is None or found.shape != start.shape:
            got = "no such parameter" if found is None else tuple(found.shape)
            raise ShapeError(f"the expert's target has {got} for {name}, the network has {tuple(start.shape)}")
    return network.target


def normalised_distance(end: Tensors, target: Tensors, start: Tensors) -> Tensor:
    """Return the squared distance of two end points over that of the second one and the start (Eq. 13).

    Shapes:
        trees of tensors of any shape, the same in all three; returns a scalar.
    """
    reached = torch.stack([(end[name] - target[name]).square().sum() for name in end]).sum()
    moved = torch.stack([(start[name] - target[name]).square().sum() for name in end]).sum()
    return reached / moved
