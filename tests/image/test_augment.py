import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from kornia.geometry import transform as kornia
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.image import augment
from mmdistill.image.augment import OPERATIONS, WARPS, Operation, Parameters, SiameseAugmentation
from mmdistill.image.cutmix import MixedMinibatches, cut_and_mix, cutmix_box
from mmdistill.image.methods.inversion import Shaken
from mmdistill.runtime import Draws
from mmdistill.task import Batch
from tests.oracles import augment as oracle

SHAPES = [(3, 8, 8), (1, 9, 9), (3, 6, 10)]


def images(n: int, shape: tuple[int, int, int] = (3, 8, 8)) -> Tensor:
    return Draws(0, ("images",)).normal(n, *shape, dtype=torch.float64)


def one(parameters: Parameters, index: int) -> Parameters:
    return Parameters(*(field[index : index + 1] for field in parameters))


def by_loops(operation: Operation, image: Tensor, p: Parameters, config: SiameseAugmentation) -> np.ndarray:
    """Apply the oracle of an operation with drawn parameters."""
    x = image.numpy().copy()
    matrix = p.matrix[0].double()
    down, right = (int(value) for value in p.shift[0])
    if operation == "color":
        return oracle.color(x, float(p.brightness), float(p.saturation), float(p.contrast))
    if operation == "crop":
        return oracle.crop(x, down, right)
    if operation == "cutout":
        size = int(x.shape[1] * config.cutout + 0.5), int(x.shape[2] * config.cutout + 0.5)
        top, left = (int(value) for value in p.hole[0])
        return oracle.cutout(x, top, left, size)
    if operation == "flip":
        return oracle.flip(x) if matrix[1, 1] < 0 else x
    if operation == "scale":
        return oracle.scale(x, float(matrix[0, 0]), float(matrix[1, 1]))
    return oracle.rotate(x, math.atan2(float(matrix[0, 1]), float(matrix[0, 0])))


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_equals_its_loop_written_form(
    operation: Operation, shape: tuple[int, int, int], differentiated: bool
) -> None:
    config = SiameseAugmentation((operation,))
    x = images(12, shape).requires_grad_(differentiated)
    parameters = config.draw(Draws(3), *shape[1:], groups=1, per_group=12)
    got, x = config.apply(x, parameters).detach(), x.detach()
    for index in range(12):
        expected = by_loops(operation, x[index], one(parameters, index), config)
        np.testing.assert_allclose(got[index].numpy(), expected, atol=2e-6)  # parameters are drawn in float32
    assert not torch.equal(got, x)


def test_the_published_ranges() -> None:
    height, n = 32, 4000
    drawn = {name: SiameseAugmentation((name,)).draw(Draws(1), height, height, 1, n) for name in OPERATIONS}

    def span(values: Tensor) -> tuple[float, float]:
        return round(float(values.min()), 2), round(float(values.max()), 2)

    assert span(drawn["color"].brightness) == (-0.5, 0.5)
    assert span(drawn["color"].saturation) == (0, 2)
    assert span(drawn["color"].contrast) == (0.5, 1.5)
    assert span(drawn["crop"].shift) == (-4, 4)
    assert drawn["crop"].shift.unique().numel() == 9
    down, right = SiameseAugmentation(("crop",)).draw(Draws(1), 28, 16, 1, n).shift.unbind(1)
    assert (span(down), span(right)) == ((-4, 4), (-2, 2))  # an eighth of each side, halves rounded up
    assert span(drawn["cutout"].hole) == (-8, 24)
    down, right = SiameseAugmentation(("cutout",)).draw(Draws(1), 28, 16, 1, n).hole.unbind(1)
    assert (span(down), span(right)) == ((-7, 21), (-4, 12))  # the centre is anywhere within
    assert 0.45 < float((drawn["flip"].matrix[:, 1, 1] < 0).float().mean()) < 0.55
    assert span(drawn["scale"].matrix[:, 0, 0]) == (0.83, 1.2)
    assert abs(float(torch.corrcoef(drawn["scale"].matrix[:, (0, 1), (0, 1)].T)[0, 1])) < 0.1
    angles = torch.atan2(drawn["rotate"].matrix[:, 0, 1], drawn["rotate"].matrix[:, 0, 0])
    assert (int(angles.rad2deg().round().min()), int(angles.rad2deg().round().max())) == (-15, 15)


def test_warps_agree_with_kornia() -> None:
    x = images(6, (3, 9, 9)).float()
    for operation in ("rotate", "scale"):
        config = SiameseAugmentation((operation,))
        p = config.draw(Draws(5), 9, 9, 1, 6)
        centre = torch.full((6, 2), 4.0)
        if operation == "rotate":
            degrees = torch.atan2(p.matrix[:, 0, 1], p.matrix[:, 0, 0]).rad2deg()
            expected = kornia.rotate(x, degrees, align_corners=True)
        else:
            factors = 1 / torch.stack([p.matrix[:, 1, 1], p.matrix[:, 0, 0]], 1)
            expected = kornia.scale(x, factors, centre, align_corners=True)
        torch.testing.assert_close(config.apply(x, p), expected, atol=2e-5, rtol=1e-4)
    flipping = SiameseAugmentation(("flip",), flip=1.0)
    torch.testing.assert_close(flipping.apply(x, flipping.draw(Draws(0), 9, 9, 1)), kornia.hflip(x))


@pytest.mark.parametrize("differentiated", [False, True])
def test_operations_that_are_not_drawn_leave_images_to_the_bit(differentiated: bool) -> None:
    config = SiameseAugmentation(("flip",), flip=0.0)
    x = images(4, (3, 7, 28)).float().requires_grad_(differentiated)
    assert torch.equal(config.apply(x, config.draw(Draws(0), 7, 28, 4)), x)


def test_images_that_are_differentiated_are_augmented_as_others() -> None:
    config, x = SiameseAugmentation(), images(120, (3, 7, 12))
    parameters = config.draw(Draws(6), 7, 12, 60)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(config.apply(leaf, parameters).detach(), config.apply(x, parameters), atol=1e-12, rtol=0)
    with torch.no_grad():
        assert torch.equal(config.apply(leaf, parameters), config.apply(x, parameters))


def test_one_operation_is_drawn_per_group_and_strengths_per_member() -> None:
    config = SiameseAugmentation()
    p = config.draw(Draws(2), 8, 8, groups=300, per_group=4)
    colored = (p.brightness != 0).view(300, 4)
    assert bool((colored.all(1) == colored.any(1)).all())
    assert 0.1 < float(colored.all(1).float().mean()) < 0.24  # one in six
    active = colored.flatten().int() + p.holed.int() + (p.matrix != torch.eye(2)).flatten(1).any(1).int()
    assert int((active + (p.shift != 0).any(1).int()).max()) == 1
    assert p.brightness.view(300, 4)[colored.all(1)].std(1).min() > 0


def test_siamese_sides_of_other_sizes_get_the_same_augmentation() -> None:
    config = SiameseAugmentation()
    x = images(1).expand(5 * 7, -1, -1, -1)
    key = Draws(8, ("step",))
    few = config.apply(x[:10], config.draw(key, 8, 8, 5)).unflatten(0, (5, 2))
    many = config.apply(x, config.draw(key, 8, 8, 5)).unflatten(0, (5, 7))
    assert torch.equal(few[:, 0], many[:, 6])
    other = config.apply(x, config.draw(key.fold(1), 8, 8, 5)).unflatten(0, (5, 7))
    assert not torch.equal(other, many)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_reach_the_images(operation: Operation) -> None:
    config = SiameseAugmentation((operation,))
    parameters = config.draw(Draws(4), 5, 6, 2)
    x = images(4, (2, 5, 6)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: config.apply(t, parameters), (x,))


@pytest.mark.parametrize("groups", [7, 3, 1])
def test_of_many_images_a_few_groups_are_augmented_at_a_time(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation, images = SiameseAugmentation(), Draws(3).normal(groups * 5, 3, 8, 8)
    expected = augmentation.augmented(Draws(1), images, groups, shared=True)
    monkeypatch.setattr(augment, "TOGETHER", images.numel() - 1)
    monkeypatch.setattr(augment, "AT_ONCE", {"cpu": images[:5].numel()})
    seen: list[int] = []
    whole = augment.color

    def noted(x: Tensor, *strengths: Tensor) -> Tensor:
        seen.append(len(x))
        return whole(x, *strengths)

    monkeypatch.setattr(augment, "color", noted)
    assert torch.equal(augmentation.augmented(Draws(1), images, groups, shared=True), expected)
    assert seen == {7: [3, 2, 2], 3: [3], 1: [1]}[groups]
    for context, pieces in ((torch.enable_grad(), 1), (torch.no_grad(), {7: 3, 3: 1, 1: 1}[groups])):
        seen.clear()
        with context:
            augmentation.augmented(Draws(1), images.requires_grad_(), groups, shared=True)
        assert len(seen) == pieces  # one graph where it is differentiated


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="one or more of color"):
        SiameseAugmentation(())
    with pytest.raises(ConfigError, match="got blur"):
        SiameseAugmentation(("blur",))  # type: ignore[arg-type]
    config = SiameseAugmentation()
    with pytest.raises(ShapeError, match="multiple of 3"):
        config.apply(images(4), config.draw(Draws(0), 8, 8, 3))


def test_operations_that_are_always_applied_come_with_the_drawn_one() -> None:
    config = SiameseAugmentation(("crop",), always=("color", "cutout"))
    x = images(12, (3, 8, 8))
    parameters = config.draw(Draws(3), 8, 8, groups=1, per_group=12)
    got = config.apply(x, parameters)
    for index in range(12):
        p = one(parameters, index)
        expected = x[index]
        for operation in ("color", "crop", "cutout"):
            expected = torch.from_numpy(by_loops(operation, expected, p, config))  # type: ignore[arg-type]
        np.testing.assert_allclose(got[index].numpy(), expected.numpy(), atol=2e-6)
    many = config.draw(Draws(3), 32, 32, groups=1, per_group=500)
    places = torch.stack([many.shift[:, 0], many.hole[:, 0].float()])
    assert abs(float(torch.corrcoef(places)[0, 1])) < 0.2  # crop and hole have places of their own
    described = config.describe()
    assert (described["operations"], described["always"]) == (["crop"], ["color", "cutout"])
    assert "always" not in SiameseAugmentation().describe()
    with pytest.raises(ConfigError, match="only color and flip and cutout"):
        SiameseAugmentation(("crop",), always=("rotate",))


@pytest.mark.parametrize("operation", WARPS)
def test_images_that_are_always_mirrored_are_mirrored_before_they_are_warped(operation: Operation) -> None:
    config = SiameseAugmentation((operation,), always=("color", "flip"))
    x = images(12, (3, 8, 10))
    parameters = config.draw(Draws(3), 8, 10, groups=1, per_group=12)
    got, mirror = config.apply(x, parameters), torch.tensor([1.0, -1.0])
    mirrored = parameters.matrix.det() < 0
    assert 0 < int(mirrored.sum()) < 12
    for index in range(12):
        p, expected = one(parameters, index), x[index]
        if mirrored[index]:
            expected = torch.from_numpy(oracle.flip(expected.numpy().copy()))
            p = p._replace(matrix=mirror[:, None] * p.matrix, shift=mirror * p.shift)
        for each in ("color", operation):
            expected = torch.from_numpy(by_loops(each, expected, p, config))  # type: ignore[arg-type]
        np.testing.assert_allclose(got[index].numpy(), expected.numpy(), atol=2e-6)


def test_classes_are_augmented_alike_on_both_sides() -> None:
    config = SiameseAugmentation(("crop",), always=("color",))
    x = images(6).view(3, 2, 3, 8, 8)
    both, one_each = (config.augmented(Draws(2), part.flatten(0, 1), 3, shared=True) for part in (x, x[:, :1]))
    assert torch.equal(both.view_as(x)[:, 0], one_each)
    assert not torch.equal(both.view_as(x), x)


class Classes:
    """All that CutMix asks of a task."""

    num_classes: int | None = 4


def test_cutmix_mixes_labels_as_it_mixes_pixels() -> None:
    x, y = images(5, (1, 8, 10)), torch.tensor([0, 1, 2, 3, 0])
    mix = MixedMinibatches(None, cutmix=1.0)
    for seed in range(200):
        mixed = mix(Classes(), Draws(seed), Batch(x, y, torch.ones(5)))  # type: ignore[arg-type]
        kept_pixels = (mixed.inputs == x).flatten(1).double().mean(1)  # type: ignore[union-attr]
        own = mixed.targets[torch.arange(5), y]  # type: ignore[index]
        assert torch.allclose(mixed.targets.sum(1), torch.ones(5, dtype=torch.float64))  # type: ignore[union-attr]
        mixed_in_another = own < 1  # a partner of the same class leaves the label whole
        assert torch.allclose(own[mixed_in_another], kept_pixels[mixed_in_another])


def test_cutmix_cuts_a_box_of_a_uniform_share_around_a_uniform_centre() -> None:
    for seed in range(50):
        _, kept, *centre = Draws(seed, ("box",)).uniform(4).tolist()
        halves = [int(side * math.sqrt(1 - kept)) // 2 for side in (10, 15)]
        (down, right), (tall, wide) = [int(side * at) for side, at in zip((10, 15), centre, strict=True)], halves
        expected = torch.zeros(10, 15, dtype=torch.bool)
        expected[max(down - tall, 0) : down + tall, max(right - wide, 0) : right + wide] = True
        assert torch.equal(cutmix_box(Draws(seed), 1.0, 10, 15), expected)


def test_cutmix_takes_partners_from_the_own_group_and_draws_them_for_each() -> None:
    groups, size = 3, 4
    values = torch.arange(float(groups * size))  # each image is constant, and its value says which one it is
    batch = Batch(values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), values.long(), torch.ones(len(values)))
    alike = 0
    for seed in range(30):
        mixed = cut_and_mix(Draws(seed), batch, groups, 1.0, len(values)).inputs
        box = cutmix_box(Draws(seed), 1.0, 8, 8)
        if not box.any():
            continue
        partner = mixed[:, 0, box][:, 0].long().view(groups, size)  # type: ignore[index]
        assert torch.equal(partner // size, torch.arange(groups)[:, None].expand(groups, size))
        assert all(len(row.unique()) == size for row in partner)
        alike += bool((partner % size == partner[0] % size).all())
    assert alike < 5
    with pytest.raises(ShapeError, match="one tensor, got a dict of a"):
        cut_and_mix(Draws(0), batch._replace(inputs={"a": batch.inputs}), groups, 1.0, len(values))  # type: ignore[dict-item]


@pytest.mark.parametrize("shape", [(1, 30), (30, 1)])
def test_vectors_are_neither_augmented_nor_mixed(shape: tuple[int, int]) -> None:
    vectors = Draws(0).normal(12, 1, *shape)
    for augmentation in (SiameseAugmentation(), SiameseAugmentation(("crop",), ("color", "cutout"))):
        assert augmentation.augmented(Draws(1), vectors, 3, shared=False) is vectors
    assert Shaken(share=0.5)(Draws(1), vectors) is vectors
    batch = Batch(vectors, torch.arange(12) % 3, torch.ones(12))
    mixed = MixedMinibatches(SiameseAugmentation(), cutmix=1.0)(Classes(), Draws(0), batch)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(mixed, batch, strict=True))  # type: ignore[arg-type]


def test_unmixed_minibatches_keep_their_labels() -> None:
    batch = Batch(images(5), torch.tensor([0, 1, 2, 3, 0]), torch.ones(5))
    plain = MixedMinibatches(None, cutmix=0.0)(Classes(), Draws(0), batch)  # type: ignore[arg-type]
    assert torch.equal(plain.targets, batch.targets)  # type: ignore[arg-type]
    assert torch.equal(plain.inputs, batch.inputs)  # type: ignore[arg-type]
    augmented = MixedMinibatches(SiameseAugmentation(("crop",)), cutmix=0.0)(Classes(), Draws(0), batch)  # type: ignore[arg-type]
    assert not torch.equal(augmented.inputs, batch.inputs)  # type: ignore[arg-type]
    alike = Batch(images(1).expand(5, -1, -1, -1), batch.targets, batch.weight)
    augmented = MixedMinibatches(SiameseAugmentation(("crop",)), cutmix=0.0)(Classes(), Draws(0), alike)  # type: ignore[arg-type]
    assert len(augmented.inputs.unique(dim=0)) > 1  # type: ignore[union-attr]
    drawn = [bool(cutmix_box(Draws(seed), 0.5, 8, 8).any()) for seed in range(200)]
    assert 60 < sum(drawn) < 130
    with pytest.raises(ConfigError, match="a probability"):
        MixedMinibatches(None, cutmix=1.5)


def test_places_are_computed_in_float32_whatever_a_step_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[str] = []

    def noted(precision: str, device: torch.device) -> nullcontext[None]:
        formats.append(precision)
        return nullcontext()

    monkeypatch.setattr(augment, "matrix_products", noted)
    SiameseAugmentation().augmented(Draws(0), torch.ones(4, 1, 8, 8), 2, shared=True)
    assert formats == ["float32"]
