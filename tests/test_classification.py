"""Accuracy and balanced accuracy of predicted classes, against scikit-learn's."""

from functools import partial

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from mmdistill.classification import classes_seen, collapse_note, pooled, scored, unrecognised
from mmdistill.image import image_task
from mmdistill.runtime import Draws
from mmdistill.task import Scores


def test_both_accuracies_are_scikit_learns() -> None:
    draws = Draws(3)
    truth = torch.tensor([0] * 5 + [2] * 40 + [7] * 12)[draws.permutation(57)]
    predicted = torch.stack([truth.where(draws.fold("keep", k).uniform(57) < 0.6, 2) for k in range(4)])
    found = scored("own", predicted == truth, truth).values
    assert found["accuracy"] == tuple((own == truth).double().mean().item() for own in predicted)
    expected = [balanced_accuracy_score(truth, own) for own in predicted]
    assert found["balanced_accuracy"] == pytest.approx(expected, rel=1e-12)
    assert len(set(found["balanced_accuracy"])) == 4


@pytest.mark.parametrize(("sizes", "uneven"), [((4, 6), False), ((4, 7), True), ((3, 3, 3), False)])
def test_even_classes_need_no_second_number(sizes: tuple[int, ...], uneven: bool) -> None:
    truth = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert ("balanced_accuracy" in scored("own", truth[None] == 0, truth).values) == uneven


def test_classes_without_a_sample_do_not_count() -> None:
    hits, truth = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([5, 5, 9])
    assert scored("own", hits, truth).by_class == {5: (0.5,), 9: (1.0,)}


def test_a_network_that_predicts_few_classes_is_named() -> None:
    predicted = torch.tensor([[0, 1, 2], [1, 1, 1]])
    assert classes_seen(predicted) == (3, 1)
    assert collapse_note(Scores("own", {}, seen=(3, 1)), 3, 3) == ("predicts only 1 of 3 classes",)
    assert collapse_note(Scores("own", {}, seen=(3,)), 3, 3) == ()


def test_networks_judged_one_by_one_are_remarked_together() -> None:
    truth, names = torch.tensor([0, 0, 1, 1]), ("cat", "dog")
    right = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]  # each network knows one class only
    remark = partial(unrecognised, class_names=names, least=0.1)
    parts = [scored("gcn", torch.tensor([own]), truth, ("odd",), remark=remark) for own in right]
    assert [part.notes[1].split(" is")[0] for part in parts] == ["class dog", "class cat"]
    assert pooled(parts).notes == ("odd",)
    assert pooled(parts[:1] * 2).notes == ("odd", "class dog is nearly never recognised (test accuracy 0.00)")
    together = scored("gcn", torch.tensor(right), truth, ("odd",), remark=remark)
    assert pooled(parts) == together == pooled([together])


def test_of_pooled_networks_the_one_that_predicts_the_fewest_classes_is_said() -> None:
    hits, truth, remark = torch.ones(1, 2), torch.tensor([0, 1]), partial(collapse_note, classes=4, least=4)
    parts = [scored("mlp", hits, truth, seen=(seen,), remark=remark) for seen in (4, 2, 3)]
    assert [part.notes for part in parts] == [(), ("predicts only 2 of 4 classes",), ("predicts only 3 of 4 classes",)]
    assert pooled(parts).notes == ("predicts only 2 of 4 classes",)
    assert pooled(parts[:1]).notes == ()


@pytest.mark.parametrize("judge", ["mlp", "ntk"])
def test_judges_of_uneven_images_give_both(judge: str) -> None:
    images, labels = Draws(0).normal(40, 1, 4, 4), torch.tensor([0] * 30 + [1] * 10)
    task = image_task((images, labels), test=(images, labels))
    values = task.evaluate(None, judge, Draws(1), 1, {}).values
    assert set(values) == {"accuracy", "balanced_accuracy"}
