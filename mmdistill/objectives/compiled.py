"""Compiled forms of the network functions that objectives call most."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.abilities import GivesMaps, MapReader
from mmdistill.errors import UnsupportedError, first_line
from mmdistill.execution.compilation import Program, has_compiler
from mmdistill.execution.precision import Precision
from mmdistill.networks.step_programs import StepPrograms
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Task, Tensors

UNBATCHABLE = ("vmap", "batching rule", "batched tensor", "broadcast shape", "expected scalar type")
"""Phrases in torch's errors about a network that cannot be batched over classes."""


class Compiled(NamedTuple):
    """Compiled forms of a task's most frequent functions; each is compiled at its first call.

    Args:
        features: the task's ``features``.
        loss: the task's ``loss``, for gradients that are not differentiated again.
        class_gradients: the gradients of all classes in one batched call.
        gradient: the gradient of one class, which may be differentiated again.
        maps: the task's ``maps``; None where it has none.
        steps: compiled gradients of a student's steps; None: they stay eager.
    """

    features: Callable[[NetworkState, Inputs], tuple[Tensor, ...]]
    loss: Callable[[NetworkState, Batch], Tensor]
    class_gradients: Callable[[NetworkState, ClassBatch], Tensors]
    gradient: Callable[[NetworkState, Batch], Tensors]
    maps: Callable[[NetworkState, Inputs, MapReader], tuple[Tensor, ...]] | None = None
    steps: StepPrograms | None = None

    @classmethod
    def of(cls, task: Task, precision: Precision = "float32") -> "Compiled":
        """Return the compiled forms of a task's functions, at a run's precision."""

        def class_gradients(state: NetworkState, batch: ClassBatch) -> Tensors:
            return batched_gradients(task, state, batch)

        def gradient(state: NetworkState, batch: Batch) -> Tensors:
            return gradient_of_one(task, state, batch)

        compiles_steps = task.device.type == "cpu" and has_compiler()
        return cls(
            features=Program(task.features),
            loss=Program(task.loss),
            class_gradients=Program(class_gradients),
            gradient=Program(gradient),
            maps=Program(task.maps) if isinstance(task, GivesMaps) else None,
            steps=StepPrograms(precision == "bf16") if compiles_steps else None,
        )

    @property
    def seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        return sum(form.seconds for form in self if isinstance(form, Program | StepPrograms))


def batched_gradients(task: Task, state: NetworkState, batch: ClassBatch) -> Tensors:
    """Return the gradients of all C classes in one batched call, each ``(C, *parameter)``.

    Raises:
        UnsupportedError: the network cannot take several classes at once.
    """

    def loss(params: Tensors, one: Batch) -> Tensor:
        return task.loss(NetworkState(params, state.buffers), one)

    in_dims = (None, Batch(*batch.dims))  # type: ignore[arg-type]
    try:
        result: Tensors = torch.func.vmap(torch.func.grad(loss), in_dims=in_dims)(state.params, batch.batch)
    except RuntimeError as error:
        if not any(phrase in str(error) for phrase in UNBATCHABLE):
            raise
        raise UnsupportedError(
            f"the network cannot take several classes at once ({first_line(error):.200}); let it take one at "
            "a time: --classes-at-once 1, or settings={'classes_at_once': 1}"
        ) from error
    return result


def gradient_of_one(task: Task, state: NetworkState, batch: Batch) -> Tensors:
    """Return the gradient of one class; it can be compiled, and its result differentiated again."""
    result: Tensors = torch.func.grad(lambda params: task.loss(NetworkState(params, state.buffers), batch))(
        state.params
    )
    return result
