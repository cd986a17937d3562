"""Who can judge interactions, by name: one entry says all that there is to know of a judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmdistill.abilities import JUDGING
from mmdistill.open_table import OpenTable
from mmdistill.recsys.factorisation import Factorisation, heaviest
from mmdistill.recsys.models import Ease, InfiniteAutoencoder, Popularity, Recommender, require_solvable
from mmdistill.recsys.vae import Rows, TrainedAutoencoder
from mmdistill.runtime import Draws

if TYPE_CHECKING:  # which looks judges up here
    from mmdistill.recsys.task import RecsysTask

HEAVIEST_NOTE = "als reads binary rows: each user stands for its heaviest items, as many as its weights sum to"
UNCHOSEN_NOTE = "no validation rows: the ridge is the one learned with the set, or the middle one of the judge's own"
LAST_NOTE = "no validation rows: the last step of mult-vae is kept"


@dataclass(frozen=True)
class RecommenderJudge:
    """A judge of interactions.

    Args:
        of_rows: makes it, not fitted yet, of the task, synthetic users' rows and a key.
        of_all: makes it of all real users of the task and a key.
        ridge: the name under which a ridge of its kind travels with a set; empty where none is learned.
        random: whether it differs from key to key.
        reads: what it reads of what is set of judging.
        weighted: noted of synthetic rows that are not binary.
        unvalidated: noted where no validation rows choose its ridge or its step.
        epochs: for how many passes over so many users it trains; None of what is solved.
    """

    of_rows: Callable[["RecsysTask", Tensor, Draws], Recommender]
    of_all: Callable[["RecsysTask", Draws], Recommender]
    ridge: str = ""
    random: bool = False
    reads: Sequence[str] = ("testing",)
    weighted: str = ""
    unvalidated: str = UNCHOSEN_NOTE
    epochs: Callable[["RecsysTask", int], int] | None = None

    def learned(self, found: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Return the ridge of its kind among what was learned with a set; nothing where there is none."""
        return (float(found[self.ridge]),) if self.ridge in found else ()


def _every_row(task: "RecsysTask") -> Tensor:
    return task.data.rows(np.arange(task.data.num_users), device=task.device)


def _wide_of_all(task: "RecsysTask", draws: Draws) -> Recommender:
    require_solvable(task.data.num_users, "the infinite autoencoder", "users")
    return InfiniteAutoencoder(_every_row(task), task.kernel)


def _ease_of_all(task: "RecsysTask", draws: Draws) -> Recommender:
    users, items = task.data.num_users, task.data.num_items
    require_solvable(min(users, items), "EASE", "users or items, whichever are fewer")
    if users < items:
        return Ease(_every_row(task))
    train = task.data.parts["train"]
    return Ease(gram=torch.from_numpy((train.T @ train).toarray()).to(task.device))


def _trained(task: "RecsysTask", rows: Rows, users: int, draws: Draws) -> Recommender:
    return TrainedAutoencoder(rows, users, task.data.num_items, task.vae, draws.fold("train"), task.device)


def _trained_of_rows(task: "RecsysTask", rows: Tensor, draws: Draws) -> Recommender:
    return _trained(task, lambda chosen: rows[chosen.to(rows.device)], len(rows), draws)


def _trained_of_all(task: "RecsysTask", draws: Draws) -> Recommender:
    return _trained(task, task.users, task.data.num_users, draws)


def _seed(draws: Draws) -> int:
    return draws.integer() % 2**31


JUDGES = OpenTable(
    {
        "inf-ae": RecommenderJudge(
            of_rows=lambda task, rows, draws: InfiniteAutoencoder(rows, task.kernel),
            of_all=_wide_of_all,
            ridge="ridge",
        ),
        "ease": RecommenderJudge(
            of_rows=lambda task, rows, draws: Ease(rows),
            of_all=_ease_of_all,
            ridge="absolute_ridge",
        ),
        "mult-vae": RecommenderJudge(
            of_rows=_trained_of_rows,
            of_all=_trained_of_all,
            random=True,
            reads=JUDGING,
            unvalidated=LAST_NOTE,
            epochs=lambda task, users: task.vae.passes(users),
        ),
        "als": RecommenderJudge(
            of_rows=lambda task, rows, draws: Factorisation(heaviest(rows), _seed(draws)),
            of_all=lambda task, draws: Factorisation(task.data.parts["train"], _seed(draws)),
            random=True,
            weighted=HEAVIEST_NOTE,
        ),
        "popularity": RecommenderJudge(
            of_rows=lambda task, rows, draws: Popularity(rows.sum(0)),
            of_all=lambda task, draws: Popularity(task.data.item_counts().to(task.device)),
            unvalidated="",
        ),
    }
)
"""The judges by name, the default one first."""
