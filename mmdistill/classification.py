"""How predicted classes are scored: by accuracy, and where classes are uneven by balanced accuracy as well."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mmdistill.task import Scores

UNEVEN = 1.5
"""Test samples of the largest class for each one of the smallest, beyond which plain accuracy alone may mislead."""


def scored(judge: str, hits: Tensor, truth: Tensor, notes: tuple[str, ...] = ()) -> Scores:
    """Return a judge's accuracies, over all classes and of each.

    Shapes:
        hits ``(S, m)``, true or 1 where one of S networks is right; truth ``(m,)`` classes.
    """
    return Scores(judge, accuracies(hits, truth), notes, class_accuracies(hits, truth))


def accuracies(hits: Tensor, truth: Tensor) -> dict[str, tuple[float, ...]]:
    """Return each network's ``accuracy``, and ``balanced_accuracy``, the mean over classes, where these are uneven.

    Classes without a test sample do not count.

    Shapes:
        hits ``(S, m)``, true or 1 where one of S networks is right; truth ``(m,)`` classes.
    """
    hits = hits.double()
    found = {"accuracy": tuple(hits.mean(1).tolist())}
    sizes = torch.unique(truth, return_counts=True)[1]
    if int(sizes.max()) > UNEVEN * int(sizes.min()):
        found["balanced_accuracy"] = tuple(by_class(hits, truth).mean(1).tolist())
    return found


def class_accuracies(hits: Tensor, truth: Tensor) -> dict[int, tuple[float, ...]]:
    """Return each network's share of hits in each class that occurs, by the class's index.

    Shapes:
        hits ``(S, m)``; truth ``(m,)``; S values of each class.
    """
    return dict(zip(torch.unique(truth).tolist(), map(tuple, by_class(hits, truth).T.tolist()), strict=True))


def by_class(hits: Tensor, truth: Tensor) -> Tensor:
    """Return the share of hits in each class that occurs, in order.

    Shapes:
        hits ``(S, m)``; truth ``(m,)``; returns ``(S, classes that occur)`` float64.
    """
    _, place, sizes = torch.unique(truth, return_inverse=True, return_counts=True)
    right = torch.zeros(len(hits), len(sizes), dtype=torch.float64, device=hits.device)
    return right.index_add(1, place, hits.double()).div(sizes)


def collapse_note(predicted: Iterable[Tensor], classes: int, least: int) -> tuple[str, ...]:
    """Return a note for readers of a score where a network predicts fewer than so many classes.

    Args:
        predicted: each network's predicted classes, ``(m,)``.
        classes: C.
        least: the number of classes from which there is nothing to be said.
    """
    seen = min(int((torch.bincount(own, minlength=classes) > 0).sum()) for own in predicted)
    return (f"predicts only {seen} of {classes} classes",) if seen < least else ()
