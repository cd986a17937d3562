"""Train many networks at once on one small set: the engine under evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors, map_inputs

Loss = Callable[[NetworkState, Batch, Tensors], tuple[Tensor, Tensors]]
"""``(state, batch, noise) -> (scalar loss, updated buffers)``; noise holds this network's own random tensors."""


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
        sam: rho of sharpness-aware minimisation: each gradient is taken at the parameters moved by rho up the loss
            (Foret et al., ICLR 2021); 0 is plain training.
    """

    epochs: int
    lr: float = 0.01
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int | None = 256
    decay_at: tuple[float, ...] = (0.5,)
    decay: float = 0.1
    sam: float = 0.0


def stack_states(states: list[NetworkState]) -> NetworkState:
    """Stack network states along a new leading axis."""
    first = states[0]
    return NetworkState(
        {name: torch.stack([s.params[name] for s in states]) for name in first.params},
        {name: torch.stack([s.buffers[name] for s in states]) for name in first.buffers},
    )


def state_at(state: NetworkState, index: int) -> NetworkState:
    """Return one network of a stacked state."""
    return NetworkState(
        {name: t[index] for name, t in state.params.items()},
        {name: t[index] for name, t in state.buffers.items()},
    )


def _optimizer(protocol: FitProtocol, params: Tensors, lr: float) -> torch.optim.Optimizer:
    tensors = list(params.values())
    if protocol.optimizer == "adam":
        return torch.optim.Adam(tensors, lr=lr, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(tensors, lr=lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


def _gather(data: Batch, index: Tensor) -> Batch:
    """Return ``(networks, b, ...)`` minibatches; index is ``(networks, b)``."""
    return Batch(
        map_inputs(lambda t: t[index], data.inputs),
        map_inputs(lambda t: t[index], data.targets),
        data.weight[index],
    )


def _augment_all(augment: Callable[[Draws, Batch], Batch], draws: Draws, batch: Batch) -> Batch:
    """Augment all networks' minibatches in one call."""
    shape = batch.weight.shape
    flat = Batch(*(map_inputs(lambda t: t.flatten(0, 1), part) for part in batch))  # type: ignore[arg-type]
    flat = augment(draws, flat)
    return Batch(*(map_inputs(lambda t: t.reshape(*shape, *t.shape[1:]), part) for part in flat))  # type: ignore[arg-type]


def _one(batch: Batch, index: int) -> Batch:
    return Batch(*(map_inputs(lambda t: t[index], part) for part in batch))  # type: ignore[arg-type]


def _gradients(
    loss: Loss, state: NetworkState, batch: Batch, noise: Tensors, batched: bool, mode: str
) -> tuple[Tensors, Tensors]:
    """Return every network's parameter gradients and updated buffers, stacked."""

    def value(params: Tensors, buffers: Tensors, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        return loss(NetworkState(params, buffers), batch, noise)

    if mode == "vmap":
        gradient = torch.func.grad(value, has_aux=True)
        dims = (0, 0, 0 if batched else None, 0)
        result: tuple[Tensors, Tensors] = torch.func.vmap(gradient, in_dims=dims)(*state, batch, noise)
        return result
    found = []
    for index in range(next(iter(state.params.values())).shape[0]):
        own = state_at(state, index)
        own_noise = {name: t[index] for name, t in noise.items()}
        # Plain autograd: torch.func.grad keeps a graph of the gradient, for which norms take slower kernels.
        leaves = {name: p.detach().requires_grad_() for name, p in own.params.items()}
        with torch.enable_grad():
            scalar, buffers = value(leaves, own.buffers, _one(batch, index) if batched else batch, own_noise)
        gradients = torch.autograd.grad(scalar, list(leaves.values()), materialize_grads=True)
        found.append(NetworkState(dict(zip(leaves, gradients, strict=True)), buffers))
    stacked = stack_states(found)
    return stacked.params, stacked.buffers


def _uphill(state: NetworkState, gradients: Tensors, rho: float) -> NetworkState:
    """Return stacked networks, each moved by rho along its own gradient."""
    norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0).sqrt()
    scale = rho / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    with torch.no_grad():
        moved = {name: p + scale.view(-1, *(1,) * (p.ndim - 1)) * gradients[name] for name, p in state.params.items()}
    return NetworkState(moved, state.buffers)


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
    observe: Callable[[int, NetworkState], None] | None = None,
    mode: Literal["vmap", "loop"] = "vmap",
) -> NetworkState:
    """Train n networks from independent initialisations, each with its own data order.

    Args:
        init: draws one network.
        loss: see :data:`Loss`.
        data: the training samples, on the networks' device.
        protocol: epochs, optimizer and schedule.
        n: how many networks.
        draws: the key of initialisations, orders, augmentation and noise.
        augment: augments a flat batch, per sample.
        noise: draws each step's random tensors with a leading axis n (dropout masks, say).
        select: scores all networks, ``(n,)``, higher is better, on validation data; each network's best state so
            far is returned instead of its last.
        select_every: epochs between selections.
        observe: called with 0 and the fresh networks, then after each epoch with its number and the live ones, which
            go on changing in place: copy what is to stay.
        mode: ``vmap`` trains all networks in one batched call, ``loop`` one after the other with the memory of one;
            both see the same streams and agree to rounding.
    Returns:
        The trained networks, stacked along a leading axis.
    Raises:
        ConfigError: no sample, or no network asked for.
    """
    count = data.weight.shape[0]
    if n < 1 or count < 1:
        raise ConfigError(f"training needs at least one network and one sample, got {n} networks and {count} samples")
    state = stack_states([init(draws.fold("init", index)) for index in range(n)])
    size = count if protocol.batch is None else min(protocol.batch, count)
    whole = size == count and augment is None
    decay_epochs = {int(protocol.epochs * fraction) for fraction in protocol.decay_at}
    lr, buffers = protocol.lr, state.buffers
    optimizer = _optimizer(protocol, state.params, lr)
    best: tuple[Tensor, NetworkState] | None = None
    if observe is not None:
        observe(0, state)
    device = data.weight.device
    for epoch in range(protocol.epochs):
        if epoch in decay_epochs and epoch > 0:
            lr *= protocol.decay
            optimizer = _optimizer(protocol, state.params, lr)
        key = draws.fold("epoch", epoch).to(device)
        order = None if whole else key.fold("order").uniform(n, count).argsort(1)
        for start in range(0, count, size):
            step_key = key.fold(start)
            batch = data if order is None else _gather(data, order[:, start : start + size])
            if augment is not None:
                batch = _augment_all(augment, step_key.fold("augment"), batch)
            own_noise = noise(step_key.fold("noise"), n) if noise is not None else {}
            current = NetworkState(state.params, buffers)
            gradients, buffers = _gradients(loss, current, batch, own_noise, order is not None, mode)
            if protocol.sam:
                current = _uphill(current, gradients, protocol.sam)
                gradients, buffers = _gradients(loss, current, batch, own_noise, order is not None, mode)
            for name, parameter in state.params.items():
                parameter.grad = gradients[name]
            optimizer.step()
        if observe is not None:
            observe(epoch + 1, NetworkState(state.params, buffers))
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
        loss: see :data:`Loss`.
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
        for group in optimizer.param_groups:
            group["lr"] = rate
        current = NetworkState(state.params, buffers)
        gradients, buffers = _gradients(loss, current, _one(steps, index), {}, False, mode)
        for name, parameter in state.params.items():
            parameter.grad = gradients[name]
        optimizer.step()
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
