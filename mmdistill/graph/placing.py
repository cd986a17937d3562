"""Bring a set of nodes into the form that judges train on, whatever the form of its edges."""

import torch

from mmdistill.errors import ShapeError
from mmdistill.graph.adjacency import Adjacency, undirected
from mmdistill.graph.data import GraphData, checked_edges
from mmdistill.graph.models import named
from mmdistill.labels import require_targets
from mmdistill.task import Batch, Tensors, one_tensor

DENSE_NODES = 2048
"""Sets of more nodes keep their edges sparse: the weights of all pairs would take more than 16 MiB."""


def placed_set(synthetic: Batch, graph: GraphData, device: torch.device) -> Batch:
    """Return a set of nodes as judges of a graph train on it, on the device.

    Edges come as dense weights ``adjacency``, as ``edge_index`` and perhaps ``edge_weight`` (torch-geometric's form,
    which exports write), or as the compressed rows that own networks read; without any, A' = I. They are returned in
    forms that all judges read: dense weights for up to :data:`DENSE_NODES` nodes, both sparse forms for more. (GAT,
    which takes no weights, reads all sparse edges, but only dense ones of weight 0.5 or more.)

    Raises:
        ShapeError: another number of features than the graph's, weights that are not ``(n, n)``, or other targets.
        DataError: edges between nodes that do not exist, or impossible weights.
    """
    inputs = {name: tensor.detach() for name, tensor in named(synthetic.inputs).items()}
    x = inputs["x"].float()
    if x.ndim != 2 or x.shape[1] != graph.x.shape[1]:
        raise ShapeError(f"synthetic nodes must be (n, {graph.x.shape[1]}), got {tuple(x.shape)}")
    if "adjacency" in inputs and inputs["adjacency"].shape != (len(x), len(x)):
        shape = tuple(inputs["adjacency"].shape)
        raise ShapeError(f"{len(x)} synthetic nodes have a weight per pair, ({len(x)}, {len(x)}), got {shape}")
    targets = one_tensor(synthetic.targets)
    require_targets(targets, len(x), graph.num_classes, graph.name)
    placed = {name: tensor.to(device) for name, tensor in {"x": x, **_place_edges(inputs, len(x))}.items()}
    return Batch(placed, targets.detach().to(device), synthetic.weight.detach().to(device))


def _place_edges(inputs: Tensors, nodes: int) -> Tensors:
    """Return a set's edges in the forms that judges read; an empty dict without edges."""
    if "adjacency" in inputs:
        return {"adjacency": inputs["adjacency"].float()}
    if "edge_index" in inputs:
        adjacency, _ = undirected(*checked_edges(inputs, "the synthetic set", nodes), nodes)
    elif "pointer" in inputs:
        adjacency = Adjacency(*(inputs[name].cpu() for name in ("pointer", "column", "weight")))
    else:
        return {}
    if nodes <= DENSE_NODES:
        return {"adjacency": torch.from_numpy(adjacency.matrix.toarray())}
    return {"edge_index": adjacency.edge_index, "edge_weight": adjacency.weight, **adjacency.normalised()}
