"""Gradients by which networks train between the steps of a run: in its number formats, compiled and captured as it is.

Schedules ask :func:`network_gradients` and :func:`network_outputs`: plain autograd in float32, unless a
:class:`Trainer` is at work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from torch import Tensor

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
"""``(task, state, batch, key) -> (scalar loss, what goes with it)``; the state's buffers may be moved in place.

A function of a module, so that a run compiles it once. The key is for the task, which draws dropout's masks by it, and
None where networks draw none; what else is random goes into the batch.
"""
_Value = Callable[[NetworkState, Batch, Draws | None], tuple[Tensor, Tensors]]
_Path = Callable[[NetworkState, Batch, Draws | None], tuple[Tensors, Tensors]]

MOST_COMPILED_LOSSES = 8
"""Losses that a trainer compiles or captures; further ones, such as closures of each step, are not kept."""


def training_loss(task: Task, state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
    """Return the task's own loss in training, with the moved buffers."""
    return task.loss(state, batch, train=True, draws=draws), state.buffers


class Trainer:
    """Computes gradients of a task's networks in training by the fastest path that works.

    Where the precision lowers what is not differentiated again they are computed in bfloat16, as the real side of
    class-wise matching is; parameters, gradients and steps stay in float32. Losses that cannot be batched over networks
    (with dropout, say, or of linked samples) are neither compiled nor captured.

    Args:
        task: the task.
        precision: the number formats, see :mod:`mmdistill.execution.precision`.
        compiles: whether losses are compiled.
        graph: makes the graphs that gradients are captured in; None: they are not.
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
        self._paths: dict[NetworkLoss, _Path] = {}
        self._predict: Program[[NetworkState, Inputs], Tensor] | None = None

    @property
    def compile_seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        predicting = 0.0 if self._predict is None else self._predict.seconds
        return predicting + sum(program.seconds for program in self._programs)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let :func:`network_gradients` of the task's networks be computed here meanwhile."""
        token = _trainer.set(self)
        try:
            yield
        finally:
            _trainer.reset(token)

    def gradients(
        self, loss: NetworkLoss, network: NetworkState, batch: Batch, draws: Draws | None
    ) -> tuple[Tensors, Tensors]:
        """Return what :func:`network_gradients` does."""
        linked = self.precision == "mixed" and shares_inputs(batch)  # products of sparse matrices stay in float32
        path = self._paths.get(loss)
        if path is None and len(self._paths) < MOST_COMPILED_LOSSES:
            path = self._paths[loss] = self._path(loss, batch)
        with autocast_for(self.precision, self.task.device, graph=linked):
            return (path or self._plain(loss))(network, batch, draws)

    def outputs(self, network: NetworkState, inputs: Inputs) -> Tensor:
        """Return what :func:`network_outputs` does."""
        task = self.task

        def predict(state: NetworkState, inputs: Inputs) -> Tensor:
            return task.predict(state, inputs)[0]

        if self.compiles and self._predict is None and isinstance(inputs, Tensor):
            self._predict = Program(predict)
        chosen = predict if self._predict is None else self._predict
        with autocast_for(self.precision, task.device, graph=not isinstance(inputs, Tensor)):
            found = features_by_portions(lambda part: chosen(network, part), inputs)
        return in_full(found)

    def _valued(self, loss: NetworkLoss) -> _Value:
        """Return a loss that leaves the network's buffers as they are."""
        task = self.task

        def value(state: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensor, Tensors]:
            return loss(task, NetworkState(state.params, copied(state.buffers)), batch, draws)

        return value

    def _plain(self, loss: NetworkLoss) -> _Path:
        """Return the eager path to a loss's gradients."""
        return partial(_gradients, self._valued(loss))

    def _path(self, loss: NetworkLoss, batch: Batch) -> _Path:
        """Return the fastest path to the gradients of a loss, by the first batch."""
        if not (self.compiles or self.graph) or not batches_networks(self.task, batch):
            return self._plain(loss)
        chosen = self._valued(loss)
        if self.compiles:
            chosen = program = Program(chosen)
            self._programs.append(program)

        def keyless(_: Draws, inputs: tuple[NetworkState, Batch]) -> tuple[Tensors, Tensors]:
            return _gradients(chosen, *inputs, None)

        if self.graph is None:
            return lambda network, batch, _: _gradients(chosen, network, batch, None)
        replay, key = Replay(keyless, self.graph), Draws(0, device=self.task.device)  # by which nothing is drawn

        def replayed(network: NetworkState, batch: Batch, _: Draws | None) -> tuple[Tensors, Tensors]:
            gradients, beside = copied_together(replay(key, (network, batch)))  # which the next replay overwrites
            return gradients, beside

        return replayed


_trainer: ContextVar[Trainer | None] = ContextVar("trainer", default=None)
"""Of this thread alone."""


def network_gradients(
    loss: NetworkLoss, task: Task, network: NetworkState, batch: Batch, draws: Draws | None
) -> tuple[Tensors, Tensors]:
    """Return a loss's gradients with respect to a network's parameters, by name, and what the loss returns beside it.

    Nothing that is returned belongs to a graph, and the network stays as it is.

    Args:
        loss: see :data:`NetworkLoss`.
        task: the task.
        network: the network.
        batch: a flat batch.
        draws: the key of dropout's masks.
    """
    return _at_work(task).gradients(loss, network, batch, draws)


def network_outputs(task: Task, network: NetworkState, inputs: Inputs) -> Tensor:
    """Return a network's outputs without a graph, as it gives them when it is tested; on a CPU in portions.

    Shapes:
        n samples to ``(n, C)``.
    """
    return _at_work(task).outputs(network, inputs)


def _at_work(task: Task) -> Trainer:
    """Return the trainer of a task's networks, a plain one if there is none."""
    trainer = _trainer.get()
    return Trainer(task) if trainer is None or trainer.task is not task else trainer


def _gradients(value: _Value, network: NetworkState, batch: Batch, draws: Draws | None) -> tuple[Tensors, Tensors]:
    """Return the gradients of a loss, by plain autograd, and what it returns beside it."""
    gradients, beside = gradients_beside(
        lambda params: value(NetworkState(params, network.buffers), batch, draws), network.params
    )
    return gradients, {name: tensor.detach() for name, tensor in beside.items()}
