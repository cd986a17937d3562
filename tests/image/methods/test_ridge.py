"""FRePo, RFAD, KIP and RCIG on digits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill.cli import main
from mmdistill.distill import distill, find_method
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.image.methods.ridge import MirroredKernelRidge, with_mirror_images
from mmdistill.objectives.base import Network
from mmdistill.objectives.ridge import MarginKernelRidge
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from mmdistill.task import Batch
from mmdistill.testing import as_float64, check_objective
from tests.toys import smooth_mlp

NAMES = ("frepo", "rfad", "kip", "kip-conv", "rcig")
KEY = Draws(3)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return image_task("digits", width=8, judge_epochs=3)


@pytest.mark.parametrize("name", NAMES)
def test_runs_resume_to_the_bit(name: str, digits: ImageTask, tmp_path: Path) -> None:
    settings = {"steps": 4, "real_batch": 16}
    whole = distill(digits, name, ipc=1, settings=settings)
    distill(digits, name, ipc=1, settings=settings, out=tmp_path, checkpoint_every=2)
    sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1].unlink()
    again = distill(digits, name, ipc=1, settings=settings, out=tmp_path, checkpoint_every=2, resume=True)
    assert isinstance(again.batch.inputs, Tensor)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]
    assert torch.equal(again.batch.targets, whole.batch.targets)  # type: ignore[arg-type]
    start = Distiller(digits, get_method(DOMAIN, name, "digits"), 1).start()
    moved = (whole.batch.inputs - start.parameterization(Draws(0)).inputs.detach()).abs().max()  # type: ignore
    assert float(moved) > 0


def test_labels_start_scaled_by_the_number_of_classes() -> None:
    labels = torch.arange(80) % 40
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task = image_task((images, labels), test=(images, labels), width=4)
    batch = Distiller(task, get_method(DOMAIN, "frepo"), 1).start().parameterization(Draws(0))
    torch.testing.assert_close(batch.targets.detach(), (torch.eye(40) - 1 / 40) / 2)  # type: ignore[union-attr]


def test_fixed_labels_are_scaled_alike_and_probabilities_refused(digits: ImageTask) -> None:
    frepo = get_method(DOMAIN, "frepo")
    batch = Distiller(digits, replace(frepo, label="hard"), 2).start().parameterization(KEY)
    torch.testing.assert_close(batch.targets, (torch.eye(10) - 0.1).repeat_interleave(2, 0))
    with pytest.raises(ConfigError, match="are hard or unrestricted ones"):
        Distiller(digits, replace(frepo, label="soft"), 1).start()


def test_a_run_with_fixed_labels_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["--method", "frepo", "--label", "hard", "--ipc", "1", "--steps", "2", "--width", "8", "--networks", "1"]
    out = str(tmp_path / "run")
    judging = ["--baselines", "none", "--judge-epochs", "1"]
    assert main(["distill", "--data", "digits", *options, *judging, "--out", out]) == 0
    assert "is not read" not in caplog.text
    for command in (["report"], ["evaluate"], ["export"], ["distill", "--resume"]):
        assert main([*command, out]) == 0
    assert DistilledSet.load(out).label == "fixed scores"


@pytest.mark.parametrize(("data", "classes"), [("cifar10", 10), ("cifar100", 100), ("tiny-imagenet", 200)])
def test_kip_regresses_5000_real_images_of_all_classes_together(data: str, classes: int) -> None:
    for name in ("kip", "kip-conv"):
        for method in (own := get_method(DOMAIN, name, data), own.for_classes(classes)):
            assert method.settings(1).real_batch * classes == 5000


@pytest.mark.parametrize(("classes", "each"), [(100, 50), (7, 714), (6000, 1)])
def test_kip_regresses_as_many_of_own_images_of_many_classes(classes: int, each: int) -> None:
    images, labels = KEY.uniform(classes, 1, 8, 8), torch.arange(classes)
    task = image_task((images, labels), test=(images, labels), width=4)
    own = get_method(DOMAIN, "kip")
    for method in ("kip", "kip-conv", own, own.with_settings(steps=3), own.with_rate(0.1), own.labelled("soft")):
        found, _ = find_method(task, method, "published")
        assert found.settings(1).real_batch == each
        assert found.with_settings(real_batch=500).settings(1).real_batch == 500  # as a user asks
    assert get_method(DOMAIN, "kip", "digits").for_classes(10).settings(1).real_batch == 50


def test_the_command_line_counts_the_classes_of_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8)).astype(np.uint8), np.arange(100) % 50
    np.savez(tmp_path / "own.npz", images=images, labels=labels, test_images=images, test_labels=labels)
    options = ["--data", str(tmp_path / "own.npz"), "--method", "kip", "--ipc", "1", "--out", str(tmp_path / "run")]
    assert main(["distill", *options, "--dry-run"]) == 0
    assert "real batch 100," in capsys.readouterr().out


def test_ridge_with_mirror_images_passes_the_battery() -> None:
    images, labels = KEY.uniform(30, 3, 4, 4), torch.arange(30) % 3
    task = image_task(
        (images, labels), test=(images, labels), model=lambda: nn.Sequential(nn.Flatten(), *smooth_mlp(inputs=48))
    )
    task = ImageTask(replace(task.data, mirror=True), task.network, task.model, task.device)
    network = Network(task, as_float64(task.init(KEY)))
    real, syn = (task.select(torch.arange(*span)).map(as_double) for span in ((3, 12), (0, 3)))
    syn = syn._replace(targets=KEY.normal(3, 3).double())
    check_objective(
        MirroredKernelRidge(1e-2),
        network,
        syn,
        real,
        oracle=lambda: float(MarginKernelRidge(1e-2)(network, with_mirror_images(syn), real, KEY).detach()),
    )


def as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize(
    ("mirror", "channels", "limit", "joined"),
    [(True, 3, 500, True), (True, 3, 10, True), (True, 3, 9, False), (False, 3, 500, False), (True, 1, 500, False)],
)
def test_mirror_images_join_small_sets_of_data_that_may_be_mirrored(
    mirror: bool, channels: int, limit: int, joined: bool
) -> None:
    images, labels = KEY.uniform(30, channels, 8, 8), torch.arange(30) % 10
    task = image_task((images, labels), test=(images, labels), width=4)
    task = ImageTask(replace(task.data, mirror=mirror), task.network, task.model, task.device)
    network = Network(task, task.init(KEY))
    real = task.sample_real(KEY, None, 20)
    syn = task.select(torch.arange(10))
    assert isinstance(syn.inputs, Tensor)
    syn = Batch(syn.inputs, KEY.normal(10, 10), syn.weight)
    turned = torch.stack([torch.stack([image[..., 7 - column] for column in range(8)], -1) for image in syn.inputs])
    both = Batch(torch.cat([syn.inputs, turned]), torch.cat([syn.targets, syn.targets]), torch.ones(20))  # type: ignore
    expected = MarginKernelRidge(1e-3)(network, both if joined else syn, real, KEY)
    torch.testing.assert_close(MirroredKernelRidge(1e-3, limit)(network, syn, real, KEY), expected)
    with pytest.raises(ShapeError, match="mirroring reads one tensor"):
        with_mirror_images(Batch({"x": syn.inputs}, syn.targets, syn.weight))


def test_the_learned_map_moves_all_images_and_is_not_stored(digits: ImageTask) -> None:
    rates = {name: OptimizerSpec("adabelief", 1e-3) for name in ("codes", "labels", "decoder", "objective")}
    method = get_method(DOMAIN, "rfad").with_settings(steps=3, real_batch=16, optimizers=rates)
    distiller = Distiller(digits, method, 1)
    run = distiller.start()
    torch.testing.assert_close(
        run.parameterization(KEY).inputs, dict(run.parameterization.named_parameters())["inputs"]
    )
    for _ in range(3):
        run, _ = distiller.step(run)
    assert not torch.equal(dict(run.parameterization.named_parameters())["decoder.matrix"], torch.eye(64))
    assert distiller.result(run, "rfad", 0.0).stored_bytes == 4 * (640 + 100)


@pytest.mark.parametrize("name", [*NAMES, "krr"])
@pytest.mark.parametrize("ipc", [1, 10])
def test_reduced_schedules_have_a_rate_for_all_that_is_learned(name: str, ipc: int, digits: ImageTask) -> None:
    reduced = get_method(DOMAIN, name, "mnist", "reduced").with_settings(steps=1, real_batch=8, init="real")
    distiller = Distiller(digits, reduced, ipc)
    run, loss = distiller.step(distiller.start())
    assert run.step == 1
    assert bool(torch.isfinite(loss))
