"""Teacher labels: assigned from a trained network or from each step's target, stored with the set."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.image import DOMAIN
from mmdistill.labels import TeacherLabels, make_labels
from mmdistill.methods import CORE_METHODS
from mmdistill.networks import clock
from mmdistill.networks.experts import Experts
from mmdistill.networks.schedules import EMPTY
from mmdistill.networks.teacher import soft_labels, trained_teacher
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.task import NetworkState, Tensors
from tests.objectives.test_trajectory import small
from tests.toys import BlobTask


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))


def test_labels_start_at_the_classes_and_take_probabilities() -> None:
    labels = make_labels("teacher", torch.tensor([1, 0]), 3)
    assert isinstance(labels, TeacherLabels)
    assert labels().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert not list(labels.parameters())
    labels.assign(torch.full((2, 3), 1 / 3))
    assert torch.equal(labels(), torch.full((2, 3), 1 / 3))
    with pytest.raises(ConfigError, match="one label for each decoded sample"):
        labels.assign(torch.ones(4, 3))


def test_a_teacher_is_trained_once_and_knows_the_classes() -> None:
    task = BlobTask()
    teacher = trained_teacher(task, 60)
    real = task.select(torch.arange(90))
    found = soft_labels(task, teacher, real.inputs)
    torch.testing.assert_close(found.sum(1), torch.ones(90))
    assert float((found.argmax(1) == real.targets).float().mean()) > 0.5  # type: ignore[union-attr]
    again = trained_teacher(task, 60)
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in teacher.params.items())
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        trained_teacher(task, 0)


def test_the_log_calls_a_teacher_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "FIRST_REPORT", 0.0)
    with caplog.at_level(logging.INFO, "mmdistill"):
        trained_teacher(BlobTask(), 4)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("teacher: 50 % trained") for line in said)
    assert not any("expert" in line.partition(" in ")[0] for line in said)


def test_any_method_can_take_teacher_labels(tmp_path: Path) -> None:
    task = BlobTask()
    method = replace(CORE_METHODS["dc"], label="teacher").with_settings(steps=2, real_batch=8, teacher_epochs=2)
    made = distill(task, method, ipc=2, out=tmp_path / "run")
    wanted = soft_labels(task, trained_teacher(task, 2), made.batch.inputs)
    assert torch.equal(made.batch.targets, wanted)  # type: ignore[arg-type]
    assert torch.equal(DistilledSet.load(tmp_path / "run").batch.targets, wanted)  # type: ignore[arg-type]
    assert made.stored_bytes == 6 * 4 * 4 + 6 * 3 * 4


def test_trajectory_matching_takes_each_targets_labels(tmp_path: Path) -> None:
    task = BlobTask()
    method = small("tesla", tmp_path, steps=1)
    distiller = Distiller(task, method, 1)
    run = distiller.start()
    key = distiller.draws.fold("step", 0, "rank", 0)
    before = run.parameterization(key).inputs
    schedule = distiller.schedule
    assert isinstance(schedule, ExpertTrajectories)
    state = schedule.fetch(task, EMPTY, key.fold("network"))
    assert state.network is not None
    assert state.target is not None
    wanted = soft_labels(task, NetworkState(state.target, state.network.buffers), before)
    run, _ = distiller.step(run)
    assert torch.equal(run.parameterization(key).targets, wanted)  # type: ignore[arg-type]
    assert torch.equal(distiller.result(run, "tesla", 0.0).batch.targets, wanted)  # type: ignore[arg-type]
    assert len(distiller.real(run, key).weight) == 1  # of the real samples it reads none
    assert isinstance(Experts(tmp_path, task), Experts)  # and no teacher was trained beside the experts
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("start", [True, False])
def test_the_last_target_labels_an_average(tmp_path: Path, start: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = BlobTask()
    method = small("tesla", tmp_path, steps=3, ema=0.9, ema_start=start).labelled("teacher")
    distiller = Distiller(task, method, 2)
    run = distiller.start()
    for _ in range(3):
        run, _ = distiller.step(run)
    ages, fetch = list[int](), ExpertTrajectories.fetch
    monkeypatch.setattr(
        ExpertTrajectories,
        "fetch",
        lambda own, task, state, key: ages.append(state.age) or fetch(own, task, state, key),
    )
    found = distiller.result(run, "tesla", 0.0).batch
    assert ages == [2]  # the last of three steps, by which the window of starts may have grown
    state = distiller.schedule.fetch(task, EMPTY, distiller.draws.fold("step", 2, "rank", 0).fold("network"))
    assert state.network is not None
    assert state.target is not None
    assert not torch.equal(found.inputs, run.parameterization(Draws(0)).inputs)  # type: ignore[arg-type]
    wanted = soft_labels(task, NetworkState(state.target, state.network.buffers), found.inputs)
    assert torch.equal(found.targets, wanted)  # type: ignore[arg-type]


def test_a_teacher_labels_some_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    task, state = BlobTask(), BlobTask().init(Draws(0))
    whole = soft_labels(task, state, task.images)
    seen: list[int] = []

    def predict(state: NetworkState, inputs: Tensor) -> tuple[Tensor, Tensors]:
        seen.append(len(inputs))
        return BlobTask.predict(task, state, inputs)

    monkeypatch.setattr("mmdistill.networks.teacher.LABEL_BATCH", 40)
    monkeypatch.setattr(task, "predict", predict)
    found = soft_labels(task, state, task.images.clone().requires_grad_())
    torch.testing.assert_close(found, whole)
    assert not found.requires_grad
    assert seen == [40, 40, 10]


def test_random_images_with_soft_labels_are_a_method() -> None:
    task = BlobTask()
    method = get_method(DOMAIN, "random-soft")
    made = distill(task, method, ipc=3, settings={"teacher_epochs": 2})
    real = task.select(torch.arange(len(task.images))).inputs
    inputs, targets = made.batch.inputs, made.batch.targets
    assert all(bool((real == row).all(1).any()) for row in inputs)  # type: ignore[union-attr]
    assert torch.equal(targets, soft_labels(task, trained_teacher(task, 2), inputs))  # type: ignore[arg-type]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_runs_have_the_same_labels(tmp_path: Path, ema: float) -> None:
    task, method = BlobTask(), small("tesla", tmp_path / "experts", steps=4, ema=ema)
    whole = distill(task, method, ipc=1)
    distill(task, method, ipc=1, out=tmp_path / "run", checkpoint_every=2)
    sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1].unlink()
    again = distill(task, method, ipc=1, out=tmp_path / "run", resume=True, checkpoint_every=2)
    assert torch.equal(again.batch.targets, whole.batch.targets)  # type: ignore[arg-type]
    assert torch.equal(again.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]
