"""Train many networks at once on one small set: the engine under evaluation."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.sharpness import uphill, without_gap
from mmdistill.networks.stacked import GradientEngine, Loss, stack_states, stacked_gradients
from mmdistill.runtime import Draws, keep_freed_memory
from mmdistill.task import Batch, NetworkState, Tensors, shares_inputs, take


@dataclass(frozen=True)
class FitProtocol:
    """How a judge is trained.

    Args:
        epochs: passes over the data.
        lr: learning rate.
        optimizer: ``sgd`` or ``adam``.
        momentum: for SGD.
        weight_decay: L2 coefficient.
        batch: minibatch size; None takes all samples each step.
        decay_at: fractions of the epochs at which the rate is multiplied by ``decay`` and the optimizer starts
            afresh, momentum included, as the field's evaluators do.
        decay: the factor.
        restart: whether the optimizer does start afresh there; otherwise only the rate changes.
        warmup: steps in which the rate rises linearly from 0.
        cosine: after them, anneal the rate to a hundredth over the rest of the training.
        visits: samples that an epoch draws, without replacement; None draws all.
        sam: rho of sharpness-aware minimisation: each gradient is taken at the parameters moved by rho up the loss
            (Foret et al., ICLR 2021); 0 is plain training.
        sam_gap: weight of the surrogate gap (Zhuang et al., ICLR 2022): so much of the gradient at the parameters
            themselves, as far as it is orthogonal to the other one, is ascended.
        sam_adaptive: move each parameter in proportion to its square (Kwon et al., ICML 2021).
        faster: prefixes of parameters' names with factors of their rate: a new head on a pre-trained body, say
            (discriminative rates, Howard and Ruder, ACL 2018).
    Raises:
        ConfigError: negative epochs, or a minibatch below 1.
    """

    epochs: int
    lr: float = 0.01
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int | None = 256
    decay_at: tuple[float, ...] = (0.5,)
    decay: float = 0.1
    restart: bool = True
    warmup: int = 0
    cosine: bool = False
    visits: int | None = None
    sam: float = 0.0
    sam_gap: float = 0.0
    sam_adaptive: bool = False
    faster: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 0 or (self.batch is not None and self.batch < 1):
            raise ConfigError(
                f"epochs are not negative and a minibatch has at least one sample, got {self.epochs} and {self.batch}"
            )


@dataclass(frozen=True)
class Reached:
    """Where a training stands after an epoch: all that going on from there needs.

    Args:
        epoch: the epochs behind it.
        state: the networks, stacked along a leading axis.
        optimizer: the optimizer's ``state_dict``.
    """

    epoch: int
    state: NetworkState
    optimizer: dict[str, Any]


Observer = Callable[[int, NetworkState, torch.optim.Optimizer], None]
"""Called with an epoch's number, the live networks, stacked, and their optimizer."""
Watcher = Callable[[int, int], None]
"""Called after each epoch with its number and how many there are."""
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
"""Of this thread alone."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let a watcher follow whatever trains meanwhile, without a hand in it."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


FACTOR = "factor"
"""Under which an optimizer's group keeps the factor of its rate."""
COSINE_FLOOR = 0.01
"""Of the rate, where annealing ends."""


def rate_factor(protocol: FitProtocol, step: int, steps: int) -> float:
    """Return what a protocol's rate is multiplied by at a step of so many, steps down at ``decay_at`` aside."""
    if step < protocol.warmup:
        return step / protocol.warmup
    if not protocol.cosine:
        return 1.0
    share = (step - protocol.warmup) / max(steps - protocol.warmup, 1)
    return COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * share))


def _optimizer(protocol: FitProtocol, params: Tensors, lr: float) -> torch.optim.Optimizer:
    by_factor: dict[float, list[Tensor]] = {}
    for name, tensor in params.items():
        factor = next((factor for prefix, factor in protocol.faster if name.startswith(prefix)), 1.0)
        by_factor.setdefault(factor, []).append(tensor)
    groups = [{"params": tensors, "lr": lr * factor, FACTOR: factor} for factor, tensors in by_factor.items()]
    if protocol.optimizer == "adam":
        return torch.optim.Adam(groups, lr=lr, weight_decay=protocol.weight_decay)
    # Not fused: a CPU would read gradients as laid out like the parameters, which those of compiled functions are not.
    return torch.optim.SGD(groups, lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


def _step(optimizer: torch.optim.Optimizer, params: Tensors, gradients: Tensors) -> None:
    """Step the stacked parameters, in place."""
    for name, parameter in params.items():
        parameter.grad = gradients[name]
    optimizer.step()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def _augment_all(augment: Callable[[Draws, Batch], Batch], draws: Draws, batch: Batch) -> Batch:
    """Augment all networks' minibatches in one call."""
    shape = batch.weight.shape
    flat = augment(draws, batch.map(lambda t: t.flatten(0, 1)))
    return flat.map(lambda t: t.reshape(*shape, *t.shape[1:]))


def fit_networks(
    init: Callable[[Draws], NetworkState],
    loss: Loss,
    data: Batch,
    protocol: FitProtocol,
    n: int,
    draws: Draws,
    *,
    augment: Callable[[Draws, Batch], Batch] | None = None,
    noise: Callable[[Draws, int], Tensors] | None = None,
    select: Callable[[NetworkState], Tensor] | None = None,
    select_every: int = 1,
    observe: Observer | None = None,
    reached: Reached | None = None,
    mode: Literal["vmap", "loop"] = "vmap",
    compile: Literal["auto", "off"] = "off",
) -> NetworkState:
    """Train n networks from independent initialisations, each with its own data order.

    Args:
        init: draws one network.
        loss: see :data:`~mmdistill.networks.stacked.Loss`.
        data: the training samples, on the networks' device.
        protocol: epochs, optimizer and schedule.
        n: how many networks.
        draws: the key of initialisations, orders, augmentation and noise.
        augment: augments a flat batch, per sample.
        noise: draws each step's random tensors with a leading axis n (dropout masks, say).
        select: scores all networks, ``(n,)``, higher is better, on validation data; each network's best state so
            far is returned instead of its last.
        select_every: epochs between selections.
        observe: called before the first epoch with 0, then after each epoch with its number; the networks go on
            changing in place, so copy what is to stay.
        reached: go on from there as if nothing had been between; not with ``select``.
        mode: ``vmap`` trains all networks in one batched call, ``loop`` one after the other with the memory of one;
            both see the same streams and agree to rounding.
        compile: ``auto`` compiles the loss where that repays, on the CPU in mode ``loop``; on CUDA all networks' steps
            are captured, side by side on several streams. The loss must then be a pure function of tensors.
    Returns:
        The trained networks, stacked along a leading axis.
    Raises:
        ConfigError: no sample, no network asked for, or minibatches of samples that share inputs.
    """
    count = data.weight.shape[0]
    if n < 1 or count < 1:
        raise ConfigError(f"training needs at least one network and one sample, got {n} networks and {count} samples")
    state = stack_states([init(draws.fold("init", index)) for index in range(n)])
    begin = 0
    if reached is not None:
        begin, held = reached.epoch, reached.state
        state = NetworkState(  # in the order that the optimizer knows
            *({name: there[name] for name in part} for part, there in zip(state, held, strict=True))
        )
    visits = count if protocol.visits is None else min(protocol.visits, count)
    size = visits if protocol.batch is None else min(protocol.batch, visits)
    whole = size == count and augment is None
    if not whole and shares_inputs(data):
        raise ConfigError("samples that share inputs, as a graph's nodes do, train all at once and as they are")
    decay_epochs = {int(protocol.epochs * fraction) for fraction in protocol.decay_at}
    lr, buffers = protocol.lr, state.buffers
    optimizer = _optimizer(protocol, state.params, lr)
    best: tuple[Tensor, NetworkState] | None = None
    if reached is not None:
        optimizer.load_state_dict(reached.optimizer)
    elif observe is not None:
        observe(0, state, optimizer)
    device = data.weight.device
    if device.type == "cpu":
        keep_freed_memory()
    engine: GradientEngine | None = None
    each = math.ceil(visits / size)
    step, steps = begin * each, protocol.epochs * each
    for epoch in range(protocol.epochs):
        if epoch in decay_epochs and epoch > 0:
            lr *= protocol.decay
            if protocol.restart and epoch >= begin:
                optimizer = _optimizer(protocol, state.params, lr)
        if epoch < begin:
            continue
        key = draws.fold("epoch", epoch).to(device)
        order = None if whole else key.fold("order").uniform(n, count).argsort(1)[:, :visits]
        for start in range(0, visits, size):
            step_key = key.fold(start)
            batch = data if order is None else take(data, order[:, start : start + size])
            if augment is not None:
                batch = _augment_all(augment, step_key.fold("augment"), batch)
            own_noise = noise(step_key.fold("noise"), n) if noise is not None else {}
            current = NetworkState(state.params, buffers)
            batched = order is not None
            if engine is None:
                engine = GradientEngine(loss, batched, mode, compile)
                engine.begin(current, batch, own_noise, steps)
            gradients, buffers = engine(step_key, current, batch, own_noise)
            if protocol.sam:
                here = {name: g.clone() for name, g in gradients.items()} if protocol.sam_gap else {}
                there = uphill(current, gradients, protocol.sam, protocol.sam_adaptive)
                gradients, _ = engine(step_key, there, batch, own_noise)  # statistics are those of where it stands
                if protocol.sam_gap:
                    gradients = without_gap(gradients, here, protocol.sam_gap)
            _set_rate(optimizer, lr * rate_factor(protocol, step, steps))
            _step(optimizer, state.params, gradients)
            step += 1
        if observe is not None:
            observe(epoch + 1, NetworkState(state.params, buffers), optimizer)
        for watcher in _watchers.get():
            watcher(epoch + 1, protocol.epochs)
        if select is not None and (epoch % select_every == 0 or epoch == protocol.epochs - 1):
            best = _keep_best(best, select(NetworkState(state.params, buffers)), NetworkState(state.params, buffers))
    for parameter in state.params.values():
        parameter.grad = None
    return NetworkState(state.params, buffers) if best is None else best[1]


def fit_steps(
    init: Callable[[Draws], NetworkState],
    loss: Loss,
    steps: Batch,
    rates: Sequence[float],
    momentum: float,
    n: int,
    draws: Draws,
    *,
    mode: Literal["vmap", "loop"] = "vmap",
) -> NetworkState:
    """Train n networks from independent initialisations on given steps, each with its own batch and rate (Eq. 3).

    Args:
        init: draws one network.
        loss: see :data:`~mmdistill.networks.stacked.Loss`.
        steps: the steps' batches, every tensor ``(T, b, ...)``; all networks take the same ones.
        rates: T learning rates.
        momentum: beta of SGD with momentum.
        n: how many networks.
        draws: the key of the initialisations.
        mode: as for :func:`fit_networks`.
    Returns:
        The trained networks, stacked along a leading axis.
    Raises:
        ConfigError: other than one rate for each step, or no network asked for.
    """
    if n < 1 or len(rates) != steps.weight.shape[0]:
        raise ConfigError(f"{steps.weight.shape[0]} steps need as many rates, got {len(rates)}, for n={n} networks")
    state = stack_states([init(draws.fold("init", index)) for index in range(n)])
    optimizer = torch.optim.SGD(list(state.params.values()), lr=1.0, momentum=momentum)
    buffers = state.buffers
    for index, rate in enumerate(rates):
        _set_rate(optimizer, rate)
        current = NetworkState(state.params, buffers)
        gradients, buffers = stacked_gradients(loss, current, take(steps, index), {}, False, mode)
        _step(optimizer, state.params, gradients)
    for parameter in state.params.values():
        parameter.grad = None
    return NetworkState(state.params, buffers)


def _keep_best(
    best: tuple[Tensor, NetworkState] | None, scores: Tensor, state: NetworkState
) -> tuple[Tensor, NetworkState]:
    """Return, per network, the better of two scored states; ties keep the earlier one."""
    if best is None:
        copies = NetworkState(*({name: t.clone() for name, t in part.items()} for part in state))
        return scores, copies
    old, kept = best
    better = scores > old
    for now, then in zip(state, kept, strict=True):
        for name, tensor in now.items():
            mask = better.view(-1, *(1,) * (tensor.ndim - 1))
            then[name] = torch.where(mask, tensor, then[name])
    return torch.where(better, scores, old), kept
