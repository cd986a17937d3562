"""Parts of the conformance battery: its errors and tolerances, and changes of batches that must not change a value."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from mmdistill.abilities import DescribesJudges, StoresSamples
from mmdistill.errors import MmdistillError
from mmdistill.objectives.base import Network, Objective
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Task, map_inputs, shares_inputs, tensors_of

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""Relative error allowed between two computations of one quantity, by dtype."""

MANY = 500
"""Numbers of a synthetic batch above which gradients are compared along one direction, not number by number."""

SINGLE = 1e-3
"""Relative error allowed in an objective's value and gradient in float32, which cancellation enlarges."""


class ConformanceError(MmdistillError, AssertionError):
    """A task, an objective or a way of storing samples breaks its contract."""


def require(condition: bool, message: str) -> None:
    """Check a condition of a contract.

    Raises:
        ConformanceError: the condition is false; with the message.
    """
    if not condition:
        raise ConformanceError(message)


@contextmanager
def as_conformance_error(what: str) -> Iterator[None]:
    """Within this context an error of the library becomes a :class:`ConformanceError`."""
    try:
        yield
    except MmdistillError as error:
        raise ConformanceError(f"{what}: {error}") from error


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return ||a - b|| / ||b||, or ||a - b|| if b is 0."""
    scale = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / (scale or 1.0)


def samples_of(batch: Batch | ClassBatch) -> Tensor:
    """Return the first float tensor of a batch's inputs."""
    flat = batch.batch if isinstance(batch, ClassBatch) else batch
    return next(t for t in tensors_of(flat.inputs) if t.is_floating_point())


def with_samples(batch: Batch | ClassBatch, inputs: Tensor) -> Batch | ClassBatch:
    """Return a batch with its first float tensor of inputs replaced."""
    if isinstance(batch, ClassBatch):
        replaced = with_samples(batch.batch, inputs)
        assert isinstance(replaced, Batch)
        return ClassBatch(replaced, batch.dims)
    if not isinstance(batch.inputs, dict):
        return batch._replace(inputs=inputs)
    name = next(n for n, t in batch.inputs.items() if t.is_floating_point())
    return batch._replace(inputs={**batch.inputs, name: inputs})


def reverse_samples(batch: Batch | ClassBatch) -> Batch | ClassBatch:
    """Reverse the order of samples, within each class; linked samples (of one graph) stay as they are."""
    if not isinstance(batch, ClassBatch):
        return batch if shares_inputs(batch) else batch.map(lambda t: t.flip(0))
    return batch if None in batch.dims else ClassBatch(batch.batch.map(lambda t: t.flip(1)), batch.dims)


def pad_classes(batch: Batch | ClassBatch) -> Batch | ClassBatch | None:
    """Pad each class with one sample of another class, with weight 0; return None if that is not possible.

    It is possible for class batches with one tensor of inputs; others may be linked, like nodes.
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
    """Check that padding classes with samples of weight 0 does not change an objective's value.

    Args:
        computed: computes the value from both sides.
        syn: the synthetic batch.
        real: the real batch.
        value: the value without padding.
    Raises:
        ConformanceError: the value changes.
    """
    for side, syn_side, real_side in (("synthetic", pad_classes(syn), real), ("real", syn, pad_classes(real))):
        if syn_side is None or real_side is None:
            continue
        error = relative_error(computed(syn_side, real_side).detach(), value)
        require(
            error < TOLERANCE[torch.float64],
            f"objective: {side} samples of weight 0 change the value by {error:.1e} of it; classes may have different "
            "numbers of samples, and batch.batch.weight is 0 where one has fewer",
        )


def change_first_sample(batch: Batch, classes: int | None) -> tuple[Batch, Batch]:
    """Return a batch with its first weighted sample set to weight 0, and the same with that sample's values changed.

    Its inputs are rolled if inputs are one tensor with a row per sample, else they stay. Its target becomes another
    class, or is rolled.

    Args:
        batch: the samples, at least one of them with a weight.
        classes: the number of classes; None: none.
    """
    first = int(batch.weight.nonzero()[0])

    def change_first(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        row = tensor[first]
        tensor[first] = row.roll(1) if row.ndim else (row + 1) % (classes or 2)
        return tensor

    weight = batch.weight.clone()
    weight[first] = 0
    has_rows = isinstance(batch.inputs, Tensor) and len(batch.inputs) == len(weight)
    inputs = map_inputs(change_first, batch.inputs) if has_rows else batch.inputs
    return batch._replace(weight=weight), Batch(inputs, map_inputs(change_first, batch.targets), weight)


def drop_first_samples(batch: ClassBatch) -> ClassBatch:
    """Return class batches with each class's first weighted sample set to weight 0, unless it is the only one."""
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
    """Check an objective's value and gradient in float32 against those in float64.

    Args:
        objective: the objective, which stays as it is.
        network: in float64, like both batches.
        syn: the synthetic batch.
        real: the real batch.
        value: in float64.
        gradient: in float64, with respect to the first float tensor of ``syn``'s inputs.
        allowed: relative error of each.
    Raises:
        ConformanceError: one differs by more.
    """
    single = copy.deepcopy(objective).float()
    target = None if network.target is None else {name: _narrow(t) for name, t in network.target.items()}
    accuracy = None if network.accuracy is None else _narrow(network.accuracy)
    lower = network._replace(state=network.state.map(_narrow), target=target, accuracy=accuracy)
    syn, real = (
        ClassBatch(side.batch.map(_narrow), side.dims) if isinstance(side, ClassBatch) else side.map(_narrow)
        for side in (syn, real)
    )
    leaf = samples_of(syn).detach().clone().requires_grad_()
    loss = single(lower, with_samples(syn, leaf), real, Draws(0, ("objective",)))
    (single_gradient,) = torch.autograd.grad(loss, (leaf,))
    for what, in_single, in_double in (("value", loss.detach(), value), ("gradient", single_gradient, gradient)):
        error = relative_error(in_single, in_double)
        require(error < allowed, f"objective: its {what} in float32 differs by {error:.1e} of that in float64")


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def synthetic(task: Task, n: int, key: Draws, classes: Tensor | None) -> Batch | ClassBatch:
    """Return samples in the form of synthetic ones, in float64: decoded from the task's storage, else real ones."""
    draws, count = key.fold("syn"), n * (task.num_classes or 1)
    if not isinstance(task, StoresSamples):
        return to_float64(task.sample_real(draws, classes, count if classes is None else n))
    budget = n if task.describe().budget == "ipc" else count
    samples = task.stored(budget, Settings(steps=1), "hard", draws).to(task.device)
    decoded: Batch = samples(draws).map(Tensor.detach)
    return to_float64(decoded if classes is None else samples.class_batches(decoded))


def to_float64(batch: Batch | ClassBatch) -> Batch | ClassBatch:
    """Return a batch with its floats in float64."""
    if isinstance(batch, ClassBatch):
        return ClassBatch(batch.batch.map(doubled), batch.dims)
    return batch.map(doubled)


def doubled(tensor: Tensor) -> Tensor:
    """Return a float tensor in float64, others unchanged."""
    return tensor.double() if tensor.is_floating_point() else tensor


def check_judges(task: Task) -> None:
    """Check that a task that describes its judges refuses unknown ones, which commands and ``evaluate`` leave to it.

    Raises:
        ConformanceError: it gives a name to an unknown judge, or fails otherwise than by an error of the library.
    """
    if not isinstance(task, DescribesJudges):
        return
    try:
        outcome = f"got the judge {task.describe_judge('no such judge').name!r}"
    except MmdistillError:
        return
    except Exception as error:
        outcome = f"got a {type(error).__name__}"
    raise ConformanceError(f"describe_judge: an unknown judge must raise a ConfigError, as names.known_name, {outcome}")


def check_gradient(at: Callable[[Tensor], Tensor], leaf: Tensor) -> None:
    """Compare an objective's gradient with finite differences.

    Args:
        at: the objective as a function of the synthetic samples.
        leaf: these samples, which require a gradient.
    Raises:
        ConformanceError: they differ.
    """
    try:
        torch.autograd.gradcheck(at, (leaf,), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=leaf.numel() > MANY)
    except GradcheckError as error:
        raise ConformanceError(
            "objective: finite differences do not confirm the gradient; what is detached counts as a constant (if it "
            f"should, name it by detached), and at the kink of a ReLU there is none: {error}"
        ) from error
