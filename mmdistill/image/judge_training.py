"""How the networks of one judge train on a set, and the test of their last epoch (Sec. 4.1).

They train by a :mod:`protocol <mmdistill.image.protocols>`. On the whole training set they take the few epochs that
its data state: digits 60, mnist 5, fashion-mnist 15; all others 30, or about 1,000 updates if that is more.

A learning rate learned with the set is part of it (``learned["inner_lr"]``), and judges train with it:

- one rate (trajectory matching): SGD at this rate, all else by the protocol;
- a rate for each step in a fixed order (``inner_parts``, ``inner_momentum``; unrolled performance matching): exactly
  the learned steps, in the learned order, once, without weight decay or augmentation; epochs do not apply;
- a rate for each step without an order: SGD at their mean.

The protocol's own rate is used, and the scores say so, if a learned rate is not positive, if the judge is a transformer
(the rates were learned with a ConvNet), or if a teacher relabels the images (the rates belong to the stored labels).
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
from mmdistill.networks.minibatches import LearnedSteps, learned_steps, useless_rates
from mmdistill.networks.module import FunctionalModule, redrawn
from mmdistill.networks.stacked import Loss, Mode, state_at
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Scores, Tensors, one_tensor

TEST_CHUNK = {"cuda": 1000, "cpu": 100}
"""Test images per forward pass, fewer if they are large; few on the CPU, to keep the layers' outputs in its caches."""


def squared_loss(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Return the mean squared error over classes from scaled targets, divided by the scale's square.

    From class indices (as one-hot rows) and probabilities, 1/C is subtracted first.

    Shapes:
        logits ``(n, C)``; targets ``(n,)`` int64 or ``(n, C)`` float; returns ``(n,)``.
    """
    return (logits - scale * regression_targets(targets, logits.shape[-1])).square().mean(-1) / scale**2


def with_learned_rate(protocol: FitProtocol, learned: Mapping[str, Tensor]) -> tuple[FitProtocol, tuple[str, ...]]:
    """Return the protocol at a set's learned rate (the mean of several), and a note if that rate is unusable."""
    if "inner_lr" not in learned:
        return protocol, ()
    if useless := useless_rates(learned):
        note = f"the learned rate {useless[0]:.3g} cannot train; judged with the protocol's {protocol.lr:g}"
        return protocol, (note,)
    return replace(protocol, optimizer="sgd", lr=float(learned["inner_lr"].double().mean())), ()


def with_learned(
    plan: Plan, protocol: Protocol, case: JudgingCase, data: Batch, learned: Mapping[str, Tensor]
) -> tuple[Plan, LearnedSteps | None, tuple[str, ...]]:
    """Return the plan at a set's learned rate, the learned steps that replace it, and notes on what is not used.

    Args:
        plan: how judges train by the protocol.
        protocol: the protocol.
        case: the judge and its kind of set.
        data: the set.
        learned: tensors learned with the set.
    """
    usable = learned if plan.teacher is None and (case.own or case.kind != "transformer") else {}
    fit, notes = with_learned_rate(plan.fit, usable)
    steps = None if notes else learned_steps(data, usable)
    if "inner_lr" in learned and not usable:
        notes = ("rates that a ConvNet learned are not a transformer's, which trains by the protocol's",)
        if plan.teacher is not None:
            notes = ("a rate learned with a set belongs to its own labels; with a teacher's the protocol's is used",)
    # Students trained at a learned rate by a loss that does not scale labels, so judges keep that loss.
    squared = plan.squared if fit is plan.fit else protocol.squared
    return replace(plan, fit=fit, squared=squared), steps, notes


def judge_loss(
    network: FunctionalModule,
    scale: float | None,
    precision: TrainingPrecision = "float32",
    temperature: float | None = None,
) -> Loss:
    """Return a network's training loss; it is cached, since the same function is compiled only once.

    Args:
        network: the network, which caches its losses.
        scale: factor of targets under the squared error; None is cross entropy.
        precision: number format of the forward pass; the loss is in float32.
        temperature: of a teacher's probabilities, to which the loss is then the divergence; None: no teacher.
    """
    key = (scale, precision, temperature)
    if key not in network.losses:
        network.losses[key] = _make_judge_loss(network, scale, precision, temperature)
    loss: Loss = network.losses[key]
    return loss


def _make_judge_loss(
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
class JudgeTraining:
    """The training of networks of one kind on one set, and their test.

    Args:
        network: the network.
        title: of the scores.
        classes: C.
        plan: how it trains.
        augment: augments a flat batch of all networks' minibatches, per sample; None: no augmentation.
        steps: learned steps that replace the protocol; None: the protocol.
        notes: what a reader of the scores must know.
    """

    network: FunctionalModule
    title: str
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
        # vmap can neither draw each network's own dropout masks nor update running statistics in place, as torch's own
        # batch norms do; on the CPU it gains nothing.
        one_by_one = (
            self.network.random
            or data.weight.device.type == "cpu"
            or any(isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, BatchNorm2d) for m in modules)
        )
        with self.network.drawn(draws):
            states = self._fit(data, n, draws, "loop" if one_by_one else "vmap")
        images, labels = test
        predictions = self.predict([state_at(states, index) for index in range(n)], normalise, images)
        predicted = torch.stack([classes for classes, _ in predictions])
        # A judge of a small set may never predict a few of many classes; half of them are enough.
        remark = partial(collapse_note, classes=self.classes, least=self.classes // 2 + 1)
        notes = self.notes
        diverged = sum(not bool(finite) for _, finite in predictions)
        if diverged:
            notes += (
                f"{diverged} of {n} networks give NaN or infinite logits: they diverged, or cannot read these images",
            )
        return scored(self.title, predicted == labels, labels, notes, seen=classes_seen(predicted), remark=remark)

    def _start(self, draws: Draws) -> NetworkState:
        """Draw a fresh network as the plan says."""
        state = self.network.init(draws)
        return state if self.plan.bias_std is None else redrawn(state, draws.fold("weights"), self.plan.bias_std)

    def _fit(self, data: Batch, n: int, draws: Draws, mode: Mode) -> NetworkState:
        """Train n networks by the learned steps, if there are any, else by the protocol."""
        scale = self.plan.label_scale if self.plan.squared else None
        temperature = None if self.plan.teacher is None else self.plan.teacher.temperature
        loss = judge_loss(self.network, scale, self.plan.precision, temperature)
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
        """Return, for each network, its predicted class of each raw image and whether all its logits are finite.

        Images are normalised once for all networks.
        """
        size = samples_at_once(TEST_CHUNK.get(images.device.type, 1000), images)
        chunks = map(normalise, torch.split(images, size))
        by_chunk = [[_predict(self.network(state, chunk)[0]) for state in states] for chunk in chunks]
        by_network = [tuple(zip(*predictions, strict=True)) for predictions in zip(*by_chunk, strict=True)]
        return [(torch.cat(classes), torch.stack(finite).all()) for classes, finite in by_network]


def _predict(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's class of the largest logit, and whether all logits are finite."""
    return logits.argmax(1), logits.isfinite().all()
