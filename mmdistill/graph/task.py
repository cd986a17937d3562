"""The graph task: node classification on one graph, distilled into a few labelled nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.graph.architectures import ARCHITECTURES, make_architecture
from mmdistill.graph.data import GraphData, load_graph
from mmdistill.graph.judges import (
    Fitted,
    JudgeProtocol,
    LoopSample,
    Sample,
    StackedJudges,
    View,
    compact,
    fit_one_by_one,
)
from mmdistill.graph.models import GCN, SGC, GraphNetwork, ModuleNetwork
from mmdistill.graph.propagation import normalise_edges, operator, propagate
from mmdistill.labels import as_probabilities, soft_cross_entropy, weighted_mean
from mmdistill.networks.module import ModuleFactory
from mmdistill.registry import canonical, unknown_name
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Scores, TaskInfo, Tensors, share_classes

MODELS = ("sgc", "gcn", "mlp")
EMBED_HOPS = 2
COLLAPSED = 0.1
"""A class whose test accuracy falls below this is reported."""
VALIDATION_JUDGES = 3


class GraphTask:
    """Node classification on one graph (transductive: all features and edges are known, few labels are).

    Args:
        graph: the checked graph.
        network: the network to distil with.
        protocol: how judges are trained.
        device: where everything lies.
    """

    def __init__(
        self,
        graph: GraphData,
        network: GraphNetwork,
        protocol: JudgeProtocol = JudgeProtocol(),  # noqa: B008 (frozen)
        device: torch.device | str = "cpu",
    ) -> None:
        self.graph, self.network, self.protocol = graph, network, protocol
        self.device = torch.device(device)
        self._labels = graph.y[graph.train]
        self.num_classes: int | None = graph.num_classes
        self.labels: Tensor | None = self._labels
        self.judges: Sequence[str] = ("gcn", "sgc", *ARCHITECTURES, "mlp")
        if isinstance(network, ModuleNetwork):
            self.judges = (*self.judges, "model")
        self.x = graph.x.to(self.device)
        self.edges, self.edge_weight = (
            tensor.to(self.device) for tensor in normalise_edges(graph.edge_index, graph.edge_weight, len(graph.x))
        )
        self._propagated: dict[int, Tensor] = {0: self.x}
        self._views: dict[tuple[str, str], View] = {}
        self._edge_keys = graph.edge_index[0] * len(graph.x) + graph.edge_index[1]

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network."""
        return self.network.init(draws)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return the network's logits of all given nodes and its updated buffers."""
        return self.network.logits(state, _named(inputs), train=train, draws=draws)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the weighted mean cross entropy."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return weighted_mean(soft_cross_entropy(logits, _tensor(batch)), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the network's layers; for SGC the propagated features."""
        return self.network.layers(state, _named(inputs))

    def class_gradients(self, state: NetworkState, batch: ClassBatch) -> Tensors | None:
        """Return SGC's per-class gradients in closed form, or None for networks without one."""
        if not isinstance(self.network, SGC):
            return None
        inputs, _, weight = batch.batch
        targets = as_probabilities(_tensor(batch.batch), self.graph.num_classes).to(weight.dtype)
        return self.network.class_gradients(state, _named(inputs), targets, weight)

    def propagated(self, hops: int) -> Tensor:
        r"""Return :math:`\hat A^k X` of the whole graph, ``(N, d)``, computed once."""
        if hops not in self._propagated:
            self._propagated[hops] = propagate(self.edges, self.edge_weight, self.propagated(hops - 1))
        return self._propagated[hops]

    def embedding(self) -> Tensor:
        """Return the training nodes' features after two hops."""
        return self.propagated(EMBED_HOPS)[self.graph.train.to(self.device)]

    def select(self, indices: Tensor) -> Batch:
        """Return training nodes with their own features and the edges among them (the induced subgraph).

        Shapes:
            indices ``(..., n)`` positions in ``labels``; inputs x ``(..., n, d)`` and adjacency ``(..., n, n)``.
        """
        nodes = self.graph.train[indices.cpu()]
        inputs = {"x": self.x[nodes.to(self.device)], "adjacency": self._induced(nodes).to(self.device)}
        targets = self._labels[indices.cpu()].to(self.device)
        return Batch(inputs, targets, torch.ones(nodes.shape, device=self.device))

    def _induced(self, nodes: Tensor) -> Tensor:
        """Return the dense raw adjacency among nodes, by looking every pair up in the sorted edges."""
        keys = nodes.unsqueeze(-1) * len(self.x) + nodes.unsqueeze(-2)
        if not len(self._edge_keys):
            return torch.zeros(keys.shape)
        position = torch.searchsorted(self._edge_keys, keys).clamp(max=len(self._edge_keys) - 1)
        return torch.where(self._edge_keys[position] == keys, self.graph.edge_weight[position], 0.0)

    def real_inputs(self, network: GraphNetwork | None = None) -> Tensors:
        """Return the whole graph in the form that a network reads, by default the distilling one."""
        if (network or self.network).normalised:
            return {"x": self.x, "edge_index": self.edges, "edge_weight": self.edge_weight}
        raw, weight = self.graph.edge_index, self.graph.edge_weight
        return {"x": self.x, "edge_index": raw.to(self.device), "edge_weight": weight.to(self.device)}

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training nodes of each class, or of all, without replacement.

        Networks that need only propagated rows (SGC, MLP) get those rows as inputs; others get the whole graph, shared,
        with the draw in the weights.
        """
        draws = draws.to("cpu")
        order = draws.permutation(len(self._labels))
        if classes is None:
            return self._flat(order[:n])
        order = order[torch.argsort(self._labels[order], stable=True)]
        counts = torch.bincount(self._labels, minlength=self.graph.num_classes)
        starts, classes = torch.cumsum(counts, 0) - counts, classes.cpu()
        column = torch.arange(min(n, int(counts[classes].max())))
        present = (column < counts[classes, None]).to(self.device, torch.float32)
        table = order[(starts[classes, None] + column).clamp(max=len(order) - 1)]
        nodes = self.graph.train[table].to(self.device)
        if self.network.hops is not None:
            rows = {"x": self.propagated(self.network.hops)[nodes]}
            return ClassBatch(Batch(rows, self._labels[table].to(self.device), present), Dims(0, 0))
        membership = torch.zeros(len(classes), len(self.x), device=self.device).scatter_add_(1, nodes, present)
        return share_classes(self._whole(torch.ones(len(self.x), device=self.device)), membership)

    def _flat(self, indices: Tensor) -> Batch:
        nodes = self.graph.train[indices].to(self.device)
        if self.network.hops is not None:
            rows = {"x": self.propagated(self.network.hops)[nodes]}
            weight = torch.ones(len(nodes), device=self.device)
            return Batch(rows, self._labels[indices].to(self.device), weight)
        return self._whole(_marked(nodes, len(self.x)))

    def _whole(self, weight: Tensor, network: GraphNetwork | None = None) -> Batch:
        """Return the whole graph; nodes of unknown class carry class 0 and must have weight 0."""
        return Batch(self.real_inputs(network), self.graph.y.clamp(min=0).to(self.device), weight)

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch as it is: condensation of graphs uses no augmentation."""
        return batch

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Train n judges on synthetic nodes (None: on the labelled nodes in the real graph), test on the real graph.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: nodes whose features are not this graph's.
        """
        fitted = self._fit(synthetic, judge, draws, n, self.protocol)
        truth = self.graph.y[self.graph.test].to(self.device)
        hits = (fitted.test.argmax(-1) == truth).double()
        present = torch.unique(truth)
        by_class = torch.stack([hits[:, truth == index].mean(1) for index in present], 1)
        values = {"accuracy": tuple(hits.mean(1).tolist()), "balanced_accuracy": tuple(by_class.mean(1).tolist())}
        weak = [
            f"class {int(index)} is nearly never recognised (test accuracy {float(value):.2f})"
            for index, value in zip(present, by_class.mean(0), strict=True)
            if value < COLLAPSED
        ]
        return Scores(judge, values, tuple(weak))

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the mean validation accuracy of a few GCNs trained for a third of the judges' epochs."""
        if not len(self.graph.val):
            raise ConfigError(f"{self.graph.name!r} has no validation nodes to choose a step by; set validate_every=0")
        protocol = replace(self.protocol, epochs=max(self.protocol.epochs // 3, 1))
        batch = Batch(_to(synthetic.inputs, self.device), _tensor(synthetic).to(self.device), synthetic.weight)
        return float(self._fit(batch, "gcn", draws, VALIDATION_JUDGES, protocol).validation.mean())

    def describe(self) -> TaskInfo:
        """Return what identifies this task."""
        return TaskInfo(
            "graph",
            self.graph.name,
            "nodes",
            len(self._labels),
            self.graph.stored_bytes,
            self.graph.fingerprint(),
            tuple(str(index) for index in range(self.graph.num_classes)),
            {"nodes": len(self.x), "edges": self.graph.edge_index.shape[1], "notes": list(self.graph.notes)},
            sample_bytes=self.x.shape[1] * self.x.element_size() + 1,
        )

    def _fit(self, synthetic: Batch | None, judge: str, draws: Draws, n: int, protocol: JudgeProtocol) -> Fitted:
        name = canonical(judge)
        if name not in self.judges:
            raise unknown_name("judge", judge, self.judges)
        if synthetic is not None and _named(synthetic.inputs)["x"].shape[-1] != self.x.shape[1]:
            found = tuple(_named(synthetic.inputs)["x"].shape)
            raise ShapeError(f"synthetic nodes must be (n, {self.x.shape[1]}), got {found}")
        val, test = self.graph.val.to(self.device), self.graph.test.to(self.device)
        val_classes = self.graph.y.to(self.device)[val]
        if name == "model" or name in ARCHITECTURES:
            network = self.network if name == "model" else self._architecture(name, protocol)
            whole_graph = self.real_inputs(network)
            real = synthetic or self._whole(_marked(self.graph.train.to(self.device), len(self.x)), network)
            sample = LoopSample(_named(real.inputs), _tensor(real), real.weight)
            pair = (val, val_classes) if len(val) else None
            return fit_one_by_one(network, sample, whole_graph, pair, test, protocol, draws, n)
        if synthetic is None:
            targets = self._labels.to(self.device)
            whole = Sample(self._real_view(name, "train"), targets, torch.ones(len(targets), device=self.device))
        else:
            whole = Sample(_synthetic_view(name, _named(synthetic.inputs)), _tensor(synthetic), synthetic.weight)
        stacked = StackedJudges(make_network(name, self, protocol), draws.to(self.device), n)
        validation = (self._real_view(name, "val"), val_classes) if len(val) else None
        return stacked.fit(whole, validation, self._real_view(name, "test"), protocol)

    def _architecture(self, name: str, protocol: JudgeProtocol) -> ModuleNetwork:
        features, classes = self.x.shape[1], self.graph.num_classes
        return make_architecture(name, features, classes, protocol.width, protocol.dropout, self.device)

    def _real_view(self, judge: str, part: str) -> View:
        """Return what a judge sees of the training, validation or test nodes on the real graph, computed once."""
        if (judge, part) not in self._views:
            nodes = {"train": self.graph.train, "val": self.graph.val, "test": self.graph.test}[part]
            nodes = nodes.to(self.device)
            if judge == "gcn":
                view = self._neighbourhood(nodes, part == "train")
            else:
                features = self.propagated(EMBED_HOPS if judge == "sgc" else 0)[nodes]
                view = View(features if part == "train" else compact(features))
            self._views[judge, part] = view
        return self._views[judge, part]

    def _neighbourhood(self, nodes: Tensor, trains: bool) -> View:
        """Return the propagated features of the nodes' neighbours, and the rows of the adjacency that read them.

        Features that gradients pass stay dense: the transposed sparse product costs more than it saves.
        """
        place = torch.full((len(self.x),), -1, device=self.device)
        place[nodes] = torch.arange(len(nodes), device=self.device)
        used = place[self.edges[0]] >= 0
        row, column = place[self.edges[0, used]], self.edges[1, used]
        sources, position = torch.unique(column, return_inverse=True)
        second = torch.sparse_coo_tensor(
            torch.stack([row, position]),
            self.edge_weight[used],
            (len(nodes), len(sources)),
            check_invariants=False,
        ).coalesce()
        features = self.propagated(1)[sources]
        return View(features if trains else compact(features), second)


def _synthetic_view(judge: str, inputs: Tensors) -> View:
    """Return what a judge sees of a synthetic graph, with its structure or A' = I."""
    if judge == "mlp":
        return View(inputs["x"])
    multiply = operator(inputs)
    first = multiply(inputs["x"])
    if judge == "sgc":
        return View(multiply(first))
    if "adjacency" not in inputs:
        return View(first)
    return View(first, multiply(torch.eye(len(first), dtype=first.dtype, device=first.device)))


def make_network(name: str, task: "GraphTask", protocol: JudgeProtocol) -> SGC | GCN:
    """Return a judge's network by name."""
    return _network(
        name, task.x.shape[1], task.graph.num_classes, protocol.width, protocol.dropout, EMBED_HOPS, task.device
    )


def _network(
    name: str, features: int, classes: int, width: int, dropout: float, hops: int, device: torch.device | str
) -> SGC | GCN:
    if name == "sgc":
        return SGC(features, classes, hops, device)
    return GCN(features, classes, width, dropout, propagates=name == "gcn", device=device)


def _named(inputs: Inputs) -> Tensors:
    if not isinstance(inputs, dict) or "x" not in inputs:
        raise ShapeError("a graph's inputs are a dict with node features 'x' and, where there is structure, edges")
    return inputs


def _tensor(batch: Batch) -> Tensor:
    if isinstance(batch.targets, dict):
        raise ShapeError("nodes have one target tensor, got a dict")
    return batch.targets


def _marked(nodes: Tensor, count: int) -> Tensor:
    """Return 1 for some nodes and 0 for the others."""
    return torch.zeros(count, device=nodes.device).index_fill_(0, nodes, 1.0)


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    return {name: tensor.to(device) for name, tensor in _named(inputs).items()}


def graph_task(
    data: "str | Path | GraphData | Any",
    model: str | ModuleFactory = "sgc",
    *,
    features: Sequence[str] = (),
    width: int = 256,
    hops: int = 2,
    split: int = 0,
    protocol: JudgeProtocol | None = None,
    device: torch.device | str = "cpu",
) -> GraphTask:
    """Return the task of distilling a graph.

    Args:
        data: ``cora``, ``citeseer``, ``pubmed``, a ``.pt`` or ``.safetensors`` file, or a torch-geometric ``Data``.
        model: the network to distil with: ``sgc``, ``gcn``, ``mlp``, or a function that returns a module with
            ``forward(x, edge_index[, edge_weight])``, which then is a judge (``model``) too.
        features: for a module, the submodule whose input is the embedding; by default its last layer.
        width: hidden units of a GCN or MLP.
        hops: of SGC.
        split: the column of masks that hold several splits.
        protocol: how judges are trained; the published protocol by default.
        device: where everything lies.

    Raises:
        ConfigError: an unknown name.
        DataError: a graph that cannot be used.
    """
    graph = data if isinstance(data, GraphData) else load_graph(data, split=split)
    if callable(model):
        network: GraphNetwork = ModuleNetwork(model, features, device)
    else:
        name = canonical(model)
        if name not in MODELS:
            raise unknown_name("graph model", model, MODELS)
        network = _network(name, graph.x.shape[1], graph.num_classes, width, 0.5, hops, device)
    return GraphTask(graph, network, protocol or JudgeProtocol(), device)
