from dataclasses import replace

import numpy as np
import pytest
import torch

from mmdistill.errors import ConfigError, DataError, ShapeError
from mmdistill.recsys import (
    BinaryInteractions,
    ExpectedInteractions,
    MeanFieldInteractions,
    RecsysTask,
    SampledInteractions,
    binary_interactions,
    expected_interactions,
    load_interactions,
    mean_field_interactions,
    sampled_interactions,
    synthetic,
)
from mmdistill.recsys.methods import METHODS
from mmdistill.recsys.storage import binary_ratio, pooled_rows
from mmdistill.runtime import Draws
from tests.toys import BlobTask

KINDS = {"sampled": SampledInteractions, "mean-field": MeanFieldInteractions, "binary": BinaryInteractions}


def prior(kind, **options):
    return KINDS[kind](Draws(0).fold("logits").normal(5, 12), **options)


def test_mean_field_is_its_formula():
    p = prior("mean-field", interactions_per_user=30, temperature=0.7)
    expected = torch.stack([torch.clamp(30 * torch.softmax(row / 0.7, 0), max=1) for row in p.logits])
    batch = p(Draws(0))
    assert torch.equal(batch.inputs, expected)
    assert batch.targets is batch.inputs
    assert torch.equal(batch.weight, torch.ones(5))


def draws_of(logits, key, count, temperature):
    noise = key.fold("gumbel", 0).gumbel(count, *logits.shape)
    return ((logits + noise) / temperature).softmax(2)


def test_sampled_is_the_clipped_sum_of_its_draws():
    p = prior("sampled", interactions_per_user=7, temperature=0.5)
    key = Draws(3)
    expected = sum(draws_of(p.logits.detach(), key, 7, 0.5)[j] for j in range(7)).clamp(max=1)
    torch.testing.assert_close(p(key).inputs.detach(), expected)
    assert torch.equal(p(key).inputs, p(key).inputs)
    assert not torch.equal(p(key).inputs, p(Draws(4)).inputs)


def test_the_gradient_of_sampled_rows_is_that_of_autograd():
    p = prior("sampled", interactions_per_user=5, temperature=2.0)
    key, cotangent = Draws(1), Draws(2).normal(5, 12)
    (gradient,) = torch.autograd.grad((p(key).inputs * cotangent).sum(), [p.logits])
    logits = p.logits.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((draws_of(logits, key, 5, 2.0).sum(0).clamp(max=1) * cotangent).sum(), [logits])
    torch.testing.assert_close(gradient, expected)


def test_draws_made_in_parts_and_made_again_change_nothing(monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK_NUMBERS", 2 * 60)
    found, made, draw = {}, [], synthetic._draw
    monkeypatch.setattr(synthetic, "_draw", lambda *options: made.append(kept) or draw(*options))
    for kept in (0, 130, 10**9):  # none, the first part, all
        monkeypatch.setattr(synthetic, "KEPT_NUMBERS", kept)
        p = prior("sampled", interactions_per_user=5, temperature=0.7)
        rows = p(Draws(1)).inputs
        found[kept] = rows.detach(), torch.autograd.grad(rows.square().sum(), [p.logits])[0]
    assert [made.count(kept) for kept in found] == [6, 5, 3]
    for rows, gradient in found.values():
        torch.testing.assert_close(rows, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])
    noise = torch.cat([Draws(1).fold("gumbel", part).gumbel(n, 5, 12) for part, n in enumerate((2, 2, 1))])
    logits = p.logits.detach().clone().requires_grad_()
    rows = ((logits + noise) / 0.7).softmax(2).sum(0).clamp(max=1)
    torch.testing.assert_close(found[0][1], torch.autograd.grad(rows.square().sum(), [logits])[0])


def test_binary_rows_are_the_largest_logits_and_gradients_pass_straight_through():
    p = prior("binary", interactions_per_user=4)
    rows = p(Draws(0)).inputs
    for logits, row in zip(p.logits.detach(), rows.detach(), strict=True):
        assert sorted(row.nonzero().flatten().tolist()) == sorted(logits.argsort(descending=True)[:4].tolist())
    cotangent = Draws(2).normal(5, 12)
    assert torch.equal(torch.autograd.grad((rows * cotangent).sum(), [p.logits])[0], cotangent)
    assert p.stored_bytes() == 20  # of 12 items one byte names any
    with pytest.raises(ConfigError, match="13 interactions per user exceed the 12 items"):
        prior("binary", interactions_per_user=13)


@pytest.mark.parametrize("mode", ["sampled", "mean-field"])
def test_rows_are_fractions_of_bounded_mass(mode):
    p = prior(mode, interactions_per_user=6, temperature=0.3)
    x = p(Draws(0)).inputs
    assert (x >= 0).all()
    assert (x <= 1).all()
    assert (x.sum(1) <= 6 + 1e-4).all()
    flat = prior(mode, interactions_per_user=3, temperature=50.0)(Draws(0)).inputs
    torch.testing.assert_close(flat.sum(1), torch.full((5,), 3.0))  # nothing is clipped, so the mass is gamma


def test_samples_approach_the_mean_field_at_high_temperature():
    sampled = prior("sampled", interactions_per_user=300, temperature=10.0)
    mean = prior("mean-field", interactions_per_user=300, temperature=10.0)(Draws(0)).inputs
    assert (sampled(Draws(0)).inputs - mean).abs().mean() / mean.mean() < 0.02


def test_clipped_entries_get_no_gradient():
    p = MeanFieldInteractions(torch.tensor([[9.0, 0.0, 0.0]]), interactions_per_user=2, temperature=1.0)
    (gradient,) = torch.autograd.grad(p(Draws(0)).inputs[0, 0], [p.logits])
    assert torch.equal(gradient, torch.zeros(1, 3))


def test_penalty_is_the_relative_mean_mass():
    assert prior("mean-field").penalty(lambda inputs: (), torch.empty(0)) is None
    p = prior("mean-field", interactions_per_user=3, temperature=50.0, mass_penalty=0.5, real_mass=6.0)
    assert p.penalty(lambda inputs: (), torch.empty(0)).item() == pytest.approx(0.25)
    sampled = prior("sampled", interactions_per_user=7, temperature=0.5, mass_penalty=0.5, real_mass=6.0)
    mean_field = prior("mean-field", interactions_per_user=7, temperature=0.5)(Draws(0)).inputs
    expected = 0.5 * mean_field.detach().sum(1).mean().item() / 6
    assert sampled.penalty(lambda inputs: (), torch.empty(0)).item() == pytest.approx(expected)


def test_chances_are_given_back_but_for_the_rarest_and_every_one_gets_a_gradient():
    chances = torch.tensor([[0.0, 0.001, 0.5], [1.0, 0.2, 0.3]], dtype=torch.float64)
    p = ExpectedInteractions.of(chances)
    rows = p(Draws(0)).inputs
    rarest = 0.03 * 2.001 / 6
    torch.testing.assert_close(rows, torch.tensor([[rarest, rarest, 0.5], [0.999, 0.2, 0.3]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(rows.sum(), [p.logits])
    torch.testing.assert_close(gradient, rows * (1 - rows))
    assert p.stored_bytes() == 48


def test_chances_start_from_cluster_means_or_from_the_users_that_are_chosen(task):
    settings = METHODS["distill-cf-clusters"].settings(6)

    def start(**changes):
        return expected_interactions()(task, 6, replace(settings, **changes), "hard", Draws(0))(Draws(0)).inputs

    means = task.selection("clusters", torch.tensor([6]), Draws(0).fold("clusters")).inputs
    torch.testing.assert_close(start(), means.clamp(0.03 * float(means.mean()), 0.999))
    scaled = means * (5 / float(means.sum(1).mean()))
    torch.testing.assert_close(start(interactions_per_user=5), scaled.clamp(0.03 * float(scaled.mean()), 0.999))
    herded = start(init="herding")
    real = task.data.rows(range(task.data.num_users))
    assert all(((row > 0.5).float() == real).all(1).any() for row in herded)
    noise = expected_interactions()(task, 6, replace(settings, init="noise"), "hard", Draws(0)).logits.detach()
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_storage_is_the_logits():
    p = prior("mean-field")
    assert p.stored_bytes() == 240
    assert set(p.groups()) == {"codes"}


def test_bad_arguments(task):
    with pytest.raises(ShapeError, match="users, items"):
        MeanFieldInteractions(torch.ones(3))
    with pytest.raises(ConfigError, match="positive"):
        prior("sampled", temperature=0.0)
    with pytest.raises(ConfigError, match="at least one interaction"):
        prior("sampled", interactions_per_user=0)
    settings = METHODS["distill-cf-meanfield"].settings(3)
    build = mean_field_interactions()
    said = r"241 synthetic users were .* has 240 real ones; lower --users \(users=240 in Python\)"
    with pytest.raises(DataError, match=said):
        build(task, 241, settings, "hard", Draws(0))
    assert len(build(task, 240, settings, "hard", Draws(0))(Draws(0)).weight) == 240
    with pytest.raises(ConfigError, match="labels"):
        build(task, 3, settings, "unrestricted", Draws(0))
    with pytest.raises(ConfigError, match="needs user-item interactions"):
        build(BlobTask(), 3, settings, "hard", Draws(0))
    many = replace(settings, interactions_per_user=81)
    with pytest.raises(ConfigError, match=r"81 interactions per user were asked for, but .* has 80 items"):
        binary_interactions()(task, 3, many, "hard", Draws(0))
    every = binary_interactions()(task, 3, replace(many, interactions_per_user=80), "hard", Draws(0))
    assert every.interactions_per_user == 80


@pytest.mark.parametrize("storage", [sampled_interactions, mean_field_interactions, binary_interactions])
def test_the_settings_say_how_many_interactions_a_user_has(task, storage):
    settings = replace(METHODS["distill-cf-meanfield"].settings(3), interactions_per_user=9)
    assert storage()(task, 3, settings, "hard", Draws(0)).interactions_per_user == 9
    rows = binary_interactions()(task, 3, settings, "hard", Draws(0))(Draws(0)).inputs
    assert rows.sum(1).tolist() == [9, 9, 9]


def test_starts_from_real_users(task):
    settings = METHODS["distill-cf"].settings(3)
    p = sampled_interactions()(task, 5, settings, "hard", Draws(0))
    real = task.data.rows(range(task.data.num_users))
    assert all(any(torch.equal(row, user) for user in real) for row in p.logits)


@pytest.fixture(scope="module")
def alike():
    """A task of users with seven training interactions each, among 120 items."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((60, 120), dtype=np.float32)
    for row in matrix:
        row[rng.choice(120, 10, replace=False)] = 1
    task = RecsysTask(load_interactions(matrix))
    assert set(task.data.lengths("train")) == {7}
    return task


def test_users_have_a_multiple_of_the_mean_rows_interactions_up_to_a_quarter_of_the_items(alike):
    settings = METHODS["distill-cf"].settings(5)

    def built(storage, **changes):
        return storage(alike, 5, replace(settings, **changes), "hard", Draws(0))

    items = alike.data.num_items
    assert built(mean_field_interactions()).interactions_per_user == round(1.5 * 7)
    assert built(sampled_interactions(interactions_per_user=12)).interactions_per_user == 12
    assert built(sampled_interactions(interactions_per_user=100)).interactions_per_user == items // 4
    assert built(sampled_interactions(interactions_per_user=12), interactions_per_user=100).interactions_per_user == 100
    assert built(binary_interactions()).interactions_per_user == round(3.5 * 7)
    assert (binary_ratio(299), binary_ratio(300)) == (3.5, 5.3)
    sparse = np.zeros((400, 400), dtype=np.float32)  # 3 of 400 items, where defaults take a real user to have 14
    for user, row in enumerate(sparse):
        row[[user, (user + 1) % 400, (user + 2) % 400]] = 1
    log = RecsysTask(load_interactions({"train": sparse, "test": np.roll(sparse, 3, axis=1)}))
    for storage, expected in ((mean_field_interactions(), 21), (binary_interactions(), 49)):
        assert storage(log, 5, settings, "hard", Draws(0)).interactions_per_user == expected
    heavy = built(sampled_interactions(mass_penalty=0.5))
    assert (heavy.mass_penalty, heavy.real_mass) == (0.5, 7)


def test_binary_users_start_from_the_mean_of_their_own_and_random_rows(alike):
    rows = alike.select(torch.arange(20)).inputs
    assert torch.equal(pooled_rows(alike, rows, 7, 7.0, Draws(0)), rows)
    pooled = pooled_rows(alike, rows, 21, 7.0, Draws(0))
    counts = 6 * pooled  # of six users, with 42 interactions in all
    torch.testing.assert_close(counts, counts.round())
    torch.testing.assert_close(pooled.sum(1), torch.full((20,), 7.0))
    others = counts.round() - rows
    torch.testing.assert_close(others.sum(1), torch.full((20,), 5 * 7.0))
    assert others.min() == 0
    assert others.max() < 5  # the five others are not all the same
    start = binary_interactions()(alike, 5, METHODS["distill-cf"].settings(5), "hard", Draws(0)).logits.detach()
    counts = (7 * start).floor()  # 24 items a user are those of seven real ones
    assert counts.sum(1).tolist() == [7 * 7] * 5
    assert ((counts > 0) & (counts < 7)).any(1).all()
    ties = start - counts / 7
    assert len(ties.unique()) > 300
    assert ties.max() < 0.0011
