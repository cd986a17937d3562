"""Rings against rings with chords whose nodes have noisy attributes, as the TU files hold them."""

from pathlib import Path

from mmdistill.graph.sets.data import GraphSet, load_graph_set
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.runtime import Draws

ATTRIBUTES = 6
FAST = FitProtocol(epochs=40, lr=0.02, optimizer="adam", weight_decay=0.0, batch=None)


def write_rings(folder: Path, per_class: int = 20, labels: bool = True) -> Path:
    """Write rings of 5 to 8 nodes; those of class 1 have chords.

    With ``labels`` nodes have a label and six attributes, whose mean differs between the classes by less than between
    graphs of one class, so that one graph says little of its class.
    """
    folder.mkdir(parents=True)
    draws = Draws(5, ("rings",))
    centres = draws.fold("centres").normal(2, ATTRIBUTES)
    edges, indicator, classes, kinds, attributes = [], [], [], [], []
    first = 1  # the layout counts from 1
    for index in range(2 * per_class):
        label, nodes = index % 2, 5 + int(draws.fold("size", index).integers(4, 1))
        pairs = [(i, (i + 1) % nodes) for i in range(nodes)]
        if label:
            pairs += [(0, 2), (1, 3)]
        edges += [(first + a, first + b) for a, b in pairs] + [(first + b, first + a) for a, b in pairs]
        indicator += [index + 1] * nodes
        kinds += [int(value) for value in draws.fold("kind", index).integers(2, nodes)]
        own = centres[label] + 2 * draws.fold("graph", index).normal(ATTRIBUTES)
        attributes += (own + 0.5 * draws.fold("nodes", index).normal(nodes, ATTRIBUTES)).tolist()
        classes.append(label)
        first += nodes
    name = folder.name if folder.name != "raw" else folder.parent.name
    (folder / f"{name}_A.txt").write_text("".join(f"{a}, {b}\n" for a, b in edges))
    (folder / f"{name}_graph_indicator.txt").write_text("".join(f"{i}\n" for i in indicator))
    (folder / f"{name}_graph_labels.txt").write_text("".join(f"{2 * c - 1}\n" for c in classes))
    if labels:
        (folder / f"{name}_node_labels.txt").write_text("".join(f"{k}\n" for k in kinds))
        rows = [", ".join(f"{value:.4f}" for value in row) for row in attributes]
        (folder / f"{name}_node_attributes.txt").write_text("\n".join(rows) + "\n")
    return folder


def rings(folder: Path) -> GraphSet:
    return load_graph_set(write_rings(folder / "RINGS"))
