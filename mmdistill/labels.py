"""Labels of synthetic samples: hard, soft, unrestricted or from a teacher (column four of Table 1)."""

from abc import ABC, abstractmethod
from typing import get_args

import torch
from torch import Tensor, nn

from mmdistill.choices import LabelKind as LabelKind
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.names import unknown_name


class Labels(nn.Module, ABC):
    """The targets of the synthetic samples; learned ones are ``nn.Parameter``s."""

    title = ""
    """The name of this kind for users; empty for none."""

    @property
    def kind(self) -> str:
        """The kind of labels that a user asked for to get these; by default their title."""
        return self.title

    @abstractmethod
    def forward(self) -> Tensor:
        """Return ``(M,)`` class indices or ``(M, C)`` soft labels."""


class FixedLabels(Labels):
    """Class indices, or given soft labels, that never change.

    Args:
        targets: ``(M,)`` int64 class indices or ``(M, C)`` probabilities or scores.
        kind: the kind of labels that a user asked for to get these; None: they came with the samples.
    """

    targets: Tensor

    def __init__(self, targets: Tensor, kind: LabelKind | None = None) -> None:
        super().__init__()
        self._kind = kind
        self.register_buffer("targets", targets.clone())
        self.title = "hard"
        if targets.is_floating_point():
            self.title = "fixed probabilities" if are_probabilities(targets) else "fixed scores"

    @property
    def kind(self) -> str:
        """The kind of labels that a user asked for to get these, else their title."""
        return self._kind or self.title

    def forward(self) -> Tensor:
        """Return the targets as given."""
        return self.targets


class NoLabels(Labels):
    """No labels: the samples are their own targets (interactions)."""

    def forward(self) -> Tensor:
        """Return an empty tensor."""
        return torch.empty(0)


class LearnedLabels(Labels):
    """Unrestricted learned targets, which need not be a distribution; for regression-type objectives (Sec. 3.5).

    Args:
        initial: ``(M, C)`` starting values.
    Raises:
        ShapeError: ``initial`` is not ``(M, C)``.
    """

    title = "unrestricted"

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        if initial.ndim != 2:
            raise ShapeError(f"learned labels are (samples, classes), got {tuple(initial.shape)}")
        self.values = nn.Parameter(initial.clone())

    def forward(self) -> Tensor:
        """Return the learned values."""
        return self.values


class SoftmaxLabels(Labels):
    """Learned probabilities, as the softmax of learned logits; for cross-entropy learners (Sec. 3.5).

    Args:
        classes: ``(M,)`` int64 initial classes.
        num_classes: C.
        confidence: the initial probability of each sample's own class.
    """

    title = "soft"

    def __init__(self, classes: Tensor, num_classes: int, confidence: float = 0.95) -> None:
        super().__init__()
        other = (1 - confidence) / max(num_classes - 1, 1)
        probabilities = torch.full((len(classes), num_classes), other, device=classes.device)
        probabilities[torch.arange(len(classes), device=classes.device), classes] = confidence
        self.logits = nn.Parameter(probabilities.log())

    @classmethod
    def of_logits(cls, logits: Tensor) -> "SoftmaxLabels":
        """Return labels that start from given ``(M, C)`` logits, a network's for instance."""
        labels = cls(logits.argmax(1), logits.shape[1])
        labels.logits = nn.Parameter(logits.detach().clone())
        return labels

    def forward(self) -> Tensor:
        """Return ``(M, C)`` probabilities."""
        return self.logits.softmax(1)


class TeacherLabels(Labels):
    """Probabilities that a network trained on the real data gives the samples; reassigned as the samples change.

    Args:
        classes: ``(M,)`` int64, the labels before the first assignment.
        num_classes: C.
    """

    title = "teacher"
    targets: Tensor

    def __init__(self, classes: Tensor, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("targets", one_hot(classes, num_classes))

    def forward(self) -> Tensor:
        """Return ``(M, C)`` probabilities."""
        return self.targets

    def assign(self, probabilities: Tensor) -> None:
        """Store a teacher's ``(M, C)`` probabilities.

        Raises:
            ConfigError: a parameterization whose samples share labels.
        """
        if probabilities.shape != self.targets.shape:
            raise ConfigError(
                f"a teacher labelled {tuple(probabilities.shape)} samples and classes, the set stores labels for "
                f"{tuple(self.targets.shape)}; it needs one label for each decoded sample"
            )
        self.targets.copy_(probabilities)


def from_one(last: int) -> str:
    """Return the message for labels that count classes from 1."""
    return f"the labels run from 1 to {last}, but class indices start at 0; subtract 1 from each label"


def one_hot(classes: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one-hot targets ``(..., C)``; unlike torch's own, it can be batched by vmap."""
    return (classes[..., None] == torch.arange(num_classes, device=classes.device)).to(dtype)


def classes_of_one_hot(rows: Tensor) -> Tensor | None:
    """Return the class of each one-hot row; None for rows that are not all 0 but for a single 1.

    Shapes:
        rows ``(n, C)`` with C > 1, of any type; returns ``(n,)`` int64.
    """
    if rows.ndim != 2 or rows.shape[1] < 2 or not bool(((rows == 0) | (rows == 1)).all()):
        return None
    ones = rows == 1
    return ones.int().argmax(1) if bool((ones.sum(1) == 1).all()) else None


def centred_one_hot(classes: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one-hot targets minus 1/C, the regression targets of the kernel ridge family, ``(..., C)``."""
    return one_hot(classes, num_classes, dtype) - 1.0 / num_classes


def regression_targets(targets: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the targets that the kernel ridge family regresses: one-hot or probabilities minus 1/C, scores unchanged.

    Soft labels count as probabilities if all rows are; this is computed on the device, without a synchronisation.

    Shapes:
        targets ``(...,)`` int64 or ``(..., C)`` float, which keep their dtype; returns ``(..., C)``.
    """
    if not targets.is_floating_point():
        return centred_one_hot(targets, num_classes, dtype)
    return targets - is_distribution(targets).all().to(targets.dtype) / num_classes


def as_probabilities(targets: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``(M, C)`` targets: one-hot for class indices, unchanged for soft labels."""
    return targets if targets.is_floating_point() else one_hot(targets, num_classes, dtype)


def classes_of(targets: Tensor, num_classes: int) -> Tensor:
    """Return the class that each sample stands for, which is not always its soft label's largest.

    Samples with soft labels are assumed to come class after class, equally many of each, unless their number forbids
    it, labels are one-hot, or the order agrees with the largest labels for fewer than half of the samples and no more
    than by chance (within two deviations of 1/C). In these cases, the largest label is the class.
    """
    largest = hard_labels(targets)
    if not targets.is_floating_point() or len(targets) % num_classes:
        return largest
    if torch.equal(targets, one_hot(largest, targets.shape[1], targets.dtype)):
        return largest
    in_order = torch.arange(num_classes, device=targets.device).repeat_interleave(len(targets) // num_classes)
    by_chance = len(targets) / num_classes
    limit = by_chance + 2 * (by_chance * (1 - 1 / num_classes)) ** 0.5
    agreeing = int((in_order == largest).sum())
    return in_order if 2 * agreeing >= len(targets) or agreeing > limit else largest


def hard_labels(targets: Tensor) -> Tensor:
    """Return class indices; for soft labels, the class of the largest.

    Shapes:
        targets ``(n,)`` or ``(n, C)``; returns ``(n,)`` int64.
    """
    return targets.argmax(1) if targets.is_floating_point() else targets


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy per sample for class indices or soft labels.

    Shapes:
        logits ``(n, C)``; targets ``(n,)`` int64 or ``(n, C)`` float; returns ``(n,)``.
    """
    return -(as_probabilities(targets, logits.shape[-1], logits.dtype) * logits.log_softmax(-1)).sum(-1)


def is_distribution(targets: Tensor) -> Tensor:
    """Return a mask of the rows of soft targets ``(..., C)`` that are probability distributions, ``(...,)``."""
    return ((targets.sum(-1) - 1).abs() < 1e-3) & (targets >= -1e-6).all(-1)


def are_probabilities(targets: Tensor) -> bool:
    """Return whether targets are class indices or distributions, rather than scores."""
    return not targets.is_floating_point() or bool(is_distribution(targets).all())


def in_full(values: Tensor) -> Tensor:
    """Convert bfloat16 to float32, since logarithms and differences of 8-bit mantissas are coarse."""
    return values.float() if values.dtype == torch.bfloat16 else values


def target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross entropy for class indices and distributions, half the squared error for any other row of targets.

    The choice is made row by row on the device, so that one loss serves hard, soft and unrestricted labels. (The cross
    entropy of a row that does not sum to 1 has no lower bound.)

    Shapes:
        logits ``(..., C)``; targets ``(...,)`` int64 or ``(..., C)`` float; returns ``(...,)``.
    """
    logits = in_full(logits)
    entropy = soft_cross_entropy(logits, targets)
    if not targets.is_floating_point():
        return entropy
    return torch.where(is_distribution(targets), entropy, 0.5 * (logits - targets).square().sum(-1))


def require_targets(targets: Tensor, samples: int, num_classes: int, data: str) -> None:
    """Check that labels fit the number of samples and of a task's classes.

    Raises:
        ShapeError: another length, indices out of range, or soft labels of another number of classes.
    """
    if targets.is_floating_point():
        if targets.shape != (samples, num_classes):
            raise ShapeError(
                f"{data} has {num_classes} classes, and the labels are of others: expected soft labels "
                f"({samples}, {num_classes}), got {tuple(targets.shape)}"
            )
    elif targets.shape != (samples,) or not bool(((targets >= 0) & (targets < num_classes)).all()):
        raise ShapeError(f"{data} has {num_classes} classes, and the labels are of others")


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of one value per sample, 0 if all weights are 0; the loss convention of every task.

    Shapes:
        values ``(n,)``; weight ``(n,)``; returns a scalar.
    """
    total = weight.sum()
    return (values * weight).sum() / total.clamp_min(torch.finfo(total.dtype).tiny)


def require_label_kind(kind: str) -> None:
    """Refuse an unknown kind of labels.

    Raises:
        UnknownNameError: naming the nearest.
    """
    if kind not in get_args(LabelKind):
        raise unknown_name("kind of labels", str(kind), get_args(LabelKind))


def make_labels(kind: LabelKind, classes: Tensor | None, num_classes: int | None) -> Labels:
    """Return labels of a kind that start from each sample's class.

    Args:
        kind: ``hard`` (class indices, fixed), ``soft`` (learned probabilities), ``unrestricted`` (learned numbers, from
            centred one-hot) or ``teacher`` (a trained network's probabilities).
        classes: ``(M,)`` int64.
        num_classes: C.
    Raises:
        UnknownNameError: another kind.
        ConfigError: None for either, as in tasks without classes.
    """
    require_label_kind(kind)
    if classes is None or num_classes is None:
        raise ConfigError(f"{kind} labels start from classes, which the task lacks; NoLabels() serves without them")
    if kind == "unrestricted":
        return LearnedLabels(centred_one_hot(classes, num_classes))
    if kind == "soft":
        return SoftmaxLabels(classes, num_classes)
    if kind == "teacher":
        return TeacherLabels(classes, num_classes)
    return FixedLabels(classes)
