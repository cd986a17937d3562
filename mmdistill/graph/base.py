"""What tasks of graphs share, whether their samples are the nodes of one graph or the graphs of a set."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mmdistill.abilities import Judging, in_place_of, judging_overrides
from mmdistill.graph.judges import JudgeProtocol
from mmdistill.graph.models import GraphNetwork
from mmdistill.graph.sampling import ClassMembers
from mmdistill.labels import target_loss, weighted_mean
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.statistics import BY_CLASS, has_statistics
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Tensors, one_tensor

VALIDATION_JUDGES = 3
"""Networks by which a step is validated."""

Training = TypeVar("Training", JudgeProtocol, FitProtocol)
"""How the judges of a task train."""


class GraphClassification(ABC, Generic[Training]):
    """Classification by a network that reads graphs.

    Args:
        network: the network to distil with.
        labels: classes of the training samples, ``(N,)``.
        class_count: C.
        usual: how judges train where the user does not say it.
        protocol: how they do where the user says it.
        judge_epochs: their epochs; None is the protocol's own number.
        device: where everything lies.
    Raises:
        ConfigError: epochs that are no whole number of at least 1.
    """

    judges: Sequence[str]

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
        """Return inputs by name as the network reads them; those of other samples are refused."""

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
        """Return the network's layers, the embedding last: of SGC the propagated features, of graphs the pooled one."""
        return self.network.layers(state, self.network_inputs(inputs))

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return the network with statistics of real samples in its batch norms, of a large graph a sampled part's."""
        if not has_statistics(state):
            return state
        real = self.sample_real(draws, torch.arange(len(self._members.members)), BY_CLASS)
        assert isinstance(real, ClassBatch)
        return self.network.settled(state, self.network_inputs(real.batch.inputs))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch as it is: condensation of graphs uses no augmentation."""
        return batch

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge reads of what is set of judging: no ``batch``, since it sees all samples in each step."""
        return ("epochs", "protocol")

    def judging_epochs(self, judge: str, samples: int | None) -> int:
        """Return for how many epochs a judge trains, on however many samples."""
        return self.protocol.epochs

    @property
    def validation_protocol(self) -> Training:
        """How the networks train by which a step is validated: for a third of the judges' epochs."""
        return replace(self.protocol, epochs=max(self.protocol.epochs // 3, 1))
