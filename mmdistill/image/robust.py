"""DD-Ranking's scores: how much of a set's accuracy comes from its images alone.

The label-robust score compares with hard labels, the augmentation-robust score without augmentation; both also compare
with random real images under the same conditions. All accuracies are fractions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from mmdistill.abilities import ROBUST_METRICS, given_teacher, is_solved
from mmdistill.errors import UnsupportedError
from mmdistill.labels import classes_of
from mmdistill.networks.teacher import soft_labels, trained_teacher
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores, one_tensor

if TYPE_CHECKING:
    from mmdistill.image.task import ImageTask


def unit_score(alpha: float) -> float:
    """Return ``(e^alpha - e^-1) / (e - e^-1)``, which maps [-1, 1] to [0, 1]."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(recovery_gap: float, improvement: float, weight: float = 0.5) -> float:
    """Return the label-robust score, ``alpha = w improvement - (1 - w) recovery_gap``.

    Args:
        recovery_gap: accuracy of the whole training set minus that of the distilled images with hard labels.
        improvement: accuracy of the distilled set minus that of random images with labels of the same kind.
        weight: w.

    Source: Li et al., DD-Ranking, 2025.
    """
    return unit_score(weight * improvement - (1 - weight) * recovery_gap)


def augmentation_robust(with_augmentation: float, without: float, weight: float = 0.5) -> float:
    """Return the augmentation-robust score from the improvements over random images with and without augmentation.

    Source: Li et al., DD-Ranking, 2025.
    """
    return unit_score(weight * with_augmentation + (1 - weight) * without)


def robust_scores(
    task: "ImageTask",
    synthetic: Batch,
    judge: str,
    draws: Draws,
    n: int,
    learned: Mapping[str, Tensor],
    subset: Callable[[Draws], Batch] | None,
    classes: Tensor | None = None,
) -> Scores:
    """Return both scores, and the accuracy differences behind them, for each of n networks.

    Random images have hard labels if the set has; if the set's labels are soft, a network trained on the whole training
    set labels them.

    Args:
        task: the task.
        synthetic: the distilled images.
        judge: the judge's name.
        draws: the key; all compared sets are judged from the same initialisations.
        n: networks, and random subsets.
        learned: tensors learned with the set.
        subset: draws equally many random real images; None: return the gap at hard labels alone.
        classes: the images' hard labels; None: from their labels.
    Raises:
        ShapeError: labels that are a named dict.
        UnsupportedError: judges that relabel the images, or do not train.

    Differs from:
        the published package, which chooses each set's learning rate on test data and reports the best epoch; here
        judges train by the task's protocol and their last epoch counts.
    """
    if task.protocol.teacher is not None:
        raise UnsupportedError(
            f"robust scores tell what a set's own labels add, and judges of the protocol {task.protocol.name} ask a "
            "teacher for others; choose another protocol"
        )
    if is_solved(task, judge):
        raise UnsupportedError(
            f"robust scores compare trainings with and without augmentation, and {judge} does not train"
        )
    targets = one_tensor(synthetic.targets, "a robust score")
    soft = targets.is_floating_point()
    hard_labels = classes_of(targets, len(task.data.class_names)) if classes is None else classes.to(targets.device)
    hard = synthetic._replace(targets=hard_labels)
    teacher = trained_teacher(task, task.data.whole_epochs) if soft and subset is not None else None
    given = given_teacher(task)
    augmented, plain = (task.judged_by(replace(task.chosen, augment=augment)) for augment in (True, False))

    def accuracy(of: "ImageTask", batch: Batch | None, key: Draws, carried: Mapping[str, Tensor]) -> float:
        return of.evaluate(batch, judge, key, 1, carried).values["accuracy"][0]

    def hard_label_gap(key: Draws, distilled: float) -> float:
        with_hard_labels = accuracy(augmented, hard, key, learned) if soft else distilled
        return accuracy(augmented, None, key, {}) - with_hard_labels

    keys, title = [draws.fold("network", index) for index in range(n)], task.describe_judge(judge).title
    if subset is None:
        gaps = [hard_label_gap(key, accuracy(augmented, synthetic, key, learned)) for key in keys]
        return Scores(title, {"hard-label gap": tuple(gaps)})
    notes = (f"random images were labelled by the given {given}",) if teacher is not None and given else ()
    rows = []
    for index, key in enumerate(keys):
        random = subset(draws.fold("subset", index))
        if teacher is not None:
            random = random._replace(targets=soft_labels(task, teacher, random.inputs))
        distilled = accuracy(augmented, synthetic, key, learned)
        improvement = distilled - accuracy(augmented, random, key, {})
        without = accuracy(plain, synthetic, key, learned) - accuracy(plain, random, key, {})
        gap = hard_label_gap(key, distilled)
        rows.append(
            (label_robust(gap, improvement), augmentation_robust(improvement, without), gap, improvement, without)
        )
    columns = zip(*rows, strict=True)
    return Scores(title, {name: tuple(column) for name, column in zip(ROBUST_METRICS, columns, strict=True)}, notes)
