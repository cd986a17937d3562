"""Condense a generated graph of a large data set's size: time, peak memory, and accuracy beside random and herding.

    python benchmarks/large_graph.py --size arxiv --methods gcond-x,gcdm --nodes 90 --seeds 0,1,2
    python benchmarks/large_graph.py --size reddit --methods gcond-x --nodes 154 --networks 0

Nodes of a class fall into three clusters of features and link within their class more often than not; sizes are
ogbn-arxiv's (``few-labels``: with one node in a hundred labelled) and Reddit's. Seconds are wall time of the
condensation, memory is the process's peak so far.
"""

import argparse
import time
from typing import NamedTuple

import torch
from quality import integers, spread

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate
from mmdistill.graph import GraphData, GraphTask, graph_task
from mmdistill.graph.data import graph_from_fields
from mmdistill.runtime import Draws, peak_memory_bytes

CLUSTERS = 3
HOMOPHILY = 0.65


class Size(NamedTuple):
    """Nodes, undirected edges, features, classes, the shares of training and validation nodes, inductive or not."""

    nodes: int
    edges: int
    features: int
    classes: int
    train: float
    val: float
    inductive: bool


SIZES = {
    "small": Size(2_000, 8_000, 32, 5, 0.3, 0.2, False),
    "arxiv": Size(169_343, 1_166_243, 128, 40, 0.54, 0.18, False),
    "few-labels": Size(169_343, 1_166_243, 128, 40, 0.01, 0.02, False),
    "reddit": Size(232_965, 57_307_946, 602, 41, 0.66, 0.10, True),
}


def generated(size: Size, seed: int = 0) -> GraphData:
    """Return a graph with planted classes of uneven frequency."""
    draws = Draws(seed, ("large graph",))
    share = draws.fold("share").uniform(size.classes).square() + 0.02
    y = torch.multinomial(share, size.nodes, True, generator=draws.fold("classes").generator())
    ends = torch.empty(2, size.edges, dtype=torch.long)
    ends[0] = draws.fold("sources").integers(size.nodes, size.edges)
    order, counts = torch.argsort(y), torch.bincount(y, minlength=size.classes)
    own = y[ends[0]]
    inside = order[(counts.cumsum(0) - counts)[own] + (draws.fold("inside").uniform(size.edges) * counts[own]).long()]
    del own
    linked = draws.fold("linked").uniform(size.edges) < HOMOPHILY
    ends[1] = torch.where(linked, inside, draws.fold("others").integers(size.nodes, size.edges))
    del inside, linked
    centres = 0.4 * draws.fold("centres").normal(size.classes, CLUSTERS, size.features)
    x = 1.5 * draws.fold("noise").normal(size.nodes, size.features)
    x += centres[y, draws.fold("clusters").integers(CLUSTERS, size.nodes)]
    part = draws.fold("parts").uniform(size.nodes)
    fields = {"x": x, "edge_index": ends, "y": y, "train_mask": part < size.train}
    fields["val_mask"] = (part >= size.train) & (part < size.train + size.val)
    fields["test_mask"] = part >= size.train + size.val
    return graph_from_fields(fields, "generated", inductive=size.inductive)


def gib() -> str:
    """Return the process's peak memory."""
    return f"peak {peak_memory_bytes(torch.device('cpu')) / 2**30:.2f} GiB"


def measure(task: GraphTask, method: str, nodes: int, seeds: list[int], networks: int, judges: list[str]) -> None:
    """Condense with each seed and print time, memory and, with networks, accuracy beside the baselines."""
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        began, process = time.perf_counter(), time.process_time()
        result = distill(task, method, nodes=nodes, seed=seed)
        wall, cpu = time.perf_counter() - began, time.process_time() - process
        print(f"{method} seed {seed}: condensed in {wall:.0f} s ({cpu:.0f} CPU-seconds), {gib()}", flush=True)
        if not networks:
            continue
        found = evaluate(task, result, judges=judges, n=networks, seed=seed, baselines=["random", "herding"])
        for name, entries in {"condensed": found.results, **found.baselines}.items():
            for entry in entries:
                if entry.metric == "accuracy":
                    scores.setdefault((entry.judge, name), []).append(100 * entry.mean)
        print(f"judged in {found.seconds:.0f} s, {gib()}", flush=True)
    for (judge, name), values in scores.items():
        print(f"{method} {nodes} nodes, {judge}, {name}: {spread(values)}", flush=True)


def main() -> None:
    """Generate and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="arxiv")
    parser.add_argument("--methods", default="gcond-x,gcdm")
    parser.add_argument("--nodes", type=int, default=90)
    parser.add_argument("--seeds", type=integers, default="0")
    parser.add_argument("--networks", type=int, default=2, help="judges per seed; 0 judges nothing")
    parser.add_argument("--judges", default="gcn")
    chosen = parser.parse_args()
    began = time.perf_counter()
    graph = generated(SIZES[chosen.size])
    edges = len(graph.adjacency.column) // 2
    print(f"{len(graph.x):,} nodes, {edges:,} edges: made in {time.perf_counter() - began:.0f} s, {gib()}", flush=True)
    began = time.perf_counter()
    task = graph_task(graph)
    task.embedding()
    print(f"normalised and propagated twice in {time.perf_counter() - began:.0f} s, {gib()}", flush=True)
    for method in chosen.methods.split(","):
        measure(task, method, chosen.nodes, chosen.seeds, chosen.networks, chosen.judges.split(","))


if __name__ == "__main__":
    main()
