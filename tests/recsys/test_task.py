import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse
from torch import nn

from mmdistill.distill import distill
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.objectives.base import Network
from mmdistill.objectives.kernels import FullyConnectedKernel
from mmdistill.objectives.performance import KernelRidgeMatching, multinomial
from mmdistill.recsys import DOMAIN, RecsysTask, recsys_task
from mmdistill.registry import TaskOptions
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Validates
from mmdistill.testing import check_objective, check_task
from tests.oracles import recsys as oracle
from tests.oracles.kernels import wide_relu
from tests.recsys.conftest import ML1M, taste_matrix


@pytest.mark.parametrize("judge", ["inf-ae", "ease", "popularity"])
def test_conformance(task, judge):
    check_task(task, judge=judge)
    assert isinstance(task, Validates)


def test_conformance_of_a_users_own_network(interactions):
    items = interactions.num_items
    task = RecsysTask(interactions, model=lambda: nn.Sequential(nn.Linear(items, 7), nn.Tanh(), nn.Linear(7, items)))
    check_task(task)
    state = task.init(Draws(0))
    real = task.sample_real(Draws(0), None, 6)
    assert task.features(state, real.inputs)[-1].shape == (6, 7)
    logits, _ = task.predict(state, real.inputs)
    expected = -(real.targets * torch.log_softmax(logits, 1)).sum(1).mean()
    assert task.loss(state, real).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_infinite_network_has_no_parameters(task):
    state = task.init(Draws(0))
    assert state.params == {}
    real = task.sample_real(Draws(0), None, 6)
    uniform = real.targets.sum(1).mean() * np.log(task.data.num_items)
    assert task.loss(state, real).item() == pytest.approx(uniform.item(), rel=1e-5)


def test_targets_are_full_rows_and_inputs_may_be_held_out(interactions):
    task = RecsysTask(interactions, hold_out=0.4)
    real = task.sample_real(Draws(0), None, 200)
    assert ((real.targets - real.inputs) >= 0).all()
    assert 0.5 < float(real.inputs.sum() / real.targets.sum()) < 0.7
    everybody = task.sample_real(Draws(0), None, 10_000)
    assert len(everybody.weight) == interactions.num_users


def test_objective_passes_the_battery_and_equals_the_oracle():
    matrix = taste_matrix(20, 12, groups=2)
    task = recsys_task(matrix)
    key = Draws(1)
    x = 0.2 + 0.6 * key.fold("x").normal(4, task.data.num_items, dtype=torch.float64).sigmoid()
    rows = task.sample_real(key, None, 5).inputs.double()
    syn, real = Batch(x, x, torch.ones(4).double()), Batch(rows, rows, torch.ones(5).double())
    network = Network(task, task.init(key))
    objective = KernelRidgeMatching(FullyConnectedKernel(), 2.0, loss=multinomial)

    def expected():
        def kernel(a, b):
            return wide_relu(a, b, 1, np.sqrt(2), 0.1)[1]

        p = oracle.wide_autoencoder(x.numpy(), rows.numpy(), 2.0, kernel)
        log_sum = np.log(np.exp(p).sum(1, keepdims=True))
        return float(-(rows.numpy() * (p - log_sum)).sum(1).mean())

    check_objective(objective, network, syn, real)
    assert objective(network, syn, real, key).item() == pytest.approx(expected(), rel=1e-7)


def test_distilled_users_beat_random_and_herded_ones(task):
    scores, random, herded = [], [], []
    for seed in range(3):
        found = distill(task, "distill-cf-meanfield", users=8, seed=seed, settings={"steps": 200, "real_batch": 100})
        assert found.batch.inputs.shape == (8, task.data.num_items)
        assert found.stored_bytes == 8 * task.data.num_items * 4
        assert "ridge" in found.learned
        result = evaluate(task, found, n=1, seed=seed, baselines=("random", "herding"))
        scores.append(result.headline().mean)
        random.append(result.baselines["random"][0].mean)
        herded.append(result.baselines["herding"][0].mean)
    assert result.headline().metric == "ndcg@10"
    assert np.mean(scores) > np.mean(random) + 2 * np.std(random, ddof=1) / np.sqrt(3)
    assert np.mean(scores) > np.mean(herded)


def test_the_sampled_prior_distils_and_transfers_to_ease(task):
    settings = {"steps": 100, "validate_every": 25}
    found = distill(task, "distill-cf", users=8, settings=settings)
    result = evaluate(task, found, judges=["ease", "popularity"], n=1, baselines=("whole",))
    by_judge = {entry.judge: entry.mean for entry in result.results if entry.metric == "ndcg@10"}
    whole = {entry.judge: entry.mean for entry in result.baselines["whole"] if entry.metric == "ndcg@10"}
    assert by_judge["ease"] > whole["popularity"]


def test_validation_never_reads_test_data(interactions):
    changed = dataclasses.replace(
        interactions, parts={**interactions.parts, "test": sparse.csr_array(interactions.parts["test"].shape)}
    )
    a, b = RecsysTask(interactions), RecsysTask(changed)
    batch = a.select(torch.arange(10))
    assert a.validate(batch, Draws(0), {}) == b.validate(batch, Draws(0), {})


def test_a_learned_ridge_is_used(task, monkeypatch):
    batch = task.select(torch.arange(10))
    monkeypatch.setattr("mmdistill.recsys.models.InfiniteAutoencoder.pick", None)
    scores = task.evaluate(batch, "inf-ae", Draws(0), 1, {"ridge": torch.tensor(3.0)})
    model = task.judge(batch, "inf-ae")
    expected = task.protocol.evaluate(model.scorer(3.0), task.data, "test", Draws(0))
    assert scores.values["ndcg@10"] == expected["ndcg@10"]


def test_padding_users_do_not_count(task):
    batch = task.select(torch.arange(10))
    junk = batch._replace(inputs=torch.cat([batch.inputs, torch.ones_like(batch.inputs)]))
    junk = junk._replace(targets=junk.inputs, weight=torch.cat([batch.weight, torch.zeros(10)]))
    for judge in task.judges:
        key = Draws(0)
        assert task.evaluate(batch, judge, key, 1, {}) == task.evaluate(junk, judge, key, 1, {})


def test_draws_and_exports_keep_the_original_ids(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [(f"u{u}", f"film-{i}", 5) for u in range(30) for i in rng.choice(20, 8, replace=False)],
        columns=["user", "item", "rating"],
    )
    task = recsys_task(frame)
    weights = Draws(0).uniform(4, task.data.num_items)
    batch = Batch(weights, weights, torch.ones(4))
    pictures = DOMAIN.draw(task, batch, tmp_path / "pictures")
    assert [p.suffix for p in pictures] == [".png", ".md"]
    assert "film-" in pictures[1].read_text()
    matrix, ids = DOMAIN.exports["csr"](task, batch, tmp_path / "csr")
    np.testing.assert_allclose(sparse.load_npz(matrix).toarray(), weights.numpy())
    assert pd.read_csv(ids).item_id.tolist() == task.data.item_ids.tolist()
    (table,) = DOMAIN.exports["csv"](task, batch, tmp_path / "csv")
    read = pd.read_csv(table)
    assert list(read.columns) == ["user", "item", "weight"]
    heaviest = read[read.user == 2].sort_values("weight").item.iloc[-1]
    assert heaviest == task.data.item_ids[int(weights[2].argmax())]
    tensors, _ = DOMAIN.exports["tensors"](task, batch, tmp_path / "tensors")
    assert torch.equal(load_file(tensors)["users"], weights)
    again = recsys_task(table)  # what was exported can be read back
    assert set(again.data.item_ids) <= set(task.data.item_ids)


def test_describe_carries_the_item_ids(task):
    info = task.describe()
    assert info.budget == "users"
    assert info.preprocessing["item_ids"] == task.data.item_ids.tolist()
    assert info.stored_bytes == 4 * (task.data.parts["train"].nnz + task.data.num_users + 1)


def test_options_of_the_command_line(tmp_path):
    path = tmp_path / "m.npz"
    sparse.save_npz(path, sparse.csr_array(taste_matrix(30, 12)))
    assert DOMAIN.make_task(str(path), TaskOptions()).module is None
    named = DOMAIN.make_task(str(path), TaskOptions(model="autoencoder", width=5))
    assert {tuple(p.shape) for p in named.init(Draws(0)).params.values()} >= {(5, 12)}
    with pytest.raises(ConfigError, match="autoencoder"):
        DOMAIN.make_task(str(path), TaskOptions(model="autoencodr"))


def test_bad_arguments(task):
    with pytest.raises(ConfigError, match="unknown judge"):
        task.evaluate(None, "lightgcn", Draws(0), 1, {})
    with pytest.raises(UnsupportedError, match="no classes"):
        task.sample_real(Draws(0), torch.arange(2), 3)
    with pytest.raises(ConfigError, match="hold_out"):
        RecsysTask(task.data, hold_out=1.0)
    wrong = Batch(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ShapeError, match="rows of interactions"):
        task.evaluate(wrong, "ease", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="synthetic users are"):
        DOMAIN.exports["csr"](task, wrong, None)
    with pytest.raises(ConfigError, match="users=N"):
        distill(task, "distill-cf-meanfield", ipc=3)


@pytest.mark.data
@pytest.mark.skipif(not ML1M.exists(), reason="ml-1m/interactions.csv.gz is not under MMDISTILL_DATA")
def test_ml1m_popularity_is_the_published_baseline():
    task = recsys_task("ml-1m")
    scores = task.evaluate(None, "popularity", Draws(0), 1, {})
    assert scores.values["ndcg@10"][0] == pytest.approx(0.1435, abs=1e-4)


def test_both_sides_of_the_ridge_system_give_one_objective(task):
    key = Draws(2)
    syn, network = task.select(torch.arange(6)), Network(task, task.init(key))
    objective = KernelRidgeMatching(FullyConnectedKernel(), 3.0, loss=multinomial)
    items = task.data.num_items
    few, many = (task.sample_real(key, None, n) for n in (items // 2, 2 * items))

    def mean(*parts):  # the loss is a mean over users, so that of halves averages to that of all
        return sum(objective(network, syn, part, key).item() for part in parts) / len(parts)

    halves = [Batch(many.inputs[i::4], many.targets[i::4], many.weight[i::4]) for i in range(4)]
    assert len(few.weight) < items < len(many.weight)
    assert mean(many) == pytest.approx(mean(*halves), rel=1e-5)
