"""Sampling of class batches of real texts."""

import torch
from torch import Tensor

from mmdistill.class_rows import ClassRows
from mmdistill.runtime import Draws


class TextRows(ClassRows):
    """The training texts of each class; batches are padded with the class's own first text."""

    def draw(self, draws: Draws, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw up to n texts of each class without replacement, all classes in one call.

        A smaller class comes whole, padded with weight 0 to n texts, or to the largest class's size if that is less.

        Shapes:
            Returns indices and weights, both ``(len(classes), min(n, largest class))``.
        """
        if self.tail is not None:
            index, weight = self.tail.draw(draws, classes.to(self.tail.order.device), n)
            return torch.where(weight > 0, index, index[:, :1]), weight
        rows = classes.to(self.table.device)
        table, present = self.table[rows], self.present[rows]
        keys = draws.uniform(*self.table.shape)[rows] + (1 - present)  # absent entries sort last
        order = keys.argsort(1)[:, :n]
        weight = present.gather(1, order)
        return torch.where(weight > 0, table.gather(1, order), table[:, :1]), weight
