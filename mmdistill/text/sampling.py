"""Class batches of real texts as rows of a table, for every space that texts live in."""

import torch
from torch import Tensor

from mmdistill.class_rows import LongTail, is_long_tailed
from mmdistill.parameterizations.base import class_table
from mmdistill.runtime import Draws


class ClassRows:
    """Which training texts each class has.

    Args:
        labels: ``(N,)`` classes.
        num_classes: C.
        device: where the rows lie.
    """

    def __init__(self, labels: Tensor, num_classes: int, device: torch.device) -> None:
        self.tail = LongTail(labels, num_classes, device) if is_long_tailed(labels, num_classes) else None
        if self.tail is not None:
            return
        table, present = class_table(labels, num_classes)
        self.table, self.present = table.to(device), present.to(device)

    def draw(self, draws: Draws, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw up to n texts of each class without replacement, all classes in one call.

        A class of fewer texts comes whole, padded with weight 0 to n texts, or to the largest class where that has
        fewer.

        Shapes:
            Returns indices and weights, both ``(len(classes), min(n, largest class))``.
        """
        if self.tail is not None:
            found, weight = self.tail.draw(draws, classes.to(self.tail.order.device), n)
            return torch.where(weight > 0, found, found[:, :1]), weight
        rows = classes.to(self.table.device)
        table, present = self.table[rows], self.present[rows]
        keys = draws.uniform(*self.table.shape)[rows] + (1 - present)  # absent entries sort last
        order = keys.argsort(1)[:, :n]
        weight = present.gather(1, order)
        return torch.where(weight > 0, table.gather(1, order), table[:, :1]), weight
