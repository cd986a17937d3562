"""The update rules by which unrolled students train, each with its adjoint.

A rule maps parameters, memory (momentum, moments) and a gradient to new parameters and memory. Its adjoint takes the
cotangents of the new parameters and memory to those of the old ones, of the rate, and of the gradient. The last one is
a direction in parameter space, along which :mod:`mmdistill.networks.unroll` differentiates the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmdistill.errors import ConfigError

Memory = tuple[Tensor, ...]


class Cotangent(NamedTuple):
    """What one step passes back.

    Args:
        direction: in which the loss is differentiated: ``scale * direction`` is the gradient's cotangent.
        scale: see there.
        memory: the cotangents of the memory before the step.
        rate: that of the rate; None where it is minus the gradient's inner product with the direction.
    """

    direction: Tensor
    scale: Tensor | float
    memory: Memory
    rate: Tensor | None


class UpdateRule(ABC):
    """How a student takes a step; parameters, gradients and memory are vectors."""

    @abstractmethod
    def start(self, theta: Tensor) -> Memory:
        """Return the memory before the first step, which is also the cotangent of the memory after the last one."""

    @abstractmethod
    def step(self, theta: Tensor, memory: Memory, gradient: Tensor, rate: Tensor, index: int) -> tuple[Tensor, Memory]:
        """Return the parameters and memory after the step of this index, the first being 0."""

    def kept(self, memory: Memory, gradient: Tensor) -> Memory:
        """Return what :meth:`adjoint` reads of a step, from the memory after it; the memory itself by default."""
        return memory

    @abstractmethod
    def adjoint(self, adjoint: Tensor, carried: Memory, kept: Memory, rate: Tensor, index: int) -> Cotangent:
        """Return the step's cotangents.

        Args:
            adjoint: the cotangent of the parameters after the step; it passes unchanged to those before it, next to
                what the gradient's cotangent adds.
            carried: the cotangents of the memory after the step.
            kept: what :meth:`kept` returned.
            rate: the step's rate.
            index: the step's number.
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
        """Return the momentum, if there is any."""
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
        mean, root = self._corrected(m, v, index)
        return theta - rate * mean / (root + self.eps), (m, v)

    def kept(self, memory: Memory, gradient: Tensor) -> Memory:
        """Return the moments and the gradient."""
        return *memory, gradient

    def adjoint(self, adjoint: Tensor, carried: Memory, kept: Memory, rate: Tensor, index: int) -> Cotangent:
        """Return the cotangents; where a parameter never had a gradient, the root's derivative is taken as 0."""
        (first, second), (m, v, gradient) = self.betas, kept
        mean, root = self._corrected(m, v, index)
        scaled = adjoint / (root + self.eps)
        slope = torch.where(v > 0, 0.5 / (root * (1 - second ** (index + 1))), 0.0)
        by_m = carried[0] - rate * scaled / (1 - first ** (index + 1))
        by_v = carried[1] + rate * scaled * mean / (root + self.eps) * slope
        direction = (1 - first) * by_m + 2 * (1 - second) * gradient * by_v
        return Cotangent(direction, 1.0, (first * by_m, second * by_v), -(scaled @ mean))

    def _corrected(self, m: Tensor, v: Tensor, index: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return the corrected mean, and the root of the corrected second moment."""
        first, second = (1 - beta ** (index + 1) for beta in self.betas)
        return m / first, (v / second).sqrt()


def adam_moments(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moments of all parameters before the first step, as :func:`adam_update` reads them."""
    moments = {"steps": next(iter(params.values())).new_zeros(())}
    for name, parameter in params.items():
        moments[f"first.{name}"], moments[f"second.{name}"] = Adam().start(parameter)
    return moments


def adam_update(
    params: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], lr: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters and moments after a step of :class:`Adam` on all parameters.

    Shapes:
        moments ``first.NAME`` and ``second.NAME`` in the parameter's shape, and ``steps`` ``()``, those before; none
        before the first step, and others are left unread.
    """
    adam, moved, found = Adam(), {}, {}
    moments = moments if "steps" in moments else adam_moments(params)
    before = moments["steps"]
    for name, parameter in params.items():
        first, second = f"first.{name}", f"second.{name}"
        memory = moments[first], moments[second]
        moved[name], (found[first], found[second]) = adam.step(parameter, memory, gradients[name], lr, before)
    return moved, found | {"steps": before + 1}
