import statistics
from pathlib import Path

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError, DataError, MmdistillWarning
from mmdistill.evaluate import evaluate
from mmdistill.labels import SoftmaxLabels
from mmdistill.objectives.base import Network
from mmdistill.objectives.kernel_ridge import KernelRidgeMatching
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch
from mmdistill.text.judges import centred_targets, ridge_weights
from mmdistill.text.methods import METHODS, distil_ridge, from_centroids, ridge_set
from mmdistill.text.task import TextTask, text_task
from tests.text.corpus import small_task
from tests.toys import BlobTask

EASY = {"steps": 30}


@pytest.fixture(scope="module")
def task() -> TextTask:
    return small_task()


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
def test_exact_distillation_returns_the_full_ridge(classes: int, ridge: float) -> None:
    x = Draws(0).normal(200, 30, dtype=torch.float64)
    y = centred_targets(Draws(1).integers(classes, 200), classes)
    full = ridge_weights(x, y, ridge)
    points, targets = distil_ridge(full, ridge)
    assert len(points) == classes - 1
    torch.testing.assert_close(ridge_weights(points, targets, ridge), full, rtol=0, atol=1e-10)


def test_exact_distillation_is_judged_like_all_texts(task: TextTask, tmp_path: Path) -> None:
    for ipc in (1, 10):
        distill(task, "ridge-exact", ipc=ipc, out=tmp_path / str(ipc))
        found = DistilledSet.load(tmp_path / str(ipc))
        assert len(found.batch.weight) == 2
        judged = evaluate(task, found, judges=["ridge"], baselines=("whole",))
        assert judged.headline().mean == judged.baselines["whole"][0].mean
    largest = ridge_set(task, 1, Settings(0), Draws(0)).labels()
    assert (largest.max(1).values >= -largest.min(1).values).all()


def test_k_means_is_class_by_class(task: TextTask) -> None:
    found = distill(task, "k-means", ipc=4)
    assert found.batch.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # type: ignore[union-attr]
    mean = torch.stack([task.train.inputs[task.train.labels == c].mean(0) for c in range(3)])
    single = distill(task, "k-means", ipc=1)
    torch.testing.assert_close(single.batch.inputs, mean)


@pytest.mark.parametrize("name", ["dm", "dc", "krr"])
def test_learned_sets_beat_random_ones(task: TextTask, name: str) -> None:
    gains = []
    for seed in range(3):
        found = distill(task, name, ipc=2, seed=seed, settings=EASY)
        judged = evaluate(task, found, n=2, seed=seed, baselines=("random",))
        gains.append(judged.headline().mean - judged.baselines["random"][0].mean)
    assert statistics.fmean(gains) > 2 * statistics.stdev(gains) / len(gains) ** 0.5
    assert statistics.fmean(gains) > 0.05


def test_labels_start_soft_where_learned(task: TextTask) -> None:
    made = from_centroids(task, 2, Settings(1, init="k-means"), "soft", Draws(0))
    with pytest.raises(ConfigError, match="start as the k-means centroids of their class; leave --init herding out"):
        from_centroids(task, 2, Settings(1, init="herding"), "soft", Draws(0))
    assert isinstance(made.labels, SoftmaxLabels)
    targets = made(Draws(0)).targets
    assert isinstance(targets, torch.Tensor)
    torch.testing.assert_close(targets.max(1).values, torch.full((6,), 0.9))
    assert made.groups().keys() == {"codes", "labels"}


def test_ridge_matching_with_probabilities_is_the_closed_form(task: TextTask) -> None:
    objective = METHODS["krr"].make_objective(METHODS["krr"].settings(1))
    assert isinstance(objective, KernelRidgeMatching)
    network = Network(task, task.init(Draws(0)))
    points = Draws(1).normal(4, task.dim, dtype=torch.float64)
    labels = Draws(2).normal(4, 3, dtype=torch.float64).softmax(1)
    real = task.sample_real(Draws(3), None, 10)
    assert isinstance(real, Batch)
    inputs = real.inputs.double()  # type: ignore[union-attr]
    value = objective(network, Batch(points, labels, torch.ones(4)), real._replace(inputs=inputs), Draws(0))
    kernel = objective.kernel
    gram, cross = kernel(network, points, points), kernel(network, inputs, points)
    ridge = float(objective.log_ridge.exp()) * float(gram.diagonal().mean())
    prediction = cross @ torch.linalg.inv(gram + ridge * torch.eye(4)) @ (labels - 1 / 3)
    goal = centred_targets(real.targets, 3)  # type: ignore[arg-type]
    expected = 0.5 * (prediction - goal).square().sum(1).mean()
    torch.testing.assert_close(value, expected)


def test_more_centroids_than_texts_and_other_domains(task: TextTask) -> None:
    with pytest.raises(DataError, match="lower the budget"):
        distill(task, "k-means", ipc=1000)
    with pytest.raises(ConfigError, match="sentence points"):
        METHODS["k-means"].solve(BlobTask(), 1, Settings(0), Draws(0))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["krr", "dm"])
def test_points_of_small_classes_start_from_copies_that_can_part(name: str) -> None:
    texts = [
        f"word{label} number {index} of {index % 7}"
        for label, count in enumerate((30, 30, 4))
        for index in range(count)
    ]
    labels = ["a"] * 30 + ["b"] * 30 + ["c"] * 4
    task = text_task((texts, labels), test=(texts[::7], labels[::7]), encoder="tfidf")
    with pytest.warns(
        MmdistillWarning, match="class c has 4 samples, fewer than the 6 asked for: the rest start as copies"
    ):
        found = distill(task, name, ipc=6, settings={"steps": 1})
    assert isinstance(found.batch.inputs, torch.Tensor)
    assert len(torch.unique(found.batch.inputs, dim=0)) == 18
