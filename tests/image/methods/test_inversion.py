"""SRe2L: images that a trained network recognises, within the range of pixels, labelled by that network."""

from pathlib import Path

import pytest
import torch

from mmdistill.cli import main
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.methods.inversion import InversionSettings, Shaken, bounded_images
from mmdistill.networks.schedules import EMPTY
from mmdistill.networks.teacher import TrainedNetwork, soft_labels, trained_teacher
from mmdistill.parameterizations.bounded import Bounded
from mmdistill.parameterizations.upsample import pixel_space
from mmdistill.registry import get_method
from mmdistill.runs.advice import lowering_steps
from mmdistill.runtime import Draws
from mmdistill.task import one_tensor
from mmdistill.testing import check_parameterization

KEY = Draws(2)
FEW = {"steps": 6, "teacher_epochs": 2}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", model="convnet-bn-w4", judge_epochs=3)


def test_a_run_inverts_one_network_which_labels_the_images(digits: ImageTask, tmp_path: Path) -> None:
    method = get_method(DOMAIN, "sre2l", "digits")
    whole = distill(digits, method, ipc=2, settings=FEW, out=tmp_path / "run", checkpoint_every=3)
    images = one_tensor(whole.batch.inputs)
    assert torch.equal(one_tensor(whole.batch.targets), soft_labels(digits, trained_teacher(digits, 2), images))
    low, high = pixel_space(digits, 1).bounds()
    assert bool(((images >= low - 1e-6) & (images <= high + 1e-6)).all())
    assert len(list((tmp_path / "cache" / "experts").iterdir())) == 1
    sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1].unlink()
    (tmp_path / "run" / "distilled.json").unlink(missing_ok=True)
    again = distill(digits, method, ipc=2, settings=FEW, out=tmp_path / "run", resume=True, checkpoint_every=3)
    assert torch.equal(one_tensor(again.batch.inputs), images)
    assert whole.stored_bytes == 20 * 64 * 4 + 20 * 10 * 4


def test_each_step_lowers_the_loss_of_what_the_network_sees(digits: ImageTask) -> None:
    method = get_method(DOMAIN, "sre2l", "digits").with_settings(steps=60, teacher_epochs=20, jitter=0)
    distiller = Distiller(digits, method, 1)
    run, losses = distiller.start(), []
    for _ in range(60):
        run, loss = distiller.step(run)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_the_network_keeps_its_statistics_and_stays(digits: ImageTask) -> None:
    schedule, teacher = TrainedNetwork(2), trained_teacher(digits, 2)
    state = schedule.fetch(digits, EMPTY, KEY)
    after = schedule.advance(digits, state, lambda: digits.select(torch.arange(1)), KEY)
    again = schedule.fetch(digits, after, KEY)
    assert (state.age, again.age) == (0, 1)
    for found in (state.network, again.network):
        assert found is not None
        assert all(torch.equal(tensor, teacher.buffers[name]) for name, tensor in found.buffers.items())
        assert all(torch.equal(tensor, teacher.params[name]) for name, tensor in found.params.items())
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        TrainedNetwork(0)


def test_networks_without_batch_norms_are_refused_when_a_run_is_built() -> None:
    with pytest.raises(ConfigError, match=r"InstanceNorm\); take a network with them, such as --model convnet-bn"):
        distill(image_task("digits", model="convnet-w4"), "sre2l", ipc=1, settings=FEW)


def test_images_stay_within_bounds(digits: ImageTask) -> None:
    settings = InversionSettings(1, init="noise")
    made = bounded_images(digits, 2, settings, "hard", KEY)
    assert isinstance(made, Bounded)
    assert float(made.inputs.detach().min()) < -2  # noise begins anywhere
    with torch.no_grad():
        made.inputs.mul_(3)
    made.project()
    low, high = pixel_space(digits, 1).bounds()
    assert float(made.inputs.detach().min()) == pytest.approx(float(low.min()))
    assert float(made.inputs.detach().max()) == pytest.approx(float(high.max()))
    pixels = digits.data.train_images.double() / digits.data.scale
    real = (pixels - torch.tensor(digits.data.mean).view(-1, 1, 1)) / torch.tensor(digits.data.std).view(-1, 1, 1)
    assert [float(real.min()), float(real.max())] == pytest.approx([float(low.min()), float(high.max())])
    check_parameterization(digits, bounded_images, settings=settings)
    whitened = image_task("digits", model="convnet-bn-w4", whiten="mtt")
    free = bounded_images(whitened, 1, settings, "hard", KEY)
    before = one_tensor(free(KEY).inputs).detach().clone()
    free.project()
    assert torch.equal(one_tensor(free(KEY).inputs), before)


def test_all_images_of_a_step_are_shown_alike() -> None:
    images = KEY.normal(3, 2, 6, 6, dtype=torch.float64)
    for least, both in ((0, False), (-2, True)):
        shifts = [(down, right) for down in range(least, 3) for right in range(least, 3)]
        moved = {
            next(
                shift
                for shift in shifts
                if torch.equal(Shaken(2, both=both)(KEY.fold(index), images), images.roll(shift, (2, 3)))
            )
            for index in range(200)
        }
        assert moved == set(shifts)
    assert torch.equal(Shaken(0)(KEY, images), images)
    whole = Shaken(0, 1.0)  # mirrored every other time
    found = [whole(KEY.fold(index), images) for index in range(20)]
    plain = [torch.allclose(seen, images) for seen in found]
    assert any(plain)
    assert all(one or torch.allclose(seen, images.flip(3)) for one, seen in zip(plain, found, strict=True))
    cropped = Shaken(0, 0.2)(KEY, torch.arange(36.0).view(1, 1, 6, 6).expand(2, 1, 6, 6))
    assert torch.equal(cropped[0], cropped[1])
    assert float(cropped.max() - cropped.min()) < 35
    places = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))[None]
    seen = torch.cat([Shaken(0, 0.08)(KEY.fold(index), places) for index in range(60)])
    height, width = (seen.amax((2, 3)) - seen.amin((2, 3))).unbind(1)
    assert float((width / height).max()) == pytest.approx(4 / 3, rel=0.1)
    assert float((width / height).min()) == pytest.approx(3 / 4, rel=0.1)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"bn_weight": -1.0}, "bn_weight is a number of at least 0"),
        ({"bn_first": -1.0}, "bn_first"),
        ({"jitter": -1}, "jitter is a whole number of at least 0"),
        ({"crop_share": 1.5}, "between 0 and 1"),
        ({"bn_together": 2}, "bn_together is true or false"),
    ],
)
def test_settings_out_of_range_are_refused(own: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InversionSettings(1, **own)  # type: ignore[arg-type]


def test_plans_tell_the_network_of_any_labels(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill", "--data", "digits", "--model", "convnet-bn-w4", "--method", "sre2l", "--ipc", "1"]
    for options in ([], ["--label", "hard"]):
        assert main([*command, "--teacher-epochs", "2", "--dry-run", *options]) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher"))
        assert "2 epochs, to be trained first" in row


def test_published_commands(digits: ImageTask) -> None:
    plain, tiny = (get_method(DOMAIN, "sre2l", data).settings(10) for data in ("cifar100", "tiny-imagenet"))
    assert isinstance(plain, InversionSettings)
    assert isinstance(tiny, InversionSettings)
    rates = [settings.optimizers["codes"] for settings in (plain, tiny)]
    assert [(rate.name, rate.lr, rate.betas, rate.cosine) for rate in rates] == [
        ("adam", 0.25, (0.5, 0.9), True),
        ("adam", 0.1, (0.5, 0.9), True),
    ]
    assert (plain.steps, plain.bn_weight, plain.bn_first, plain.jitter, plain.crop_share) == (1000, 0.01, 10.0, 4, 0.0)
    assert (tiny.steps, tiny.bn_weight, tiny.bn_first, tiny.crop_share) == (4000, 1.0, 10.0, 0.08)
    assert [(settings.jitter, settings.jitter_both) for settings in (plain, tiny)] == [(4, False), (4, True)]


def test_classes_in_parts_are_no_advice(digits: ImageTask) -> None:
    sre2l, dm = (get_method(DOMAIN, name, "digits") for name in ("sre2l", "dm"))
    assert sre2l.ignored_settings(1, ["classes_at_once"]) == ["classes_at_once"]
    assert dm.ignored_settings(1, ["classes_at_once"]) == []
    for method, said in ((sre2l, False), (dm, True)):
        distiller = Distiller(digits, method.with_settings(steps=1, teacher_epochs=1), 1)
        assert ("--classes-at-once" in lowering_steps(distiller, distiller.start())) == said
