"""Ranking metrics of implicit feedback, computed for chunks of users at once."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.checks import are_numbers, require_at_least, require_sizes
from mmdistill.errors import ConfigError, DataError, NonFiniteError, ShapeError
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.splits import Split
from mmdistill.runtime import Draws

Scorer = Callable[[Tensor], Tensor]
"""Maps users' known interactions ``(n, items)`` to scores of all items ``(n, items)``."""
Scorers = Callable[[Tensor], Iterable[Tensor]]
"""Yields the scores of several recommenders, one after another."""
Validation = Callable[[Scorers], list[float]]
"""Scores each of several recommenders on validation data, higher is better; a recommender that gives a NaN scores 0."""

METRICS = ("ndcg@10", "hr@10", "hr@100", "recall@100", "psp@10", "coverage@10", "auc")
"""The reported metrics, the headline first; after them comes the headline in each group of users."""
DRAWN_TOGETHER = 1024
"""Users whose candidates and negatives are drawn together, so that the draws do not depend on the chunk size."""
CHUNK_NUMBERS = 16_000_000
"""The largest users x items matrix that is scored at once: 64 MB."""
JUDGED = Draws(0, ("judged",))
"""The key of drawn users and candidates, fixed so that sets and baselines are compared on the same ones."""


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
    """Return the k best items per user, without known ones (which come last if too few others are left).

    Shapes:
        scores ``(n, items)``; known ``(n, items)``, positive where an item is excluded; returns ``(n, min(k, items))``
        indices, the best first.
    """
    return scores.masked_fill(known > 0, -torch.inf).topk(min(k, scores.shape[1]), dim=1).indices


def user_metrics(
    scores: Tensor,
    known: Tensor,
    held: Tensor,
    weights: Tensor,
    ks: Sequence[int] = (10, 100),
    best: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Return NDCG, HR, recall and PSP at each k, one value per user.

    With S the held-out items and m = min(\|S\|, k): HR@k = hits/m (truncated recall); recall@k = hits/\|S\|; NDCG@k =
    the sum of 1/log2(rank + 1) over hits, divided by its maximum, m hits at the top; PSP@k = (sum of w over hits / m) /
    (sum of the m largest w in S). PSP's numerator has the extra factor 1/m as in the published numbers.

    Args:
        scores: ``(n, items)``.
        known: ``(n, items)``, positive where an item is masked out.
        held: ``(n, items)``, 1 for held-out items; at least one in each row.
        weights: ``(items,)`` propensity weights.
        ks: the cut-offs.
        best: the result of :func:`top_items` for the largest cut-off; None computes it.

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
    best = top_items(scores, known, max(ks)) if best is None else best
    hits = _hits(best, known, held)
    weighted = hits * weights[best]
    largest = (held * weights).topk(min(max(ks), held.shape[1]), dim=1).values
    count = held.sum(1)
    result = {}
    for k in ks:
        m = count.clamp(max=k)
        result[f"ndcg@{k}"] = ndcg(hits, count, k)
        result[f"hr@{k}"] = hits[:, :k].sum(1) / m
        result[f"recall@{k}"] = hits[:, :k].sum(1) / count
        result[f"psp@{k}"] = weighted[:, :k].sum(1) / m / largest[:, :k].sum(1)
    return result


def _hits(best: Tensor, known: Tensor, held: Tensor) -> Tensor:
    """Return which of the best items are held out, ``(n, k)``; known items that fill up a list do not count."""
    return held.gather(1, best) * (known.gather(1, best) <= 0)


def ndcg(hits: Tensor, count: Tensor, k: int) -> Tensor:
    """Return NDCG@k of each user, ``(n,)``, as :func:`user_metrics` defines it.

    Shapes:
        hits ``(n, best)``, 1 where an item is held out, the best first; count ``(n,)`` held-out items.
    """
    gains = 1 / torch.arange(2, min(k, hits.shape[1]) + 2).log2()
    # Summed on the CPU: CUDA has no deterministic cumulative sum of floats.
    gain, leading = gains.to(hits.device), gains.cumsum(0).to(hits.device)
    return (hits[:, :k] * gain).sum(1) / leading[count.long().clamp(max=len(gains)) - 1]


def sample_negatives(taken: Tensor, count: int, draws: Draws, block: tuple[int, int] | None = None) -> Tensor:
    """Draw distinct items that a user never interacted with.

    Draws three times ``count`` items and keeps those that are distinct and not taken; a user with few free items gets
    fewer.

    Args:
        taken: items to avoid.
        count: items to draw per user.
        draws: the key.
        block: the number of users that items are drawn for together, and the index of the first of these users among
            them, so that a user's items do not depend on the chunk size; None: these users are the whole block.
    Shapes:
        taken ``(n, items)``, positive for items to avoid; returns ``(n, count)`` indices, padded with -1.
    """
    number, items = taken.shape
    users, first_user = (number, 0) if block is None else block
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
    drawn = drawn[first_user : first_user + number].to(taken.device)
    free = (drawn >= 0) & (taken.gather(1, drawn.clamp(min=0)) <= 0)
    first = (~free).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return torch.where(free.gather(1, first), drawn.gather(1, first), -1)


class _Chunk(NamedTuple):
    """Some users' interactions, for which items are ranked at once.

    Args:
        block: index of the first user of the chunk's block, for which items are drawn together.
        place: the number of users in the block, and the index in it of the chunk's first user.
        known: ``(n, items)`` interactions that the scorer sees.
        held_out: ``(n, items)`` interactions to predict.
        excluded: ``(n, items)``, positive for items that are left out of the ranking.
    """

    block: int
    place: tuple[int, int]
    known: Tensor
    held_out: Tensor
    excluded: Tensor


@dataclass(frozen=True)
class RankingProtocol:
    """How a scorer is judged.

    Args:
        ks: cut-offs of HR, NDCG, recall, PSP and coverage.
        negatives: sampled items per user for the AUC, which pools all users; 0 leaves the AUC out. They exclude the
            user's items of every split; Distill-CF's code draws validation items too.
        candidates: rank the held-out items among only this many sampled items that the user does not know, as part of
            the field does (the scores are far higher, and not comparable); 0 ranks all items.
        groups: also report NDCG at the first cut-off for this many equal groups of users, by their numbers of known
            interactions; 1 leaves them out.
        chunk: users scored at once, at most; fewer if there are many items.
        max_users: judge only this many users, drawn at random; None is all.

    Users and candidates are drawn once, the same for every scorer, seed and device.

    Raises:
        ConfigError: values out of range.
    """

    ks: tuple[int, ...] = (10, 100)
    negatives: int = 50
    candidates: int = 0
    groups: int = 1
    chunk: int = 1024
    max_users: int | None = None

    def __post_init__(self) -> None:
        require_at_least(self, {"negatives": 0, "candidates": 0, "groups": 1, "chunk": 1})
        require_sizes(sys.maxsize, max_users=self.max_users)
        if not (are_numbers(self.ks, Integral) and self.ks and min(self.ks) >= 1):
            raise ConfigError(f"ks are cut-offs, whole numbers of at least 1, got {self.ks!r}")

    def users(self, data: Interactions, part: Split) -> npt.NDArray[np.int64]:
        """Return the users to judge on: those with held-out items, or a sample of them.

        Raises:
            DataError: no user has held-out items.
        """
        users = data.users_with(part)
        if not len(users):
            raise DataError(f"no user of {data.name} has {part} interactions to be judged on")
        if self.max_users is not None:
            drawn = JUDGED.fold("users").permutation(len(users))[: self.max_users]
            users = np.sort(users[drawn.numpy()])
        return users

    def evaluate(
        self,
        scorer: Scorer,
        data: Interactions,
        part: Split,
        draws: Draws,
        repeats: int = 1,
        device: torch.device | str = "cpu",
    ) -> dict[str, tuple[float, ...]]:
        """Return the mean of each metric over the users with held-out interactions, as fractions.

        Each metric has one value, except the AUC, which has one per draw of negatives. Coverage@k is the share of the
        items that are among some user's first k. The scorer sees, and the ranking leaves out, the training
        interactions and, for ``test``, the validation interactions too.

        Args:
            scorer: the recommender.
            data: the interactions.
            part: ``valid`` or ``test``.
            draws: the key of the negatives.
            repeats: how often negatives are drawn.
            device: where the scorer computes.
        """
        weights = propensity_weights(data.item_counts()).to(device)
        users = self.users(data, part)
        metric_chunks: dict[str, list[Tensor]] = {}
        recommended = {k: torch.zeros(data.num_items, dtype=torch.bool, device=device) for k in self.ks}
        positives: list[Tensor] = []
        negatives: list[list[Tensor]] = [[] for _ in range(repeats)]
        for chunk in self._chunks(users, data, part, device):
            scores = scorer(chunk.known)
            best = top_items(scores, chunk.excluded, max(self.ks))
            metrics = user_metrics(scores, chunk.excluded, chunk.held_out, weights, self.ks, best)
            for name, values in metrics.items():
                metric_chunks.setdefault(name, []).append(values.double().cpu())
            ranked = chunk.excluded.gather(1, best) <= 0  # if too few items are left, excluded ones fill the list
            for k, is_recommended in recommended.items():
                is_recommended[best[:, :k][ranked[:, :k]]] = True
            if self.negatives:
                positives.append(scores[chunk.held_out > 0].cpu())
                for repeat, negative_scores in enumerate(negatives):
                    key = draws.fold("negatives", repeat, chunk.block)
                    items = sample_negatives(chunk.known + chunk.held_out, self.negatives, key, chunk.place)
                    negative_scores.append(scores.gather(1, items.clamp(min=0))[items >= 0].cpu())
        per_user = {name: torch.cat(chunks) for name, chunks in metric_chunks.items()}
        result: dict[str, tuple[float, ...]] = {name: (float(values.mean()),) for name, values in per_user.items()}
        result |= {f"coverage@{k}": (float(items.double().mean()),) for k, items in recommended.items()}
        if self.negatives:
            result["auc"] = tuple(pooled_auc(torch.cat(positives), torch.cat(scores)) for scores in negatives)
        headline = f"ndcg@{self.ks[0]}"
        groups = self._group_means(per_user[headline], users, data, part)
        return result | {f"{headline} {name}": (mean,) for name, mean in groups.items()}

    def _group_means(
        self, values: Tensor, users: npt.NDArray[np.int64], data: Interactions, part: Split
    ) -> dict[str, float]:
        """Return the mean value of the judged users of each group; groups without judged users are left out."""
        everyone = data.users_with(part)  # groups do not depend on which users are drawn
        lengths = sum(data.lengths(split)[everyone] for split in known_splits(part))
        means = {}
        for name, members in group_users(np.asarray(lengths), self.groups).items():
            in_group = torch.from_numpy(np.isin(users, everyone[members]))
            if in_group.any():
                means[name] = float(values[in_group].mean())
        return means

    def ndcg(
        self, scorers: Scorers, data: Interactions, part: Split, device: torch.device | str = "cpu"
    ) -> list[float]:
        """Return each recommender's NDCG at the first cut-off, in one pass over the users; 0 if a score is NaN.

        The users and the ranking are those of :meth:`evaluate`.
        """
        k = self.ks[0]
        chunks: dict[int, list[Tensor]] = defaultdict(list)
        for _, _, known, held_out, excluded in self._chunks(self.users(data, part), data, part, device):
            for index, scores in enumerate(scorers(known)):
                hits = _hits(top_items(scores, excluded, k), excluded, held_out)
                values = ndcg(hits, held_out.sum(1), k)
                chunks[index].append(values.masked_fill(scores.isnan().any(1), torch.nan).double().cpu())
        return [float(torch.cat(values).mean().nan_to_num()) for values in chunks.values()]

    def _chunks(
        self, users: npt.NDArray[np.int64], data: Interactions, part: Split, device: torch.device | str
    ) -> Iterator[_Chunk]:
        """Yield the interactions of users in chunks."""
        block_size = max(1, min(DRAWN_TOGETHER, CHUNK_NUMBERS // data.num_items))
        for block in range(0, len(users), block_size):
            members = users[block : block + block_size]
            key = JUDGED.fold("candidates", block)
            for start in range(0, len(members), self.chunk):
                chosen, place = members[start : start + self.chunk], (len(members), start)
                known, held_out = data.rows(chosen, known_splits(part), device), data.rows(chosen, (part,), device)
                yield _Chunk(block, place, known, held_out, self._excluded(known, held_out, key, place))

    def _excluded(self, known: Tensor, held_out: Tensor, draws: Draws, place: tuple[int, int]) -> Tensor:
        """Return the items left out of the ranking: known ones or, with candidates, all but these and held-out ones."""
        if not self.candidates:
            return known
        items = sample_negatives(known + held_out, self.candidates, draws, place)
        ranked = torch.zeros_like(held_out)
        ranked.scatter_add_(1, items.clamp(min=0), (items >= 0).to(held_out))  # padding (-1) adds 0 to the first item
        return ((ranked + held_out) == 0).to(known)


def known_splits(part: Split) -> tuple[Split, ...]:
    """Return the splits that are known when a split is predicted."""
    return ("train", "valid") if part == "test" else ("train",)


def group_users(lengths: npt.NDArray[Any], groups: int) -> dict[str, npt.NDArray[np.int64]]:
    """Divide users into groups of (nearly) equal size by their numbers of known interactions.

    Args:
        lengths: known interactions of each user.
        groups: how many groups; with fewer than 2 there are none. Groups that ties leave empty are dropped.
    Returns:
        The positions of each group's users, by its range of lengths, such as ``[20-48]``.
    """
    if groups < 2:
        return {}
    edges = np.quantile(lengths, np.arange(1, groups) / groups)
    group_of_user = np.searchsorted(edges, lengths, side="left")
    members_by_range = {}
    for group in range(groups):
        members = np.flatnonzero(group_of_user == group)
        if len(members):
            shortest, longest = int(lengths[members].min()), int(lengths[members].max())
            members_by_range[f"[{shortest}-{longest}]"] = members
    return members_by_range


def pooled_auc(positives: Tensor, negatives: Tensor) -> float:
    """Return the probability that a positive's score exceeds a negative's, ties counting half.

    Shapes:
        scores on the CPU: positives ``(p,)``; negatives ``(q,)``.
    Raises:
        DataError: no negatives.
    """
    from sklearn.metrics import roc_auc_score  # imported here since it loads slowly

    if not len(negatives):
        raise DataError("every user has interacted with every item, so there is no negative to compare with")
    labels = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
    return float(roc_auc_score(labels, torch.cat([positives, negatives]).numpy()))
