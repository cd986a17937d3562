"""Graph methods without learned structure: gradient and mean matching of nodes, and the training-free means."""

from mmdistill.coresets import allocate, k_means
from mmdistill.errors import ConfigError
from mmdistill.graph.synthetic import label_nodes, propagated_features, raw_features
from mmdistill.methods import Method, OptimizerSpec, Settings, fresh, trained_on_s
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.parameterizations.base import Parameterization
from mmdistill.runtime import Draws
from mmdistill.task import Embeds, Task

WHOLE = 1_000_000
"""A minibatch that holds every synthetic graph: its nodes are linked, so it is never cut."""


def _gcond_settings(nodes: int) -> Settings:
    return Settings(
        steps=600,
        optimizers={"codes": OptimizerSpec("adam", 0.005)},
        outer_steps=20,
        inner_steps=15,
        inner_lr=0.1,
        inner_batch=WHOLE,
    )


def _gcdm_settings(nodes: int) -> Settings:
    return Settings(steps=500, optimizers={"codes": OptimizerSpec("adam", 0.05)}, inner_batch=WHOLE)


def propagated_means(task: Task, budget: int, draws: Draws) -> Parameterization:
    """Partition each class's training nodes by k-means on A^2 X and keep the means, with A' = I.

    Raises:
        ConfigError: a task without classes or without an embedding of its nodes.
    """
    if task.labels is None or task.num_classes is None or not isinstance(task, Embeds):
        raise ConfigError(f"{task.describe().data!r} has no labelled nodes whose propagated features could be averaged")
    counts = allocate(budget, "nodes", task.labels, task.num_classes)
    return label_nodes(k_means(task.embedding(), task.labels, counts, draws), counts, task.num_classes)


METHODS: dict[str, Method] = {
    "gcond-x": Method(
        "GCond-X",
        lambda: GradientMatching(row_cosine),
        trained_on_s,
        _gcond_settings,
        raw_features,
        domains=("graph",),
        summary="gradient matching of node features, SGC trained on S, no structure (A' = I)",
        source="Jin et al., ICLR 2022",
    ),
    "gcdm-x": Method(
        "GCDM-X",
        lambda: DistributionMatching("last"),
        fresh,
        _gcdm_settings,
        propagated_features,
        domains=("graph",),
        summary="mean matching of propagated features, no structure (A' = I)",
        source="Liu et al., 2022 (arXiv 2206.13697)",
    ),
    "propagated-means": Method(
        "Propagated means",
        None,
        fresh,
        lambda nodes: Settings(steps=0),
        domains=("graph",),
        summary="training-free: k-means of each class's propagated features, no structure (A' = I)",
        source="Gao et al., WWW 2025",
        solve=propagated_means,
    ),
}
