import torch

from mmdistill.allocation import allocate
from mmdistill.coresets import coreset
from mmdistill.distill import distill
from mmdistill.runtime import Draws
from mmdistill.text.judges import centred_targets
from mmdistill.text.selection import greedy_ridge, selected_texts
from mmdistill.text.task import TextTask
from tests.oracles import text as oracle
from tests.text.corpus import small_task


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
    assert all((row == task.train.inputs).all(1).any() for row in result.batch.inputs)
    assert result.batch.targets.tolist() == [0] * 3 + [1] * 3 + [2] * 3  # type: ignore[union-attr]
    own = task.evaluate(result.batch, "read-tfidf", Draws(0), 1, {}).values["accuracy"][0]
    counts = allocate(3, "ipc", task.labels, 3)
    others = [
        task.evaluate(coreset(task, "real", counts, Draws(seed)), "read-tfidf", Draws(0), 1, {}).values["accuracy"][0]
        for seed in range(5)
    ]
    assert own > sum(others) / 5


def test_a_large_set_is_thinned_by_class(monkeypatch: object) -> None:
    import mmdistill.text.selection as module

    task: TextTask = small_task()
    monkeypatch.setattr(module, "MOST", 30)  # type: ignore[attr-defined]
    assert len(selected_texts(task, 2, Draws(0))(Draws(0)).weight) == 6
