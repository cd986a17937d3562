"""Ranking metrics of implicit feedback, computed for chunks of users at once."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

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
"""Maps the known interactions of some users ``(n, items)`` to scores of all items ``(n, items)``."""
Scorers = Callable[[Tensor], Iterable[Tensor]]
"""Does so for several recommenders, one after another."""
Judged = Callable[[Scorers], list[float]]
"""Scores each of several recommenders on validation data, higher is better; one that gives a NaN scores 0."""

METRICS = ("ndcg@10", "hr@10", "hr@100", "recall@100", "psp@10", "coverage@10", "auc")
"""What is reported, the headline first; then the headline in each group of users."""
DRAWN_TOGETHER = 1024
"""Users whose candidates and negatives are drawn together, however many are scored at once."""
CHUNK_NUMBERS = 16_000_000
"""The largest users x items matrix that is scored at once: 64 MB."""
JUDGED = Draws(0, ("judged",))
"""The key of drawn users and candidates, the same in all judging: sets and baselines are compared on the same ones."""


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
    """Return the k best items per user, known ones excluded (they come last where too few others are left).

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
    the sum of 1/log2(rank + 1) over hits, divided by that of m leading hits; PSP@k = (sum of w over hits / m) / (sum of
    the m largest w in S). PSP's two sides differ by the factor m in the published numbers, and so do they here.

    Args:
        scores: ``(n, items)``.
        known: ``(n, items)``, positive where an item is masked out.
        held: ``(n, items)``, 1 for held-out items; at least one in each row.
        weights: ``(items,)`` propensity weights.
        ks: the cut-offs.
        best: what :func:`top_items` gives for the largest of them; None: it is found here.

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
    """Return which of the best items are held-out ones, ``(n, k)``; known ones that fill a list are none."""
    return held.gather(1, best) * (known.gather(1, best) <= 0)


def ndcg(hits: Tensor, count: Tensor, k: int) -> Tensor:
    """Return NDCG@k, ``(n,)``, of :func:`user_metrics`.

    Shapes:
        hits ``(n, best)``, 1 where an item is held out, the best first; count ``(n,)`` held-out items.
    """
    gains = 1 / torch.arange(2, min(k, hits.shape[1]) + 2).log2()
    # Summed on the CPU: on CUDA, a cumulative sum of floats is refused where only deterministic kernels run.
    gain, leading = gains.to(hits.device), gains.cumsum(0).to(hits.device)
    return (hits[:, :k] * gain).sum(1) / leading[count.long().clamp(max=len(gains)) - 1]


def sample_negatives(taken: Tensor, count: int, draws: Draws, block: tuple[int, int] | None = None) -> Tensor:
    """Draw distinct items that a user never interacted with.

    Items are drawn in three times the needed number and kept where they are new and not taken; a user with few free
    items gets fewer.

    Args:
        taken: what to avoid.
        count: how many to draw.
        draws: the key.
        block: the number of users that are drawn for together, and the place of the first of these users among them, by
            which their items are the same however many are drawn for at once; None: they are all.
    Shapes:
        taken ``(n, items)``, positive for items to avoid; returns ``(n, count)`` indices, -1 where there are fewer.
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


@dataclass(frozen=True)
class RankingProtocol:
    """How a scorer is judged.

    Args:
        ks: cut-offs of HR, NDCG, recall, PSP and coverage.
        negatives: sampled items per user for the AUC, which pools all users; 0 leaves the AUC out. They are none of
            the user's items of any split; Distill-CF's code draws validation items too.
        candidates: rank the held-out items among only so many sampled items that the user does not know, as part of
            the field does (the scores are far higher, and not comparable); 0 ranks all items.
        groups: give NDCG at the first cut-off also for so many groups of users, of equal size, by the length of what
            is known of them; 1 leaves them out.
        chunk: users scored at once, at most; fewer where there are many items.
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
        """Return the users that are judged: those with held-out items.

        Raises:
            DataError: nobody has any.
        """
        users = data.users_with(part)
        if not len(users):
            raise DataError(f"no user of {data.name} has {part} interactions to be judged on")
        if self.max_users is not None and len(users) > self.max_users:
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

        Each metric has one value but the AUC, which has one for each draw of negatives. Coverage@k is the share of the
        items that are among somebody's first k. The scorer sees, and the ranking leaves out, the training interactions,
        and at test the validation ones too.

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
        found: dict[str, list[Tensor]] = {}
        shown = {k: torch.zeros(data.num_items, dtype=torch.bool, device=device) for k in self.ks}
        positives: list[Tensor] = []
        negatives: list[list[Tensor]] = [[] for _ in range(repeats)]
        for first, place, known, held, hidden in self._read(users, data, part, device):
            scores = scorer(known)
            best = top_items(scores, hidden, max(self.ks))
            for name, values in user_metrics(scores, hidden, held, weights, self.ks, best).items():
                found.setdefault(name, []).append(values.double().cpu())
            ranked = hidden.gather(1, best) <= 0  # where too few items are left, hidden ones fill the list
            for k, seen in shown.items():
                seen[best[:, :k][ranked[:, :k]]] = True
            if self.negatives:
                positives.append(scores[held > 0].cpu())
                for repeat, drawn in enumerate(negatives):
                    key = draws.fold("negatives", repeat, first)
                    chosen = sample_negatives(known + held, self.negatives, key, place)
                    drawn.append(scores.gather(1, chosen.clamp(min=0))[chosen >= 0].cpu())
        per_user = {name: torch.cat(parts) for name, parts in found.items()}
        result: dict[str, tuple[float, ...]] = {name: (float(own.mean()),) for name, own in per_user.items()}
        result |= {f"coverage@{k}": (float(seen.double().mean()),) for k, seen in shown.items()}
        if self.negatives:
            result["auc"] = tuple(pooled_auc(torch.cat(positives), torch.cat(drawn)) for drawn in negatives)
        headline = f"ndcg@{self.ks[0]}"
        groups = self._of_groups(per_user[headline], users, data, part)
        return result | {f"{headline} {name}": (mean,) for name, mean in groups.items()}

    def _of_groups(
        self, values: Tensor, users: npt.NDArray[np.int64], data: Interactions, part: Split
    ) -> dict[str, float]:
        """Return the mean value of the judged users of each group, of groups without any nothing."""
        everyone = data.users_with(part)  # whose groups are the same whoever is drawn of them
        lengths = sum(data.lengths(split)[everyone] for split in contexts(part))
        found = {}
        for name, members in group_users(np.asarray(lengths), self.groups).items():
            judged = torch.from_numpy(np.isin(users, everyone[members]))
            if judged.any():
                found[name] = float(values[judged].mean())
        return found

    def ndcg(
        self, scorers: Scorers, data: Interactions, part: Split, device: torch.device | str = "cpu"
    ) -> list[float]:
        """Return each recommender's NDCG at the first cut-off, as :meth:`evaluate` does, in one pass over the users.

        It is 0 where a score is NaN.
        """
        k = self.ks[0]
        found: dict[int, list[Tensor]] = defaultdict(list)
        for _, _, known, held, hidden in self._read(self.users(data, part), data, part, device):
            for index, scores in enumerate(scorers(known)):
                own = ndcg(_hits(top_items(scores, hidden, k), hidden, held), held.sum(1), k)
                found[index].append(own.masked_fill(scores.isnan().any(1), torch.nan).double().cpu())
        return [float(torch.cat(own).mean().nan_to_num()) for own in found.values()]

    def _read(
        self, users: npt.NDArray[np.int64], data: Interactions, part: Split, device: torch.device | str
    ) -> Iterator[tuple[int, tuple[int, int], Tensor, Tensor, Tensor]]:
        """Yield users in chunks: block and place as :func:`_in_blocks`, and what is known, held out and not ranked."""
        block = max(1, min(DRAWN_TOGETHER, CHUNK_NUMBERS // data.num_items))
        for first, place, chunk in _in_blocks(users, block, self.chunk):
            known, held = data.rows(chunk, contexts(part), device), data.rows(chunk, (part,), device)
            yield first, place, known, held, self._hidden(known, held, JUDGED.fold("candidates", first), place)

    def _hidden(self, known: Tensor, held: Tensor, draws: Draws, place: tuple[int, int]) -> Tensor:
        """Return what is left out of the ranking: known items, and, with candidates, all others that are not drawn."""
        if not self.candidates:
            return known
        chosen = sample_negatives(known + held, self.candidates, draws, place)
        ranked = torch.zeros_like(held)
        ranked.scatter_add_(1, chosen.clamp(min=0), (chosen >= 0).to(held))  # -1 adds nothing to the first item
        return ((ranked + held) == 0).to(known)


def _in_blocks(
    users: npt.NDArray[np.int64], block: int, chunk: int
) -> Iterator[tuple[int, tuple[int, int], npt.NDArray[np.int64]]]:
    """Yield users in chunks: where their block begins, its size with the place in it of the first of them, and them."""
    for first in range(0, len(users), block):
        members = users[first : first + block]
        for start in range(0, len(members), chunk):
            yield first, (len(members), start), members[start : start + chunk]


def contexts(part: Split) -> tuple[Split, ...]:
    """Return the parts that are known when a part is predicted."""
    return ("train", "valid") if part == "test" else ("train",)


def group_users(lengths: npt.NDArray[Any], groups: int) -> dict[str, npt.NDArray[np.int64]]:
    """Divide users into groups of (nearly) equal size by how much is known of them.

    Args:
        lengths: interactions known of each user.
        groups: how many; one gives none, and groups that equal lengths leave empty are left out.
    Returns:
        By name, such as ``[20-48]`` for the range of lengths, the positions of its users.
    """
    if groups < 2:
        return {}
    edges = np.quantile(lengths, np.arange(1, groups) / groups)
    which = np.searchsorted(edges, lengths, side="left")
    found = {}
    for group in range(groups):
        members = np.flatnonzero(which == group)
        if len(members):
            own = lengths[members]
            found[f"[{int(own.min())}-{int(own.max())}]"] = members
    return found


def pooled_auc(positives: Tensor, negatives: Tensor) -> float:
    """Return the probability that a positive's score exceeds a negative's, ties counting half.

    Shapes:
        scores on the CPU: positives ``(p,)``; negatives ``(q,)``.
    Raises:
        DataError: no negatives.
    """
    from sklearn.metrics import roc_auc_score  # here, since importing it takes long

    if not len(negatives):
        raise DataError("every user has interacted with every item, so there is no negative to compare with")
    truth = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
    return float(roc_auc_score(truth, torch.cat([positives, negatives]).numpy()))
