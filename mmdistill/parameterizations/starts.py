"""Real samples that learned ones start from, also where a class has too few of them."""

import warnings
from collections.abc import Callable

from torch import Tensor

from mmdistill.allocation import ShortClassError, available, short_classes
from mmdistill.coresets import ranks_within, repeated_rows, require_samples
from mmdistill.errors import MmdistillWarning
from mmdistill.runtime import Draws
from mmdistill.task import Inputs, Task

REPEAT_NOISE = 0.1
"""Deviation of the noise on copies of real samples, of that of the samples: without any, copies would get the same
gradients and stay alike."""


def start_inputs(
    task: Task, choose: Callable[[Tensor], Tensor], counts: Tensor, draws: Draws, *, parts: bool = False
) -> Inputs:
    """Return the real samples that learned ones start from; where a class has too few, :func:`filled_up`.

    Args:
        task: the task.
        choose: returns the indices of so many real samples of each class, class after class.
        counts: how many are asked for.
        draws: the key of the noise.
        parts: whether they are tiles of images, say, of which many make one sample, or what codes are fitted to.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), ...)``.
    Raises:
        ShortClassError: as of :func:`filled_up`.
    """
    return filled_up(task, lambda once: task.select(choose(once)).inputs, counts, draws, parts=parts)


def filled_up(
    task: Task, start: Callable[[Tensor], Inputs], counts: Tensor, draws: Draws, *, parts: bool = False
) -> Inputs:
    """Return what learned samples start from, with copies where a class has fewer real samples than are asked for.

    It gives as many as it has, and copies of these with a little noise; a warning says so. There are none of samples
    that are more than one tensor, nor, unless they are parts of larger ones, in a set of more samples than the data
    have.

    Args:
        task: the task.
        start: returns so many of each class, class after class, no more than there are real samples.
        counts: how many are asked for.
        draws: the key of the noise.
        parts: whether many of them make one sample.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), ...)``.
    Raises:
        ShortClassError: a class with fewer samples where there are no copies.
    Source: Zhao et al., CVPR 2025 (long-tailed data), whose code copies such images, without noise.
    """
    short, once = short_classes(task, counts), available(task, counts)
    asked, there = int(counts.sum()), task.describe().num_train
    if short and not parts and asked > there:
        raise ShortClassError(f"{asked:,} samples are more than the {there:,} of the data", "lower the budget", False)
    inputs = start(once)
    if not short:
        return inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        require_samples(task, counts)
    assert isinstance(inputs, Tensor)
    wanted = f"{int(counts.max())} {'that its codes start from' if parts else 'asked for'}"
    warnings.warn(
        f"{short}, fewer than the {wanted}: the rest start as copies with a little noise",
        MmdistillWarning,
        stacklevel=2,
    )
    found = inputs[repeated_rows(once, counts).to(inputs.device)]
    copies = (ranks_within(counts) >= once.repeat_interleave(counts)).to(inputs.device)
    noise = draws.fold("copies").to(inputs.device).normal(int(copies.sum()), *found.shape[1:])
    found[copies] += REPEAT_NOISE * inputs.std() * noise.to(found.dtype)
    return found
