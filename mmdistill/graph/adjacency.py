"""The edges of a real graph in compressed sparse rows, the one form that fits in memory for large graphs."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from mmdistill.runtime import Draws
from mmdistill.task import Tensors


@dataclass(frozen=True)
class Adjacency:
    """Undirected weighted edges without self-loops, in compressed rows.

    Args:
        pointer: where each row starts.
        column: the other end of each edge, ascending within its row.
        weight: of each edge.

    Shapes:
        pointer ``(N + 1,)`` and column ``(E,)``, int32 while they fit; weight ``(E,)`` float32. Every edge is stored
        in both directions.
    """

    pointer: Tensor
    column: Tensor
    weight: Tensor

    def __repr__(self) -> str:
        """Return the numbers of nodes and edges in one line."""
        return f"Adjacency({self.nodes:,} nodes, {len(self.column) // 2:,} edges)"

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.pointer) - 1

    @staticmethod
    def of(matrix: sparse.csr_matrix) -> "Adjacency":
        """Return a scipy matrix's rows, without copying them."""
        matrix.sort_indices()
        parts = (matrix.indptr, matrix.indices, matrix.data)
        return Adjacency(*(torch.from_numpy(part) for part in parts))

    @property
    def matrix(self) -> sparse.csr_matrix:
        """The adjacency as a scipy matrix that shares its memory."""
        parts = (self.weight.numpy(), self.column.numpy(), self.pointer.numpy())
        return sparse.csr_matrix(parts, shape=(self.nodes, self.nodes), copy=False)

    @functools.cached_property
    def edge_index(self) -> Tensor:
        """Both ends of each edge ``(2, E)`` int64, sorted by source then target."""
        counts = (self.pointer[1:] - self.pointer[:-1]).long()
        return torch.stack([torch.repeat_interleave(torch.arange(self.nodes), counts), self.column.long()])

    @functools.cached_property
    def degree(self) -> Tensor:
        """Each node's sum of edge weights, ``(N,)``."""
        return torch.from_numpy(np.asarray(self.matrix.sum(1), dtype=np.float32).ravel())

    def rows(self, nodes: Tensor) -> sparse.csr_matrix:
        """Return the rows of some nodes as a scipy matrix ``(m, N)``."""
        return self.matrix[nodes.numpy()]

    def induced(self, nodes: Tensor) -> "Adjacency":
        """Return the subgraph that nodes induce, renumbered in the given order."""
        return Adjacency.of(self.rows(nodes)[:, nodes.numpy()])

    def among(self, nodes: Tensor) -> Tensor:
        """Return the dense weights among nodes ``(..., n)`` as ``(..., n, n)``."""
        groups = nodes.reshape(-1, nodes.shape[-1])
        dense = [torch.from_numpy(self.rows(group)[:, group.numpy()].toarray()) for group in groups]
        return torch.stack(dense).reshape(*nodes.shape, nodes.shape[-1])

    def sampled(self, nodes: Tensor, fanouts: Sequence[int], draws: Draws) -> Tensor:
        """Return nodes and their sampled neighbours, hop after hop, sorted.

        Args:
            nodes: ``(n,)`` where to start.
            fanouts: neighbours drawn per node at the first hop, the second and so on, with replacement.
            draws: the key.
        Source: Hamilton et al., NeurIPS 2017, Algorithm 2.
        """
        visited: Tensor = torch.unique(nodes)
        frontier = visited
        for hop, fanout in enumerate(fanouts):
            first, last = self.pointer[frontier].long(), self.pointer[frontier + 1].long()
            linked = last > first
            first, degree = first[linked, None], (last - first)[linked, None]
            steps = (draws.fold(hop).uniform(len(first), fanout) * degree).long()
            frontier = torch.unique(self.column[first + torch.minimum(steps, degree - 1)].long())
            visited = torch.unique(torch.cat([visited, frontier]))
        return visited

    def normalised(self, device: torch.device | str = "cpu") -> Tensors:
        r"""Return :math:`D^{-1/2} (A + I) D^{-1/2}` as :func:`~mmdistill.graph.propagation.propagate` reads it.

        Self-loops and normalisation stay a factor per node, so the edges are not copied.
        """
        parts = {"pointer": self.pointer, "column": self.column, "weight": self.weight}
        parts["scale"] = (1 + self.degree).rsqrt()
        return {name: tensor.to(device) for name, tensor in parts.items()}


def undirected(edges: Tensor, weight: Tensor | None, nodes: int) -> tuple[Adjacency, tuple[str, ...]]:
    """Make directed edges undirected, unique and free of self-loops; return them with notes on the changes.

    Args:
        edges: ``(2, E)`` int64.
        weight: ``(E,)``, or None for 1 each; the largest of duplicates stays.
        nodes: N.
    """
    notes: list[str] = []
    loops = edges[0] == edges[1]
    count = int(loops.sum())
    if count:
        notes.append(f"{count} self-loops dropped (networks add their own)")
        edges, weight = edges[:, ~loops], None if weight is None else weight[~loops]
    directed = _unique(edges, weight, nodes)
    if directed.nnz < edges.shape[1]:
        choice = "" if weight is None else ", of which the largest weight stays"
        notes.append(f"{edges.shape[1] - directed.nnz} duplicate edges merged{choice}")
    reverse = directed.T.tocsr()
    both = directed.maximum(reverse)
    if weight is not None and (differing := _count_differing(directed, reverse)):
        notes.append(f"{differing} edges have another weight in the other direction; the larger one stays")
    if both.nnz > directed.nnz:
        notes.append(f"{both.nnz - directed.nnz} reverse edges added: the graph is treated as undirected")
    isolated = int((np.diff(both.indptr) == 0).sum())
    if isolated:
        notes.append(f"{isolated} isolated nodes see only themselves")
    return Adjacency.of(both), tuple(notes)


def _count_differing(directed: sparse.csr_matrix, reverse: sparse.csr_matrix) -> int:
    """Return the number of node pairs whose two directions have different weights."""
    differences = (directed - reverse).multiply(directed.sign().multiply(reverse.sign()))  # stores no zeros
    return int(differences.nnz) // 2


def _unique(edges: Tensor, weight: Tensor | None, nodes: int) -> sparse.csr_matrix:
    """Return directed edges as a matrix with the largest weight of duplicates; zero weights stay as stored zeros."""
    values = np.ones(edges.shape[1], np.float32) if weight is None else weight.numpy()
    ends = (edges[0].numpy(), edges[1].numpy())
    matrix = sparse.coo_matrix((values, ends), shape=(nodes, nodes)).tocsr()  # sums duplicates
    if matrix.nnz == len(values):
        return matrix
    if weight is None:
        matrix.data[:] = 1.0
        return matrix
    keys, key_of_edge = torch.unique(edges[0] * nodes + edges[1], return_inverse=True)
    largest = torch.zeros(len(keys)).scatter_reduce(0, key_of_edge, weight, "amax", include_self=False)
    unique_ends = ((keys // nodes).numpy(), (keys % nodes).numpy())
    return sparse.coo_matrix((largest.numpy(), unique_ends), shape=(nodes, nodes)).tocsr()
