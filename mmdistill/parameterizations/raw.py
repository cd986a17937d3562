"""Raw storage: the samples themselves are learned."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmdistill.allocation import real_bytes, shares_of
from mmdistill.coresets import choose_start, require_samples
from mmdistill.errors import ConfigError
from mmdistill.labels import FixedLabels, LabelKind, Labels, make_labels
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.starts import start_inputs
from mmdistill.runtime import Draws
from mmdistill.settings import InitKind
from mmdistill.task import Batch, Inputs, Task, num_samples


class Raw(Parameterization):
    """Learn the samples themselves, in the task's own (normalised) units.

    Args:
        inputs: initial samples ``(M, ...)``, or a named dict of tensors.
        labels: the samples' targets.
        classes: ``(M,)`` the class of each sample.
        num_classes: C.
        learn: the names of a dict's tensors that are learned; None: all floating-point ones.
    """

    inputs: Tensor
    """The learned samples where they are one tensor; those of a dict are attributes of their names."""

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


class RealSamples(Raw):
    """Real samples with their own classes: nothing is learned, and they take the bytes of a selection.

    Args:
        task: the task whose training samples these are.
        indices: the samples' positions, ``(M,)`` int64.
    Raises:
        ConfigError: a task without classes.
    """

    def __init__(self, task: Task, indices: Tensor) -> None:
        if task.labels is None:
            raise ConfigError(f"real samples go by their classes, and {task.describe().data!r} has none")
        classes = task.labels[indices.cpu()].to(task.device)
        super().__init__(task.select(indices).inputs, FixedLabels(classes), classes, task.num_classes, learn=())
        self._bytes = real_bytes(task, len(indices))

    def stored_bytes(self) -> int:
        """Return the bytes that these samples and their labels take in the training set."""
        return self._bytes


class RawStart(NamedTuple):
    """The initial samples, labels and classes: the first arguments of :class:`Raw`."""

    inputs: Inputs
    labels: Labels
    classes: Tensor
    num_classes: int


def raw_samples(
    task: Task, budget: int, init: InitKind, label: LabelKind, draws: Draws, *, learned: bool = True
) -> Raw:
    """Build the default parameterization, samples that start as :func:`raw_start`, which has the same arguments."""
    return Raw(*raw_start(task, budget, init, label, draws, learned=learned))


def raw_start(
    task: Task, budget: int, init: InitKind, label: LabelKind, draws: Draws, *, learned: bool = True
) -> RawStart:
    """Return the initial samples of raw storage, real ones or N(0, 1) noise, with labels and classes.

    Args:
        task: a task with classes.
        budget: in the task's own unit (ipc, nodes).
        init: ``noise``, or how real samples are chosen.
        label: the kind of labels.
        draws: the key.
        learned: whether the samples will be learned; if not, a class cannot have more than its real ones.
    Raises:
        ConfigError: a task without classes, or a budget that cannot be shared among them.
        ShortClassError: too few real samples of a class, see :func:`~mmdistill.parameterizations.starts.start_inputs`.
    """
    counts, classes, num_classes = shares_of(task, budget)
    if init == "noise":
        inputs = task.select(choose_start(task, init, counts, draws)).inputs
        inputs = noise_like(inputs, draws.fold("noise").to(task.device))
    else:
        if not learned:
            require_samples(task, counts)
        inputs = start_inputs(task, partial(choose_start, task, init, draws=draws), counts, draws)
    return RawStart(inputs, make_labels(label, classes, num_classes), classes, num_classes)


def noise_like(inputs: Inputs, draws: Draws) -> Inputs:
    """Return N(0, 1) noise in place of floating-point inputs, drawn for each tensor of a dict by its name."""
    if not isinstance(inputs, dict):
        return draws.normal(*inputs.shape) if inputs.is_floating_point() else inputs
    return {name: draws.fold(name).normal(*t.shape) if t.is_floating_point() else t for name, t in inputs.items()}
