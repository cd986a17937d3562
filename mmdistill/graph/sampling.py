"""Nodes or graphs by class: class batches of training ones by index, and random divisions of all."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmdistill.runtime import Draws, Elsewhere


class ClassMembers:
    """Which training samples each class has.

    They are drawn on the host: a permutation of each class costs less there than keys for all and their order, and
    little of it has to be copied.

    Args:
        labels: ``(N,)`` classes on the CPU.
        num_classes: C.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        counts = torch.bincount(labels, minlength=num_classes)
        self._on_host = Elsewhere()
        self.members = torch.split(torch.argsort(labels, stable=True), counts.tolist())

    def draw(self, draws: Draws, classes: Tensor, n: int) -> list[Tensor]:
        """Draw up to n samples of each class without replacement; a class that has no more comes whole, in order.

        Shapes:
            Returns the indices of each class, ``(min(n, N_c),)``, on the CPU.
        """
        found = []
        for label in self._on_host(classes, torch.device("cpu")).tolist():
            own = self.members[label]
            found.append(own if len(own) <= n else own[draws.fold(label).to("cpu").permutation(len(own))[:n]])
        return found


def divided(y: Tensor, seed: int, bounds: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the members of each class, at random, in parts.

    Args:
        y: classes, ``(N,)`` int64.
        seed: of the division.
        bounds: of each class, the places at which its shuffled members are cut.
    Shapes:
        Returns the sorted positions in ``y`` of each part.
    """
    found = []
    for index, own in enumerate(bounds):
        members = (y == index).nonzero().flatten()
        members = members[Draws(seed, ("split", index)).permutation(len(members))]
        found.append(members.tensor_split(list(own)))
    return [torch.cat(part).sort().values for part in zip(*found, strict=True)]


def padded_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the indices of each class as rows of one table, and 1 where a row has one.

    Shapes:
        Returns two ``(C, n)`` tensors, n being the length of the longest row.
    """
    table = pad_sequence(list(rows), batch_first=True)
    sizes = torch.tensor([len(row) for row in rows])
    return table, (torch.arange(table.shape[1]) < sizes[:, None]).float()
