import copy
import dataclasses
import itertools
import math
import pickle
import sys
import warnings
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse
from torch import nn

from mmdistill.abilities import Validates
from mmdistill.cli import main
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.evaluate import evaluate, find_judges
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS, fresh, trained_on_s
from mmdistill.objectives.base import Network
from mmdistill.objectives.distances import flat_cosine
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.infinite_width import FullyConnectedKernel
from mmdistill.objectives.kernel_ridge import KernelRidgeMatching, multinomial, ridge_factor
from mmdistill.recsys import DOMAIN, RankingProtocol, RecsysTask, load_interactions, methods, models, recsys_task
from mmdistill.recsys import task as recsys_module
from mmdistill.recsys.data import Interactions
from mmdistill.recsys.draw import draw_distributions, reading_lines, storage_lines
from mmdistill.recsys.judges import JUDGES
from mmdistill.recsys.methods import METHODS, ChosenRidgeMatching, ease, learned_ridge
from mmdistill.recsys.privacy import nearness
from mmdistill.recsys.synthetic import MeanFieldInteractions
from mmdistill.recsys.vae import VaeProtocol
from mmdistill.reporting.comparison import judged_runs, read_runs
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, one_tensor
from mmdistill.testing import check_objective, check_task
from tests.oracles import recsys as oracle
from tests.oracles.kernels import wide_relu
from tests.recsys.conftest import ML1M, taste_matrix
from tests.toys import BlobTask, held


def on_validation(task):
    return lambda scorers: task.protocol.ndcg(scorers, task.data, "valid")


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
    real = real._replace(targets=real.inputs.flip(0), weight=torch.arange(6.0))
    assert task.features(state, real.inputs)[-1].shape == (6, 7)
    logits, _ = task.predict(state, real.inputs)
    expected = -(real.targets * torch.log_softmax(logits, 1)).sum(1) @ real.weight / 15
    assert task.loss(state, real).item() == pytest.approx(expected.item(), rel=1e-6)


def test_dropout_of_a_users_own_network_follows_its_key(interactions):
    items = interactions.num_items
    task = RecsysTask(interactions, model=lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(items, items)))
    check_task(task)
    state, real = task.init(Draws(0)), task.sample_real(Draws(0), None, 6)
    one, same, other = (task.loss(state, real, train=True, draws=Draws(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_infinite_network_has_no_parameters(task):
    state = task.init(Draws(0))
    assert state.params == {}
    real = task.sample_real(Draws(0), None, 6)
    assert not task.predict(state, real.inputs)[0].any()
    uniform = real.targets.sum(1).mean() * np.log(task.data.num_items)
    assert task.loss(state, real).item() == pytest.approx(uniform.item(), rel=1e-5)


def test_at_most_all_users_are_drawn(task):
    everyone = task.sample_real(Draws(0), None, 10_000)
    assert len(everyone.weight) == task.data.num_users
    assert torch.equal(everyone.inputs.sum(0), task.data.item_counts())  # each of them once


def test_real_users_stay_on_another_device_where_they_fit(interactions, monkeypatch):
    made, rows = [], Interactions.rows
    monkeypatch.setattr(
        Interactions, "rows", lambda self, *given, **named: made.append(1) or rows(self, *given, **named)
    )
    task = RecsysTask(interactions, device="meta")
    for index in range(3):
        assert task.sample_real(Draws(index), None, 5).inputs.shape == (5, interactions.num_items)
    assert task.select(torch.zeros(2, 3, dtype=torch.long)).inputs.shape == (2, 3, interactions.num_items)
    assert len(made) == 1
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):  # which may go where there is no such device
        assert other._cached_rows is None
        assert other.sample_real(Draws(0), None, 5).inputs.shape == (5, interactions.num_items)
    monkeypatch.setattr(recsys_module, "KEPT_NUMBERS", interactions.num_users * interactions.num_items - 1)
    many = RecsysTask(interactions, device="meta")
    made.clear()
    for index in range(3):
        many.sample_real(Draws(index), None, 5)
    assert len(made) == 3


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


def test_the_trained_judge_is_chosen_without_test_interactions(interactions):
    parts = interactions.parts
    moved = dataclasses.replace(interactions, parts={**parts, "test": parts["test"][::-1]})
    found = []
    for data in (interactions, moved):
        task = RecsysTask(data, vae=VaeProtocol(hidden=20, latent=5, steps=40, batch=60, checks=8, lr=0.1))
        scorer = task.judge(task.select(torch.arange(40)), "mult-vae", Draws(0)).fit_best(task._validation())
        found.append(scorer(data.rows(range(5))))
    assert torch.equal(*found)


def test_how_the_trained_judge_trains_is_chosen_with_the_task(interactions):
    plain, own = recsys_task(interactions).vae, VaeProtocol()
    assert plain == own
    batches = -(-interactions.num_users // 7)
    chosen = recsys_task(interactions, judge_epochs=3, judge_batch=7).vae
    assert chosen == dataclasses.replace(own, batch=7, epochs=3, steps=3 * batches)
    with pytest.raises(ConfigError, match="judge_epochs is a whole number of at least 1"):
        recsys_task(interactions, judge_epochs=0)
    small = VaeProtocol(hidden=20, latent=5)
    assert recsys_task(interactions, vae=small).vae == small
    assert recsys_task(interactions, vae=small, judge_batch=7).vae == dataclasses.replace(small, batch=7)
    few = RankingProtocol(ks=(5,), max_users=9)
    assert recsys_task(interactions, protocol=few).protocol == few
    for beside in ({"max_users": 5}, {"candidates": 5}):
        with pytest.raises(ConfigError, match=f"the protocol says on whom.*leave {next(iter(beside))} out"):
            recsys_task(interactions, protocol=few, **beside)
    for wrong in ({"protocol": small}, {"vae": few}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is a "):
            recsys_task(interactions, **wrong)


def test_the_task_tells_for_how_many_passes_the_trained_judge_trains(interactions):
    batches = -(-interactions.num_users // 50)
    task = recsys_task(interactions, judge_epochs=3, judge_batch=50)
    assert task.describe_judge("mult-vae").epochs(None) == 3
    assert task.describe_judge("mult-vae").epochs(50) == 3 * batches  # as many updates on few users
    assert task.describe_judge("ease").epochs(None) is None
    assert recsys_task(interactions).describe_judge("mult-vae").epochs(40) == 800


def test_wrong_arguments_are_refused_before_a_log_is_read():
    for wrong, message in (
        ({"model": "infinit"}, "did you mean 'infinite'"),
        ({"model": "infinite-d2", "width": 5}, "infinite-d2 takes no width"),
        ({"model": nn.Identity, "width": 5}, "a module of your own takes no width"),
        ({"candidates": -1}, "candidates is a whole number"),
    ):
        with pytest.raises(ConfigError, match=message):
            recsys_task("missing.csv", **wrong)


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


def test_users_from_cluster_means_keep_the_popularity_of_items_and_beat_random_ones(task):
    real = task.data.item_counts()
    gaps, scores, random = {}, [], []
    for seed in range(3):
        found = distill(task, "distill-cf-clusters", users=8, seed=seed, settings={"real_batch": 100})
        result = evaluate(task, found, n=1, seed=seed, baselines=("random",))
        scores.append(result.headline().mean)
        random.append(result.baselines["random"][0].mean)
    flat = distill(task, "distill-cf-meanfield", users=8, settings={"steps": 50, "real_batch": 100})
    for name, rows in (("clusters", found.batch.inputs), ("mean field", flat.batch.inputs)):
        gaps[name] = float((rows.sum(0) / rows.sum() - real / real.sum()).abs().sum())
    assert gaps["clusters"] < 0.5 * gaps["mean field"]
    assert np.mean(scores) > np.mean(random) + 2 * np.std(random, ddof=1) / np.sqrt(3)


def test_binary_users_beat_random_ones_with_as_many_items(task):
    scores, random = [], []
    for seed in range(3):
        found = distill(task, "distill-cf-binary", users=8, seed=seed, settings={"real_batch": 100, "steps": 60})
        rows = found.batch.inputs
        assert set(rows.unique().tolist()) == {0.0, 1.0}
        assert rows.sum(1).unique().numel() == 1
        assert found.stored_bytes == int(rows.sum())  # of 80 items a byte names any
        result = evaluate(task, found, n=1, seed=seed, baselines=("random",))
        scores.append(result.headline().mean)
        random.append(result.baselines["random"][0].mean)
    assert np.mean(scores) > np.mean(random) + 2 * np.std(random, ddof=1) / np.sqrt(3)


def test_ease_distils_in_its_dual_form(task):
    found = distill(task, "distill-ease", users=8, settings={"steps": 100, "real_batch": 100})
    assert set(found.learned) == {"absolute_ridge"}
    result = evaluate(task, found, judges=["ease"], n=1, baselines=("random",))
    assert result.headline().mean > result.baselines["random"][0].mean


def test_ease_learns_nothing_of_users_with_one_item(task):
    network, objective, syn = Network(task, task.init(Draws(0))), ease(), task.select(torch.arange(6))
    several = task.select(torch.arange(20, 30))
    single = torch.eye(4, task.data.num_items)
    rows = torch.cat([several.inputs, single])
    loss = objective(network, syn, Batch(rows, rows, torch.ones(len(rows))), Draws(0))
    torch.testing.assert_close(loss, objective(network, syn, several, Draws(0)))
    assert objective(network, syn, Batch(single, single, torch.ones(4)), Draws(0)).item() == 0


def test_ease_refuses_data_whose_users_all_have_one_training_item():
    rows = [(user, user % 7, "train") for user in range(30)] + [(user, (user + 1) % 7, "test") for user in range(30)]
    frame = pd.DataFrame(rows, columns=["user", "item", "split"])
    with pytest.raises(
        ConfigError, match=r"no user of .* has more than one training item, and EASE predicts each item"
    ):
        distill(recsys_task(frame), "distill-ease", users=2)
    several = pd.concat([frame, pd.DataFrame([(0, 5, "train")], columns=frame.columns)])
    found = distill(recsys_task(several), "distill-ease", users=2, settings={"steps": 1})
    assert found.steps == 1


def test_the_depth_of_the_inner_model_is_the_tasks(interactions):
    one, two = (recsys_task(interactions, model=name) for name in ("infinite", "infinite-d2"))
    key = Draws(2)
    syn, real = one.select(torch.arange(6)), one.sample_real(key, None, 20)
    objective = learned_ridge(2.0)()
    losses = [objective(Network(task, task.init(key)), syn, real, key).item() for task in (one, two)]
    fixed = KernelRidgeMatching(FullyConnectedKernel(depth=2), 2.0, loss=multinomial)
    assert losses[1] == pytest.approx(fixed(Network(one, one.init(key)), syn, real, key).item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert two.judge(syn, "inf-ae").kernel.depth == two.judge(None, "inf-ae").kernel.depth == 2
    with pytest.raises(ConfigError, match="belongs to interactions"):
        objective.check(BlobTask())


def test_the_published_method_chooses_from_the_ridges_of_its_code(task, monkeypatch):
    tried = []
    monkeypatch.setattr(
        models.InfiniteAutoencoder, "validate", lambda self, ridges, judged: {r: tried.append(r) or -r for r in ridges}
    )
    rows = task.select(torch.arange(8))
    assert task.chosen_ridge(rows) == 1e-5
    assert tried == [1e-5, 1e-3, 0.1, 1.0, 5.0, 50.0]
    assert {0.3, 20.0, 100.0, *tried} == set(task.judge(rows, "inf-ae").ridges)


def test_validation_chooses_the_published_methods_ridge_on_the_way(task):
    key, every = Draws(3), 4
    objective = METHODS["distill-cf"].make_objective(Settings(steps=9, validate_every=every))
    assert isinstance(objective, ChosenRidgeMatching)
    assert not objective.steady
    assert METHODS["distill-cf"].make_objective(Settings(steps=9)).every == 9
    syn, other, real = (task.select(torch.arange(start, start + 8)) for start in (0, 8, 16))
    network = Network(task, task.init(key))

    def chosen(batch):
        model = task.judge(batch, "inf-ae")
        scores = model.validate((1e-5, 1e-3, 0.1, 1.0, 5.0, 50.0), on_validation(task))
        return max(scores, key=scores.get)

    for step, batch in ((0, syn), (3, other), (4, other)):
        value = objective(network._replace(step=step), batch, real, key)
        ridge = chosen(syn if step < every else other)
        fixed = KernelRidgeMatching(FullyConnectedKernel(), ridge, loss=multinomial)
        assert float(objective.log_ridge.exp()) == pytest.approx(ridge)
        assert value.item() == pytest.approx(fixed(network, batch, real, key).item())
    assert chosen(syn) != chosen(other)
    assert objective.learned() == {}
    # Steps are validated, and the set judged, at the ridge that the method distils with.
    ridge = float(objective.log_ridge.exp())
    best = task.judge(other, "inf-ae").validate([ridge], on_validation(task))[ridge]
    assert task.validate(other, key, {}) >= best


def test_the_choice_of_a_ridge_is_no_operation_of_a_step(task: RecsysTask, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = Distiller(task, METHODS["distill-cf"].with_settings(real_batch=20), 4)
    counted = distiller.operations(distiller.start())
    monkeypatch.setattr(RecsysTask, "chosen_ridge", lambda self, rows: 1.0)
    assert counted == distiller.operations(distiller.start())


def test_users_of_a_few_of_many_items_are_told_apart(task):
    codes = MeanFieldInteractions(Draws(5).normal(8, 1300), interactions_per_user=4)  # nearly parallel beside the bias
    users = codes(Draws(0)).inputs.detach()
    kernel = task.kernel.matrix(users, users)
    rows = users.tolist()
    expected = [[wide_relu(a, b, 1, math.sqrt(2), 0.1)[1] for b in rows] for a in rows]
    # Inner products are of float32. In float32 altogether, the kernel would be off by 3e-6.
    np.testing.assert_allclose(kernel, expected, rtol=5e-7)
    assert ridge_factor(kernel, 1e-5, "trace").isfinite().all()  # the smallest ridge that is tried


def test_many_target_users_are_differentiated_some_at_a_time(task, monkeypatch):
    objective = METHODS["distill-cf"].make_objective(Settings(steps=9, validate_every=4))
    network = Network(task, task.init(Draws(0)))
    start, real = task.select(torch.arange(8)), task.select(torch.arange(16, 27))
    real = real._replace(weight=Draws(1).uniform(11))
    outcomes, sizes = [], []

    def loss(prediction, targets, weight):
        sizes.append(len(prediction))
        return multinomial(prediction, targets, weight)

    objective.loss = loss
    monkeypatch.setattr(task, "kernel", dataclasses.replace(task.kernel, inner=None))  # chunks round products otherwise
    for numbers in (10**9, 4 * task.data.num_items):  # all at once, or four, four and three
        monkeypatch.setattr(methods, "CHUNK_NUMBERS", numbers)
        rows = (0.1 + 0.8 * start.inputs).requires_grad_()
        value = objective(network, Batch(rows, rows, torch.ones(8)), real, Draws(0))
        outcomes.append((value.detach(), *torch.autograd.grad(value, rows)))
    assert sizes == [11, 4, 4, 3]
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-4, atol=1e-7)
    assert float(outcomes[0][1].abs().max()) > 1e-4


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


def test_a_learned_ridge_is_used_where_validation_prefers_it(task, monkeypatch):
    batch = task.select(torch.arange(10))
    model = task.judge(batch, "inf-ae")
    expected = task.protocol.evaluate(model.scorer(3.0), task.data, "test", Draws(0).fold("test"))
    monkeypatch.setattr(
        models.Recommender, "validate", lambda self, ridges, judged: {r: float(r == 3.0) for r in ridges}
    )
    scores = task.evaluate(batch, "inf-ae", Draws(0), 1, {"ridge": torch.tensor(3.0)})
    assert scores.values["ndcg@10"] == expected["ndcg@10"]
    other = task.evaluate(batch, "inf-ae", Draws(0), 1, {"absolute_ridge": torch.tensor(3.0)})  # EASE's, not its own
    assert other.values["ndcg@10"] != expected["ndcg@10"]


def test_validation_scores_the_inner_model_whose_ridge_was_learned(task):
    batch = task.select(torch.arange(10))
    for judge, name in (("inf-ae", "ridge"), ("ease", "absolute_ridge")):
        model = task.judge(batch, judge)
        expected = max(model.validate((2.0, 20.0), on_validation(task)).values())
        assert task.validate(batch, Draws(0), {name: torch.tensor(2.0)}) == pytest.approx(expected)


@pytest.mark.parametrize(("most", "few", "judged"), [(None, 30, 30), (20, 30, 20), (40, 30, 30)])
def test_validation_reads_few_users(task, monkeypatch, most, few, judged):
    monkeypatch.setattr("mmdistill.recsys.task.VALIDATION_USERS", few)
    own = RecsysTask(task.data, protocol=dataclasses.replace(task.protocol, max_users=most))
    batch, learned = task.select(torch.arange(10)), {"absolute_ridge": torch.tensor(2.0)}
    protocol = dataclasses.replace(task.protocol, max_users=judged)
    scores = own.judge(batch, "ease").validate((2.0, 20.0), lambda scorers: protocol.ndcg(scorers, task.data, "valid"))
    assert own.validate(batch, Draws(0), learned) == pytest.approx(max(scores.values()))


def test_padding_users_do_not_count(task):
    batch = task.select(torch.arange(10))
    junk = batch._replace(inputs=torch.cat([batch.inputs, torch.ones_like(batch.inputs)]))
    junk = junk._replace(targets=junk.inputs, weight=torch.cat([batch.weight, torch.zeros(10)]))
    for judge in task.judges:
        key = Draws(0)
        assert task.evaluate(batch, judge, key, 1, {}) == task.evaluate(junk, judge, key, 1, {})


@pytest.fixture
def named():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [(f"u{u}", f"film-{i}", 5) for u in range(30) for i in rng.choice(20, 8, replace=False)] + [("u1", "bad", -1)],
        columns=["user", "item", "rating"],
    )
    task = recsys_task(frame)
    weights = Draws(0).uniform(4, task.data.num_items)
    return task, Batch(weights, weights, torch.ones(4))


def test_the_report_says_what_was_read_stored_and_copied(named, tmp_path):
    task, batch = named
    copied = batch._replace(inputs=torch.cat([batch.inputs[:3], task.data.rows([5])]))
    pictures = DOMAIN.draw(task, copied, tmp_path / "pictures")
    assert [p.suffix for p in pictures] == [".png", ".md"]
    text = pictures[1].read_text()
    assert "30 users, 20 items" in text
    assert "1 ratings that are not positive" in text
    assert f"| dense rows (float32) | {4 * 20 * 4:,} |" in text
    assert "Exact copies of real users: 1 of 4" in text
    assert "a copy" in text
    assert "film-" in text


def test_the_picture_says_how_many_items_its_logarithmic_axes_leave_out(tmp_path, monkeypatch):
    taken = [(user, item) for user in range(20) for item in range(4)]
    data, figures = load_interactions(pd.DataFrame(taken, columns=["user", "item"])), []
    monkeypatch.setattr(
        sys.modules[draw_distributions.__module__], "save_figure", lambda figure, target: figures.append(figure)
    )
    for rows in (torch.tensor([[1.0, 0.5, 0.0, 0.0]]), torch.ones(1, 4)):
        draw_distributions(data, rows, nearness(data, rows), tmp_path / "interactions.png")
    told = [[text.get_text() for text in figure.axes[0].texts] for figure in figures]
    assert told == [["not shown: 2 items that real\nor synthetic users have none of"], []]


@pytest.mark.parametrize(("items", "each"), [(5, 5), (8, 5), (20, 8), (400, 150)])
def test_axes_of_small_logs_have_labels_that_do_not_overlap(items, each, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    taken = [(f"u{user}", f"i{item}") for user in range(20) for item in rng.choice(items, each, replace=False)]
    data = load_interactions(pd.DataFrame(taken, columns=["user", "item"]))
    rows, figures = Draws(0).uniform(4, data.num_items), []
    monkeypatch.setattr(
        sys.modules[draw_distributions.__module__], "save_figure", lambda figure, target: figures.append(figure)
    )
    draw_distributions(data, rows, nearness(data, rows), tmp_path / "interactions.png")
    figures[0].draw_without_rendering()
    for axes in figures[0].axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
            boxes = [label.get_window_extent() for label in shown]
            assert len(boxes) >= 2
            assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_one_item_without_training_rows_is_said_in_the_singular(named):
    data = named[0].data
    said = {count: reading_lines(dataclasses.replace(data, counts={"cold_items": count}))[1] for count in (1, 2)}
    assert said[1] == "1 item occurs in no training row, so no judge can learn it."
    assert said[2] == "2 items occur in no training row, so no judge can learn them."


def test_a_set_larger_than_the_log_is_called_so(named):
    task, _ = named
    few, many = (storage_lines(task.data, Draws(0).uniform(n, 20)) for n in (4, 29))
    assert not any("more than the whole log" in line for line in few)
    assert any("more than the whole log" in line for line in many)


def test_exports_keep_the_original_ids(named, tmp_path):
    task, batch = named
    weights = batch.inputs
    matrix, ids = DOMAIN.exports["csr"](held(task, batch), tmp_path / "csr")
    np.testing.assert_allclose(sparse.load_npz(matrix).toarray(), weights.numpy())
    assert pd.read_csv(ids).item_id.tolist() == task.data.item_ids.tolist()
    (table,) = DOMAIN.exports["csv"](held(task, batch), tmp_path / "csv")
    read = pd.read_csv(table)
    assert list(read.columns) == ["user", "item", "weight"]
    heaviest = read[read.user == 2].sort_values("weight").item.iloc[-1]
    assert heaviest == task.data.item_ids[int(weights[2].argmax())]
    tensors, _ = DOMAIN.exports["tensors"](held(task, batch), tmp_path / "tensors")
    assert torch.equal(load_file(tensors)["users"], weights)
    again = recsys_task(table)  # what was exported can be read back
    assert set(again.data.item_ids) <= set(task.data.item_ids)


def test_exported_tables_have_the_same_lines_on_every_system(named, tmp_path, monkeypatch):
    monkeypatch.setattr("os.linesep", "\r\n")
    task, batch = named
    (table,) = DOMAIN.exports["csv"](held(task, batch), tmp_path)
    assert b"\r" not in table.read_bytes()


def test_binary_export_is_each_users_heaviest_items(named, tmp_path):
    task, batch = named
    matrix, table, _ = DOMAIN.exports["binary"](held(task, batch), tmp_path)
    assert (matrix.name, table.name) == ("binary.npz", "binary.csv")
    found = sparse.load_npz(matrix).toarray()
    for weights, row in zip(batch.inputs, found, strict=True):
        assert row.sum() == round(float(weights.sum()))
        assert weights[row == 1].min() >= weights[row == 0].max()
    read = pd.read_csv(table)
    assert [tuple(pair) for pair in read.to_numpy()] == [
        (user, task.data.item_ids[item]) for user, item in zip(*found.nonzero(), strict=True)
    ]


def test_recbole_reads_its_atomic_file(named, tmp_path):
    task, batch = named
    (path,) = DOMAIN.exports["recbole"](held(task, batch), tmp_path)
    assert path == tmp_path / "distilled" / "distilled.inter"  # RecBole wants DATASET/DATASET.inter
    header, *lines = path.read_text().splitlines()
    assert header == "user_id:token\titem_id:token\trating:float"
    assert len(lines) == int((batch.inputs >= 1e-3).sum())
    user, item, rating = lines[0].split("\t")
    assert user == "0"
    assert float(rating) == pytest.approx(float(batch.inputs[0, list(task.data.item_ids).index(item)]), rel=1e-5)
    assert set(recsys_task(path).data.item_ids) <= set(task.data.item_ids)


def test_implicit_fits_on_the_exported_users(named, tmp_path):
    implicit = pytest.importorskip("implicit.cpu.als")
    task, batch = named
    matrix, _, ids = DOMAIN.exports["binary"](held(task, batch), tmp_path)
    users, items = sparse.load_npz(matrix), pd.read_csv(ids).item_id.to_numpy()
    model = implicit.AlternatingLeastSquares(factors=3, iterations=3, random_state=0, num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # implicit's advice on OpenBLAS' threads
        model.fit(sparse.csr_matrix(users), show_progress=False)
    history = sparse.csr_matrix(task.data.parts["train"][[0]])
    best, _ = model.recommend(0, history, N=5, recalculate_user=True, filter_already_liked_items=True)
    assert set(items[best]) <= set(task.data.item_ids)
    assert not set(best) & set(history.indices)


def test_factorisation_says_that_it_reads_weighted_users_as_binary_ones(task):
    pytest.importorskip("implicit.cpu.als")
    weighted = task.rows(task.select(torch.arange(6)).inputs) * 0.7
    for rows, said in ((weighted, True), ((weighted > 0).float(), False)):
        notes = task.evaluate(Batch(rows, None, torch.ones(6)), "als", Draws(0), 1, {}).notes
        assert any("als reads binary rows" in note for note in notes) == said
    assert not any("binary rows" in note for note in task.evaluate(None, "als", Draws(0), 1, {}).notes)
    for users in (task.select(torch.arange(6)), None):
        first, other = (task.judge(users, "als", Draws(seed)).options["random_state"] for seed in (0, 1))
        assert first != other


def test_describe_carries_the_item_ids(task):
    info = task.describe()
    assert info.budget == "users"
    assert info.preprocessing["item_ids"] == task.data.item_ids.tolist()
    assert info.stored_bytes == 4 * (task.data.parts["train"].nnz + task.data.num_users + 1)


def test_options_of_the_command_line(tmp_path):
    path = tmp_path / "m.npz"
    sparse.save_npz(path, sparse.csr_array(taste_matrix(30, 12)))
    assert DOMAIN.make_task(str(path)).module is None
    named = DOMAIN.make_task(str(path), model="autoencoder", width=5)
    assert {tuple(p.shape) for p in named.init(Draws(0)).params.values()} >= {(5, 12)}
    with pytest.raises(ConfigError, match="autoencoder"):
        DOMAIN.make_task(str(path), model="autoencodr")
    for model in ({}, {"model": "infinite-d2"}):
        with pytest.raises(ConfigError, match=r"infinite.* takes no width"):
            DOMAIN.make_task(str(path), **model, width=5)


def test_names_ignore_case_and_underscores(task):
    assert recsys_task(task.data, model="Infinite_D2").kernel.depth == 2
    assert recsys_task(task.data, model="AutoEncoder", width=3).module is not None
    assert task.evaluate(None, "EASE", Draws(0), 1, {}) == task.evaluate(None, "ease", Draws(0), 1, {})
    assert task.evaluate(None, "Mult_VAE", Draws(0), 1, {}).judge == "mult-vae"
    assert torch.equal(task.judge(None, "Inf_AE").gram, task.judge(None, "inf-ae").gram)


def test_of_a_judge_in_closed_form_the_auc_alone_has_a_value_for_each_repetition(task):
    found = task.evaluate(None, "ease", Draws(0), 3, {}).values
    assert len(set(found.pop("auc"))) == 3
    assert {len(values) for values in found.values()} == {1}


def test_the_ridge_of_a_judge_is_the_best_on_validation_data(task):
    batch, key = task.select(torch.arange(120)), Draws(0)
    best, middle = (
        task.protocol.evaluate(task.judge(batch, "ease").fit_best(validation), task.data, "test", key)["ndcg@10"]
        for validation in (on_validation(task), None)
    )
    assert task.evaluate(batch, "ease", key, 1, {}).values["ndcg@10"] == best != middle


def test_bad_arguments(task):
    with pytest.raises(ConfigError, match="unknown judge"):
        task.evaluate(None, "lightgcn", Draws(0), 1, {})
    with pytest.raises(UnsupportedError, match="no classes"):
        task.sample_real(Draws(0), torch.arange(2), 3)
    wrong = Batch(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ShapeError, match="rows of interactions"):
        task.evaluate(wrong, "ease", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="synthetic users are"):
        DOMAIN.exports["csr"](held(task, wrong), "never written")
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


def test_the_command_line_makes_binary_users_and_their_report(tmp_path, capsys):
    path = tmp_path / "m.npz"
    sparse.save_npz(path, sparse.csr_array(taste_matrix(60, 20)))
    out = str(tmp_path / "run")
    options = ["--users", "4", "--interactions-per-user", "6", "--steps", "3", "--networks", "1", "--out", out]
    assert main(["distill", "--data", str(path), "--method", "distill-cf-binary", "--baselines", "head", *options]) == 0
    assert main(["report", out]) == 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| inf-ae | ndcg@10 |" in text
    assert text.count("users of whom a to b interactions are known") == 1
    assert main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--interactions-per-user", "6"]) == 2
    assert "--interactions-per-user is for recsys data" in capsys.readouterr().err


@pytest.mark.usefixtures("blank_figures")
def test_runs_that_patience_ended_are_read_again_and_are_repetitions(tmp_path, capsys):
    path = tmp_path / "m.npz"
    sparse.save_npz(path, sparse.csr_array(taste_matrix(60, 20)))
    options = ["--users", "4", "--steps", "40", "--validate-every", "1", "--patience", "2", "--lr", "0.3"]
    steps = []
    for seed in range(3):
        out = str(tmp_path / f"run{seed}")
        plain = ["distill", "--data", str(path), "--method", "distill-cf-meanfield", "--networks", "1"]
        assert main([*plain, *options, "--baselines", "none", "--seed", str(seed), "--out", out]) == 0
        for command in (["report"], ["evaluate"], ["export"], ["distill", "--resume"]):
            assert main([*command, out]) == 0
        steps.append(DistilledSet.load(out).taken)
    assert len(set(steps)) > 1
    assert max(steps) < 40
    (row,) = read_runs(judged_runs([tmp_path / f"run{seed}" for seed in range(3)])[0])
    assert len(row.score.values) == 3


def test_only_the_trained_judge_reads_epochs_and_minibatches(task):
    assert [judge for judge in task.judges if "epochs" in task.describe_judge(judge).reads] == ["mult-vae"]


def test_a_judge_of_which_nothing_is_known_is_refused(interactions):
    task, key = RecsysTask(interactions), Draws(0)
    for ask in (
        lambda: task.evaluate(task.select(torch.arange(4)), "slim", key, 1, {}),
        lambda: task.evaluate(None, "slim", key, 1, {}),
        lambda: task.judge(None, "slim"),
        lambda: task.describe_judge("slim"),
    ):
        with pytest.raises(ConfigError, match="unknown judge 'slim'"):
            ask()


def test_one_entry_is_all_that_another_judge_takes(interactions):
    class Wider(RecsysTask):
        judge_kinds: ClassVar = {
            **JUDGES,
            "popular-twice": dataclasses.replace(
                JUDGES["popularity"],
                of_rows=lambda task, rows, draws: models.Popularity(2 * rows.sum(0)),
                random=True,
                reads=("epochs",),
                weighted="weights count twice",
                epochs=lambda task, users: 2 * users,
            ),
        }

    task, batch, key = Wider(interactions), RecsysTask(interactions).select(torch.arange(6)), Draws(0)
    assert torch.equal(task.judge(batch, "popular-twice").counts, 2 * task.judge(batch, "popularity").counts)
    facts = task.describe_judge("popular-twice")
    assert (facts.reads, facts.epochs(6)) == (("epochs",), 12)
    scores = task.evaluate(batch._replace(inputs=batch.inputs / 2), "popular-twice", key, 2, {})
    assert "weights count twice" in scores.notes
    single = task.evaluate(batch, "popularity", key.fold("run", 1), 1, {})
    assert {name: values[1:] for name, values in scores.values.items()} == single.values
    assert len(single.notes) == len(scores.notes)  # of which one says that there is no randomness
    (by_name,) = evaluate(task, batch, judges=["popular-twice"], n=1, baselines=(), progress=None).results[:1]
    assert by_name.judge == "popular-twice"


def test_a_judge_that_a_script_adds_goes_by_name(interactions, monkeypatch):
    before = recsys_task(interactions, name="own")
    twice = dataclasses.replace(JUDGES["popularity"], of_rows=lambda task, rows, draws: models.Popularity(2 * rows[0]))
    monkeypatch.setitem(JUDGES, "first-user", twice)
    after, batch = recsys_task(interactions, name="own"), before.select(torch.arange(6))
    for task in (before, after):
        (found,) = evaluate(task, batch, judges=["First_User"], n=1, baselines=()).results[:1]
        assert found.judge == "first-user"
    assert find_judges(after, ["all"]) == list(JUDGES)
    assert [name for name in JUDGES if DOMAIN.network_added(name)] == ["first-user"]


def test_the_trained_judge_is_made_as_the_others_are(task):
    batch, key = task.select(torch.arange(12)), Draws(5)
    for synthetic in (batch, None):
        scorer = task.judge(synthetic, "mult-vae", key.fold("run", 0)).fit_best(on_validation(task))
        expected = task.protocol.evaluate(scorer, task.data, "test", key.fold("run", 0).fold("test"))
        assert task.evaluate(synthetic, "mult-vae", key, 1, {}).values["ndcg@10"] == expected["ndcg@10"]
    last = task.judge(batch, "mult-vae", key).scorer(0.0)(batch.inputs)
    assert torch.equal(last, task.judge(batch, "mult-vae", key).fit_best(None)(batch.inputs))


@pytest.mark.parametrize("network", [fresh, trained_on_s])
def test_gradients_of_users_are_matched_where_there_are_no_classes(interactions, network):
    task = recsys_task(interactions, model="autoencoder", name="own")
    adam = OptimizerSpec("adam", 0.5)
    matched = Method(
        "GM",
        lambda: GradientMatching(flat_cosine, "batch"),
        network,
        lambda users: Settings(12, 64, {"codes": adam}, outer_steps=3, inner_steps=2),
    )
    history = distill(task, matched, users=6, parameterization="mean-field").history
    losses = [loss for _, loss in history]
    assert sum(losses[-3:]) < sum(losses[:3])
    with pytest.raises(
        ConfigError,
        match=r"made class by class; choose a way of storing them .*parameterization.*mmdistill methods recsys",
    ):
        distill(task, matched, users=6)
    by_class = dataclasses.replace(matched, objective=GradientMatching)
    with pytest.raises(ConfigError, match=r"has no classes; .* such as GradientMatching\(distance, 'batch'\)"):
        distill(task, by_class, users=6, parameterization="mean-field")
    with pytest.raises(ConfigError, match=r"has no parameters; choose one that has .*--model autoencoder"):
        distill(recsys_task(interactions), matched, users=6, parameterization="mean-field")


def test_methods_refuse_networks_that_they_would_not_train(interactions):
    wide, own = (recsys_task(interactions, model=model) for model in ("infinite", "autoencoder"))
    with pytest.raises(ConfigError, match="has no parameters; choose one that has"):
        Distiller(wide, CORE_METHODS["dd"].with_settings(augment=False), 4).start()
    with pytest.raises(ConfigError, match="reads no other network; leave --model out"):
        distill(own, "distill-cf-meanfield", users=4)


def test_one_key_gives_one_score_whatever_was_judged_before(interactions):
    fresh, used = (recsys_task(interactions, max_users=5) for _ in range(2))
    used.evaluate(None, "ease", Draws(1), 1, {})
    assert used.evaluate(None, "ease", Draws(2), 1, {}) == fresh.evaluate(None, "ease", Draws(2), 1, {})


def test_cut_offs_beyond_what_is_left_to_rank_are_noted(task):
    batch = task.select(torch.arange(8))
    left = task.data.num_items - int(np.median(task.data.lengths("train") + task.data.lengths("valid")))
    for ks, noted in (((10, left), True), ((10, left - 1), False)):
        own = RecsysTask(task.data, protocol=dataclasses.replace(task.protocol, ks=ks))
        notes = own.evaluate(batch, "popularity", Draws(0), 1, {}).notes
        assert any(f"at most {left} items left to rank, so metrics at {left}" in note for note in notes) == noted


@pytest.fixture
def unvalidated():
    """Returns interactions whose users have too few training rows for validation ones."""
    rng = np.random.default_rng(0)
    rows = [
        (user, item, "test" if place == 2 else "train")
        for user in range(60)
        for place, item in enumerate(rng.choice(12, 3, replace=False))
    ]
    return load_interactions(pd.DataFrame(rows, columns=["user", "item", "split"]))


@pytest.mark.parametrize("method", ["distill-ease", "distill-cf", "distill-cf-meanfield"])
def test_without_validation_rows_runs_keep_their_last_step(unvalidated, method):
    task = RecsysTask(unvalidated)
    assert any("no validation rows" in note for note in task.describe().notes)
    assert task.validate(task.select(torch.arange(4)), Draws(0), {}) is None
    found = distill(task, method, users=4, settings={"steps": 4, "validate_every": 2})
    assert (found.steps, found.taken) == (4, 4)


def test_without_validation_rows_judges_say_what_they_did_not_choose(unvalidated):
    task = RecsysTask(unvalidated, vae=VaeProtocol(hidden=6, latent=2, steps=6, batch=20, checks=2, epochs=1))
    batch = task.select(torch.arange(8))
    for judge in task.judges:
        if judge == "als" and find_spec("implicit") is None:
            continue
        scores = task.evaluate(batch, judge, Draws(0), 1, {})
        assert 0 <= scores.values["ndcg@10"][0] <= 1
        said = [note for note in scores.notes if note.startswith("no validation rows")]
        assert len(said) == (judge != "popularity")
    learned = {"absolute_ridge": torch.tensor(2.5)}
    model = task.judge(batch, "ease")
    for ridge, own in ((model.ridges[len(model.ridges) // 2], {}), (2.5, learned)):
        values = task.evaluate(batch, "ease", Draws(0), 1, own).values
        expected = task.protocol.evaluate(model.scorer(ridge), task.data, "test", Draws(0).fold("test"))
        assert values["ndcg@10"] == expected["ndcg@10"]


def test_other_cut_offs_are_reported_with_the_first_one_s_ndcg_as_the_headline() -> None:
    task = recsys_task(np.random.default_rng(0).random((60, 40)) < 0.3, protocol=RankingProtocol(ks=(5, 20)))
    rows = one_tensor(task.select(torch.arange(10)).inputs)
    found = evaluate(task, Batch(rows, rows, torch.ones(10)), judges=["ease"], baselines=[])
    names = [entry.metric for entry in found.results]
    assert names[0] == "ndcg@5"
    assert {"hr@20", "recall@5", "psp@20", "coverage@20", "auc"} <= set(names)
    noted = evaluate(task, Batch(rows, rows, torch.arange(1.0, 11)), judges=["ease"], baselines=[])
    assert "judges count each of them once" in " ".join(noted.results[0].notes)
    for note in ("judges count each of them once", "no validation rows"):
        assert note not in " ".join(found.results[0].notes)


def test_recommenders_are_judged_by_names_alone(task):
    batch = task.select(torch.arange(4))
    with pytest.raises(UnsupportedError, match="recsys data are judged by name alone: "):
        evaluate(task, batch, judges={"mine": lambda: nn.Linear(2, 2)}, n=1)
