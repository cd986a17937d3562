"""Images of crops that a teacher recognises best: their choice, their places, their labels, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

from mmdistill import image_task
from mmdistill.budget import GivenBudget, method_within_budget
from mmdistill.distill import distill
from mmdistill.errors import CheckpointError, ConfigError, DataError
from mmdistill.image import DOMAIN
from mmdistill.image.methods import realistic as module
from mmdistill.image.methods.realistic import CropSettings, draw_boxes, realistic_images
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.teacher import soft_labels, trained_teacher
from mmdistill.registry import get_method
from mmdistill.rules import random_subset
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import NetworkState, Task
from tests.oracles import crops as oracle
from tests.toys import BlobTask

SHAPE = (2, 9, 7)


class PictureTask(BlobTask):
    """Noise of three classes, in float64, and a smooth network."""

    def __init__(self, per_class: int = 12, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__(per_class, torch.float64)
        self.images = Draws(1).normal(3 * per_class, *shape, dtype=torch.float64)
        inputs = shape[0] * shape[1] * shape[2]
        self.module = FunctionalModule(lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, 5), nn.Linear(5, 3)))


def untrained(task: Task, epochs: int) -> NetworkState:
    """A teacher that needs no training."""
    return task.init(Draws(3))


@pytest.mark.parametrize(("ipc", "tiles", "candidates", "numbers"), [(3, 1, 7, 65_536), (2, 2, 10, 1200), (1, 3, 2, 1)])
def test_images_are_those_of_the_paper(
    ipc: int, tiles: int, candidates: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "trained_teacher", untrained)
    monkeypatch.setitem(module.AT_ONCE, "cpu", numbers)
    task, draws = PictureTask(), Draws(5)
    settings = CropSettings(0, candidates=candidates, crops=4, tiles=tiles)
    made = realistic_images(task, ipc, settings, draws)(draws)
    sizes = torch.full((3,), max(candidates, ipc * tiles**2))
    rows = random_subset(task.labels, sizes, draws.fold("candidates"))
    boxes = draw_boxes(draws.fold("boxes"), (len(rows), 4), *SHAPE[1:])
    by_class = [[task.images[row] for row in own] for own in rows.view(3, -1).tolist()]
    boxes_by_class = [[[tuple(box) for box in one] for one in own] for own in boxes.view(3, -1, 4, 4).tolist()]

    def network(images: Tensor) -> Tensor:
        return task.predict(untrained(task, 1), images)[0].detach()

    wanted = oracle.images(by_class, boxes_by_class, ipc, tiles, network)  # type: ignore[arg-type]
    torch.testing.assert_close(made.inputs, wanted, rtol=0, atol=1e-12)


def test_crops_keep_the_ratio_and_lie_within() -> None:
    top, left, height, width = draw_boxes(Draws(0), (20_000,), 32, 48).double().unbind(-1)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 48)).all())
    assert float((width / height / 1.5 - 1).abs().max()) < 0.07  # whole pixels
    share = height * width / (32 * 48)
    assert 0.07 < float(share.min()) < 0.09
    assert float(share.max()) == 1
    assert float(share.mean()) == pytest.approx(0.54, abs=0.01)
    free = height < 17
    assert float((top / (32 - height))[free].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(top[free].min()) == 0
    assert bool((top + height == 32)[free].any())


@pytest.mark.parametrize("least", [0.08, 0.5, 0.9])
def test_crops_of_any_ratio_are_distributed_as_torchvision_s(least: float) -> None:
    chance, number = np.random.default_rng(0), 20_000
    wanted = np.array([oracle.random_box(chance, 160, 160, (least, 1.0), (3 / 4, 4 / 3)) for _ in range(number)])
    found = draw_boxes(Draws(1), (number,), 160, 160, least, 4 / 3).numpy()
    for read in (
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, 1],
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 3] / boxes[:, 2],
    ):
        assert ks_2samp(read(found), read(wanted)).pvalue > 1e-3


def test_ratios_of_crops_are_in_units_of_their_image_s() -> None:
    square, wide = (draw_boxes(Draws(1), (2000,), 160, width, 0.2, 4 / 3)[:, 2:] for width in (160, 320))
    assert float((wide - square * torch.tensor([1, 2])).abs().le(1).all(1).float().mean()) > 0.98


def test_crops_that_never_fit_are_whole_images() -> None:
    extents = draw_boxes(Draws(0), (500,), 160, 120, 1.0, 4 / 3)[:, 2:]  # only a ratio near 1 fits
    assert bool((extents >= torch.tensor([159, 120])).all())
    whole = draw_boxes(Draws(0), (500,), 160, 120, 1.0, 1e9)
    assert bool((whole == torch.tensor([0, 0, 160, 120])).all())


def test_large_images_are_joined_of_four_crops() -> None:
    small, large = (PictureTask(4, (1, side, 140)) for side in (127, 128))
    assert [module.tiles_per_side(CropSettings(0), *task.images.shape[2:]) for task in (small, large)] == [1, 2]
    assert module.tiles_per_side(CropSettings(0, tiles=3), *small.images.shape[2:]) == 3


def test_a_teacher_recognises_and_labels_them(tmp_path: Path) -> None:
    task, own = image_task("digits", width=8), {"teacher_epochs": 30, "candidates": 40}
    made = distill(task, "rded", ipc=2, settings=own, out=tmp_path)
    random = distill(task, "random-soft", ipc=2, settings={"teacher_epochs": 30})
    teacher = trained_teacher(task, 30)
    assert torch.equal(made.batch.targets, soft_labels(task, teacher, made.batch.inputs))  # type: ignore[arg-type]
    classes = torch.arange(10).repeat_interleave(2)
    sure, less = (soft_labels(task, teacher, found.batch.inputs)[range(20), classes].mean() for found in (made, random))
    assert sure > less + 0.05
    assert (made.label, made.steps, made.settings["candidates"]) == ("teacher", 0, 40)
    again = distill(task, "rded", ipc=2, settings=own, out=tmp_path, resume="auto")
    assert torch.equal(again.batch.inputs, made.batch.inputs)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"its settings\.crops is 5, not 3"):
        distill(task, "rded", ipc=2, settings=own | {"crops": 3}, out=tmp_path, resume="auto")


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "tiny-imagenet"])
def test_settings_are_as_published(data: str) -> None:
    method = get_method(DOMAIN, "rded", data)
    settings = method.settings(10)
    assert isinstance(settings, CropSettings)
    assert (settings.candidates, settings.crops, method.label) == (300, 5, "teacher")
    assert [module.tiles_per_side(settings, side, side) for side in (32, 64, 128, 224)] == [
        1, 1, 2, 2,
    ]  # fmt: skip


def test_what_cannot_be_made_is_refused_before_a_teacher_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(task: Task, epochs: int) -> NetworkState:
        raise AssertionError("trained")

    monkeypatch.setattr(module, "trained_teacher", refuse)
    method, task, draws = get_method(DOMAIN, "rded"), PictureTask(), Draws(0)
    for name in ("candidates", "crops"):
        with pytest.raises(ConfigError, match=f"{name} is a whole number of at least 1, got 0"):
            CropSettings(0, **{name: 0})
        with pytest.raises(ConfigError, match=f"{name} is a whole number of at least 1, got 0"):
            distill(task, method, ipc=1, settings={name: 0})
    with pytest.raises(ConfigError, match="tiles is a whole number of at least 0, got -1"):
        CropSettings(0, tiles=-1)
    with pytest.raises(ConfigError, match="factor of 4 cuts images of 9 x 7 pixels"):
        realistic_images(task, 1, CropSettings(0, tiles=4), draws)
    with pytest.raises(DataError, match="has 12 samples"):
        realistic_images(task, 4, CropSettings(0, tiles=2), draws)
    with pytest.raises(ConfigError, match="RDED reads the setting 'tiles', which these settings lack"):
        method.make_parameterization(task, 1, Settings(0), draws)
    with pytest.raises(ConfigError, match="stores images"):
        realistic_images(BlobTask(), 1, CropSettings(0), draws)
    found, ipc = method_within_budget(task, method, GivenBudget(bytes=6 * (126 * 8 + 3 * 4)))
    assert (ipc, found) == (2, method)
