"""A synthetic graph: learned node features, labels by class share, and a structure where a method learns one."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.coresets import allocate, choose_samples
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.methods import Settings
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Embeds, Task, Tensors, share_classes


class Structure(nn.Module, ABC):
    """Generates the adjacency of a synthetic graph from its features; gradients flow through it to the features."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, n)`` edge weights in [0, 1], symmetric with zero diagonal, for features ``(n, d)``."""


class SyntheticGraph(Parameterization):
    """Nodes whose features are learned; all classes share one graph.

    Args:
        x: initial features ``(n, d)``.
        labels: the nodes' targets.
        classes: ``(n,)`` the class each node stands for.
        num_classes: C.
        structure: generates the adjacency (optimizer group ``decoder``); None is A' = I.
        scale: the unit that features are learned in, so that one learning rate suits features of any size.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Labels,
        classes: Tensor,
        num_classes: int,
        structure: Structure | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(labels, classes, num_classes)
        if x.ndim != 2 or len(x) != len(classes):
            raise ShapeError(f"features must be (nodes, d) with {len(classes)} nodes as labelled, got {tuple(x.shape)}")
        self.codes = nn.Parameter(x / scale)
        self.scale = scale
        self.decoder = structure
        self._membership = F.one_hot(classes, num_classes).T.to(x.dtype)

    def forward(self, draws: Draws) -> Batch:
        """Return all nodes, with their adjacency where there is a structure."""
        x = self.codes * self.scale
        inputs: Tensors = {"x": x}
        if self.decoder is not None:
            inputs["adjacency"] = self.decoder(x)
        return Batch(inputs, self.labels(), torch.ones(len(x), device=x.device, dtype=x.dtype))

    def class_batches(self, batch: Batch) -> ClassBatch:
        """Share the nodes between the classes; each class weighs its own."""
        return share_classes(batch, self._membership.to(batch.weight))


def raw_features(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build a synthetic graph without structure whose features start from those of real training nodes, or from noise.

    Differs from: the published learning rates count in the features' own units; here the unit is the root mean square
    of the initial features, which row-normalised words (0.006) and standardised features (1) share.

    Raises:
        ConfigError: a task without classes, or a budget below the number of classes.
    """
    counts, chosen = _choose(task, budget, settings, draws)
    selected = task.select(chosen).inputs
    x = selected["x"] if isinstance(selected, dict) else selected
    return _start(task, x, counts, settings, label, draws)


def propagated_features(
    task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws
) -> Parameterization:
    """Build the same from *propagated* features, which is what a network without structure should see.

    Raises:
        ConfigError: a task without classes or propagated features, or a budget below the number of classes.
    """
    if not isinstance(task, Embeds):
        raise ConfigError(f"{task.describe().data!r} has no propagated features to start from")
    counts, chosen = _choose(task, budget, settings, draws)
    return _start(task, task.embedding()[chosen.to(task.device)], counts, settings, label, draws)


def _choose(task: Task, budget: int, settings: Settings, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the nodes of each class and the real ones to start from."""
    if task.labels is None or task.num_classes is None:
        raise ConfigError(f"{task.describe().data!r} has no classes; synthetic nodes are labelled")
    counts = allocate(budget, "nodes", task.labels, task.num_classes)
    return counts, choose_samples(task, settings.init, counts, draws)


def _start(task: Task, x: Tensor, counts: Tensor, settings: Settings, label: LabelKind, draws: Draws) -> SyntheticGraph:
    scale = float(x.square().mean().sqrt()) or 1.0
    if settings.init == "noise":
        x = scale * draws.fold("noise").to(task.device).normal(*x.shape)
    return label_nodes(x, counts, len(counts), label, scale)


def label_nodes(
    x: Tensor, counts: Tensor, num_classes: int, label: LabelKind = "fixed", scale: float = 1.0
) -> SyntheticGraph:
    """Return a structureless graph of features in class-major order, ``counts`` of each class."""
    classes = torch.repeat_interleave(torch.arange(num_classes), counts).to(x.device)
    return SyntheticGraph(x, make_labels(label, classes, num_classes), classes, num_classes, scale=scale)
