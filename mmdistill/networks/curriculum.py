"""The samples that each epoch of a training draws from: easy ones first (PAD, GEOM), the easiest left out at last."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral, Real
from typing import get_args

import torch
from torch import Tensor

from mmdistill.checks import is_of, require_at_least
from mmdistill.choices import Pacing
from mmdistill.errors import ConfigError, require_choice
from mmdistill.networks.difficulty import BY_TEN, Scoring
from mmdistill.networks.fit_protocol import FitProtocol, steps_of_epoch


@dataclass(frozen=True)
class Curriculum:
    r"""The part of each class that an epoch trains on, in the order of difficulty.

    Epoch e of the first E (``joining``) draws from the easiest share s(e) of each class, later epochs from all samples.
    With :math:`\lambda` for ``easy``, s(e) is for linear, root and geometric pacing

    .. math:: \lambda + (1 - \lambda)\, e / E, \quad \sqrt{\lambda^2 + (1 - \lambda^2)\, e / E}, \quad
        \lambda^{1 - e / E}

    From the epochs of ``leaving`` on, a share of the easiest samples is left out. If a task grades its samples itself,
    all classes count as one.

    Args:
        easy: the share of each class, its easiest samples, that the first epoch draws from.
        joining: the number of epochs over which the other samples join.
        leaving: pairs of an epoch, counted from 0, and the share of the easiest samples that is left out from then on;
            each replaces the share before.
        scoring: the networks that score difficulty.
        pacing: ``linear``, ``root`` or ``geometric``.
    Raises:
        ConfigError: a share out of range, epochs out of order, samples that never join, an epoch of no samples, or an
            unknown pacing.
    Source: Li et al., 2024 (PAD), Sec. 3.1, with the stages of its published code; Zhang et al., ICML 2024 (GEOM),
    the pacing functions of its published code.
    """

    easy: float = 1.0
    joining: int = 0
    leaving: tuple[tuple[int, float], ...] = ()
    scoring: Scoring = BY_TEN
    pacing: Pacing = "linear"

    def __post_init__(self) -> None:
        require_at_least(self, {"easy": 0.0, "joining": 0})
        require_choice("how samples join (expert_pacing)", self.pacing, get_args(Pacing))
        if not 0 < self.easy <= 1 or (self.easy < 1 and not self.joining):
            raise ConfigError(
                f"experts begin with a share of each class (expert_easy) above 0 and of at most 1, and below 1 the "
                f"others join in some epochs (expert_joining), got {self.easy} and {self.joining}"
            )
        object.__setattr__(self, "leaving", _stages(self.leaving))
        for epoch, _ in self.leaving:
            first, until = self.part(epoch)
            if first >= until:
                raise ConfigError(
                    f"in epoch {epoch} the easiest {first:g} of each class have left (expert_leaving), and only the "
                    f"easiest {until:g} have joined (expert_easy, expert_joining), so no sample is left"
                )

    @property
    def is_whole(self) -> bool:
        """Whether every epoch draws from all samples."""
        return self.easy == 1 and not self.leaving

    def part(self, epoch: int) -> tuple[float, float]:
        """Return the shares of a class, ordered by difficulty, between which an epoch's samples lie."""
        first = next((share for begin, share in reversed(self.leaving) if epoch >= begin), 0.0)
        until = paced(self.pacing, self.easy, epoch, self.joining) if epoch < self.joining else 1.0
        return first, until

    def bounds(self, sizes: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the first rank of an epoch's samples within each class, and the one after the last.

        Shapes:
            sizes of the classes ``(C,)``; returns two ``(C,)`` int64.
        """
        first, until = self.part(epoch)
        return (sizes.double() * first).long(), (sizes.double() * until).long()


def paced(pacing: Pacing, easy: float, epoch: int, joining: int) -> float:
    """Return the share that has joined by an epoch of the first ``joining``, see :class:`Curriculum`."""
    if pacing == "root":
        return math.sqrt(easy**2 + (1 - easy**2) * epoch / joining)
    if pacing == "geometric":
        return math.pow(easy, 1 - epoch / joining)
    return easy + (1 - easy) * epoch / joining


class CurriculumRows:
    """A curriculum on given samples.

    Args:
        curriculum: gives the part of each class that an epoch draws from.
        labels: the samples' classes.
        scores: computes the samples' difficulty, called when an epoch's samples are first needed; counts do without.
    Shapes:
        labels ``(n,)`` int64; scores ``(n,)``, higher for harder samples.
    """

    def __init__(self, curriculum: Curriculum, labels: Tensor, scores: Callable[[], Tensor]) -> None:
        self.curriculum = curriculum
        self.labels = labels.cpu()
        self.sizes = torch.bincount(self.labels)
        self._scores = scores
        self._ranks: Tensor | None = None

    def count(self, epoch: int) -> int:
        """Return how many samples an epoch draws from.

        Raises:
            ConfigError: the epoch has no samples, since classes are too small.
        """
        first, until = self.curriculum.bounds(self.sizes, epoch)
        count = int((until - first).sum())
        if not count:
            raise ConfigError(f"the classes are too small for the part of them that epoch {epoch} trains on")
        return count

    def rows(self, epoch: int) -> Tensor:
        """Return the indices of an epoch's samples, ``(count,)`` int64 on the host, ascending."""
        if self._ranks is None:
            self._ranks = ranks_in_class(self.labels, self._scores().cpu())
        first, until = (bound[self.labels] for bound in self.curriculum.bounds(self.sizes, epoch))
        return ((self._ranks >= first) & (self._ranks < until)).nonzero().flatten()


def epoch_offsets(protocol: FitProtocol, count: int, lessons: CurriculumRows | None = None) -> list[int]:
    """Return the number of each epoch's first step, and at the end the number of all steps, for ``count`` samples."""
    counts = (count if lessons is None else lessons.count(epoch) for epoch in range(protocol.epochs))
    whole = lessons is not None
    return list(accumulate((steps_of_epoch(protocol, samples, whole=whole) for samples in counts), initial=0))


def ranks_in_class(labels: Tensor, scores: Tensor) -> Tensor:
    """Return each sample's rank within its class by ascending score; of equal scores, the earlier sample comes first.

    Shapes:
        labels and scores ``(n,)``; returns ``(n,)`` int64.
    """
    order = scores.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # class after class
    sizes = torch.bincount(labels)
    begins = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - begins[labels[order]]
    return ranks


def _stages(given: Sequence[Sequence[float]]) -> tuple[tuple[int, float], ...]:
    """Return the pairs of epochs and shares as a tuple of tuples.

    Raises:
        ConfigError: they are not such pairs, or the epochs are out of order.
    """
    are_pairs = isinstance(given, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in given
    )
    if not are_pairs or not all(
        is_of(pair[0], Integral) and is_of(pair[1], Real) and 0 <= pair[1] < 1 for pair in given
    ):
        raise ConfigError(
            f"what leaves (expert_leaving) are pairs of an epoch and a share of at least 0 and below 1, got {given!r}"
        )
    stages = tuple((int(epoch), float(share)) for epoch, share in given)
    epochs = [epoch for epoch, _ in stages]
    if epochs != sorted(set(epochs)) or min(epochs, default=0) < 0:
        raise ConfigError(f"the epochs of what leaves (expert_leaving) ascend from 0 on, got {epochs}")
    return stages
