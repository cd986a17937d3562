"""Real samples that learned ones start from, with noisy copies where a class has too few."""

import warnings
from collections.abc import Callable

from torch import Tensor

from mmdistill.allocation import ShortClassError, available, short_classes
from mmdistill.coresets import ranks_within, repeated_rows, require_samples
from mmdistill.errors import MmdistillWarning
from mmdistill.runtime import Draws
from mmdistill.task import Inputs, Task

REPEAT_NOISE = 0.1
"""Standard deviation of the noise on copies, relative to the samples': without noise, copies would get the same
gradients and stay alike."""


def start_inputs(
    task: Task, choose: Callable[[Tensor], Tensor], counts: Tensor, draws: Draws, *, parts: bool = False
) -> Inputs:
    """Return the real samples that learned ones start from, with copies as :func:`filled_up` adds them.

    Args:
        task: the task.
        choose: maps counts per class to the indices of as many real samples, class after class.
        counts: the number of samples of each class.
        draws: the key of the noise.
        parts: whether these are only parts of samples (tiles of an image) or targets that codes are fitted to.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), ...)``.
    Raises:
        ShortClassError: as for :func:`filled_up`.
    """
    return filled_up(task, lambda present: task.select(choose(present)).inputs, counts, draws, parts=parts)


def filled_up(
    task: Task, start: Callable[[Tensor], Inputs], counts: Tensor, draws: Draws, *, parts: bool = False
) -> Inputs:
    """Return initial samples, with noisy copies where a class has fewer real samples than requested.

    A class with too few gives all that it has and copies of these with a little noise, with a warning. Samples that are
    not one floating-point tensor are not copied; neither are samples, other than parts, when more are requested in all
    than the data have.

    Args:
        task: the task.
        start: maps counts per class, at most the numbers of real samples, to as many samples, class after class.
        counts: the number of samples of each class.
        draws: the key of the noise.
        parts: whether these are only parts of samples, see :func:`start_inputs`.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), ...)``.
    Raises:
        ShortClassError: a class has too few samples, which are not copied.
    Source: Zhao et al., CVPR 2025 (long-tailed data), whose code copies such images without noise.
    """
    short, present = short_classes(task, counts), available(task, counts)
    requested, num_train = int(counts.sum()), task.describe().num_train
    if short and not parts and requested > num_train:
        raise ShortClassError(
            f"{requested:,} samples are more than the {num_train:,} of the data", "lower the budget", False
        )
    inputs = start(present)
    if not short:
        return inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        require_samples(task, counts)
    assert isinstance(inputs, Tensor)
    purpose = f"{int(counts.max())} {'that its codes start from' if parts else 'asked for'}"
    warnings.warn(
        f"{short}, fewer than the {purpose}: the rest start as copies with a little noise",
        MmdistillWarning,
        stacklevel=2,
    )
    repeated = inputs[repeated_rows(present, counts).to(inputs.device)]
    copies = (ranks_within(counts) >= present.repeat_interleave(counts)).to(inputs.device)
    noise = draws.fold("copies").to(inputs.device).normal(int(copies.sum()), *repeated.shape[1:])
    repeated[copies] += REPEAT_NOISE * inputs.std() * noise.to(repeated.dtype)
    return repeated
