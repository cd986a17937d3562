"""Optimizers of synthetic data that torch does not have."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmdistill.errors import ConfigError


class LAMB(Optimizer):
    r"""Adam whose update of each tensor is rescaled to the tensor's own norm.

    .. math:: w \leftarrow w - \eta \frac{\lVert w \rVert}{\lVert r + \lambda w \rVert} (r + \lambda w), \quad
        r = \hat m / (\sqrt{\hat v} + \epsilon)

    with Adam's bias-corrected moments; the ratio is 1 where either norm is 0. So images and labels, whose gradients
    differ by orders of magnitude, move by the same share of their own size.

    Args:
        params: what is stepped.
        lr: learning rate, the share of its norm by which a tensor moves.
        betas: decay of both moments.
        eps: epsilon.
        weight_decay: lambda.
        maximize: ascend instead of descend.

    Raises:
        ConfigError: values out of range.

    Source: You et al., ICLR 2020, Algorithm 2, with the identity as its bounding function.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(
                f"LAMB needs lr, eps and weight_decay of at least 0 and betas in [0, 1), got {lr}, {eps}, "
                f"{weight_decay} and {betas}"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; returns the closure's loss where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        gradient = -parameter.grad if group["maximize"] else parameter.grad
        beta1, beta2 = group["betas"]
        state["step"] += 1
        first = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
        second = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
        update = first / (second.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        own, moved = parameter.norm(), update.norm()
        ratio = torch.where((own > 0) & (moved > 0), own / moved, 1.0)
        parameter -= group["lr"] * ratio * update
