"""A plain PyTorch epoch of GCond, against which speed is measured: one class, pair of nodes and inner step at a time.

Written from the paper's Algorithm 1, eager, the way public implementations are: the generator's input is every ordered
pair of nodes, concatenated; each class runs its own forward passes; gradients are autograd's. It uses nothing of this
library. Fair to the loop: full-batch real gradients, no needless copies, the generator once per inner loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pairs(nn.Module):
    """The generator of edges: a perceptron on all concatenated pairs of nodes.

    Args:
        features: d.
        width: hidden units.
    """

    def __init__(self, features: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * features, width),
            nn.BatchNorm1d(width, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised adjacency with self-loops, ``(n, n)``, for features ``(n, d)``."""
        nodes = len(x)
        pairs = torch.cat([x.repeat_interleave(nodes, 0), x.repeat(nodes, 1)], 1)
        scores = self.layers(pairs).view(nodes, nodes)
        loops = torch.eye(nodes)
        weights = ((scores + scores.T) / 2).sigmoid() * (1 - loops) + loops
        scale = weights.sum(1).rsqrt()
        return scale[:, None] * weights * scale[None]


@dataclass
class Problem:
    """Real and synthetic graph, and what steps the latter.

    Args:
        adjacency: the real graph's normalised adjacency, sparse.
        x: its features.
        members: the training nodes of each class.
        y: the synthetic nodes' classes.
        codes: their features, which learn.
        pairs: their edges' generator, which learns.
    """

    adjacency: Tensor
    x: Tensor
    members: list[Tensor]
    y: Tensor
    codes: Tensor
    pairs: Pairs

    def __post_init__(self) -> None:
        self.feature_steps = torch.optim.Adam([self.codes], lr=1e-4)
        self.structure_steps = torch.optim.Adam(self.pairs.parameters(), lr=1e-4)


def row_cosine(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the summed cosine distance of a weight's rows; a bias counts for nothing."""
    if mine.ndim < 2:
        return mine.new_zeros(())
    return (1 - F.cosine_similarity(mine, theirs, dim=1, eps=1e-6)).sum()


def gcond_epoch(p: Problem, epoch: int, outer: int = 20, inner: int = 15) -> None:
    """Take the outer steps of one network; the generator learns in the first tenth of fifty epochs, else features."""
    classes = len(p.members)
    network = nn.Linear(p.x.shape[1], classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    params = list(network.parameters())
    largest = int(torch.bincount(p.y).max())
    for step in range(outer):
        adjacency = p.pairs(p.codes)
        loss = torch.zeros(())
        for label, members in enumerate(p.members):
            own = p.y == label
            real = network(p.adjacency @ (p.adjacency @ p.x))[members]
            theirs = torch.autograd.grad(F.cross_entropy(real, torch.full((len(members),), label)), params)
            mine_loss = F.cross_entropy(network(adjacency @ (adjacency @ p.codes))[own], p.y[own])
            mine = torch.autograd.grad(mine_loss, params, create_graph=True)
            distance = sum(row_cosine(a, b) for a, b in zip(mine, theirs, strict=True))
            loss = loss + int(own.sum()) / largest * distance
        p.feature_steps.zero_grad()
        p.structure_steps.zero_grad()
        loss.backward()
        (p.structure_steps if epoch % 50 < 10 else p.feature_steps).step()
        if step == outer - 1:
            break
        with torch.no_grad():
            still, codes = p.pairs(p.codes), p.codes.detach()
        for _ in range(inner):
            optimizer.zero_grad()
            F.cross_entropy(network(still @ (still @ codes)), p.y).backward()
            optimizer.step()
