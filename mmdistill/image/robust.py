"""The scores of the field's neutral evaluator: how much of a set's accuracy its images owe to themselves.

The label-robust score asks what is left with hard labels, the augmentation-robust score what is left without
augmentation, each beside random real images that are given the same. All accuracies are fractions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from mmdistill.abilities import ROBUST_METRICS, given_teacher
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
        recovery_gap: accuracy of the whole set less that of the distilled images with hard labels.
        improvement: accuracy of the distilled set less that of random images with labels of the same kind.
        weight: w.

    Source: Li et al., DD-Ranking, 2025.
    """
    return unit_score(weight * improvement - (1 - weight) * recovery_gap)


def augmentation_robust(with_augmentation: float, without: float, weight: float = 0.5) -> float:
    """Return the augmentation-robust score of the improvements over random images with and without augmentation.

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
    """Return both scores and the differences that they are made of, for each of n networks.

    Random images get hard labels where the set has them, and the soft labels of a network trained on the whole set
    where the set's are soft.

    Args:
        task: the task.
        synthetic: the distilled images.
        judge: who judges.
        draws: the key; the sets that are compared are judged by equal initialisations.
        n: networks, and random subsets.
        learned: what was learned with the set.
        subset: draws random real images at equal count; without it the gap at hard labels is all that is returned.
        classes: that the images stand for, their hard labels; None: as the labels say it.
    Raises:
        ShapeError: labels that are a named dict.
        UnsupportedError: judges that do not read the set's labels.

    Differs from:
        the published package, which chooses each set's learning rate on test data and reports the best epoch; here
        all train by the task's protocol and their last epoch counts.
    """
    if task.protocol.teacher is not None:
        raise UnsupportedError(
            f"robust scores tell what a set's own labels add, and judges of the protocol {task.protocol.name} ask a "
            "teacher for others; choose another protocol"
        )
    targets = one_tensor(synthetic.targets, "a robust score")
    soft = targets.is_floating_point()
    known = classes_of(targets, len(task.data.class_names)) if classes is None else classes.to(targets.device)
    hard = synthetic._replace(targets=known)
    teacher = trained_teacher(task, task.data.whole_epochs) if soft and subset is not None else None
    given = given_teacher(task)
    augmented, plain = (task.judged_by(replace(task.chosen, augment=wanted)) for wanted in (True, False))

    def accuracy(of: "ImageTask", batch: Batch | None, key: Draws, carried: Mapping[str, Tensor]) -> float:
        return of.evaluate(batch, judge, key, 1, carried).values["accuracy"][0]

    def gap_at_hard(key: Draws, here: float) -> float:
        at_hard = accuracy(augmented, hard, key, learned) if soft else here
        return accuracy(augmented, None, key, {}) - at_hard

    keys, title = [draws.fold("network", index) for index in range(n)], task.judge_title(judge)
    if subset is None:
        gaps = [gap_at_hard(key, accuracy(augmented, synthetic, key, learned)) for key in keys]
        return Scores(title, {"hard-label gap": tuple(gaps)})
    notes = (f"random images were labelled by the given {given}",) if teacher is not None and given else ()
    rows = []
    for index, key in enumerate(keys):
        random = subset(draws.fold("subset", index))
        if teacher is not None:
            random = random._replace(targets=soft_labels(task, teacher, random.inputs))
        here = accuracy(augmented, synthetic, key, learned)
        improvement = here - accuracy(augmented, random, key, {})
        without = accuracy(plain, synthetic, key, learned) - accuracy(plain, random, key, {})
        gap = gap_at_hard(key, here)
        rows.append(
            (label_robust(gap, improvement), augmentation_robust(improvement, without), gap, improvement, without)
        )
    columns = zip(*rows, strict=True)
    return Scores(title, {name: tuple(column) for name, column in zip(ROBUST_METRICS, columns, strict=True)}, notes)
