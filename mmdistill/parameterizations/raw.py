"""Raw storage: the samples themselves are learned."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmdistill.allocation import available, shares_of, short_classes
from mmdistill.coresets import choose_start, ranks_within, repeated_rows, require_samples
from mmdistill.errors import MmdistillWarning
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Inputs, Task, num_samples

REPEAT_NOISE = 0.1
"""Deviation of the noise on copies of real samples, of that of the samples: without any, copies would get the same
gradients and stay alike."""


class Raw(Parameterization):
    """Learn the samples themselves, in the task's own (normalised) units.

    Args:
        inputs: initial samples ``(M, ...)``, or a named dict of tensors.
        labels: their targets.
        classes: ``(M,)`` the class each sample stands for.
        num_classes: C.
        learn: the names of a dict's tensors that are learned; all floating-point ones by default.
    """

    inputs: Tensor
    """The learned samples, where they are one tensor; those of a dict go by its names."""

    def __init__(
        self,
        inputs: Inputs,
        labels: Labels,
        classes: Tensor | None,
        num_classes: int | None,
        learn: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(labels, classes, num_classes)
        self.count = num_samples(inputs)
        self._single = not isinstance(inputs, dict)
        named = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        self._names = tuple(named)
        for name, tensor in named.items():
            learned = tensor.is_floating_point() if learn is None else name in learn
            if learned:
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor.detach().clone())

    def forward(self, draws: Draws) -> Batch:
        """Return the stored samples."""
        named = {name: getattr(self, name) for name in self._names}
        inputs: Inputs = named["inputs"] if self._single else named
        weight = torch.ones(self.count, device=next(iter(named.values())).device)
        return Batch(inputs, self.labels(), weight)


def raw_samples(
    task: Task, budget: int, init: InitKind, label: LabelKind, draws: Draws, *, learned: bool = True
) -> Raw:
    """Build the default parameterization: learned samples that start from real ones or from N(0, 1) noise.

    Args:
        task: a task with classes.
        budget: in the task's own unit (ipc, nodes).
        init: ``noise``, or how real samples are chosen.
        label: the kind of labels.
        draws: the key.
        learned: whether the samples will learn; of others a class has no more than its real ones.
    Raises:
        ConfigError: a task without classes, or a budget that cannot be shared among them.
        ShortClassError: a class with too few real samples, see :func:`start_inputs`.
    """
    counts, classes, num_classes = shares_of(task, budget)
    if init == "noise":
        inputs = task.select(choose_start(task, init, counts, draws)).inputs
        inputs = noise_like(inputs, draws.fold("noise").to(task.device))
    else:
        if not learned:
            require_samples(task, counts)
        inputs = start_inputs(task, lambda once: choose_start(task, init, once, draws), counts, draws)
    return Raw(inputs, make_labels(label, classes, num_classes), classes, num_classes)


def start_inputs(task: Task, choose: Callable[[Tensor], Tensor], counts: Tensor, draws: Draws) -> Inputs:
    """Return the real samples that learned ones start from.

    A class that has fewer than are asked for gives all of them, and copies of these with a little noise; a warning says
    so. There are none of samples that are more than one tensor, nor in a set of more samples than the data have.

    Args:
        task: the task.
        choose: returns the indices of so many real samples of each class, class after class.
        counts: how many are asked for.
        draws: the key of the noise.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), ...)``.
    Raises:
        ShortClassError: a class with fewer samples where there are no copies.
    Source: Zhao et al., CVPR 2025 (long-tailed data), whose code copies such images, without noise.
    """
    short, once = short_classes(task, counts), available(task, counts)
    if short and int(counts.sum()) > task.describe().num_train:
        require_samples(task, counts)
    inputs = task.select(choose(once)).inputs
    if not short:
        return inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        require_samples(task, counts)
    assert isinstance(inputs, Tensor)
    warnings.warn(
        f"{short}, fewer than the {int(counts.max())} asked for: the rest start as copies with a little noise",
        MmdistillWarning,
        stacklevel=2,
    )
    found = inputs[repeated_rows(once, counts).to(inputs.device)]
    copies = (ranks_within(counts) >= once.repeat_interleave(counts)).to(inputs.device)
    noise = draws.fold("copies").to(inputs.device).normal(int(copies.sum()), *found.shape[1:])
    found[copies] += REPEAT_NOISE * inputs.std() * noise.to(found.dtype)
    return found


def noise_like(inputs: Inputs, draws: Draws) -> Inputs:
    """Return N(0, 1) noise in place of floating-point inputs, tensors of a name each their own."""
    if not isinstance(inputs, dict):
        return draws.normal(*inputs.shape) if inputs.is_floating_point() else inputs
    return {name: draws.fold(name).normal(*t.shape) if t.is_floating_point() else t for name, t in inputs.items()}
