"""Judges: node classifiers trained on a small graph and scored on the real one, many networks at once.

The protocol is that of GCond's GCN (Jin et al., ICLR 2022): full-batch Adam with a fresh, ten times slower one from
half-way, the epoch with the best accuracy on the *original* graph's validation nodes, and test nodes scored once. Here
all networks train by it; GCond's comparison of architectures trains other networks without dropout, and some of them
differ from ours of the same name (its SGC is a perceptron that propagates, its APPNP takes two steps). Here weights
start from Glorot's distribution and biases from zero; GCond's GCN draws both uniformly by the number of inputs, which
makes no difference on Cora (propagated means 81.1 and 80.4, three networks).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdistill.checks import require_at_least, require_below_one, require_positive
from mmdistill.classification import scored, unrecognised
from mmdistill.graph.data import GraphData
from mmdistill.graph.models import GCN, SGC, ModuleNetwork, named
from mmdistill.graph.propagation import constant_product
from mmdistill.graph.scene import Part, View
from mmdistill.graph.sources import SOURCES
from mmdistill.labels import target_loss, weighted_mean
from mmdistill.networks.best_state import Selection, is_scored
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.stacked import state_at
from mmdistill.networks.watching import tell_watchers
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Scores, Tensors, one_tensor

PORTION_BYTES = 2**23
"""Bytes of hidden units that a CPU computes at a time: of 2**18 to 2**24, sizes from 2**22 on were fastest."""
READ_BYTES = 2**28
"""Bytes of hidden units that other devices compute at a time."""
HARDLY_RECOGNISED = 0.1
"""A class whose test accuracy falls below this is reported."""


@dataclass(frozen=True)
class JudgeProtocol:
    """How a judge is trained.

    Args:
        epochs: full-batch steps.
        lr: Adam's rate; a fresh Adam at a tenth of it takes over half-way.
        weight_decay: L2 coefficient.
        dropout: of the hidden layer.
        width: hidden units.
        validate_every: epochs between validations, the last epoch always among them. The published code validates
            each epoch; every fifth picks from a fifth of the candidates at a fifth of the cost.
    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 600
    lr: float = 0.01
    weight_decay: float = 5e-4
    dropout: float = 0.5
    width: int = 256
    validate_every: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, {"epochs": 1, "width": 1, "validate_every": 1, "weight_decay": 0.0})
        require_positive(self, "lr")
        require_below_one(self, "dropout")


class Sample(NamedTuple):
    """The nodes that judges train on, with their targets and weights.

    Shapes:
        targets ``(m,)`` class indices or ``(m, C)`` soft labels; weight ``(m,)``.
    """

    view: View
    targets: Tensor
    weight: Tensor


class StackedJudges:
    """S independent networks of one kind, their parameters side by side so that one product serves all.

    Args:
        network: an SGC, a GCN, or a GCN that does not propagate (MLP).
        draws: the key; network s starts from ``draws.fold("network", s)``.
        which: the numbers s of the S networks.

    Shapes:
        Weights are stored as ``(d, S, h)`` (first or only layer) and ``(S, h, C)`` (second).
    """

    def __init__(self, network: SGC | GCN, draws: Draws, which: Sequence[int]) -> None:
        self.network, self.draws, self.which = network, draws, which
        states = [network.init(draws.fold("network", index)).params for index in which]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        if isinstance(network, SGC):
            self.params = [stacked["weight"].permute(2, 0, 1).contiguous(), stacked["bias"]]
        else:
            self.params = [
                stacked["first.weight"].permute(2, 0, 1).contiguous(),
                stacked["first.bias"],
                stacked["second.weight"].mT.contiguous(),
                stacked["second.bias"],
            ]
        for parameter in self.params:
            parameter.requires_grad_(True)

    def logits(self, params: Sequence[Tensor], view: View, epoch: int | None = None) -> Tensor:
        """Return ``(S, m, C)`` logits, with dropout in a training epoch.

        Hidden units of many nodes are computed in portions, and recomputed in the backward pass, which bounds memory
        and, on a CPU, keeps a portion in its cache.
        """
        mask = None if epoch is None else self._dropout_mask(epoch, view.first)
        portion_bytes = PORTION_BYTES if view.first.device.type == "cpu" else READ_BYTES
        rows = max(portion_bytes // (4 * params[0][0].numel()), 1)
        if view.first.layout == torch.strided and len(view.first) > rows:
            compute = partial(checkpoint, self._portion_logits, params, use_reentrant=False, preserve_rng_state=False)
            portions = [View(part) for part in torch.split(view.first, rows)]
            masks = [None] * len(portions) if mask is None else torch.split(mask, rows)
            logits = torch.cat([compute(*part) for part in zip(portions, masks, strict=True)], 1)
        else:
            logits = self._portion_logits(params, view, mask)
        return self._propagate_last(params, logits, view)

    def _portion_logits(self, params: Sequence[Tensor], view: View, mask: Tensor | None) -> Tensor:
        """Return ``(S, r, C)`` logits before the last propagation and bias; SGC's final logits."""
        first = view.times(params[0].flatten(1)).reshape(-1, *params[0].shape[1:]) + params[1]
        if isinstance(self.network, SGC):
            return first.transpose(0, 1)
        hidden = first.relu()
        if mask is not None:
            hidden = hidden * mask / (1 - self.network.dropout)
        return torch.bmm(hidden.transpose(0, 1), params[2])

    def _propagate_last(self, params: Sequence[Tensor], logits: Tensor, view: View) -> Tensor:
        """Apply the last propagation and bias to what :meth:`_portion_logits` returns: ``(S, m, C)`` logits."""
        if isinstance(self.network, SGC):
            return logits
        if view.second is not None:
            columns = logits.transpose(0, 1).flatten(1)
            logits = constant_product(view.second, view.back, columns).reshape(-1, *logits.shape[::2]).transpose(0, 1)
        return logits + params[3].unsqueeze(1)

    def _dropout_mask(self, epoch: int, features: Tensor) -> Tensor | None:
        """Return the mask ``(r, S, h)`` of hidden units that an epoch keeps; None where it keeps all."""
        if isinstance(self.network, SGC) or not self.network.dropout:
            return None
        nodes, width = len(features), self.network.width
        keys = [self.draws.fold("network", index, "epoch", epoch).to(features.device) for index in self.which]
        return torch.stack([key.uniform(nodes, width) >= self.network.dropout for key in keys], 1)

    @torch.no_grad()
    def read(self, params: Sequence[Tensor], view: View) -> Tensor:
        """Return :meth:`logits` without a gradient."""
        return self.logits(params, view)

    def fit(
        self, sample: Sample, val: tuple[View, Tensor] | None, protocol: JudgeProtocol
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Train all networks and return each at its best validation epoch (the last without validation).

        Args:
            sample: what to train on.
            val: validation nodes and their classes on the original graph.
            protocol: how to train.

        Shapes:
            Returns the parameters, for :meth:`read`, and that epoch's accuracy ``(S,)``, NaN without validation nodes.
        """
        best = [parameter.detach().clone() for parameter in self.params]
        score = torch.full((len(self.which),), -1.0, device=self.network.device)
        optimizer = self._optimizer(protocol.lr, protocol)
        for epoch in range(protocol.epochs):
            if epoch == protocol.epochs // 2 and epoch:
                optimizer = self._optimizer(protocol.lr / 10, protocol)
            losses = target_loss(self.logits(self.params, sample.view, epoch), sample.targets)
            loss = weighted_mean(losses, sample.weight)
            for parameter, gradient in zip(self.params, torch.autograd.grad(loss, self.params), strict=True):
                parameter.grad = gradient
            optimizer.step()
            tell_watchers(epoch + 1, protocol.epochs)
            if val is not None and is_scored(epoch + 1, protocol.epochs, protocol.validate_every):
                self._keep_best(best, score, *val)
        return (self.params, score.fill_(torch.nan)) if val is None else (best, score)

    def _optimizer(self, lr: float, protocol: JudgeProtocol) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.params, lr=lr, weight_decay=protocol.weight_decay, fused=True)

    @torch.no_grad()
    def _keep_best(self, best: list[Tensor], score: Tensor, view: View, classes: Tensor) -> None:
        """Update in place the scores and parameters of the networks that improved."""
        accuracy = (self.read(self.params, view).argmax(-1) == classes).float().mean(1)
        better = accuracy > score
        score.copy_(torch.where(better, accuracy, score))
        for index, (saved, current) in enumerate(zip(best, self.params, strict=True)):
            network_axis = 1 if index == 0 else 0  # weights of the first layer are (d, S, h)
            mask = better.view(*[-1 if axis == network_axis else 1 for axis in range(saved.ndim)])
            saved.copy_(torch.where(mask, current, saved))


def protocol_for(graph: GraphData) -> JudgeProtocol:
    """Return a data set's published protocol; for a user's graph, one chosen by its size.

    Graphs of 50,000 nodes or more are validated every twentieth epoch, since a pass over one costs more than twenty
    steps on the synthetic nodes. Without a published weight decay they take none, like ogbn-arxiv.
    """
    large = JudgeProtocol(weight_decay=0.0, validate_every=20)
    protocol = large if graph.is_large else JudgeProtocol()
    source = SOURCES.get(graph.name)
    if source is None:
        return protocol
    decay = protocol.weight_decay if source.weight_decay is None else source.weight_decay
    return replace(protocol, weight_decay=decay, dropout=source.dropout)


def scores_of(judge: str, hits: Tensor, truth: Tensor, class_names: Sequence[str]) -> Scores:
    """Return accuracies, with a warning for each class that is hardly recognised.

    Args:
        judge: the judge's name.
        hits: ``(S, m)``, 1 where one of S networks is right.
        truth: ``(m,)`` classes.
        class_names: their names.
    """
    remark = partial(unrecognised, class_names=class_names, least=HARDLY_RECOGNISED)
    return scored(judge, hits, truth, remark=remark)


def fit_apart(
    network: ModuleNetwork, sample: Batch, val: Part | None, protocol: JudgeProtocol, draws: Draws, n: int
) -> NetworkState:
    """Train networks of any kind one after another under the same protocol as :class:`StackedJudges`.

    Args:
        network: any module.
        sample: what to train on.
        val: validation nodes, if any.
        protocol: how to train; width and dropout are the network's own.
        draws: the key; network s starts from ``draws.fold("init", s)``.
        n: the number of networks.

    Returns:
        The networks, stacked, each at its best validation epoch (the last without validation).
    """
    fit_protocol = FitProtocol(protocol.epochs, protocol.lr, "adam", weight_decay=protocol.weight_decay, batch=None)
    selection = None
    if val is not None:

        def score(states: NetworkState) -> Tensor:
            return (read_apart(network, states, val).argmax(-1) == val.classes).double().mean(1)

        selection = Selection(score, protocol.validate_every)
    return fit_modules(network, sample, fit_protocol, selection, draws, n)


def fit_modules(
    network: ModuleNetwork, sample: Batch, protocol: FitProtocol, selection: Selection | None, draws: Draws, n: int
) -> NetworkState:
    """Train networks of any kind one after another, on all samples in each step.

    Args:
        network: any module, of nodes or of graphs.
        sample: what to train on.
        protocol: how to train, without minibatches.
        selection: chooses the best epoch; None takes the last.
        draws: the key; network s starts from ``draws.fold("init", s)``.
        n: the number of networks.

    Returns:
        The networks, stacked.
    """
    data = sample._replace(inputs=network.precomputed(named(sample.inputs)))

    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        key = Draws(int(noise["dropout"]), ("dropout",))
        logits, buffers = network.logits(state, named(batch.inputs), train=True, draws=key)
        return weighted_mean(target_loss(logits, one_tensor(batch.targets)), batch.weight), buffers

    def keys(key: Draws, count: int) -> Tensors:
        """Return a key for each network, which does not depend on the number of networks."""
        return {"dropout": torch.tensor([key.fold(index).integer() for index in range(count)])}

    return fit_networks(network.init, loss, data, protocol, n, draws, noise=keys, selection=selection, mode="loop")


@torch.no_grad()
def read_apart(network: ModuleNetwork, states: NetworkState, part: Part) -> Tensor:
    """Return the logits ``(S, m, C)`` of S stacked networks on the nodes of a part, one network after another."""
    networks, inputs = len(next(iter(states.params.values()))), part.scene.inputs(network.normalised)
    logits = [network.logits(state_at(states, index), inputs)[0][part.nodes] for index in range(networks)]
    return torch.stack(logits)
