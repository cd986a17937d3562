"""Sets of different classes of one data set, put together: what is kept of classes that came one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, ShapeError, UnsupportedError
from mmdistill.execution.isolation import isolated
from mmdistill.image.augment import image_inputs
from mmdistill.image.task import ImageTask
from mmdistill.labels import are_probabilities, as_probabilities
from mmdistill.networks.minibatches import carries_steps
from mmdistill.task import Batch, one_tensor


@isolated
def joined(task: ImageTask, sets: Sequence[DistilledSet]) -> Batch:
    """Return the images of sets of some classes each as one batch of a task that has all of these classes.

    Classes go by name, so the order of the sets does not matter; a class of two sets gets the images of both. A rate
    that was learned with a set is its own alone, and left out.

    Args:
        task: what the batch is for, in the units of the sets (see :meth:`~mmdistill.image.ImageData.of_classes`).
        sets: one or more.

    Returns:
        A batch on the CPU, for :func:`~mmdistill.evaluate`. Labels are class indices, or, where a set has
        probabilities, rows of them, 0 at classes that the image's own set lacks.

    Shapes:
        inputs ``(n, channels, height, width)`` in normalised units, targets ``(n,)`` int64 or ``(n, C)`` float32, C the
        task's classes, weight ``(n,)``.

    Raises:
        ConfigError: no sets, or one of a class that the task lacks.
        CheckpointError: a set of other data than images, or in other units (whitened by a matrix of its own, say).
        ShapeError: images of another shape.
        UnsupportedError: labels that are scores, which say nothing of other sets' classes, or steps in a fixed order.
    """
    if not isinstance(task, ImageTask):
        raise ConfigError(f"sets are joined for a task of images, got {type(task).__name__}")
    if not isinstance(sets, Sequence) or not sets or not all(isinstance(one, DistilledSet) for one in sets):
        raise ConfigError("one or more distilled sets are joined, as a list")
    parts = [_renumbered(task, one) for one in sets]
    inputs, targets, weights = zip(*parts, strict=True)
    if any(own.is_floating_point() for own in targets):
        targets = tuple(as_probabilities(own, len(task.data.class_names)) for own in targets)
    return Batch(torch.cat(inputs), torch.cat(targets), torch.cat(weights))


def _renumbered(task: ImageTask, one: DistilledSet) -> Batch:
    """Return a set's images with labels by the task's class numbers.

    Raises:
        ConfigError, CheckpointError, ShapeError, UnsupportedError: see :func:`joined`.
    """
    info, names = task.describe(), list(task.data.class_names)
    if one.info.domain != "image":
        raise CheckpointError(f"a set of {one.info.domain} data is none of images")
    if one.info.units != info.units:
        raise CheckpointError(
            f"a set of {one.info.data!r} is in the units of {one.info.units}, the task in those of {info.units}: make "
            "the tasks of all classes from parts of one ImageData (of_classes)"
        )
    if any(not torch.equal(tensor, info.tensors[name].to(tensor)) for name, tensor in one.info.tensors.items()):
        raise CheckpointError(
            f"a set of {one.info.data!r} is whitened by another matrix than the task: whiten all data first, "
            "data = image_task(data, whiten=...).data, and make the tasks from parts of these (of_classes)"
        )
    if unknown := [name for name in one.info.class_names if name not in names]:
        raise ConfigError(f"a set is of the class {unknown[0]!r}, which the task lacks ({', '.join(names)})")
    images, targets = image_inputs(one.batch.inputs), one_tensor(one.batch.targets)
    if images.shape[1:] != task.data.shape:
        raise ShapeError(f"images of {info.data} are {task.data.shape}, a set has {tuple(images.shape[1:])}")
    if not are_probabilities(targets):
        raise UnsupportedError(
            f"the labels of {one.method} are scores, which say nothing of classes that other sets have: take a method "
            "or a label with class indices or probabilities"
        )
    if carries_steps(one.learned):
        raise UnsupportedError(f"the set of {one.method} is used by its own steps in a fixed order, alone")
    places = torch.tensor([names.index(name) for name in one.info.class_names])
    if not targets.is_floating_point():
        return Batch(images, places[targets], one.batch.weight)
    rows: Tensor = torch.zeros(len(targets), len(names)).index_copy_(1, places, targets.to(torch.float32))
    return Batch(images, rows, one.batch.weight)
