import math

import numpy as np
import pytest
import torch

from mmdistill.errors import ConfigError, NonFiniteError, UnsupportedError
from mmdistill.objectives.kernels import FullyConnectedKernel
from mmdistill.recsys import RankingProtocol, models
from mmdistill.recsys.models import Ease, InfiniteAutoencoder, Popularity
from mmdistill.runtime import Draws
from tests.oracles import recsys as oracle
from tests.oracles.kernels import wide_relu


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


def test_the_ridge_is_picked_on_validation_not_on_test(interactions):
    protocol = RankingProtocol(ks=(5,), negatives=0)
    model = Ease(gram=torch.tensor((interactions.parts["train"].T @ interactions.parts["train"]).toarray()))
    scores = {ridge: model.validate(ridge, interactions, protocol, Draws(0)) for ridge in model.ridges}
    assert model.pick(interactions, protocol, Draws(0)) == max(scores, key=scores.__getitem__)


def test_equal_users_need_a_ridge(interactions):
    x = rows(1, interactions.num_items).repeat(3, 1)
    model = InfiniteAutoencoder(x, ridges=(0.0, 1.0))
    with pytest.raises(NonFiniteError, match="larger ridge"):
        model.scorer(-0.1)
    assert torch.isfinite(model.scorer(1.0)(x)).all()
    assert model.validate(-0.1, interactions, RankingProtocol(ks=(5,), negatives=0), Draws(0)) == 0


def test_systems_too_large_to_solve_are_refused(monkeypatch):
    monkeypatch.setattr(models, "MAX_EXACT", 10)
    with pytest.raises(UnsupportedError, match="judge with 'ease'"):
        InfiniteAutoencoder(rows(11, 12))
    with pytest.raises(UnsupportedError, match="at most 10"):
        Ease(rows(20, 12))
    assert Ease(rows(5, 12)).dual
