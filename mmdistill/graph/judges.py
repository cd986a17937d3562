"""Judges: node classifiers trained on a small graph and scored on the real one, many networks at once.

The protocol is GCond's (Jin et al., ICLR 2022): full-batch Adam with a fresh, ten times slower one from half-way, the
epoch with the best accuracy on the *original* graph's validation nodes, and test nodes scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.graph.models import GCN, SGC, GraphNetwork
from mmdistill.labels import as_probabilities, soft_cross_entropy
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Tensors

SPARSE_BELOW = 0.1
"""Propagated features with a smaller share of non-zeros are multiplied as sparse matrices."""


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
    """

    epochs: int = 600
    lr: float = 0.01
    weight_decay: float = 5e-4
    dropout: float = 0.5
    width: int = 256
    validate_every: int = 5


class View(NamedTuple):
    """What a two-layer or linear judge sees of m nodes, with everything that does not learn computed once.

    Shapes:
        first: ``(r, d)`` propagated features, dense or sparse, of the nodes that the m nodes read (SGC, MLP: of the m
            nodes themselves). second: ``(m, r)`` propagation after the hidden layer, or None for the identity.
    """

    first: Tensor
    second: Tensor | None = None


class Sample(NamedTuple):
    """What judges train on.

    Shapes:
        targets ``(m,)`` class indices or ``(m, C)`` soft labels; weight ``(m,)``.
    """

    view: View
    targets: Tensor
    weight: Tensor


class Fitted(NamedTuple):
    """The chosen judges' outputs.

    Shapes:
        test ``(S, m_test, C)`` logits; validation ``(S,)`` the chosen epoch's accuracy, NaN without validation nodes.
    """

    test: Tensor
    validation: Tensor


def compact(features: Tensor) -> Tensor:
    """Return features as a sparse matrix where few of them are non-zero."""
    density = int(torch.count_nonzero(features)) / max(features.numel(), 1)
    return features.to_sparse().coalesce() if density < SPARSE_BELOW else features


class StackedJudges:
    """S independent networks of one kind, their parameters side by side so that one product serves all.

    Args:
        network: an SGC, a GCN, or a GCN that does not propagate (MLP).
        draws: the key; network s starts from ``draws.fold("network", s)``.
        count: S.

    Shapes:
        Weights are kept as ``(d, S, h)`` (first or only layer) and ``(S, h, C)`` (second).
    """

    def __init__(self, network: SGC | GCN, draws: Draws, count: int) -> None:
        self.network, self.draws, self.count = network, draws, count
        states = [network.init(draws.fold("network", index)).params for index in range(count)]
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
        """Return ``(S, m, C)`` logits, with dropout in a training epoch."""
        first = (view.first @ params[0].flatten(1)).reshape(-1, *params[0].shape[1:]) + params[1]
        if isinstance(self.network, SGC):
            return first.transpose(0, 1)
        hidden = first.relu()
        if epoch is not None and self.network.dropout:
            hidden = hidden * self._kept(epoch, *hidden.shape) / (1 - self.network.dropout)
        out = torch.bmm(hidden.transpose(0, 1), params[2])
        if view.second is not None:
            columns = out.transpose(0, 1).flatten(1)
            out = (view.second @ columns).reshape(-1, *out.shape[::2]).transpose(0, 1)
        return out + params[3].unsqueeze(1)

    def _kept(self, epoch: int, nodes: int, count: int, width: int) -> Tensor:
        device = self.network.device
        masks = [
            self.draws.fold("network", index, "epoch", epoch).to(device).uniform(nodes, width) for index in range(count)
        ]
        return torch.stack(masks, 1) >= self.network.dropout  # type: ignore[union-attr]

    def fit(self, sample: Sample, val: tuple[View, Tensor] | None, test: View, protocol: JudgeProtocol) -> Fitted:
        """Train all networks, keep each at its best validation epoch (the last without validation), and predict.

        Args:
            sample: what to train on.
            val: validation nodes and their classes on the original graph.
            test: test nodes on the original graph.
            protocol: how.
        """
        best = [parameter.detach().clone() for parameter in self.params]
        score = torch.full((self.count,), -1.0, device=self.network.device)
        optimizer = self._optimizer(protocol.lr, protocol)
        for epoch in range(protocol.epochs):
            if epoch == protocol.epochs // 2 and epoch:
                optimizer = self._optimizer(protocol.lr / 10, protocol)
            losses = soft_cross_entropy(self.logits(self.params, sample.view, epoch), sample.targets)
            loss = (losses * sample.weight).sum() / sample.weight.sum()
            for parameter, gradient in zip(self.params, torch.autograd.grad(loss, self.params), strict=True):
                parameter.grad = gradient
            optimizer.step()
            if val is not None and is_validated(epoch, protocol):
                self._keep_best(best, score, *val)
        with torch.no_grad():
            chosen = self.params if val is None else best
            return Fitted(self.logits(chosen, test), score if val is not None else score.fill_(torch.nan))

    def _optimizer(self, lr: float, protocol: JudgeProtocol) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.params, lr=lr, weight_decay=protocol.weight_decay, fused=True)

    @torch.no_grad()
    def _keep_best(self, best: list[Tensor], score: Tensor, view: View, classes: Tensor) -> None:
        """Update in place the scores and parameters of the networks that improved."""
        accuracy = (self.logits(self.params, view).argmax(-1) == classes).float().mean(1)
        better = accuracy > score
        score[better] = accuracy[better]
        best[0][:, better] = self.params[0][:, better]
        for kept, current in zip(best[1:], self.params[1:], strict=True):
            kept[better] = current[better]


def is_validated(epoch: int, protocol: JudgeProtocol) -> bool:
    """Return whether an epoch is among those that validation picks from."""
    return (epoch + 1) % protocol.validate_every == 0 or epoch + 1 == protocol.epochs


class LoopSample(NamedTuple):
    """What any network trains on, in its own input form: inputs, targets and weight."""

    inputs: Tensors
    targets: Tensor
    weight: Tensor


def fit_one_by_one(
    network: GraphNetwork,
    sample: LoopSample,
    graph: Tensors,
    val: tuple[Tensor, Tensor] | None,
    test: Tensor,
    protocol: JudgeProtocol,
    draws: Draws,
    count: int,
) -> Fitted:
    """Train networks of any kind one after another under the same protocol as :class:`StackedJudges`.

    Args:
        network: any graph network.
        sample: what to train on.
        graph: the original graph, in the network's input form.
        val: validation nodes and their classes.
        test: test nodes.
        protocol: how; width and dropout are the network's own.
        draws: the key; network s starts from ``draws.fold("network", s)``.
        count: how many.
    """
    tests, scores = [], []
    for index in range(count):
        key = draws.fold("network", index)
        params, buffers = network.init(key)
        params = {name: parameter.requires_grad_(True) for name, parameter in params.items()}
        best, score = NetworkState(params, buffers), -1.0
        optimizer = torch.optim.Adam(params.values(), lr=protocol.lr, weight_decay=protocol.weight_decay)
        for epoch in range(protocol.epochs):
            if epoch == protocol.epochs // 2 and epoch:
                optimizer = torch.optim.Adam(params.values(), lr=protocol.lr / 10, weight_decay=protocol.weight_decay)
            optimizer.zero_grad()
            state = NetworkState(params, buffers)
            logits, updated = network.logits(state, sample.inputs, train=True, draws=key.fold("epoch", epoch))
            losses = soft_cross_entropy(logits, as_probabilities(sample.targets, logits.shape[1]))
            ((losses * sample.weight).sum() / sample.weight.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            buffers = {**buffers, **{name: buffer.detach() for name, buffer in updated.items()}}
            if val is None or not is_validated(epoch, protocol):
                continue
            with torch.no_grad():
                state = NetworkState(params, buffers)
                predicted = network.logits(state, graph)[0][val[0]].argmax(1)
            accuracy = float((predicted == val[1]).float().mean())
            if accuracy > score:
                score = accuracy
                best = NetworkState({n: p.detach().clone() for n, p in params.items()}, dict(buffers))
        with torch.no_grad():
            chosen = NetworkState(params, buffers) if val is None else best
            tests.append(network.logits(chosen, graph)[0][test])
        scores.append(torch.nan if val is None else score)
    return Fitted(torch.stack(tests), torch.tensor(scores))
