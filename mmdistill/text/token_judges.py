"""Judge token embeddings: train networks on a set and score them on held-out texts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmdistill.networks.fit import fit_networks, fit_steps
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.minibatches import LearnedSteps, learned_steps
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.stacked import state_at
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Scores, Tensors
from mmdistill.text.attention import class_labels
from mmdistill.text.judges import epochs_for, judge_loss
from mmdistill.text.token_models import PretrainedModule
from mmdistill.text.vocabulary import Tokens

if TYPE_CHECKING:
    from mmdistill.text.token_task import TokenTask

UPDATES, FINE_TUNING_UPDATES = 300, 40
"""Updates of a network on a small set; large sets get at least :data:`LEAST_EPOCHS` epochs."""
LEAST_EPOCHS = 2
PROTOCOL = FitProtocol(epochs=0, lr=2e-3, optimizer="adam", weight_decay=0.0, batch=64, decay_at=(0.75,), restart=False)
HEAD_FACTOR = 100.0
"""Learning rate of a new head relative to the pre-trained body, which has little to learn."""
FINE_TUNING = replace(PROTOCOL, lr=3e-5, batch=32, warmup=6)
QUERY_CHUNK = 128
"""Texts per forward pass when scoring."""


def protocol_for(network: FunctionalModule) -> FitProtocol:
    """Return how a network trains on a set without learned steps; its epochs follow from :data:`UPDATES`."""
    if isinstance(network, PretrainedModule):
        return replace(FINE_TUNING, faster=((f"{network.head}.", HEAD_FACTOR),))
    return PROTOCOL


@dataclass(frozen=True)
class TokenJudge:
    """Train networks of one kind on a set and score them.

    If the set carries learned steps (an ``inner_lr`` for each, ``inner_parts``, ``inner_momentum``), networks take
    exactly these, in order. Otherwise they train by the protocol, with soft cross entropy, or squared error if labels
    are not probabilities.

    Args:
        task: the task, which looks up vectors.
        network: the network to train.
        name: the judge's name in scores.
        protocol: how to train without learned steps.
        learned: values that were learned with the samples.
    """

    task: "TokenTask"
    network: FunctionalModule
    name: str
    protocol: FitProtocol
    learned: Mapping[str, Tensor]

    def score(self, data: Batch, queries: tuple[Tokens, Tensor], draws: Draws, n: int) -> Scores:
        """Train n networks and score them on held-out texts.

        Args:
            data: the training samples, as vectors or as token numbers, which are looked up batch by batch.
            queries: the tokens and the classes of held-out texts.
            draws: the key of everything random.
            n: number of networks.
        """
        device = self.task.device
        data = data.map(lambda tensor: tensor.to(device))
        steps = learned_steps(data, self.learned)
        with self.network.drawn(draws):
            states = self._fit(data, n, draws) if steps is None else self._take_steps(steps, n, draws)
        labels = queries[1].to(device)
        predictions = torch.stack([self.predict(state_at(states, index), queries[0]) for index in range(n)])
        return self.task.scores_of(self.name, predictions, labels)

    def epochs_on(self, count: int) -> int:
        """Return the protocol's epochs, or enough for the usual number of updates on ``count`` samples."""
        updates = FINE_TUNING_UPDATES if isinstance(self.network, PretrainedModule) else UPDATES
        return epochs_for(self.protocol, count, updates, LEAST_EPOCHS)

    def _take_steps(self, steps: LearnedSteps, n: int, draws: Draws) -> NetworkState:
        """Take the learned steps, with the loss that they were learned for (including attention labels)."""

        def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
            return self.task.loss(state, batch, train=True), state.buffers

        batches, rates, momentum, sizes = steps
        return fit_steps(self.network.init, loss, batches, rates, momentum, n, draws, mode="loop", sizes=sizes)

    def _fit(self, data: Batch, n: int, draws: Draws) -> NetworkState:
        labels = class_labels(data.targets)
        protocol = replace(self.protocol, epochs=self.epochs_on(len(labels)))
        loss = judge_loss(self.network, self.task.vectors, labels)
        return fit_networks(self.network.init, loss, data._replace(targets=labels), protocol, n, draws, mode="loop")

    @torch.no_grad()
    def predict(self, state: NetworkState, tokens: Tokens) -> Tensor:
        """Return the predicted class of each text; texts are batched by length to reduce padding."""
        lengths = tokens.mask.sum(1)
        order = lengths.argsort()
        predictions = torch.empty(len(lengths), dtype=torch.long, device=self.task.device)
        for chunk in torch.split(order, QUERY_CHUNK):
            longest = int(lengths[chunk].max())
            inputs = self.task.look_up(tokens.ids[chunk, :longest], tokens.mask[chunk, :longest])
            predictions[chunk] = self.network(state, inputs)[0].argmax(1)
        return predictions
