"""Optimizers of synthetic data: made and annealed by settings, and two that torch lacks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmdistill.settings import OptimizerSpec
from mmdistill.task import Tensors


class _Moments(Optimizer, ABC):
    """The base of optimizers with Adam's two moments: their state, and the loop over tensors."""

    eps: float

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        eps = self.eps if eps is None else eps
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; move step counts to their parameters' devices, which torch does for its own optimizers only."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["step"] = state["step"].to(parameter.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; closures are not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                gradient = -parameter.grad if group["maximize"] else parameter.grad
                self._update(parameter, gradient, state, group)

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, state: Tensors, group: dict[str, Any]) -> None:
        """Move a tensor and its moments by one step, in place."""


class LAMB(_Moments):
    r"""Adam whose update of each tensor is rescaled to the tensor's own norm.

    .. math:: w \leftarrow w - \eta \frac{\lVert w \rVert}{\lVert r + \lambda w \rVert} (r + \lambda w), \quad
        r = \hat m / (\sqrt{\hat v} + \epsilon)

    with Adam's bias-corrected moments; the ratio is 1 if either norm is 0. So images and labels, whose gradients
    differ by orders of magnitude, move by the same fraction of their own norms.

    Args:
        params: the parameters.
        lr: learning rate, the share of its norm by which a tensor moves.
        betas: decay of both moments.
        eps: epsilon.
        weight_decay: lambda.
        maximize: ascend instead of descend.

    Source: You et al., ICLR 2020, Algorithm 2, with the identity as its bounding function.
    """

    eps = 1e-6

    def _update(self, parameter: Tensor, gradient: Tensor, state: Tensors, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        first = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
        second = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
        update = first / (second.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        norm, update_norm = parameter.norm(), update.norm()
        ratio = torch.where((norm > 0) & (update_norm > 0), norm / update_norm, 1.0)
        parameter -= group["lr"] * ratio * update


class AdaBelief(_Moments):
    r"""Adam whose second moment is that of the gradient's deviation from its own running mean.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        s \leftarrow \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon, \quad
        w \leftarrow w - \eta\, \hat m / (\sqrt{\hat s} + \epsilon)

    with bias-corrected moments. Steady gradients give large steps, changing ones small steps.

    Args:
        params: the parameters.
        lr: learning rate.
        betas: decay of both moments.
        eps: epsilon, which accumulates in the second moment; comparable to the square of Adam's.
        weight_decay: L2 coefficient, added to the gradient.
        maximize: ascend instead of descend.

    Source: Zhuang et al., NeurIPS 2020, Algorithm 2.
    """

    eps = 1e-16

    def _update(self, parameter: Tensor, gradient: Tensor, state: Tensors, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        gradient = gradient + group["weight_decay"] * parameter
        first = state["exp_avg"].lerp_(gradient, 1 - beta1)
        deviation = (gradient - first).square()
        second = state["exp_avg_sq"].lerp_(deviation, 1 - beta2).add_(group["eps"])
        root = (second / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
        parameter -= group["lr"] / (1 - beta1 ** state["step"]) * first / root


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lamb": LAMB,
    "adabelief": AdaBelief,
}
"""Optimizers by their names in settings."""


def make_optimizer(spec: OptimizerSpec, parameters: Iterable[Tensor]) -> Optimizer:
    """Return the optimizer of one group of tensors; its step count needs no device synchronisation."""
    options: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay, "maximize": spec.maximize}
    if spec.name == "sgd":
        options["momentum"] = spec.momentum
    else:
        options["betas"] = spec.betas
    return OPTIMIZERS[spec.name](parameters, **options)


def anneal(optimizer: Optimizer, spec: OptimizerSpec, step: int, steps: int) -> None:
    """Set an optimizer's rate for a step of ``steps``, by a cosine to the spec's floor; a constant rate stays."""
    if not spec.cosine:
        return
    wave = 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
    for group in optimizer.param_groups:
        group["lr"] = spec.lr * (spec.floor + (1 - spec.floor) * wave)


def is_active(spec: OptimizerSpec, step: int) -> bool:
    """Return whether a group is updated in a step."""
    if spec.active is None:
        return True
    start, stop, period = spec.active
    return start <= step % period < stop
