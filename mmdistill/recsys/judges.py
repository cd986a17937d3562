"""The judges of synthetic users, by name; each entry holds everything about its judge."""

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

if TYPE_CHECKING:  # the task imports this module
    from mmdistill.recsys.task import RecsysTask

HEAVIEST_NOTE = "als reads binary rows: each user stands for its heaviest items, as many as its weights sum to"
UNCHOSEN_NOTE = "no validation rows: the ridge is the one learned with the set, or the middle one of the judge's own"
LAST_NOTE = "no validation rows: the last step of mult-vae is kept"


@dataclass(frozen=True)
class RecommenderJudge:
    """A judge of interactions.

    Args:
        of_rows: builds it, unfitted, from the task, the rows of synthetic users and a key.
        of_all: builds it from all real users of the task and a key.
        ridge: the name under which a set stores a learned ridge for this judge; empty if none is learned.
        random: whether its result depends on the key.
        reads: the judging settings that it reads.
        weighted: the note on synthetic rows that are not binary.
        unvalidated: the note for data without validation rows, which would choose its ridge or step.
        epochs: returns its number of passes over a number of users; None for closed-form judges.
    """

    of_rows: Callable[["RecsysTask", Tensor, Draws], Recommender]
    of_all: Callable[["RecsysTask", Draws], Recommender]
    ridge: str = ""
    random: bool = False
    reads: Sequence[str] = ("testing",)
    weighted: str = ""
    unvalidated: str = UNCHOSEN_NOTE
    epochs: Callable[["RecsysTask", int], int] | None = None

    def learned(self, values: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Return this judge's ridge among the values learned with a set; empty if there is none."""
        return (float(values[self.ridge]),) if self.ridge in values else ()


def _all_rows(task: "RecsysTask") -> Tensor:
    return task.data.rows(np.arange(task.data.num_users), device=task.device)


def _infinite_autoencoder_of_all(task: "RecsysTask", draws: Draws) -> Recommender:
    require_solvable(task.data.num_users, "the infinite autoencoder", "users")
    return InfiniteAutoencoder(_all_rows(task), task.kernel)


def _ease_of_all(task: "RecsysTask", draws: Draws) -> Recommender:
    users, items = task.data.num_users, task.data.num_items
    require_solvable(min(users, items), "EASE", "users or items, whichever are fewer")
    if users < items:
        return Ease(_all_rows(task))
    train = task.data.parts["train"]
    return Ease(gram=torch.from_numpy((train.T @ train).toarray()).to(task.device))


def _mult_vae(task: "RecsysTask", rows: Rows, users: int, draws: Draws) -> Recommender:
    return TrainedAutoencoder(rows, users, task.data.num_items, task.vae, draws.fold("train"), task.device)


def _mult_vae_of_rows(task: "RecsysTask", rows: Tensor, draws: Draws) -> Recommender:
    return _mult_vae(task, lambda chosen: rows[chosen.to(rows.device)], len(rows), draws)


def _mult_vae_of_all(task: "RecsysTask", draws: Draws) -> Recommender:
    return _mult_vae(task, task.users, task.data.num_users, draws)


def _seed(draws: Draws) -> int:
    return draws.integer() % 2**31


JUDGES = OpenTable(
    {
        "inf-ae": RecommenderJudge(
            of_rows=lambda task, rows, draws: InfiniteAutoencoder(rows, task.kernel),
            of_all=_infinite_autoencoder_of_all,
            ridge="ridge",
        ),
        "ease": RecommenderJudge(
            of_rows=lambda task, rows, draws: Ease(rows),
            of_all=_ease_of_all,
            ridge="absolute_ridge",
        ),
        "mult-vae": RecommenderJudge(
            of_rows=_mult_vae_of_rows,
            of_all=_mult_vae_of_all,
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
