"""Pictures of synthetic graphs, and exports for other tools."""

import json
from pathlib import Path

import torch

from mmdistill.distilled import DistilledSet
from mmdistill.errors import UnsupportedError
from mmdistill.exporters import exporter
from mmdistill.graph.draw import write_preprocessing
from mmdistill.labels import hard_labels
from mmdistill.reporting.figures import literal, save_figure
from mmdistill.store import write_tensors, write_torch
from mmdistill.task import Batch, Task, Tensors

SHOWN = 24
"""The most graphs in a picture."""


def graph_list(batch: Batch) -> list[Tensors]:
    """Return each graph in torch-geometric's fields: x, edge_index and y, without its padding.

    Raises:
        UnsupportedError: a batch of other data.
    """
    inputs, targets = batch.inputs, batch.targets
    if not isinstance(inputs, dict) or "present" not in inputs or isinstance(targets, dict):
        raise UnsupportedError("distilled graphs have x, adjacency and present, and one target each")
    graphs = []
    for index in range(len(batch.weight)):
        present = inputs["present"][index].cpu() > 0
        adjacency = inputs["adjacency"][index].detach().cpu()[present][:, present]
        x, y = inputs["x"][index].detach().cpu()[present], targets[index : index + 1].detach().cpu()
        graphs.append({"x": x, "edge_index": adjacency.nonzero().T.contiguous(), "y": y.clone()})
    return graphs


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Draw the first graphs, each node coloured by its largest feature; return the path."""
    import networkx as nx  # these two are slow to import
    from matplotlib.figure import Figure

    graphs, names = graph_list(batch)[:SHOWN], task.describe().class_names
    columns = min(6, len(graphs))
    rows = -(-len(graphs) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for index, fields in enumerate(graphs):
        axes = figure.add_subplot(rows, columns, index + 1)
        graph = nx.Graph()
        graph.add_nodes_from(range(len(fields["x"])))
        graph.add_edges_from(fields["edge_index"].T.tolist())
        place = nx.spring_layout(graph, seed=0)
        colours = fields["x"].argmax(1).tolist()
        nx.draw_networkx(
            graph, place, ax=axes, node_size=30, width=0.6, node_color=colours, cmap="tab20", with_labels=False
        )
        name = literal(names[int(hard_labels(fields["y"]))])
        axes.set_title(f"class {name}: {len(graph)} nodes, {graph.number_of_edges()} edges", fontsize=7)
        axes.set_axis_off()
    return [save_figure(figure, folder / "graphs.png", dpi=130)]


@exporter
def export_pyg(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``graphs.pt``, a list of plain tensors by name.

    ``[Data.from_dict(fields) for fields in torch.load("graphs.pt", weights_only=True)]`` makes them torch-geometric's.
    """
    path = write_torch(folder / "graphs.pt", graph_list(distilled.batch))
    return [path, write_preprocessing(distilled.info, folder)]


@exporter
def export_tensors(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``graphs.safetensors``, all graphs as one with the fields of torch-geometric's ``Batch``.

    ``x`` holds the nodes graph after graph, ``batch`` each node's graph, ``edge_index`` nodes numbered through all
    graphs, and ``y`` one target per graph. Class names are metadata.
    """
    graphs = graph_list(distilled.batch)
    sizes = torch.tensor([len(fields["x"]) for fields in graphs])
    first = sizes.cumsum(0) - sizes
    whole = {
        "x": torch.cat([fields["x"] for fields in graphs]),
        "edge_index": torch.cat([fields["edge_index"] + int(at) for fields, at in zip(graphs, first, strict=True)], 1),
        "batch": torch.arange(len(graphs)).repeat_interleave(sizes),
        "y": torch.cat([fields["y"] for fields in graphs]),
    }
    path = folder / "graphs.safetensors"
    write_tensors(path, whole, {"class_names": json.dumps(distilled.info.class_names)})
    return [path, write_preprocessing(distilled.info, folder)]
