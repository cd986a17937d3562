"""How predicted classes are scored: by accuracy, and where classes are uneven by balanced accuracy as well."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mmdistill.task import Scores

UNEVEN = 1.5
"""Test samples of the largest class for each one of the smallest, beyond which plain accuracy alone may mislead."""


def scored(judge: str, hits: Tensor, truth: Tensor, notes: tuple[str, ...] = ()) -> Scores:
    """Return each network's ``accuracy`` and, where classes are uneven, the mean over them, ``balanced_accuracy``.

    Beside them is the share of hits in each class that occurs, by the class's index; others do not count.

    Shapes:
        hits ``(S, m)``, true or 1 where one of S networks is right; truth ``(m,)`` classes.
    """
    hits = hits.double()
    classes, place, sizes = torch.unique(truth, return_inverse=True, return_counts=True)
    right = torch.zeros(len(hits), len(sizes), dtype=torch.float64, device=hits.device)
    shares = right.index_add(1, place, hits).div(sizes)
    values = {"accuracy": tuple(hits.mean(1).tolist())}
    if int(sizes.max()) > UNEVEN * int(sizes.min()):
        values["balanced_accuracy"] = tuple(shares.mean(1).tolist())
    return Scores(judge, values, notes, dict(zip(classes.tolist(), map(tuple, shares.T.tolist()), strict=True)))


def collapse_note(predicted: Iterable[Tensor], classes: int, least: int) -> tuple[str, ...]:
    """Return a note for readers of a score where a network predicts fewer than so many classes.

    Args:
        predicted: each network's predicted classes, ``(m,)``.
        classes: C.
        least: the number of classes from which there is nothing to be said.
    """
    seen = min(int((torch.bincount(own, minlength=classes) > 0).sum()) for own in predicted)
    return (f"predicts only {seen} of {classes} classes",) if seen < least else ()
