"""Graphs: node classification, distilled into a few labelled nodes."""

from mmdistill.graph.data import GraphData
from mmdistill.graph.draw import draw, export_pyg, export_tensors
from mmdistill.graph.files import looks_like_graph
from mmdistill.graph.imports import IMPORTS
from mmdistill.graph.judges import JudgeProtocol
from mmdistill.graph.methods import METHODS, NETWORK_OF
from mmdistill.graph.sources import DATASETS, load_graph
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.registry import Domain

DOMAIN = Domain(
    name="graph",
    budget="nodes",
    datasets=DATASETS,
    accepts=looks_like_graph,
    make_task=graph_task,
    methods=METHODS,
    draw=draw,
    first="gcond-x or krr",
    exports={"pyg": export_pyg, "tensors": export_tensors},
    imports=IMPORTS,
    options=("inductive", "model"),
    networks=NETWORK_OF,
    instead={"augment": "graphs are not augmented while they are condensed; leave it out"},
    accepted="a .pt file (torch-geometric Data) or .safetensors with x, edge_index, y, train_mask, val_mask, test_mask",
)

__all__ = ["DOMAIN", "GraphData", "GraphTask", "JudgeProtocol", "graph_task", "load_graph"]
