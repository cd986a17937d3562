"""What a step may expect of an objective's loss."""

from collections.abc import Sequence

from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.objectives.base import Objective


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
