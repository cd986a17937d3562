import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.allocation import allocate
from mmdistill.coresets import coreset
from mmdistill.distill import distill
from mmdistill.errors import ConfigError, DataError, UnknownNameError
from mmdistill.evaluate import evaluate
from mmdistill.reporting.report import summary
from mmdistill.rules import RULES, herding
from mmdistill.runtime import Draws
from mmdistill.selections import known_bytes, selection
from mmdistill.settings import Settings
from mmdistill.text.judges import centred_targets
from mmdistill.text.selection import class_centroids, greedy_ridge, selected_texts
from mmdistill.text.task import TextTask, text_task
from tests.oracles import text as oracle
from tests.text.corpus import small_task, token_corpus_task
from tests.toys import BlobTask


def test_each_choice_is_the_one_that_lowers_the_ridge_loss_most() -> None:
    points = Draws(0).normal(14, 4, dtype=torch.float64)
    labels = torch.arange(14) % 2
    targets = centred_targets(labels, 2)
    kernel = points @ points.T
    found = greedy_ridge(kernel, targets, labels, torch.tensor([2, 3]), ridge=0.5)
    expected = oracle.forward_selection(kernel.tolist(), targets.tolist(), labels.tolist(), [2, 3], 0.5)
    assert found.tolist() == expected


def test_selected_texts_are_real_and_beat_random_ones() -> None:
    task = small_task()
    result = distill(task, "select", ipc=3)
    assert isinstance(result.batch.inputs, torch.Tensor)
    points, labels = task.train.inputs, task.train.labels
    chosen = greedy_ridge(points @ points.T, centred_targets(labels, 3), labels, torch.tensor([3, 3, 3]))
    assert torch.equal(result.batch.inputs, points[chosen])
    assert result.stored_bytes == selection(task, "herding", ipc=3).stored_bytes
    assert result.batch.targets.tolist() == [0] * 3 + [1] * 3 + [2] * 3  # type: ignore[union-attr]
    own = task.evaluate(result.batch, "read-tfidf", Draws(0), 1, {}).values["accuracy"][0]
    counts = allocate(3, "ipc", task.labels, 3)
    others = [
        task.evaluate(coreset(task, "real", counts, Draws(seed)), "read-tfidf", Draws(0), 1, {}).values["accuracy"][0]
        for seed in range(5)
    ]
    assert own > sum(others) / 5


def test_a_class_with_fewer_texts_than_are_chosen_is_refused() -> None:
    texts = [f"word{row % 7} of {'rare' if row < 2 else 'often'}{row % 5}" for row in range(30)]
    task = text_task((texts, ["rare"] * 2 + ["often"] * 28), encoder="tfidf", device="cpu")
    have = torch.bincount(task.labels).min()
    with pytest.raises(DataError, match=f"class rare has {have} sample.*, fewer than the 3 asked for; lower the budg"):
        distill(task, "select", ipc=3)
    kernel, labels = torch.eye(5), torch.tensor([0, 1, 1, 1, 1])
    with pytest.raises(DataError, match="class 0 has 1 sample, fewer than the 2 asked for"):
        greedy_ridge(kernel, centred_targets(labels, 2), labels, torch.tensor([2, 2]))


def test_only_texts_that_are_left_are_chosen_where_no_gain_is_finite() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    kernel = 1e20 * torch.eye(4)  # whose squares overflow
    found = greedy_ridge(kernel, centred_targets(labels, 2), labels, torch.tensor([0, 2]))
    assert found.sort().values.tolist() == [2, 3]


def test_a_large_set_is_thinned_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmdistill.text.selection as module

    task: TextTask = small_task()
    pools = []

    def watched(kernel: Tensor, targets: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        pools.append(labels.bincount().tolist())
        return greedy_ridge(kernel, targets, labels, counts)

    monkeypatch.setattr(module, "MOST", 30)
    monkeypatch.setattr(module, "greedy_ridge", watched)
    for budget in (2, 12):
        assert len(selected_texts(task, budget, Settings(0), Draws(0))(Draws(0)).weight) == 3 * budget
    assert pools == [[10, 10, 10], [12, 12, 12]]  # of 60 texts of each class


def require_centroids_of_the_method(task: TextTask, ipc: int) -> None:
    """Of one key, the baseline is bit for bit what the method stores."""
    found = distill(task, "k-means", ipc=ipc, seed=3)
    counts = allocate(ipc, "ipc", task.labels, task.num_classes)
    again = coreset(task, "centroids", counts, Draws(3, ("start",)))
    assert torch.equal(found.batch.inputs, again.inputs.cpu())  # type: ignore[arg-type, union-attr]
    assert torch.equal(found.batch.targets, again.targets.cpu())  # type: ignore[arg-type, union-attr]
    kept = selection(task, "centroids", ipc, seed=3)
    assert kept.stored_bytes == found.stored_bytes == known_bytes(task, ipc)["centroids"]
    assert found.stored_bytes == len(again.weight) * (4 * task.dim + 1)


def test_the_centroids_are_those_of_the_method() -> None:
    require_centroids_of_the_method(small_task(), 2)


@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("MMDISTILL_DATA", "nowhere"), "trec", "train.tsv").exists(),
    reason="MMDISTILL_DATA has no trec",
)
def test_the_centroids_of_trec_are_those_of_the_method() -> None:
    require_centroids_of_the_method(text_task("trec", encoder="tfidf", device="cpu"), 2)


def test_centroids_stand_beside_a_result_for_every_judge() -> None:
    task = small_task()
    found = distill(task, "select", ipc=1)
    judged = evaluate(task, found, judges=["logreg", "read-tfidf"], n=1, baselines=["random", "centroids", "k-means"])
    assert not judged.failures
    assert {entry.judge for entry in judged.baselines["centroids"]} == {"logreg", "read-tfidf"}
    (row,) = [line for line in summary(found, judged, known_bytes(task, 1)).splitlines() if line.split()[0] == "bytes"]
    assert row.split()[-2] == f"{3 * (4 * task.dim + 1):,}"


def test_only_sentence_points_have_centroids(tmp_path: Path) -> None:
    task = token_corpus_task(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown baseline 'centroids'"):
        evaluate(task, task.select(torch.arange(3)), baselines=["centroids"])
    with pytest.raises(ConfigError, match="centroids are those of sentence points, and 'blobs' has none"):
        class_centroids(BlobTask(), torch.tensor([1, 1, 1]), Draws(0))


def test_a_rule_of_ones_own_may_change_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def centred(embedding: Tensor, labels: Tensor | None, counts: Tensor, draws: Draws) -> Tensor:
        assert labels is not None
        embedding -= embedding.mean(0)
        chosen = herding(embedding, labels, counts)
        labels.zero_()
        counts.zero_()
        return chosen

    monkeypatch.setitem(RULES, "centred", centred)
    task = small_task()
    points, labels = task.train.inputs.clone(), task.labels.clone()
    selection(task, "centred", ipc=2)
    assert torch.equal(task.train.inputs, points)
    assert torch.equal(task.labels, labels)
