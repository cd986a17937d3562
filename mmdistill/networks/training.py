"""The gradients that train networks between the steps of a run, in its number formats, compiled or captured as it is.

Schedules call :func:`network_gradients` and :func:`network_outputs`, which are plain autograd in float32 unless a
:class:`Trainer` is active.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial

from torch import Tensor

from mmdistill.contexts import holding
from mmdistill.execution.capture import Graph, Replay, copied_together
from mmdistill.execution.compilation import Program
from mmdistill.execution.portions import features_by_portions
from mmdistill.execution.precision import Precision, autocast_for
from mmdistill.labels import in_full
from mmdistill.networks.expert_loss import batches_networks
from mmdistill.networks.gradients import gradients_beside
from mmdistill.networks.statistics import copied
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, NetworkState, Task, Tensors, shares_inputs

NetworkLoss = Callable[[Task, NetworkState, Batch, Draws | None], tuple[Tensor, Tensors]]
"""``(task, state, batch, key) -> (scalar loss, other tensors)``; the state's buffers may be updated in place.

Define it at a module's top level, so that a run compiles it once. The task draws dropout's masks from the key, which is
None if networks draw none; all other randomness belongs in the batch.
"""
_LossOfState = Callable[[NetworkState, Batch, Draws | None], tuple[Tensor, Tensors]]
_GradientFunction = Callable[[NetworkState, Batch, Draws | None], tuple[Tensors, Tensors]]

MOST_COMPILED_LOSSES = 8
"""Losses that a trainer compiles or captures; further ones, such as closures made in each step, stay eager."""


def training_loss(task: Task, state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
    """Return the task's own training loss, with the updated buffers."""
    return task.loss(state, batch, train=True, draws=draws), state.buffers


class Trainer:
    """Computes gradients of a task's networks in training by the fastest way that works.

    With ``mixed`` or ``bf16`` precision they are computed in bfloat16, like the real side of class-wise matching;
    parameters, gradients and optimizer steps stay in float32. Losses that cannot be batched over networks (with
    dropout, say, or of samples that share inputs) are neither compiled nor captured.

    Args:
        task: the task.
        precision: the number formats, see :mod:`mmdistill.execution.precision`.
        compiles: whether losses are compiled.
        graph: makes the graphs that capture gradients; None captures nothing.
    """

    def __init__(
        self,
        task: Task,
        precision: Precision = "float32",
        *,
        compiles: bool = False,
        graph: Callable[[], Graph] | None = None,
    ) -> None:
        self.task, self.precision, self.compiles, self.graph = task, precision, compiles, graph
        self._programs: list[Program[[NetworkState, Batch, Draws | None], tuple[Tensor, Tensors]]] = []
        self._gradient_functions: dict[NetworkLoss, _GradientFunction] = {}
        self._predict: Program[[NetworkState, Inputs], Tensor] | None = None

    @property
    def compile_seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        predicting = 0.0 if self._predict is None else self._predict.seconds
        return predicting + sum(program.seconds for program in self._programs)

    def training(self) -> AbstractContextManager[None]:
        """Within this context the task's :func:`network_gradients` and :func:`network_outputs` use this trainer."""
        return holding(_trainer, self)

    def gradients(
        self, loss: NetworkLoss, network: NetworkState, batch: Batch, draws: Draws | None
    ) -> tuple[Tensors, Tensors]:
        """Compute :func:`network_gradients`."""
        function = self._gradient_functions.get(loss)
        if function is None and len(self._gradient_functions) < MOST_COMPILED_LOSSES:
            function = self._gradient_functions[loss] = self._fastest(loss, batch)
        # Under mixed, products of sparse matrices stay in float32.
        with autocast_for(self.precision, self.task.device, graph=shares_inputs(batch)):
            return (function or self._eager(loss))(network, batch, draws)

    def outputs(self, network: NetworkState, inputs: Inputs) -> Tensor:
        """Compute :func:`network_outputs`."""
        task = self.task

        def predict(state: NetworkState, inputs: Inputs) -> Tensor:
            return task.predict(state, inputs)[0]

        if self.compiles and self._predict is None and isinstance(inputs, Tensor):
            self._predict = Program(predict)
        forward = predict if self._predict is None else self._predict
        with autocast_for(self.precision, task.device, graph=not isinstance(inputs, Tensor)):
            outputs = features_by_portions(lambda part: forward(network, part), inputs)
        return in_full(outputs)

    def _without_side_effects(self, loss: NetworkLoss) -> _LossOfState:
        """Return a loss that works on copies of the network's buffers."""
        task = self.task

        def value(state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
            return loss(task, NetworkState(state.params, copied(state.buffers)), batch, draws)

        return value

    def _eager(self, loss: NetworkLoss) -> _GradientFunction:
        """Return a function that computes a loss's gradients eagerly."""
        return partial(_gradients, self._without_side_effects(loss))

    def _fastest(self, loss: NetworkLoss, batch: Batch) -> _GradientFunction:
        """Return the fastest function that computes a loss's gradients, chosen by the first batch."""
        if not (self.compiles or self.graph) or not batches_networks(self.task, batch):
            return self._eager(loss)
        value = self._without_side_effects(loss)
        if self.compiles:
            value = program = Program(value)
            self._programs.append(program)

        def keyless(_: Draws, inputs: tuple[NetworkState, Batch]) -> tuple[Tensors, Tensors]:
            return _gradients(value, *inputs, None)

        if self.graph is None:
            return lambda network, batch, _: _gradients(value, network, batch, None)
        replay = Replay(keyless, self.graph)
        unused_key = Draws(0, device=self.task.device)

        def replayed(network: NetworkState, batch: Batch, _: Draws | None) -> tuple[Tensors, Tensors]:
            gradients, beside = copied_together(replay(unused_key, (network, batch)))  # the next replay overwrites them
            return gradients, beside

        return replayed


_trainer: ContextVar[Trainer | None] = ContextVar("trainer", default=None)
"""The active trainer, for this thread only."""


def network_gradients(
    loss: NetworkLoss, task: Task, network: NetworkState, batch: Batch, draws: Draws | None
) -> tuple[Tensors, Tensors]:
    """Return a loss's gradients with respect to a network's parameters, by name, and the loss's other tensors.

    All results are detached, and the network stays as it is.

    Args:
        loss: see :data:`NetworkLoss`.
        task: the task.
        network: the network.
        batch: a flat batch.
        draws: the key of dropout's masks.
    """
    return _active_trainer(task).gradients(loss, network, batch, draws)


def network_outputs(task: Task, network: NetworkState, inputs: Inputs) -> Tensor:
    """Return a network's outputs in evaluation mode, without a graph; on a CPU in portions.

    Shapes:
        n samples to ``(n, C)``.
    """
    return _active_trainer(task).outputs(network, inputs)


def _active_trainer(task: Task) -> Trainer:
    """Return the active trainer if it is of this task, otherwise a plain one."""
    trainer = _trainer.get()
    return Trainer(task) if trainer is None or trainer.task is not task else trainer


def _gradients(
    value: _LossOfState, network: NetworkState, batch: Batch, draws: Draws | None
) -> tuple[Tensors, Tensors]:
    """Return the gradients of a loss, by plain autograd, and the loss's other tensors."""
    gradients, beside = gradients_beside(
        lambda params: value(NetworkState(params, network.buffers), batch, draws), network.params
    )
    return gradients, {name: tensor.detach() for name, tensor in beside.items()}
