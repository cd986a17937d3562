"""What samples that come from a user or from a file are checked for."""

from collections.abc import Mapping, Sequence

from mmdistill.errors import DataError, ShapeError
from mmdistill.execution.isolation import recordable
from mmdistill.task import Batch, named_tensors, take, tensors_of


def checked_samples(batch: Batch) -> Batch:
    """Return samples of the user's own, once they are checked, in float32.

    Raises:
        ShapeError: weights, labels or inputs of other lengths, or labels of another shape.
        DataError: NaN or infinite values, weights below 0 or all 0, or inputs that are no floats.
    """
    require_weighed(batch)
    inputs, targets = tensors_of(batch.inputs), tensors_of(batch.targets)
    if not isinstance(batch.inputs, dict) and not batch.inputs.is_floating_point():
        raise DataError("inputs are floats in the task's units (images normalised, as task.select returns them)")
    if any(tensor.is_floating_point() and tensor.ndim < 2 for tensor in targets):
        raise ShapeError("targets are class indices (n,) as whole numbers, or a row of numbers for each sample")
    if not all(bool(tensor.isfinite().all()) for tensor in (*inputs, *targets)):
        raise DataError("inputs and targets hold NaN or infinite values")
    return in_float32(batch)


def in_float32(batch: Batch) -> Batch:
    """Return samples whose floats, of however many bits, are in float32, as networks read them."""
    return batch.map(lambda tensor: recordable(tensor.float() if tensor.is_floating_point() else tensor))


def require_forms(batch: Batch, forms: Mapping[str, Sequence[int | None]]) -> None:
    """Check that samples are what networks of their task read, as far as that says it (:class:`TaskInfo`).

    Raises:
        ShapeError: the first tensor that is missing, no floats, or of other axes.
    """
    inputs = named_tensors("inputs", batch.inputs)
    for name, axes in forms.items():
        wanted = f"{name} are floats ({', '.join(['n', *('*' if axis is None else str(axis) for axis in axes)])})"
        if name not in inputs:
            raise ShapeError(f"{wanted}, got {', '.join(f'{own} {tuple(t.shape)}' for own, t in inputs.items())}")
        shape = inputs[name].shape[1:]
        alike = len(shape) == len(axes) and all(axis in (None, own) for axis, own in zip(axes, shape, strict=True))
        if not alike or not inputs[name].is_floating_point():
            kind = str(inputs[name].dtype).removeprefix("torch.")
            raise ShapeError(f"{wanted}, got {kind} {tuple(inputs[name].shape)}")


def counted(batch: Batch) -> Batch:
    """Return the samples of a flat batch that have a weight; judges would read the others in norms and mixtures.

    Raises:
        DataError: none has a weight.
    """
    present = batch.weight > 0
    if not present.any():
        raise DataError("no sample of the set has a weight above 0")
    return batch if present.all() else take(batch, present)


def require_weighed(batch: Batch) -> None:
    """Check that samples are as many as their targets and weights, and that these are weights.

    Raises:
        ShapeError: weights, labels or inputs of other lengths; inputs by name may be shared.
        DataError: weights below 0, all 0 or no numbers.
    """
    weight = batch.weight
    count = len(weight) if weight.ndim else -1
    inputs, targets = tensors_of(batch.inputs), tensors_of(batch.targets)
    of_samples = [weight, *targets, *([] if isinstance(batch.inputs, dict) else inputs)]
    if weight.ndim != 1 or any(not tensor.ndim or len(tensor) != count for tensor in of_samples):
        shapes = [tuple(tensor.shape) for tensor in (*inputs, *targets, weight)]
        raise ShapeError(f"a batch has as many inputs, targets and weights (n,), got the shapes {shapes}")
    if not count or not weight.isfinite().all() or (weight < 0).any() or not (weight > 0).any():
        raise DataError("weights are finite numbers of at least 0, some of them above")
