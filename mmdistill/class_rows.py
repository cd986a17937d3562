"""Which samples each class has, and draws of some of each: by a table, or where one class is huge without one."""

import torch
from torch import Tensor

from mmdistill.parameterizations.base import class_table
from mmdistill.runtime import Draws

TABLE_MOST = 16
"""How many times the samples a table of classes by the largest one may hold; up to so many classes it never is more."""


class ClassRows:
    """The samples of each class.

    Args:
        labels: ``(N,)`` classes.
        num_classes: C.
        device: where the rows lie.
    """

    def __init__(self, labels: Tensor, num_classes: int, device: torch.device) -> None:
        self.tail = LongTail(labels, num_classes, device) if is_long_tailed(labels, num_classes) else None
        if self.tail is None:
            table, present = class_table(labels, num_classes)
            self.table, self.present = table.to(device), present.to(device)

    def draw(self, draws: Draws, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw up to n samples of each class without replacement.

        A class of fewer comes whole, padded with weight 0 to n, or to the largest class where that has fewer.

        Shapes:
            Returns indices and weights, both ``(len(classes), min(n, largest class))``.
        """
        if self.tail is not None:
            return self.tail.draw(draws, classes, n)
        table, present = self.table[classes], self.present[classes]
        scores = draws.uniform(*table.shape) + present
        column = scores.topk(min(n, table.shape[1]), dim=1).indices
        return table.gather(1, column), present.gather(1, column)


class LongTail:
    """The samples of classes of which one is far larger than most; arguments and :meth:`draw` as of ClassRows.

    A draw orders all samples by class and a random number: N numbers, whatever the classes' sizes.
    """

    def __init__(self, labels: Tensor, num_classes: int, device: torch.device) -> None:
        labels = labels.cpu()
        order, counts = torch.argsort(labels, stable=True), torch.bincount(labels, minlength=num_classes)
        self.largest = int(counts.max())
        self.order, self.counts = order.to(device), counts.to(device)
        self.starts = (counts.cumsum(0) - counts).to(device)
        self.owners = labels[order].double().to(device)  # in which a class and a float32 share stay exact

    def draw(self, draws: Draws, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw up to n samples of each class without replacement; a class named twice comes with the same ones."""
        shuffled = self.order[(self.owners + draws.uniform(len(self.order))).argsort()]
        column = torch.arange(min(n, self.largest), device=self.order.device)
        present = column < self.counts[classes][:, None]
        position = (self.starts[classes][:, None] + column).clamp(max=len(shuffled) - 1)
        return torch.where(present, shuffled[position], self.order[:1]), present.float()


def is_long_tailed(labels: Tensor, num_classes: int) -> bool:
    """Return whether a table of all classes by the largest one would be far larger than the data."""
    largest = int(torch.bincount(labels.cpu()).max()) if len(labels) else 0
    return num_classes * largest > TABLE_MOST * len(labels)
