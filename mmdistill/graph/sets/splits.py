"""Split a set into training, validation and test graphs: as its source says, or at random within each class."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.files.held_out import held_out, shuffled_by_class, validating
from mmdistill.graph.sampling import split_by_class
from mmdistill.runtime import Draws

SHARES = (0.8, 0.1)
"""Shares of each class for training and validation; the rest tests. DosCond takes these shares of all graphs."""
SPLITS = {"test": "test", "dev": "validation"}
"""Splits that may be held out of the training graphs, in this order, and their names in messages."""
WAY_ON = '; add some, or say yourself which are for what: graph_set_task({"train": [...], "val": [...], "test": [...]})'
"""Advice where graphs are too few to split."""


def stratified(y: Tensor, seed: int, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Split graphs at random within each class; return the numbers of training, validation and test graphs.

    Each class has at least a training and a test graph, and a validation one unless it has few graphs.

    Args:
        y: the graphs' classes.
        seed: of the split.
        names: the names of the classes.

    Shapes:
        y ``(graphs,)`` int64; returns three sorted parts of the positions in it.
    Raises:
        DataError: a class of a single graph, or too few graphs for a validation one.
    """
    counts = torch.bincount(y, minlength=len(names)).tolist()
    if 1 in counts:
        name = names[counts.index(1)]
        raise DataError(f"class {name} has a single graph, and one to train on and one to test with are needed{WAY_ON}")
    ends = [int(sum(SHARES) * count) for count in counts]  # where each class's test graphs begin
    validates = validating(torch.tensor(ends))
    if not validates.any():
        raise DataError(f"classes of two graphs leave none to validate with{WAY_ON}")
    bounds = [
        [min(int(SHARES[0] * count), end - 1) if has_validation else end, end]
        for count, end, has_validation in zip(counts, ends, validates.tolist(), strict=True)
    ]
    train, val, test = split_by_class(y, seed, bounds)
    return train, val, test


def complete_splits(
    y: Tensor, parts: Mapping[str, Tensor], seed: int, names: Sequence[str]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[str, ...]]:
    """Complete the splits of a source; return the numbers of training, validation and test graphs, and notes.

    A missing split takes a random tenth of each class's training graphs, at least one; but validation takes none of
    classes with few graphs.

    Args:
        y: the graphs' classes.
        parts: ``train`` and perhaps ``dev`` and ``test``.
        seed: of the held-out graphs.
        names: the names of the classes.

    Shapes:
        y ``(graphs,)`` int64; ``parts`` and the result hold positions in it.
    Raises:
        DataError: a class without a training graph, or with too few of them.
    """
    counts = torch.bincount(y[parts["train"]], minlength=len(names)).tolist()
    if 0 in counts:
        raise DataError(
            f"class {names[counts.index(0)]} has no training graph; give it one, or leave its graphs out of the other "
            "splits"
        )
    splits, notes = dict(parts), list[str]()
    for split, title in SPLITS.items():
        if split not in splits:
            splits["train"], splits[split] = _hold_out(y, splits["train"], Draws(seed, ("split", split)), names, split)
            notes.append(f"{title}: {SHARES[1]:.0%} of the training graphs of each class, at random, seed {seed}")
    return (splits["train"], splits["dev"], splits["test"]), tuple(notes)


def _hold_out(y: Tensor, train: Tensor, draws: Draws, names: Sequence[str], split: str) -> tuple[Tensor, Tensor]:
    """Hold out a tenth of each class; return the remaining training graphs and the held-out ones."""
    counts = torch.bincount(y[train], minlength=len(names))
    contributes = validating(counts) if split == "dev" else counts > 1
    if not contributes.all() and (split == "test" or not contributes.any()):
        name = names[int(contributes.long().argmin())]
        raise DataError(f"class {name} has a single training graph, and none is left for {SPLITS[split]}{WAY_ON}")
    order = shuffled_by_class(y[train], draws)
    mask = held_out(torch.arange(len(train)), y[train], order, SHARES[1], to_validate=split == "dev")
    return train[~mask], train[mask]
