"""The published constants of the matching methods, and what their augmentation and networks are made of."""

from dataclasses import replace

import pytest

from mmdistill.image import DOMAIN, image_task
from mmdistill.image.cutmix import MixedMinibatches
from mmdistill.image.methods.matching import COLOR_CROP, COLOR_CROP_CUTOUT, contrastive
from mmdistill.method import Method
from mmdistill.networks.early import EarlyStagePool
from mmdistill.networks.schedules import AccuracyDriven, TrainedOnT, TrainedUntilOverfitting
from mmdistill.objectives.distances import conv_absolute_error, conv_squared_error
from mmdistill.objectives.gradient import GradientMatching, MultiLevelGradientMatching, WarmUp
from mmdistill.registry import get_method


def method(name: str, data: str) -> Method:
    return get_method(DOMAIN, name, data)


@pytest.mark.parametrize(
    ("data", "distance", "augmentation", "cutmix", "rate", "images"),
    [
        ("cifar10", conv_squared_error, COLOR_CROP_CUTOUT, 0.5, {"idc": 5e-3, "edd": 1e-2}, 2000),
        ("cifar100", conv_squared_error, COLOR_CROP_CUTOUT, 0.5, {"idc": 5e-3, "edd": 1e-2}, 2000),
        ("svhn", conv_squared_error, COLOR_CROP_CUTOUT, 0.5, {"idc": 5e-3, "edd": 5e-3}, 500),
        # the code scales rates by the area of an image over 28 x 28 pixels on MNIST, and over 32 x 32 on all others
        ("fashion-mnist", conv_absolute_error, COLOR_CROP_CUTOUT, 0.5, dict.fromkeys(("idc", "edd"), 49e-4 / 64), 500),
        ("mnist", conv_absolute_error, COLOR_CROP, 0.0, {"idc": 1e-4, "edd": 1e-4}, 500),
    ],
)
def test_idc_and_edd_are_as_published(
    data: str, distance: object, augmentation: object, cutmix: float, rate: dict[str, float], images: int
) -> None:
    for name, networks, kind in (("idc", 2000, TrainedOnT), ("edd", 400, EarlyStagePool)):
        settings = method(name, data).settings(10)
        objective = method(name, data).make_objective(settings)
        schedule = method(name, data).network(settings)
        assert isinstance(objective, GradientMatching)
        assert isinstance(schedule, kind)
        assert objective.distance is distance
        assert objective.augment == augmentation.of_classes  # type: ignore[attr-defined]
        assert schedule.prepare == MixedMinibatches(COLOR_CROP, cutmix)
        assert (schedule.lr, schedule.momentum, schedule.weight_decay, schedule.batch) == (0.01, 0.9, 5e-4, 64)
        assert schedule.outer_steps == 100
        assert (settings.steps, settings.syn_batch) == (100 * networks, 128)
        assert 0 <= schedule.inner_steps * 64 - images < 64  # whole minibatches until so many images are seen
        # one optimizer of momentum 0.5 is stepped once per class: in all twice its rate, in proportion to ipc
        assert settings.optimizers["codes"].lr == pytest.approx(2 * rate[name])
        assert method(name, data).settings(1).optimizers["codes"].lr == pytest.approx(0.2 * rate[name])


def test_schedules_that_stop_by_themselves() -> None:
    cafe = method("cafe", "cifar10")
    schedule = cafe.network(cafe.settings(1))
    assert isinstance(schedule, AccuracyDriven)
    assert (schedule.window, schedule.settled, schedule.moved, schedule.watched) == (10, 0.04, 0.03, 1280)
    assert not cafe.settings(10).augment
    assert method("CAFE+DSA", "cifar10").settings(10).augment


def test_egm_is_as_published() -> None:
    egm, dc = method("egm", "cifar10"), method("dc", "cifar10")
    for ipc in (1, 10, 50):
        settings = egm.settings(ipc)
        assert settings == replace(dc.settings(ipc), inner_steps=50, inner_momentum=0.5)
        assert (settings.init, settings.augment) == ("noise", False)
        schedule = egm.network(settings)
        assert isinstance(schedule, TrainedUntilOverfitting)
        assert (schedule.lr, schedule.momentum, schedule.batch, schedule.watched) == (0.01, 0.5, 256, 256)
        objective = egm.make_objective(settings)
        assert isinstance(objective, MultiLevelGradientMatching)
        assert objective.balance is None  # the number of classes


def test_contrastive_matching_warms_up() -> None:
    dcc = method("dcc", "cifar10")
    loops = {ipc: (dcc.settings(ipc).outer_steps, dcc.settings(ipc).inner_steps) for ipc in (1, 10, 50)}
    assert loops == {1: (10, 5), 10: (10, 50), 50: (50, 10)}
    settings = dcc.settings(50)
    objective = contrastive(settings)
    assert isinstance(objective, GradientMatching)
    assert objective.reduction == "class-sum"
    assert objective.warm_up == WarmUp(250 * 50, 10)  # 250 of 1000 networks, the first ten steps of each
    assert settings.steps == 1000 * 50


def test_augmenting_objectives_leave_the_task_s_augmentation_out() -> None:
    task = image_task("digits", width=4)
    settings = method("idc", "cifar10").settings(1)
    assert not method("idc", "cifar10").make_objective(settings).siamese
    assert method("idc", "cifar10").ignored_settings(1, ["augment"]) == ["augment"]
    assert task.augmentation.always == ()
