"""FRePo, RFAD and KIP on digits; and, among the slow tests, the unrolled methods beside them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.coresets import allocate, choose_samples
from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.image import DOMAIN, ImageTask, image_task
from mmdistill.registry import get_method
from mmdistill.runtime import Draws

NAMES = ("frepo", "rfad", "kip")


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


def accuracy(task: ImageTask, name: str, seed: int) -> float:
    learned: Mapping[str, Tensor] = {}
    if name not in ("real", "herding"):
        result = distill(task, name, ipc=1, seed=seed)
        batch, learned = result.batch, result.learned
    else:
        counts = allocate(1, "ipc", task.labels, task.num_classes)
        batch = task.select(choose_samples(task, name, counts, Draws(seed, ("baseline",))))  # type: ignore[arg-type]
    return task.evaluate(batch, "convnet", Draws(seed, ("judge",)), 1, learned).values["accuracy"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "dd", "mtt", "tesla", "ftd", "ddpp"])
def test_each_beats_its_baselines_on_digits(name: str) -> None:
    task = image_task("digits")
    # Judges of DD take its 15 learned steps alone, after which herded images trained to the end are level with it.
    for baseline in ("real",) if name == "dd" else ("real", "herding"):
        gap = torch.tensor([accuracy(task, name, seed) - accuracy(task, baseline, seed) for seed in range(3)])
        assert float(gap.mean()) > 2 * float(gap.std()) / len(gap) ** 0.5, (baseline, gap)
