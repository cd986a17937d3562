"""The samples of each class, and draws from them: by a padded table or, if one class is huge, without it."""

import torch
from torch import Tensor

from mmdistill.parameterizations.base import class_table
from mmdistill.runtime import Draws

TABLE_MOST = 16
"""The largest table of classes by samples of the largest class, in multiples of the number of samples.

With up to this number of classes no table is larger.
"""


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

        A class with fewer comes whole, padded with weight 0 to ``min(n, largest class)``.

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
    """The samples of classes with one far larger than most; arguments and :meth:`draw` as in ClassRows.

    A draw sorts all samples by class and a random number, so it draws N numbers, whatever the classes' sizes.
    """

    def __init__(self, labels: Tensor, num_classes: int, device: torch.device) -> None:
        labels = labels.cpu()
        order, counts = torch.argsort(labels, stable=True), torch.bincount(labels, minlength=num_classes)
        self.largest = int(counts.max())
        self.order, self.counts = order.to(device), counts.to(device)
        self.starts = (counts.cumsum(0) - counts).to(device)
        self.owners = labels[order].double().to(device)  # float64 holds a class plus a float32 draw exactly

    def draw(self, draws: Draws, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw up to n samples of each class without replacement; a class named twice has the same samples twice."""
        shuffled = self.order[(self.owners + draws.uniform(len(self.order))).argsort()]
        column = torch.arange(min(n, self.largest), device=self.order.device)
        present = column < self.counts[classes][:, None]
        position = (self.starts[classes][:, None] + column).clamp(max=len(shuffled) - 1)
        return torch.where(present, shuffled[position], self.order[:1]), present.float()


def is_long_tailed(labels: Tensor, num_classes: int) -> bool:
    """Return whether a table of classes by samples of the largest class would be far larger than the data."""
    largest = int(torch.bincount(labels.cpu()).max()) if len(labels) else 0
    return num_classes * largest > TABLE_MOST * len(labels)
