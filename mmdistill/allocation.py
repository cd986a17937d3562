"""Allocation of a budget to classes, and the bytes of real samples at equal count."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.names import counted
from mmdistill.task import BudgetKind, Task

MOST = 10**9
"""The largest budget; more is a typing error."""


def allocate(budget: int, kind: BudgetKind, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Return the number of synthetic samples of each class, ``(C,)`` int64 (one entry without classes).

    ``ipc`` gives every class the same; ``nodes`` and ``users`` share the total by class frequency, largest
    remainder first, with at least one for every class.

    Raises:
        ConfigError: a budget below one, or a total below the number of classes.
        DataError: a class without training samples.
    """
    require_budget(kind, budget)
    if labels is None or num_classes is None:
        return torch.tensor([budget])
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise DataError(f"class {int((counts == 0).nonzero()[0])} has no training sample")
    if kind == "ipc":
        return torch.full((num_classes,), budget)
    if budget < num_classes:
        raise ConfigError(
            f"a budget of {budget} {kind} cannot cover {num_classes} classes; give at least {num_classes}"
        )
    exact = counts.double() / counts.sum() * budget
    shares = exact.floor().long().clamp(min=1)
    while int(shares.sum()) > budget:
        over = torch.where(shares > 1, shares - exact, -torch.inf)
        shares[int(over.argmax())] -= 1
    while int(shares.sum()) < budget:
        shares[int((exact - shares).argmax())] += 1
    return shares


def require_budget(kind: BudgetKind, budget: int) -> None:
    """Refuse a budget below one or far too large.

    Raises:
        ConfigError: the budget is out of range.
    """
    if not 1 <= budget <= MOST:
        raise ConfigError(f"the budget (--{kind}) is between 1 and {MOST:,}, got {budget}")


def available(task: Task, counts: Tensor) -> Tensor:
    """Return the counts limited to the size of each class, ``(C,)`` (without classes, of one group)."""
    if task.labels is None:
        return counts.clamp(max=task.describe().num_train)
    return counts.minimum(torch.bincount(task.labels.cpu(), minlength=len(counts)))


def short_classes(task: Task, counts: Tensor) -> str:
    """Describe the classes with fewer samples than ``counts``; empty if there are none, or no classes."""
    if task.labels is None:
        return ""
    have, names = available(task, counts), task.describe().class_names
    short = (have < counts).nonzero().flatten().tolist()
    if not short:
        return ""
    first = min(short, key=lambda index: int(have[index]))
    others = "" if len(short) == 1 else f" (and {len(short) - 1} other class{'es' * (len(short) > 2)} too few)"
    return f"{_has(str(names[first] if names else first), int(have[first]))}{others}"


def _has(name: str, number: int) -> str:
    """Return the number of a class's samples in words."""
    return f"class {name} has {counted(number, 'sample')}"


class ClassShares(NamedTuple):
    """A budget's allocation to the classes of a task.

    Args:
        counts: samples of each class, ``(C,)`` int64.
        classes: the class of each sample, class after class, ``(M,)`` on the task's device.
        num_classes: C.
    """

    counts: Tensor
    classes: Tensor
    num_classes: int


def shares_of(task: Task, budget: int) -> ClassShares:
    """Allocate a budget in a task's own unit to its classes.

    Raises:
        ConfigError: a task without classes, or a budget too small for them.
        DataError: a class without training samples.
    """
    info = task.describe()
    if task.labels is None or task.num_classes is None:
        raise ConfigError(
            f"{info.data!r} has no classes, and here samples are made class by class; choose a way of storing them "
            f"that needs none (--parameterization, parameterization= in Python; 'mmdistill methods {info.domain}' "
            "lists those of such data)"
        )
    counts = allocate(budget, info.budget, task.labels, task.num_classes)
    classes = torch.repeat_interleave(torch.arange(task.num_classes), counts).to(task.device)
    return ClassShares(counts, classes, task.num_classes)


class ShortClassError(DataError):
    """A class has fewer real samples than are to be chosen from it.

    Args:
        fact: the class and its number of samples.
        advice: what to do about it.
        misspelt: whether its name is probably another class's, misspelt.
    """

    def __init__(self, fact: str, advice: str, misspelt: bool = False) -> None:
        super().__init__(f"{fact}; {advice}")
        self.fact, self.advice, self.misspelt = fact, advice, misspelt


def require_members(have: Tensor, counts: Tensor, names: Sequence[str] = ()) -> None:
    """Refuse to choose more real samples of a class than it has.

    Args:
        have: the number of samples in each class.
        counts: the number to choose.
        names: of the classes, if they have any.
    Shapes:
        both ``(C,)``.
    Raises:
        ShortClassError: naming the class, a DataError.
    """
    short = (have < counts).nonzero().flatten()
    if len(short):
        index = int(short[have[short].argmin()])  # the smallest: a budget that fits it fits all
        name, number = names[index] if names else str(index), int(have[index])
        variants = [repr(other) for other in names if other != name and _folded(other) == _folded(name)]
        fact = f"{_has(name, number)}, fewer than the {int(counts[index])} asked for"
        advice = f"is {name!r} the class {variants[0]}, spelt otherwise?" if variants else "lower the budget"
        raise ShortClassError(fact, advice, bool(variants))


def _folded(name: str) -> str:
    """Return a class's name without case and spaces, in which misspellings differ."""
    return "".join(name.split()).casefold()


def subset_bytes(task: Task, budget: int) -> int:
    """Return the bytes of real samples at equal count, as the training set stores them; small classes come whole."""
    counts = allocate(budget, task.describe().budget, task.labels, task.num_classes)
    return real_bytes(task, int(available(task, counts).sum()))


def real_bytes(task: Task, count: int) -> int:
    """Return the bytes of ``count`` real samples, as the training set stores them."""
    info = task.describe()
    return count * info.sample_bytes or -(-count * info.stored_bytes // info.num_train)
