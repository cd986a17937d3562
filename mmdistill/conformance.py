"""What the conformance battery is made of: its errors and tolerances, and one objective's point seen another way."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmdistill.errors import MmdistillError
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, tensors_of

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""Relative error allowed between two ways of computing one thing, by dtype."""

SINGLE = 1e-3
"""Relative error allowed of an objective's value and gradient in float32, which differences of near values enlarge."""


class ConformanceError(MmdistillError, AssertionError):
    """A task, an objective or a way of storing samples breaks its contract."""


def require(condition: bool, message: str) -> None:
    """Refuse what breaks a contract.

    Raises:
        ConformanceError: it does, in the words of the message.
    """
    if not condition:
        raise ConformanceError(message)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Have an error of the library tell that something breaks its contract."""
    try:
        yield
    except MmdistillError as error:
        raise ConformanceError(f"{what}: {error}") from error


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return ||a - b|| / ||b||, or ||a - b|| where b is 0."""
    scale = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / (scale or 1.0)


def samples_of(batch: Batch | ClassBatch) -> Tensor:
    """Return the first inputs of a batch that are numbers."""
    flat = batch.batch if isinstance(batch, ClassBatch) else batch
    return next(t for t in tensors_of(flat.inputs) if t.is_floating_point())


def with_samples(batch: Batch | ClassBatch, inputs: Tensor) -> Batch | ClassBatch:
    """Return a batch with others in the place of its first inputs that are numbers."""
    if isinstance(batch, ClassBatch):
        moved = with_samples(batch.batch, inputs)
        assert isinstance(moved, Batch)
        return ClassBatch(moved, batch.dims)
    if not isinstance(batch.inputs, dict):
        return batch._replace(inputs=inputs)
    name = next(n for n, t in batch.inputs.items() if t.is_floating_point())
    return batch._replace(inputs={**batch.inputs, name: inputs})


def in_reverse(batch: Batch | ClassBatch) -> Batch | ClassBatch:
    """Return a batch in the opposite order of its samples, within each class; as it is where classes share them."""
    if not isinstance(batch, ClassBatch):
        return batch.map(lambda t: t.flip(0))
    return batch if None in batch.dims else ClassBatch(batch.batch.map(lambda t: t.flip(1)), batch.dims)


def check_single(
    objective: Objective,
    network: Network,
    syn: Batch | ClassBatch,
    real: Batch | ClassBatch,
    value: Tensor,
    gradient: Tensor,
    allowed: float,
) -> None:
    """Check that float32 gives an objective's value and gradient of float64, but for rounding.

    Args:
        objective: the objective, which stays as it is.
        network: in float64, as both batches are.
        syn: the synthetic batch.
        real: the real batch.
        value: in float64.
        gradient: in float64, of the first inputs of ``syn`` that are numbers.
        allowed: relative error of each.
    Raises:
        ConformanceError: they differ by more.
    """
    own = copy.deepcopy(objective).float()
    target = None if network.target is None else {name: _narrow(t) for name, t in network.target.items()}
    accuracy = None if network.accuracy is None else _narrow(network.accuracy)
    lower = network._replace(state=network.state.map(_narrow), target=target, accuracy=accuracy)
    syn, real = (
        ClassBatch(side.batch.map(_narrow), side.dims) if isinstance(side, ClassBatch) else side.map(_narrow)
        for side in (syn, real)
    )
    leaf = samples_of(syn).detach().clone().requires_grad_()
    loss = own(lower, with_samples(syn, leaf), real, Draws(0, ("objective",)))
    (found,) = torch.autograd.grad(loss, (leaf,))
    for what, one, other in (("value", loss.detach(), value), ("gradient", found, gradient)):
        error = relative_error(one, other)
        require(error < allowed, f"objective: its {what} in float32 differs by {error:.1e} of that in float64")


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
