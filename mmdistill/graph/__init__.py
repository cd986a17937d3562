"""Graphs: node classification, distilled into a few labelled nodes."""

from mmdistill.graph.data import GraphData
from mmdistill.graph.draw import draw, export_pyg, export_tensors
from mmdistill.graph.imports import IMPORTS
from mmdistill.graph.judges import JudgeProtocol
from mmdistill.graph.layouts import looks_like_graph, shortcoming
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
    options=("inductive", "model", "split"),
    networks=NETWORK_OF,
    instead={"augment": "graphs are not augmented while they are condensed; leave it out"},
    accepted="a .pt file (torch-geometric Data), .safetensors or .npz with x, edge_index, y, train_mask, val_mask, "
    "test_mask; a file or folder like those of Amazon, Coauthor, heterophilous graphs, GraphSAINT or Planetoid",
    shortcoming=shortcoming,
)

__all__ = ["DOMAIN", "GraphData", "GraphTask", "JudgeProtocol", "graph_task", "load_graph"]
