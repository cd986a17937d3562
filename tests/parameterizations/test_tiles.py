"""Codes of any kind whose images are cut into tiles, and addressed codes behind decoders: equal to loops over them."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.coresets import choose_repeatedly
from mmdistill.distill import distill
from mmdistill.errors import ConfigError, UnknownNameError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.storage import NUMBERED, addressed, addressed_latent, canvas, coefficients, hallucinated, latent
from mmdistill.labels import FixedLabels, LabelKind, LearnedLabels
from mmdistill.methods import CORE_METHODS
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.canvas import Canvases
from mmdistill.parameterizations.combination import CombinedImages
from mmdistill.parameterizations.decoder import (
    DecodedCodes,
    LatentDecoder,
    Upsampling,
    decoded_codes,
    hallucinators,
    latent_decoders,
    make_decoders,
    upsampling,
)
from mmdistill.parameterizations.memory import AddressedCodes, addressed_codes, memory_sizes
from mmdistill.parameterizations.tiles import composed
from mmdistill.parameterizations.upsample import pixel_space
from mmdistill.registry import get_parameterization
from mmdistill.runtime import Draws
from mmdistill.task import take

KEY = Draws(8)
CLASSES = torch.tensor([0, 0, 1, 1])


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


def tiles_of(image: Tensor) -> list[Tensor]:
    """The four quarters of an image, row by row, each at full size."""
    rows, columns = (side - side // 2 for side in image.shape[1:])  # an odd pixel goes to the first ones
    quarters = [
        part for band in (image[:, :rows], image[:, rows:]) for part in (band[:, :, :columns], band[:, :, columns:])
    ]
    size = image.shape[1:]
    return [F.interpolate(quarter[None], size=size, mode="bilinear", align_corners=False)[0] for quarter in quarters]


def test_a_memorys_images_are_cut_row_by_row() -> None:
    memory, addresses = KEY.fold("m").normal(3, 2, 5, 6), KEY.fold("a").normal(2, 2, 3)
    whole, cut = (
        AddressedCodes(memory, addresses, [Upsampling(1)], FixedLabels(CLASSES), tiles)(KEY) for tiles in (1, 2)
    )
    expected = torch.stack([tile for image in whole.inputs for tile in tiles_of(image)])
    torch.testing.assert_close(cut.inputs, expected)
    assert cut.targets.tolist() == CLASSES.repeat_interleave(4).tolist()  # type: ignore[union-attr]
    assert cut.weight.tolist() == [1.0] * 16


@pytest.mark.parametrize("shared", [True, False])
def test_some_tiles_of_a_memory_are_taken_of_all(shared: bool) -> None:
    memory, addresses = KEY.fold("m").normal(3, 1, 4, 4), KEY.fold("a").normal(2, 2, 3)
    labels = FixedLabels(CLASSES) if shared else LearnedLabels(KEY.fold("l").normal(16, 2))
    made = AddressedCodes(memory, addresses, [Upsampling(2)], labels, 2)
    whole, rows = made(KEY), torch.tensor([15, 0, 6, 6, 9])
    assert not made.separable
    for found, expected in zip(made.part(rows, KEY), take(whole, rows), strict=True):
        assert torch.equal(found, expected)


def test_styles_of_a_tile_are_neighbours() -> None:
    decoders = make_decoders(lambda: LatentDecoder(1, 2, 3), 3, KEY)
    codes = KEY.fold("codes").normal(4, 1, 3, 3)
    made = DecodedCodes(codes, decoders, FixedLabels(CLASSES), CLASSES, 2, tiles=2)
    styled = [[tiles_of(decoder(code[None])[0]) for decoder in decoders] for code in codes]
    expected = [styled[code][style][tile] for code in range(4) for tile in range(4) for style in range(3)]
    torch.testing.assert_close(made(KEY).inputs, torch.stack(expected))
    assert made.styles == 3
    assert made.classes is not None
    assert made.classes.tolist() == CLASSES.repeat_interleave(12).tolist()


def test_crops_and_combinations_are_cut_too(task: ImageTask) -> None:
    labels, pairs = FixedLabels(torch.arange(2)), FixedLabels(CLASSES)
    canvases = KEY.normal(2, 1, 6, 6)
    whole, cut = (Canvases(canvases, labels, (4, 4), 2, tiles)(KEY) for tiles in (1, 2))
    torch.testing.assert_close(cut.inputs, torch.stack([t for image in whole.inputs for t in tiles_of(image)]))
    space, images = pixel_space(task, 1), KEY.normal(2, 3, 1, 8, 8)
    weights, places = KEY.fold("w").normal(2, 2, 3), torch.zeros(2, 3, dtype=torch.long)
    whole, cut = (CombinedImages(weights, images, places, pairs, True, space, 16.0, tiles)(KEY) for tiles in (1, 2))
    torch.testing.assert_close(cut.inputs, torch.stack([t for image in whole.inputs for t in tiles_of(image)]))


def test_a_composed_image_is_cut_into_the_means_that_it_was_composed_of() -> None:
    images = KEY.normal(8, 1, 4, 4)
    expected = F.avg_pool2d(images, 2)
    found = composed(images, 2)
    assert found.shape == (2, 1, 4, 4)
    assert torch.equal(found[1, :, :2, 2:], expected[5])
    assert torch.equal(found[0, :, 2:, :2], expected[2])
    assert composed(images, 1) is images


def test_images_that_are_cut_start_from_several_real_ones_of_their_class(task: ImageTask) -> None:
    room = ImageBudget.of(task, 16, "hard", tiles=2)
    made = decoded_codes(task, room, "real", KEY, partial(hallucinators, count=2), warm_up=0)
    bases = len(made.codes) // 10
    chosen = task.select(choose_repeatedly(task, "real", torch.full((10,), bases * 2 * 4), KEY))
    assert isinstance(chosen.inputs, Tensor)
    assert torch.equal(made.codes.detach(), composed(chosen.inputs, 2)[::2])
    assert torch.equal(made(KEY).targets, torch.arange(10).repeat_interleave(bases * 8))  # type: ignore[arg-type]


def test_addressed_codes_are_decoded_as_their_combinations_are() -> None:
    decoders = make_decoders(lambda: LatentDecoder(1, 2, 3), 2, KEY)
    memory, addresses = KEY.fold("m").normal(3, 1, 2, 2), KEY.fold("a").normal(2, 2, 3)
    codes = torch.stack(
        [sum((addresses[r, c, k] * memory[k] for k in range(3)), torch.zeros(1, 2, 2)) for c in (0, 1) for r in (0, 1)]
    )
    made = AddressedCodes(memory, addresses, decoders, FixedLabels(CLASSES))
    plain = DecodedCodes(codes, decoders, FixedLabels(CLASSES), CLASSES, 2)
    torch.testing.assert_close(made(KEY).inputs, plain(KEY).inputs)
    assert torch.equal(made(KEY).targets, plain(KEY).targets)  # type: ignore[arg-type]
    torch.testing.assert_close(made.codes_of(torch.tensor([3, 0])), codes[[3, 0]])
    rows = torch.tensor([7, 0, 3])
    for found, expected in zip(made.part(rows, KEY), take(made(KEY), rows), strict=True):
        assert torch.equal(found, expected)
    assert {name: len(group) for name, group in made.groups().items()} == {"codes": 2, "decoder": 8}


def test_addressed_latents_start_near_real_images(task: ImageTask) -> None:
    room = ImageBudget.of(task, 4, "hard")
    kind = partial(latent_decoders, factor=2, count=2, width=4)
    made = addressed_codes(task, room, "real", KEY, kind, multiple=2)
    targets = room.targets(task, 2 * 4 * 2, "real", KEY)
    with torch.no_grad():
        error = F.mse_loss(made(KEY).inputs, targets)  # type: ignore[arg-type]
    assert error < 0.5 * targets.var()
    of_noise = addressed_codes(task, room, "noise", KEY, partial(upsampling, factor=2), multiple=2)
    assert len(of_noise.memory) > 16  # more codes than their numbers, so any combinations can be had
    small = F.avg_pool2d(room.targets(task, 2 * 4, "noise", KEY), 2)
    torch.testing.assert_close(of_noise.codes_of().detach(), small, atol=1e-4, rtol=1e-4)


def test_shared_codes_and_their_combinations_fill_the_bytes(task: ImageTask) -> None:
    room = ImageBudget.of(task, 40, "hard")
    decoders = latent_decoders(room, KEY, factor=2, count=2, width=2)
    taken = sum(p.numel() for decoder in decoders.modules for p in decoder.parameters()) * 4
    combinations, found = memory_sizes(room, decoders, 3)
    assert combinations == 40 * 3
    each, labels = 4 * (16 + 10 * 40 * 3), 10 * 40 * 3
    assert found * each + taken + labels <= 40 * 10 * 257 < (found + 1) * each + taken + labels
    with pytest.raises(ConfigError, match=r"one code and 200 combinations; no larger budget .*; hard labels, which"):
        memory_sizes(ImageBudget(1, (1, 8, 8), 10, "unrestricted"), decoders, 20)
    with pytest.raises(ConfigError, match="combinations per raw image are at least 1, got 0"):
        memory_sizes(room, decoders, 0)
    tiled = ImageBudget.of(task, 1, "soft", tiles=3)
    with pytest.raises(ConfigError, match=r"one code and 40 combinations; .*; hard labels, which samples share"):
        memory_sizes(tiled, upsampling(tiled, KEY, factor=2), 4)


@pytest.mark.parametrize("label", ["soft", "teacher"])
@pytest.mark.usefixtures("short_fits")
def test_each_tile_has_labels_of_its_own_within_the_bytes(task: ImageTask, label: LabelKind) -> None:
    settings = {"steps": 1, "real_batch": 4, "teacher_epochs": 1}
    for storage in (latent(2, 2, 2, tiles=2), addressed(multiple=1, tiles=2), addressed_latent(2, 1, 2, 1, 2)):
        method = CORE_METHODS["dsa"].labelled(label).with_settings(**settings)
        found = distill(task, method, bytes=60_000, parameterization=storage)
        assert found.stored_bytes <= 60_000
        assert found.batch.targets.shape == (len(found.batch.weight), 10)  # type: ignore[union-attr]
        assert len(found.batch.weight) % 40 == 0


@pytest.mark.usefixtures("short_fits")
@pytest.mark.filterwarnings("ignore:.*start as copies")
def test_haba_compares_the_styles_of_tiles(task: ImageTask) -> None:
    settings = {"steps": 1, "real_batch": 4, "experts": 1, "expert_steps": 1, "start_epochs": 1, "inner_steps": 1}
    found = distill(task, "haba", ipc=20, parameterization=hallucinated(2, tiles=2), settings=settings)
    assert len(found.batch.weight) % (10 * 2 * 4) == 0
    with pytest.raises(ConfigError, match="compares the 2 samples"):
        distill(task, "haba", ipc=20, parameterization=addressed(tiles=2), settings=settings)


def test_names_of_cut_storages() -> None:
    for stem in NUMBERED:
        named = get_parameterization(DOMAIN, f"{stem}-3")
        assert named.name == f"{stem}-3"
        assert "3 x 3 tiles" in named.summary
    assert get_parameterization(DOMAIN, "Latent_upsample_02").name == "latent-upsample-2"
    for wrong in ("latent-upsample-0", "gan-latents-upsample-2", "upsample-2-upsample-2"):
        with pytest.raises(UnknownNameError):
            get_parameterization(DOMAIN, wrong)


@pytest.mark.filterwarnings("ignore:.*start as copies")
def test_images_of_one_pixels_height_are_stored_uncut() -> None:
    images = (KEY.normal(12, 1, 1, 16).abs() * 60).clamp(0, 255).to(torch.uint8)
    thin = image_task((images, torch.arange(12) % 2), test=(images, torch.arange(12) % 2), model="mlp-w8")
    settings = {"steps": 1, "real_batch": 4}
    for storage in (addressed(factor=1), coefficients(), canvas(1)):
        found = distill(thin, "dm", ipc=4, parameterization=storage, settings=settings)
        assert found.batch.inputs.shape[1:] == (1, 1, 16)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="cuts images of 1 x 16 pixels"):
        distill(thin, "dm", ipc=4, parameterization=canvas(1, tiles=2), settings=settings)


def test_tiles_of_one_pixel_are_refused_before_anything_is_made(task: ImageTask) -> None:
    with pytest.raises(ConfigError, match="tiles with a side of one pixel"):
        distill(task, "dm", ipc=10, parameterization="addressed-upsample-5")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        distill(task, "dm", ipc=10, parameterization=latent(2, 2, 2, tiles=0))


@pytest.mark.parametrize("per_class", [0, 1, 3])
@pytest.mark.parametrize("least", [1, 5, 8])
def test_the_budget_that_is_enough_is_the_smallest_of_those_tried(per_class: int, least: int) -> None:
    tried: list[int] = []

    def fits(room: ImageBudget) -> bool:
        tried.append(room.per_class)
        return room.per_class >= least

    room = ImageBudget(per_class, (1, 8, 8), 10, "hard")
    assert room.enough(fits) == f"--ipc {max(least, per_class)} is enough"
    assert min(tried) >= 1
    assert room.enough(lambda larger: False) == "no larger budget is enough"
