"""Combinations of real images and crops of canvases: equal to loops, and honest about what is stored."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, DataError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.storage import PARAMETERIZATIONS, coefficients
from mmdistill.labels import FixedLabels, LabelKind
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.schedules import EMPTY
from mmdistill.networks.teacher import soft_labels
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.canvas import Canvases, class_canvases
from mmdistill.parameterizations.combination import CombinedImages, _first_coefficients, learned_coefficients
from mmdistill.parameterizations.upsample import PixelSpace
from mmdistill.registry import get_method, get_parameterization
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState
from tests.oracles import storage as oracle

KEY = Draws(6)
SPACE = PixelSpace(torch.full((2, 1, 1), 0.4), torch.full((2, 1, 1), 0.2), 0.0, 1.0)


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


def combined(images: torch.Tensor, contained: bool = True) -> CombinedImages:
    values = KEY.fold("a").normal(3, 4, 5).to(torch.float64)
    labels = FixedLabels(torch.arange(3).repeat_interleave(4))
    return CombinedImages(values, images, torch.arange(15).view(3, 5), labels, contained, SPACE, 255.0)


def test_combinations_equal_their_oracle() -> None:
    images = KEY.fold("x").normal(3, 5, 2, 3, 4).double()
    made = combined(images)
    expected = oracle.combinations(made.coefficients.detach().numpy(), images.numpy())
    assert torch.allclose(made(KEY).inputs, torch.from_numpy(expected), atol=1e-12)
    assert made(KEY).targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_bytes_become_normalised_units() -> None:
    raw = KEY.fold("x").integers(256, 3, 5, 2, 3, 4).to(torch.uint8)
    normal = (raw.double() / 255 - 0.4) / 0.2
    assert torch.allclose(combined(raw).double()(KEY).inputs, combined(normal)(KEY).inputs, atol=1e-5)


def test_a_set_stores_its_images_or_their_positions() -> None:
    images = KEY.fold("x").integers(256, 3, 5, 2, 3, 4).to(torch.uint8)
    numbers, labels = 8 * 3 * 4 * 5, 12
    assert combined(images).stored_bytes() == numbers + labels + 3 * 5 * 24
    assert combined(images, contained=False).stored_bytes() == numbers + labels + 15


def test_combinations_start_as_real_images_and_means_of_two(task: ImageTask) -> None:
    made = learned_coefficients(task, ImageBudget.of(task, 2, "hard"), "real", KEY, multiple=4)
    samples, images = made.coefficients.shape[1:]
    assert samples == 8
    single = made(KEY).inputs[: min(samples, images)]
    distances = torch.cdist(single.flatten(1), task.select(torch.arange(task.describe().num_train)).inputs.flatten(1))
    assert distances.min(1).values.max() < 0.05
    assert torch.allclose(made.coefficients.sum(2), torch.ones(()))
    many = learned_coefficients(task, ImageBudget.of(task, 2, "hard"), "real", KEY, contained=False)
    assert many.coefficients.shape[2] > images


def test_combinations_are_single_images_then_means_of_other_two_in_every_round() -> None:
    rounds = _first_coefficients(2, 20, 5, "real", KEY)[1].unflatten(0, (4, 5))
    single = torch.eye(5)
    assert torch.equal(rounds, torch.stack([(single + single.roll(turn, 1)) / 2 for turn in range(4)]))


def test_combinations_of_noise_vary_as_their_images_do() -> None:
    found = _first_coefficients(10, 40, 25, "noise", KEY)
    assert float(found.var()) == pytest.approx(1 / 25, rel=0.1)


def test_learned_labels_of_combinations_take_bytes(task: ImageTask) -> None:
    room = ImageBudget.of(task, 3, "soft")
    made = learned_coefficients(task, room, "real", KEY, contained=False)
    assert made.stored_bytes() <= room.stored_bytes


def test_of_images_that_a_set_names_by_position_as_many_are_combined_as_fit(task: ImageTask) -> None:
    for tiles in (1, 2):
        room = ImageBudget.of(task, 1, "hard", tiles=tiles)
        made = learned_coefficients(task, room, "real", KEY, multiple=1, contained=False)
        samples, images = made.coefficients.shape[1:]
        assert images < torch.bincount(task.labels).min() // tiles**2
        each = 2 * tiles**2 + 4 * samples  # positions in 16 bits, and a coefficient in each sample
        assert made.stored_bytes() <= room.stored_bytes < made.stored_bytes() + room.num_classes * each
    tiled = learned_coefficients(
        task, ImageBudget.of(task, 40, "hard", tiles=2), "real", KEY, multiple=1, contained=False
    )
    assert tiled.images.shape[1] == torch.bincount(task.labels).min() // 4  # each of four real ones, of which more fit


def test_bytes_of_every_value_are_stored_as_they_are() -> None:
    pixels = torch.arange(256).view(4, 1, 8, 8).repeat(2, 1, 1, 1).to(torch.uint8)
    images = pixels, torch.tensor([0, 1] * 4)
    values = image_task(images, test=images, model="mlp", width=4)
    made = learned_coefficients(values, ImageBudget.of(values, 4, "hard"), "real", KEY, multiple=1)
    assert len(made.images.unique()) == 256
    assert torch.equal(made.images, pixels[made.indices])


def test_whitened_images_are_combined_as_they_are() -> None:
    whitened = image_task("digits", width=4, whiten="mtt")
    room = ImageBudget.of(whitened, 4, "hard")
    made = learned_coefficients(whitened, room, "real", KEY)
    assert torch.equal(made.images, whitened.select(made.indices).inputs)
    each = 4 * (64 + made.coefficients.shape[1])  # pixels in float32, and a coefficient in each sample
    assert made.stored_bytes() <= room.stored_bytes < made.stored_bytes() + room.num_classes * each


def crops(canvases: torch.Tensor, count: int) -> Canvases:
    return Canvases(canvases, FixedLabels(torch.arange(len(canvases))), (3, 4), count)


def test_crops_are_those_of_an_endless_tiling() -> None:
    made = crops(KEY.normal(2, 1, 5, 6).double(), 7)
    batch = made(KEY.fold("decode"))
    key = KEY.fold("decode").fold("crops")
    rows, columns = key.fold("rows").integers(5, 14), key.fold("columns").integers(6, 14)
    for index in range(14):
        canvas = made.canvases[index // 7].detach().numpy()
        expected = oracle.crop(canvas, int(rows[index]), int(columns[index]), 3, 4)
        assert torch.equal(batch.inputs[index], torch.from_numpy(expected))
    assert batch.targets.tolist() == [0] * 7 + [1] * 7
    assert torch.equal(batch.inputs, made(KEY.fold("decode")).inputs)
    assert not torch.equal(batch.inputs, made(KEY.fold("other")).inputs)


def test_every_pixel_of_a_canvas_learns() -> None:
    made = crops(KEY.normal(2, 1, 5, 6), 200)
    (gradient,) = torch.autograd.grad(made(KEY).inputs.sum(), made.canvases)
    assert gradient.min() > 0


def test_a_canvas_takes_its_budget_and_starts_from_real_images(task: ImageTask) -> None:
    made = class_canvases(task, ImageBudget.of(task, 4, "hard"), "real", KEY)
    assert made.canvases.shape == (10, 1, 16, 16)
    assert made.crops == 16
    tiles = made.canvases.detach()[:, :, :8, 8:].flatten(1)
    real = task.select(torch.arange(task.describe().num_train)).inputs.flatten(1)
    assert torch.cdist(tiles, real).min(1).values.max() < 0.05


def test_a_canvas_has_the_images_aspect_and_ends_within_a_tile() -> None:
    data = KEY.fold("real").uniform(20, 3, 4, 6), torch.arange(20) % 2
    wide = image_task(data, test=data, model="mlp", width=4)
    made = class_canvases(wide, ImageBudget.of(wide, 5, "hard"), "real", KEY)
    assert made.canvases.shape == (2, 3, 8, 13)  # of 120 floats for each channel, beside a label of each class
    for label, canvas in enumerate(made.canvases.detach()):
        real = wide.select((data[1] == label).nonzero().flatten()).inputs
        for tile in (tile for band in canvas.split(4, 1) for tile in band.split(6, 2)):
            gaps = real[:, :, : tile.shape[1], : tile.shape[2]] - tile
            assert float(gaps.abs().amax((1, 2, 3)).min()) < 1e-6


def test_impossible_stores_are_refused(task: ImageTask) -> None:
    with pytest.raises(ConfigError, match="at least 3 x 4 pixels"):
        crops(torch.zeros(2, 1, 2, 6), 1)
    with pytest.raises(ConfigError, match="expected coefficients"):
        combined(torch.zeros(3, 4, 2, 3, 4))
    room = ImageBudget.of(task, 1, "hard")
    assert class_canvases(task, room, "noise", KEY, multiple=1).canvases.shape == (10, 1, 8, 8)  # which just fits
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        learned_coefficients(task, room, "real", KEY, multiple=0)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        class_canvases(task, room, "real", KEY, multiple=0)
    with pytest.raises(ConfigError, match="leave no room"):
        coefficients(multiple=60)(task, 1, CORE_METHODS["dm"].settings(1), "hard", KEY)


@pytest.mark.parametrize("storage", ["raw", "canvas"])
def test_an_experts_labels_are_those_of_the_finished_samples(task: ImageTask, storage: str, tmp_path: Path) -> None:
    few = {"steps": 1, "inner_steps": 2, "experts": 1, "start_epochs": 1, "expert_steps": 3}
    method = get_method(DOMAIN, "tesla", "digits").with_settings(**few, expert_folder=str(tmp_path))
    method = method.with_rate(0.0).stored_as(get_parameterization(DOMAIN, storage))
    distiller = Distiller(task, method, 4)
    distiller.schedule.make_ready(task)
    run, _ = distiller.step(distiller.start())
    found = distiller.result(run, "tesla", 0.0).batch
    expert = distiller.schedule.fetch(task, EMPTY, KEY)  # the only one, from its only start
    assert expert.target is not None
    assert expert.network is not None
    own = soft_labels(task, NetworkState(expert.target, expert.network.buffers), found.inputs)
    assert isinstance(found.targets, torch.Tensor)
    assert torch.allclose(own, found.targets, atol=1e-5)


@pytest.mark.parametrize("storage", ["coefficients", "canvas"])
def test_errors_say_which_budget_is_enough(task: ImageTask, storage: str) -> None:
    label: LabelKind = "soft"
    settings = CORE_METHODS["mtt"].settings(1)
    with pytest.raises(ConfigError) as refused:
        PARAMETERIZATIONS[storage](task, 1, settings, label, KEY)
    found = re.search(r"; --ipc (\d+) is enough; hard labels, .*; in Python, the storage takes", str(refused.value))
    assert found is not None
    PARAMETERIZATIONS[storage](task, int(found[1]), settings, label, KEY)
    with pytest.raises(ConfigError, match="is enough"):
        PARAMETERIZATIONS[storage](task, int(found[1]) - 1, settings, label, KEY)
    with pytest.raises(ConfigError) as refused:
        PARAMETERIZATIONS[storage](task, 1, replace(settings, stored_bytes=900), label, KEY)
    found = re.search(r"; --bytes (\d+) is enough; ", str(refused.value))
    assert found is not None
    PARAMETERIZATIONS[storage](task, 1, replace(settings, stored_bytes=int(found[1])), label, KEY)


def test_combinations_name_the_class_of_one_image() -> None:
    images, labels = torch.arange(5 * 64, dtype=torch.int16).view(5, 1, 8, 8).byte(), torch.tensor([0, 0, 0, 0, 1])
    task = image_task((images, labels), test=(images, labels), class_names=["many", "few"], model="mlp", width=4)
    with pytest.raises(DataError, match="at least 2 real images of their class, and class few has 1; choose another"):
        coefficients()(task, 100, CORE_METHODS["dm"].settings(1), "hard", KEY)
