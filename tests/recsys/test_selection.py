import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from mmdistill.abilities import Selects
from mmdistill.errors import ConfigError, DataError
from mmdistill.evaluate import evaluate
from mmdistill.recsys import RecsysTask, load_interactions
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.metrics import sample_negatives
from mmdistill.recsys.privacy import nearness
from mmdistill.recsys.selection import PROXY_NEGATIVES, SELECTIONS, cluster_means, embed_users, proxy_auc, select_users
from mmdistill.runtime import Draws
from mmdistill.task import Batch


def points(data):
    return lambda: embed_users(data.parts["train"], 16)


def test_users_are_embedded_once_for_all_selections(interactions, monkeypatch):
    made = []
    monkeypatch.setattr("mmdistill.recsys.task.embed_users", lambda *given: made.append(1) or embed_users(*given))
    task = RecsysTask(interactions)
    first = task.embedding()
    for kind in SELECTIONS:
        task.selection(kind, torch.tensor([5]), Draws(0))
    for other in (task, copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert torch.equal(other.embedding(), first)
    assert len(made) == 1


def test_users_are_as_near_as_the_cosine_of_their_rows():
    rows = np.tile(np.tri(4, 9, dtype=np.float32), (2, 1))  # of rank 4, which the decomposition holds whole
    found = embed_users(sparse.csr_array(rows), 7)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, unit @ unit.T, atol=1e-5)


def test_head_users_have_the_most_interactions(interactions):
    rows = select_users(interactions, "head", 7, points(interactions), Draws(0))
    lengths = np.sort(interactions.lengths("train"))[::-1]
    assert rows.sum(1).tolist() == lengths[:7].tolist()


def test_cluster_means_are_means_of_a_partition(interactions):
    rows = cluster_means(interactions, 5, points(interactions)(), Draws(0))
    train = interactions.parts["train"].toarray()
    assert rows.shape == (5, interactions.num_items)
    assert ((rows >= 0) & (rows <= 1)).all()
    # some sizes n_c of a partition give n_c-weighted means that add up to all interactions
    sizes = np.linalg.lstsq(rows.numpy().T.astype(np.float64), train.sum(0), rcond=None)[0]
    np.testing.assert_allclose(sizes, np.round(sizes), atol=1e-2)
    assert round(sizes.sum()) == interactions.num_users
    assert not torch.equal(rows, cluster_means(interactions, 5, points(interactions)(), Draws(1)))


def test_clusters_of_copies_of_users_are_not_empty():
    matrix = np.repeat(np.eye(3, 9, dtype=np.float32) + np.eye(3, 9, 4, dtype=np.float32), 4, axis=0)
    data = load_interactions({"train": matrix, "test": np.roll(matrix, 1, axis=1)})
    rows = cluster_means(data, 8, points(data)(), Draws(0))
    known = data.parts["train"].toarray().tolist()
    assert all(row in known for row in rows.tolist())


def test_the_proxy_finds_users_of_random_taste_hard(interactions):
    auc = proxy_auc(interactions, Draws(0), dimensions=4)
    assert auc.shape == (interactions.num_users,)
    assert 0.5 < np.median(auc) <= 1
    hard = select_users(interactions, "svp", 10, points(interactions), Draws(0))
    chosen = np.argsort(proxy_auc(interactions, Draws(0)), kind="stable")[:10]
    assert torch.equal(hard, interactions.rows(chosen))


def test_the_proxys_auc_is_that_of_pairs(interactions, monkeypatch):
    monkeypatch.setattr("mmdistill.recsys.selection.PROXY_NEGATIVES", 10 * interactions.num_items)
    auc = proxy_auc(interactions, Draws(0), dimensions=3)
    train = interactions.parts["train"]
    svd = TruncatedSVD(3, random_state=0)
    scores = svd.fit_transform(train) @ svd.components_
    for user in range(interactions.num_users):
        own = train[user].toarray()[0] > 0
        if own.all() or not own.any():
            continue
        others = [scores[user, item] for item in np.flatnonzero(~own)]
        wanted = np.mean([np.mean([score > other for other in others]) for score in scores[user, own]])
        assert auc[user] == pytest.approx(wanted, abs=1e-6)


def test_the_proxys_auc_is_that_of_all_scores(interactions, monkeypatch):
    """Some users have no item and some have all, and users and pairs come in several portions."""
    train = interactions.parts["train"].toarray()
    train[[0, 7]], train[[1, 9]] = 0, 1
    data = replace(interactions, parts={**interactions.parts, "train": sparse.csr_array(train)})
    monkeypatch.setattr("mmdistill.recsys.selection.CHUNK_NUMBERS", 50 * data.num_items)
    svd = TruncatedSVD(4, random_state=0)
    users = torch.from_numpy(svd.fit_transform(data.parts["train"]).astype(np.float32))
    scores = users @ torch.from_numpy(svd.components_.astype(np.float32))
    wanted = []
    for start in range(0, data.num_users, 50):
        rows = data.rows(range(start, min(start + 50, data.num_users)))
        negatives = sample_negatives(rows, PROXY_NEGATIVES, Draws(3).fold("proxy", start))
        for user, own, drawn in zip(range(start, data.num_users), rows > 0, negatives, strict=False):
            others = scores[user, drawn[drawn >= 0]]
            beaten = (scores[user, own][:, None] > others).double()
            wanted.append(float(beaten.mean()) if beaten.numel() else 0.0)
    assert {wanted[user] for user in (0, 7, 1, 9)} == {0.0}
    np.testing.assert_allclose(proxy_auc(data, Draws(3), dimensions=4), wanted, atol=1e-12)


def test_selections_stand_beside_a_result(task):
    assert isinstance(task, Selects)
    batch = task.select(torch.arange(8))
    with pytest.raises(ConfigError, match="unknown baseline 'hed'; did you mean 'head'"):
        evaluate(task, batch, n=1, baselines=("hed",))
    rows = {kind: task.selection(kind, torch.tensor([8]), Draws(0)).inputs for kind in SELECTIONS}
    assert all(found.shape == (8, task.data.num_items) for found in rows.values())
    with pytest.raises(DataError, match="241 users were asked for"):
        task.selection("head", torch.tensor([241]), Draws(0))


def test_nearness_finds_copies_and_the_nearest_user(interactions):
    real = interactions.rows(range(interactions.num_users))
    copied = real[[3, 50]]
    weighted = 0.5 * real[7:8] + 1e-4
    rows = torch.cat([copied, weighted, torch.ones(1, interactions.num_items)])
    near = nearness(interactions, rows, compared=40)
    cosine = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(real).T
    np.testing.assert_allclose(near.cosine, cosine.max(1).values, rtol=1e-5)
    assert near.cosine[:2] == pytest.approx([1, 1])
    assert near.user[2] == 7
    assert near.copies.tolist() == [True, True, False, False]
    among = torch.nn.functional.normalize(real) @ torch.nn.functional.normalize(real).T
    among.fill_diagonal_(-1)
    drawn = Draws(0).fold("nearness").permutation(interactions.num_users)[:40]
    np.testing.assert_allclose(near.among_real, among.max(0).values[drawn], rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 20_000_000])
def test_a_copy_is_named_though_another_user_is_nearer_by_weight(monkeypatch, chunk):
    users = sparse.csr_array(np.array([[0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1]], dtype=np.float32))
    parts = {"train": users, "valid": users[:, :], "test": users[:, :]}
    data = Interactions("few", parts, np.arange(4), np.arange(4), {})
    row = torch.tensor([[1.0, 1, 0.49, 0]])  # two items by mass, those of user 2; its cosine to user 1 is larger
    monkeypatch.setattr("mmdistill.recsys.privacy.CHUNK_NUMBERS", chunk)
    near = nearness(data, row)
    assert (near.user.tolist(), near.copies.tolist()) == ([2], [True])
    assert near.cosine == pytest.approx([2 / (2 * (2 + 0.49**2)) ** 0.5])


def test_nearness_does_not_depend_on_the_chunk(interactions, monkeypatch):
    rows = Draws(0).uniform(4, interactions.num_items)
    whole = nearness(interactions, rows, compared=30)
    monkeypatch.setattr("mmdistill.recsys.privacy.CHUNK_NUMBERS", 34 * 17)
    parts = nearness(interactions, rows, compared=30)
    for name in ("cosine", "user", "copies", "among_real"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_baselines_of_interactions_are_judged(task):
    from mmdistill.distill import distill

    found = distill(task, "distill-cf-binary", users=6, settings={"steps": 4, "validate_every": 2})
    result = evaluate(task, found, n=1, baselines=("random", *SELECTIONS))
    assert set(result.baselines) == {"random", *SELECTIONS}
    assert isinstance(task.selection("clusters", torch.tensor([6]), Draws(0)), Batch)
