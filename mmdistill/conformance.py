"""What the conformance battery is made of: its errors and tolerances, and one objective's point seen another way."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmdistill.abilities import StoresSamples
from mmdistill.errors import MmdistillError
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Task, map_inputs, shares_inputs, tensors_of

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
    """Return a batch in the opposite order of its samples, within each class; as it is where these are linked."""
    if not isinstance(batch, ClassBatch):
        return batch if shares_inputs(batch) else batch.map(lambda t: t.flip(0))
    return batch if None in batch.dims else ClassBatch(batch.batch.map(lambda t: t.flip(1)), batch.dims)


def padded(batch: Batch | ClassBatch) -> Batch | ClassBatch | None:
    """Return class batches with one more sample in each class, of another one and of weight 0; None of others.

    Samples that may be linked, such as nodes, come in several tensors and have none.
    """
    if not isinstance(batch, ClassBatch) or None in batch.dims or not isinstance(batch.batch.inputs, Tensor):
        return None
    flat = batch.batch.map(lambda t: torch.cat([t, t[:, :1].roll(1, 0)], 1))
    flat.weight[:, -1] = 0
    return ClassBatch(flat, batch.dims)


def check_weights(
    computed: Callable[[Batch | ClassBatch, Batch | ClassBatch], Tensor],
    syn: Batch | ClassBatch,
    real: Batch | ClassBatch,
    value: Tensor,
) -> None:
    """Check that samples of weight 0 change nothing, where classes have batches of their own.

    Args:
        computed: an objective's value of both sides.
        syn: the synthetic batch.
        real: the real batch.
        value: of these.
    Raises:
        ConformanceError: they do.
    """
    for side, one, other in (("synthetic", padded(syn), real), ("real", syn, padded(real))):
        if one is None or other is None:
            continue
        error = relative_error(computed(one, other).detach(), value)
        require(
            error < TOLERANCE[torch.float64],
            f"objective: {side} samples of weight 0 change the value by {error:.1e} of it; classes may have different "
            "numbers of samples, and batch.batch.weight is 0 where one has fewer",
        )


def with_another_first(batch: Batch, classes: int | None) -> tuple[Batch, Batch]:
    """Return a batch whose first sample that counts weighs nothing, and the same with another sample in its place.

    The other one has that one's numbers in another order, where it may be changed alone: where inputs are one tensor of
    a row per sample. Its target is another class, or likewise.

    Args:
        batch: the samples, of which one counts at least.
        classes: how many there are; None: none.
    """
    place = int(batch.weight.nonzero()[0])

    def moved(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        row = tensor[place]
        tensor[place] = row.roll(1) if row.ndim else (row + 1) % (classes or 2)
        return tensor

    weight = batch.weight.clone()
    weight[place] = 0
    alone = isinstance(batch.inputs, Tensor) and len(batch.inputs) == len(weight)
    inputs = map_inputs(moved, batch.inputs) if alone else batch.inputs
    return batch._replace(weight=weight), Batch(inputs, map_inputs(moved, batch.targets), weight)


def without_firsts(batch: ClassBatch) -> ClassBatch:
    """Return class batches in which the first sample weighs nothing, of classes that have others that count."""
    weight = batch.batch.weight.clone()
    first = (weight > 0).int().argmax(1, keepdim=True)
    several = ((weight > 0).sum(1, keepdim=True) > 1).to(weight)
    weight.scatter_(1, first, weight.gather(1, first) * (1 - several))
    return ClassBatch(batch.batch._replace(weight=weight), batch.dims)


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


def synthetic(task: Task, n: int, key: Draws, classes: Tensor | None) -> Batch | ClassBatch:
    """Return real samples in the form that synthetic ones have: as the task stores them, where it has a way."""
    own, count = key.fold("syn"), n * (task.num_classes or 1)
    if not isinstance(task, StoresSamples):
        return wide(task.sample_real(own, classes, count if classes is None else n))
    budget = n if task.describe().budget == "ipc" else count
    made = task.stored(budget, Settings(steps=1), "hard", own).to(task.device)
    decoded: Batch = made(own).map(Tensor.detach)
    return wide(decoded if classes is None else made.class_batches(decoded))


def wide(batch: Batch | ClassBatch) -> Batch | ClassBatch:
    """Return a batch whose floats are in float64."""
    if isinstance(batch, ClassBatch):
        return ClassBatch(batch.batch.map(doubled), batch.dims)
    return batch.map(doubled)


def doubled(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, if it is one of floats."""
    return tensor.double() if tensor.is_floating_point() else tensor
