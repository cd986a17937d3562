"""Norms with correct derivatives in reverse over forward mode."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ExactNorms(TorchFunctionMode):
    """Within this context layer, batch and instance norms are computed by group norms.

    torch's forward-mode derivatives of these three read the mean and the deviation that the layer has computed, and
    reverse mode treats both as constants: the gradient of a directional derivative is wrong by a third. Group norms are
    right. Running statistics stay as they are, since only the training step updates them, not its derivatives.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function: Callable[..., Any] = BY_GROUPS.get(func, func)
        return function(*args, **(kwargs or {}))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``F.layer_norm`` as the group norm of rows of one channel."""
    output = F.group_norm(input.reshape(-1, 1, math.prod(normalized_shape)), 1, eps=eps).view(input.shape)
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``F.batch_norm``; in training as the group norm of one sample that contains the whole batch."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    channels = input.transpose(0, 1)
    whole = F.group_norm(channels.reshape(1, input.shape[1], -1), input.shape[1], weight, bias, eps)
    return whole.view(channels.shape).transpose(0, 1)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``F.instance_norm``; if it uses its input's statistics, as the group norm of single channels."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return F.group_norm(input, input.shape[1], weight, bias, eps)


BY_GROUPS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}
