"""Latents of a generator, its training, and IT-GAN."""

import logging
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.errors import CheckpointError, ConfigError, MemoryExhaustedError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.generator import (
    GeneratorRecipe,
    ProjectionCritic,
    _Players,
    default_file,
    trained_generator,
    untrained_generator,
)
from mmdistill.image.methods.generative import GENERATIVE, PAIRED, generated, of_generator
from mmdistill.labels import FixedLabels
from mmdistill.networks import clock
from mmdistill.networks.expert_recipe import ExpertRecipe
from mmdistill.networks.experts import default_folder
from mmdistill.parameterizations.base import stored_tensor_bytes
from mmdistill.parameterizations.budget import ImageBudget
from mmdistill.parameterizations.generated import GeneratedSamples, Inversion, invert
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, ClassBatch, Inputs
from tests.oracles import storage as oracle

KEY = Draws(8)
RECIPE = GeneratorRecipe(latent_size=4, width=4, critic_width=4, steps=4, batch=8, lr=1e-3)


@pytest.fixture(scope="module")
def task() -> ImageTask:
    return image_task("digits", width=4)


class Linear(nn.Module):
    """A generator whose inversion has a closed form; classes shift its images, where it takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(KEY.fold("w").normal(6, 64) / 8)

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return images of 8 x 8."""
        images = (latents @ self.weight.to(latents.dtype)).view(-1, 1, 8, 8)
        return images if classes is None else images + classes.view(-1, 1, 1, 1)


def features(inputs: Inputs) -> tuple[Tensor, ...]:
    """Two made-up features."""
    assert isinstance(inputs, Tensor)
    return (torch.stack([inputs.flatten(1).tanh().sum(1), inputs.square().flatten(1).sum(1)], 1),)


def samples(partners: Tensor | None, weight: float) -> GeneratedSamples:
    classes = torch.tensor([0, 0, 0, 1])
    z = KEY.fold("z").normal(4, 6).double()
    return GeneratedSamples(z, Linear(), True, FixedLabels(classes), classes, 2, partners, weight)


def test_the_penalty_equals_its_oracle_and_its_gradient() -> None:
    partners = KEY.fold("x").normal(4, 1, 8, 8).double()
    made = samples(partners, 0.3)
    value = made.penalty(features, made(KEY).inputs)
    assert value is not None
    decoded, wanted = features(made(KEY).inputs)[-1].detach().numpy(), features(partners)[-1].numpy()
    assert value.item() == pytest.approx(0.3 * oracle.paired(decoded, wanted, [0, 0, 0, 1]), rel=1e-9)

    def penalty(latents: Tensor) -> Tensor:
        found = torch.func.functional_call(made, {"latents": latents}, (KEY,))
        assert isinstance(found.inputs, Tensor)
        scaled: Tensor = (features(found.inputs)[-1] - features(partners)[-1]).square().sum()
        return scaled

    torch.autograd.gradcheck(penalty, (made.latents.detach().requires_grad_(),))
    assert samples(partners, 0.0).penalty(features, made(KEY).inputs) is None


def test_pairs_in_portions_have_the_value_and_the_gradient_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(KEY.fold("x").normal(4, 1, 8, 8).double(), 0.3)
    seen: list[int] = []

    def noted(inputs: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(inputs, Tensor)
        seen.append(len(inputs))
        return features(inputs)

    found = []
    for numbers in (10**9, 3 * 64, 1):
        monkeypatch.setattr("mmdistill.parameterizations.generated.PAIRED_TOGETHER", numbers)
        value = made.penalty(noted, made(KEY).inputs)
        assert value is not None
        found.append((value.detach(), *torch.autograd.grad(2 * value, made.latents)))
    assert seen == [4, 4] + [2] * 4 + [1] * 8
    for value, gradient in found[1:]:
        assert torch.allclose(value, found[0][0], rtol=1e-12)
        assert torch.allclose(gradient, found[0][1], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        value = made.penalty(noted, made(KEY).inputs)
    assert value is not None
    assert torch.allclose(value, found[0][0], rtol=1e-12)


def test_it_gan_is_as_published() -> None:
    settings = get_method(DOMAIN, "it-gan", "cifar10").settings(10)
    assert (settings.steps, settings.real_batch, settings.syn_batch, settings.augment) == (10_000, 500, 1250, True)
    assert get_method(DOMAIN, "it-gan", "cifar10").settings(1250).steps == 10_000
    assert get_method(DOMAIN, "it-gan", "cifar10").settings(5000).steps == 40_000  # of four splits
    hundred = get_method(DOMAIN, "it-gan", "cifar100").settings(500)
    assert hundred.syn_batch >= 500  # all of a class, for so many steps
    assert hundred.steps == 10_000
    assert settings.optimizers["codes"] == OptimizerSpec("adam", 0.001, betas=(0.9, 0.999))
    assert Inversion() == Inversion(steps=5000, lr=0.1, pixel_weight=1.0)
    assert pytest.approx(0.001) == PAIRED / (1 + PAIRED)  # Eq. 28's lambda


def test_the_generator_is_stored_but_rests() -> None:
    made = samples(None, 0.0)
    assert [(name, len(group)) for name, group in made.groups().items()] == [("codes", 1)]
    assert made.stored_bytes() == 4 * 6 * 8 + 6 * 64 * 4 + 4
    given = Linear()
    assert next(given.parameters()).requires_grad  # the user's module is left as it was
    with pytest.raises(ConfigError, match="partners where it is not 0"):
        samples(None, 0.1)


def test_a_generator_that_is_given_in_training_mode_normalises_each_sample_by_itself() -> None:
    generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Unflatten(1, (1, 4, 4)))
    classes = torch.tensor([0, 0, 1])
    made = GeneratedSamples(KEY.normal(3, 4), generator, False, FixedLabels(classes), classes, 2)
    alone, together = made.part(torch.tensor([1]), KEY).inputs, made(KEY).inputs
    assert isinstance(together, Tensor)
    torch.testing.assert_close(alone, together[1:2])
    assert torch.equal(made(KEY).inputs, together)  # type: ignore[arg-type]
    assert generator.training  # the user's module is left as it was


def test_inversion_finds_the_latents_of_generated_images() -> None:
    generator = Linear().requires_grad_(False)
    truth, start = KEY.fold("t").normal(3, 6), KEY.fold("s").normal(3, 6)
    classes = torch.zeros(3, dtype=torch.long)

    def pixels(inputs: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(inputs, Tensor)
        return (inputs.flatten(1),)

    found = invert(lambda z, c: generator(z), start, classes, generator(truth), pixels, Inversion(steps=300))
    assert torch.allclose(found, truth, atol=0.02)


@pytest.mark.parametrize("pixel_weight", [0.5, 3.0])
def test_inversion_weighs_features_against_pixels_as_its_oracle_does(
    pixel_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmdistill.parameterizations.generated.MADE_TOGETHER", 2)
    seen: set[tuple[int, ...]] = set()
    generator = Linear().requires_grad_(False).double()
    images, maps = (KEY.fold(name).normal(*shape).double() for name, shape in (("x", (3, 64)), ("h", (64, 9))))

    def linear(inputs: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(inputs, Tensor)
        return (inputs.flatten(1).tanh(), inputs.flatten(1) @ maps / 4)  # the last layer counts

    def expected(weight: float) -> Tensor:
        numbers = (tensor.numpy() for tensor in (images, generator.weight, maps / 4))
        return torch.from_numpy(oracle.inverted(*numbers, weight))

    def decode(latents: Tensor, classes: Tensor) -> Tensor:
        seen.add(tuple(classes.tolist()))
        made: Tensor = generator(latents)
        return made

    start, classes = KEY.fold("s").normal(3, 6).double(), torch.tensor([5, 6, 7])
    how = Inversion(steps=600, lr=0.05, pixel_weight=pixel_weight)
    found = invert(decode, start, classes, images.view(-1, 1, 8, 8), linear, how)
    assert seen == {(5, 6), (7,)}
    assert torch.allclose(found, expected(pixel_weight), atol=1e-4)
    moved = invert(decode, start, classes, images.view(-1, 1, 8, 8), linear, replace(how, steps=1)) - start
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, how.lr))  # Adam's first step
    for other in (0.0, pixel_weight / 2, 2 * pixel_weight, 1e9):  # without pixels, scaled, without features
        assert (found - expected(other)).abs().max() > 0.2


def test_training_resumes_as_if_it_had_not_stopped(task: ImageTask, tmp_path: Path) -> None:
    whole = trained_generator(task, RECIPE, tmp_path / "whole.safetensors")
    assert not whole.training
    players = _Players(task, RECIPE)
    for _ in range(2):
        players.advance()
    players.save(tmp_path / "part.safetensors")
    resumed = trained_generator(task, RECIPE, tmp_path / "part.safetensors")
    again = trained_generator(task, RECIPE, tmp_path / "whole.safetensors")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
        assert torch.equal(tensor, again.state_dict()[name])


def test_an_interrupted_training_says_what_is_kept(
    task: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(players: _Players) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Players, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        trained_generator(task, RECIPE, tmp_path / "g.safetensors", save_every=7)
    assert stop.value.__notes__ == ["the generator is kept every 7 steps, and the same command goes on from there"]


def test_of_several_that_need_a_generator_one_trains_it_and_the_others_wait(
    task: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, taken, advance = tmp_path / "kept" / "g.safetensors", [0], _Players.advance

    def slow(players: _Players) -> None:
        taken[0] += 1
        time.sleep(0.1)
        advance(players)

    monkeypatch.setattr(_Players, "advance", slow)
    monkeypatch.setattr(clock, "FIRST_REPORT", 0.1)
    caplog.set_level(logging.INFO, "mmdistill")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: trained_generator(task, RECIPE, file, save_every=1), range(3)))
    assert taken == [RECIPE.steps]
    for name, tensor in found[0].state_dict().items():
        assert all(torch.equal(tensor, other.state_dict()[name]) for other in found[1:])
    assert "waiting for another process, which is there to train a generator in" in caplog.text
    assert caplog.text.count("generator: 100 % trained, about 0 s left") == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_another_process_has_trained_meanwhile_is_not_trained_again(
    task: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, file = tmp_path / "elsewhere.safetensors", tmp_path / "g.safetensors"
    whole = trained_generator(task, RECIPE, elsewhere)
    keeper = (
        "import sys, time; from pathlib import Path; from mmdistill.files.locks import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])):\n"
        "    print('kept', flush=True); time.sleep(1); Path(sys.argv[2]).rename(sys.argv[3])"
    )
    command = [sys.executable, "-c", keeper, str(file.with_suffix(".training")), str(elsewhere), str(file)]
    monkeypatch.setattr(_Players, "advance", lambda players: pytest.fail("trained again"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "kept\n"
        found = trained_generator(task, RECIPE, file)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])


def test_steps_of_the_game_draw_apart_and_judge_images_by_their_own_classes(
    task: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: list[Batch] = []
    judged: list[tuple[Tensor, Tensor]] = []
    sample_real, forward = ImageTask.sample_real, ProjectionCritic.forward

    def sampled(self: ImageTask, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        batch = sample_real(self, draws, classes, n)
        assert isinstance(batch, Batch)
        real.append(batch)
        return batch

    def seen(self: ProjectionCritic, images: Tensor, classes: Tensor) -> Tensor:
        judged.append((images, classes))
        return forward(self, images, classes)

    monkeypatch.setattr(ImageTask, "sample_real", sampled)
    monkeypatch.setattr(ProjectionCritic, "forward", seen)
    players = _Players(task, RECIPE)
    for _ in range(2):
        players.advance()
    genuine, forged = judged[::3], judged[1::3]  # and those forged once more, for the generator
    for batch, (images, classes) in zip(real, genuine, strict=True):
        assert torch.equal(images, batch.inputs)  # type: ignore[arg-type]
        assert torch.equal(classes, batch.targets)  # type: ignore[arg-type]
    for one, other in (genuine, forged):
        assert not torch.equal(one[1], other[1])


def test_generators_and_experts_are_cached_under_the_name_of_their_data(task: ImageTask) -> None:
    names = default_file(task, RECIPE).stem, default_folder(task, ExpertRecipe()).name
    assert all(re.fullmatch("digits-[0-9a-f]{16}", name) for name in names)
    assert names[0] != default_file(task, replace(RECIPE, width=8)).stem


def test_other_and_damaged_generators_are_refused(task: ImageTask, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    trained_generator(task, RECIPE, file)
    with pytest.raises(CheckpointError, match="its recipe is"):
        trained_generator(task, replace(RECIPE, width=8), file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        trained_generator(task, RECIPE, file)
    with pytest.raises(ConfigError, match="at least 1"):
        GeneratorRecipe(steps=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (2, 10, 13)])
def test_generators_make_images_of_any_size_within_range(shape: tuple[int, int, int], tmp_path: Path) -> None:
    images = KEY.uniform(12, *shape)
    task = image_task((images, torch.arange(12) % 3), test=(images, torch.arange(12) % 3), width=4)
    generator = trained_generator(task, replace(RECIPE, steps=1), tmp_path / "g.safetensors")
    made = generator(KEY.normal(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert made.shape == (5, *shape)
    space = torch.tensor(task.data.mean).view(-1, 1, 1), torch.tensor(task.data.std).view(-1, 1, 1)
    pixels = made * space[1] + space[0]
    assert pixels.min() >= -1e-4
    assert pixels.max() <= 1.0001


def test_it_gan_distils_digits_and_counts_its_generator(task: ImageTask, tmp_path: Path) -> None:
    file = tmp_path / "g.safetensors"
    storage = generated(RECIPE, Inversion(steps=5, feature_steps=2), within_budget=False, file=file)
    method = replace(GENERATIVE.presets["digits"]["it-gan"], parameterization=storage).with_settings(
        steps=4, real_batch=8, augment=False
    )
    made = distill(task, method, ipc=2)
    numbers = sum(t.numel() * 4 for t in trained_generator(task, RECIPE, file).state_dict().values() if t.ndim)
    assert made.batch.weight.shape == (20,)
    assert made.stored_bytes == 20 * (4 * 4 + 1) + numbers + 2  # and the batch norms' counts
    within = replace(method, parameterization=generated(RECIPE, Inversion(steps=1, feature_steps=2), file=file))
    assert distill(task, within, ipc=4, settings={"steps": 1, "init": "noise"}).stored_bytes <= 40 * 257


def test_a_generator_beyond_the_budget_is_refused_before_it_is_trained(task: ImageTask, tmp_path: Path) -> None:
    file = tmp_path / "g.safetensors"
    storage = generated(replace(RECIPE, width=64), Inversion(steps=1, feature_steps=2), file=file)
    with pytest.raises(ConfigError, match="too few are left for one code per class"):
        distill(task, "dm", ipc=1, parameterization=storage, settings={"steps": 1})
    assert not file.exists()


def test_of_the_samples_asked_for_a_generators_budget_holds_those_that_fit(task: ImageTask, tmp_path: Path) -> None:
    storage = generated(RECIPE, samples=10_000, file=tmp_path / "g.safetensors")
    made = storage(task, 30, Settings(steps=1, init="noise"), "hard", KEY)
    assert made.stored_bytes() <= ImageBudget.of(task, 30, "hard").stored_bytes


def test_a_generator_takes_the_bytes_that_were_counted_before_its_training(task: ImageTask, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=300)  # of which batch norms keep count in two bytes
    found = untrained_generator(task, recipe), trained_generator(task, recipe, tmp_path / "g.safetensors")
    counted, taken = (sum(map(stored_tensor_bytes, generator.state_dict().values())) for generator in found)
    assert counted == taken


@pytest.mark.slow
def test_a_digits_generator_makes_its_classes_in_variety(tmp_path: Path) -> None:
    task = image_task("digits", width=4)
    recipe = GeneratorRecipe(latent_size=16, width=8, critic_width=16, steps=1200, lr=1e-3)
    generator = trained_generator(task, recipe, tmp_path / "g.safetensors")
    real = task.select(torch.arange(task.describe().num_train))
    assert isinstance(real.inputs, Tensor)
    means = torch.stack([real.inputs[real.targets == c].mean(0) for c in range(10)]).flatten(1)
    classes = torch.arange(10).repeat(30)
    with torch.no_grad():
        made = generator(KEY.normal(300, 16), classes).flatten(1)
    assert (torch.cdist(made, means).argmin(1) == classes).double().mean() > 0.9
    spread = made.view(30, 10, -1).std(0).mean()
    assert spread > 0.5 * torch.stack([real.inputs[real.targets == c].std(0).mean() for c in range(10)]).mean()


def test_a_generator_of_the_users_own(task: ImageTask) -> None:
    storage = of_generator(Linear(), 6, inversion=Inversion(steps=2, feature_steps=2))
    made = distill(task, "dm", ipc=2, parameterization=storage, settings={"steps": 2, "real_batch": 4})
    assert made.stored_bytes == 20 * (6 * 4 + 1) + 6 * 64 * 4
    start, near, other = (
        of_generator(Linear(), 6, inversion=Inversion(steps, feature_steps=network_steps), weight=0.2)(
            task, 2, Settings(steps=1), "hard", KEY
        )
        for steps, network_steps in ((0, 2), (20, 2), (20, 3))
    )
    assert isinstance(near, GeneratedSamples)
    assert near.weight == 0.2
    gaps = [float((own(KEY).inputs.detach() - near.partners).square().sum()) for own in (start, near)]  # type: ignore[operator, union-attr]
    assert gaps[1] < 0.9 * gaps[0]
    assert not torch.equal(other(KEY).inputs, near(KEY).inputs)  # type: ignore[arg-type]
    wide = nn.Sequential(nn.Linear(6, 10), nn.Unflatten(1, (1, 2, 5)))
    with pytest.raises(ConfigError, match="the generator makes"):
        distill(task, "dm", ipc=1, parameterization=of_generator(wide, 6))
    with pytest.raises(ConfigError, match=r"the generator cannot take latents \(1, 5\): .*mat1 and mat2"):
        distill(task, "dm", ipc=1, parameterization=of_generator(wide, 5))


def test_a_generator_of_the_users_own_that_runs_out_of_memory_is_not_blamed(task: ImageTask) -> None:
    class Large(nn.Module):
        def forward(self, latents: Tensor) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(MemoryExhaustedError, match="the start of the distillation"):
        distill(task, "dm", ipc=1, parameterization=of_generator(Large(), 6))


def test_some_latents_give_what_all_do_and_their_own_pairs() -> None:
    partners = KEY.fold("x").normal(4, 1, 8, 8).double()
    made = samples(partners, 0.3)
    whole, chosen = made(KEY), made.choose(KEY.fold("few"), 2)
    rows = chosen.rows.flatten()
    part = made.part(rows, KEY)
    assert torch.equal(part.inputs, whole.inputs[rows])  # type: ignore[arg-type, index]
    assert torch.equal(part.targets, whole.targets[rows])  # type: ignore[arg-type, index]
    value = made.penalty(features, part.inputs, chosen)
    assert value is not None
    kept = rows[chosen.present.flatten() > 0]  # the second class has one sample
    decoded, wanted = features(whole.inputs)[-1].detach().numpy(), features(partners)[-1].numpy()
    assert value.item() == pytest.approx(0.3 * oracle.paired(decoded[kept], wanted[kept], [0, 0, 1]), rel=1e-9)


def test_finished_latents_are_decoded_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(None, 0.0)
    monkeypatch.setattr("mmdistill.parameterizations.generated.MADE_TOGETHER", 3)
    whole, decode, seen = made(KEY).inputs, made.decode, list[int]()

    def counted(latents: Tensor, classes: Tensor) -> Tensor:
        seen.append(len(latents))
        return decode(latents, classes)

    monkeypatch.setattr(made, "decode", counted)
    for large, sizes in ((10**6, [1, 3, 1]), (32, [1] * 5)):
        seen.clear()
        monkeypatch.setattr("mmdistill.execution.portions.LARGE", large)
        assert torch.allclose(made.finished(KEY).inputs, whole, rtol=1e-12)  # type: ignore[arg-type]
        assert seen == sizes
