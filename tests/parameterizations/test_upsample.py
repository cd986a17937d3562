import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mmdistill.budget import GivenBudget, method_within_budget
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, MmdistillWarning
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.labels import FixedLabels, LearnedLabels
from mmdistill.methods import CORE_METHODS
from mmdistill.parameterizations.tiles import cut_tiles, join_tiles
from mmdistill.parameterizations.upsample import MultiFormation, PixelSpace, multi_formation
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch
from tests.oracles import upsample as oracle
from tests.toys import BlobTask

KEY = Draws(11)
SETTINGS = Settings(steps=1)
SPACE = PixelSpace(torch.tensor([0.4, 0.5]).view(2, 1, 1), torch.tensor([0.2, 0.3]).view(2, 1, 1), 0.0, 1.0)


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


def formation(factor: int, height: int = 6, width: int = 12) -> MultiFormation:
    pixels = KEY.fold("pixels").uniform(3, 2, height, width).double()
    classes = torch.tensor([0, 0, 1])
    made = MultiFormation(pixels, FixedLabels(classes), classes, 2, factor, SPACE)
    return made.double()


def tiles_of(made: MultiFormation) -> Tensor:
    """The tiles of equal sides, those of one image after those of the other."""
    return torch.stack(cut_tiles(made.pixels.detach(), made.tiles), 1).flatten(0, 1)


@pytest.mark.parametrize(
    ("factor", "height", "width"), [(1, 6, 12), (2, 6, 12), (3, 6, 12), (3, 7, 8), (4, 11, 8), (5, 10, 14)]
)
def test_decoding_equals_its_oracle(factor: int, height: int, width: int) -> None:
    made = formation(factor, height, width)
    batch = made(KEY)
    mean, std = (t.double().flatten().numpy() for t in SPACE[:2])
    expected = oracle.multi_formation(made.pixels.detach().numpy(), factor, mean, std)
    assert batch.inputs.shape == (3 * factor**2, 2, height, width)
    assert torch.allclose(batch.inputs, torch.from_numpy(expected), atol=1e-12)
    assert batch.targets.tolist() == [0] * (2 * factor**2) + [1] * factor**2
    assert torch.equal(batch.weight, torch.ones(3 * factor**2, dtype=torch.float64))


@pytest.mark.parametrize("side", [4, 5])
def test_gradients_are_those_of_finite_differences(side: int) -> None:
    made = formation(2, side, side)

    def decoded(pixels: Tensor) -> Tensor:
        result: Batch = torch.func.functional_call(made, {"pixels": pixels}, (KEY,))
        assert isinstance(result.inputs, Tensor)
        return result.inputs

    torch.autograd.gradcheck(decoded, (made.pixels.detach().requires_grad_(),))


def test_tiles_join_to_what_they_were_cut_from() -> None:
    for height, width in ((12, 6), (13, 8)):
        images = KEY.normal(2, 3, height, width)
        assert torch.equal(join_tiles(cut_tiles(images, 3), 3), images)


def test_storage_is_that_of_raw_images_and_one_label_each(task: ImageTask) -> None:
    for factor, decoded in ((1, 20), (2, 80)):
        made = multi_formation(task, 2, "real", "hard", KEY, factor)
        assert made.stored_bytes() == 20 * 64 * 4 + 20
        assert made(KEY).weight.shape == (decoded,)
    learned = multi_formation(task, 2, "real", "unrestricted", KEY, 2)
    assert isinstance(learned.labels, LearnedLabels)
    assert learned.stored_bytes() == 20 * 64 * 4 + 80 * 10 * 4


@pytest.mark.parametrize(("channels", "side", "sides"), [(1, 28, (10, 9, 9)), (3, 32, (11, 11, 10))])
def test_any_factor_fits_the_bytes_of_the_raw_images(channels: int, side: int, sides: tuple[int, ...]) -> None:
    images, classes = KEY.fold("real").uniform(40, channels, side, side), torch.arange(40) % 2
    task = image_task((images, classes), test=(images, classes), width=4)
    raw = DOMAIN.parameterizations["raw"](task, 2, SETTINGS, "hard", KEY)
    made = DOMAIN.parameterizations["upsample-3"](task, 2, SETTINGS, "hard", KEY)
    assert made.stored_bytes() == raw.stored_bytes() == 4 * (channels * side**2 * 4 + 1)
    batch = made(KEY)
    assert batch.inputs.shape == (4 * 9, channels, side, side)  # type: ignore[union-attr]
    assert batch.targets.tolist() == [0] * 18 + [1] * 18  # type: ignore[union-attr]
    assert isinstance(made, MultiFormation)
    tiles = cut_tiles(made.pixels.detach(), 3)
    assert [tuple(tile.shape) for tile in tiles] == [(4, channels, row, column) for row in sides for column in sides]
    for tile in tiles:  # each starts as a whole real image of its class, made smaller
        for index, small in enumerate(tile):
            own = adaptive_avg_pool2d(images[classes == index // 2], tile.shape[2:])
            assert float((own - small).abs().amax((1, 2, 3)).min()) < 1e-5
    seen = torch.autograd.grad(batch.inputs.sum(), made.pixels)[0]  # type: ignore[union-attr]
    assert bool((seen > 0).all())  # no stored pixel is without use


def test_a_budget_in_bytes_holds_as_many_tiled_images_as_raw_ones(task: ImageTask) -> None:
    method = CORE_METHODS["dm"].stored_as(DOMAIN.parameterizations["upsample-3"])
    found, count = method_within_budget(task, method, GivenBudget(bytes=2 * 10 * 257 + 100))
    made = Distiller(task, found, count).start().parameterization
    assert (count, made.stored_bytes(), made(KEY).weight.shape) == (2, 20 * 257, (180,))


def test_classes_of_decoded_samples_reach_class_batches(task: ImageTask) -> None:
    made = multi_formation(task, 1, "real", "hard", KEY, 2)
    by_class = made.class_batches(made(KEY)._replace(weight=torch.arange(40.0)))
    assert torch.equal(by_class.batch.weight, torch.arange(40.0).view(10, 4))
    assert torch.equal(by_class.batch.targets, torch.arange(10)[:, None].expand(10, 4))


def test_tiles_start_as_down_sampled_real_images(task: ImageTask) -> None:
    made = multi_formation(task, 2, "real", "hard", KEY, 2)
    tiles = tiles_of(made)
    real = task.data.train_images.float() / task.data.scale
    means = real.view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    nearest = torch.cdist(tiles.flatten(1), means).min(1)
    assert float(nearest.values.max()) < 1e-3
    found = task.data.train_labels[nearest.indices]
    assert float((found == torch.arange(10).repeat_interleave(8)).float().mean()) > 0.98


def test_stored_pixels_stay_in_the_value_range(task: ImageTask) -> None:
    made = multi_formation(task, 1, "noise", "hard", KEY, 2)
    assert [end.item() for end in made.pixels.detach().aminmax()] == [0.0, 1.0]
    assert made.pixels.detach().mean().item() == pytest.approx(0.5, abs=0.04)
    assert made.pixels.detach().std().item() == pytest.approx(0.24, abs=0.03)  # a quarter of the range, less the ends
    with torch.no_grad():
        made.pixels += 5 * KEY.normal(*made.pixels.shape)
    made.project()
    assert [end.item() for end in made.pixels.detach().aminmax()] == [0.0, 1.0]
    unbounded = MultiFormation(
        9 * torch.ones(1, 2, 4, 4), FixedLabels(torch.zeros(1)), torch.zeros(1, dtype=torch.long), 1, 2,
        SPACE._replace(low=-math.inf, high=math.inf),
    )  # fmt: skip
    unbounded.project()
    assert unbounded.pixels.detach().max().item() == 9
    whitened = image_task("digits", width=4, whiten="mtt")
    noise = multi_formation(whitened, 4, "noise", "hard", KEY, 2).pixels.detach()
    assert noise.mean().item() == pytest.approx(0, abs=0.06)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("factor", "message"), [(0, "at least 1"), (5, "one pixel"), (8, "one pixel")])
def test_factors_that_do_not_fit_are_refused(task: ImageTask, factor: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        multi_formation(task, 1, "real", "hard", KEY, factor)


def test_other_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="stores images"):
        multi_formation(BlobTask(), 1, "real", "hard", KEY, 2)


def test_small_classes_give_all_images_and_copies_that_can_part(task: ImageTask) -> None:
    most = int(torch.bincount(task.labels).max())
    with pytest.warns(
        MmdistillWarning, match="fewer than the 136 that its codes start from: the rest start as copies with a little"
    ):
        made = multi_formation(task, most // 4 + 1, "real", "hard", KEY, 2)
    tiles = tiles_of(made).flatten(1)
    for index, own in enumerate(tiles.split(len(tiles) // 10)):
        images = task.data.train_images[task.labels == index].float() / task.data.scale
        means = images.view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
        gaps = torch.cdist(own.double(), means.double())
        near = gaps.min(1).values
        assert int((near < 1e-5).sum()) == len(images)  # every tile is of the class, or near to one,
        assert float(near.max()) < 0.5
        assert float(gaps.min(0).values.max()) < 1e-5  # and every image of the class is there
        assert len(torch.unique(own, dim=0)) == len(own)
