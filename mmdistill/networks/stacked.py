"""Gradients of many networks at once, with parameters stacked along a leading axis."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mmdistill.execution.capture import CudaGraph, Graph, Replay
from mmdistill.execution.compilation import compiled_once, operations, worth_compiling
from mmdistill.execution.streams import side_streams
from mmdistill.networks.gradients import gradients_beside
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors, take, under

Mode = Literal["vmap", "loop"]
"""How several networks train: all in one batched call, or one after the other with the memory of one."""
Loss = Callable[[NetworkState, Batch, Tensors], tuple[Tensor, Tensors]]
"""``(state, batch, noise) -> (scalar loss, updated buffers)``; noise holds this network's own random tensors."""


WORTH_CAPTURING = 50
"""Steps from which capturing them on CUDA repays the few eager calls before the capture."""
WORTH_COMPILING = 200_000
"""Steps of one network from which compiling them for CUDA, which takes half a minute, pays off as well."""


def stack_states(states: list[NetworkState]) -> NetworkState:
    """Stack network states along a new leading axis."""
    first = states[0]
    return NetworkState(
        {name: torch.stack([s.params[name] for s in states]) for name in first.params},
        {name: torch.stack([s.buffers[name] for s in states]) for name in first.buffers},
    )


def state_at(state: NetworkState, index: int) -> NetworkState:
    """Return one network of a stacked state."""
    return state.map(lambda t: t[index])


def named(state: NetworkState) -> Tensors:
    """Return all tensors of a state by the names ``params.NAME`` and ``buffers.NAME``."""
    return {f"{kind}.{name}": t for kind, part in state._asdict().items() for name, t in part.items()}


def state_of(tensors: Tensors) -> NetworkState:
    """Return the state whose tensors have the names of :func:`named`; other tensors are ignored."""
    return NetworkState(under("params.", tensors), under("buffers.", tensors))


def stacked_gradients(
    loss: Loss, state: NetworkState, batch: Batch, noise: Tensors, batched: bool, mode: Mode
) -> tuple[Tensors, Tensors]:
    """Return every network's parameter gradients and updated buffers, stacked.

    Args:
        loss: see :data:`Loss`.
        state: the stacked networks.
        batch: one minibatch for all networks or, if ``batched``, one for each along a leading axis.
        noise: each step's random tensors, with a leading axis of networks.
        batched: whether each network has its own minibatch.
        mode: see :data:`Mode`.
    """

    def value(params: Tensors, buffers: Tensors, batch: Batch, noise: Tensors) -> tuple[Tensor, Tensors]:
        return loss(NetworkState(params, buffers), batch, noise)

    if mode == "vmap":
        gradient = torch.func.grad(value, has_aux=True)
        dims = (0, 0, 0 if batched else None, 0)
        result: tuple[Tensors, Tensors] = torch.func.vmap(gradient, in_dims=dims)(*state, batch, noise)
        return result

    def gradients_of(index: int) -> NetworkState:
        params, buffers = state_at(state, index)
        own_batch = take(batch, index) if batched else batch
        own_noise = {name: t[index] for name, t in noise.items()}
        return NetworkState(*gradients_beside(lambda leaves: value(leaves, buffers, own_batch, own_noise), params))

    results = []
    with side_streams(batch.weight.device) as streams:
        for index in range(next(iter(state.params.values())).shape[0]):
            with next(streams):
                results.append(gradients_of(index))
    return stack_states(results)


def operations_looped(loss: Loss, state: NetworkState, batch: Batch, noise: Tensors, batched: bool) -> int:
    """Return the floating-point operations of the first network's gradient."""
    # A copy: torch's norms update their running statistics in place, and counting must not change these.
    first = state.map(lambda t: t[:1].clone())
    first_batch = take(batch, slice(1)) if batched else batch
    first_noise = {name: t[:1] for name, t in noise.items()}
    return operations(lambda: stacked_gradients(loss, first, first_batch, first_noise, batched, "loop"))[1]


def repays_looped(steps: int, networks: int, operations: int) -> bool:
    """Return whether a CPU compiles a training in a loop, with ``operations`` for each gradient of one network."""
    return worth_compiling(float(steps) * networks * operations)


class GradientEngine:
    """Computes the gradients of all networks, step by step, in the fastest way that works.

    Args:
        loss: see :data:`Loss`.
        batched: whether each network has its own minibatch.
        mode: how to compute them if no graph is captured.
        pure: whether the loss is a pure function of tensors; others are neither compiled nor captured.
        steps: steps of the whole training, which decide whether compiling and capturing pay.
    """

    def __init__(self, loss: Loss, batched: bool, mode: Mode, pure: bool, steps: int) -> None:
        self.loss, self.batched, self.mode, self.pure, self.steps = loss, batched, mode, pure, steps
        self._begun = False
        self._replay: Replay | None = None

    def _begin(self, state: NetworkState, batch: Batch, noise: Tensors) -> None:
        """Choose whether to compile and capture, by the tensors of the first step."""
        if not self.pure:
            return
        steps, networks = self.steps, next(iter(state.params.values())).shape[0]
        if batch.weight.is_cuda:
            compiles = steps * networks >= WORTH_COMPILING
        else:
            compiles = self.mode == "loop" and repays_looped(
                steps, networks, operations_looped(self.loss, state, batch, noise, self.batched)
            )
        if compiles:
            self.loss = compiled_once(self.loss)
        if batch.weight.is_cuda and steps >= WORTH_CAPTURING:
            self._replay = self._make_replay()

    def __call__(self, key: Draws, state: NetworkState, batch: Batch, noise: Tensors) -> tuple[Tensors, Tensors]:
        """Return all networks' gradients, which the next call may overwrite, and updated buffers, stacked."""
        if not self._begun:
            self._begin(state, batch, noise)
            self._begun = True
        if self._replay is None or self._replay.failed:
            return stacked_gradients(self.loss, state, batch, noise, self.batched, self.mode)
        gradients, buffers = self._replay(key, (state, batch, noise))
        return gradients, {name: buffer.clone() for name, buffer in buffers.items()}

    def _make_replay(self, graph: Callable[[], Graph] = CudaGraph) -> Replay:
        """Return a replay of the gradients; its function does not refer to this engine, since cycles are freed late."""
        loss, batched = self.loss, self.batched

        def gradients(key: Draws, inputs: tuple[NetworkState, Batch, Tensors]) -> tuple[Tensors, Tensors]:
            return stacked_gradients(loss, *inputs, batched, "loop")

        return Replay(gradients, graph)
