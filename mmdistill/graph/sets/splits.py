"""Which graphs of a set train, validate and test: as its source says, or at random within each class."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.runtime import Draws

SHARES = (0.8, 0.1)
"""Of each class, for training and validation; the rest is for testing. DosCond takes the same shares of all graphs."""
SPLITS = {"test": "test", "dev": "validation"}
"""What may be held out of the training graphs, in this order, and what it is called."""


def stratified(y: Tensor, seed: int, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of training, validation and test graphs, by class at random.

    Args:
        y: the graphs' classes.
        seed: of the split.
        names: what the classes are called.

    Shapes:
        y ``(graphs,)`` int64; returns three sorted parts of the positions in it.
    Raises:
        DataError: a class of fewer than ten graphs.
    """
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for index, name in enumerate(names):
        members = (y == index).nonzero().flatten()
        if len(members) < 10:
            raise DataError(f"class {name} has {len(members)} graphs; at least 10 are needed to split them")
        members = members[Draws(seed, ("split", index)).permutation(len(members))]
        first, second = int(SHARES[0] * len(members)), int(sum(SHARES) * len(members))
        for part, ids in zip(parts, members.tensor_split([first, second]), strict=True):
            part.append(ids)
    train, val, test = (torch.cat(part).sort().values for part in parts)
    return train, val, test


def completed(
    y: Tensor, parts: Mapping[str, Tensor], seed: int, names: Sequence[str]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[str, ...]]:
    """Return the numbers of training, validation and test graphs where a source says them, and notes.

    A split that it does not say is a tenth of the training graphs of each class, at random and at least one.

    Args:
        y: the graphs' classes.
        parts: ``train`` and perhaps ``dev`` and ``test``.
        seed: of what is held out.
        names: what the classes are called.

    Shapes:
        y ``(graphs,)`` int64; positions in it, in each of ``parts`` and in what returns.
    Raises:
        DataError: a class without a training graph, or with too few of them.
    """
    found, notes = dict(parts), list[str]()
    for split, title in SPLITS.items():
        if split not in found:
            found["train"], found[split] = _held_out(y, found["train"], Draws(seed, ("split", split)), names, title)
            notes.append(f"{title}: {SHARES[1]:.0%} of the training graphs of each class, at random, seed {seed}")
    _require_trained(y, found["train"], names)
    return (found["train"], found["dev"], found["test"]), tuple(notes)


def _require_trained(y: Tensor, train: Tensor, names: Sequence[str]) -> None:
    counts = torch.bincount(y[train], minlength=len(names)).tolist()
    if 0 in counts:
        raise DataError(
            f"class {names[counts.index(0)]} has no training graph; give it one, or leave its graphs out of the other "
            "splits"
        )


def _held_out(y: Tensor, train: Tensor, draws: Draws, names: Sequence[str], title: str) -> tuple[Tensor, Tensor]:
    """Return the training graphs that stay, and a tenth of each class for another split."""
    held = torch.zeros(len(train), dtype=torch.bool)
    _require_trained(y, train, names)
    for index, name in enumerate(names):
        members = (y[train] == index).nonzero().flatten()
        if len(members) < 2:
            raise DataError(f"class {name} has a single training graph, and none is left to hold out {title} graphs of")
        count = max(round(SHARES[1] * len(members)), 1)
        held[members[draws.fold(index).permutation(len(members))[:count]]] = True
    return train[~held], train[held]
