"""The update rules of unrolled students, each with its adjoint.

A rule maps parameters, memory (momentum, moments) and a gradient to new parameters and memory. Its adjoint maps the
cotangents of the new parameters and memory to the cotangents of the old ones, of the rate and of the gradient. The
gradient's cotangent is a direction in parameter space, along which :mod:`mmdistill.networks.unroll` differentiates the
loss.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.task import Tensors

Memory = tuple[Tensor, ...]


class Cotangent(NamedTuple):
    """The cotangents that one step passes back.

    Args:
        direction: the direction in which the loss is differentiated; the gradient's cotangent is ``scale * direction``.
        scale: its factor.
        memory: the cotangents of the memory before the step.
        rate: the rate's cotangent; None if it is minus the inner product of gradient and direction.
    """

    direction: Tensor
    scale: Tensor | float
    memory: Memory
    rate: Tensor | None


class UpdateRule(ABC):
    """One optimizer step of a student; parameters, gradients and memory are vectors."""

    @abstractmethod
    def start(self, theta: Tensor) -> Memory:
        """Return the memory before the first step, zeros, which is also the cotangent of the memory after the last."""

    @abstractmethod
    def step(self, theta: Tensor, memory: Memory, gradient: Tensor, rate: Tensor, index: int) -> tuple[Tensor, Memory]:
        """Return the parameters and memory after step ``index``, counted from 0."""

    def kept(self, memory: Memory, gradient: Tensor) -> Memory:
        """Return the tensors of a step that :meth:`adjoint` reads; by default the memory after the step."""
        return memory

    @abstractmethod
    def adjoint(self, adjoint: Tensor, carried: Memory, kept: Memory, rate: Tensor, index: int) -> Cotangent:
        """Return the step's cotangents.

        Args:
            adjoint: the cotangent of the parameters after the step. The cotangent of the parameters before it is the
                same one plus what flows through the gradient.
            carried: the cotangents of the memory after the step.
            kept: the tensors that :meth:`kept` returned.
            rate: the step's rate.
            index: the step's number, counted from 0.
        """


@dataclass(frozen=True)
class Sgd(UpdateRule):
    r"""SGD with momentum, :math:`m' = \beta m + g, \theta' = \theta - \eta m'` (survey, Eq. 3).

    Raises:
        ConfigError: momentum outside [0, 1).
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum lies in [0, 1), got {self.momentum}")

    def start(self, theta: Tensor) -> Memory:
        """Return a momentum buffer of zeros, or nothing without momentum."""
        return (torch.zeros_like(theta),) if self.momentum else ()

    def step(self, theta: Tensor, memory: Memory, gradient: Tensor, rate: Tensor, index: int) -> tuple[Tensor, Memory]:
        """Take the step."""
        if not self.momentum:
            return theta - rate * gradient, ()
        velocity = self.momentum * memory[0] + gradient
        return theta - rate * velocity, (velocity,)

    def adjoint(self, adjoint: Tensor, carried: Memory, kept: Memory, rate: Tensor, index: int) -> Cotangent:
        """Return the cotangents."""
        if not self.momentum:
            return Cotangent(adjoint, -rate, (), None)
        direction = carried[0] - rate * adjoint
        return Cotangent(direction, 1.0, (self.momentum * direction,), -(adjoint @ kept[0]))


@dataclass(frozen=True)
class Adam(UpdateRule):
    r"""Adam: :math:`\theta' = \theta - \eta \hat m / (\sqrt{\hat v} + \epsilon)`, as ``torch.optim.Adam`` takes it.

    Source: Kingma and Ba, ICLR 2015.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, theta: Tensor) -> Memory:
        """Return two moments of zero."""
        return torch.zeros_like(theta), torch.zeros_like(theta)

    def step(
        self, theta: Tensor, memory: Memory, gradient: Tensor, rate: Tensor | float, index: Tensor | int
    ) -> tuple[Tensor, Memory]:
        """Take the step."""
        first, second = self.betas
        m = first * memory[0] + (1 - first) * gradient
        v = second * memory[1] + (1 - second) * gradient.square()
        mean, root = self._bias_corrected(m, v, index)
        return theta - rate * mean / (root + self.eps), (m, v)

    def kept(self, memory: Memory, gradient: Tensor) -> Memory:
        """Return the moments and the gradient."""
        return *memory, gradient

    def adjoint(self, adjoint: Tensor, carried: Memory, kept: Memory, rate: Tensor, index: int) -> Cotangent:
        """Return the cotangents; the derivative of the root is taken as 0 where a parameter never had a gradient."""
        (first, second), (m, v, gradient) = self.betas, kept
        mean, root = self._bias_corrected(m, v, index)
        scaled = adjoint / (root + self.eps)
        root_slope = torch.where(v > 0, 0.5 / (root * (1 - second ** (index + 1))), 0.0)
        by_m = carried[0] - rate * scaled / (1 - first ** (index + 1))
        by_v = carried[1] + rate * scaled * mean / (root + self.eps) * root_slope
        direction = (1 - first) * by_m + 2 * (1 - second) * gradient * by_v
        return Cotangent(direction, 1.0, (first * by_m, second * by_v), -(scaled @ mean))

    def _bias_corrected(self, m: Tensor, v: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return the bias-corrected first moment and the root of the bias-corrected second moment."""
        first, second = (1 - beta ** (index + 1) for beta in self.betas)
        return m / first, (v / second).sqrt()


@torch.no_grad()
def sgd_update(
    params: Tensors, gradients: Tensors, momentum: Tensors, lr: float, beta: float, weight_decay: float = 0.0
) -> tuple[Tensors, Tensors]:
    """Return parameters and momentum buffers after an SGD step, by operations on all parameters at once."""
    names, values = list(params), list(params.values())
    change = tuple(gradients[name] for name in names)
    if weight_decay:
        change = torch._foreach_add(change, torch._foreach_mul(values, weight_decay))
    if beta and momentum:
        change = torch._foreach_add(torch._foreach_mul([momentum[name] for name in names], beta), change)
    updated = torch._foreach_sub(values, torch._foreach_mul(change, lr))
    return dict(zip(names, updated, strict=True)), dict(zip(names, change, strict=True)) if beta else {}


def adam_moments(params: Tensors) -> Tensors:
    """Return the moments before the first step, in the form that :func:`adam_update` reads."""
    moments = {"steps": next(iter(params.values())).new_zeros(())}
    for name, parameter in params.items():
        moments[f"first.{name}"], moments[f"second.{name}"] = Adam().start(parameter)
    return moments


def adam_update(params: Tensors, gradients: Tensors, moments: Tensors, lr: float) -> tuple[Tensors, Tensors]:
    """Return parameters and moments after a step of :class:`Adam` on all parameters.

    Shapes:
        moments ``first.NAME`` and ``second.NAME`` in the parameter's shape, and ``steps`` ``()``, the steps so far.
        They may be missing before the first step; other entries are ignored.
    """
    adam, new_params, new_moments = Adam(), {}, {}
    moments = moments if "steps" in moments else adam_moments(params)
    steps = moments["steps"]
    for name, parameter in params.items():
        first, second = f"first.{name}", f"second.{name}"
        memory = moments[first], moments[second]
        new_params[name], (new_moments[first], new_moments[second]) = adam.step(
            parameter, memory, gradients[name], lr, steps
        )
    return new_params, new_moments | {"steps": steps + 1}
