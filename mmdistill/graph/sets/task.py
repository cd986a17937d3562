"""The task of graph classification: many small labelled graphs, distilled into a few."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.checks import require_kind, require_no_features, require_no_width, require_sizes
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.execution.isolation import isolated
from mmdistill.graph.base import VALIDATION_JUDGES, GraphClassification
from mmdistill.graph.judges import fit_modules, scores_of
from mmdistill.graph.models import GraphNetwork, ModuleNetwork
from mmdistill.graph.sampling import padded_rows
from mmdistill.graph.sets.data import TU, GraphSet, load_graph_set
from mmdistill.graph.sets.models import GCN, WIDTH, GraphClassifier, graph_inputs
from mmdistill.graph.sets.own import GraphModule
from mmdistill.graph.sets.synthetic import real_graphs
from mmdistill.labels import LabelKind, require_targets, target_loss, weighted_mean
from mmdistill.names import called, known_name
from mmdistill.networks.architecture import task_line
from mmdistill.networks.best_state import Selection
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import ModuleFactory
from mmdistill.networks.stacked import Mode, state_at
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
)

PROTOCOL = FitProtocol(epochs=300, lr=0.01, optimizer="adam", weight_decay=5e-4, batch=None)
"""Full-batch Adam with a fresh, ten times slower one from half-way, as for node classifiers; DosCond's code takes 500
epochs of minibatches at a tenth of the rate."""
VALIDATE_EVERY = 5
PADDED_BYTES = 2**26
"""The most memory that a real batch's edges may take when padded; larger batches are joined side by side."""
TOGETHER, TOGETHER_ELSEWHERE = 2**20, 2**26
"""Nodes x networks x width up to which judges train in one batched call, on a CPU and on other devices (not measured).

On one thread, below this bound, batched calls on dense graphs take down to half the time of networks one after the
other. Above it, the latter are no slower, twice as fast on graphs side by side, and take the memory of one network.
"""
READ_NODES = 2**15
"""Nodes times networks in a forward pass without gradients."""


class GraphSetTask(GraphClassification[FitProtocol]):
    """Graph classification.

    Args:
        graphs: the checked set.
        width: units of the layers of the convolutional network ``gcn``.
        protocol: how judges are trained, on all graphs in each step; None is :data:`PROTOCOL`.
        device: where everything lies.
        judge_epochs: epochs of judges; None is the protocol's own number.
        own: a user's module to distil with, which then is also the default judge, ``model``.
    Raises:
        ConfigError: a protocol of minibatches, or epochs that are no whole number of at least 1.
    """

    module_kind = GraphModule

    def __init__(
        self,
        graphs: GraphSet,
        width: int = WIDTH,
        protocol: FitProtocol | None = None,
        device: torch.device | str = "cpu",
        *,
        judge_epochs: int | None = None,
        own: GraphModule | None = None,
    ) -> None:
        require_kind(FitProtocol, protocol=protocol)
        if protocol is not None and (protocol.batch is not None or protocol.visits is not None):
            raise ConfigError("judges of graphs train on all of them in each step; leave batch and visits None")
        features, labels = graphs.x.shape[1], graphs.y[graphs.train]
        classifier = GraphClassifier(features, graphs.num_classes, width, device=device)
        super().__init__(own or classifier, labels, graphs.num_classes, PROTOCOL, protocol, judge_epochs, device)
        self.judges: Sequence[str] = (*self.given, GCN)
        self.graphs, self.width, self.classifier = graphs, width, classifier
        self._largest = int(graphs.sizes[graphs.train].max())

    def __repr__(self) -> str:
        sizes = f"{len(self.graphs.train):,} training and {len(self.graphs.test):,} test graphs"
        return task_line(self, self.graphs.name, sizes)

    def network_inputs(self, inputs: Inputs) -> Tensors:
        """Return the inputs of graphs by name, see :func:`~mmdistill.graph.sets.models.graph_inputs`."""
        return graph_inputs(inputs)

    def try_network(self) -> None:
        """Run the network once on two graphs."""
        graphs = self.graphs
        inputs = {name: tensor.to(self.device) for name, tensor in graphs.joined(graphs.train[:2]).items()}
        try_network(self, inputs, f"graphs whose nodes have {graphs.x.shape[1]} features", graphs.num_classes)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return the graphs' logits, ``(n, C)``, and the network's updated buffers.

        Raises:
            ShapeError: the network returns something else.
        """
        graphs = graph_inputs(inputs)
        logits, buffers = self.network.logits(state, graphs, train=train, draws=draws)
        expected = (len(graphs["sizes"] if "sizes" in graphs else graphs["x"]), self.graphs.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ShapeError(f"the network returned {shape}; it must return (graphs, classes) logits {expected}")
        return logits, buffers

    def stored(self, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        """Return synthetic graphs, as :func:`~mmdistill.graph.sets.synthetic.real_graphs` builds them."""
        return real_graphs(self, budget, settings, label, draws)

    def select(self, indices: Tensor) -> Batch:
        """Return training graphs, padded to the largest of them.

        Shapes:
            indices ``(..., n)`` positions in ``labels``; x ``(..., n, m, d)`` and so on.

        Raises:
            DataError: padding takes too much memory.
        """
        return self._pad(indices.cpu())

    def _pad(self, indices: Tensor, nodes: int | None = None) -> Batch:
        if nodes == self._largest and self._fits(len(self._labels), self.graphs.x.shape[1]):
            table, chosen = self._table, indices.to(self.device, non_blocking=True)
            inputs = {name: tensor[chosen] for name, tensor in table.items()}
        else:
            flat = self.graphs.padded(self.graphs.train[indices.flatten()], nodes)
            inputs = {
                name: tensor.reshape(*indices.shape, *tensor.shape[1:]).to(self.device) for name, tensor in flat.items()
            }
        return Batch(inputs, self._labels[indices].to(self.device), torch.ones(indices.shape, device=self.device))

    @functools.cached_property
    def _table(self) -> Tensors:
        """All training graphs, padded to the largest, on the device."""
        padded = self.graphs.padded(self.graphs.train, self._largest)
        return {name: tensor.to(self.device) for name, tensor in padded.items()}

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training graphs of each class, or of all, without replacement.

        Graphs are padded to the largest training graph, so that all batches have one shape, which can be compiled and
        captured. Where that takes too much memory, and for users' modules, they are joined side by side as one graph,
        shared by all classes, with the draw in the weights.
        """
        if classes is None:
            chosen = draws.to("cpu").permutation(len(self._labels))[:n]
            return self._pad(chosen, self._largest) if self._fits(len(chosen)) else self._join(chosen)
        members = self._members.draw(draws, classes, n)
        if self._fits(len(members) * max(len(ids) for ids in members)):
            table, present = padded_rows(members)
            return ClassBatch(self._pad(table, self._largest)._replace(weight=present.to(self.device)), Dims(0, 0))
        row = torch.repeat_interleave(torch.arange(len(members)), torch.tensor([len(ids) for ids in members]))
        membership = (torch.arange(len(members))[:, None] == row).to(self.device, torch.float32)
        return share_classes(self._join(torch.cat(members)), membership)

    def _fits(self, count: int, features: int = 0) -> bool:
        """Return whether ``count`` graphs with ``features``, padded to the largest, fit in :data:`PADDED_BYTES`.

        Users' modules read no padded graphs.
        """
        is_module = isinstance(self.network, GraphModule)
        return not is_module and 4 * count * self._largest * (self._largest + features) <= PADDED_BYTES

    def training_batch(self) -> Batch:
        """Return all training graphs as networks train on them."""
        return self._join(torch.arange(len(self._labels)))

    def _join(self, indices: Tensor) -> Batch:
        """Join training graphs side by side, whatever their sizes."""
        inputs = {
            name: tensor.to(self.device) for name, tensor in self.graphs.joined(self.graphs.train[indices]).items()
        }
        return Batch(inputs, self._labels[indices].to(self.device), torch.ones(len(indices), device=self.device))

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Train n networks on synthetic graphs (None: on all training graphs), each kept at its best validation epoch.

        Raises:
            ConfigError: an unknown judge.
            ShapeError: another number of features than the real graphs', or an adjacency of another size.
        """
        name = known_name("judge", judge, self.judges)
        if synthetic is None:
            synthetic = self.training_batch()
        network = self.given.get(name, self.classifier)
        states = self._fit(network, synthetic, draws, n, self.protocol)
        hits = self._hits(network, states, self.graphs.test)
        truth = self.graphs.y[self.graphs.test].to(self.device)
        return scores_of(name, hits, truth, self.graphs.names)

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the mean validation accuracy of a few networks trained for a third of the judges' epochs."""
        states = self._fit(self.network, synthetic, draws, VALIDATION_JUDGES, self.validation_protocol)
        return float(self._hits(self.network, states, self.graphs.val).mean())

    def describe(self) -> TaskInfo:
        """Return what identifies this task."""
        graphs = self.graphs
        return TaskInfo(
            "graph-set",
            graphs.name,
            "ipc",
            len(self._labels),
            graphs.stored_bytes,
            graphs.fingerprint,
            graphs.names,
            {"graphs": len(graphs.y), "notes": list(graphs.notes)},
            test_fingerprint=graphs.test_fingerprint,
            forms={"inputs.x": (None, graphs.x.shape[1])},
        )

    def _place(self, synthetic: Batch) -> Batch:
        """Check synthetic graphs, and move them to the device for judges.

        Raises:
            ShapeError: another number of features than the real graphs', or an adjacency of another size.
        """
        data = synthetic.map(lambda t: t.detach().to(self.device))
        inputs, count, width = graph_inputs(data.inputs), len(data.weight), self.graphs.x.shape[1]
        x, padded = inputs["x"], "present" in inputs
        if x.ndim != (3 if padded else 2) or x.shape[-1] != width:
            raise ShapeError(f"synthetic graphs have node features (n, m, {width}), got {tuple(x.shape)}")
        of_nodes = (count, x.shape[1])
        if padded and (inputs["present"].shape != of_nodes or inputs["adjacency"].shape != (*of_nodes, x.shape[1])):
            shapes = f"{tuple(inputs['adjacency'].shape)} and {tuple(inputs['present'].shape)}"
            raise ShapeError(
                f"{count} graphs of {x.shape[1]} nodes have an adjacency {(*of_nodes, x.shape[1])} and "
                f"present {of_nodes}, got {shapes}"
            )
        require_targets(one_tensor(data.targets), count, self.graphs.num_classes, self.graphs.name)
        return data

    def _fit(
        self, network: GraphNetwork, synthetic: Batch, draws: Draws, n: int, protocol: FitProtocol
    ) -> NetworkState:
        """Train n networks; return them stacked, each at its best validation epoch."""
        data, draws = self._place(synthetic), draws.to(self.device)
        score = functools.partial(self._hits, network, graphs=self.graphs.val)
        selection = Selection(lambda states: score(states).mean(1), VALIDATE_EVERY)
        if isinstance(network, ModuleNetwork):
            return fit_modules(network, data, protocol, selection, draws, n)

        def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
            losses = target_loss(network.logits(state, graph_inputs(batch.inputs))[0], one_tensor(batch.targets))
            return weighted_mean(losses, batch.weight), state.buffers

        units = graph_inputs(data.inputs)["x"].shape[:-1].numel() * n * self.width
        bound = TOGETHER if self.device.type == "cpu" else TOGETHER_ELSEWHERE
        mode: Mode = "vmap" if units <= bound else "loop"
        return fit_networks(network.init, loss, data, protocol, n, draws, selection=selection, mode=mode)

    @torch.no_grad()
    def _hits(self, network: GraphNetwork, states: NetworkState, graphs: Tensor) -> Tensor:
        """Return 1 where one of S stacked networks classifies a graph correctly, else 0, ``(S, g)``."""
        networks = len(next(iter(states.params.values())))
        nodes = self.graphs.sizes[graphs].cumsum(0) * networks

        def read(inputs: Tensors) -> Tensor:
            if isinstance(network, ModuleNetwork):
                return torch.stack([network.logits(state_at(states, index), inputs)[0] for index in range(networks)])
            logits: Tensor = torch.func.vmap(lambda params: network.logits(NetworkState(params, {}), inputs)[0])(
                states.params
            )
            return logits

        hits = []
        # Portions of about READ_NODES nodes: the graphs in which the running count of nodes has the same quotient.
        for part in torch.split(graphs, torch.unique_consecutive(nodes // READ_NODES, return_counts=True)[1].tolist()):
            inputs = {name: tensor.to(self.device) for name, tensor in self.graphs.joined(part).items()}
            hits.append((read(inputs).argmax(-1) == self.graphs.y[part].to(self.device)).double())
        return torch.cat(hits, 1)


@isolated
def graph_set_task(
    data: "str | Path | Sequence[Any] | Mapping[str, Sequence[Any]] | GraphSet",
    *,
    model: str | ModuleFactory = GCN,
    features: str | Sequence[str] = (),
    width: int | None = None,
    seed: int = 0,
    name: str | None = None,
    judge_epochs: int | None = None,
    protocol: FitProtocol | None = None,
    device: torch.device | str = "auto",
) -> GraphSetTask:
    """Return the task of distilling a set of graphs.

    Args:
        data: a name (see ``mmdistill data``), a folder in the TU layout, or a list (or data set, or ``.pt`` file of a
            list) of torch-geometric's ``Data`` with a class ``y`` each; or such lists by name of split,
            ``{"train": ..., "val": ..., "test": ...}``; a missing one is held out of the training graphs.
        model: the network to distil with: ``gcn``, or a function that returns a module with ``forward(x, edge_index,
            batch)``, and perhaps ``edge_weight``, which then is also the default judge (``model``).
        features: for a module, the submodule whose input is a graph's embedding; by default its last linear layer.
        width: units of the layers of ``gcn``; None is :data:`~mmdistill.graph.sets.models.WIDTH`.
        seed: of the random split, and of graphs held out of given splits.
        name: of data in memory, for reports and for comparing runs.
        judge_epochs: epochs of judges; None is the protocol's own number.
        protocol: how judges are trained; None is :data:`PROTOCOL`.
        device: where everything lies; ``auto`` is a CUDA device where there is one, else the CPU.

    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.

    Raises:
        ConfigError: an unknown name, a size below 1, a width of a module, a module that cannot run on these graphs, or
            a protocol of minibatches.
        DataError: files or graphs that are missing or cannot be used.
    """
    seed = checked_seed(seed)
    require_sizes(width=width, judge_epochs=judge_epochs)
    require_kind(FitProtocol, protocol=protocol)
    device = choose_device(device)
    graphs = called(data if isinstance(data, GraphSet) else load_graph_set(data, seed=seed), name, data, TU)
    own: GraphModule | None = None
    if callable(model):
        require_no_width(width, "a module of your own")
        own = GraphModule(model, features, device)
    else:
        require_no_features(features, known_name("network of graphs", model, (GCN,)))
    task = GraphSetTask(graphs, width or WIDTH, protocol, device, judge_epochs=judge_epochs, own=own)
    task.try_network()
    return task
