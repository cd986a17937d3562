"""Train many networks at once on one small set; evaluation and experts rest on it."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.execution.allocator import keep_freed_memory
from mmdistill.networks.best_state import Best, Selection, better_of, is_scored
from mmdistill.networks.curriculum import CurriculumRows, epoch_offsets
from mmdistill.networks.fit_protocol import (
    FitProtocol,
    decay_epochs,
    epoch_rate,
    rate_factor,
    visits_and_size,
)
from mmdistill.networks.sharpness import uphill, without_gap
from mmdistill.networks.stacked import GradientEngine, Loss, Mode, stack_states, stacked_gradients
from mmdistill.networks.statistics import has_statistics
from mmdistill.networks.watching import tell_watchers
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors, shares_inputs, take


@dataclass(frozen=True)
class SavedTraining:
    """A training's progress, with all that resuming it needs.

    Args:
        epoch: completed epochs.
        step: completed steps of the current epoch.
        state: the networks, stacked along a leading axis.
        optimizer: the optimizer's ``state_dict``; None if it has no state.
    """

    epoch: int
    step: int
    state: NetworkState
    optimizer: dict[str, Any] | None


class LiveTraining(NamedTuple):
    """A training between two steps.

    Args:
        epoch: completed epochs.
        step: completed steps of the current epoch; 0 between two epochs.
        state: the live networks, stacked along a leading axis; later steps change them in place.
        optimizer: the networks' optimizer.
    """

    epoch: int
    step: int
    state: NetworkState
    optimizer: torch.optim.Optimizer


Observer = Callable[[LiveTraining], None]
"""Called with a training before its first step and after each one."""
Augment = Callable[[Draws, Batch], Batch]
"""Augments a flat batch, per sample."""

STACKED_VECTOR_DIMS = 2
"""Dimensions of a vector parameter stacked over networks; stacked matrices have more."""
FACTOR = "factor"
"""The key of a parameter group's rate factor."""


def _make_optimizer(protocol: FitProtocol, params: Tensors, lr: float) -> torch.optim.Optimizer:
    """Return a protocol's optimizer, with a parameter group for each pair of rate factor and weight decay."""
    tensors_by_group: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in params.items():
        factor = next((factor for prefix, factor in protocol.faster if name.startswith(prefix)), 1.0)
        is_matrix = "weight" in name and tensor.dim() > STACKED_VECTOR_DIMS
        decay = 0.0 if protocol.optimizer == "adamw-matrices" and not is_matrix else protocol.weight_decay
        tensors_by_group.setdefault((factor, decay), []).append(tensor)
    groups = [
        {"params": tensors, "lr": lr * factor, FACTOR: factor, "weight_decay": decay}
        for (factor, decay), tensors in tensors_by_group.items()
    ]
    if protocol.optimizer != "sgd":
        kind = torch.optim.Adam if protocol.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=lr, weight_decay=protocol.weight_decay)
    # Not fused: on a CPU that assumes gradients in the parameters' layout, which compiled functions do not keep.
    return torch.optim.SGD(groups, lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


def _step(optimizer: torch.optim.Optimizer, params: Tensors, gradients: Tensors) -> None:
    """Step the stacked parameters, in place."""
    for name, parameter in params.items():
        parameter.grad = gradients[name]
    optimizer.step()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def _augment_all(augment: Augment, draws: Draws, batch: Batch) -> Batch:
    """Augment all networks' minibatches in one call."""
    flat, shape = augment(draws, batch.map(lambda t: t.flatten(0, 1))), batch.weight.shape
    return flat.map(lambda t: t.reshape(*shape, *t.shape[1:]))


def keep_weight_of(batch: Batch, rows: Tensor) -> Batch:
    """Return a batch in which only ``rows`` keep their weight; they are indices among the samples of nonzero weight."""
    selected = batch.weight.nonzero().flatten()[rows]
    return batch._replace(weight=torch.zeros_like(batch.weight).index_copy(0, selected, batch.weight[selected]))


class _Minibatches:
    """The minibatches of a training, drawn for all networks at once.

    Args:
        data: the samples.
        protocol: sets how many samples an epoch and a minibatch have.
        n: number of networks.
        augment: as for :func:`fit_networks`.
        lessons: as for :func:`fit_networks`.
    Raises:
        ConfigError: minibatches or augmentation of samples that share inputs.
    """

    def __init__(
        self, data: Batch, protocol: FitProtocol, n: int, augment: Augment | None, lessons: CurriculumRows | None
    ) -> None:
        self.data, self.protocol, self.n, self.augment, self.lessons = data, protocol, n, augment, lessons
        self.count = data.weight.shape[0]
        self.first = epoch_offsets(protocol, self.count, lessons)
        size = visits_and_size(protocol, self.count)[1]
        self.shared = shares_inputs(data)
        self.apart = size < self.count or augment is not None or (lessons is not None and not self.shared)
        """Whether each network has its own minibatches; otherwise all take the whole data in each step."""
        if self.apart and self.shared:
            raise ConfigError("samples that share inputs, as a graph's nodes do, train all at once and as they are")

    def of_epoch(self, key: Draws, epoch: int, step: int = 0) -> Iterator[tuple[Draws, Batch]]:
        """Yield the key and minibatch of each step of an epoch from ``step`` on; ``(n, b, ...)`` if ``apart``."""
        data, rows = self.data, None
        if self.lessons is not None:
            rows = self.lessons.rows(epoch).to(data.weight.device)
            if self.shared:
                data, rows = keep_weight_of(data, rows), None
        steps_per_pass = (self.first[epoch + 1] - self.first[epoch]) // self.protocol.passes
        first_pass, first_step = divmod(step, steps_per_pass)
        for number in range(first_pass, self.protocol.passes):
            pass_key = key.fold("pass", number) if number else key
            yield from self._of_pass(pass_key, data, rows, first_step if number == first_pass else 0)

    def _of_pass(self, key: Draws, data: Batch, rows: Tensor | None, step: int) -> Iterator[tuple[Draws, Batch]]:
        count = self.count if rows is None else len(rows)
        visits, size = visits_and_size(self.protocol, count, whole=rows is not None)
        order = key.fold("order").uniform(self.n, count).argsort(1)[:, :visits] if self.apart else None
        order = order if rows is None or order is None else rows[order]
        for start in range(step * size, visits, size):
            step_key = key.fold(start)
            batch = data if order is None else take(data, order[:, start : start + size])
            if self.augment is not None:
                batch = _augment_all(self.augment, step_key.fold("augment"), batch)
            yield step_key, batch


class _Training:
    """Networks in training: their stacked state, which changes in place, and their optimizer.

    Args:
        protocol: optimizer and schedule.
        state: the networks' initial state.
        engine: computes their gradients.
        first: the number of each epoch's first step, and at the end the number of all steps.
        step: the number of the first step to take.
    """

    def __init__(
        self, protocol: FitProtocol, state: NetworkState, engine: GradientEngine, first: Sequence[int], step: int
    ) -> None:
        self.protocol, self.engine, self.first, self.step = protocol, engine, first, step
        self.params, self.buffers = state
        self.rate = protocol.lr
        self.optimizer = _make_optimizer(protocol, self.params, self.rate)

    @property
    def state(self) -> NetworkState:
        """The live networks."""
        return NetworkState(self.params, self.buffers)

    @property
    def standing(self) -> LiveTraining:
        """The training as observers see it."""
        epoch = bisect_right(self.first, self.step) - 1
        return LiveTraining(epoch, self.step - self.first[epoch], self.state, self.optimizer)

    def begin_epoch(self, epoch: int, *, anew: bool) -> None:
        """Set the epoch's rate; a new epoch may restart the optimizer, a resumed one (not ``anew``) keeps it."""
        self.rate = epoch_rate(self.protocol, epoch)
        if anew and self.protocol.restart and epoch in decay_epochs(self.protocol):
            self.optimizer = _make_optimizer(self.protocol, self.params, self.rate)

    def take_step(self, key: Draws, batch: Batch, noise: Tensors) -> None:
        """Step all networks once."""
        gradients, self.buffers = self._gradients(key, batch, noise)
        _set_rate(self.optimizer, self.rate * rate_factor(self.protocol, self.step, self.first[-1]))
        _step(self.optimizer, self.params, gradients)
        self.step += 1

    def _gradients(self, key: Draws, batch: Batch, noise: Tensors) -> tuple[Tensors, Tensors]:
        """Return the gradients, sharpness-aware if the protocol says so, and the updated buffers."""
        protocol, current = self.protocol, self.state
        gradients, buffers = self.engine(key, current, batch, noise)
        if protocol.sam:
            # The engine may overwrite its gradients at its next call.
            plain = {name: g.clone() for name, g in gradients.items()} if protocol.sam_gap else {}
            perturbed = uphill(current, gradients, protocol.sam, protocol.sam_adaptive)
            gradients, _ = self.engine(key, perturbed, batch, noise)  # running statistics stay those of ``current``
            if protocol.sam_gap:
                gradients = without_gap(gradients, plain, protocol.sam_gap)
        return gradients, buffers


def fit_networks(
    init: Callable[[Draws], NetworkState],
    loss: Loss,
    data: Batch,
    protocol: FitProtocol,
    n: int,
    draws: Draws,
    *,
    augment: Augment | None = None,
    noise: Callable[[Draws, int], Tensors] | None = None,
    selection: Selection | None = None,
    observe: Observer | None = None,
    resume_from: SavedTraining | None = None,
    lessons: CurriculumRows | None = None,
    mode: Mode = "vmap",
    pure: bool = False,
) -> NetworkState:
    """Train n networks from independent initialisations, each with its own data order.

    Args:
        init: draws one network.
        loss: see :data:`~mmdistill.networks.stacked.Loss`.
        data: the training samples, on the networks' device.
        protocol: epochs, optimizer and schedule.
        n: number of networks.
        draws: the key of initialisations, orders, augmentation and noise.
        augment: augments a flat batch, per sample.
        noise: draws each step's random tensors with a leading axis n (dropout masks, say).
        selection: if given, each network's best state by validation data is returned instead of its last.
        observe: called before the first step and after each one; copy what should stay, since later steps change the
            networks in place.
        resume_from: the saved training to resume, with the same result as without interruption; not with a selection.
        lessons: the samples that each epoch draws from, in whole minibatches, so that all have one shape; None: all.
        mode: ``vmap`` trains all networks in one batched call, ``loop`` one after the other with the memory of one;
            both see the same random streams and agree to rounding.
        pure: whether the loss is a pure function of tensors that draws nothing itself. On the CPU in mode ``loop`` it
            is then compiled if that saves time; on CUDA all networks' steps are captured, side by side on several
            streams.
    Returns:
        The trained networks, stacked along a leading axis.
    Raises:
        ConfigError: n below 1, no samples, minibatches of samples that share inputs, or a selection in a resumed
            training.
    """
    count = data.weight.shape[0]
    if n < 1 or count < 1:
        raise ConfigError(f"training needs at least one network and one sample, got {n} networks and {count} samples")
    if selection is not None and resume_from is not None:
        raise ConfigError("what a training selected from before is not kept, so none goes on with a selection")
    minibatches = _Minibatches(data, protocol, n, augment, lessons)
    state = stack_states([init(draws.fold("init", index)) for index in range(n)])
    if resume_from is not None:
        # In the order of a fresh state's names, by which the optimizer's state is saved.
        state = NetworkState(
            *({name: saved[name] for name in part} for part, saved in zip(state, resume_from.state, strict=True))
        )
    first_epoch, skipped = (0, 0) if resume_from is None else (resume_from.epoch, resume_from.step)
    engine = GradientEngine(loss, minibatches.apart, mode, pure, minibatches.first[-1])
    training = _Training(protocol, state, engine, minibatches.first, minibatches.first[first_epoch] + skipped)
    if resume_from is not None:
        if resume_from.optimizer is not None:
            training.optimizer.load_state_dict(resume_from.optimizer)
    elif observe is not None:
        observe(training.standing)
    if (device := data.weight.device).type == "cpu":
        keep_freed_memory()
    best: Best | None = None
    for epoch in range(first_epoch, protocol.epochs):
        training.begin_epoch(epoch, anew=not skipped)
        for key, batch in minibatches.of_epoch(draws.fold("epoch", epoch).to(device), epoch, skipped):
            training.take_step(key, batch, noise(key.fold("noise"), n) if noise is not None else {})
            if observe is not None:
                observe(training.standing)
        skipped = 0
        tell_watchers(epoch + 1, protocol.epochs)
        if selection is not None and is_scored(epoch + 1, protocol.epochs, selection.every):
            best = better_of(best, selection.score(training.state), training.state)
    training.optimizer.zero_grad()
    return training.state if best is None else best.state


def fit_steps(
    init: Callable[[Draws], NetworkState],
    loss: Loss,
    steps: Batch,
    rates: Sequence[float],
    momentum: float,
    n: int,
    draws: Draws,
    *,
    mode: Mode = "vmap",
    sizes: Sequence[int] | None = None,
) -> NetworkState:
    """Train n networks from independent initialisations on given steps, each with its own batch and rate (Eq. 3).

    Args:
        init: draws one network.
        loss: see :data:`~mmdistill.networks.stacked.Loss`.
        steps: the steps' batches, every tensor ``(T, b, ...)``; all networks take the same ones.
        rates: T learning rates.
        momentum: beta of SGD with momentum.
        n: number of networks.
        draws: the key of the initialisations.
        mode: as for :func:`fit_networks`.
        sizes: the true batch size of each step, if batches are padded by samples of weight 0; batch norms, which would
            count these, see the batches without padding.
    Returns:
        The trained networks, stacked along a leading axis.
    Raises:
        ConfigError: rates and steps differ in number, or n is below 1.
    """
    if n < 1 or len(rates) != steps.weight.shape[0]:
        raise ConfigError(f"{steps.weight.shape[0]} steps need as many rates, got {len(rates)}, for n={n} networks")
    state = stack_states([init(draws.fold("init", index)) for index in range(n)])
    optimizer = torch.optim.SGD(list(state.params.values()), lr=1.0, momentum=momentum)
    buffers = state.buffers
    unpadded_sizes = sizes if has_statistics(state) else None
    for index, rate in enumerate(rates):
        _set_rate(optimizer, rate)
        current, batch = NetworkState(state.params, buffers), take(steps, index)
        if unpadded_sizes is not None:
            batch = take(batch, slice(unpadded_sizes[index]))
        gradients, buffers = stacked_gradients(loss, current, batch, {}, False, mode)
        _step(optimizer, state.params, gradients)
    optimizer.zero_grad()
    return NetworkState(state.params, buffers)
