"""A set of nodes as judges train on it, in whichever form its edges come."""

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

    Edges are dense weights ``adjacency``, or ``edge_index`` and perhaps ``edge_weight`` as torch-geometric has them and
    exports write them, or the compressed rows that own networks read; without any, A' = I. Whichever they are, all
    judges read them: of up to :data:`DENSE_NODES` nodes as dense weights, of more in both sparse forms (of which GAT,
    which takes no weights, reads all edges, and not those of weight 0.5 or more alone).

    Raises:
        ShapeError: nodes whose features are not the graph's, weights that are not ``(n, n)``, or other targets.
        DataError: edges between nodes that there are not, or of impossible weights.
    """
    inputs = {name: tensor.detach() for name, tensor in named(synthetic.inputs).items()}
    x = inputs["x"].float()
    if x.ndim != 2 or x.shape[1] != graph.x.shape[1]:
        raise ShapeError(f"synthetic nodes must be (n, {graph.x.shape[1]}), got {tuple(x.shape)}")
    if "adjacency" in inputs and inputs["adjacency"].shape != (len(x), len(x)):
        found = tuple(inputs["adjacency"].shape)
        raise ShapeError(f"{len(x)} synthetic nodes have a weight per pair, ({len(x)}, {len(x)}), got {found}")
    targets = one_tensor(synthetic.targets)
    require_targets(targets, len(x), graph.num_classes, graph.name)
    read = {name: tensor.to(device) for name, tensor in {"x": x, **_edges(inputs, len(x))}.items()}
    return Batch(read, targets.detach().to(device), synthetic.weight.detach().to(device))


def _edges(inputs: Tensors, nodes: int) -> Tensors:
    """Return a set's edges in the form, or the forms, that all judges read; nothing where there are none."""
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
