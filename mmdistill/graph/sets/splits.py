"""Which graphs of a set train, validate and test: as its source says, or at random within each class."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.classes import validating
from mmdistill.graph.sampling import split_by_class
from mmdistill.runtime import Draws

SHARES = (0.8, 0.1)
"""Of each class, for training and validation; the rest is for testing. DosCond takes the same shares of all graphs."""
SPLITS = {"test": "test", "dev": "validation"}
"""What may be held out of the training graphs, in this order, and what it is called."""
WAY_ON = '; add some, or say yourself which are for what: graph_set_task({"train": [...], "val": [...], "test": [...]})'
"""What is said where graphs are too few to be divided."""


def stratified(y: Tensor, seed: int, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of training, validation and test graphs, by class at random.

    Each class has a training and a test graph at least, and a validation one unless it has few graphs.

    Args:
        y: the graphs' classes.
        seed: of the split.
        names: what the classes are called.

    Shapes:
        y ``(graphs,)`` int64; returns three sorted parts of the positions in it.
    Raises:
        DataError: a class of a single graph, or too few graphs to validate with any.
    """
    counts = torch.bincount(y, minlength=len(names)).tolist()
    if 1 in counts:
        name = names[counts.index(1)]
        raise DataError(f"class {name} has a single graph, and one to train on and one to test with are needed{WAY_ON}")
    ends = [int(sum(SHARES) * count) for count in counts]  # of what is for training or validation
    giving = validating(torch.tensor(ends))
    if not giving.any():
        raise DataError(f"classes of two graphs leave none to validate with{WAY_ON}")
    bounds = [
        [min(int(SHARES[0] * count), end - 1) if gives else end, end]
        for count, end, gives in zip(counts, ends, giving.tolist(), strict=True)
    ]
    train, val, test = split_by_class(y, seed, bounds)
    return train, val, test


def completed(
    y: Tensor, parts: Mapping[str, Tensor], seed: int, names: Sequence[str]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[str, ...]]:
    """Return the numbers of training, validation and test graphs where a source says them, and notes.

    A split that it does not say is a tenth of the training graphs of each class, at random and at least one, but for
    validation none of a class of few graphs.

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
    counts = torch.bincount(y[parts["train"]], minlength=len(names)).tolist()
    if 0 in counts:
        raise DataError(
            f"class {names[counts.index(0)]} has no training graph; give it one, or leave its graphs out of the other "
            "splits"
        )
    found, notes = dict(parts), list[str]()
    for split, title in SPLITS.items():
        if split not in found:
            found["train"], found[split] = _held_out(y, found["train"], Draws(seed, ("split", split)), names, split)
            notes.append(f"{title}: {SHARES[1]:.0%} of the training graphs of each class, at random, seed {seed}")
    return (found["train"], found["dev"], found["test"]), tuple(notes)


def _held_out(y: Tensor, train: Tensor, draws: Draws, names: Sequence[str], split: str) -> tuple[Tensor, Tensor]:
    """Return the training graphs that stay, and a tenth of each class for another split."""
    held = torch.zeros(len(train), dtype=torch.bool)
    counts = torch.bincount(y[train], minlength=len(names))
    giving = validating(counts) if split == "dev" else counts > 1
    if not giving.all() and (split == "test" or not giving.any()):
        name = names[int(giving.long().argmin())]
        raise DataError(f"class {name} has a single training graph, and none is left for {SPLITS[split]}{WAY_ON}")
    for index in giving.nonzero().flatten().tolist():
        members = (y[train] == index).nonzero().flatten()
        count = max(round(SHARES[1] * len(members)), 1)
        held[members[draws.fold(index).permutation(len(members))[:count]]] = True
    return train[~held], train[held]
