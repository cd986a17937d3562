"""Scores of predicted classes: accuracy, and balanced accuracy too if class sizes are uneven."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor

from mmdistill.task import Scores

Key = TypeVar("Key")
UNEVEN = 1.5
"""The ratio of the largest to the smallest class of the test data beyond which accuracy alone may mislead."""


NEVER = "is nearly never recognised"
"""The note on a class that networks hardly recognise."""
FEW = "predicts only"
"""The note on networks that predict few classes."""


def scored(
    judge: str,
    hits: Tensor,
    truth: Tensor,
    notes: Sequence[str] = (),
    *,
    seen: tuple[int, ...] = (),
    remark: Callable[[Scores], tuple[str, ...]] | None = None,
) -> Scores:
    """Return each network's ``accuracy`` and, if class sizes are uneven, the mean over classes, ``balanced_accuracy``.

    Accuracies by class are of the classes that occur in ``truth``. Notes are the given ones and those of ``remark``.

    Shapes:
        hits ``(S, m)``, true or 1 where one of S networks is right; truth ``(m,)`` classes.
    """
    hits = hits.double()
    classes, column, sizes = torch.unique(truth, return_inverse=True, return_counts=True)
    right = torch.zeros(len(hits), len(sizes), dtype=torch.float64, device=hits.device)
    accuracies = right.index_add(1, column, hits).div(sizes)
    values = {"accuracy": tuple(hits.mean(1).tolist())}
    if int(sizes.max()) > UNEVEN * int(sizes.min()):
        values["balanced_accuracy"] = tuple(accuracies.mean(1).tolist())
    by_class = dict(zip(classes.tolist(), map(tuple, accuracies.T.tolist()), strict=True))
    scores = Scores(judge, values, tuple(notes), by_class, seen, remark)
    return scores if remark is None else replace(scores, notes=(*notes, *remark(scores)))


def classes_seen(predicted: Iterable[Tensor]) -> tuple[int, ...]:
    """Return the number of classes that each network predicts, from its predictions ``(m,)``."""
    return tuple(len(torch.unique(classes)) for classes in predicted)


def collapse_note(scores: Scores, classes: int, least: int) -> tuple[str, ...]:
    """Return a note if a network predicts fewer than ``least`` classes.

    Args:
        scores: with the number of classes that each network predicts.
        classes: C.
        least: from this number of classes on there is no note.
    """
    seen = min(scores.seen)
    return (f"{FEW} {seen} of {classes} classes",) if seen < least else ()


def unrecognised(scores: Scores, class_names: Sequence[str], least: float) -> tuple[str, ...]:
    """Return a note for each class whose mean accuracy over the networks is below ``least``."""
    means = {class_names[index]: fmean(shares) for index, shares in scores.by_class.items()}
    return tuple(f"class {name} {NEVER} (test accuracy {mean:.2f})" for name, mean in means.items() if mean < least)


def pooled(parts: Sequence[Scores]) -> Scores:
    """Return the scores of one judge's groups of networks as one, with the metrics and classes that all groups have.

    Remarks on the numbers are made anew, on those of all networks.
    """
    first = parts[0]
    values = _concatenate([scores.values for scores in parts])
    by_class = _concatenate([scores.by_class for scores in parts])
    seen = tuple(count for scores in parts for count in scores.seen)
    whole = Scores(first.judge, values, (), by_class, seen, first.remark)
    notes = [note for scores in parts for note in scores.notes if note not in _remarks(scores)]
    return replace(whole, notes=tuple(dict.fromkeys([*notes, *_remarks(whole)])))


def _concatenate(parts: Sequence[Mapping[Key, tuple[float, ...]]]) -> dict[Key, tuple[float, ...]]:
    """Return, for each key that all parts have, the values of all parts in a row."""
    shared = [key for key in parts[0] if all(key in part for part in parts)]
    return {key: tuple(value for part in parts for value in part[key]) for key in shared}


def _remarks(scores: Scores) -> tuple[str, ...]:
    """Return the notes that follow from the numbers."""
    return () if scores.remark is None else scores.remark(scores)


def is_of_samples(note: str) -> bool:
    """Return whether a note is on the samples that a judge fails on, not on the judge itself."""
    return note.startswith(f"{FEW} ") or f" {NEVER} " in note
