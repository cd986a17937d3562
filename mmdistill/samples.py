"""Checks of samples that come from a user or from a file."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmdistill.checks import is_of
from mmdistill.errors import DataError, ShapeError
from mmdistill.execution.isolation import recordable
from mmdistill.task import Batch, TaskInfo, named_tensors, take, tensors_of


def checked_samples(batch: Batch) -> Batch:
    """Check a user's own samples and return them in float32.

    Raises:
        ShapeError: weights, labels or inputs of other lengths, or labels of another shape.
        DataError: NaN or infinite values, weights below 0 or all 0, or inputs that are not floats.
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
    """Return samples with all floats in float32, as networks read them."""
    return batch.map(lambda tensor: recordable(tensor.float() if tensor.is_floating_point() else tensor))


def require_forms(batch: Batch, forms: Mapping[str, Sequence[int | None]]) -> None:
    """Check that samples have the forms that their task's networks read (``TaskInfo.forms``).

    Raises:
        ShapeError: a tensor is missing, not of floats, or has other axes.
    """
    inputs = named_tensors("inputs", batch.inputs)
    for name, axes in forms.items():
        expected = f"{name} are floats ({', '.join(['n', *('*' if axis is None else str(axis) for axis in axes)])})"
        if name not in inputs:
            raise ShapeError(f"{expected}, got {', '.join(f'{key} {tuple(t.shape)}' for key, t in inputs.items())}")
        shape = inputs[name].shape[1:]
        fits = len(shape) == len(axes) and all(axis in (None, size) for axis, size in zip(axes, shape, strict=True))
        if not fits or not inputs[name].is_floating_point():
            kind = str(inputs[name].dtype).removeprefix("torch.")
            raise ShapeError(f"{expected}, got {kind} {tuple(inputs[name].shape)}")


def forms_read(value: object) -> dict[str, tuple[int | None, ...]]:
    """Return the forms of inputs from a set's file, by name.

    Raises:
        TypeError: the value is not a mapping from names to lists of lengths.
    """
    forms = list(value.values()) if isinstance(value, Mapping) else [None]
    if not all(isinstance(form, list) and all(axis is None or is_of(axis, int) for axis in form) for form in forms):
        raise TypeError(f"info.forms is {value!r}, and no lists of whole numbers by name")
    return {name: tuple(form) for name, form in value.items()}  # type: ignore[attr-defined]


def counted(batch: Batch) -> Batch:
    """Drop the samples of a flat batch with weight 0, which judges would still read in batch norms and mixtures.

    Raises:
        DataError: no sample has a weight.
    """
    present = batch.weight > 0
    if not present.any():
        raise DataError("no sample of the set has a weight above 0")
    return batch if present.all() else take(batch, present)


def require_weighed(batch: Batch) -> None:
    """Check that inputs, targets and weights have one length, and that the weights are valid.

    Raises:
        ShapeError: weights, labels or inputs of other lengths; named inputs may be shared, of any length.
        DataError: weights below 0, all 0, NaN or infinite.
    """
    weight = batch.weight
    count = len(weight) if weight.ndim else -1
    inputs, targets = tensors_of(batch.inputs), tensors_of(batch.targets)
    per_sample = [weight, *targets, *([] if isinstance(batch.inputs, dict) else inputs)]
    if weight.ndim != 1 or any(not tensor.ndim or len(tensor) != count for tensor in per_sample):
        shapes = [tuple(tensor.shape) for tensor in (*inputs, *targets, weight)]
        raise ShapeError(f"a batch has as many inputs, targets and weights (n,), got the shapes {shapes}")
    if not count or not weight.isfinite().all() or (weight < 0).any() or not (weight > 0).any():
        raise DataError("weights are finite numbers of at least 0, some of them above")


def require_set(batch: Batch, info: TaskInfo, classes: Tensor | None) -> None:
    """Check the shapes of a set's samples against each other, the task's forms and the number of classes.

    Raises:
        ShapeError: inputs, targets, weights or classes of other lengths; inputs of other axes than the task's or not
            floats; or soft targets without a number for each class.
        DataError: no samples, or class indices out of range.
    """
    require_weighed(batch)
    require_forms(batch, info.forms)
    targets, names = batch.targets, info.class_names
    indices = {} if classes is None else {"classes": classes}
    if names and isinstance(targets, Tensor) and not targets.is_floating_point():
        indices["targets"] = targets
    for name, values in indices.items():
        if values.shape != batch.weight.shape or values.is_floating_point():
            raise ShapeError(f"{name} are a class index for each sample, got {tuple(values.shape)} {values.dtype}")
        if values.min() < 0 or (names and values.max() >= len(names)):
            raise DataError(f"{name} are indices of {len(names)} classes, got {values.min()} to {values.max()}")
    if names and isinstance(targets, Tensor) and "targets" not in indices and targets.shape[1:] != (len(names),):
        raise ShapeError(f"targets are rows of {len(names)} numbers, one for each class, got {tuple(targets.shape)}")
