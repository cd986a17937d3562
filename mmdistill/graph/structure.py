"""Structure generators: how a synthetic graph stores its adjacency, and turns it into edge weights.

Without a generator, A' = I. Adjacencies are symmetric with zero diagonal; networks add self-loops and normalise.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdistill.checks import require_at_least
from mmdistill.errors import ShapeError
from mmdistill.graph.data import LARGE
from mmdistill.graph.synthetic import Structure
from mmdistill.runtime import Draws
from mmdistill.task import Task, Tensors

EPSILON = 1e-5
"""Added to the variances in batch norms, as in torch."""
COLDEST = 0.01
"""The final temperature of relaxed edges."""
START = 4.0
"""The initial logit of edges among the real nodes that a graph starts from; other pairs start at its negative."""


class PairwiseMLP(Structure):
    r"""Edge weights as a function of both ends' features (GCond's generator).

    .. math:: A'_{ij} = \sigma\big(\tfrac12 (f([x_i; x_j]) + f([x_j; x_i]))\big), \quad A'_{ii} = 0

    The network f has batch norms over all pairs and rectifiers between its layers. Its first layer acts on each end
    separately, :math:`W [x_i; x_j] = W_1 x_i + W_2 x_j`. Since all pairs occur, the norm after it does too: the mean
    over pairs is the sum of the ends' means, and the variance the sum of their variances. So no tensor of size
    n' x n' x 2d is needed. Biases before a norm would cancel and are left out.

    Args:
        features: d.
        draws: the key of the initial weights.
        width: hidden units.
        depth: linear layers, at least 2.
        cut: after learning, weights below it are dropped.
        bias: initial bias of the last layer; edges start near its sigmoid, for 0 at one half as published.
    Raises:
        ConfigError: fewer than two layers.
    Source: Jin et al., ICLR 2022, Eq. 7; its published code for norms, symmetry and initialisation.
    """

    def __init__(
        self, features: int, draws: Draws, width: int = 128, depth: int = 3, cut: float = 0.05, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.depth, self.cut = depth, cut
        require_at_least(self, {"depth": 2})

        def weight(name: str, out: int, into: int, fan_in: int) -> nn.Parameter:
            bound = fan_in**-0.5
            return nn.Parameter(draws.fold(name).uniform(out, into, low=-bound, high=bound))

        self.source = weight("source", width, features, 2 * features)
        self.target = weight("target", width, features, 2 * features)
        hidden = [weight(f"hidden-{index}", width, width, width) for index in range(depth - 2)]
        self.hidden = nn.ParameterList(hidden)
        self.scales = nn.ParameterList(torch.ones(width, device=draws.device) for _ in range(depth - 1))
        self.shifts = nn.ParameterList(torch.zeros(width, device=draws.device) for _ in range(depth - 1))
        self.last = weight("last", 1, width, width)
        self.bias = nn.Parameter(torch.full((1,), bias, device=draws.device))

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """Return ``(n, n)`` weights in (0, 1) for features ``(n, d)``; nothing is drawn."""
        nodes = len(x)
        pairs = self._first(x @ self.source.mT, x @ self.target.mT).flatten(0, 1)
        for weight, scale, shift in zip(self.hidden, list(self.scales)[1:], list(self.shifts)[1:], strict=True):
            pairs = F.batch_norm(pairs @ weight.mT, None, None, scale, shift, training=True, eps=EPSILON).relu()
        scores = (pairs @ self.last.mT + self.bias).view(nodes, nodes)
        off_diagonal = 1 - torch.eye(nodes, dtype=scores.dtype, device=scores.device)
        return off_diagonal * ((scores + scores.mT) / 2).sigmoid()

    def _first(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the normalised and rectified first layer of all pairs, ``(n, n, width)``."""
        variance = source.var(0, correction=0) + target.var(0, correction=0)
        scale: Tensor = self.scales[0] * (variance + EPSILON).rsqrt()
        left: Tensor = (source - source.mean(0)) * scale + self.shifts[0]
        right = (target - target.mean(0)) * scale
        return (left.unsqueeze(1) + right.unsqueeze(0)).relu()

    def finished(self, x: Tensor) -> Tensor:
        """Return the weights with those at or below the cut set to 0."""
        weights: Tensor = self(x, Draws(0))
        return F.threshold(weights, self.cut, 0.0)


class BernoulliEdges(Structure):
    r"""A Bernoulli distribution per pair of nodes, relaxed to a binary Concrete one while learned (DosCond).

    .. math:: A'_{ij} = \sigma\big((\log u - \log(1 - u) + \theta_{ij}) / t\big), \quad t = \max(t_0^{s / S}, t_0)

    with symmetric uniform noise u and s the steps taken. After learning, edges are the pairs of probability above 1/2.
    The penalty keeps the expected density from exceeding the initial one,
    :math:`\lambda \max(0, \bar\sigma(\theta) - \rho)`, with the mean over pairs of existing nodes.

    Args:
        logits: initial logits ``(n, n)``, or ``(M, n, n)`` for M graphs; only the upper triangles are read.
        cooling: S, the steps in which the temperature falls from 1 to t_0, :data:`COLDEST`.
        penalty_weight: lambda.
        present: 1 where a padded graph has a node, ``(n,)`` or ``(M, n)``; None: everywhere.
    Raises:
        ShapeError: logits are not square, or ``present`` is of other nodes.
    Source: Jin et al., KDD 2022, Sec. 3.2 and 3.3.
    """

    steps: Tensor
    density: Tensor
    pairs: Tensor

    def __init__(
        self,
        logits: Tensor,
        cooling: int = 200,
        penalty_weight: float = 0.1,
        present: Tensor | None = None,
    ) -> None:
        super().__init__()
        if logits.ndim not in (2, 3) or logits.shape[-2] != logits.shape[-1]:
            raise ShapeError(f"edges have one logit per pair of nodes, (n, n), got {tuple(logits.shape)}")
        if present is None:
            present = logits.new_ones(logits.shape[:-1])
        elif present.shape != logits.shape[:-1]:
            raise ShapeError(f"presence is one number per node {tuple(logits.shape[:-1])}, got {tuple(present.shape)}")
        self.nodes = logits.shape[-1]
        row, column = torch.triu_indices(self.nodes, self.nodes, 1, device=logits.device)
        self.logits = nn.Parameter(logits[..., row, column].clone())
        self.cooling, self.penalty_weight = cooling, penalty_weight
        self.register_buffer("steps", torch.zeros((), device=logits.device))
        self.register_buffer("pairs", (present[..., row] * present[..., column]).to(logits), persistent=False)
        self.register_buffer("density", self._expected_density().detach())

    def matrix(self, upper: Tensor) -> Tensor:
        """Return the symmetric ``(..., n, n)`` matrices with zero diagonal of upper triangles ``(..., n (n-1)/2)``."""
        row, column = torch.triu_indices(self.nodes, self.nodes, 1, device=upper.device)
        full = upper.new_zeros(*upper.shape[:-1], self.nodes**2)
        full = full.index_copy(-1, row * self.nodes + column, upper)
        full = full.reshape(*upper.shape[:-1], self.nodes, self.nodes)
        return full + full.mT

    def temperature(self) -> Tensor:
        """Return t, a scalar."""
        return COLDEST ** (self.steps / self.cooling).clamp(max=1.0)

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """Return one relaxed sample of the weights."""
        noise = draws.fold("edges").to(x.device).uniform(*self.logits.shape, low=1e-6, high=1 - 1e-6)
        return self.matrix(((noise.logit().to(self.logits) + self.logits) / self.temperature()).sigmoid())

    def finished(self, x: Tensor) -> Tensor:
        """Return the edges of probability above 1/2, with weight 1."""
        return self.matrix((self.logits > 0).to(self.logits))

    def penalty(self) -> Tensor:
        """Return the penalty on a density above the initial one."""
        return self.penalty_weight * (self._expected_density() - self.density).relu()

    def _expected_density(self) -> Tensor:
        """Return the mean edge probability over pairs of existing nodes."""
        return (self.pairs * self.logits.sigmoid()).sum() / self.pairs.sum().clamp(min=1)

    def project(self) -> None:
        """Count a step, which lowers the temperature."""
        self.steps += 1


class GivenEdges(Structure):
    """Fixed edges.

    Args:
        adjacency: their weights, symmetric with zero diagonal, ``(n, n)``, or ``(M, n, n)`` for M graphs.
    """

    adjacency: Tensor

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency.clone())

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the weights; nothing is drawn."""
        return self.adjacency

    def finished(self, x: Tensor) -> Tensor:
        """Return the weights."""
        return self.adjacency


def pairwise_mlp(task: Task, start: Tensors, draws: Draws, bias: float = 0.0) -> Structure:
    """Build a pairwise MLP with the width and cut published for real graphs of this size."""
    nodes = task.describe().preprocessing.get("nodes", 0)
    large = isinstance(nodes, int) and nodes >= LARGE
    width, cut = (256, 0.01) if large else (128, 0.05)
    return PairwiseMLP(start["x"].shape[-1], draws.to(task.device), width, cut=cut, bias=bias)


def bernoulli_edges(task: Task, start: Tensors, draws: Draws) -> Structure:
    """Build Bernoulli edges that start from those among the real nodes."""
    return BernoulliEdges(initial_logits(start))


def initial_logits(start: Tensors) -> Tensor:
    """Return logits that are positive where real nodes are linked, else negative.

    Shapes:
        ``adjacency`` ``(n, n)``; returns the same shape.
    """
    adjacency = start["adjacency"]
    return torch.where(adjacency > 0, START, -START).to(adjacency.dtype)
