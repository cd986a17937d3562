"""The base class of graph tasks, whose samples are the nodes of one graph or the graphs of a set."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from mmdistill.abilities import Judging, PlainJudge, in_place_of, judging_overrides
from mmdistill.graph.judges import JudgeProtocol
from mmdistill.graph.models import GraphNetwork, ModuleNetwork
from mmdistill.graph.sampling import ClassMembers
from mmdistill.labels import target_loss, weighted_mean
from mmdistill.names import known_name
from mmdistill.networks.architecture import OWN, identified
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import ModuleFactory
from mmdistill.networks.statistics import BY_CLASS, has_statistics
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Tensors, one_tensor

VALIDATION_JUDGES = 3
"""Networks trained for each validation."""

Training = TypeVar("Training", JudgeProtocol, FitProtocol)
"""How the judges of a task train."""


class GraphClassification(ABC, Generic[Training]):
    """Classification by a network that reads graphs.

    Args:
        network: the network to distil with.
        labels: classes of the training samples, ``(N,)``.
        class_count: C.
        usual: the default protocol of judges.
        protocol: the user's protocol; None is ``usual``.
        judge_epochs: epochs of judges; None is the protocol's own number.
        device: where everything lies.
    Raises:
        ConfigError: ``judge_epochs`` is no whole number of at least 1.

    Attributes:
        given: the user's modules that judge, by name.
    """

    judges: Sequence[str]
    module_kind: type[ModuleNetwork] = ModuleNetwork

    def __init__(
        self,
        network: GraphNetwork,
        labels: Tensor,
        class_count: int,
        usual: Training,
        protocol: Training | None,
        judge_epochs: int | None,
        device: torch.device | str,
    ) -> None:
        self.network, self.network_name = network, network.name
        self.given: Mapping[str, ModuleNetwork] = {OWN: network} if isinstance(network, ModuleNetwork) else {}
        self.num_classes: int | None = class_count
        self.labels: Tensor | None = labels
        self.device = torch.device(device)
        self.judging_chosen: Judging = judging_overrides(judge_epochs, protocol=in_place_of(protocol, usual))
        base = protocol or usual
        self.protocol: Training = replace(base, epochs=judge_epochs or base.epochs)
        self._labels = labels
        self._members = ClassMembers(labels, class_count)

    @abstractmethod
    def network_inputs(self, inputs: Inputs) -> Tensors:
        """Return the network's inputs by name; refuse those of other samples."""

    @abstractmethod
    def try_network(self) -> None:
        """Run the network once on a few real samples, see :func:`~mmdistill.networks.trial.try_network`."""

    @abstractmethod
    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return the network's logits and its updated buffers."""

    @abstractmethod
    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training samples of each class, or of all, without replacement."""

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network."""
        return self.network.init(draws)

    def architecture(self) -> str:
        """Return the network in words."""
        return self.network.description

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the weighted mean of :func:`~mmdistill.labels.target_loss`."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return weighted_mean(target_loss(logits, one_tensor(batch.targets)), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the layers' outputs, the embedding last (SGC: propagated features; graphs: their pooled nodes)."""
        return self.network.layers(state, self.network_inputs(inputs))

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return the network with batch norm statistics of real samples (of a large graph, of a sampled part)."""
        if not has_statistics(state):
            return state
        real = self.sample_real(draws, torch.arange(len(self._members.members)), BY_CLASS)
        assert isinstance(real, ClassBatch)
        return self.network.settled(state, self.network_inputs(real.batch.inputs))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch unchanged: graph condensation uses no augmentation."""
        return batch

    def describe_judge(self, judge: str) -> PlainJudge:
        """Return the facts of a judge: the same epochs on any samples, of which each step takes all."""
        name = known_name("judge", judge, self.judges)
        network = identified(self.given[name].description) if name in self.given else ""
        epochs = self.protocol.epochs
        return PlainJudge(name, reads=("epochs", "protocol"), network=network, epochs_on=lambda samples: epochs)

    def with_judge(self, name: str, factory: ModuleFactory) -> Self:
        """Return a copy with a module of the user's as a judge, see :class:`~mmdistill.abilities.TakesJudges`."""
        trial, other = copy.copy(self), copy.copy(self)
        trial.network = network = self.module_kind(factory, (), self.device)
        trial.try_network()
        other.given, other.judges = {**self.given, name: network}, (*self.judges, name)
        return other

    @property
    def validation_protocol(self) -> Training:
        """The protocol of networks that validate a step: the judges', for a third of their epochs."""
        return replace(self.protocol, epochs=max(self.protocol.epochs // 3, 1))
