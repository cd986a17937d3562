"""How a budget of samples is shared among classes, and what as many real ones take."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.task import BudgetKind, Task

MOST = 10**9
"""The largest budget: what is above is a slip."""


def allocate(budget: int, kind: BudgetKind, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Return how many synthetic samples each class gets, ``(C,)`` int64 (one entry without classes).

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
    """Refuse a budget that no data have.

    Raises:
        ConfigError: it is below one, or so large that it is a slip.
    """
    if not 1 <= budget <= MOST:
        raise ConfigError(f"the budget (--{kind}) is between 1 and {MOST:,}, got {budget}")


def available(task: Task, counts: Tensor) -> Tensor:
    """Return so many samples of each class, of a smaller one all, ``(C,)`` (without classes of the one group)."""
    if task.labels is None:
        return counts.clamp(max=task.describe().num_train)
    return counts.minimum(torch.bincount(task.labels.cpu(), minlength=len(counts)))


def short_classes(task: Task, counts: Tensor) -> str:
    """Return which classes have fewer samples than so many, in words; nothing where none has, or there are none."""
    if task.labels is None:
        return ""
    have, names = available(task, counts), task.describe().class_names
    short = (have < counts).nonzero().flatten().tolist()
    if not short:
        return ""
    first = min(short, key=lambda index: int(have[index]))
    others = "" if len(short) == 1 else f" (and {len(short) - 1} other class{'es' * (len(short) > 2)} too few)"
    return f"{_has(str(names[first] if names else first), int(have[first]))}{others}"


def _has(called: str, number: int) -> str:
    """Return how many samples a class has, in words."""
    return f"class {called} has {number} sample{'s' * (number != 1)}"


class ClassShares(NamedTuple):
    """How a budget is shared among the classes of a task.

    Args:
        counts: samples of each class, ``(C,)`` int64.
        classes: the class of each sample, class after class, ``(M,)`` on the task's device.
        num_classes: C.
    """

    counts: Tensor
    classes: Tensor
    num_classes: int


def shares_of(task: Task, budget: int) -> ClassShares:
    """Return how a budget in a task's own unit is shared among its classes.

    Raises:
        ConfigError: a task without classes, or a budget that cannot be shared among them.
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
    """A class with fewer real samples than are to be chosen of it.

    Args:
        fact: which class it is, and of how many.
        advice: what to do about it.
        misspelt: whether it may be another class, spelt otherwise.
    """

    def __init__(self, fact: str, advice: str, misspelt: bool = False) -> None:
        super().__init__(f"{fact}; {advice}")
        self.fact, self.advice, self.misspelt = fact, advice, misspelt


def require_members(have: Tensor, counts: Tensor, names: Sequence[str] = ()) -> None:
    """Refuse to choose more real samples of a class than it has.

    Args:
        have: how many there are of each class.
        counts: how many are asked for.
        names: of the classes, where they have some.
    Shapes:
        both ``(C,)``.
    Raises:
        ShortClassError: naming the class, a DataError.
    """
    short = (have < counts).nonzero().flatten()
    if len(short):
        index = int(short[have[short].argmin()])  # the smallest, so that what fits it fits all
        name, number = names[index] if names else str(index), int(have[index])
        meant = [repr(other) for other in names if other != name and _folded(other) == _folded(name)]
        fact = f"{_has(name, number)}, fewer than the {int(counts[index])} asked for"
        advice = f"is {name!r} the class {meant[0]}, spelt otherwise?" if meant else "lower the budget"
        raise ShortClassError(fact, advice, bool(meant))


def _folded(name: str) -> str:
    """Return a class's name without what people spell differently by mistake."""
    return "".join(name.split()).casefold()


def subset_bytes(task: Task, budget: int) -> int:
    """Return the bytes of real samples at equal count, as the training set stores them, of small classes all."""
    counts = allocate(budget, task.describe().budget, task.labels, task.num_classes)
    return real_bytes(task, int(available(task, counts).sum()))


def real_bytes(task: Task, count: int) -> int:
    """Return the bytes of so many real samples, as the training set stores them."""
    info = task.describe()
    return count * info.sample_bytes or -(-count * info.stored_bytes // info.num_train)
