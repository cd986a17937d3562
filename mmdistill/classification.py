"""How predicted classes are scored: by accuracy, and where classes are uneven by balanced accuracy as well."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from mmdistill.task import Scores

UNEVEN = 1.5
"""Test samples of the largest class for each one of the smallest, beyond which plain accuracy alone may mislead."""


NEVER = "is nearly never recognised"
"""What is said of a class that networks hardly recognise."""
FEW = "predicts only"
"""What is said of networks that predict few classes."""


def scored(
    judge: str,
    hits: Tensor,
    truth: Tensor,
    notes: Sequence[str] = (),
    *,
    seen: tuple[int, ...] = (),
    remark: Callable[[Scores], tuple[str, ...]] | None = None,
) -> Scores:
    """Return each network's ``accuracy`` and, where classes are uneven, the mean over them, ``balanced_accuracy``.

    Beside them is the share of hits in each class that occurs, by the class's index; others do not count. Notes are
    those given and what is to be remarked.

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
    by_class = dict(zip(classes.tolist(), map(tuple, shares.T.tolist()), strict=True))
    found = Scores(judge, values, tuple(notes), by_class, seen, remark)
    return found if remark is None else replace(found, notes=(*notes, *remark(found)))


def classes_seen(predicted: Iterable[Tensor]) -> tuple[int, ...]:
    """Return how many classes each network predicts, of whose predicted classes each is ``(m,)``."""
    return tuple(len(torch.unique(own)) for own in predicted)


def collapse_note(scores: Scores, classes: int, least: int) -> tuple[str, ...]:
    """Return a note for readers of a score where a network predicts fewer than so many classes.

    Args:
        scores: which say how many classes each network predicts.
        classes: C.
        least: the number of classes from which there is nothing to be said.
    """
    seen = min(scores.seen)
    return (f"{FEW} {seen} of {classes} classes",) if seen < least else ()


def unrecognised(scores: Scores, class_names: Sequence[str], least: float) -> tuple[str, ...]:
    """Return a note for each class of whose test samples the networks recognise less than a share, in the mean."""
    means = {class_names[index]: fmean(shares) for index, shares in scores.by_class.items()}
    return tuple(f"class {name} {NEVER} (test accuracy {mean:.2f})" for name, mean in means.items() if mean < least)


def pooled(parts: Sequence[Scores]) -> Scores:
    """Return the scores of one judge's groups of networks as one: those metrics, and classes, that all have.

    What is remarked of the numbers is said of those of all networks.
    """
    first = parts[0]
    shared = [metric for metric in first.values if all(metric in scores.values for scores in parts)]
    values = {metric: tuple(v for scores in parts for v in scores.values[metric]) for metric in shared}
    everywhere = [index for index in first.by_class if all(index in scores.by_class for scores in parts)]
    by_class = {index: tuple(v for scores in parts for v in scores.by_class[index]) for index in everywhere}
    seen = tuple(number for scores in parts for number in scores.seen)
    found = Scores(first.judge, values, (), by_class, seen, first.remark)
    own = [(scores, () if scores.remark is None else scores.remark(scores)) for scores in parts]
    notes = [note for scores, remarks in own for note in scores.notes if note not in remarks]
    return replace(found, notes=tuple(dict.fromkeys([*notes, *(first.remark(found) if first.remark else ())])))


def is_of_samples(note: str) -> bool:
    """Return whether a note says how a judge fails on some samples, and not what holds of the judge on any."""
    return note.startswith(f"{FEW} ") or f" {NEVER} " in note
