"""An augmentation of a user's own: methods and judges get it, and runs and results say so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdistill import compare, distill, evaluate, image_task, save_evaluation
from mmdistill.errors import CheckpointError, ConfigError, UnsupportedError
from mmdistill.image import ImageTask
from mmdistill.image.augment import WITHOUT_FLIP, SiameseAugmentation
from mmdistill.metrics import judging_record
from mmdistill.runtime import Draws


class Noisy(SiameseAugmentation):
    """Adds noise; counts its calls."""

    sigma = 0.1
    calls: list[bool] = []  # noqa: RUF012

    def augmented(self, draws: Draws, images: Tensor, groups: int = 1, *, shared: bool) -> Tensor:
        self.calls.append(shared)
        return images + self.sigma * draws.to(images.device).normal(1, *images.shape[1:])


class Halved(SiameseAugmentation):
    """Halves all images."""

    def augmented(self, draws: Draws, images: Tensor, groups: int = 1, *, shared: bool) -> Tensor:
        return images / 2


SHORT: dict[str, Any] = {"steps": 2, "real_batch": 4, "augment": True}


def task(augmentation: SiameseAugmentation | None) -> ImageTask:
    return image_task("digits", model="mlp", width=4, judge_epochs=2, judge_augment=True, augmentation=augmentation)


def test_methods_and_judges_augment_by_it() -> None:
    noisy = task(Noisy())
    Noisy.calls.clear()
    made = distill(noisy, "dm", ipc=1, settings=SHORT)
    assert Noisy.calls
    assert all(Noisy.calls)
    Noisy.calls.clear()
    evaluate(noisy, made, n=1, baselines=())
    assert Noisy.calls
    assert not any(Noisy.calls)


def test_runs_with_other_augmentations_are_told_apart(tmp_path: Path) -> None:
    rotating = SiameseAugmentation(("rotate",)), SiameseAugmentation(("rotate",), rotate=30)
    tasks = [task(augmentation) for augmentation in (None, Noisy(), Halved(), *rotating)]
    for index, each in enumerate(tasks):
        folder = tmp_path / "runs" / str(index)
        made = distill(each, "dm", ipc=1, settings=SHORT, out=folder)
        save_evaluation(each, made, evaluate(each, made, n=1, baselines=()), folder)
    assert len(compare(tmp_path / "runs").results) == len(tasks)
    distill(tasks[1], "dm", ipc=1, settings=SHORT, out=tmp_path / "one", resume="auto")
    with pytest.raises(CheckpointError, match=r"augmentation\.class is Noisy, not Halved"):
        distill(tasks[2], "dm", ipc=1, settings=SHORT, out=tmp_path / "one", resume="auto")


def test_results_say_by_which_augmentation_judges_trained() -> None:
    records = [judging_record(task(augmentation), "mlp") for augmentation in (None, Noisy(), Halved())]
    texts = [record.pop("augmentation", "") for record in records]
    assert texts[0] == ""
    assert str(texts[1]).startswith("Noisy ")
    assert str(texts[2]).startswith("Halved ")
    assert records[0] == records[1] == records[2]
    for options in ({"judge_augment": False}, {"protocol": "kip"}, {"protocol": "dc"}):
        plain = image_task("digits", model="mlp", width=4, augmentation=Halved(), **options)  # type: ignore[arg-type]
        assert "augmentation" not in judging_record(plain, "mlp")


def test_the_tasks_own_augmentation_is_none_of_the_users() -> None:
    usual, given = task(None), task(SiameseAugmentation(WITHOUT_FLIP))
    assert given.judging_chosen == usual.judging_chosen
    vectors = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
    assert "augmentation" in image_task(vectors, model="mlp", augmentation=SiameseAugmentation(rotate=5)).judging_chosen
    assert image_task(vectors, model="mlp", augmentation=SiameseAugmentation()).judging_chosen == {}


class Strong(Halved):
    """Sets what is no field of it."""

    def __init__(self, strength: float) -> None:
        super().__init__(WITHOUT_FLIP)
        object.__setattr__(self, "strength", strength)


def test_values_that_a_subclass_sets_count() -> None:
    one, same, other = Strong(0.1), Strong(0.1), Strong(0.9)
    assert one.describe() == same.describe() != other.describe()
    assert task(one).judging_chosen != task(other).judging_chosen


def test_an_augmentation_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mirrors images .*WITHOUT_FLIP.*mirror=True"):
        task(SiameseAugmentation(rotate=5))
    assert task(SiameseAugmentation(WITHOUT_FLIP, rotate=5)).augmentation.rotate == 5
    with pytest.raises(ConfigError, match="augmentation is a SiameseAugmentation"):
        task(Noisy)  # type: ignore[arg-type]
    vectors = torch.rand(40, 1, 1, 8), torch.arange(40) % 4
    with pytest.raises(UnsupportedError, match="a side of one pixel"):
        image_task(vectors, model="mlp", augmentation=Noisy())
    with pytest.raises(AttributeError, match="augmentation"):
        task(None).augmentation = Noisy()  # type: ignore[misc]


def test_judges_see_what_the_subclass_computes() -> None:
    halved = task(Halved())
    batch = halved.select(torch.arange(4))
    assert torch.equal(halved.augment(Draws(0), batch, shared=True).inputs, batch.inputs / 2)  # type: ignore[union-attr,operator]
