import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError, ShapeError, UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.labels import soft_cross_entropy, weighted_mean
from mmdistill.networks.expert_recipe import ExpertRecipe, identity
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.teacher import trained_teacher
from mmdistill.objectives.base import Network, class_gradients
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, one_tensor, take
from mmdistill.testing import as_float64, check_task
from mmdistill.text import inputs, judges
from mmdistill.text.callables import CallableEncoder
from mmdistill.text.data import TextData
from mmdistill.text.draw import draw, draw_map
from mmdistill.text.exports import export_embeds, export_tensors
from mmdistill.text.judges import (
    INVERSE_PENALTIES,
    centred_targets,
    choose_ridge,
    distributions,
    fit_logistic,
    judge_loss,
    knn_scores,
    logistic_predictions,
    ridge_weights,
)
from mmdistill.text.reading import Reader
from mmdistill.text.sampling import TextRows
from mmdistill.text.tables import read_table
from mmdistill.text.task import TextTask, text_task
from mmdistill.text.tfidf import TOKENS
from tests.oracles import text as oracle
from tests.text.corpus import corpus, sentences, small_task
from tests.toys import Sizes, held

OWN_JUDGES = ("mlp", "logreg", "knn", "ridge")
TFIDF = ("read-alone", "read-tfidf")


@pytest.fixture(scope="module")
def task() -> TextTask:
    return small_task(width=16)


@pytest.mark.parametrize("options", [{}, {"model": "linear"}, {"noise": 0.1}, {"judge_epochs": 5, "judge_batch": 7}])
def test_conformance(options: dict[str, object]) -> None:
    check_task(small_task(**options), judge="mlp")


@pytest.mark.parametrize("judge", ["logreg", "knn", "ridge"])
def test_judges_that_nothing_is_drawn_for_conform(task: TextTask, judge: str) -> None:
    check_task(task, judge=judge)
    few = evaluate(task, task.select(torch.arange(6)), judges=[judge], n=4, at_once=2, baselines=[]).headline()
    assert few.n == 1


def soft(rows: int, classes: int, key: str) -> torch.Tensor:
    return Draws(0, (key,)).normal(rows, classes, dtype=torch.float64).softmax(1)


def test_soft_cross_entropy_against_loops() -> None:
    logits = Draws(1).normal(5, 3, dtype=torch.float64)
    targets, weight = soft(5, 3, "t"), torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    expected = oracle.soft_cross_entropy(logits.tolist(), targets.tolist(), weight.tolist())
    assert float(weighted_mean(soft_cross_entropy(logits, targets), weight)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("at_once", [3, 1])
def test_class_gradients_against_loops(task: TextTask, at_once: int) -> None:
    state = as_float64(task.init(Draws(2)))
    points = Draws(3).normal(3, 4, task.dim, dtype=torch.float64) / 5
    weight = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [2, 0.5, 1, 0]], dtype=torch.float64)
    targets = torch.stack([soft(4, 3, f"class {c}") for c in range(3)])
    batch = ClassBatch(Batch(points, targets, weight), Dims(0, 0))
    found = class_gradients(Network(task, state, classes_at_once=at_once), batch)
    params = [tensor.tolist() for tensor in state.params.values()]
    for index in range(3):
        expected = oracle.mlp_gradients(
            points[index].tolist(), targets[index].tolist(), weight[index].tolist(), *params, math.sqrt(task.dim)
        )
        for name, gradient in zip(state.params, expected, strict=True):
            torch.testing.assert_close(
                found[name][index], torch.tensor(gradient, dtype=torch.float64), rtol=1e-9, atol=1e-12
            )


def test_a_long_tail_of_texts_needs_no_table_of_all_classes_by_the_largest() -> None:
    labels = torch.cat([torch.zeros(400, dtype=torch.long), torch.arange(1, 40).repeat_interleave(2)])
    with Sizes() as sizes:
        rows, weight = TextRows(labels, 40, torch.device("cpu")).draw(Draws(0), torch.arange(40), 3)
    assert sizes.largest <= len(labels)
    assert weight.sum(1).tolist() == [3] + [2] * 39
    assert torch.equal(labels[rows], torch.arange(40)[:, None].expand(40, 3))  # padded by texts of the own class
    assert len(rows[0].unique()) == 3


def test_small_classes_come_whole_and_padded_to_the_largest() -> None:
    texts = [f"good thing {i}" for i in range(12)] + [f"bad thing {i}" for i in range(4)]
    labels = [0] * 12 + [1] * 4
    small = text_task({"train": (texts, labels), "dev": (texts, labels), "test": (texts, labels)}, encoder="tfidf")
    for n in (3, 6, 20):
        batch = small.sample_real(Draws(0), torch.arange(2), n)
        assert isinstance(batch, ClassBatch)
        inputs, targets, weight = batch.batch
        assert isinstance(inputs, torch.Tensor)
        assert inputs.shape == (2, min(n, 12), small.dim)  # networks compute on padding as on texts
        assert weight.sum(1).tolist() == [min(n, 12), min(n, 4)]
        assert isinstance(targets, torch.Tensor)
        assert (targets == torch.arange(2)[:, None]).all()
        for row in range(2):
            present = inputs[row][weight[row] > 0]
            assert len(present.unique(dim=0)) == len(present)


def test_class_sampling_is_uniform(task: TextTask) -> None:
    counts = torch.zeros(len(task.train.labels))
    for step in range(300):
        batch = task.sample_real(Draws(step), torch.tensor([1]), 6)
        assert isinstance(batch, ClassBatch)
        near = torch.cdist(batch.batch.inputs[0], task.train.inputs).argmin(1)  # type: ignore[index]
        counts[near] += 1
    inside = counts[task.train.labels == 1]
    assert counts.sum() == inside.sum()
    assert inside.max() < 70  # 30 expected of each of 60


def test_augmentation_is_shared_or_per_sample() -> None:
    noisy = small_task(noise=0.5)
    batch = noisy.sample_real(Draws(0), torch.arange(3), 4)
    assert isinstance(batch, ClassBatch)
    shared = noisy.augment(Draws(1), batch, shared=True)
    assert isinstance(shared, ClassBatch)
    moved = shared.batch.inputs - batch.batch.inputs  # type: ignore[operator]
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
    flat = noisy.augment(Draws(1), batch.one_class(0), shared=False)
    assert isinstance(flat, Batch)
    shift = flat.inputs - batch.one_class(0).inputs  # type: ignore[operator]
    assert not torch.allclose(shift[0], shift[1])
    assert float(shift.norm(dim=1).mean()) == pytest.approx(0.5, rel=0.3)


def test_noise_is_part_of_what_experts_and_checkpoints_are(tmp_path: Path) -> None:
    weak, strong, none = small_task(noise=0.1), small_task(noise=2.0), small_task()
    assert identity(weak, ExpertRecipe()) != identity(strong, ExpertRecipe())
    assert "augmentation" not in none.describe().preprocessing  # what is kept of tasks without noise stays theirs

    def stop(done: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    for first in (weak, none):
        folder = tmp_path / str(first.noise)
        with pytest.raises(KeyboardInterrupt):
            distill(first, "dm", ipc=1, settings={"steps": 3}, out=folder, checkpoint_every=1, progress=stop)
        with pytest.raises(CheckpointError, match=rf"augmentation\.noise is {first.noise or 'absent'}, not 2\.0"):
            distill(strong, "dm", ipc=1, settings={"steps": 3}, out=folder, resume=True)
        if first.noise:
            with pytest.raises(CheckpointError, match=r"augmentation\.noise is 0\.1, not absent"):
                distill(none, "dm", ipc=1, settings={"steps": 3}, out=folder, resume=True)
        assert distill(first, "dm", ipc=1, settings={"steps": 3}, out=folder, resume=True).steps == 3


def test_a_teacher_belongs_to_its_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    clear, noisy = (trained_teacher(small_task(width=4, noise=noise), 1) for noise in (0.0, 5.0))
    assert any(not torch.equal(tensor, noisy.params[name]) for name, tensor in clear.params.items())


def test_own_network_judges_first() -> None:
    dim = small_task().dim
    own = text_task(
        corpus(), encoder="tfidf", model=lambda: nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, 3))
    )
    assert own.judges[0] == "model"
    assert own.features(own.init(Draws(0)), own.train.inputs[:5])[-1].shape == (5, 8)
    scores = own.evaluate(None, "model", Draws(0), 2, {})
    assert min(scores.values["accuracy"]) > 0.7


def test_a_pair_may_bring_its_test_split() -> None:
    (texts, labels), held_out = sentences(20), sentences(8, seed=2)
    task = text_task((texts, labels), encoder="tfidf", test=held_out)
    assert task.data.test.texts == tuple(held_out[0])
    assert len(task.data.train.texts) + len(task.data.dev.texts) == len(texts)
    assert [note.partition(":")[0] for note in task.data.notes] == ["dev"]
    with pytest.raises(
        ConfigError, match=r'test data go with .* a file of one; .*: \{"train": \(texts, labels\), "dev":'
    ):
        text_task("trec", encoder="tfidf", test=held_out)


def test_a_table_may_bring_its_test_split() -> None:
    (texts, labels), held_out = sentences(20), sentences(8, seed=2)
    columns = {"text": texts, "label": labels}
    frame, tested = pd.DataFrame(columns), pd.DataFrame({"text": held_out[0], "label": held_out[1]})
    rows = frame.to_dict("records")
    wanted = text_task((texts, labels), encoder="tfidf", test=held_out).data
    for data, test in ((frame, tested), (columns, held_out), (rows, tested), ((texts, labels), tested)):
        found = text_task(data, encoder="tfidf", test=test).data
        assert (found.fingerprint, found.test_fingerprint) == (wanted.fingerprint, wanted.test_fingerprint)
    folds = text_task(frame.assign(fold=range(len(texts))), encoder="tfidf", test=tested)  # which name no splits
    assert folds.data.fingerprint == wanted.fingerprint
    divided = frame.assign(split=["train"] * 50 + ["test"] * (len(texts) - 50))
    for data in (divided, divided.to_dict("records"), divided.to_dict("list")):
        with pytest.raises(ConfigError, match="a column of the table names its splits; leave test out"):
            text_task(data, encoder="tfidf", test=tested)


def test_a_file_may_bring_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (texts, labels), held_out = sentences(20), sentences(8, seed=2)
    frame, tested = pd.DataFrame({"text": texts, "label": labels}), pd.DataFrame(zip(*held_out, strict=True))
    frame.to_csv(tmp_path / "a.csv", index=False)
    tested.set_axis(["sentence", "class"], axis=1).to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    make = partial(text_task, model="linear", encoder="tfidf")
    wanted = make((texts, labels), test=held_out).data
    for test in (tmp_path / "b.jsonl", str(tmp_path / "b.jsonl"), held_out):
        for data in (str(tmp_path / "a.csv"), tmp_path / "a.csv", frame):
            found = make(data, test=test).data
            assert (found.fingerprint, found.test_fingerprint, found.name) == (
                *(wanted.fingerprint, wanted.test_fingerprint),
                "texts",  # a command would read the first file alone, so the data do not go by its name
            )
    assert make(tmp_path / "a.csv", test=held_out, name="mine").data.name == "mine"
    with pytest.raises(DataError, match=r"there is no file .*trian\.csv"):
        make(tmp_path / "trian.csv", test=held_out)
    with pytest.raises(ConfigError, match="unknown text data set 'trce'; did you mean 'trec'"):
        make("trce", test=held_out)
    read = list[Path]()
    monkeypatch.setattr(inputs, "read_table", lambda path: read.append(path) or read_table(path))
    for data, test in ((tmp_path / "a.csv", tmp_path / "b.jsonl"), (tmp_path / "b.jsonl", tmp_path / "a.csv")):
        read.clear()
        make(data, test=test)
        assert read == [data, test]
    with pytest.raises(DataError, match="nowhere"):
        make(tmp_path / "a.csv", test=tmp_path / "nowhere.csv")
    frame.assign(split=["train"] * 50 + ["test"] * 10).to_csv(tmp_path / "c.csv")
    with pytest.raises(ConfigError, match="a column of the table names its splits; leave test out"):
        make(tmp_path / "c.csv", test=held_out)
    with pytest.raises(ConfigError, match="test data go with"):
        make(tmp_path, test=held_out)
    with pytest.raises(ConfigError, match="text data that are loaded are read, with their classes; leave test out"):
        make(wanted, test=held_out)


def test_embeddings_in_place_of_texts_are_told_how_to_come_beside_them() -> None:
    points = np.eye(20, dtype="float32")
    for given in (points, torch.from_numpy(points)):
        with pytest.raises(DataError, match=r"numbers of shape \(20, 20\); give points of your own beside their texts"):
            text_task((given, [0, 1] * 10))
    texts = [f"text {row}" for row in range(20)]
    look_up = dict(zip(texts, points, strict=True))
    task = text_task((texts, [0, 1] * 10), encoder=lambda texts: [look_up[text] for text in texts], width=4)
    assert task.train.inputs.sum(1).eq(1).all()


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="cannot run on points"):
        text_task(corpus(), encoder="tfidf", model=lambda: nn.Linear(3, 3))
    dim = small_task().dim
    with pytest.raises(ConfigError, match=r"returned \(2, 5\)"):
        text_task(corpus(), encoder="tfidf", model=lambda: nn.Linear(dim, 5))
    for model, named in (("linear", "linear"), (lambda: nn.Linear(dim, 2), "a module of your own")):
        with pytest.raises(ConfigError, match=f"{named} takes no width"):
            text_task(corpus(), encoder="tfidf", model=model, width=5)
    with pytest.raises(DataError, match="zero vector"):
        text_task(corpus(), encoder=lambda texts: torch.zeros(len(texts), 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "mpl"}, "did you mean 'mlp'"),
        ({"model": "textcnn"}, "the network 'textcnn' reads token embeddings; token_task has it"),
        ({"model": "linear", "width": 5}, "linear takes no width"),
        ({"features": "0"}, "mlp takes none"),
        ({"noise": -1.0}, "noise is a number of at least 0, got -1"),
        ({"noise": float("nan")}, "noise is a number of at least 0, got nan"),
        ({"noise": "a"}, "noise is a number of at least 0, got 'a'"),
        ({"protocol": "default"}, "protocol is a FitProtocol, got 'default'"),
    ],
)
def test_wrong_arguments_are_refused_before_any_text_is_encoded(wrong: dict[str, object], message: str) -> None:
    def encode(texts: list[str]) -> torch.Tensor:
        raise AssertionError(f"{len(texts)} texts were encoded")

    with pytest.raises(ConfigError, match=message):
        text_task(corpus(), encoder=encode, **wrong)  # type: ignore[arg-type]


def test_how_networks_are_judged_may_be_given_whole() -> None:
    own = FitProtocol(epochs=4, lr=0.5, optimizer="sgd", batch=None)
    assert small_task(protocol=own, judge_epochs=None).protocol == own
    assert small_task(protocol=own, judge_epochs=3, judge_batch=7).protocol == replace(own, epochs=3, batch=7)


def test_judges_agree_on_easy_data(task: TextTask) -> None:
    for judge in (*OWN_JUDGES, *TFIDF):
        scores = task.evaluate(None, judge, Draws(0), 2, {})
        assert min(scores.values["accuracy"]) > 0.75, judge
    with pytest.raises(ConfigError, match="did you mean 'logreg'"):
        task.evaluate(None, "logregs", Draws(0), 1, {})


def test_read_alone_knows_the_words_of_the_sets_texts_and_no_others() -> None:
    data = corpus()
    other = replace(data, train=replace(data.train, texts=tuple(reversed(data.train.texts))))
    texts, labels = list(data.train.texts[::9]), data.train.labels[::9]

    def found(data: TextData, judge: str) -> float:
        return Reader(data, torch.device("cpu")).score(judge, texts, labels, None).values["accuracy"][0]

    def alone(inverse_penalty: float) -> tuple[float, float]:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS)
        model = make_pipeline(words, LogisticRegression(C=inverse_penalty, max_iter=1000)).fit(texts, labels)
        return model.score(data.dev.texts, data.dev.labels), model.score(data.test.texts, data.test.labels)

    assert found(data, "read-alone") == found(other, "read-alone")
    tried = [alone(inverse_penalty) for inverse_penalty in INVERSE_PENALTIES]
    # the points of dev and test texts have unit norm within the span of the set's, so a few of them change sides
    assert found(data, "read-alone") == pytest.approx(max(tried)[1], abs=0.1)
    every = [Reader(data, torch.device("cpu")).score(j, data.train.texts, data.train.labels, None) for j in TFIDF]
    assert every[0].values == every[1].values


def test_hard_labels_and_their_one_hot_soft_labels_are_judged_alike(task: TextTask) -> None:
    hard = task.select(torch.arange(0, 180, 9))
    labels = nn.functional.one_hot(hard.targets, 3).float()  # type: ignore[arg-type]
    for judge in (*OWN_JUDGES, *TFIDF):
        a = task.evaluate(hard, judge, Draws(0), 2, {})
        b = task.evaluate(hard._replace(targets=labels), judge, Draws(0), 2, {})
        assert a.values == b.values, judge


def test_the_unit_of_weights_is_free_and_small_weights_leave_no_class_out(task: TextTask) -> None:
    batch = task.select(torch.arange(0, 180, 9))._replace(weight=torch.linspace(0.5, 2, 20))
    for judge in (*OWN_JUDGES, *TFIDF):
        a, b = (task.evaluate(batch._replace(weight=batch.weight / unit), judge, Draws(0), 1, {}) for unit in (1, 2**9))
        assert a.values == b.values, judge
    padded = batch._replace(weight=batch.weight * (torch.arange(20) < 15))
    few = take(padded, torch.arange(15))
    values = [task.validate(one, Draws(0), {}) for one in (few, padded, padded._replace(weight=padded.weight / 2**9))]
    assert values == [values[0]] * 3
    two = Batch(batch.inputs[:2], torch.tensor([0, 1]), torch.tensor([1.0, 1e-9]))  # type: ignore[index]
    assert task.evaluate(two, "logreg", Draws(0), 1, {}).values["accuracy"][0] > 0


def test_logistic_regression_with_soft_labels_has_the_soft_gradient_zero(task: TextTask) -> None:
    points, probabilities = task.train.inputs[::6], soft(30, 3, "p").float()
    weight = torch.linspace(0.5, 2, 30)
    model = fit_logistic(points, probabilities, weight, 1.0)
    coefficients = torch.tensor(model.coef_, dtype=torch.float64, requires_grad=True)
    logits = points.double() @ coefficients.T + torch.tensor(model.intercept_)
    loss = (soft_cross_entropy(logits, probabilities.double()) * weight).sum() + 0.5 * coefficients.square().sum()
    (gradient,) = torch.autograd.grad(loss, coefficients)
    assert float(gradient.abs().max()) < 1e-2


def test_logistic_regression_on_one_class_predicts_it(task: TextTask) -> None:
    batch = Batch(task.train.inputs[:3], torch.tensor([2, 2, 2]), torch.ones(3))
    predicted, _ = logistic_predictions(batch, 3, task.dev.inputs, task.dev.labels, task.test.inputs)
    assert (predicted == 2).all()
    assert "1 of 3 classes" in task.evaluate(batch, "logreg", Draws(0), 1, {}).notes[-1]


def test_of_penalties_that_do_alike_on_development_data_the_strongest_is_taken() -> None:
    points, labels = torch.tensor([[-9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1])
    predicted, inverse = logistic_predictions(Batch(points, labels, torch.ones(2)), 2, points, labels, points)
    assert (predicted.tolist(), inverse) == ([0, 1], min(judges.INVERSE_PENALTIES))


def test_knn_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    points, queries = Draws(0).normal(7, 4, dtype=torch.float64), Draws(1).normal(3, 4, dtype=torch.float64)
    labels = soft(7, 3, "knn")
    found = knn_scores(points, labels, queries, 4, 0.3)
    for row, query in zip(found, queries, strict=True):
        expected = oracle.knn_vote(points.tolist(), labels.tolist(), query.tolist(), 4, 0.3)
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))
    monkeypatch.setattr(judges, "CHUNK_NUMBERS", 2 * len(points))  # two queries at once, then one
    torch.testing.assert_close(knn_scores(points, labels, queries, 4, 0.3), found)


@pytest.mark.parametrize("judge", ["knn", "logreg", "ridge"])
def test_the_heavier_of_two_equal_points_decides(task: TextTask, judge: str) -> None:
    points = task.train.inputs[:1].expand(2, -1)
    near = task.test.inputs @ points[0] > 0  # ridge regression has no bias: the others' scores turn round
    for weight, heavier in (([1.0, 5.0], 1), ([5.0, 1.0], 0)):
        found, _ = task._predict_solved(Batch(points, torch.tensor([0, 1]), torch.tensor(weight)), judge)
        assert (found[0, near] == heavier).all()


def test_ridge_is_the_stationary_point() -> None:
    x, weight = Draws(0).normal(20, 5, dtype=torch.float64), Draws(1).uniform(20).double()
    y = centred_targets(torch.arange(20) % 3, 3)
    solved = ridge_weights(x, y, 0.7, weight).requires_grad_()
    loss = ((x @ solved - y).square().sum(1) * weight).sum() + 0.7 * solved.square().sum()
    (gradient,) = torch.autograd.grad(loss, solved)
    assert float(gradient.abs().max()) < 1e-10


def test_the_ridge_is_the_largest_of_the_best_on_development_data() -> None:
    labels = torch.arange(20) % 3
    x, dev = (Draws(key).normal(20, 5, dtype=torch.float64) + torch.eye(5)[labels] for key in (0, 1))
    y = centred_targets(labels, 3)
    grid = (1e-3, 0.1, 3.0, 2.9, 30.0, 3000.0)
    right = [int(((dev @ ridge_weights(x, y, ridge)).argmax(1) == labels).sum()) for ridge in grid]
    assert right[2] == right[3] > max(right[:2] + right[4:])
    assert choose_ridge(x, y, dev, labels, grid) == choose_ridge(x, y, dev, labels, grid[::-1]) == 3.0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_ridge_regression_does_not_depend_on_the_units_of_points(
    scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    def encoder(texts: list[str], unit: float = 1.0) -> Tensor:
        return torch.stack([Draws(sum(map(ord, text))).normal(300) for text in texts]) * (unit / 300**0.5)

    data = ([f"text {index}" for index in range(90)], [0, 1, 2] * 30)  # fewer texts than dimensions
    usual = text_task(data, encoder=CallableEncoder(encoder))
    assert "mean norm" not in caplog.text
    scaled = text_task(data, encoder=CallableEncoder(partial(encoder, unit=scale), label="scaled"))
    assert "points of scaled have a mean norm of" in caplog.text
    assert scaled.ridge == pytest.approx(usual.ridge * scale**2)
    predicted = [task._predict_solved(task.select(torch.arange(10)), "ridge")[0] for task in (usual, scaled)]
    assert torch.equal(*predicted)


def test_probabilities_are_centred_and_scores_are_not() -> None:
    probabilities, scores = soft(4, 3, "centred"), torch.eye(3) - 1 / 3
    torch.testing.assert_close(centred_targets(probabilities, 3), probabilities - 1 / 3)
    torch.testing.assert_close(centred_targets(scores, 3), scores.double())
    torch.testing.assert_close(centred_targets(torch.tensor([2, 0]), 3).float(), scores[[2, 0]])
    assert centred_targets(torch.empty(4, 3, device="meta"), 3).shape == (4, 3)  # no value is read on the host


def test_judges_train_by_cross_entropy_on_probabilities_and_by_the_squared_error_on_scores(task: TextTask) -> None:
    state, batch = task.init(Draws(0)), task.select(torch.arange(5))._replace(weight=torch.tensor([1.0, 2, 0, 1, 1]))
    logits, _ = task.predict(state, batch.inputs)
    scores = Draws(1).normal(5, task.class_count)
    expected = (soft_cross_entropy(logits, batch.targets), (logits - scores).square().sum(1))
    for targets, losses in zip((batch.targets, scores), expected, strict=True):
        loss = judge_loss(task.model, one_tensor, targets)
        assert torch.allclose(loss(state, batch._replace(targets=targets), {})[0], weighted_mean(losses, batch.weight))
    module = FunctionalModule(own_networks(task.dim)["batch norm"])
    _, buffers = judge_loss(module, one_tensor, batch.targets)(module.init(Draws(0)), batch, {})
    assert buffers["0.num_batches_tracked"] == 1  # as networks do in training


def test_scores_become_probabilities(task: TextTask) -> None:
    scores = torch.tensor([[0.5, -0.2, -0.3], [-1.0, -1.0, 2.0]])
    assert not distributions(torch.full((1, 3), -1.0), 3).any()  # nothing is left of scores that are all so low
    found = distributions(scores, 3)
    torch.testing.assert_close(found, torch.tensor([[5 / 6, 2 / 15, 1 / 30], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(distributions(found, 3), found)
    batch = task.select(torch.arange(2))._replace(targets=scores)
    noted = [j for j in OWN_JUDGES if "labels are scores" in " ".join(task.evaluate(batch, j, Draws(0), 1, {}).notes)]
    assert noted == ["logreg", "knn"]


def test_what_is_chosen_reads_no_test_label(task: TextTask) -> None:
    data = corpus()
    shifted = replace(data.test, labels=(data.test.labels + 1) % 3)
    other = text_task(replace(data, test=shifted), encoder="tfidf", width=16, judge_epochs=60)
    batch = task.select(torch.arange(0, 180, 9))
    assert other.ridge == task.ridge
    assert other.validate(batch, Draws(0), {}) == task.validate(batch, Draws(0), {}) > 0.5
    for judge in ("logreg", "read-tfidf"):
        found = [own.evaluate(batch, judge, Draws(0), 1, {}) for own in (task, other)]
        assert found[0].notes == found[1].notes
        assert "C = " in found[0].notes[0]
        assert found[0].values != found[1].values


def test_sets_of_another_space_are_refused(task: TextTask, tmp_path: Path) -> None:
    batch = task.select(torch.arange(6))
    with pytest.raises(ShapeError, match="not of the space"):
        task.evaluate(Batch(torch.ones(6, 3), batch.targets, batch.weight), "mlp", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="expected soft labels"):
        task.evaluate(batch._replace(targets=torch.ones(6, 2)), "mlp", Draws(0), 1, {})
    with pytest.raises(ShapeError, match="got a dict"):
        task.predict(task.init(Draws(0)), {"a": torch.ones(2, 2)})
    other = text_task(corpus(), encoder=lambda texts: torch.tensor([[len(text), 1.0] for text in texts]))
    saved = DistilledSet(batch, other.describe(), "k-means", 2, 0)
    with pytest.raises(CheckpointError):
        evaluate(task, saved, n=1)


def test_pictures_and_exports(task: TextTask, tmp_path: Path) -> None:
    from safetensors import safe_open

    hard = task.select(torch.tensor([0, 130, 70]))
    softened = hard._replace(targets=torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]]))
    scored = hard._replace(targets=torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]))
    for batch, words in ((hard, "| 1 | food |"), (softened, "food 90%, music 10%"), (scored, "food +1.00")):
        picture, table = draw(task, batch, tmp_path)
        assert picture.read_bytes().startswith(b"\x89PNG")
        content = table.read_text()
        assert words in content
        assert task.data.train.texts[0] in content
    path, encoder = export_embeds(held(task, hard), tmp_path, task)
    assert encoder.name == "encoder.safetensors"
    with safe_open(path, "pt") as stored:
        assert stored.metadata()["encoder"] == "tfidf"
        assert stored.get_tensor("soft_labels").tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        torch.testing.assert_close(stored.get_tensor("embeds"), hard.inputs)
    (path,) = export_tensors(held(task, scored), tmp_path)
    with safe_open(path, "pt") as stored:
        torch.testing.assert_close(stored.get_tensor("targets"), scored.targets)


def test_points_of_one_dimension_are_drawn_on_a_line(tmp_path: Path) -> None:
    own = text_task(corpus(), encoder=lambda texts: torch.tensor([[len(text) - 40.5] for text in texts]))
    picture, _ = draw(own, own.select(torch.tensor([0, 130, 70])), tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [3, 20, 21])
def test_maps_tell_all_classes_apart_by_colours_and_else_by_names(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"class {index:02d}" for index in range(classes)]
    texts = [f"{name} word{number}" for name in names for number in range(4)], [name for name in names for _ in "1234"]
    own = text_task({"train": texts, "dev": texts, "test": texts}, encoder="tfidf")
    figures: list[Figure] = []
    monkeypatch.setattr(sys.modules[draw.__module__], "save_figure", lambda figure, path, dpi: figures.append(figure))
    draw_map(own, own.select(torch.arange(0, 4 * classes, 4)), tmp_path)
    ((axes,),) = (figure.axes for figure in figures)
    legends, beside = figures[0].legends, [text.get_text() for text in axes.texts]
    assert [text.get_text() for legend in legends for text in legend.get_texts()] + beside == names
    assert len(legends) == (classes <= 20)
    assert len({tuple(points.get_facecolor()[0, :3]) for points in axes.collections}) == classes


def test_hidden_noise_of_one_judge_does_not_touch_another(task: TextTask) -> None:
    batch = task.select(torch.arange(0, 180, 6))
    two, three = (task.evaluate(batch, "mlp", Draws(0), n, {}).values["accuracy"] for n in (2, 3))
    assert two[0] == pytest.approx(three[0], abs=0.02)
    state = task.init(Draws(0))
    assert isinstance(state, NetworkState)


class LastState(nn.Module):
    """A recurrent network over the numbers of a point: torch has no batching rule for it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(points[..., None])[0][:, -1])
        return logits


def own_networks(dim: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, 3)),
        "dropout": lambda: nn.Sequential(nn.Linear(dim, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
        "recurrent": LastState,
    }


@pytest.mark.parametrize(("kind", "epochs"), [("batch norm", 2), ("dropout", 60), ("recurrent", 2)])
def test_any_network_of_the_users_distils_and_judges_alike_each_time(kind: str, epochs: int) -> None:
    task = small_task(model=own_networks(small_task().dim)[kind], judge_epochs=epochs)
    settings = {"steps": 2, "real_batch": 8, "classes_at_once": 1}
    found = []
    for waste in (0, 3):
        torch.rand(waste)  # the global generator moves
        made = distill(task, "dc", ipc=2, settings=settings)
        entry = evaluate(task, made, n=2, judges=["model"], baselines=[]).headline()
        predicted = task._predict_trained(task.select(torch.arange(0, 180, 30)), "model", task.test.inputs, Draws(0), 2)
        found.append((made.batch.inputs, predicted, entry.mean, entry.sd))
    assert torch.equal(found[0][0], found[1][0])  # type: ignore[arg-type]
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2:] == found[1][2:]


def test_a_network_that_takes_one_class_at_a_time_is_told_apart() -> None:
    task = small_task(model=LastState)
    with pytest.raises(UnsupportedError, match="--classes-at-once 1"):
        distill(task, "dc", ipc=2, settings={"steps": 1, "real_batch": 8})


def test_only_networks_read_epochs_and_minibatches(task: TextTask) -> None:
    read = {judge: tuple(task.describe_judge(judge).reads) for judge in task.judges}
    assert [judge for judge, names in read.items() if names] == ["mlp"]


@pytest.mark.parametrize("judge", ["knn", "mlp", "logreg", "ridge"])
def test_points_without_weight_are_as_if_they_were_not_there(judge: str) -> None:
    task = text_task(corpus(), encoder="tfidf", judge_epochs=2)
    good, bad = (task.select(torch.arange(start, start + 20)) for start in (0, 20))
    wrong = bad._replace(targets=(one_tensor(bad.targets) + 1) % task.class_count, weight=torch.zeros(20))
    both = Batch(*(torch.cat([one, other]) for one, other in zip(good, wrong, strict=True)))  # type: ignore[arg-type]
    one, other = (task.evaluate(batch, judge, Draws(1), 2, {}) for batch in (good, both))
    assert one.values == other.values
    with pytest.raises(DataError, match="no sample of the set has a weight"):
        task.evaluate(wrong, judge, Draws(1), 1, {})


def test_given_networks_judge_as_the_network_distilled_with_does() -> None:
    usual = small_task()

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(usual.dim, 8), nn.Tanh(), nn.Linear(8, 3))

    own = text_task(corpus(), encoder="tfidf", model=network)
    batch = own.select(torch.arange(12))
    few = own.select(torch.arange(0, 180, 60))
    accuracies = [
        (own._predict_trained(few, judge, own.dev.inputs, Draws(0), 2) == own.dev.labels).double().mean(1)
        for judge in ("model", "mlp")
    ]
    assert own.validate(few, Draws(0), {}) == pytest.approx(float(accuracies[0].mean()))
    assert len({*torch.cat(accuracies).tolist()}) == 4  # so it is of these networks
    beside = own.with_judge("tanh", network)
    scores = [beside.evaluate(batch, judge, Draws(0), 2, {}).values for judge in ("model", "tanh")]
    assert scores[0] == scores[1]
    assert beside.describe_judge("tanh").epochs(12) == beside.describe_judge("model").epochs(12)
    judges = {"tanh": network, "knn": None, "linear": lambda: nn.Linear(usual.dim, 3)}
    found = evaluate(usual, batch, judges=judges, n=1)
    assert [entry.judge for entry in found.results if entry.metric == "accuracy"] == list(judges)
    identities = [str(entry.judging.get("network", "")).split("(")[0].split(" ")[0] for entry in found.results]
    assert identities == ["Sequential", "", "Linear"]
    with pytest.raises(ConfigError, match=r"the judge 'mine': the network returned \(2, 5\)"):
        evaluate(usual, batch, judges={"mine": lambda: nn.Linear(usual.dim, 5)}, n=1)
