"""Which way a step of an unrolled training is computed.

On a CPU a step takes large batches in portions, so that the outputs of layers stay in its caches: 100 images of 28 x 28
in a ConvNet of width 128 take two thirds of the time, and where nothing is kept the memory of one portion. That is done
where the loss is found to be the weighted mean over samples that know nothing of each other, which batch norms and
dropout exclude. Where runs compile, steps are computed by programs if products are little of their work.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from mmdistill.execution.compilation import operations, uncounted
from mmdistill.execution.memory import exhausted
from mmdistill.networks.gradients import require_reached_from
from mmdistill.networks.inner_steps import EagerStep, InnerStep, PortionedStep, ProgrammedStep, StepPoint
from mmdistill.networks.step_programs import StepPrograms

DiffMode = Literal["auto", "forward", "reverse"]

PORTION_BYTES = 48 << 20
"""What a CPU's graph of one portion keeps: in ConvNets of 32 to 128 channels more takes longer, as does a quarter."""
PROBE_SAMPLES = 4
"""Samples by which it is found whether a loss is that of single samples."""
PROBE_RTOL = 0.01
"""Relative difference between the loss of a batch and the mean of its samples' below which it is that mean.

Both are computed of as many samples, so that bfloat16, which rounds small losses by much, rounds them alike.
"""
Found = TypeVar("Found")


class StepCache:
    """What was found out about one loss's steps, so that later trainings need not find it again."""

    def __init__(self) -> None:
        self._found: dict[Hashable, object] = {}

    def once(self, kind: Hashable, find: Callable[[], Found]) -> Found:
        """Return what is found where it is asked for the first time.

        Args:
            kind: what it depends on.
            find: finds it.
        """
        if kind not in self._found:
            self._found[kind] = find()
        return cast(Found, self._found[kind])

    def require_reached(self, value: Tensor, known: Sequence[Tensor]) -> None:
        """Refuse, in the first step of all, a loss that closes over tensors to which gradients should go."""
        self.once("reached", lambda: require_reached_from(value, known))


def kind_of(at: StepPoint) -> Hashable:
    """Return what the memory and the time of one loss's step depend on: the shapes of its parameters and batch."""
    return at.theta.shape, at.theta.dtype, tuple((leaf.shape, leaf.dtype) for leaf in at.leaves), tuple(at.chosen)


def on_cpu(step: EagerStep, at: StepPoint, cache: StepCache, programs: StepPrograms | None) -> InnerStep:
    """Return a step as a CPU computes it fastest in reverse mode: in portions, by programs, in both ways or neither.

    Args:
        step: by plain autograd.
        at: the first one.
        cache: about this loss.
        programs: of the run; None: it does not compile.
    """
    kind, alone = kind_of(at), replace(step, check=None)
    size = cache.once(("portion", kind), lambda: portion_of(alone, at))
    inner: InnerStep = step
    if programs is not None:
        most = programs.most
        if cache.once(("programs", kind), lambda: gains_by_program(alone, at, most)):
            inner = ProgrammedStep(step, programs)
    return PortionedStep(inner, size) if size else inner


def recorded_bytes(step: InnerStep, at: StepPoint) -> int:
    """Return the bytes that a recorded step keeps, by recording one for nothing else."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage takes the place of another one, which would make the number vary

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor.detach())  # a node that keeps its own output would keep itself, and all it saved, for good
        return held[-1]

    with uncounted(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step.record(at)
    return sum(storages.values())


def portion_of(step: EagerStep, at: StepPoint) -> int:
    """Return how many of a step's samples a CPU should take at once, in portions of about one size; 0: all of them.

    It depends on shapes and on what the loss does, not on values, so that a run that goes on takes the same. Where
    gradients with respect to the weights are wanted, on which shares would depend, all are taken at once.
    """
    weights = len(at.leaves) - 1
    samples, few = len(at.leaves[weights]), [_first(at, count) for count in (PROBE_SAMPLES, 2 * PROBE_SAMPLES)]
    if samples <= 2 * PROBE_SAMPLES or weights in at.chosen or not _is_mean(step, few[0]):
        return 0
    less, more = (recorded_bytes(step, some) for some in few)  # both with what parameters take
    largest = max(PORTION_BYTES * PROBE_SAMPLES // max(more - less, 1), 1)
    if samples <= largest:
        return 0
    even = -(-samples // -(-samples // largest))
    # A size that leaves no rest, if there is one near: programs are compiled for each size.
    return next((size for size in range(largest, largest // 2, -1) if samples % size == 0), even)


def _first(at: StepPoint, count: int) -> StepPoint:
    return at._replace(leaves=[leaf[:count] for leaf in at.leaves])


def gains_by_program(step: EagerStep, at: StepPoint, most: float) -> bool:
    """Return whether a step's programs may and should be used.

    They may where another step's key changes nothing of the loss, as dropout's would. They compute a gradient twice
    which eager steps keep, and fuse what is between products, so they should where products are little of the work.

    Args:
        step: by plain autograd.
        at: the first one.
        most: operations of products for each byte that a recorded step keeps, up to which they should.
    """
    with uncounted(), torch.no_grad():
        first, second = (step.value(at.theta, at.leaves, number) for number in range(2))
    if not torch.equal(first, second):
        return False
    return operations(lambda: step.record(at))[1] <= most * recorded_bytes(step, at)


def _is_mean(step: EagerStep, at: StepPoint) -> bool:
    """Return whether the loss of a few samples is their weighted mean, of each of which it reads nothing else.

    It is not where another step's key changes it (dropout), where a sample's loss has a gradient with respect to
    another one (batch norms, nodes of a graph), or where it is a sum, say.
    """
    *rows, own = at.leaves
    weight, alone = torch.arange(1, PROBE_SAMPLES + 1).to(own), torch.eye(PROBE_SAMPLES).to(own)
    places = [index for index, leaf in enumerate(rows) if leaf.is_floating_point()]
    if any(len(leaf) != PROBE_SAMPLES for leaf in rows) or 0 not in places:
        return False

    def single(row: int) -> Tensor:
        return step.value(at.theta, [*(torch.stack([leaf[row]] * PROBE_SAMPLES) for leaf in rows), alone[0]], 0)

    try:
        with uncounted(), torch.no_grad():
            whole, again = (step.value(at.theta, [*rows, weight], number) for number in range(2))
            mean = weight @ torch.stack([single(row) for row in range(PROBE_SAMPLES)]) / weight.sum()
        if not torch.equal(whole, again) or not torch.isclose(whole, mean, rtol=PROBE_RTOL):
            return False
        with uncounted(), torch.enable_grad():
            rows = [leaf.detach().requires_grad_(index in places) for index, leaf in enumerate(rows)]
            moved = [rows[index] for index in places]
            found = torch.autograd.grad(step.value(at.theta, [*rows, alone[-1]], 0), moved, allow_unused=True)
    except (RuntimeError, ValueError) as error:
        if exhausted(error):
            raise
        return False  # whatever else is wrong shows when it is taken as it is
    return all(gradient is None or not gradient[:-1].any() for gradient in found)
