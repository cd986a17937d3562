"""Solvers of linear systems whose symmetric positive definite operator is known only by its products."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdistill.errors import ConfigError
from mmdistill.networks.update_rules import Adam

Product = Callable[[Tensor], Tensor]
"""Maps a vector to the operator's product with it."""


@dataclass(frozen=True)
class QuadraticSolver(ABC):
    r"""Takes a fixed number of steps from 0 towards the solution of :math:`A x = b`.

    The solution is the minimum of :math:`\tfrac{1}{2} x^\top A x - b^\top x`. No step reads the residual back, so none
    waits for the device.

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
            goal (b), x, and the product's argument and result are vectors ``(p,)``.
        """


@dataclass(frozen=True)
class ConjugateGradients(QuadraticSolver):
    """Conjugate gradients: the best x for a number of products, without a rate to choose.

    Source: Hestenes and Stiefel, 1952.
    """

    def solve(self, product: Product, goal: Tensor) -> Tensor:
        """Return x; steps after convergence change nothing."""
        x, residual, direction = torch.zeros_like(goal), goal, goal
        squared = goal @ goal
        converged = squared * torch.finfo(goal.dtype).eps ** 2
        for _ in range(self.steps):
            image = product(direction)
            moves = squared > converged
            length = torch.where(moves, squared / (direction @ image), 0.0)
            x, residual = x + length * direction, residual - length * image
            new_squared = residual @ residual
            direction = residual + torch.where(moves, new_squared / squared, 0.0) * direction
            squared = new_squared
        return x


@dataclass(frozen=True)
class AdamDescent(QuadraticSolver):
    """Adam on the quadratic function, with moments that start at 0 in each solve.

    A few steps at a small rate end near 0 and far from the solution, which regularises it.

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
