"""Multi-step parameter matching: a student's end point against an expert's (Eq. 12, 13)."""

from dataclasses import dataclass
from typing import NamedTuple, Unpack, get_args

import torch
from torch import Tensor

from mmdistill.checks import require_below_one
from mmdistill.choices import MaskedBy
from mmdistill.errors import ConfigError, ShapeError, require_choice
from mmdistill.objectives.base import Network
from mmdistill.objectives.unrolled import InnerRate, StudentOptions, UnrolledObjective
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Tensors


class Ends(NamedTuple):
    """The student's end point, the expert's end point, and their common start: trees of the same tensors."""

    end: Tensors
    target: Tensors
    start: Tensors


@dataclass(frozen=True)
class Masking:
    """Which parameters are left out when trajectories are compared (PAD).

    Args:
        share: the share of all parameters that is left out, rounded down to a whole number of them.
        by: ``depth`` leaves out the first parameters in the order of the network's layers, and may cut a layer;
            ``distance`` leaves out those in which the student ends nearest to the target, chosen without a gradient.
    Raises:
        ConfigError: a share of 1 or more, or an unknown choice.
    Source: Li et al., 2024 (PAD), Sec. 3.2, which leaves out the shallow layers; its published code takes the same
    share and leaves out the nearest parameters.
    """

    share: float = 0.0
    by: MaskedBy = "depth"

    def __post_init__(self) -> None:
        require_below_one(self, "share")
        require_choice("what masks parameters (masked_by)", self.by, get_args(MaskedBy))

    def kept(self, ends: Ends) -> Ends:
        """Return the three trees without the masked parameters; their tensors must be in the order of depth."""
        masked = int(self.share * sum(tensor.numel() for tensor in ends.start.values()))
        if self.by == "depth":
            return Ends(*(without_first(tree, masked) for tree in ends))
        end, target, start = (torch.cat([tensor.flatten() for tensor in tree.values()]) for tree in ends)
        distances = (end.detach() - target).square()
        rows = distances.topk(len(distances) - masked, sorted=False).indices
        return Ends(*({"kept": flat[rows]} for flat in (end, target, start)))


ALL_COMPARED = Masking()


class TrajectoryOptions(StudentOptions, total=False):
    """Options of objectives that compare trajectories, see :class:`TrajectoryMatching`."""

    masking: Masking


class TrajectoryMatching(UnrolledObjective):
    r"""Match the end point of an expert's trajectory from the same start (Eq. 12, 13).

    .. math:: \|\theta_S^{(T_s)} - \theta_T^{(T_t)}\|^2 / \|\theta^{(0)} - \theta_T^{(T_t)}\|^2

    The start is the network's state, the expert's end point its ``target``; a schedule of experts gives both.

    Args:
        masking: which parameters both distances leave out.

    All others are those of :class:`~mmdistill.objectives.unrolled.UnrolledObjective`.

    Shapes:
        flat batches; the real one is not read; returns a scalar.
    Raises:
        ConfigError: a network without a target.
        ShapeError: the target's parameters differ from the network's.
    Source: Cazenavette et al., CVPR 2022, Sec. 3.2; survey Sec. 3.3.3.
    """

    needs_target = True
    reads_real = False
    relative_to_start = True

    def __init__(
        self, steps: int, rate: InnerRate, *, masking: Masking = ALL_COMPARED, **student: Unpack[StudentOptions]
    ) -> None:
        super().__init__(steps, rate, **student)
        self.masking = masking

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        """Return the normalised squared distance."""
        return normalised_distance(*self.ends(network, syn, draws))

    def ends(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Ends:
        """Train the student and return the three points that are compared, masked."""
        start, target = network.state.params, required_target(network)
        end = self.train_student(network, syn, draws)
        return self.masking.kept(Ends(*({name: tree[name] for name in start} for tree in (end, target, start))))


class TrajectoryMatchingConstantMemory(TrajectoryMatching):
    """Trajectory matching with an approximate gradient of constant memory: later states are held fixed (TESLA).

    The value is that of :class:`TrajectoryMatching`. Its gradient with respect to step i's batch is
    ``2 [lr (target - start) + lr^2 G]^T d g_i / d x_i / ||start - target||^2`` with ``G`` the sum of all steps'
    gradients; the effect of ``x_i`` on the gradients of later steps is dropped.

    Differs from: the published code takes half of this gradient for images, so image learning rates here are half of
    the published ones.

    Args: as for :class:`TrajectoryMatching`.
    Shapes: those of :class:`TrajectoryMatching`.
    Raises:
        ConfigError: truncation or kept activations, which mean nothing here, or an optimizer other than SGD.
    Source: Cui et al., ICML 2023, Sec. 3; survey Sec. 3.3.3.
    """

    _held_states = True

    def __init__(self, steps: int, rate: InnerRate, **student: Unpack[TrajectoryOptions]) -> None:
        super().__init__(steps, rate, **student)
        if self.unrolling.truncate is not None or self.unrolling.keep:
            raise ConfigError(
                "later states are held fixed already, so there is nothing to truncate or keep: leave --kept-steps out"
            )
        if self.unrolling.optimizer != "sgd":
            raise ConfigError(
                f"states are held fixed for students of SGD alone, got {self.unrolling.optimizer} (--set "
                "inner_optimizer)"
            )


class PrunedTrajectoryMatching(TrajectoryMatching):
    """Trajectory matching without the parameters that the student does not come near (DDPP).

    A parameter is left out of both distances in a step where its similarity ``min(s / t, t / s)`` between the student's
    end s and the expert's end t is below a threshold; the choice has no gradient. Where it would leave out all, none
    is. Masking applies first.

    Args:
        threshold: below 1; the similarity is 1 for equal parameters and negative for opposite signs.

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
        similar = {name: similarity(end[name].detach(), target[name]) >= self.threshold for name in end}
        any_similar = torch.stack([mask.any() for mask in similar.values()]).any()
        kept = {name: mask | ~any_similar for name, mask in similar.items()}

        def masked(params: Tensors) -> Tensors:
            return {name: kept[name] * tensor for name, tensor in params.items()}

        return normalised_distance(masked(end), masked(target), masked(start))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return min(a/b, b/a) elementwise: 1 for equal values, 0 where only one is 0, negative for opposite signs."""
    smaller, larger = torch.minimum(a.abs(), b.abs()), torch.maximum(a.abs(), b.abs())
    ratio = torch.where(larger > 0, smaller / larger, 1.0)
    return torch.where(a * b < 0, -1 / ratio, ratio)


def without_first(params: Tensors, count: int) -> Tensors:
    """Return the parameters without the first ``count`` numbers; a tensor that is cut comes back flat."""
    remaining = {}
    for name, tensor in params.items():
        cut = min(count, tensor.numel())
        count -= cut
        if cut < tensor.numel():
            remaining[name] = tensor.flatten()[cut:] if cut else tensor
    return remaining


def required_target(network: Network) -> Tensors:
    """Return the network's target.

    Raises:
        ConfigError: the network has none.
        ShapeError: the target does not fit the network.
    """
    if network.target is None:
        raise ConfigError("there is no expert's end point for this network; use a schedule of cached experts")
    for name, start in network.state.params.items():
        end = network.target.get(name)
        if end is None or end.shape != start.shape:
            got = "no such parameter" if end is None else tuple(end.shape)
            raise ShapeError(f"the expert's target has {got} for {name}, the network has {tuple(start.shape)}")
    return network.target


def normalised_distance(end: Tensors, target: Tensors, start: Tensors) -> Tensor:
    """Return the squared distance of ``end`` to ``target`` over that of ``start`` to ``target`` (Eq. 13).

    Shapes:
        trees of tensors of any shape, the same in all three; returns a scalar.
    """
    of_end = torch.stack([(end[name] - target[name]).square().sum() for name in end]).sum()
    of_start = torch.stack([(start[name] - target[name]).square().sum() for name in end]).sum()
    return of_end / of_start
