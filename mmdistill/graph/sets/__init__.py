"""Sets of graphs: graph classification, distilled into a few labelled graphs."""

from pathlib import Path

from mmdistill.files.saved import TORCH
from mmdistill.graph.files import holds_list
from mmdistill.graph.sets.data import TU, GraphSet, load_graph_set, tu_prefix
from mmdistill.graph.sets.draw import draw, export_pyg, export_tensors
from mmdistill.graph.sets.imports import IMPORTS
from mmdistill.graph.sets.synthetic import real_graphs
from mmdistill.graph.sets.task import GraphSetTask, graph_set_task
from mmdistill.method import Method, MethodTable
from mmdistill.methods import fresh
from mmdistill.objectives.distances import relative_squared_error
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.registry import Domain
from mmdistill.settings import OptimizerSpec, Settings


def _accepts(path: Path) -> bool:
    if path.suffix.lower() in TORCH:
        return path.is_file() and holds_list(path)
    return path.is_dir() and tu_prefix(path) is not None


def _doscond_settings(graphs: int) -> Settings:
    """Return our own settings, chosen on the validation graphs of generated sets, except for the real batch."""
    rates = {"codes": OptimizerSpec("adam", 0.03), "decoder": OptimizerSpec("adam", 0.05)}
    return Settings(steps=400, real_batch=256, optimizers=rates)


METHODS = MethodTable(
    {
        "doscond": Method(
            "DosCond",
            lambda: GradientMatching(relative_squared_error),
            fresh,
            _doscond_settings,
            real_graphs,
            summary="one-step gradient matching on fresh networks, node features and Bernoulli edges of each graph",
            source="Jin et al., KDD 2022 (real graphs of any size start, whose missing nodes are neither learned nor "
            "pooled; rates and steps are our own)",
        ),
    }
)

DOMAIN = Domain(
    name="graph-set",
    budget="ipc",
    datasets={name: f"{line}; downloaded" for name, (_, line) in TU.items()},
    accepts=_accepts,
    make_task=graph_set_task,
    methods=METHODS,
    draw=draw,
    exports={"pyg": export_pyg, "tensors": export_tensors},
    imports=IMPORTS,
    accepted="a folder in the TU layout (NAME_A.txt, NAME_graph_indicator.txt, NAME_graph_labels.txt, ...), or a .pt "
    "file with a list or data set of torch-geometric Data, a class y each",
)

__all__ = ["DOMAIN", "GraphSet", "GraphSetTask", "graph_set_task", "load_graph_set"]
