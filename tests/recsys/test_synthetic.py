import pytest
import torch

from mmdistill.errors import ConfigError, DataError, ShapeError
from mmdistill.recsys import InteractionPrior, interaction_prior
from mmdistill.recsys.methods import METHODS
from mmdistill.runtime import Draws
from tests.toys import BlobTask


def prior(mode, **options):
    logits = Draws(0).fold("logits").normal(5, 12)
    return InteractionPrior(logits, mode=mode, **options)


def test_mean_field_is_its_formula():
    p = prior("mean-field", interactions_per_user=30, temperature=0.7)
    expected = torch.stack([torch.clamp(30 * torch.softmax(row / 0.7, 0), max=1) for row in p.logits])
    batch = p(Draws(0))
    assert torch.equal(batch.inputs, expected)
    assert batch.targets is batch.inputs
    assert torch.equal(batch.weight, torch.ones(5))


def test_sampled_is_the_clipped_sum_of_its_draws():
    p = prior("sampled", interactions_per_user=7, temperature=0.5)
    key = Draws(3)
    total = torch.zeros(5, 12)
    for j in range(7):
        total += torch.softmax((p.logits + key.fold("gumbel", j).gumbel(5, 12)) / 0.5, 1)
    torch.testing.assert_close(p(key).inputs, total.clamp(max=1))
    assert torch.equal(p(key).inputs, p(key).inputs)
    assert not torch.equal(p(key).inputs, p(Draws(4)).inputs)


def test_the_gradient_through_recomputed_draws_is_exact():
    p = prior("sampled", interactions_per_user=5, temperature=2.0)
    key, cotangent = Draws(1), Draws(2).normal(5, 12)
    (gradient,) = torch.autograd.grad((p(key).inputs * cotangent).sum(), [p.logits])
    logits = p.logits.detach().clone().requires_grad_()
    noise = torch.stack([key.fold("gumbel", j).gumbel(5, 12) for j in range(5)])
    total = ((logits + noise) / 2.0).softmax(2).sum(0).clamp(max=1)
    (expected,) = torch.autograd.grad((total * cotangent).sum(), [logits])
    torch.testing.assert_close(gradient, expected)


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
    mean = sampled.mean_field()
    assert (sampled(Draws(0)).inputs - mean).abs().mean() / mean.mean() < 0.02


def test_clipped_entries_get_no_gradient():
    p = InteractionPrior(torch.tensor([[9.0, 0.0, 0.0]]), interactions_per_user=2, temperature=1.0)
    (gradient,) = torch.autograd.grad(p(Draws(0)).inputs[0, 0], [p.logits])
    assert torch.equal(gradient, torch.zeros(1, 3))


def test_penalty_is_the_relative_mean_mass():
    assert prior("mean-field").penalty(lambda inputs: ()) is None
    p = prior("mean-field", interactions_per_user=3, temperature=50.0, mass_penalty=0.5, real_mass=6.0)
    assert p.penalty(lambda inputs: ()).item() == pytest.approx(0.25)


def test_storage_is_the_logits():
    p = prior("mean-field")
    assert p.stored_numel() == 60
    assert p.stored_bytes() == 240
    assert set(p.groups()) == {"codes"}


def test_bad_arguments(task):
    with pytest.raises(ShapeError, match="users, items"):
        InteractionPrior(torch.ones(3))
    with pytest.raises(ConfigError, match="positive"):
        prior("sampled", temperature=0.0)
    with pytest.raises(ConfigError, match="positive"):
        prior("sampled", interactions_per_user=0)
    with pytest.raises(ConfigError, match="'mean-field'"):
        prior("exact")
    settings = METHODS["distill-cf-meanfield"].settings(3)
    build = interaction_prior("mean-field")
    with pytest.raises(DataError, match="241 synthetic users"):
        build(task, 241, settings, "fixed", Draws(0))
    with pytest.raises(ConfigError, match="labels"):
        build(task, 3, settings, "learned", Draws(0))
    with pytest.raises(ConfigError, match="needs user-item interactions"):
        build(BlobTask(), 3, settings, "fixed", Draws(0))


def test_starts_from_real_users(task):
    settings = METHODS["distill-cf"].settings(3)
    p = interaction_prior("sampled", scale=2.0)(task, 5, settings, "fixed", Draws(0))
    real = task.data.rows(range(task.data.num_users))
    assert all(any(torch.equal(row / 2, user) for user in real) for row in p.logits)
