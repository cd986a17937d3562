"""How networks train on a set: epochs, minibatches, optimizer and learning rates."""

import math
from dataclasses import dataclass
from typing import Literal

from mmdistill.checks import require_at_least
from mmdistill.errors import ConfigError, require_choice

COSINE_FLOOR = 0.01
"""The fraction of the rate at which annealing ends."""


@dataclass(frozen=True)
class FitProtocol:
    """How a judge is trained.

    Args:
        epochs: number of epochs.
        lr: learning rate.
        optimizer: ``sgd``, ``adam``, ``adamw``, or ``adamw-matrices``, which decays the weights of layers but not
            biases or the parameters of norms.
        momentum: for SGD.
        weight_decay: L2 coefficient (decoupled for AdamW).
        batch: minibatch size; None takes all samples each step.
        decay_at: fractions of the epochs at which the rate is multiplied by ``decay`` and the optimizer restarts,
            momentum included, as the field's evaluators do.
        decay: the factor.
        restart: whether the optimizer restarts there; otherwise only the rate changes.
        warmup: steps in which the rate rises linearly from 0.
        cosine: after the warm-up, anneal the rate to a hundredth over the rest of the training.
        visits: samples that a pass draws, without replacement; None draws all.
        passes: passes over the data per epoch; several make epochs of few steps worth saving.
        sam: rho of sharpness-aware minimisation: each gradient is taken at the parameters moved by rho up the loss
            (Foret et al., ICLR 2021); 0 is plain training.
        sam_gap: weight of the surrogate gap (Zhuang et al., ICLR 2022): steps also ascend this multiple of the part of
            the plain gradient that is orthogonal to the sharpness-aware one.
        sam_adaptive: move each parameter in proportion to its square (Kwon et al., ICML 2021).
        faster: pairs of a prefix of parameters' names and the factor of their rate, as for a new head on a pre-trained
            body (discriminative rates, Howard and Ruder, ACL 2018).
    Raises:
        ConfigError: a value out of range, or an unknown optimizer.
    """

    epochs: int
    lr: float = 0.01
    optimizer: Literal["sgd", "adam", "adamw", "adamw-matrices"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int | None = 256
    decay_at: tuple[float, ...] = (0.5,)
    decay: float = 0.1
    restart: bool = True
    warmup: int = 0
    cosine: bool = False
    visits: int | None = None
    sam: float = 0.0
    sam_gap: float = 0.0
    sam_adaptive: bool = False
    faster: tuple[tuple[str, float], ...] = ()
    passes: int = 1

    def __post_init__(self) -> None:
        require_choice("the optimizer", self.optimizer, ("sgd", "adam", "adamw", "adamw-matrices"))
        require_at_least(self, dict.fromkeys(("lr", "momentum", "weight_decay", "decay", "sam", "sam_gap"), 0.0))
        whole = {"epochs": 0, "warmup": 0, "batch": 1, "visits": 1, "passes": 1}
        require_at_least(self, {name: least for name, least in whole.items() if getattr(self, name) is not None})
        if not all(0 <= at <= 1 for at in self.decay_at):
            raise ConfigError(f"decay_at are fractions of the epochs, got {self.decay_at}")

    @property
    def open_ended(self) -> bool:
        """Whether any longer training begins with the same steps, since no rate depends on the number of epochs."""
        return not (self.decay_at or self.cosine)

    @property
    def keeps_nothing(self) -> bool:
        """Whether the optimizer has no state, so that the networks alone suffice to resume."""
        return self.optimizer == "sgd" and not self.momentum


def rate_factor(protocol: FitProtocol, step: int, steps: int) -> float:
    """Return the rate's factor by warm-up and annealing at ``step`` of ``steps``, decays at ``decay_at`` aside."""
    if step < protocol.warmup:
        return step / protocol.warmup
    if not protocol.cosine:
        return 1.0
    share = (step - protocol.warmup) / max(steps - protocol.warmup, 1)
    return COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * share))


def epoch_rate(protocol: FitProtocol, epoch: int) -> float:
    """Return the rate in an epoch after the decays at ``decay_at``, without warm-up and annealing."""
    rate = protocol.lr
    for _ in range(sum(0 < at <= epoch for at in decay_epochs(protocol))):
        rate *= protocol.decay
    return rate


def steps_of_epoch(protocol: FitProtocol, count: int, *, whole: bool = False) -> int:
    """Return the steps of an epoch on ``count`` samples; ``whole`` drops a last, smaller minibatch."""
    visits, size = visits_and_size(protocol, count, whole=whole)
    return protocol.passes * math.ceil(visits / size)


def visits_and_size(protocol: FitProtocol, count: int, *, whole: bool = False) -> tuple[int, int]:
    """Return how many of ``count`` samples a pass draws, and the size of its minibatches."""
    visits = count if protocol.visits is None else min(protocol.visits, count)
    size = visits if protocol.batch is None else min(protocol.batch, visits)
    return visits - visits % size if whole else visits, size


def decay_epochs(protocol: FitProtocol) -> set[int]:
    """Return the epochs at whose start the rate decays."""
    return {int(protocol.epochs * fraction) for fraction in protocol.decay_at}
