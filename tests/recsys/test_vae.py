from dataclasses import replace

import pytest
import torch

from mmdistill.errors import ConfigError, NonFiniteError
from mmdistill.recsys.vae import MultVae, TrainedAutoencoder, VaeProtocol, initialise
from mmdistill.runtime import Draws

SMALL = VaeProtocol(hidden=12, latent=4, steps=40, batch=16, checks=4, epochs=1, lr=1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.75])
def test_loss_is_its_formula(dropout):
    protocol = VaeProtocol(hidden=5, latent=3, dropout=dropout)
    network = initialise(MultVae(7, protocol), Draws(0)).double()
    rows = (Draws(1).uniform(4, 7) < 0.5).double()
    rows[:, 0] = 1
    key, total = Draws(2), 0.0
    noise = key.fold("code").normal(4, 3).double()
    kept = (key.fold("dropout").uniform(4, 7) >= dropout).double() / (1 - dropout)
    w = {name: p.detach() for name, p in network.named_parameters()}
    for row, e, mask in zip(rows, noise, kept, strict=True):
        h = torch.tanh(w["encoder.weight"] @ (row / row.norm() * mask) + w["encoder.bias"])
        code = w["code.weight"] @ h + w["code.bias"]
        mean, log_variance = code[:3], code[3:]
        z = mean + e * torch.exp(log_variance / 2)
        hidden = torch.tanh(w["decoder.0.weight"] @ z + w["decoder.0.bias"])
        logits = w["output.weight"] @ hidden + w["output.bias"]
        likelihood = sum(row[i] * (logits[i] - logits.exp().sum().log()) for i in range(7))
        divergence = 0.5 * sum(mean[j] ** 2 + log_variance[j].exp() - 1 - log_variance[j] for j in range(3))
        total += float(-likelihood + 0.3 * divergence) / 4
    assert network.loss(rows, 0.3, key).item() == pytest.approx(total, rel=1e-5)


def test_scores_are_of_the_mean_code_of_unit_rows():
    network = initialise(MultVae(7, VaeProtocol(hidden=5, latent=3)), Draws(0)).double()
    rows = (Draws(1).uniform(4, 7) < 0.5).double()
    rows[:, 0] = 1
    w = dict(network.named_parameters())
    hidden = torch.tanh(rows / rows.norm(dim=1, keepdim=True) @ w["encoder.weight"].T + w["encoder.bias"])
    code = (hidden @ w["code.weight"].T + w["code.bias"])[:, :3]
    decoded = torch.tanh(code @ w["decoder.0.weight"].T + w["decoder.0.bias"])
    torch.testing.assert_close(network(rows), decoded @ w["output.weight"].T + w["output.bias"])


def trainer(task, rows, protocol, seed=0):
    return TrainedAutoencoder(rows, 60, task.data.num_items, protocol, Draws(seed), torch.device("cpu"))


def fitted(task, score, protocol=SMALL, seed=0):
    rows = task.select(torch.arange(60)).inputs

    def judged(scorers):
        return [score(lambda known: next(iter(scorers(known))))]

    return trainer(task, lambda i: rows[i], protocol, seed).fit_best(judged)


def test_training_is_repeatable_and_learns(task):
    def score(scorer):
        return task._validation()(lambda known: [scorer(known)])[0]

    a, b, other = fitted(task, score), fitted(task, score), fitted(task, score, seed=1)
    known = task.data.rows(range(5))
    assert torch.equal(a(known), b(known))
    assert not torch.equal(a(known), other(known))
    untrained = initialise(MultVae(task.data.num_items, SMALL), Draws(0))
    assert score(a) > score(untrained)


def test_every_step_is_adams_with_an_order_noise_and_divergence_of_its_own(task):
    protocol, key, rows = replace(SMALL, steps=3, batch=60, checks=1), Draws(0), task.select(torch.arange(60)).inputs
    network = initialise(MultVae(task.data.num_items, protocol), key.fold("init"))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in (1, 2, 3):
        batch = rows[key.fold("order", step - 1).permutation(60)]
        loss = network.loss(batch, 0.2 * min(1, 2 * step / 3), key.fold("step", step))
        gradients = torch.autograd.grad(loss, network.parameters())
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    found = trainer(task, lambda chosen: rows[chosen], protocol).fit_best(None)
    torch.testing.assert_close(found(rows), network(rows).detach())


def test_the_check_that_scored_best_is_kept(task):
    known, seen = task.data.rows(range(5)), []

    def score(scorer):
        seen.append(scorer(known))
        return [0.1, 0.4, 0.3, 0.2][len(seen) - 1]

    scorer = fitted(task, score)
    assert len(seen) == 4
    assert torch.equal(scorer(known), seen[1])


@pytest.mark.parametrize(("steps", "checks", "expected"), [(10, 3, [4, 8, 10]), (9, 4, [3, 6, 9])])
def test_checks_lie_evenly_and_one_comes_after_the_last_step(task, monkeypatch, steps, checks, expected):
    taken, checked, loss = [], [], MultVae.loss

    def watched(self, rows, kl, draws):
        taken.append(draws)
        return loss(self, rows, kl, draws)

    def score(scorer):
        checked.append(len(taken))
        return 0.0

    monkeypatch.setattr(MultVae, "loss", watched)
    fitted(task, score, VaeProtocol(hidden=4, latent=2, steps=steps, batch=30, checks=checks, epochs=1))
    assert checked == expected


def test_layers_start_from_normal_weights_of_their_own():
    network = initialise(MultVae(7, VaeProtocol(hidden=2000)), Draws(0))
    weight, bias = network.encoder.weight.detach(), network.encoder.bias.detach()
    assert float(weight.mean()) == pytest.approx(0, abs=0.001)
    assert float(weight.std()) == pytest.approx((2 / 2007) ** 0.5, rel=0.03)
    assert float(bias.std()) == pytest.approx(0.001, rel=0.1)
    assert not torch.equal(network.encoder.weight.flatten(), network.output.weight.flatten())
    assert not torch.equal(network.encoder.bias, network.decoder[0].bias)


def test_many_users_are_read_as_often_as_few():
    assert [VaeProtocol().updates(users) for users in (500, 6_040, 69_878)] == [800, 800, 32 * 280]
    assert VaeProtocol(steps=10, batch=25, epochs=1).passes(60) == 4  # the last ends after the first of three batches


def test_training_takes_the_epochs_that_it_should(task):
    read = []

    def rows(chosen):
        read.append(chosen)
        return task.select(chosen).inputs

    protocol = VaeProtocol(hidden=4, latent=2, steps=5, batch=16, checks=1, epochs=3)
    trainer(task, rows, protocol).fit_best(lambda scorers: [0.0])
    assert torch.bincount(torch.cat(read)).tolist() == [3] * 60


def test_bad_arguments(task):
    for wrong in ({"hidden": 0}, {"steps": 1.5}, {"lr": -1}, {"lr": 0}, {"kl": float("nan")}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is "):
            VaeProtocol(**wrong)
    with pytest.raises(NonFiniteError, match="lower its rate"):
        fitted(task, lambda scorer: 0.0, VaeProtocol(hidden=12, latent=4, steps=40, batch=16, checks=4, lr=1e6))
