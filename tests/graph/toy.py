"""A small graph with planted classes, as a torch-geometric ``Data`` would hold it."""

from typing import Any

import torch
from torch import Tensor

from mmdistill.graph.data import GraphData, graph_from_fields
from mmdistill.graph.judges import JudgeProtocol
from mmdistill.runtime import Draws

FAST = JudgeProtocol(epochs=60, width=16)


def planted_fields(nodes: int = 120, classes: int = 3, features: int = 12, noise: float = 1.5) -> dict[str, Any]:
    """Return a stochastic block model with noisy class features; six labels per class."""
    draws = Draws(3, ("planted",))
    y = torch.arange(nodes) % classes
    chance = torch.where(y[:, None] == y[None], 0.15, 0.01)
    pairs = torch.triu(draws.fold("edges").uniform(nodes, nodes) < chance, 1)
    edges = pairs.nonzero().T
    x = draws.fold("centres").normal(classes, features)[y] + noise * draws.fold("noise").normal(nodes, features)
    order = torch.arange(nodes)
    train, val = order < 6 * classes, (order >= 6 * classes) & (order < 12 * classes)
    return {
        "x": x,
        "edge_index": torch.cat([edges, edges.flip(0)], 1),
        "y": y,
        "train_mask": train,
        "val_mask": val,
        "test_mask": ~(train | val),
    }


def planted_graph(**changes: Tensor | None) -> GraphData:
    return graph_from_fields({**planted_fields(), **changes}, "planted")
