"""User-item interactions: a few synthetic users that train a recommender."""

from mmdistill.recsys.data import DATASETS, Interactions, load_interactions
from mmdistill.recsys.draw import EXPORTS, draw
from mmdistill.recsys.files import ACCEPTED, looks_like_interactions
from mmdistill.recsys.methods import METHODS
from mmdistill.recsys.metrics import RankingProtocol
from mmdistill.recsys.synthetic import InteractionPrior, interaction_prior
from mmdistill.recsys.task import RecsysTask, make_task, recsys_task
from mmdistill.registry import Domain

DOMAIN = Domain(
    name="recsys",
    budget="users",
    datasets=DATASETS,
    accepts=looks_like_interactions,
    make_task=make_task,
    methods=METHODS,
    draw=draw,
    exports=EXPORTS,
    accepted=ACCEPTED,
)

__all__ = [
    "DOMAIN",
    "InteractionPrior",
    "Interactions",
    "RankingProtocol",
    "RecsysTask",
    "interaction_prior",
    "load_interactions",
    "recsys_task",
]
