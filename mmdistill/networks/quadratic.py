"""Linear systems of a symmetric positive definite operator that is only known by its products, solved in few steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.update_rules import Adam

Product = Callable[[Tensor], Tensor]
"""From a vector to the operator's product with it."""


@dataclass(frozen=True)
class QuadraticSolver(ABC):
    r"""Takes a fixed number of steps from 0 towards the solution of :math:`A x = b`.

    That is the minimum of :math:`\tfrac{1}{2} x^\top A x - b^\top x`. No step waits for a device to tell how near it
    is.

    Args:
        steps: products with A.
    Raises:
        ConfigError: no steps.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"a solver takes at least 1 step, got {self.steps}")

    @abstractmethod
    def solve(self, product: Product, goal: Tensor) -> Tensor:
        """Return x.

        Shapes:
            the goal b is a vector ``(p,)``, as are what the product takes and gives, and x.
        """


@dataclass(frozen=True)
class ConjugateGradients(QuadraticSolver):
    """Conjugate gradients: the best x that so many products reach, without a rate to choose.

    Source: Hestenes and Stiefel, 1952.
    """

    def solve(self, product: Product, goal: Tensor) -> Tensor:
        """Return x; where it is found before the last step, later ones change nothing."""
        x, residual, direction = torch.zeros_like(goal), goal, goal
        size = least = goal @ goal
        least = least * torch.finfo(goal.dtype).eps ** 2
        for _ in range(self.steps):
            along = product(direction)
            moves = size > least
            length = torch.where(moves, size / (direction @ along), 0.0)
            x, residual = x + length * direction, residual - length * along
            left = residual @ residual
            direction = residual + torch.where(moves, left / size, 0.0) * direction
            size = left
        return x


@dataclass(frozen=True)
class AdamDescent(QuadraticSolver):
    """Adam on the quadratic function, with moments that start at 0 in each solve.

    Few steps of a small rate end far from the solution, and near 0: that is a regularisation of its own.

    Args:
        lr: Adam's rate, in the unit of x.
    Raises:
        ConfigError: a rate that is not positive.
    """

    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr <= 0:
            raise ConfigError(f"Adam's rate is positive, got {self.lr}")

    def solve(self, product: Product, goal: Tensor) -> Tensor:
        """Return x."""
        rule, x = Adam(), torch.zeros_like(goal)
        memory = rule.start(x)
        for step in range(self.steps):
            gradient = product(x) - goal if step else -goal
            x, memory = rule.step(x, memory, gradient, self.lr, step)
        return x
