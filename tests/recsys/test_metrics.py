import itertools
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError, NonFiniteError, ShapeError
from mmdistill.recsys import RankingProtocol, RecsysTask, load_interactions, metrics
from mmdistill.recsys.metrics import (
    group_users,
    pooled_auc,
    propensity_weights,
    sample_negatives,
    top_items,
    user_metrics,
)
from mmdistill.runtime import Draws
from tests.oracles import recsys as oracle


def random_case(users=12, items=30, seed=0):
    rng = np.random.default_rng(seed)
    known = rng.random((users, items)) < 0.3
    held = (rng.random((users, items)) < 0.25) & ~known
    held[np.arange(users), (~known).argmax(1)] = True
    held[0] = ~known[0]  # more held-out items than k
    scores = rng.permutation(users * items).reshape(users, items) / 7  # no ties
    return torch.tensor(scores), torch.tensor(known).double(), torch.tensor(held).double()


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_user_metrics_equal_the_oracle(k):
    scores, known, held = random_case()
    counts = known.sum(0)
    weights = propensity_weights(counts)
    np.testing.assert_allclose(weights.numpy(), oracle.propensities(counts.tolist()), rtol=1e-12)
    got = user_metrics(scores, known, held, weights, (k,))
    for user in range(len(scores)):
        sets = [set(np.flatnonzero(m[user].numpy())) for m in (known, held)]
        ndcg, hr, recall, psp = oracle.user_metrics(scores[user].tolist(), *sets, weights.tolist(), k)
        assert got[f"ndcg@{k}"][user].item() == pytest.approx(ndcg, rel=1e-6)
        assert got[f"hr@{k}"][user].item() == pytest.approx(hr, rel=1e-6)
        assert got[f"recall@{k}"][user].item() == pytest.approx(recall, rel=1e-6)
        assert got[f"psp@{k}"][user].item() == pytest.approx(psp, rel=1e-6)


def test_known_items_that_fill_a_list_are_no_hits():
    scores, known, held = (
        torch.tensor([[3.0, 2.0, 1.0]]),
        torch.tensor([[1.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
    )
    found = user_metrics(scores, known, held, torch.ones(3), (3,))
    assert found["hr@3"].tolist() == found["recall@3"].tolist() == [0.5]


def test_a_perfect_ranking_scores_one_and_known_items_never_count():
    _, known, held = random_case()
    perfect = user_metrics(held + 5 * known, known, held, torch.ones(30), (5,))
    assert torch.allclose(perfect["ndcg@5"], torch.ones(12, dtype=perfect["ndcg@5"].dtype))
    assert torch.allclose(perfect["hr@5"], torch.ones(12, dtype=perfect["hr@5"].dtype))
    best = top_items(5 * known + held, known, 5)
    allowed = (known == 0).sum(1)
    assert all(known[user, best[user, : int(allowed[user])]].sum() == 0 for user in range(12))


def test_auc_equals_the_pairwise_count_with_ties():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 8, 40) / 2, rng.integers(0, 7, 60) / 2
    got = pooled_auc(torch.tensor(positives), torch.tensor(negatives))
    assert got == pytest.approx(oracle.auc(positives, negatives))
    with pytest.raises(DataError, match="no negative"):
        pooled_auc(torch.ones(3), torch.ones(0))


@pytest.mark.parametrize("items", [40, 400])
def test_negatives_are_new_distinct_and_seeded(items):
    taken = (Draws(0).uniform(20, items) < 0.3).float()
    taken[0] = 1
    drawn = sample_negatives(taken, 15, Draws(1))
    assert (drawn[0] == -1).all()
    for user in range(1, 20):
        real = drawn[user][drawn[user] >= 0]
        assert len(real) == 15
        assert len(set(real.tolist())) == 15
        assert taken[user, real].sum() == 0
    assert torch.equal(drawn, sample_negatives(taken, 15, Draws(1)))
    assert not torch.equal(drawn, sample_negatives(taken, 15, Draws(2)))


def test_negatives_are_uniform():
    taken = torch.zeros(2000, 100)
    counts = torch.bincount(sample_negatives(taken, 10, Draws(0)).flatten(), minlength=100).double()
    assert counts.sum() == 20_000
    assert (counts - 200).abs().max() < 5 * 200**0.5


def test_protocol_equals_the_oracle_whatever_the_chunk(interactions):
    rng = np.random.default_rng(3)
    weights = torch.tensor(rng.normal(size=(interactions.num_items, interactions.num_items)), dtype=torch.float32)
    seen = []

    def scorer(known):
        seen.append(known)
        return known @ weights

    results = []
    for chunk in (7, 1000):
        protocol = RankingProtocol(ks=(5,), negatives=0, chunk=chunk)
        results.append(protocol.evaluate(scorer, interactions, "test", Draws(0)))
    assert all(results[0][name] == pytest.approx(results[1][name]) for name in results[0])
    context = interactions.parts["train"].toarray() + interactions.parts["valid"].toarray()
    np.testing.assert_array_equal(seen[-1].numpy(), context)
    w = oracle.propensities(interactions.item_counts().tolist())
    scores = torch.tensor(context) @ weights
    values = []
    for user in range(interactions.num_users):
        known = set(np.flatnonzero(context[user]))
        held = set(np.flatnonzero(interactions.parts["test"].toarray()[user]))
        values.append(oracle.user_metrics(scores[user].tolist(), known, held, w, 5))
    expected = np.mean(values, axis=0)
    got = [results[0][name][0] for name in ("ndcg@5", "hr@5", "recall@5", "psp@5")]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_validation_sees_training_interactions_only(interactions):
    seen = []
    RankingProtocol(ks=(5,), negatives=0).evaluate(
        lambda known: (seen.append(known), known)[1], interactions, "valid", Draws(0)
    )
    np.testing.assert_array_equal(seen[0].numpy(), interactions.parts["train"].toarray())


def test_repeats_differ_only_in_negatives(interactions):
    found = RankingProtocol(ks=(5,), negatives=5).evaluate(
        lambda known: interactions.item_counts().expand_as(known), interactions, "test", Draws(0), repeats=3
    )
    assert len(set(found["ndcg@5"])) == 1
    assert len(set(found["auc"])) == 3
    assert all(0.3 < value < 1 for value in found["auc"])


def test_negatives_and_candidates_of_every_chunk_and_repeat_are_drawn_apart(interactions, monkeypatch):
    paths = []

    def watched(taken, count, draws, place):
        paths.append((draws.path, place))
        return sample_negatives(taken, count, draws, place)

    monkeypatch.setattr(metrics, "CHUNK_NUMBERS", 21 * interactions.num_items)  # so users come in blocks of 21

    monkeypatch.setattr(metrics, "sample_negatives", watched)
    protocol = RankingProtocol(ks=(5,), negatives=5, candidates=5, chunk=14)
    protocol.evaluate(lambda known: 1 - known, interactions, "test", Draws(0), repeats=2)
    assert len(protocol.users(interactions, "test")) == 11 * 21 + 9
    chunks = 11 * 2 + 1
    assert len(paths) == len(set(paths)) == 3 * chunks  # one of candidates and two repeats of negatives each


def test_held_out_items_are_no_negatives(interactions):
    held = interactions.rows(interactions.users_with("test"), ("test",))
    protocol = RankingProtocol(negatives=interactions.num_items)
    assert protocol.evaluate(lambda known: held, interactions, "test", Draws(0))["auc"] == (1.0,)


def test_a_sample_of_users_can_be_judged(interactions):
    protocol = RankingProtocol(max_users=20)
    users = protocol.users(interactions, "test")
    assert len(set(users)) == 20
    assert users.tolist() != interactions.users_with("test")[:20].tolist()
    assert (users == protocol.users(interactions, "test")).all()


@pytest.mark.parametrize("few", [{"max_users": 40}, {"candidates": 10}])
def test_users_and_candidates_are_the_same_whatever_the_key(interactions, few):
    weights = Draws(0).normal(interactions.num_items, interactions.num_items)
    protocol = RankingProtocol(ks=(5,), negatives=5, **few)
    first, second = (
        protocol.evaluate(lambda known: known @ weights, interactions, "test", Draws(seed, ("baseline",) * seed))
        for seed in (0, 1)
    )
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"auc"}  # its negatives alone follow the key


def test_users_without_held_out_items_are_skipped():
    rows = [(u, i, "train") for u in range(4) for i in range(4)] + [(0, 9, "test"), (1, 9, "valid")]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "split"]))
    protocol = RankingProtocol(ks=(1,), negatives=0)
    assert len(protocol.users(data, "test")) == 1
    found = protocol.evaluate(lambda known: 1.0 - known, data, "test", Draws(0))
    assert found["hr@1"] == (1.0,)


def test_coverage_is_the_share_of_items_that_anybody_is_shown(interactions):
    scores = torch.arange(float(interactions.num_items))
    found = RankingProtocol(ks=(2, 4), negatives=0).evaluate(
        lambda known: scores.expand_as(known), interactions, "test", Draws(0)
    )
    context = interactions.parts["train"].toarray() + interactions.parts["valid"].toarray()
    for k in (2, 4):
        shown = {item for row in context for item in np.flatnonzero(row == 0)[-k:]}
        assert found[f"coverage@{k}"][0] == pytest.approx(len(shown) / interactions.num_items)


def test_groups_of_users_average_to_everybody(interactions):
    weights = Draws(0).normal(interactions.num_items, interactions.num_items)
    protocol = RankingProtocol(ks=(5,), negatives=0, groups=3)
    found = protocol.evaluate(lambda known: known @ weights, interactions, "test", Draws(0))
    users = protocol.users(interactions, "test")
    lengths = (interactions.lengths("train") + interactions.lengths("valid"))[users]
    groups = group_users(lengths, 3)
    assert len(groups) == 3
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(users)))
    ends = [tuple(map(int, name.strip("[]").split("-"))) for name in groups]
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ends))
    mean = sum(found[f"ndcg@5 {name}"][0] * len(members) for name, members in groups.items()) / len(users)
    assert mean == pytest.approx(found["ndcg@5"][0])
    assert group_users(lengths, 1) == {}
    assert list(group_users(np.full(9, 4), 3)) == ["[4-4]"]


def test_candidates_are_ranked_among_few_sampled_items(interactions):
    weights = Draws(0).normal(interactions.num_items, interactions.num_items)

    def found(candidates):
        protocol = RankingProtocol(ks=(5,), negatives=0, candidates=candidates)
        return protocol.evaluate(lambda known: known @ weights, interactions, "test", Draws(0))["ndcg@5"][0]

    full, few = found(0), found(10)
    assert few > full + 0.1
    assert found(10_000) == pytest.approx(full)  # all free items are candidates


def test_candidates_of_users_with_few_free_items_are_all_of_these():
    rows = [(u, i, "train") for u in range(3) for i in (1, 2)] + [(u, 3 + u, "test") for u in range(3)]
    rows += [(3, i, "train") for i in range(10)]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "split"]))
    scores = torch.arange(10.0, 0.0, -1.0)  # the first item, which all are free to get, is the best

    def found(candidates):
        protocol = RankingProtocol(ks=(1, 3), negatives=0, candidates=candidates)
        return protocol.evaluate(lambda known: scores.expand_as(known), data, "test", Draws(0))

    assert found(8) == found(0)
    assert found(8)["hr@1"] == (0.0,)


def test_coverage_leaves_out_what_is_not_ranked():
    rows = [(u, i, "train") for u in range(2) for i in range(3)] + [(u, 3 + u, "test") for u in range(2)]
    rows += [(2, i, "train") for i in range(5, 15)]
    data = load_interactions(pd.DataFrame(rows, columns=["user", "item", "split"]))
    protocol = RankingProtocol(ks=(10,), negatives=0, candidates=1)
    found = protocol.evaluate(lambda known: torch.zeros_like(known), data, "test", Draws(0))
    assert found["coverage@10"][0] <= 4 / data.num_items  # each of two users ranks one held-out item and one candidate


def test_protocols_are_the_same_on_every_machine(interactions):
    assert "device" not in {field.name for field in fields(RankingProtocol)}
    own = RecsysTask(interactions, protocol=RankingProtocol(ks=(5,)), device="meta")  # where there are no numbers
    seen = []

    def scorer(known):
        seen.append(known.device.type)
        raise KeyboardInterrupt

    for score in (own._validation(), lambda scorer: own.protocol.evaluate(scorer, interactions, "test", Draws(0))):
        with pytest.raises(KeyboardInterrupt):
            score(scorer)
    assert seen == ["meta", "cpu"]


def test_bad_arguments(interactions):
    with pytest.raises(NonFiniteError, match="NaN"):
        user_metrics(torch.full((1, 3), torch.nan), torch.zeros(1, 3), torch.ones(1, 3), torch.ones(3))
    with pytest.raises(ShapeError, match="differ"):
        user_metrics(torch.zeros(1, 3), torch.zeros(1, 4), torch.ones(1, 3), torch.ones(3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ks": ()}, "ks are cut-offs"),
        ({"ks": 10}, "ks are cut-offs"),
        ({"ks": (1.5,)}, "ks are cut-offs"),
        ({"ks": (10, 0)}, "ks are cut-offs"),
        ({"chunk": 0}, "chunk is a whole number of at least 1, got 0"),
        ({"negatives": -1}, "negatives is a whole number of at least 0, got -1"),
        ({"candidates": 1.5}, r"candidates is a whole number of at least 0, got 1\.5"),
        ({"groups": True}, "groups is a whole number"),
        ({"max_users": "a"}, "max_users is a whole number of at least 1, got 'a'"),
    ],
)
def test_protocols_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        RankingProtocol(**wrong)


def test_groups_are_those_of_all_users_whoever_is_drawn():
    data = load_interactions((np.random.default_rng(0).random((40, 25)) < 0.35).astype("f4"))
    protocol = RankingProtocol(ks=(5,), negatives=0, groups=3)

    def names(few):
        own = replace(protocol, max_users=few)
        found = own.evaluate(lambda known: torch.rand_like(known), data, "test", Draws(0))
        return {name for name in found if "[" in name}

    assert all(names(few) <= names(None) for few in range(1, 7))
    assert len(names(None)) == 3


def test_what_is_drawn_does_not_depend_on_how_many_users_are_scored_at_once() -> None:
    data = load_interactions(np.random.default_rng(0).random((40, 60)) < 0.3)
    scores = Draws(5).normal(60)

    def scorer(known: Tensor) -> Tensor:
        return known @ Draws(6).normal(60, 60) + scores

    def found(**options: int) -> dict[str, tuple[float, ...]]:
        protocol = RankingProtocol(ks=(3,), negatives=7, candidates=9, **options)
        return protocol.evaluate(scorer, data, "test", Draws(1), 2)

    expected = found()
    for chunk in (1, 7, 39):
        for name, values in found(chunk=chunk).items():
            assert values == pytest.approx(expected[name], rel=1e-6), name
