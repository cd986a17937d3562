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


def test_results_say_by_which_augmentation_judges_trained(tmp_path: Path) -> None:
    assert "protocol" in task(Halved()).judging_chosen
    texts = [task(augmentation).judging_chosen.get("protocol") for augmentation in (None, Noisy(), Halved())]
    assert len(set(texts)) == 3
    assert "augmentation Halved " in str(texts[2])
    plain = image_task("digits", model="mlp", width=4, judge_augment=False, augmentation=Halved())
    assert "Halved" not in str(plain.judging_chosen)


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
