"""Compiled forms of what objectives ask of networks."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mmdistill.abilities import MapReader
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Tensors


class Compiled(NamedTuple):
    """Compiled forms of what a task does most; each is compiled when it is first called.

    Args:
        features: the task's ``features``.
        loss: the task's ``loss``, for gradients that are not differentiated again.
        class_gradients: the gradients of all classes in one batched call.
        gradient: the gradient of one class, which may be differentiated again.
        maps: the task's ``maps``; None where it has none.
    """

    features: Callable[[NetworkState, Inputs], tuple[Tensor, ...]]
    loss: Callable[[NetworkState, Batch], Tensor]
    class_gradients: Callable[[NetworkState, ClassBatch], Tensors]
    gradient: Callable[[NetworkState, Batch], Tensors]
    maps: Callable[[NetworkState, Inputs, MapReader], tuple[Tensor, ...]] | None = None
