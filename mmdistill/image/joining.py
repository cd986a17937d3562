"""Join distilled sets of different classes of one data set, as in continual learning."""

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
    """Join sets of some classes each into one batch for a task that has all of these classes.

    Classes are matched by name, so the order of the sets does not matter; a class in two sets gets the images of both.
    Learned rates are dropped, since each belongs to its set alone.

    Args:
        task: the task of the batch, in the units of the sets (see :meth:`~mmdistill.image.ImageData.of_classes`).
        sets: one or more.

    Returns:
        A batch on the CPU, for :func:`~mmdistill.evaluate`. Labels are class indices, or, if some set has
        probabilities, rows of them, 0 at classes that the image's own set lacks.

    Shapes:
        inputs ``(n, channels, height, width)`` in normalised units, targets ``(n,)`` int64 or ``(n, C)`` float32, C the
        task's classes, weight ``(n,)``.

    Raises:
        ConfigError: no sets, or a set with a class that the task lacks.
        CheckpointError: a set that is not of images, or in other units (such as whitened by its own matrix).
        ShapeError: images of another shape.
        UnsupportedError: labels that are scores, which do not cover other sets' classes, or steps in a fixed order.
    """
    if not isinstance(task, ImageTask):
        raise ConfigError(f"sets are joined for a task of images, got {type(task).__name__}")
    if not isinstance(sets, Sequence) or not sets or not all(isinstance(part, DistilledSet) for part in sets):
        raise ConfigError("one or more distilled sets are joined, as a list")
    batches = [_in_classes_of(task, part) for part in sets]
    inputs, targets, weights = zip(*batches, strict=True)
    if any(labels.is_floating_point() for labels in targets):
        targets = tuple(as_probabilities(labels, len(task.data.class_names)) for labels in targets)
    return Batch(torch.cat(inputs), torch.cat(targets), torch.cat(weights))


def _in_classes_of(task: ImageTask, part: DistilledSet) -> Batch:
    """Return a set's images with labels by the task's class indices.

    Raises:
        ConfigError, CheckpointError, ShapeError, UnsupportedError: see :func:`joined`.
    """
    info, names = task.describe(), list(task.data.class_names)
    if part.info.domain != "image":
        raise CheckpointError(f"a set of {part.info.domain} data is none of images")
    if part.info.units != info.units:
        raise CheckpointError(
            f"a set of {part.info.data!r} is in the units of {part.info.units}, the task in those of {info.units}: "
            "make the tasks of all classes from parts of one ImageData (of_classes)"
        )
    if any(not torch.equal(tensor, info.tensors[name].to(tensor)) for name, tensor in part.info.tensors.items()):
        raise CheckpointError(
            f"a set of {part.info.data!r} is whitened by another matrix than the task: whiten all data first, "
            "data = image_task(data, whiten=...).data, and make the tasks from parts of these (of_classes)"
        )
    if unknown := [name for name in part.info.class_names if name not in names]:
        raise ConfigError(f"a set is of the class {unknown[0]!r}, which the task lacks ({', '.join(names)})")
    images, targets = image_inputs(part.batch.inputs), one_tensor(part.batch.targets)
    if images.shape[1:] != task.data.shape:
        raise ShapeError(f"images of {info.data} are {task.data.shape}, a set has {tuple(images.shape[1:])}")
    if not are_probabilities(targets):
        raise UnsupportedError(
            f"the labels of {part.method} are scores, which say nothing of classes that other sets have: take a method "
            "or a label with class indices or probabilities"
        )
    if carries_steps(part.learned):
        raise UnsupportedError(f"the set of {part.method} is used by its own steps in a fixed order, alone")
    class_index = torch.tensor([names.index(name) for name in part.info.class_names])
    if not targets.is_floating_point():
        return Batch(images, class_index[targets], part.batch.weight)
    rows: Tensor = torch.zeros(len(targets), len(names)).index_copy_(1, class_index, targets.to(torch.float32))
    return Batch(images, rows, part.batch.weight)
