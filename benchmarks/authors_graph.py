"""Give authors' programs for graphs a generated graph, and what they read of packages that are absent here.

The graph has Cora's size. Of DeepRobust and torch-sparse there is what the timed part reads, written with torch; whole
neighbourhoods of the classes, made once, stand in for torch-geometric's sampler, so sampling costs a program nothing.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy
import torch
import torch_geometric
from graph_speed import generated
from scipy import sparse
from torch import Tensor


class Generated:
    """The graph in the form of torch-geometric's data sets."""

    def __init__(self, root: str, name: str) -> None:
        self.name = name

    def __getitem__(self, index: int) -> SimpleNamespace:
        graph = generated()
        parts = {f"{part}_mask": torch.zeros(len(graph.x), dtype=torch.bool) for part in ("train", "val", "test")}
        for mask, nodes in zip(parts.values(), (graph.train, graph.val, graph.test), strict=True):
            mask[nodes] = True
        return SimpleNamespace(num_nodes=len(graph.x), x=graph.x, y=graph.y, edge_index=graph.edge_index, **parts)


class SparseTensor:
    """torch-sparse's matrix, as far as it is read."""

    def __init__(self, row: Tensor, col: Tensor, value: Tensor, sparse_sizes: tuple[int, int]) -> None:
        self.matrix = torch.sparse_coo_tensor(torch.stack([row, col]), value, sparse_sizes).coalesce()

    def t(self) -> Self:
        """Return the transpose."""
        rows, columns = self.matrix.indices()
        height, width = self.matrix.shape
        return type(self)(columns, rows, self.matrix.values(), (width, height))

    def size(self, axis: int) -> int:
        """Return the number of rows or columns."""
        return self.matrix.shape[axis]

    def to(self, device: str) -> Self:
        """Return the matrix."""
        return self


def matmul(matrix: SparseTensor, dense: Tensor) -> Tensor:
    """Multiply."""
    product: Tensor = matrix.matrix @ dense
    return product


class Hop(NamedTuple):
    """What a layer aggregates: edges from ``size[0]`` nodes to the first ``size[1]`` of them."""

    adjacency: SparseTensor
    edges: None
    size: tuple[int, int]

    def to(self, device: str) -> Self:
        """Return the hop."""
        return self


class Neighbourhoods:
    """Whole neighbourhoods of nodes, in place of a sampler's; every batch is all nodes."""

    def __init__(self, adjacency: SparseTensor, node_idx: Tensor, sizes: list[int], **others: object) -> None:
        ends = adjacency.matrix.indices().numpy()
        shape = adjacency.size(0), adjacency.size(1)
        rows = sparse.csr_matrix((adjacency.matrix.values().numpy(), (ends[0], ends[1])), shape)
        nodes = node_idx.numpy()
        hops: list[Hop] = []
        for _ in sizes:
            targets, reached = len(nodes), rows[nodes]
            nodes = numpy.concatenate([nodes, numpy.setdiff1d(reached.indices, nodes)])
            edges = reached[:, nodes].tocoo()
            row, column, value = (torch.from_numpy(part) for part in (edges.row, edges.col, edges.data))
            size = targets, len(nodes)
            hops.insert(0, Hop(SparseTensor(row.long(), column.long(), value, size), None, size[::-1]))
        self.sampled = len(node_idx), torch.from_numpy(nodes), hops if len(hops) > 1 else hops[0]

    def sample(self, batch: object) -> tuple[int, Tensor, list[Hop] | Hop]:
        """Return how many nodes there are, all nodes that they read, they first, and the hops, the farthest first."""
        return self.sampled


def to_tensor(*values: Any, device: object = None) -> tuple[Tensor, ...]:
    """Return arrays and sparse matrices as tensors."""
    return tuple(map(one_tensor, values))


def one_tensor(value: Any) -> Tensor:
    """Return an array's tensor: of float32, of int64 where it is of integers."""
    if isinstance(value, sparse.csr_matrix):
        entries = value.tocoo()
        ends = torch.from_numpy(numpy.stack([entries.row, entries.col])).long()
        return torch.sparse_coo_tensor(ends, torch.from_numpy(entries.data).float(), entries.shape).coalesce()
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def normalize_adj_tensor(adjacency: Tensor, sparse: bool = False) -> Tensor:
    """Return the adjacency with self-loops, normalised by the square roots of both ends' degrees."""
    nodes = torch.arange(len(adjacency))
    if not adjacency.is_sparse:
        looped = adjacency + torch.eye(len(nodes))
        scale = looped.sum(1).rsqrt()
        return scale[:, None] * looped * scale
    looped = (adjacency + torch.sparse_coo_tensor(nodes.expand(2, -1), torch.ones(len(nodes)))).coalesce()
    scale, ends = looped.sum(1).to_dense().rsqrt(), looped.indices()
    return torch.sparse_coo_tensor(ends, looped.values() * scale[ends].prod(0), looped.shape).coalesce()


def accuracy(output: Tensor, labels: Tensor) -> Tensor:
    """Return the share of right predictions."""
    return (output.argmax(1) == labels).double().mean()


def stand_in_graph() -> None:
    """Give a program the graph and the packages."""
    torch_geometric.datasets.Planetoid = Generated
    torch_geometric.data.NeighborSampler = Neighbourhoods
    utilities = (to_tensor, normalize_adj_tensor, accuracy)
    members: dict[str, dict[str, Any]] = {
        "torch_sparse": {"SparseTensor": SparseTensor, "matmul": matmul},
        "deeprobust": {},
        "deeprobust.graph": {},
        "deeprobust.graph.data": {"Dataset": object},
        "deeprobust.graph.utils": {
            **{function.__name__: function for function in utilities},
            "is_sparse_tensor": lambda tensor: tensor.is_sparse,
            "get_train_val_test": None,
        },
    }
    for name, given in members.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(given)
        sys.modules[name] = module
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, module)


def write_expert_on_graph() -> None:
    """Stand in, and write SFGC's options, an expert of random weights and the nodes that it starts from."""
    stand_in_graph()
    options = {
        "dataset": "cora",
        "reduction_rate": 0.5,
        "lr_feat": 1e-4,
        "lr_student": 0.5,
        "lr_lr": 1e-6,
        "syn_steps": 500,
        "start_epoch": 0,
        "expert_epochs": 10,
        "eval_interval": 1000,
        "ITER": 1000,
        "buffer_path": ".",
        "coreset_init_path": ".",
    }
    Path("config.json").write_text(json.dumps({"cora": options}))
    features, classes = generated().x.shape[1], generated().num_classes
    network = import_module("models.gcn").GCN
    moments = [[p.detach() for p in network(features, 256, classes, device="cpu").parameters()] for _ in range(2)]
    torch.save([moments] * 100, "replay_buffer_0.pt")  # the program reads the file again after the last one
    numpy.save("idx_cora_0.5_kcenter_15.npy", numpy.arange(70))
