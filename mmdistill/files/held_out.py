"""Samples of each class that are held out of any kind of data, to validate or to test."""

import torch
from torch import Tensor

from mmdistill.runtime import Draws

FEW = 5
"""Classes with fewer training samples hold none out for validation, where most classes have at least as many."""


def validating(counts: Tensor) -> Tensor:
    """Return which classes give samples for validation: those with at least :data:`FEW` training samples.

    If these are less than half of the classes, or hold less than half of the samples, all classes of two samples or
    more do.

    Shapes:
        counts ``(C,)``, training samples of each class; returns ``(C,)`` bool.
    """
    large = counts >= FEW
    is_majority = 2 * int(large.sum()) >= len(counts) and 2 * int(counts[large].sum()) >= int(counts.sum())
    return large if is_majority else counts >= 2


def shuffled_by_class(labels: Tensor, draws: Draws) -> Tensor:
    """Return the positions in ``labels`` class by class, shuffled within each by ``draws.fold(class)``."""
    members = [(labels == label).nonzero().flatten() for label in range(int(labels.max()) + 1)]
    return torch.cat([rows[draws.fold(label).permutation(len(rows))] for label, rows in enumerate(members)])


def held_out(alike: Tensor, labels: Tensor, order: Tensor, share: float, *, to_validate: bool = False) -> Tensor:
    """Return a mask ``(N,)`` of a share of each class, at least one sample but never all; copies stay together.

    In each class the first samples in ``order`` are taken, skipping groups of copies that exceed what is still to be
    taken. If every group does, the smallest of several is taken. Groups with several labels are never taken; nor, with
    ``to_validate``, are those of classes that are not :func:`validating`.

    Shapes:
        alike ``(N,)``, the index of each sample's first copy; labels ``(N,)``; order ``(N,)``, a permutation.
    """
    counts, group_sizes, classes = labels.bincount(), alike.bincount().tolist(), labels.tolist()
    shares = (counts.double() * share).round().long().clamp(min=1).minimum(counts - 1).tolist()
    ambiguous = set(alike[labels != labels[alike]].tolist())
    groups = [first for first in dict.fromkeys(alike[order].tolist()) if first not in ambiguous]
    group_counts = labels[groups].bincount()
    gives = (validating(group_counts) if to_validate else group_counts > 0).tolist()
    left, taken = list(shares), list[int]()
    for first in groups:
        if gives[classes[first]] and group_sizes[first] <= left[classes[first]]:
            left[classes[first]] -= group_sizes[first]
            taken.append(first)
    for first in sorted(groups, key=group_sizes.__getitem__):
        label = classes[first]
        if gives[label] and left[label] == shares[label] and group_counts[label] > 1:  # nothing taken of this class
            left[label] -= group_sizes[first]
            taken.append(first)
    return torch.isin(alike, torch.tensor(taken, dtype=torch.int64))
