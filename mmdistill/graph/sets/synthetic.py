"""Synthetic graphs with learned node features and edges, a fixed number of nodes each."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.allocation import shares_of
from mmdistill.coresets import choose_samples
from mmdistill.errors import ConfigError, MmdistillWarning, ShapeError
from mmdistill.graph.sets.own import GraphModule
from mmdistill.graph.structure import BernoulliEdges, GivenEdges, initial_logits
from mmdistill.graph.synthetic import Structure, reads_edges
from mmdistill.labels import LabelKind, Labels, make_labels
from mmdistill.parameterizations.base import Chosen, FeatureMap, Parameterization, stored_tensor_bytes
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Inputs, Task, share_classes


class SyntheticGraphs(Parameterization):
    """Small graphs whose features and edges are learned.

    Args:
        x: initial features ``(M, m, d)``.
        present: ``(M, m)``, 1 where a graph has a node.
        structure: gives the edges ``(M, m, m)`` (optimizer group ``decoder``).
        labels: the graphs' targets.
        classes: ``(M,)`` the class each graph stands for.
        num_classes: C.
        scale: the unit that features are learned in, so that one learning rate suits features of any size.
        shared: whether networks read the graphs of all classes together, as users' modules do.

    Raises:
        ShapeError: features or presence of another number of graphs or nodes.
    """

    present: Tensor

    even = False

    def __init__(
        self,
        x: Tensor,
        present: Tensor,
        structure: Structure,
        labels: Labels,
        classes: Tensor,
        num_classes: int,
        scale: float = 1.0,
        shared: bool = False,
    ) -> None:
        super().__init__(labels, classes, num_classes)
        self.divisible = not shared
        if x.ndim != 3 or present.shape != x.shape[:2] or len(x) != len(classes):
            raise ShapeError(
                f"{len(classes)} graphs need features (graphs, nodes, d) and presence (graphs, nodes), got "
                f"{tuple(x.shape)} and {tuple(present.shape)}"
            )
        self.codes = nn.Parameter(x / scale)
        self.scale = scale
        self.decoder = structure
        self.register_buffer("present", present.clone())

    def forward(self, draws: Draws) -> Batch:
        """Return all graphs, with one sample of their edges."""
        return self._batch(self.decoder(self.codes, draws))

    def finished(self, draws: Draws) -> Batch:
        """Return all graphs with the edges for use."""
        return self._batch(self.decoder.finished(self.codes))

    def class_batches(self, batch: Batch) -> ClassBatch:
        """Return the graphs class by class; shared ones all for every class, each with weight on its own."""
        if self.divisible or self.classes is None or self.num_classes is None:
            return super().class_batches(batch)
        membership = F.one_hot(self.classes, self.num_classes).T
        return share_classes(batch, membership.to(batch.weight))

    def _batch(self, adjacency: Tensor) -> Batch:
        pairs = self.present.unsqueeze(-1) * self.present.unsqueeze(-2)
        inputs = {
            "x": self.scale * self.codes * self.present.unsqueeze(-1),
            "adjacency": adjacency * pairs,
            "present": self.present,
        }
        return Batch(inputs, self.labels(), torch.ones(len(self.codes), device=self.codes.device))

    def penalty(self, features: FeatureMap, decoded: Inputs, chosen: Chosen | None = None) -> Tensor | None:
        """Return the price of more edges than at the start."""
        return self.decoder.penalty()

    def project(self) -> None:
        """Update the structure after a step."""
        self.decoder.project()

    def stored_bytes(self) -> int:
        """Return the bytes of the finished graphs: features of their nodes, a bit for each pair, labels."""
        sizes = self.present.sum(1)
        features = int(sizes.sum()) * self.codes.shape[2] * self.codes.element_size()
        bits = int((sizes * (sizes - 1) / 2).sum())
        labels = sum(stored_tensor_bytes(tensor) for tensor in self.labels.state_dict().values())
        return features + (bits + 7) // 8 + labels


def real_graphs(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
    """Build synthetic graphs that start from real ones, edges included.

    Edges are learned, unless the network is a user's module that reads no edge weights.

    Raises:
        ConfigError: a task of other data, or noise for a start.
    """
    if settings.init == "noise":
        raise ConfigError("synthetic graphs start from real ones, whose nodes they keep; leave --init noise out")
    counts, classes, num_classes = shares_of(task, budget)
    inputs = task.select(choose_samples(task, settings.init, counts, draws)).inputs
    if not isinstance(inputs, dict) or "present" not in inputs:
        raise ConfigError(f"{task.describe().data!r} is no set of graphs")
    x, present = inputs["x"], inputs["present"]
    network = getattr(task, "network", None)
    structure: Structure = BernoulliEdges(initial_logits(inputs), present=present)
    if not reads_edges(task, {name: tensor[:2] for name, tensor in inputs.items()}):
        structure = GivenEdges(inputs["adjacency"])
        warnings.warn(
            "the network reads no edge weights, so only the features of nodes are learned, and edges stay those of the "
            "real graphs that it starts from",
            MmdistillWarning,
            stacklevel=2,
        )
    labels = make_labels(label, classes, num_classes)
    scale = float((x.square().sum() / (present.sum() * x.shape[-1])).sqrt()) or 1.0
    return SyntheticGraphs(
        x, present, structure, labels, classes, num_classes, scale, shared=isinstance(network, GraphModule)
    )
