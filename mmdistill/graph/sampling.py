"""Draw training samples (nodes or graphs) class by class, and split samples at random within each class."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmdistill.runtime import Draws, Elsewhere


class ClassMembers:
    """The training samples of each class.

    Draws are made on the host: permuting each class there costs less than sorting random keys of all samples, and
    little has to be copied.

    Args:
        labels: ``(N,)`` classes on the CPU.
        num_classes: C.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        counts = torch.bincount(labels, minlength=num_classes)
        self._on_host = Elsewhere()
        self.members = torch.split(torch.argsort(labels, stable=True), counts.tolist())

    def draw(self, draws: Draws, classes: Tensor, n: int) -> list[Tensor]:
        """Draw up to n samples of each class without replacement; a class of n or fewer comes whole, in order.

        Shapes:
            Returns the indices of each class, ``(min(n, N_c),)``, on the CPU.
        """
        drawn = []
        for label in self._on_host(classes, torch.device("cpu")).tolist():
            members = self.members[label]
            if len(members) > n:
                members = members[draws.fold(label).to("cpu").permutation(len(members))[:n]]
            drawn.append(members)
        return drawn


def split_by_class(y: Tensor, seed: int, bounds: Sequence[Sequence[int]]) -> list[Tensor]:
    """Shuffle the members of each class, and cut them into parts.

    Args:
        y: classes, ``(N,)`` int64.
        seed: of the shuffling.
        bounds: for each class, the positions at which its shuffled members are cut.
    Shapes:
        Returns the sorted positions in ``y`` of each part.
    """
    parts = []
    for index, cuts in enumerate(bounds):
        members = (y == index).nonzero().flatten()
        members = members[Draws(seed, ("split", index)).permutation(len(members))]
        parts.append(members.tensor_split(list(cuts)))
    return [torch.cat(part).sort().values for part in zip(*parts, strict=True)]


def padded_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad the rows of indices to one table; return it with a mask, 1 where a row has an index.

    Shapes:
        Returns two ``(C, n)`` tensors, n being the length of the longest row.
    """
    table = pad_sequence(list(rows), batch_first=True)
    sizes = torch.tensor([len(row) for row in rows])
    return table, (torch.arange(table.shape[1]) < sizes[:, None]).float()
