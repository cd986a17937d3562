"""The choice of how a step of an unrolled training is computed.

On a CPU a step takes large batches in portions, so that the outputs of layers stay in its caches: 100 images of 28 x 28
in a ConvNet of width 128 take two thirds of the time, and the memory of one portion if no activations are kept. A trial
must first show that the loss is the weighted mean over independent samples, which batch norms and dropout exclude. Runs
that compile compute steps by programs if products are a small part of the work.
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
"""Bytes that a CPU's graph of one portion keeps; in ConvNets of 32 to 128 channels more, or a quarter, is slower."""
PROBE_SAMPLES = 4
"""Samples on which a trial tests whether a loss is the mean over single samples."""
PROBE_RTOL = 0.01
"""Largest relative difference between a batch's loss and the mean loss of its samples to count as equal.

Both are computed on batches of equal size, so that bfloat16, which rounds small losses coarsely, rounds both alike.
"""
T = TypeVar("T")


class StepCache:
    """Measurements of one loss's steps, kept for later trainings."""

    def __init__(self) -> None:
        self._measured: dict[Hashable, object] = {}

    def get_or_compute(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value kept under ``key``, computing it at the first call."""
        if key not in self._measured:
            self._measured[key] = compute()
        return cast(T, self._measured[key])

    def require_reached(self, value: Tensor, known: Sequence[Tensor]) -> None:
        """Refuse, in the very first step, a loss that closes over tensors that require gradients."""
        self.get_or_compute("reached", lambda: require_reached_from(value, known))


def step_signature(at: StepPoint) -> Hashable:
    """Return the shapes and types on which the memory and the time of one loss's step depend."""
    return at.theta.shape, at.theta.dtype, tuple((leaf.shape, leaf.dtype) for leaf in at.leaves), tuple(at.chosen)


def choose_cpu_step(step: EagerStep, at: StepPoint, cache: StepCache, programs: StepPrograms | None) -> InnerStep:
    """Return a step as a CPU computes it fastest in reverse mode: in portions, by programs, both or neither.

    Args:
        step: the step by plain autograd.
        at: where the first step is taken.
        cache: measurements of this loss.
        programs: the run's programs; None: it does not compile.
    """
    signature, unchecked = step_signature(at), replace(step, check=None)
    size = cache.get_or_compute(("portion", signature), lambda: portion_of(unchecked, at))
    inner: InnerStep = step
    if programs is not None:
        most = programs.most
        if cache.get_or_compute(("programs", signature), lambda: gains_by_program(unchecked, at, most)):
            inner = ProgrammedStep(step, programs)
    return PortionedStep(inner, size) if size else inner


def recorded_bytes(step: InnerStep, at: StepPoint) -> int:
    """Return the bytes that a recorded step keeps, measured by recording one."""
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # keeps freed storages from being reused, which would make the number vary

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor.detach())  # detached: a node that holds its own output would never be freed
        return held[-1]

    with uncounted(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step.record(at)
    return sum(storages.values())


def portion_of(step: EagerStep, at: StepPoint) -> int:
    """Return how many of a step's samples a CPU should compute at once, in portions of about one size; 0: all of them.

    The size depends on shapes and on the kind of loss, not on values, so that a resumed run takes the same one. All
    samples are taken at once if gradients with respect to the weights are required, since the portions' shares would
    depend on them.
    """
    weight_index = len(at.leaves) - 1
    samples = len(at.leaves[weight_index])
    small, large = (_first_samples(at, count) for count in (PROBE_SAMPLES, 2 * PROBE_SAMPLES))
    if samples <= 2 * PROBE_SAMPLES or weight_index in at.chosen or not _is_mean_over_samples(step, small):
        return 0
    # Both include the bytes that parameters take, which the difference leaves out.
    small_bytes, large_bytes = recorded_bytes(step, small), recorded_bytes(step, large)
    largest = max(PORTION_BYTES * PROBE_SAMPLES // max(large_bytes - small_bytes, 1), 1)
    if samples <= largest:
        return 0
    even = -(-samples // -(-samples // largest))
    # Prefer a nearby size that leaves no remainder: programs are compiled for each size.
    return next((size for size in range(largest, largest // 2, -1) if samples % size == 0), even)


def _first_samples(at: StepPoint, count: int) -> StepPoint:
    return at._replace(leaves=[leaf[:count] for leaf in at.leaves])


def gains_by_program(step: EagerStep, at: StepPoint, most: float) -> bool:
    """Return whether compiled programs of a step give the same result and save time.

    They give the same result if the loss does not depend on the step's number, as it does with dropout. They recompute
    a gradient that eager steps keep, but fuse the operations between matrix products, so they save time if products are
    a small part of the work.

    Args:
        step: the step by plain autograd.
        at: where the first step is taken.
        most: operations of products per byte that a recorded step keeps, up to which programs save time.
    """
    with uncounted(), torch.no_grad():
        first, second = (step.value(at.theta, at.leaves, number) for number in range(2))
    if not torch.equal(first, second):
        return False
    return operations(lambda: step.record(at))[1] <= most * recorded_bytes(step, at)


def _is_mean_over_samples(step: EagerStep, at: StepPoint) -> bool:
    """Return whether the loss of a few samples is the weighted mean of losses that depend on one sample each.

    It is not if it depends on the step's number (dropout), if one sample's loss has a gradient with respect to another
    sample (batch norms, nodes of a graph), or if it is a sum, for example.
    """
    *leaves, weights = at.leaves
    probe_weights, one_hot = torch.arange(1, PROBE_SAMPLES + 1).to(weights), torch.eye(PROBE_SAMPLES).to(weights)
    floating = [index for index, leaf in enumerate(leaves) if leaf.is_floating_point()]
    if any(len(leaf) != PROBE_SAMPLES for leaf in leaves) or 0 not in floating:
        return False

    def loss_of(row: int) -> Tensor:
        return step.value(at.theta, [*(torch.stack([leaf[row]] * PROBE_SAMPLES) for leaf in leaves), one_hot[0]], 0)

    try:
        with uncounted(), torch.no_grad():
            whole, next_step = (step.value(at.theta, [*leaves, probe_weights], number) for number in range(2))
            losses = torch.stack([loss_of(row) for row in range(PROBE_SAMPLES)])
            mean = probe_weights @ losses / probe_weights.sum()
        if not torch.equal(whole, next_step) or not torch.isclose(whole, mean, rtol=PROBE_RTOL):
            return False
        with uncounted(), torch.enable_grad():
            leaves = [leaf.detach().requires_grad_(index in floating) for index, leaf in enumerate(leaves)]
            last_loss = step.value(at.theta, [*leaves, one_hot[-1]], 0)
            gradients = torch.autograd.grad(last_loss, [leaves[index] for index in floating], allow_unused=True)
    except (RuntimeError, ValueError) as error:
        if exhausted(error):
            raise
        return False  # an error with another cause recurs, and is reported, when the step runs as a whole
    return all(gradient is None or not gradient[:-1].any() for gradient in gradients)
