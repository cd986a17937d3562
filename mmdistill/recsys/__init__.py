"""User-item interactions: a few synthetic users that train a recommender."""

from mmdistill.files.tables import SUFFIXES
from mmdistill.recsys.builders import READING_OPTIONS, recsys_task
from mmdistill.recsys.data import DATASETS, Interactions, load_interactions
from mmdistill.recsys.draw import draw
from mmdistill.recsys.export import EXPORTS
from mmdistill.recsys.files import ACCEPTED
from mmdistill.recsys.folders import looks_like_interactions
from mmdistill.recsys.imports import IMPORTS
from mmdistill.recsys.judges import JUDGES
from mmdistill.recsys.methods import METHODS, REDUCED
from mmdistill.recsys.metrics import RankingProtocol
from mmdistill.recsys.storage import (
    STORAGES,
    binary_interactions,
    expected_interactions,
    mean_field_interactions,
    sampled_interactions,
)
from mmdistill.recsys.synthetic import (
    BinaryInteractions,
    ExpectedInteractions,
    InteractionPrior,
    MeanFieldInteractions,
    SampledInteractions,
)
from mmdistill.recsys.task import RecsysTask
from mmdistill.registry import Domain

DOMAIN = Domain(
    name="recsys",
    budget="users",
    datasets=DATASETS,
    accepts=looks_like_interactions,
    make_task=recsys_task,
    methods=METHODS,
    draw=draw,
    first="distill-cf-meanfield",
    exports=EXPORTS,
    imports=IMPORTS,
    accepted=ACCEPTED,
    parameterizations=STORAGES,
    reduced=REDUCED,
    tables=(*SUFFIXES, ".dat"),
    network_added=JUDGES.added,
    options=(*READING_OPTIONS, "interactions_per_user", "model", "judge_batch"),
)

__all__ = [
    "DOMAIN",
    "BinaryInteractions",
    "ExpectedInteractions",
    "InteractionPrior",
    "Interactions",
    "MeanFieldInteractions",
    "RankingProtocol",
    "RecsysTask",
    "SampledInteractions",
    "binary_interactions",
    "expected_interactions",
    "load_interactions",
    "mean_field_interactions",
    "recsys_task",
    "sampled_interactions",
]
