"""Selection of each network's best state in training by validation data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mmdistill.checks import require_at_least
from mmdistill.task import NetworkState


@dataclass(frozen=True)
class Selection:
    """How the state of each network that training returns is chosen on validation data.

    Args:
        score: scores stacked networks, ``(n,)``, higher is better.
        every: epochs between scores, see :func:`is_scored`.
    Raises:
        ConfigError: ``every`` is not a whole number of at least 1.
    """

    score: Callable[[NetworkState], Tensor]
    every: int = 1

    def __post_init__(self) -> None:
        require_at_least(self, {"every": 1})


def is_scored(done: int, epochs: int, every: int) -> bool:
    """Return whether networks are scored after ``done`` of ``epochs`` epochs: every ``every`` epochs and at the end."""
    return done % every == 0 or done == epochs


class Best(NamedTuple):
    """The best state of each network so far, with its score ``(n,)``."""

    scores: Tensor
    state: NetworkState


def better_of(best: Best | None, scores: Tensor, state: NetworkState) -> Best:
    """Return, per network, the better of two scored states; ties keep the earlier one."""
    if best is None:
        return Best(scores, state.map(torch.clone))
    better = scores > best.scores

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better.view(-1, *(1,) * (new.ndim - 1)), new, old)

    return Best(choose(scores, best.scores), tree_map(choose, state, best.state))
