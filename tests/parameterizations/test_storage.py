"""Decoders and addressing matrices: equal to loops, within their budget, and learned through any objective."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.cli import main
from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.image.methods import METHODS
from mmdistill.image.storage import (
    PARAMETERIZATIONS,
    addressed,
    addressed_hallucinated,
    addressed_latent,
    hallucinated,
    latent,
)
from mmdistill.image.task import ImageTask, image_task
from mmdistill.labels import FixedLabels, LabelKind, TeacherLabels
from mmdistill.method import Storage
from mmdistill.methods import CORE_METHODS
from mmdistill.parameterizations.base import index_bytes, stored_tensor_bytes
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.decoder import (
    DecodedCodes,
    Hallucinator,
    LatentDecoder,
    Upsampling,
    decoded_codes,
    fit_to_images,
    hallucinators,
    make_decoders,
    upsampling,
)
from mmdistill.parameterizations.memory import (
    AddressedCodes,
    best_approximation,
    memory_sizes,
    small_start,
)
from mmdistill.parameterizations.raw import noise_like
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from mmdistill.task import take
from tests.oracles import storage as oracle

KEY = Draws(4)


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=8)


def decoded(parameterization: torch.nn.Module) -> Tensor:
    inputs: Tensor = parameterization(KEY).inputs
    return inputs


def test_noise_of_named_tensors_is_drawn_for_each() -> None:
    inputs = {"x": torch.zeros(2, 3), "y": torch.zeros(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}
    found = noise_like(inputs, KEY)
    assert isinstance(found, dict)
    assert torch.equal(found["y"], KEY.fold("y").normal(2, 3))
    assert not torch.equal(found["x"], found["y"])
    assert torch.equal(found["mask"], inputs["mask"])
    assert torch.equal(noise_like(inputs["x"], KEY), KEY.normal(2, 3))  # type: ignore[arg-type]


def test_a_hallucinator_has_the_published_size() -> None:
    assert sum(p.numel() for p in Hallucinator(3, 32, 32).parameters()) == 5568


def test_a_hallucinator_renders_as_its_oracle_does() -> None:
    (made,) = make_decoders(lambda: Hallucinator(2, 5, 4).double(), 1, KEY)
    assert isinstance(made, Hallucinator)
    with torch.no_grad():
        made.scale.copy_(KEY.fold("scale").normal(*made.scale.shape))
        made.shift.copy_(KEY.fold("shift").normal(*made.shift.shape))
    images = KEY.fold("images").normal(3, 2, 5, 4).double()
    own = {name: tensor.detach().numpy() for name, tensor in made.named_parameters()}
    for image, found in zip(images.numpy(), made(images).detach(), strict=True):
        inside = np.maximum(oracle.convolved(image, own["inward.weight"], own["inward.bias"]), 0)
        styled = own["scale"] * inside + own["shift"]
        expected = oracle.spread(styled, own["outward.weight"], own["outward.bias"])
        assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_a_latent_decoder_grows_codes_as_its_oracle_does() -> None:
    (made,) = make_decoders(lambda: LatentDecoder(2, 4, 3).double(), 1, KEY)
    codes = KEY.fold("codes").normal(2, 2, 3, 2).double()
    own = {name: tensor.detach().numpy() for name, tensor in made.named_parameters()}
    for code, found in zip(codes.numpy(), made(codes).detach(), strict=True):
        hidden = oracle.convolved(code, own["layers.0.weight"], own["layers.0.bias"], padding=1)
        for layer in ("layers.2", "layers.4"):
            weight, bias = own[f"{layer}.weight"], own[f"{layer}.bias"]
            hidden = oracle.spread(np.maximum(hidden, 0), weight, bias, stride=2, padding=1)
        assert found.shape == (2, 12, 8)
        assert np.allclose(found.numpy(), hidden, atol=1e-12)


def test_addresses_combine_bases_as_the_equation_says() -> None:
    memory, addresses = KEY.fold("m").normal(3, 1, 2, 2).double(), KEY.fold("a").normal(2, 4, 3).double()
    labels = FixedLabels(torch.arange(4).repeat_interleave(2))
    found = decoded(AddressedCodes(memory, addresses, [Upsampling(1)], labels))
    row = 0
    for c in range(4):
        for j in range(2):
            expected = torch.zeros(1, 2, 2, dtype=torch.float64)
            for k in range(3):
                expected = expected + addresses[j, c, k] * memory[k]
            assert torch.allclose(found[row], expected)
            row += 1


@pytest.mark.parametrize("factor", [1, 2])
def test_some_samples_of_a_memory_are_decoded_alone(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, addresses = KEY.fold("m").normal(3, 1, 4, 4), KEY.fold("a").normal(5, 4, 3)
    labels = FixedLabels(torch.arange(4).repeat_interleave(5))
    made = AddressedCodes(memory, addresses, [Upsampling(factor)], labels)
    whole, rows = made(KEY), torch.tensor([19, 0, 7, 7])
    monkeypatch.setattr(AddressedCodes, "forward", lambda *args: pytest.fail("all were decoded"))
    part = made.part(rows, KEY)
    torch.testing.assert_close(part.inputs, take(whole, rows).inputs)
    assert part.targets.tolist() == [3, 0, 1, 1]  # type: ignore[union-attr]
    assert part.weight.tolist() == [1.0] * 4
    few = [rows for step in range(20) if (rows := made.drawn(KEY.fold(step), 7)) is not None]
    assert [len(rows.unique()) for rows in few] == [7] * 20
    assert len(torch.cat(few).unique()) == 20  # any of them
    assert made.drawn(KEY, 20) is None
    taught = AddressedCodes(memory, addresses, [Upsampling(factor)], TeacherLabels(labels.targets, 4))
    assert taught.drawn(KEY, 7) is None  # a teacher labels all samples


@pytest.mark.parametrize(
    ("classes", "side", "per_class", "samples", "bases"),
    [
        (10, 28, 1, 28, 16),  # as published; those of ten classes are what their bytes hold
        (10, 32, 10, 115, 160),
        (10, 32, 50, 115, 800),
        (10, 64, 1, 128, 28),
        (100, 32, 1, 128, 22),
        (200, 64, 1, 100, 106),
        (1000, 64, 1, 20, 532),
        (1000, 64, 10, 40, 2852),
    ],
)
def test_a_memory_of_many_classes_has_more_bases_in_place_of_samples(
    classes: int, side: int, per_class: int, samples: int, bases: int
) -> None:
    channels = 1 if side == 28 else 3
    room = ImageBudget(per_class, (channels, side, side), classes, "hard")
    assert memory_sizes(room, upsampling(room, KEY, factor=2), 4, bases=16) == (samples, bases)
    taken = 4 * bases * (room.numel // 4 + samples * classes) + samples * classes * room.label_bytes
    assert taken <= room.stored_bytes


def test_a_step_decodes_the_samples_that_its_students_read(task: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 2, "real_batch": 20, "inner_steps": 3, "inner_batch": 5, "inner_window": 2}
    asked: list[int] = []
    part = AddressedCodes.part
    monkeypatch.setattr(
        AddressedCodes, "part", lambda self, rows, draws: asked.append(len(rows.unique())) or part(self, rows, draws)
    )
    found = distill(task, "addmem", ipc=1, settings=settings)
    assert found.batch.weight.shape == (20,)
    assert asked == [15, 15]
    distill(task, "addmem", ipc=1, settings={**settings, "inner_batch": 7})  # which may read all
    assert len(asked) == 2


COUNTED = {
    **PARAMETERIZATIONS,
    "addressed-latent": addressed_latent(2, 1, 2, multiple=2),  # by default soft labels of digits exceed the bytes
    "addressed-hallucinated": addressed_hallucinated(2, 2),
    "latent-upsample-2": latent(tiles=2),
    "addressed-upsample-2": addressed(multiple=1, tiles=2),
}


@pytest.mark.parametrize("name", sorted(COUNTED))
@pytest.mark.parametrize("label", ["hard", "soft"])
def test_storages_say_the_class_of_each_sample_that_they_hold_within_the_bytes(
    task: ImageTask, name: str, label: LabelKind
) -> None:
    storage, settings = COUNTED[name], replace(CORE_METHODS["dm"].settings(20), init="noise")
    made = storage(task, 20, settings, label, KEY)
    assert made.classes is not None
    assert len(made.classes) == len(decoded(made))
    if not name.startswith("upsample"):  # whose samples have more labels than their raw images
        assert made.stored_bytes() <= ImageBudget.of(task, 20, label).stored_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "addmem", "--ipc", "1"], "ipc 1, 20 samples"),
        (["--method", "kfs", "--ipc", "10"], "ipc 10, 760 samples"),
        (["--method", "haba", "--ipc", "10"], "ipc 10, 180 samples"),
        (["--method", "dm", "--ipc", "1", "--parameterization", "upsample-2"], "ipc 1, 40 samples"),
        (["--method", "dm", "--ipc", "1"], "ipc 1"),
    ],
)
def test_a_dry_run_says_to_how_many_samples_a_set_decodes(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "--data", "digits", *options, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("budget")]
    assert line.removeprefix("budget").strip() == said


def test_bases_are_enlarged_between_the_centres_of_their_pixels() -> None:
    memory = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2).contiguous()
    labels = FixedLabels(torch.zeros(1, dtype=torch.long))
    found = decoded(AddressedCodes(memory, torch.ones(1, 1, 1), [Upsampling(2)], labels))
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(1, 1, 4, 4))


def test_hallucinated_bases_start_as_real_images_of_their_class(task: ImageTask) -> None:
    room = ImageBudget.of(task, 40, "hard")
    made = decoded_codes(task, room, "real", KEY, partial(hallucinators, count=2), warm_up=0)
    nearest = torch.cdist(made.codes.detach().flatten(1), task.data.normalise(task.data.train_images).flatten(1))
    per_class = len(made.codes) // 10
    assert per_class > 1
    assert torch.equal(task.data.train_labels[nearest.argmin(1)], torch.arange(10).repeat_interleave(per_class))


def test_large_starts_are_fitted_in_minibatches_of_all_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, codes_of = list[Tensor | None](), DecodedCodes.codes_of

    def noted(self: DecodedCodes, rows: Tensor | None = None) -> Tensor:
        taken.append(rows)
        return codes_of(self, rows)

    monkeypatch.setattr(DecodedCodes, "codes_of", noted)
    monkeypatch.setattr("mmdistill.parameterizations.decoder.FITTED_AT_ONCE", 31)
    monkeypatch.setattr("mmdistill.parameterizations.decoder.FITTED_TOGETHER", 10)
    images, classes = KEY.uniform(32, 1, 2, 2), torch.zeros(16, dtype=torch.long)
    made = DecodedCodes(torch.zeros(16, 1, 2, 2), [Upsampling(1)] * 2, FixedLabels(classes), classes, 1)
    fit_to_images(made, images, 800, KEY)
    torch.testing.assert_close(made.codes.detach(), images.view(16, 2, 1, 2, 2).mean(1), atol=0.05, rtol=0)
    first, second = (torch.cat([rows for rows in taken[start : start + 4] if rows is not None]) for start in (0, 4))
    assert [0 if rows is None else len(rows) for rows in taken] == [5, 5, 5, 1] * 200
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(16))
    assert first.tolist() != second.tolist()
    monkeypatch.setattr("mmdistill.parameterizations.decoder.FITTED_AT_ONCE", 32)
    fit_to_images(made, images, 1, KEY)
    assert taken[800:] == [None]


def test_the_fitting_of_a_start_shows_a_bar_where_the_run_does(
    task: ImageTask, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 1, "real_batch": 4}
    monkeypatch.setattr("mmdistill.parameterizations.decoder.UNSHOWN_SECONDS", 1000.0)
    distill(task, "kfs", ipc=1, settings=settings, progress=True)
    assert "fitting the start" not in capsys.readouterr().err  # of a moment
    monkeypatch.setattr("mmdistill.parameterizations.decoder.UNSHOWN_SECONDS", 0.0)
    distill(task, "kfs", ipc=1, settings=settings)
    assert not capsys.readouterr().err
    distill(task, "kfs", ipc=1, settings=settings, progress=True)
    said = capsys.readouterr().err
    assert said.index("fitting the start") < said.index("digits kfs")
    assert "300/300" in said


def test_every_code_meets_every_decoder() -> None:
    decoders = make_decoders(lambda: LatentDecoder(1, 2, 4), 3, KEY)
    again = make_decoders(lambda: LatentDecoder(1, 2, 4), 3, KEY)
    codes, classes = KEY.normal(2, 1, 4, 4), torch.tensor([0, 1])
    whole = DecodedCodes(codes, decoders, FixedLabels(classes), classes, 2)
    batch = whole(KEY)
    assert batch.targets.tolist() == [0, 0, 0, 1, 1, 1]
    for index in range(6):
        assert torch.allclose(batch.inputs[index], again[index % 3](codes)[index // 3], atol=1e-6)
    assert set(whole.groups()) == {"codes", "decoder"}


def test_bases_and_coefficients_of_a_small_start_are_drawn_apart() -> None:
    memory, addresses = small_start(4, 4, (1, 2, 2), KEY)
    assert not torch.equal(memory.flatten(), addresses.flatten())


def test_the_start_is_exact_where_bases_suffice() -> None:
    images = KEY.normal(5, 1, 3, 3)
    memory, addresses = best_approximation(images, 5, KEY)
    assert torch.allclose(torch.einsum("nk,kxyz->nxyz", addresses, memory), images, atol=1e-5)
    torch.testing.assert_close(memory.square().mean((1, 2, 3)), torch.ones(5))
    more, weights = best_approximation(images, 7, KEY)
    assert torch.allclose(more[:5], memory)
    assert torch.equal(weights[:, 5:], torch.zeros(5, 2))
    assert float(more[5:].abs().min()) > 0


@pytest.mark.parametrize("build", [latent(2, 2, 4), hallucinated(2), addressed(2, 4)])
@pytest.mark.usefixtures("short_fits")
def test_more_samples_than_raw_within_the_same_bytes(task: ImageTask, build: Storage) -> None:
    made = build(task, 10, CORE_METHODS["dm"].settings(10), "hard", KEY)
    assert made.stored_bytes() <= 100 * (64 * 4 + 1)
    inputs = decoded(made)
    assert len(inputs) > 100
    assert inputs.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("build", [latent(2, 2, 4), hallucinated(2), addressed(2, 4)])
def test_any_method_learns_them(task: ImageTask, build: Storage) -> None:
    rate = OptimizerSpec("adam", 0.01)
    method = replace(CORE_METHODS["dm"], parameterization=build).with_settings(
        steps=40, real_batch=16, augment=False, init="noise", optimizers={"codes": rate, "decoder": rate}
    )
    losses: list[float] = []
    distill(task, method, ipc=10, progress=lambda done, total, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(("largest", "each"), [(255, 1), (256, 2), (65_535, 2), (65_536, 4)])
def test_integers_count_the_bytes_of_the_largest(largest: int, each: int) -> None:
    assert stored_tensor_bytes(torch.tensor([0, largest])) == 2 * each
    assert index_bytes(largest + 1) == each


@pytest.mark.parametrize(("classes", "each"), [(256, 1), (257, 2)])
def test_a_fixed_label_takes_the_bytes_of_the_number_of_classes(classes: int, each: int) -> None:
    room = ImageBudget(1, (1, 2, 2), classes, "hard")
    assert room.label_bytes == each
    assert sum(stored_tensor_bytes(tensor) for tensor in room.labels(1, 1).state_dict().values()) == classes * each


@pytest.mark.parametrize("label", ["unrestricted", "soft"])
def test_each_sample_of_a_code_has_a_label_that_takes_bytes(label: LabelKind) -> None:
    room = ImageBudget(4, (1, 8, 8), 10, label)
    codes, each = room.codes_per_class(16, [], 3), 10 * (4 * 16 + 3 * 40)
    assert codes * each <= room.stored_bytes < (codes + 1) * each


@pytest.mark.usefixtures("short_fits")
def test_kfs_is_a_method_that_runs(task: ImageTask) -> None:
    assert METHODS["kfs"].parameterization is not None
    result = distill(task, "kfs", ipc=5, settings={"steps": 2, "real_batch": 8})
    assert result.stored_bytes <= 50 * (64 * 4 + 1)


def test_impossible_stores_are_refused(task: ImageTask) -> None:
    settings = replace(CORE_METHODS["dm"].settings(1), init="noise")  # nothing is fitted where a store is possible
    with pytest.raises(ConfigError, match="too few are left") as refusal:
        hallucinated(50)(task, 1, settings, "hard", KEY)
    images = re.search(r"it takes [\d,]+ \(--ipc (\d+)\)", str(refusal.value))
    with pytest.raises(ConfigError, match="too few are left") as refusal:
        hallucinated(50)(task, 1, replace(settings, stored_bytes=1), "hard", KEY)
    size = re.search(r"it takes [\d,]+ \(--bytes (\d+)\)", str(refusal.value))
    assert images is not None
    assert size is not None
    ipc, limit = int(images[1]), int(size[1])
    hallucinated(50)(task, ipc, settings, "hard", KEY)
    hallucinated(50)(task, 1, replace(settings, stored_bytes=limit), "hard", KEY)
    for least, given in ((ipc - 1, 0), (1, limit - 1)):
        with pytest.raises(ConfigError, match="too few are left"):
            hallucinated(50)(task, least, replace(settings, stored_bytes=given), "hard", KEY)
    with pytest.raises(ConfigError, match="does not divide"):
        addressed(3)(task, 1, settings, "hard", KEY)
    for shape in ((1, 8, 9), (1, 9, 8)):
        with pytest.raises(ConfigError, match="a factor of 2 does not divide"):
            ImageBudget(1, shape, 10, "hard").require_divisor(2)
    with pytest.raises(ConfigError, match="too few are left for one code"):
        addressed(1, 1000)(task, 1, settings, "hard", KEY)
    with pytest.raises(ConfigError, match="power of two"):
        LatentDecoder(1, 3, 4)
    with pytest.raises(ConfigError, match="at least 3 x 3"):
        Hallucinator(1, 2, 2)
    with pytest.raises(ConfigError, match="expected addresses"):
        AddressedCodes(torch.zeros(2, 1, 4, 4), torch.zeros(1, 3, 5), [Upsampling(1)], FixedLabels(torch.arange(3)))
