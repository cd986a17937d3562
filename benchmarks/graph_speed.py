"""Time our GCond epoch against a plain textbook one, in one process, interleaved.

    python benchmarks/graph_speed.py --data cora --nodes 70
    python benchmarks/speed.py --methods gcond                 # the same, on a generated graph of Cora's size

One line per budget: median process seconds of an epoch (20 outer x 15 inner steps) of both, while features and while
the structure learns, and their ratio. Process time, since it holds on a busy machine. No accuracy is measured here.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import textbook_graph
import torch

from mmdistill.distiller import Distiller
from mmdistill.graph import GraphTask, graph_task
from mmdistill.graph.data import GraphData, graph_from_fields
from mmdistill.graph.methods import METHODS
from mmdistill.graph.propagation import sparse_entries
from mmdistill.runtime import Draws, describe_device
from mmdistill.store import write_json

OUTER, INNER = 20, 15
EPOCHS = 50
"""Epochs after which the alternation of structure and features repeats."""


def generated(nodes: int = 2708, edges: int = 5278, features: int = 1433, classes: int = 7) -> GraphData:
    """Return a graph of Cora's size with random edges and binary features."""
    draws = Draws(0, ("speed",))
    ends = draws.fold("edges").integers(nodes, 2 * edges).view(2, edges)
    x = (draws.fold("x").uniform(nodes, features) < 0.013).float()
    y = torch.arange(nodes) % classes
    order = torch.arange(nodes)
    masks = {"train_mask": order < 20 * classes, "val_mask": (order >= 140) & (order < 640), "test_mask": order >= 1708}
    return graph_from_fields(
        {"x": x / x.sum(1, keepdim=True).clamp(min=1), "edge_index": ends, "y": y, **masks}, "random"
    )


def ours(task: GraphTask, nodes: int, structure: bool) -> Callable[[], object]:
    """Return how our epoch runs, with the structure or the features learning in it."""
    method = METHODS["gcond"]
    settings = replace(method.settings(nodes), outer_steps=OUTER, inner_steps=INNER)
    rests = {"codes": structure, "decoder": not structure}
    optimizers = {
        name: replace(spec, active=(1, 1, 1) if rests[name] else None) for name, spec in settings.optimizers.items()
    }
    distiller = Distiller(task, method, nodes, settings=replace(settings, steps=10**6, optimizers=optimizers))
    run = distiller.start()

    def epoch() -> None:
        for _ in range(OUTER):
            distiller.step(run)

    return epoch


def plain(task: GraphTask, nodes: int, structure: bool) -> Callable[[], object]:
    """Return how the textbook's epoch runs, on the same graph and start."""
    graph = task.graph
    inputs = task.scene.inputs(True)
    edges = graph.edge_index
    ends = torch.cat([edges, torch.arange(len(graph.x)).expand(2, -1)], 1)
    weight = torch.cat([graph.edge_weight, torch.ones(len(graph.x))]) * inputs["scale"][ends].prod(0)
    adjacency = sparse_entries(ends, weight, (len(graph.x),) * 2).coalesce()
    start = Distiller(task, METHODS["gcond"], nodes).start().parameterization
    codes = (start.codes * start.scale).detach().clone().requires_grad_()  # type: ignore[operator]
    members = [graph.train[graph.y[graph.train] == index] for index in range(graph.num_classes)]
    problem = textbook_graph.Problem(
        adjacency, graph.x, members, start.labels(), codes, textbook_graph.Pairs(graph.x.shape[1])
    )
    return lambda: textbook_graph.gcond_epoch(problem, 0 if structure else 10, OUTER, INNER)


def seconds(call: Callable[[], object]) -> float:
    """Return the process seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def compare(task: GraphTask, nodes: int, repeats: int) -> dict[str, float]:
    """Return both sides' seconds per epoch: features learning, structure learning, and the mean over fifty epochs."""
    row: dict[str, float] = {"nodes": nodes}
    for structure in (False, True):
        sides = {"ours": ours(task, nodes, structure), "textbook": plain(task, nodes, structure)}
        seconds(sides["ours"])
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, call in sides.items():
                found[name].append(seconds(call))
        for name, values in found.items():
            row[f"{name}_{'structure' if structure else 'features'}_s"] = statistics.median(values)
    for name in ("ours", "textbook"):
        row[f"{name}_s"] = (10 * row[f"{name}_structure_s"] + 40 * row[f"{name}_features_s"]) / EPOCHS
    row["ratio"] = row["textbook_s"] / row["ours_s"]
    return row


def line(row: dict[str, float]) -> str:
    """Return a row as text."""
    text = (
        f"gcond {row['nodes']:4.0f} nodes  ours {row['ours_s']:.2f} s an epoch (features {row['ours_features_s']:.2f}, "
    )
    text += f"structure {row['ours_structure_s']:.2f})  textbook {row['textbook_s']:.2f} s"
    return f"{text} ({row['textbook_features_s']:.2f}, {row['textbook_structure_s']:.2f})  {row['ratio']:.1f}x"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="generated", help="'generated', a data set name or a file")
    parser.add_argument("--nodes", default="70")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/graph_speed.json"))
    chosen = parser.parse_args(arguments)
    task = graph_task(generated() if chosen.data == "generated" else chosen.data, device="cpu")
    rows = []
    for nodes in (int(text) for text in chosen.nodes.split(",")):
        rows.append(compare(task, nodes, chosen.repeats))
        print(line(rows[-1]), flush=True)
    write_json(chosen.out, {"device": describe_device(task.device), "data": chosen.data, "rows": rows})


if __name__ == "__main__":
    main()
