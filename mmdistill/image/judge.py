"""How a set of images is judged: train fresh networks on it, score their last epoch on test images (Sec. 4.1).

How they train is a :mod:`protocol <mmdistill.image.protocols>`. The whole training set takes the few epochs that its
data state: digits 60, mnist 5, fashion-mnist 15; all others 30, or as many as give about 1,000 updates if that is more.

A learning rate that was learned with the set is part of it (``learned["inner_lr"]``), and judges train with it:

- one rate (trajectory matching): SGD at this rate instead of the protocol's, all else as it says;
- a rate for each step with a fixed order (``inner_parts``, ``inner_momentum``; unrolled performance matching): just
  the learned steps, in the learned order, once, without weight decay or augmentation. Epochs then mean nothing;
- a rate for each step without an order: SGD at their mean.

Learned rates of which one is not positive cannot train, those of a ConvNet are not a transformer's, and all belong to
labels that are not asked of a teacher anew: there the protocol is used, and the scores say so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mmdistill.choices import TrainingPrecision
from mmdistill.classification import classes_seen, collapse_note, scored
from mmdistill.execution.portions import samples_at_once
from mmdistill.execution.precision import autocast_for
from mmdistill.image.models.layers import BatchNorm2d
from mmdistill.image.protocols import JudgingCase, Plan, Protocol
from mmdistill.image.relabelling import divergence
from mmdistill.labels import regression_targets, target_loss, weighted_mean
from mmdistill.networks.fit import fit_networks, fit_steps
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.minibatches import LearnedSteps, learned_steps
from mmdistill.networks.module import FunctionalModule, redrawn
from mmdistill.networks.stacked import Loss, Mode, state_at
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Scores, Tensors, one_tensor

TEST_CHUNK = {"cuda": 1000, "cpu": 100}
"""Test images per forward pass, fewer of large ones; on the CPU so few that the layers' outputs stay in its caches."""


def squared_loss(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Return the mean squared error over classes from scaled targets, divided by the scale's square.

    Class indices and probabilities count less 1/C.

    Shapes:
        logits ``(n, C)``; targets ``(n,)`` int64 or ``(n, C)`` float; returns ``(n,)``.
    """
    return (logits - scale * regression_targets(targets, logits.shape[-1])).square().mean(-1) / scale**2


def with_learned_rate(protocol: FitProtocol, learned: Mapping[str, Tensor]) -> tuple[FitProtocol, tuple[str, ...]]:
    """Return the protocol at the rate that a set carries (the mean of several), and a note where it cannot be used."""
    if "inner_lr" not in learned:
        return protocol, ()
    rates = learned["inner_lr"].double().reshape(-1)
    useless = rates[~((rates > 0) & rates.isfinite())].tolist()
    if useless:
        note = f"the learned rate {useless[0]:.3g} cannot train; judged with the protocol's {protocol.lr:g}"
        return protocol, (note,)
    return replace(protocol, optimizer="sgd", lr=float(rates.mean()), momentum=0.9), ()


def with_learned(
    plan: Plan, protocol: Protocol, occasion: JudgingCase, data: Batch, learned: Mapping[str, Tensor]
) -> tuple[Plan, LearnedSteps | None, tuple[str, ...]]:
    """Return a plan at the rate that was learned with a set, the steps to take instead, and notes on what is not used.

    Args:
        plan: how judges train by the protocol.
        protocol: it.
        occasion: what they judge.
        data: the set.
        learned: what was learned with it.
    """
    usable = learned if plan.teacher is None and (occasion.own or occasion.kind != "transformer") else {}
    fit, notes = with_learned_rate(plan.fit, usable)
    steps = None if notes else learned_steps(data, usable)
    if "inner_lr" in learned and not usable:
        notes = ("rates that a ConvNet learned are not a transformer's, which trains by the protocol's",)
        if plan.teacher is not None:
            notes = ("a rate learned with a set belongs to its own labels; with a teacher's the protocol's is used",)
    # A learned rate belongs to the loss that students trained by, which does not scale labels.
    squared = plan.squared if fit is plan.fit else protocol.squared
    return replace(plan, fit=fit, squared=squared), steps, notes


def training_loss(
    network: FunctionalModule,
    scale: float | None,
    precision: TrainingPrecision = "float32",
    temperature: float | None = None,
) -> Loss:
    """Return the loss that a network trains by, the same function each time, so that it is compiled once.

    Args:
        network: what trains, and keeps its losses.
        scale: of targets under the squared error; None is cross entropy.
        precision: what the network computes in; its loss is in float32.
        temperature: of a teacher's probabilities, from which the divergence is the loss; None: there is no teacher.
    """
    key = (scale, precision, temperature)
    if key not in network.losses:
        network.losses[key] = _training_loss(network, scale, precision, temperature)
    loss: Loss = network.losses[key]
    return loss


def _training_loss(
    network: FunctionalModule, scale: float | None, precision: TrainingPrecision, temperature: float | None
) -> Loss:
    def loss(state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        with autocast_for(precision, batch.weight.device, graph=True):
            output, buffers = network(state, batch.inputs, train=True)
        targets = one_tensor(batch.targets)
        if temperature is not None:
            losses = divergence(output, targets, temperature)
        else:
            losses = target_loss(output, targets) if scale is None else squared_loss(output, targets, scale)
        return weighted_mean(losses, batch.weight), buffers

    return loss


@dataclass(frozen=True)
class Judge:
    """Trains networks of one kind on a set and scores them.

    Args:
        network: the network.
        name: for the scores.
        classes: how many classes the data have.
        plan: how it trains.
        augment: augments a flat batch of all networks' minibatches, per sample; None trains on the images as they are.
        steps: the learned steps to take instead of the protocol; None: the protocol.
        notes: what a reader of the scores must know.
    """

    network: FunctionalModule
    name: str
    classes: int
    plan: Plan
    augment: Callable[[Draws, Batch], Batch] | None
    steps: LearnedSteps | None = None
    notes: tuple[str, ...] = ()

    def score(
        self, data: Batch, normalise: Callable[[Tensor], Tensor], test: tuple[Tensor, Tensor], n: int, draws: Draws
    ) -> Scores:
        """Train n networks and score them on raw test images and labels."""
        modules = list(self.network.module.modules())
        # Dropout masks, and running statistics that torch writes in place, are per network, which a batched call cannot
        # give; and on the CPU nothing is gained by one.
        alone = (
            self.network.random
            or data.weight.device.type == "cpu"
            or any(isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, BatchNorm2d) for m in modules)
        )
        with self.network.drawn(draws):
            states = self._fit(data, n, draws, "loop" if alone else "vmap")
        images, labels = test
        found = self.predict([state_at(states, index) for index in range(n)], normalise, images)
        predicted = torch.stack([own for own, _ in found])
        # Of many classes a small set may miss a few, so half of them are enough.
        remark = partial(collapse_note, classes=self.classes, least=self.classes // 2 + 1)
        notes = self.notes
        broken = sum(not bool(finite) for _, finite in found)
        if broken:
            notes += (
                f"{broken} of {n} networks give NaN or infinite logits: they diverged, or cannot read these images",
            )
        return scored(self.name, predicted == labels, labels, notes, seen=classes_seen(predicted), remark=remark)

    def _start(self, draws: Draws) -> NetworkState:
        """Draw a fresh network as the plan says."""
        state = self.network.init(draws)
        return state if self.plan.bias_std is None else redrawn(state, draws.fold("weights"), self.plan.bias_std)

    def _fit(self, data: Batch, n: int, draws: Draws, mode: Mode) -> NetworkState:
        """Train n networks by the learned steps or by the protocol."""
        scale = self.plan.label_scale if self.plan.squared else None
        temperature = None if self.plan.teacher is None else self.plan.teacher.temperature
        loss = training_loss(self.network, scale, self.plan.precision, temperature)
        if self.steps is not None:
            batches, rates, momentum, sizes = self.steps
            return fit_steps(self._start, loss, batches, rates, momentum, n, draws, mode=mode, sizes=sizes)
        return fit_networks(
            self._start,
            loss,
            data,
            self.plan.fit,
            n,
            draws,
            augment=self.augment,
            mode=mode,
            pure=not self.network.random,
        )

    @torch.no_grad()
    def predict(
        self, states: Sequence[NetworkState], normalise: Callable[[Tensor], Tensor], images: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Return each network's predicted class of each raw image, and whether all its logits are finite.

        Images are normalised once for all networks.
        """
        size = samples_at_once(TEST_CHUNK.get(images.device.type, 1000), images)
        chunks = map(normalise, torch.split(images, size))
        found = [[_predicted(self.network(state, part)[0]) for state in states] for part in chunks]
        parts = [tuple(zip(*own, strict=True)) for own in zip(*found, strict=True)]
        return [(torch.cat(classes), torch.stack(finite).all()) for classes, finite in parts]


def _predicted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit's class of each row, and whether all logits are finite."""
    return logits.argmax(1), logits.isfinite().all()
