"""What a step may expect of an objective's loss, and an objective of the networks that it is given."""

from collections.abc import Sequence

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.objectives.base import Objective


def require_given(objective: Objective, schedule: NetworkSchedule) -> None:
    """Refuse an objective that reads of a network what its schedule does not give.

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
    """Refuse what is no loss that can be descended.

    Args:
        objective: whose it is.
        loss: what it returned.
        learns: whether anything is learned from it.
    Raises:
        ConfigError: no single number, or one that no gradient leads back from.
    """
    name = type(objective).__name__
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ConfigError(f"a loss is a tensor of one number and no axes, and {name} returned {found}")
    if learns and not loss.requires_grad:
        raise _cut_off(objective)


def require_gradients(objective: Objective, found: Sequence[Tensor | None]) -> None:
    """Refuse a loss that depends on nothing of what is learned, though on parameters of the network.

    Raises:
        ConfigError: there are tensors to learn, and none has a gradient.
    """
    if found and all(gradient is None for gradient in found):
        raise _cut_off(objective)


def _cut_off(objective: Objective) -> ConfigError:
    return ConfigError(
        f"no gradient leads from the loss of {type(objective).__name__} to what is learned; the network or the "
        "objective cuts it off (no_grad, detach, argmax)"
    )
