"""Pictures of a distilled graph, and exports for other tools."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.distilled import DistilledSet
from mmdistill.errors import UnsupportedError
from mmdistill.exporters import PREPROCESSING, exporter
from mmdistill.graph.models import HOPS
from mmdistill.graph.propagation import operator
from mmdistill.graph.properties import dense_properties, real_properties
from mmdistill.graph.task import GraphTask
from mmdistill.labels import hard_labels
from mmdistill.reporting.figures import class_colours, literal, one_plot, save_figure
from mmdistill.runtime import Draws
from mmdistill.store import write_json, write_tensors, write_text, write_torch
from mmdistill.task import Batch, Task, TaskInfo, Tensors, one_tensor

REAL_POINTS = 4000
EDGE_CUT = 0.05
"""Learned edges below this weight are not drawn, since the published code drops them before use."""


def _require_graph_task(task: Task) -> GraphTask:
    if not isinstance(task, GraphTask):
        raise UnsupportedError(f"a graph task is needed, got {type(task).__name__}")
    return task


def _inputs(batch: Batch) -> Tensors:
    if not isinstance(batch.inputs, dict) or "x" not in batch.inputs:
        raise UnsupportedError("a distilled graph has node features 'x'")
    return {name: tensor.detach().cpu() for name, tensor in batch.inputs.items()}


def node_classes(batch: Batch) -> Tensor:
    """Return the class of each synthetic node; for soft labels the most probable.

    Shapes:
        targets ``(n,)`` or ``(n, C)``; returns ``(n,)`` int64 on the CPU.
    Raises:
        ShapeError: targets that are a named dict.
    """
    return hard_labels(one_tensor(batch.targets, "a distilled graph").detach().cpu())


def draw(task: Task, batch: Batch, folder: Path) -> list[Path]:
    """Draw the synthetic nodes among the real ones and, where it has edges, the synthetic graph; return the paths.

    For a graph with edges a table compares its properties with those of the real graph.
    """
    graph_task = _require_graph_task(task)
    paths = [_draw_nodes(graph_task, batch, folder / "nodes.png")]
    if "adjacency" in _inputs(batch):
        paths.append(_draw_structure(graph_task, batch, folder / "structure.png"))
        paths.append(_draw_adjacency(graph_task, batch, folder / "adjacency.png"))
        paths.append(_write_properties(graph_task, batch, folder / "properties.md"))
    return paths


def _draw_nodes(task: GraphTask, batch: Batch, path: Path) -> Path:
    """Plot propagated real and synthetic nodes on the first two principal components of the real ones."""
    from sklearn.decomposition import PCA

    real = task.scene.propagated(HOPS).cpu()
    chosen = Draws(0, ("picture",)).permutation(len(real))[:REAL_POINTS]
    inputs = _inputs(batch)
    multiply, synthetic = operator(inputs), inputs["x"]
    for _ in range(HOPS):
        synthetic = multiply(synthetic)
    # A single feature gets a second axis of zeros.
    real, synthetic = (F.pad(x, (0, max(2 - x.shape[1], 0))) for x in (real, synthetic))
    projection = PCA(2, random_state=0).fit(real[chosen].numpy())
    background, points = projection.transform(real[chosen].numpy()), projection.transform(synthetic.numpy())
    colours = class_colours(task.graph.num_classes)
    real_classes = task.scene.y.cpu()[chosen].numpy()
    figure, axes = one_plot(8, 6)
    axes.scatter(
        background[:, 0], background[:, 1], s=6, c=_colours_of(colours, real_classes), alpha=0.25, linewidths=0
    )
    classes = node_classes(batch).numpy()
    for index, name in enumerate(task.graph.class_names):
        members = points[classes == index]
        axes.scatter(
            members[:, 0], members[:, 1], s=60, color=colours[index], edgecolors="black", linewidths=0.8, label=name
        )
    caption = "synthetic nodes (outlined) among the real nodes (faint), both after two hops of propagation"
    axes.set_title(f"{literal(task.graph.name)}: {len(points)} {caption}", fontsize=9)
    # Quantiles, since a few distant real nodes would shrink the others to a dot.
    low = np.minimum(np.quantile(background, 0.005, axis=0), points.min(0))
    high = np.maximum(np.quantile(background, 0.995, axis=0), points.max(0))
    margin = 0.05 * (high - low) + 1e-12
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.legend(title="class", loc="best", fontsize=8, ncols=1 + task.graph.num_classes // 12)
    return save_figure(figure, path, dpi=130)


def _draw_structure(task: GraphTask, batch: Batch, path: Path) -> Path:
    """Draw the nodes on a circle, class by class, with their edges."""
    from matplotlib.collections import LineCollection

    adjacency = _inputs(batch)["adjacency"].numpy()
    classes = node_classes(batch).numpy()
    order = np.argsort(classes, kind="stable")
    angle = np.empty(len(order))
    angle[order] = np.linspace(0, 2 * np.pi, len(order), endpoint=False)
    place = np.stack([np.cos(angle), np.sin(angle)], 1)
    source, target = np.nonzero(np.triu(adjacency, 1) > EDGE_CUT)
    weight = adjacency[source, target]
    lines = np.stack([place[source], place[target]], 1)
    figure, axes = one_plot(6, 6)
    strength = weight / weight.max() if len(weight) else weight
    shade = [(0.2, 0.2, 0.2, float(value)) for value in 0.1 + 0.5 * strength]
    width = 0.2 + 1.8 * strength
    axes.add_collection(LineCollection(list(lines), colors=shade, linewidths=width, zorder=1))
    colours = class_colours(task.graph.num_classes)
    axes.scatter(place[:, 0], place[:, 1], s=70, c=_colours_of(colours, classes), edgecolors="black", zorder=2)
    for name, colour in zip(task.graph.class_names, colours, strict=True):
        axes.scatter([], [], s=70, color=colour, edgecolors="black", label=literal(name))
    figure.legend(title="class", loc="outside right upper", fontsize=8, ncols=1 + task.graph.num_classes // 25)
    axes.set_title(f"{len(weight)} edges above {EDGE_CUT} among {len(order)} synthetic nodes, by class", fontsize=9)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return save_figure(figure, path, dpi=130)


def _draw_adjacency(task: GraphTask, batch: Batch, path: Path) -> Path:
    """Draw the edge weights as a matrix ordered by class, with lines between the classes."""
    classes = node_classes(batch)
    order = torch.argsort(classes, stable=True)
    counts = torch.bincount(classes, minlength=task.graph.num_classes)
    matrix = _inputs(batch)["adjacency"][order][:, order].numpy()
    figure, axes = one_plot(6, 5)
    image = axes.imshow(matrix, cmap="Greys", vmin=0, interpolation="nearest")
    for bound in (counts.cumsum(0)[:-1] - 0.5).tolist():
        axes.axhline(bound, color="tab:red", linewidth=0.5)
        axes.axvline(bound, color="tab:red", linewidth=0.5)
    middle = (counts.cumsum(0) - counts / 2 - 0.5).tolist()
    names = [name if count else "" for name, count in zip(task.graph.class_names, counts.tolist(), strict=True)]
    axes.set_xticks(middle, names)
    axes.set_yticks(middle, names)
    axes.set_xlabel("class")
    axes.set_ylabel("class")
    axes.set_title("edge weights of the synthetic graph, nodes ordered by class", fontsize=9)
    figure.colorbar(image, ax=axes)
    return save_figure(figure, path, dpi=130)


def _write_properties(task: GraphTask, batch: Batch, path: Path) -> Path:
    """Write the condensed graph's properties beside the real one's, as a Markdown table."""
    condensed = dense_properties(_inputs(batch)["adjacency"], node_classes(batch))
    real = real_properties(task.graph)
    names = ("density", "mean degree", "homophily", "spectral energy")
    rows = [f"| {name} | {a:.3g} | {b:.3g} |" for name, a, b in zip(names, condensed, real, strict=True)]
    write_text(path, "\n".join(["| property | condensed | real |", "|---|---|---|", *rows, ""]))
    return path


def _colours_of(colours: list[tuple[float, ...]], classes: np.ndarray) -> list[tuple[float, ...]]:
    """Return the colour of each node's class; grey where it is unknown."""
    grey = (0.6, 0.6, 0.6, 1.0)
    return [colours[index] if index >= 0 else grey for index in classes.tolist()]


def graph_tensors(batch: Batch) -> Tensors:
    """Return a distilled graph in torch-geometric's fields: x, edge_index, edge_weight, y and an all-true train_mask.

    Without structure there are no edges: layers add their own self-loops, which is A' = I. Soft labels stay as ``y``
    ``(n, C)``.

    Shapes:
        x ``(n, d)``; edge_index ``(2, E)`` int64; edge_weight ``(E,)``; train_mask ``(n,)``; all on the CPU.
    Raises:
        UnsupportedError: inputs without node features.
        ShapeError: targets that are a named dict.
    """
    inputs = _inputs(batch)
    x = inputs["x"]
    edges = torch.zeros(2, 0, dtype=torch.long)
    weight = torch.zeros(0)
    if "adjacency" in inputs:
        edges = inputs["adjacency"].nonzero().T.contiguous()
        weight = inputs["adjacency"][edges[0], edges[1]]
    return {
        "x": x.contiguous(),
        "edge_index": edges,
        "edge_weight": weight.contiguous(),
        "y": one_tensor(batch.targets, "a distilled graph").detach().cpu().contiguous(),
        "train_mask": torch.ones(len(x), dtype=torch.bool),
    }


def write_preprocessing(info: TaskInfo, folder: Path) -> Path:
    """Write ``preprocessing.json``: class names, and how real features were preprocessed, with the numbers.

    Where the data's own labels are other numbers than class indices, ``labels`` says what exports hold.
    """
    path = folder / PREPROCESSING
    names = sorted(info.tensors, reverse=True)  # the mean first, also for sets read from files in another order
    numbers = {name: info.tensors[name].tolist() for name in names}
    told: dict[str, object] = {"data": info.data, "class_names": info.class_names}
    if info.class_names != tuple(map(str, range(len(info.class_names)))):
        first = ", ".join(f"{index} is {name}" for index, name in enumerate(info.class_names[:2]))
        told["labels"] = f"y holds class indices, not the data's labels: {first}; see class_names"
    write_json(path, {**told, "notes": info.notes, **numbers})
    return path


@exporter
def export_pyg(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``graph.pt``, plain tensors by name.

    ``Data.from_dict(torch.load("graph.pt", weights_only=True))`` makes it a torch-geometric ``Data`` again without
    running code from the file.
    """
    path = write_torch(folder / "graph.pt", graph_tensors(distilled.batch))
    return [path, write_preprocessing(distilled.info, folder)]


@exporter
def export_tensors(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write ``graph.safetensors`` with the same fields, and class names as metadata."""
    fields, path = graph_tensors(distilled.batch), folder / "graph.safetensors"
    write_tensors(path, fields, {"class_names": json.dumps(distilled.info.class_names)})
    return [path, write_preprocessing(distilled.info, folder)]
