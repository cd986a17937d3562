"""The two robust scores: their formula, and what they compare."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from mmdistill.abilities import overrides_of
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import ConfigError
from mmdistill.evaluate import evaluate
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image import robust as scores
from mmdistill.labels import classes_of
from mmdistill.methods import CORE_METHODS
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores


def test_scores_are_their_formula() -> None:
    # by hand: whole 0.9, set with hard labels 0.5, set 0.7, random 0.4
    alpha = 0.5 * (0.7 - 0.4) - 0.5 * (0.9 - 0.5)
    expected = (math.e**alpha - 1 / math.e) / (math.e - 1 / math.e)
    assert scores.label_robust(0.9 - 0.5, 0.7 - 0.4) == pytest.approx(expected)
    assert scores.label_robust(1.0, -1.0) == pytest.approx(0)
    assert scores.label_robust(-1.0, 1.0) == pytest.approx(1)
    assert scores.label_robust(0.4, 0.3, weight=1) == pytest.approx(scores.unit_score(0.3))
    assert scores.augmentation_robust(0.2, 0.1) == pytest.approx(scores.unit_score(0.15))


class Told(ImageTask):
    """A task whose judges' accuracies are given by what they are asked to judge."""

    keys: ClassVar[dict[int, list[bool]]] = {}

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        if synthetic is None:
            return Scores(judge, {"accuracy": (0.9 - 0.3 * (not self.chosen.augment),)})
        targets = synthetic.targets
        assert isinstance(targets, Tensor)
        random = bool((synthetic.weight == 2).all())
        self.keys.setdefault(draws.integer(), []).append(random)
        assert bool(learned) != random
        value = (0.4 if random else 0.7) if targets.is_floating_point() else 0.5
        return Scores(judge, {"accuracy": (value - (0.05 if random else 0.2) * (not self.chosen.augment),)})


def test_soft_labels_are_compared_with_a_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    base = image_task("digits", model="mlp", width=8)
    task = Told(base.data, base.network, "mlp", base.device, judge_augment=False)  # what is compared says it itself
    monkeypatch.setattr(scores, "trained_teacher", lambda task, epochs: task.init(Draws(0)))
    real = task.select(torch.arange(20))
    soft = Batch(real.inputs, torch.full((20, 10), 0.1), real.weight)
    random = real._replace(weight=2 * real.weight)
    learned = {"inner_lr": torch.tensor(0.1)}  # with which the set alone is to be used
    task.keys.clear()
    subsets: list[int] = []

    def subset(draws: Draws) -> Batch:
        subsets.append(draws.integer())
        return random

    found = scores.robust_scores(task, soft, "mlp", Draws(0), 2, learned, subset).values
    assert len(set(subsets)) == 2
    assert len(task.keys) == 2  # one for each network: the set and the random images start from the same one
    assert all(sorted(seen) == [False, False, False, True, True] for seen in task.keys.values())
    assert found["label-robust score"] == pytest.approx([scores.label_robust(0.9 - 0.5, 0.7 - 0.4)] * 2)
    without = (0.7 - 0.2) - (0.4 - 0.05)
    assert found["augmentation-robust score"] == pytest.approx([scores.augmentation_robust(0.3, without)] * 2)
    assert found["hard-label gap"] == pytest.approx([0.4, 0.4])


def test_a_task_that_is_judged_otherwise_says_so() -> None:
    task = image_task("digits", model="mlp", width=8, judge_epochs=3, judge_augment=True)
    other = task.judged_by(replace(task.chosen, epochs=5, augment=False))
    assert task.judging_chosen == {"epochs": 3, "protocol": "augmentation on"}
    assert other.judging_chosen == {"epochs": 5, "protocol": "augmentation off"}
    assert [of.describe_judge("mlp").epochs(10) for of in (task, other)] == [3, 5]
    assert other.network is task.network
    with pytest.raises(ConfigError, match="judge_epochs is a whole number of at least 1, got 0"):
        task.judged_by(replace(task.chosen, epochs=0))


def test_both_sides_of_robustness_say_how_they_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    task, said = image_task("digits", model="mlp", width=8), []

    def told(self: ImageTask, *_: object) -> Scores:
        said.append(dict(overrides_of(self)))
        return Scores("mlp", {"accuracy": (0.5,)})

    monkeypatch.setattr(ImageTask, "evaluate", told)
    batch = task.select(torch.arange(10))
    task.robust(batch, "mlp", Draws(0), 1, {}, lambda draws: batch)
    sides = [{"protocol": f"augmentation {side}"} for side in ("on", "off")]
    assert all(side in said for side in sides)
    assert all(found in sides for found in said)
    assert task.judging_chosen == {}


def test_a_distilled_set_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    task = image_task("digits", model="mlp", width=8, judge_epochs=3)
    result = distill(task, "dm", ipc=1, settings={"steps": 2, "real_batch": 4})
    with monkeypatch.context() as given:

        def told(self: ImageTask, synthetic: Batch | None, judge: str, *_: object) -> Scores:
            if synthetic is None:
                return Scores(judge, {"accuracy": (0.9,)})
            own = torch.equal(synthetic.inputs, result.batch.inputs)  # type: ignore[arg-type]
            lost = 0.0 if self.chosen.augment else 0.2 if own else 0.05
            return Scores(judge, {"accuracy": ((0.7 if own else 0.4) - lost,)})

        given.setattr(ImageTask, "evaluate", told)
        found = evaluate(task, result, n=2, robust=True)
    assert [(entry.metric, entry.n) for entry in found.results][:2] == [
        ("label-robust score", 2),
        ("augmentation-robust score", 2),
    ]
    assert found.results[0].mean == pytest.approx(scores.unit_score(0.5 * 0.3 - 0.5 * 0.2))  # 0.7 - 0.4, and 0.9 - 0.7
    assert found.results[1].mean == pytest.approx(scores.unit_score(0.5 * 0.3 + 0.5 * 0.15))  # and 0.5 - 0.35
    assert evaluate(task, result, n=1, robust=True).results[0].judge == "mlp"
    named = image_task("digits", model="mlp", width=8, judge_epochs=2, protocol="mtt")
    assert evaluate(named, result, n=1, robust=True).results[0].judge == "mlp [mtt]"
    with pytest.raises(ConfigError, match="no baselines to judge alone"):
        evaluate(task, result, robust=True, baselines_only=True)
    with pytest.raises(ConfigError, match="equal count"):
        evaluate(task, result.batch, n=1, robust=True)


def test_classes_smaller_than_the_set_leave_the_gap_at_hard_labels() -> None:
    digits = image_task("digits").data
    few = torch.cat([(digits.train_labels == index).nonzero()[:2, 0] for index in range(10)])
    tensors = digits.train_images[few], digits.train_labels[few]
    task = image_task(tensors, test=tensors, model="mlp", width=8, judge_epochs=2)
    result = distill(task, "dc", ipc=3, settings={"steps": 1, "real_batch": 2, "init": "noise"})
    found = evaluate(task, result, n=2, robust=True)
    assert [(entry.metric, entry.n) for entry in found.results] == [("hard-label gap", 2)]
    assert "class 0 has 2 samples, fewer than the 3" in found.failures["the robust scores"]


def test_a_set_knows_what_its_samples_stand_for_whatever_their_labels_say(tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=8, judge_epochs=1)
    few = {"steps": 1, "real_batch": 4, "inner_steps": 1}
    made = distill(task, CORE_METHODS["dc"].labelled("soft"), ipc=2, settings=few, out=tmp_path / "run")
    assert made.classes is not None
    assert made.classes.tolist() == sorted(made.classes.tolist())
    read = DistilledSet.load(tmp_path / "run")
    assert read.classes is not None
    assert torch.equal(read.classes, made.classes)
    misled = replace(read, batch=read.batch._replace(targets=torch.eye(10)[(read.classes + 1) % 10]))
    paths = DOMAIN.exports["folder"](misled, tmp_path / "export")
    assert [path.parent.name for path in paths] == [str(index // 2) for index in range(20)]
    assert distill(task, "dc", ipc=1, settings=few).classes is None  # class indices say it


def test_weak_soft_labels_leave_a_set_in_its_order() -> None:
    by_place = torch.arange(10).repeat_interleave(2)
    weak = torch.full((20, 10), 0.1)
    weak[:, 0] = 0.2  # a teacher that knows little
    agreeing = torch.tensor([0, 1, 4, 9, 13])
    weak[agreeing, by_place[agreeing]] = 0.5
    assert classes_of(weak, 10).tolist() == by_place.tolist()
    shuffled = torch.eye(10)[torch.arange(20) % 10]  # in another order, with which two agree by chance
    assert classes_of(shuffled, 10).tolist() == [*range(10)] * 2
    assert classes_of(torch.tensor([[0.6, 0.4], [0.7, 0.3]]), 2).tolist() == [0, 1]
    uneven = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    assert classes_of(uneven, 2).tolist() == [0, 0, 0, 1]
    assert classes_of(weak[:19], 10).tolist() == weak[:19].argmax(1).tolist()


def test_labels_that_agree_with_an_order_by_chance_do_not_tell_it() -> None:
    by_place = torch.arange(4).repeat_interleave(4)  # 4 of 16 agree by chance, with a deviation of 1.7
    for agreeing, expected in (([0, 4, 8, 12, 1, 5], False), ([0, 4, 8, 12, 1, 5, 9, 13], True)):
        largest = (by_place + 1) % 4
        largest[agreeing] = by_place[agreeing]
        soft = 0.1 + 0.6 * torch.eye(4)[largest]
        assert torch.equal(classes_of(soft, 4), by_place if expected else largest)
