"""The graph task: node classification on one graph, distilled into a few labelled nodes."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.checks import require_kind, require_no_features, require_no_width, require_sizes
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.execution.isolation import isolated
from mmdistill.graph.base import VALIDATION_JUDGES, GraphClassification
from mmdistill.graph.data import GraphData
from mmdistill.graph.difficulty import neighbourhood_entropy
from mmdistill.graph.judges import JudgeProtocol, protocol_for, scores_of
from mmdistill.graph.judging import JUDGES, GraphJudges
from mmdistill.graph.models import HOPS, MODELS, SGC, GraphNetwork, ModuleNetwork, make_network, named
from mmdistill.graph.placing import placed_set
from mmdistill.graph.sampling import padded_rows
from mmdistill.graph.scene import parts_of
from mmdistill.graph.selections import SELECTIONS, coarsening, propagated_means
from mmdistill.graph.sources import SOURCES, load_graph
from mmdistill.graph.synthetic import raw_features
from mmdistill.labels import LabelKind, as_probabilities
from mmdistill.names import called, known_name
from mmdistill.networks.architecture import task_line
from mmdistill.networks.module import ModuleFactory
from mmdistill.networks.trial import try_network
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws, checked_seed, choose_device
from mmdistill.settings import Settings
from mmdistill.task import (
    Batch,
    ClassBatch,
    Dims,
    Inputs,
    NetworkState,
    Scores,
    TaskInfo,
    Tensors,
    one_tensor,
    share_classes,
    take,
)

FANOUTS = (10, 5)
"""Neighbours drawn at each hop from large graphs, as published for ogbn-arxiv (Jin et al., ICLR 2022)."""
WIDTH = 256
"""Default hidden units of a GCN or MLP."""


class GraphTask(GraphClassification[JudgeProtocol]):
    """Node classification on one graph.

    Args:
        graph: the checked graph.
        network: the network to distil with; a user's module is also the default judge, ``model``.
        protocol: how judges are trained; None is that of :func:`~mmdistill.graph.judges.protocol_for`.
        device: where everything lies.
        judge_epochs: epochs of judges; None is the protocol's own number.
    Raises:
        ConfigError: ``protocol`` is of another class, or ``judge_epochs`` no whole number of at least 1.
    """

    def __init__(
        self,
        graph: GraphData,
        network: GraphNetwork,
        protocol: JudgeProtocol | None = None,
        device: torch.device | str = "cpu",
        *,
        judge_epochs: int | None = None,
    ) -> None:
        require_kind(JudgeProtocol, protocol=protocol)
        labels, usual = graph.y[graph.train], protocol_for(graph)
        super().__init__(network, labels, graph.num_classes, usual, protocol, judge_epochs, device)
        self.graph = graph
        self.parts = parts_of(graph, self.device)
        self.scene = self.parts["train"].scene
        self._nodes = self.parts["train"].nodes
        self.judging = GraphJudges(self.parts, graph.num_classes)
        self.judges: Sequence[str] = (*self.given, *JUDGES)
        self.selections: Sequence[str] = SELECTIONS

    def __repr__(self) -> str:
        sizes = f"{len(self.graph.train):,} training and {len(self.graph.test):,} test nodes"
        return task_line(self, self.graph.name, sizes)

    def network_inputs(self, inputs: Inputs) -> Tensors:
        """Return a graph's inputs by name, see :func:`~mmdistill.graph.models.named`."""
        return named(inputs)

    def try_network(self) -> None:
        """Run the network once on two nodes."""
        nodes = {"x": self.scene.x[:2]}
        try_network(self, nodes, f"nodes of {self.graph.x.shape[1]} features", self.graph.num_classes)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return the network's logits of all given nodes, ``(nodes, C)``, and its updated buffers.

        Raises:
            ShapeError: the network returns no tensor whose last axis is C.
        """
        logits, buffers = self.network.logits(state, named(inputs), train=train, draws=draws)
        if not isinstance(logits, Tensor) or logits.shape[-1:] != (self.graph.num_classes,):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ShapeError(f"the network returned {shape}; it must return (nodes, {self.graph.num_classes}) logits")
        return logits, buffers

    def class_gradients(self, state: NetworkState, batch: ClassBatch) -> Tensors | None:
        """Return SGC's per-class gradients in closed form, or None for networks without one."""
        if not isinstance(self.network, SGC):
            return None
        inputs, _, weight = batch.batch
        targets = as_probabilities(one_tensor(batch.batch.targets), self.graph.num_classes).to(weight.dtype)
        return self.network.class_gradients(state, named(inputs), targets, weight)

    def stored(self, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        """Return synthetic nodes without edges, as :func:`~mmdistill.graph.synthetic.raw_features` builds them."""
        return raw_features(self, budget, settings, label, draws)

    def embedding(self) -> Tensor:
        """Return the training nodes' features after two hops."""
        return self.scene.propagated(HOPS)[self._nodes]

    @torch.no_grad()
    def difficulty(self, networks: Iterable[NetworkState]) -> Tensor:
        """Return how mixed the classes around each training node are; networks predict those of other nodes."""
        inputs = self.seen(torch.arange(len(self.scene), device=self.device), self.scene.y).inputs
        labels = torch.stack([self.predict(network, inputs)[0].softmax(-1) for network in networks]).mean(0).argmax(-1)
        classes = labels.index_copy(0, self._nodes, self.parts["train"].classes)
        return neighbourhood_entropy(self.scene.adjacency, classes.cpu(), self._nodes.cpu())

    def select(self, indices: Tensor) -> Batch:
        """Return training nodes with their own features and the edges among them (the induced subgraph).

        Shapes:
            indices ``(..., n)`` positions in ``labels``; inputs x ``(..., n, d)`` and adjacency ``(..., n, n)``.
        """
        indices = indices.cpu()
        nodes = self._nodes.cpu()[indices]
        inputs = {
            "x": self.scene.x[nodes.to(self.device)],
            "adjacency": self.scene.adjacency.among(nodes).to(self.device),
        }
        return Batch(inputs, self._labels[indices].to(self.device), torch.ones(nodes.shape, device=self.device))

    def real_inputs(self) -> Tensors:
        """Return the graph that training sees in the form that the network reads."""
        return self.scene.inputs(self.network.normalised)

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training nodes of each class, or of all, without replacement.

        Networks that read only propagated rows (SGC, MLP) get the drawn rows. Others get the whole graph, shared by all
        classes, with the draw in the weights, except where classes are drawn: of a large graph they get a sampled
        neighbourhood (a GCN one per class); of a smaller one a GCN gets the neighbourhoods of each class's training
        nodes, if these are smaller than the graph.
        """
        draws = draws.to("cpu")
        if classes is None:
            return self._flat(draws.permutation(len(self._labels))[:n])
        rows = self._members.draw(draws, classes, n)
        table, present = (tensor.to(self.device, non_blocking=True) for tensor in padded_rows(rows))
        nodes = self._nodes[table]
        if self.network.hops is not None:
            inputs = {"x": self.scene.propagated(self.network.hops)[nodes]}
            return ClassBatch(Batch(inputs, self.parts["train"].classes[table], present), Dims(0, 0))
        if self.graph.is_large:
            key, groups = draws.fold("neighbours"), [self._nodes.cpu()[row] for row in rows]
            sampled = self.scene.sampled_neighbourhoods(groups, FANOUTS, key) if self.network.two_layers else None
            if sampled is not None:
                return ClassBatch(Batch(sampled, self.parts["train"].classes[table], present), Dims(0, 0))
            whole, nodes = self._sample_around(nodes, key)
        elif self._near is not None:
            return self._weight_drawn(*self._near, classes.to(self.device), table, present)
        else:
            everywhere = torch.ones(len(self.scene), device=self.device)
            whole = self.parts["train"].whole(self.network.normalised)._replace(weight=everywhere)
        membership = torch.zeros(len(rows), len(whole.weight), device=self.device).scatter_add_(1, nodes, present)
        return share_classes(whole, membership)

    @functools.cached_property
    def _near(self) -> tuple[Batch, Tensor] | None:
        """Each class's training nodes with their neighbourhoods, and their positions; None: networks read the graph.

        They do not depend on the draw, so that all steps have the same shapes.
        """
        groups = [ids.to(self.device) for ids in self._members.members]
        inputs = self.scene.neighbourhoods([self._nodes[ids] for ids in groups]) if self.network.two_layers else None
        if inputs is None:
            return None
        table, present = (tensor.to(self.device) for tensor in padded_rows(self._members.members))
        return Batch(inputs, self.parts["train"].classes[table], present), table

    def _weight_drawn(
        self, near: Batch, positions: Tensor, classes: Tensor, table: Tensor, present: Tensor
    ) -> ClassBatch:
        """Return some classes of :attr:`_near`, with weight on the drawn nodes only."""
        drawn = torch.zeros(len(table), len(self._labels), device=self.device).scatter_add_(1, table, present)
        batch = take(near, classes)
        return ClassBatch(batch._replace(weight=batch.weight * drawn.gather(1, positions[classes])), Dims(0, 0))

    def _sample_around(self, nodes: Tensor, draws: Draws) -> tuple[Batch, Tensor]:
        """Sample a neighbourhood of some nodes in place of the whole graph; return it and their positions in it."""
        sampled = self.scene.adjacency.sampled(nodes.flatten().cpu(), FANOUTS, draws)
        positions = torch.searchsorted(sampled, nodes.cpu()).to(self.device)
        classes = self.scene.y[sampled.to(self.device)].clamp(min=0)
        inputs = self.scene.among(sampled, self.network.normalised)
        return Batch(inputs, classes, torch.ones(len(sampled), device=self.device)), positions

    def selection(self, kind: str, counts: Tensor, draws: Draws) -> Batch:
        """Return a training-free small graph: ``propagated-means`` or ``coarsening``."""
        if kind == "coarsening":
            return coarsening(self.parts["train"], counts, self.graph.num_classes)
        return propagated_means(self, counts, draws)

    def training_batch(self) -> Batch:
        """Return all training nodes as networks train on them; two-layer ones get the neighbourhood if it is smaller.

        A neighbourhood without other nodes would pass for separable samples, so networks then read the whole graph.
        """
        near = self.scene.neighbourhoods([self._nodes]) if self.network.two_layers else None
        if near is None or near["x"].shape[1] == len(self._nodes):
            return self._flat(torch.arange(len(self._labels)))
        weight = torch.ones(len(self._nodes), device=self.device)
        return Batch({name: tensor[0] for name, tensor in near.items()}, self.parts["train"].classes, weight)

    def seen(self, nodes: Tensor, targets: Tensor) -> Batch:
        """Return nodes of the training graph in the network's input form, with the caller's targets.

        Shapes:
            nodes ``(n,)`` positions in the scene; targets ``(N, ...)`` of all its nodes.
        """
        if self.network.hops is not None:
            rows = {"x": self.scene.propagated(self.network.hops)[nodes]}
            return Batch(rows, targets[nodes], torch.ones(len(nodes), device=self.device))
        part = self.parts["train"]._replace(nodes=nodes)
        return part.whole(self.network.normalised)._replace(targets=targets)

    def _flat(self, indices: Tensor) -> Batch:
        # Nodes of unknown class get class 0 and weight 0.
        return self.seen(self._nodes[indices.to(self.device, non_blocking=True)], self.scene.y.clamp(min=0))

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Train n judges on synthetic nodes (None: the labelled nodes of the real graph) and test on the real graph.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: another number of features than the graph's, or an adjacency of another size.
            DataError: impossible edges.
        """
        name = known_name("judge", judge, self.judges)
        sample = None if synthetic is None else placed_set(synthetic, self.graph, self.device)
        logits = self.judging.fit(sample, self.given.get(name, name), draws, n, self.protocol)
        truth = self.parts["test"].classes
        hits = (logits.argmax(-1) == truth).double()
        return scores_of(name, hits, truth, self.graph.class_names)

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float | None:
        """Return the mean validation accuracy of a few GCNs trained for a third of the judges' epochs."""
        if not len(self.graph.val):
            return None
        sample = placed_set(synthetic, self.graph, self.device)
        scores = self.judging.validation(sample, "gcn", draws, VALIDATION_JUDGES, self.validation_protocol)
        return float(scores.mean())

    def describe(self) -> TaskInfo:
        """Return what identifies this task."""
        graph = self.graph
        preprocessing: dict[str, object] = {
            "nodes": len(graph.x),
            "edges": len(graph.adjacency.column),
            "setting": "inductive" if graph.inductive else "transductive",
            "notes": list(graph.notes),
        }
        return TaskInfo(
            "graph",
            graph.name,
            "nodes",
            len(self._labels),
            self.scene.stored_bytes,
            graph.fingerprint,
            graph.class_names,
            preprocessing,
            sample_bytes=graph.x.shape[1] * graph.x.element_size() + 1,
            tensors=graph.scaling,
            test_fingerprint=graph.test_fingerprint,
            forms={"inputs.x": (graph.x.shape[1],)},
        )


@isolated
def graph_task(
    data: "str | Path | GraphData | Any",
    *,
    model: str | ModuleFactory = "sgc",
    features: str | Sequence[str] = (),
    width: int | None = None,
    hops: int | None = None,
    split: int | None = None,
    seed: int = 0,
    inductive: bool | None = None,
    name: str | None = None,
    judge_epochs: int | None = None,
    protocol: JudgeProtocol | None = None,
    device: torch.device | str = "auto",
) -> GraphTask:
    """Return the task of distilling a graph.

    Args:
        data: a name or a file (see ``mmdistill data``), or a torch-geometric ``Data``: x ``(nodes, features)``,
            edge_index ``(2, edges)``, y and masks ``(nodes,)``; or a dict of these.
        model: the network to distil with: ``sgc``, ``gcn``, ``mlp``, or a function that returns a module with
            ``forward(x, edge_index[, edge_weight])``, which then is also the default judge (``model``).
        features: for a module, the submodule whose input is the embedding; by default its last layer.
        width: hidden units of a GCN or MLP; None is :data:`WIDTH`.
        hops: of SGC; None is :data:`~mmdistill.graph.models.HOPS`.
        split: the column of masks that hold several splits; None is the first.
        seed: of the random split of named data sets that come without one, and of files in their layout.
        inductive: whether condensing sees the training nodes alone; None: as the field uses the data set.
        name: of data in memory, for reports and for comparing runs.
        judge_epochs: epochs of judges; None is the protocol's own number.
        protocol: how judges are trained; by default that of :func:`~mmdistill.graph.judges.protocol_for`.
        device: where everything lies; ``auto`` is a CUDA device where there is one, else the CPU.

    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.

    Raises:
        ConfigError: an unknown name, a width or hops of a network that takes none, a module that cannot run on this
            graph, or a split or setting beside a loaded graph.
        DataError: a graph that cannot be used.
        UnsupportedError: a data set whose library is not installed.
    """
    seed = checked_seed(seed)
    require_sizes(width=width, judge_epochs=judge_epochs)
    require_kind(JudgeProtocol, protocol=protocol)
    require_kind(bool, inductive=inductive)
    device = choose_device(device)
    if isinstance(data, GraphData):
        if split is not None or inductive is not None:
            raise ConfigError("graph data that are loaded have their split and setting (inductive); leave these out")
        graph = data
    else:
        graph = load_graph(data, split=split or 0, seed=seed, inductive=inductive)
    graph = called(graph, name, data, SOURCES)
    kind = "a module of your own" if callable(model) else known_name("graph model", model, MODELS)
    if kind not in ("gcn", "mlp"):
        require_no_width(width, kind)
    if kind != "sgc" and hops is not None:
        raise ConfigError(f"{kind} takes no hops; leave them out")
    if callable(model):
        network: GraphNetwork = ModuleNetwork(model, features, device)
    else:
        require_no_features(features, kind)
        hops = HOPS if hops is None else hops
        network = make_network(kind, graph.x.shape[1], graph.num_classes, width or WIDTH, 0.0, hops, device)
    task = GraphTask(graph, network, protocol, device, judge_epochs=judge_epochs)
    task.try_network()
    return task
