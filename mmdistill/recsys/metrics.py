"""Ranking metrics of implicit feedback, computed for chunks of users at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mmdistill.errors import ConfigError, DataError, NonFiniteError, ShapeError
from mmdistill.recsys.data import Interactions, Split
from mmdistill.runtime import Draws

Scorer = Callable[[Tensor], Tensor]
"""Maps the known interactions of some users ``(n, items)`` to scores of all items ``(n, items)``."""

METRICS = ("ndcg@10", "hr@10", "hr@100", "psp@10", "auc")
"""What is reported, the headline first."""


def propensity_weights(item_counts: Tensor) -> Tensor:
    r"""Return the inverse propensity of each item, large for rare ones.

    .. math:: w = 1 + C (f + 1.5)^{-0.55}, \quad C = (\ln N - 1)\, 2.5^{0.55}

    Args:
        item_counts: ``(items,)``, f: training interactions per item; N is their sum.

    Source: Jain et al., KDD 2016, with the constants and the N (interactions) of Sachdeva et al., NeurIPS 2022.
    """
    total = max(float(item_counts.sum()), math.e)
    scale = (math.log(total) - 1) * 2.5**0.55
    weights: Tensor = 1 + scale * torch.pow(item_counts + 1.5, -0.55)
    return weights


def top_items(scores: Tensor, known: Tensor, k: int) -> Tensor:
    """Return the k best items per user, known ones excluded (they come last where too few others are left)."""
    return scores.masked_fill(known > 0, -torch.inf).topk(min(k, scores.shape[1]), dim=1).indices


def user_metrics(
    scores: Tensor, known: Tensor, held: Tensor, weights: Tensor, ks: Sequence[int] = (10, 100)
) -> dict[str, Tensor]:
    r"""Return NDCG, HR and PSP at each k, one value per user.

    With S the held-out items and m = min(\|S\|, k): HR@k = hits/m (truncated recall); NDCG@k = the sum of
    1/log2(rank + 1) over hits, divided by that of m leading hits; PSP@k = (sum of w over hits / m) / (sum of the m
    largest w in S). PSP's two sides differ by the factor m in the published numbers, and so do they here.

    Args:
        scores: ``(n, items)``.
        known: ``(n, items)``, positive where an item is masked out.
        held: ``(n, items)``, 1 for held-out items; at least one in each row.
        weights: ``(items,)`` propensity weights.
        ks: the cut-offs.

    Raises:
        ShapeError: the shapes differ.
        NonFiniteError: a score is NaN.
    """
    if not scores.shape == known.shape == held.shape:
        raise ShapeError(
            f"scores {tuple(scores.shape)}, known {tuple(known.shape)} and held {tuple(held.shape)} differ"
        )
    if torch.isnan(scores).any():
        raise NonFiniteError("a score is NaN, so items cannot be ranked: the judge's ridge is too small for this set")
    best = top_items(scores, known, max(ks))
    hits = held.gather(1, best) * (known.gather(1, best) <= 0)
    gain = 1 / torch.arange(2, best.shape[1] + 2, device=scores.device).log2()
    leading = gain.cumsum(0)
    weighted = hits * weights[best]
    largest = (held * weights).topk(min(max(ks), held.shape[1]), dim=1).values
    count = held.sum(1)
    result = {}
    for k in ks:
        m = count.clamp(max=k)
        ideal = leading[(m.long() - 1).clamp(max=len(leading) - 1)]
        result[f"ndcg@{k}"] = (hits[:, :k] * gain[:k]).sum(1) / ideal
        result[f"hr@{k}"] = hits[:, :k].sum(1) / m
        result[f"psp@{k}"] = weighted[:, :k].sum(1) / m / largest[:, :k].sum(1)
    return result


def sample_negatives(taken: Tensor, count: int, draws: Draws) -> Tensor:
    """Draw distinct items that a user never interacted with.

    Items are drawn in three times the needed number and kept where they are new and not taken; a user with few free
    items gets fewer.

    Shapes:
        taken ``(n, items)``, positive for items to avoid; returns ``(n, count)`` indices, -1 where there are fewer.
    """
    users, items = taken.shape
    offers = min(items, 3 * count)
    if offers == items:
        drawn = draws.uniform(users, items).argsort(1)
    else:
        drawn = draws.integers(items, users, offers).sort(1).values
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated[:, 1:] = drawn[:, 1:] == drawn[:, :-1]
        drawn = drawn.masked_fill(repeated, -1)
        shuffle = draws.fold("shuffle").uniform(users, offers).argsort(1)
        drawn = drawn.gather(1, shuffle)
    drawn = drawn.to(taken.device)
    free = (drawn >= 0) & (taken.gather(1, drawn.clamp(min=0)) <= 0)
    first = (~free).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return torch.where(free.gather(1, first), drawn.gather(1, first), -1)


@dataclass(frozen=True)
class RankingProtocol:
    """How a scorer is judged.

    Args:
        ks: cut-offs of HR, NDCG and PSP.
        negatives: sampled items per user for the AUC, which pools all users; 0 leaves the AUC out.
        chunk: users scored at once.
        max_users: judge only this many users, drawn at random; None is all.
        device: where scoring happens.
    """

    ks: tuple[int, ...] = (10, 100)
    negatives: int = 50
    chunk: int = 1024
    max_users: int | None = None
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or self.chunk < 1:
            raise ConfigError(f"cut-offs and chunk must be positive, got {self.ks} and {self.chunk}")

    def users(self, data: Interactions, part: Split, draws: Draws) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the users that are judged: those with held-out items.

        Raises:
            DataError: nobody has any.
        """
        users = data.users_with(part)
        if not len(users):
            raise DataError(f"no user of {data.name} has {part} interactions to be judged on")
        if self.max_users is not None and len(users) > self.max_users:
            users = np.sort(users[draws.fold("users").permutation(len(users))[: self.max_users].numpy()])
        return users

    def evaluate(
        self, scorer: Scorer, data: Interactions, part: Split, draws: Draws, repeats: int = 1
    ) -> dict[str, tuple[float, ...]]:
        """Return the mean of each metric over the users with held-out interactions, as fractions.

        Each metric has one value per repeat; repeats differ only in the AUC's negatives.

        The scorer sees, and the ranking leaves out, the training interactions, and at test the validation ones too.

        Args:
            scorer: the recommender.
            data: the interactions.
            part: ``valid`` or ``test``.
            draws: the key of the AUC's negatives.
            repeats: how often negatives are drawn.
        """
        context: tuple[Split, ...] = ("train", "valid") if part == "test" else ("train",)
        weights = propensity_weights(data.item_counts()).to(self.device)
        users = self.users(data, part, draws)
        sums: dict[str, float] = {}
        positives: list[Tensor] = []
        negatives: list[list[Tensor]] = [[] for _ in range(repeats)]
        for start in range(0, len(users), self.chunk):
            chunk = users[start : start + self.chunk]
            known = data.rows(chunk, context).to(self.device)
            held = data.rows(chunk, (part,)).to(self.device)
            scores = scorer(known)
            for name, values in user_metrics(scores, known, held, weights, self.ks).items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            if self.negatives:
                positives.append(scores[held > 0].cpu())
                for repeat, drawn in enumerate(negatives):
                    key = draws.fold("negatives", repeat, start)
                    chosen = sample_negatives(known + held, self.negatives, key)
                    drawn.append(scores.gather(1, chosen.clamp(min=0))[chosen >= 0].cpu())
        result = {name: (total / len(users),) * repeats for name, total in sums.items()}
        if self.negatives:
            result["auc"] = tuple(pooled_auc(torch.cat(positives), torch.cat(drawn)) for drawn in negatives)
        return result


def pooled_auc(positives: Tensor, negatives: Tensor) -> float:
    """Return the probability that a positive's score exceeds a negative's, ties counting half."""
    if not len(negatives):
        raise DataError("every user has interacted with every item, so there is no negative to compare with")
    truth = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
    return float(roc_auc_score(truth, torch.cat([positives, negatives]).numpy()))
