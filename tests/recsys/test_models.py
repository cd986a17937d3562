import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from mmdistill.errors import ConfigError, NonFiniteError, ShapeError, UnsupportedError
from mmdistill.objectives.base import Network
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import (
    KernelRidgeMatching,
    LinearKernel,
    RidgeSystem,
    multinomial,
    without_diagonal,
)
from mmdistill.recsys import RankingProtocol, models, recsys_task
from mmdistill.recsys.factorisation import Factorisation, heaviest
from mmdistill.recsys.models import Ease, InfiniteAutoencoder, Popularity
from mmdistill.runtime import Draws
from mmdistill.task import Batch
from tests.oracles import recsys as oracle
from tests.oracles.kernels import wide_relu
from tests.recsys.conftest import taste_matrix


def rows(users, items, name="rows"):
    return (Draws(0).fold(name).uniform(users, items) < 0.4).float()


@pytest.mark.parametrize("depth", [1, 2])
def test_infinite_autoencoder_equals_the_oracle(depth):
    x, context = rows(6, 9), rows(4, 9, "context")
    model = InfiniteAutoencoder(x.double(), FullyConnectedKernel(depth=depth), chunk=4)
    got = model.scorer(5.0)(context.double())

    def kernel(a, b):
        return wide_relu(a, b, depth, math.sqrt(2), 0.1)[1]

    expected = oracle.wide_autoencoder(x.double().numpy(), context.double().numpy(), 5.0, kernel)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)
    single = InfiniteAutoencoder(x, FullyConnectedKernel(depth=depth)).scorer(5.0)(context)
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("users", [30, 6])
def test_ease_equals_regressing_each_item_on_the_others(users):
    x, context = rows(users, 9), rows(4, 9, "context")
    model = Ease(x)
    assert model.dual == (users < 9)
    expected = context.numpy() @ oracle.ease(x.double().numpy(), 2.0)
    np.testing.assert_allclose(model.scorer(2.0)(context).numpy(), expected, atol=1e-5)


def test_ease_from_its_gram_matrix():
    x, context = rows(30, 9), rows(4, 9, "context")
    np.testing.assert_allclose(
        Ease(gram=x.T @ x).scorer(3.0)(context).numpy(), Ease(x).scorer(3.0)(context).numpy(), atol=1e-6
    )
    with pytest.raises(ConfigError, match="either"):
        Ease()


def test_popularity_is_the_same_for_everybody():
    scores = Popularity(torch.tensor([3.0, 1.0, 2.0])).scorer(0.0)(torch.eye(3))
    assert torch.equal(scores, torch.tensor([[3.0, 1.0, 2.0]] * 3))
    scores[0, 0] = -torch.inf  # each user's scores are its own
    assert torch.equal(scores[1:], torch.tensor([[3.0, 1.0, 2.0]] * 2))


def on_validation(data):
    return lambda scorers: RankingProtocol(ks=(5,)).ndcg(scorers, data, "valid")


def one_by_one(model, ridges, protocol, data):
    """Each ridge's score where all metrics of its own scorer are computed, 0 where it cannot be solved or ranked."""
    found = {}
    for ridge in ridges:
        try:
            found[ridge] = protocol.evaluate(model.scorer(ridge), data, "valid", Draws(0))["ndcg@5"][0]
        except NonFiniteError:
            found[ridge] = 0.0
    return found


@pytest.mark.parametrize("kind", ["inf-ae", "ease of few", "ease of many"])
@pytest.mark.parametrize("together", [1, 2, 9])
def test_ridges_validated_together_score_as_each_alone(interactions, monkeypatch, kind, together):
    x = interactions.rows(range(100 if kind == "ease of many" else 12))
    monkeypatch.setattr(models, "FITTED_NUMBERS", together * x.numel() + 1)
    model = InfiniteAutoencoder(x) if kind == "inf-ae" else Ease(x)
    assert model.together == (1 if kind == "ease of many" else together)
    ridges, features, seen = (-1e9, *model.ridges[:5]), model.features, []
    monkeypatch.setattr(model, "features", lambda known: (seen.append(len(known)), features(known))[1])
    protocol = RankingProtocol(ks=(5,), negatives=0, candidates=30, chunk=50, max_users=120)
    found = model.validate(ridges, lambda scorers: protocol.ndcg(scorers, interactions, "valid"))
    assert len(seen) == 3 * -(-len(ridges) // model.together)
    assert found == one_by_one(model, ridges, protocol, interactions)
    assert found[-1e9] == 0
    assert len(set(found.values())) > 2


def test_a_score_that_is_nan_makes_its_recommender_the_worst_and_no_other(interactions):
    def scorer(known):
        return known + torch.linspace(0, 0.5, interactions.num_items)

    def scorers(known):
        broken = scorer(known)
        broken[0, -1] = math.nan
        return scorer(known), broken

    protocol = RankingProtocol(ks=(5, 20), negatives=0, chunk=50)
    expected = protocol.evaluate(scorer, interactions, "valid", Draws(0))["ndcg@5"][0]
    assert protocol.ndcg(scorers, interactions, "valid") == [expected, 0.0]
    assert protocol.ndcg(lambda known: [], interactions, "valid") == []


def test_the_ridge_is_picked_on_validation_not_on_test(interactions):
    train, valid = interactions.parts["train"], interactions.parts["valid"]
    model = Ease(gram=torch.tensor((train.T @ train).toarray()))
    scores = model.validate(model.ridges, on_validation(interactions))
    best = model.pick(on_validation(interactions))
    assert best == max(scores, key=scores.__getitem__)
    assert len(set(scores.values())) > 1
    reversed_test = interactions.parts["test"][::-1]
    other_test = replace(interactions, parts={**interactions.parts, "test": reversed_test})
    assert model.validate(model.ridges, on_validation(other_test)) == scores
    assert model.pick(on_validation(other_test)) == best
    other_valid = replace(interactions, parts={**interactions.parts, "valid": valid[::-1]})
    assert model.validate([best], on_validation(other_valid))[best] != scores[best]


def test_without_validation_a_learned_ridge_or_the_middle_one_is_taken(interactions):
    model = Ease(rows(6, 9), ridges=(1.0, 5.0, 20.0))
    assert model.pick(None) == 5.0
    assert model.pick(None, (3.0,)) == 3.0


def test_equal_users_need_a_ridge(interactions):
    x = rows(1, interactions.num_items).repeat(3, 1)
    model = InfiniteAutoencoder(x, ridges=(0.0, 1.0))
    with pytest.raises(NonFiniteError, match="larger ridge"):
        model.scorer(-0.1)
    assert torch.isfinite(model.scorer(1.0)(x)).all()
    assert model.validate([-0.1], on_validation(interactions)) == {-0.1: 0}


def test_systems_too_large_to_solve_are_refused(monkeypatch):
    monkeypatch.setattr(models, "MAX_EXACT", 10)
    with pytest.raises(UnsupportedError, match="at most 10 are solved; judge the whole"):
        InfiniteAutoencoder(rows(11, 12))
    with pytest.raises(UnsupportedError, match="at most 10 are solved"):
        Ease(rows(20, 12))
    assert Ease(rows(5, 12)).dual


def test_ease_as_inner_model_equals_the_judge_and_the_oracle(interactions):
    syn, real = rows(6, 9).double(), rows(4, 9, "context").double()
    ridge = torch.tensor(2.0).double()
    system = RidgeSystem(real @ syn.T, syn @ syn.T, syn, ridge, "absolute", real, syn)
    found = without_diagonal(system)
    expected = real.numpy() @ oracle.ease(syn.numpy(), 2.0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(Ease(syn).scorer(2.0)(real).numpy(), expected, atol=1e-5)
    with pytest.raises(ShapeError, match="as wide as the targets"):
        without_diagonal(system._replace(targets=syn[:, :5]))


def test_matching_with_ease_has_the_gradient_of_finite_differences():
    matrix = (rows(30, 10, "task") + torch.eye(10).repeat(3, 1)).clamp(max=1).numpy()
    matrix[:, :3] = 1
    task = recsys_task(matrix)
    real = task.sample_real(Draws(0), None, 5)
    batch = Batch(real.inputs.double(), real.targets.double(), real.weight.double())
    network = Network(task, task.init(Draws(0)))
    objective = KernelRidgeMatching(LinearKernel(), 3.0, "absolute", loss=multinomial, readout=without_diagonal)
    x = (0.2 + 0.6 * Draws(0).uniform(4, task.data.num_items)).double().requires_grad_()

    def loss(values):
        return objective(network, Batch(values, values, torch.ones(4).double()), batch, Draws(0))

    with torch.no_grad():
        scores = torch.from_numpy(real.inputs.double().numpy() @ oracle.ease(x.numpy(), 3.0))
        torch.testing.assert_close(loss(x), multinomial(scores, batch.targets, batch.weight))
    assert torch.autograd.gradcheck(loss, (x,))


def test_heaviest_items_of_weighted_rows():
    weighted = torch.tensor([[0.9, 0.1, 0.8, 0.4], [0.1, 0.2, 0.0, 0.1], [1.0, 0.0, 1.0, 1.0]])
    assert heaviest(weighted).toarray().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1]]


def test_factorisation_folds_users_in(interactions):
    implicit = pytest.importorskip("implicit.cpu.als")
    liked = taste_matrix()
    train = sparse.csr_array(liked)
    model = Factorisation(train, seed=1, factors=8, ridges=(5.0,))
    assert model.pick(on_validation(interactions)) == 5.0
    score = model.scorer(5.0)
    known = torch.from_numpy(liked[:20])
    found = score(known)
    als = implicit.AlternatingLeastSquares(
        factors=8, regularization=5.0, iterations=15, random_state=1, num_threads=1, dtype=np.float32
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # implicit's advice on OpenBLAS' threads
        als.fit(1.5 * sparse.csr_matrix(train), show_progress=False)
    # the fold-in is ridge regression with weights 1 + alpha * x, given the items' factors
    items = als.item_factors.astype(np.float64)
    for row, scores in zip(liked, found, strict=False):
        weighted = items.T * (1 + 0.5 * row)
        user = np.linalg.solve(weighted @ items + 5.0 * np.eye(8), weighted @ row)
        np.testing.assert_allclose(scores.numpy(), items @ user, atol=1e-4)
    empty = score(torch.zeros(2, interactions.num_items))
    assert torch.equal(empty, torch.zeros_like(empty))


def test_without_implicit_the_error_says_what_to_install(monkeypatch, interactions):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("mmdistill.recsys.factorisation.import_module", missing)
    with pytest.raises(UnsupportedError, match=r'pip install "mmdistill\[recsys\]"'):
        Factorisation(interactions.parts["train"])


def test_the_judge_of_whole_data_refuses_before_it_allocates(monkeypatch, task):
    monkeypatch.setattr(models, "MAX_EXACT", 10)
    monkeypatch.setattr(type(task.data), "rows", None)
    for judge in ("inf-ae", "ease"):
        with pytest.raises(UnsupportedError, match="at most 10 are solved"):
            task.judge(None, judge)
