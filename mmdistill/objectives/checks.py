"""Checks of an objective: that its schedule gives what it reads, and that its loss can be differentiated."""

from collections.abc import Sequence

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.objectives.base import Objective


def require_given(objective: Objective, schedule: NetworkSchedule) -> None:
    """Refuse an objective that reads a target or an accuracy which its schedule does not give.

    Raises:
        ConfigError: naming both.
    """
    name = type(schedule).__name__
    if objective.needs_target and not schedule.gives_target:
        raise ConfigError(
            f"{type(objective).__name__} matches an expert's end point, which {name} does not give; use a schedule of "
            "cached experts"
        )
    if objective.needs_accuracy and not schedule.gives_accuracy:
        raise ConfigError(
            f"{type(objective).__name__} weighs by how accurate a network is, which {name} does not count; use a pool "
            "of networks that train on real samples (EnrichedPool)"
        )


def require_loss(objective: Objective, loss: object, learns: bool) -> None:
    """Refuse a loss that is not a differentiable scalar.

    Args:
        objective: the objective, for the message.
        loss: what it returned.
        learns: whether anything is learned from the loss.
    Raises:
        ConfigError: the loss is not a scalar tensor, or requires no gradient though something is learned.
    """
    name = type(objective).__name__
    if not isinstance(loss, Tensor) or loss.ndim:
        returned = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ConfigError(f"a loss is a tensor of one number and no axes, and {name} returned {returned}")
    if learns and not loss.requires_grad:
        raise _detached_error(objective)


def require_gradients(objective: Objective, gradients: Sequence[Tensor | None]) -> None:
    """Refuse a loss that depends on none of the learned tensors, even if on parameters of the network.

    Raises:
        ConfigError: there are tensors to learn, and none has a gradient.
    """
    if gradients and all(gradient is None for gradient in gradients):
        raise _detached_error(objective)


def _detached_error(objective: Objective) -> ConfigError:
    """Return the error for a loss that is detached from everything learned."""
    return ConfigError(
        f"no gradient leads from the loss of {type(objective).__name__} to what is learned; the network or the "
        "objective cuts it off (no_grad, detach, argmax)"
    )
