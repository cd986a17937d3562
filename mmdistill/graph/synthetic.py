"""A synthetic graph: learned node features, labels by class share, and a structure where a method learns one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.abilities import Embeds
from mmdistill.allocation import shares_of
from mmdistill.checks import require_centroids
from mmdistill.coresets import choose_samples
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.graph.models import WITHOUT_EDGES
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.method import Parameterizer
from mmdistill.networks.architecture import network_title
from mmdistill.parameterizations.base import Chosen, FeatureMap, Parameterization, stored_tensor_bytes
from mmdistill.rules import k_means
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Inputs, Task, Tensors, share_classes


class Structure(nn.Module, ABC):
    """Generates the adjacency of a synthetic graph from its features; gradients flow through it to the features."""

    @abstractmethod
    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """Return ``(n, n)`` edge weights in [0, 1], symmetric with zero diagonal, for features ``(n, d)``."""

    @abstractmethod
    def finished(self, x: Tensor) -> Tensor:
        """Return the weights for use after learning: without weak edges and without sampling."""

    def penalty(self) -> Tensor | None:
        """Return a scalar added to the objective, or None."""
        return None

    def project(self) -> None:
        """Update the structure after a step."""


StructureKind = Callable[[Task, Tensors, Draws], Structure]
"""Builds the initial structure: ``(task, the real nodes that the graph starts from, draws)``."""


class SyntheticGraph(Parameterization):
    """Nodes whose features are learned; all classes share one graph.

    Args:
        x: initial features ``(n, d)``.
        labels: the nodes' targets.
        classes: ``(n,)`` the class each node stands for.
        num_classes: C.
        structure: generates the adjacency (optimizer group ``decoder``); None is A' = I.
        scale: the unit that features are learned in, so that one learning rate suits features of any size.
    Raises:
        ShapeError: x is not ``(n, d)`` with n as in ``classes``.
    """

    divisible = False
    membership: Tensor

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
        self.register_buffer("membership", F.one_hot(classes, num_classes).T.to(x.dtype), persistent=False)

    def forward(self, draws: Draws) -> Batch:
        """Return all nodes, with their adjacency where there is a structure."""
        x = self.codes * self.scale
        return self._batch(x, None if self.decoder is None else self.decoder(x, draws))

    def finished(self, draws: Draws) -> Batch:
        """Return all nodes with the adjacency for use, without weak edges."""
        x = self.codes * self.scale
        return self._batch(x, None if self.decoder is None else self.decoder.finished(x))

    def _batch(self, x: Tensor, adjacency: Tensor | None) -> Batch:
        inputs: Tensors = {"x": x} if adjacency is None else {"x": x, "adjacency": adjacency}
        return Batch(inputs, self.labels(), torch.ones(len(x), device=x.device, dtype=x.dtype))

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return the structure's penalty, if it has one."""
        return None if self.decoder is None else self.decoder.penalty()

    def project(self) -> None:
        """Update the structure after a step."""
        if self.decoder is not None:
            self.decoder.project()

    def stored_bytes(self) -> int:
        """Return the bytes of the finished graph, an edge weight being a float32."""
        tensors = [tensor for name, tensor in self.state_dict().items() if not name.startswith("decoder.")]
        pairs = 0 if self.decoder is None else len(self.codes) * (len(self.codes) - 1) // 2
        return sum(stored_tensor_bytes(tensor) for tensor in tensors) + 4 * pairs

    def class_batches(self, batch: Batch) -> ClassBatch:
        """Return all nodes for every class, each with weight on its own nodes."""
        return share_classes(batch, self.membership.to(batch.weight))


def raw_features(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build a synthetic graph without structure whose features start from those of real training nodes, or from noise.

    Differs from: published learning rates are in the features' own units; here the unit is the root mean square of the
    initial features, so that one rate suits row-normalised words (0.006) and standardised features (1).

    Raises:
        ConfigError: a task without classes, or a budget below the number of classes.
    """
    counts, chosen = _choose_nodes(task, budget, settings, draws)
    return _build_graph(task, _select_nodes(task, chosen)["x"], counts, settings, label, draws)


def with_structure(kind: StructureKind, *, from_means: bool = False, embedded: bool = False) -> Parameterizer:
    """Return a function that builds a synthetic graph with a learned structure.

    Args:
        kind: builds the initial structure; it may read the edges among real nodes.
        from_means: whether features start from the centroids of :func:`mean_features` instead of from real nodes.
        embedded: whether the objective reads the network's embedding alone, and not its logits.

    The returned function refuses networks whose logits, or whose embedding, read no edge weights
    (``UnsupportedError``).
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        if from_means:
            require_centroids(settings.init, "noise")
        counts, chosen = _choose_nodes(task, budget, replace(settings, init="real") if from_means else settings, draws)
        start = _select_nodes(task, chosen)
        _require_edges_read(task, start, embedded)
        structure = kind(task, start, draws.fold("structure"))
        x = class_means(task, counts, draws) if from_means else start["x"]
        return _build_graph(task, x, counts, settings, label, draws, structure)

    return build


def reads_edges(task: Task, inputs: Tensors, embedded: bool = False) -> bool:
    """Return whether a fresh network's outputs have a gradient, perhaps 0, with respect to the edge weights.

    Args:
        task: the network's task.
        inputs: a few of the task's samples, with an ``adjacency``.
        embedded: whether the outputs are the embedding; else they are the logits.
    """
    adjacency = inputs["adjacency"].detach().clone().requires_grad_()
    state, weighted = task.init(Draws(0, ("check",), task.device)), {**inputs, "adjacency": adjacency}
    with torch.enable_grad():
        outputs = task.features(state, weighted)[-1] if embedded else task.predict(state, weighted)[0]
    if outputs.requires_grad:
        outputs.sum().backward(inputs=[adjacency])  # type: ignore[no-untyped-call]
    return adjacency.grad is not None


def _require_edges_read(task: Task, nodes: Tensors, embedded: bool) -> None:
    """Refuse a network whose logits, or whose embedding, read no edge weights: none could be learned through it.

    Raises:
        UnsupportedError: they read none; the message names methods without edges.
    """
    if not reads_edges(task, {"x": nodes["x"][:2], "adjacency": nodes["adjacency"][:2, :2]}, embedded):
        raise UnsupportedError(
            f"the {'embedding of the ' if embedded else ''}network ({network_title(task)}) reads no edge weights, so "
            f"none can be learned through it; use a {WITHOUT_EDGES}, or a network that reads them (--model sgc or gcn)"
        )


def propagated_features(
    task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws
) -> Parameterization:
    """Build a graph without structure from *propagated* features, as a network without edges should see them.

    Raises:
        ConfigError: a task without classes or propagated features, or a budget below the number of classes.
    """
    if not isinstance(task, Embeds):
        raise ConfigError(f"{task.describe().data!r} has no propagated features to start from")
    counts, chosen = _choose_nodes(task, budget, settings, draws)
    return _build_graph(task, task.embedding()[chosen.to(task.device)], counts, settings, label, draws)


def mean_features(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build a graph without structure from the k-means centroids of each class's propagated features.

    Raises:
        ConfigError: a task without labelled nodes or propagated features, a budget below the number of classes, or
            another start, noise excepted.
    """
    require_centroids(settings.init, "noise")
    counts = shares_of(task, budget).counts
    return _build_graph(task, class_means(task, counts, draws), counts, settings, label, draws)


def class_means(task: Task, counts: Tensor, draws: Draws) -> Tensor:
    """Return the k-means centroids of each class's propagated features, in class-major order.

    Shapes:
        counts ``(C,)``; returns ``(counts.sum(), d)``.
    Raises:
        ConfigError: a task without propagated features.
    """
    if not isinstance(task, Embeds):
        raise ConfigError(f"{task.describe().data!r} has no labelled nodes whose propagated features could be averaged")
    return k_means(task.embedding(), task.labels, counts, draws)


def _choose_nodes(task: Task, budget: int, settings: Settings, draws: Draws) -> tuple[Tensor, Tensor]:
    """Return the number of nodes of each class, and the real nodes to start from."""
    counts = shares_of(task, budget).counts
    return counts, choose_samples(task, settings.init, counts, draws)


def _select_nodes(task: Task, chosen: Tensor) -> Tensors:
    """Return real nodes' inputs by name: features, and the edges among them."""
    selected = task.select(chosen).inputs
    if not isinstance(selected, dict) or "x" not in selected:
        raise ConfigError(f"{task.describe().data!r} is no graph: its samples have no node features 'x'")
    return selected


def _build_graph(
    task: Task,
    x: Tensor,
    counts: Tensor,
    settings: Settings,
    label: LabelKind,
    draws: Draws,
    structure: Structure | None = None,
) -> SyntheticGraph:
    """Build a graph of initial features, or of noise of their scale."""
    scale = float(x.square().mean().sqrt()) or 1.0
    if settings.init == "noise":
        x = scale * draws.fold("noise").to(task.device).normal(*x.shape)
    return label_nodes(x, counts, len(counts), label, scale, structure)


def label_nodes(
    x: Tensor,
    counts: Tensor,
    num_classes: int,
    label: LabelKind = "hard",
    scale: float = 1.0,
    structure: Structure | None = None,
) -> SyntheticGraph:
    """Return a graph of features in class-major order with ``counts`` nodes of each class; no structure is A' = I.

    Shapes:
        x ``(n, d)``; counts ``(C,)``, n in all.
    """
    classes = torch.repeat_interleave(torch.arange(num_classes), counts).to(x.device)
    return SyntheticGraph(x, make_labels(label, classes, num_classes), classes, num_classes, structure, scale)
