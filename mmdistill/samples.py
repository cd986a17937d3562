"""What samples that come from a user or from a file are checked for."""

import torch

from mmdistill.errors import DataError, ShapeError
from mmdistill.isolation import recordable
from mmdistill.task import Batch, tensors_of


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
    return batch.map(lambda tensor: tensor.float() if tensor.dtype == torch.float64 else recordable(tensor))


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
