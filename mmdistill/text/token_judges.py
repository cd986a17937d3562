"""How networks on token embeddings are judged: trained on a set, scored on held-out texts."""

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
"""Updates of a network on a small set; a large one is passed at least :data:`LEAST_EPOCHS` times."""
LEAST_EPOCHS = 2
PROTOCOL = FitProtocol(epochs=0, lr=2e-3, optimizer="adam", weight_decay=0.0, batch=64, decay_at=(0.75,), restart=False)
HEAD_FACTOR = 100.0
"""How much faster than the pre-trained body a new head learns: it has everything to learn, and the body little."""
FINE_TUNING = replace(PROTOCOL, lr=3e-5, batch=32, warmup=6)
QUERY_CHUNK = 128
"""Texts per forward pass in scoring."""


def protocol_for(network: FunctionalModule) -> FitProtocol:
    """Return how a network trains on a set that carries no steps; its epochs follow from :data:`UPDATES`."""
    if isinstance(network, PretrainedModule):
        return replace(FINE_TUNING, faster=((f"{network.head}.", HEAD_FACTOR),))
    return PROTOCOL


@dataclass(frozen=True)
class TokenJudge:
    """Trains networks of one kind on a set and scores them.

    A set that carries its steps (``inner_lr`` for each of them, ``inner_parts``, ``inner_momentum``) is used with just
    these, in their order. Any other trains by the protocol: with the soft cross entropy, or with the squared error
    where labels are no probabilities.

    Args:
        task: looks vectors up.
        network: what is trained.
        name: for the scores.
        protocol: how.
        learned: what was learned beside the samples.
    """

    task: "TokenTask"
    network: FunctionalModule
    name: str
    protocol: FitProtocol
    learned: Mapping[str, Tensor]

    def score(self, data: Batch, queries: tuple[Tokens, Tensor], draws: Draws, n: int) -> Scores:
        """Train n networks and return their accuracy on tokens and labels.

        Args:
            data: what is trained on, as vectors or as token numbers, which are looked up batch by batch.
            queries: the tokens and the classes of held-out texts.
            draws: the key of everything random.
            n: how many networks.
        """
        device = self.task.device
        data = data.map(lambda tensor: tensor.to(device))
        steps = learned_steps(data, self.learned)
        with self.network.drawn(draws):
            states = self._fit(data, n, draws) if steps is None else self._take(steps, n, draws)
        labels = queries[1].to(device)
        found = torch.stack([self.predict(state_at(states, index), queries[0]) for index in range(n)])
        return self.task.scores_of(self.name, found, labels)

    def epochs_on(self, count: int) -> int:
        """Return the protocol's epochs, or as many as make the usual number of updates on so many samples."""
        updates = FINE_TUNING_UPDATES if isinstance(self.network, PretrainedModule) else UPDATES
        return epochs_for(self.protocol, count, updates, LEAST_EPOCHS)

    def _take(self, steps: LearnedSteps, n: int, draws: Draws) -> NetworkState:
        """Train by the learned steps, with the loss that they were learned for (attention labels included)."""

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
        """Return the predicted class of each text; texts of like length go together, so that little is padded."""
        lengths = tokens.mask.sum(1)
        order = lengths.argsort()
        found = torch.empty(len(lengths), dtype=torch.long, device=self.task.device)
        for chunk in torch.split(order, QUERY_CHUNK):
            longest = int(lengths[chunk].max())
            inputs = self.task.look_up(tokens.ids[chunk, :longest], tokens.mask[chunk, :longest])
            found[chunk] = self.network(state, inputs)[0].argmax(1)
        return found
