"""Experts in training on disk: an interruption costs little, and what comes out is what would have."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmdistill.files.locks import sole_writer
from mmdistill.image import image_task
from mmdistill.networks import expert_group
from mmdistill.networks.expert_group import STATE
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import train_experts
from mmdistill.networks.fit import LiveTraining
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.runtime import Draws
from mmdistill.task import Task, Tensors
from tests.toys import BlobTask

EPOCHS = 6
STEPS = 3
"""Of an epoch: 90 samples in minibatches of 32."""
PROTOCOLS = {
    "plain": replace(PUBLISHED, epochs=EPOCHS, lr=0.1, batch=32),
    "momentum": replace(PUBLISHED, epochs=EPOCHS, lr=0.1, batch=32, momentum=0.9, decay_at=(0.2, 0.4), restart=False),
    "restarted": replace(PUBLISHED, epochs=EPOCHS, lr=0.1, batch=32, momentum=0.9, decay_at=(0.5,)),
    "adam": FitProtocol(EPOCHS, lr=0.01, optimizer="adam", batch=32, cosine=True, warmup=20),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """Return what three experts of a protocol leave where nothing interrupts them."""

    @cache
    def trained(protocol: str) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("whole") / protocol
        train_experts(BlobTask(), folder, 3, ExpertRecipe(PROTOCOLS[protocol]), together=2)
        return contents(folder)

    return trained


@pytest.fixture(autouse=True)
def kept_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_group, "KEPT_EVERY", 0.0)


def normed() -> Task:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))

    images, labels = Draws(0).normal(60, 1, 4, 4), torch.arange(3).repeat(20)
    return image_task((images, labels), test=(images, labels), model=make)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def interrupted(task: Task, folder: Path, recipe: ExpertRecipe, after: int, together: int = 2) -> None:
    def stop(done: int, total: int, seconds: float) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_experts(task, folder, 3, recipe, together=together, progress=stop)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize("after", [1, STEPS, 3 * STEPS + 1, 4 * STEPS - 1, EPOCHS * STEPS, (EPOCHS + 2) * STEPS])
def test_interrupted_experts_end_as_they_would_have(
    protocol: str, after: int, whole: Callable[[str], dict[str, bytes]], tmp_path: Path
) -> None:
    task, recipe = BlobTask(), ExpertRecipe(PROTOCOLS[protocol])
    interrupted(task, tmp_path / "cut", recipe, after)
    ticks: list[tuple[int, int]] = []
    train_experts(task, tmp_path / "cut", 3, recipe, together=2, progress=lambda *seen: ticks.append(seen[:2]))
    left = 2 * EPOCHS * STEPS - after
    assert ticks == [(step + 1, left) for step in range(left)]
    assert contents(tmp_path / "cut") == whole(protocol)
    assert not [path for path in (tmp_path / "cut").iterdir() if path.is_dir()]


def test_running_statistics_go_on_too(tmp_path: Path) -> None:
    task, recipe = normed(), ExpertRecipe(PROTOCOLS["momentum"])
    train_experts(task, tmp_path / "whole", 3, recipe, together=2)
    interrupted(task, tmp_path / "cut", recipe, 3)  # of two steps an epoch
    train_experts(task, tmp_path / "cut", 3, recipe, together=2)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_is_kept_leaves_the_memory(tmp_path: Path) -> None:
    task = BlobTask()
    recipe = ExpertRecipe(PROTOCOLS["plain"])
    interrupted(task, tmp_path, recipe, 4 * STEPS + 1)
    names = {path.name for path in (tmp_path / "group-0000-2").iterdir()}
    assert names == {STATE, *(f"epochs-000{epoch}-000{epoch}.safetensors" for epoch in range(5))}
    group = expert_group.ExpertGroup(tmp_path, [0, 1], "digest")
    state = task.init(Draws(0))
    group.note(LiveTraining(0, 0, state, torch.optim.SGD(state.params.values(), lr=1.0)))
    assert not group._pending


def test_epochs_to_go_on_from_are_written_one_by_one(tmp_path: Path) -> None:
    group = expert_group.ExpertGroup(tmp_path, [0, 1], "digest")

    def epochs() -> Iterator[Tensors]:
        for number in range(3):
            assert len(list(group.folder.glob("epochs-*"))) == number  # the ones before are on disk, not in memory
            yield {"params.weight": torch.tensor([[number, 0.0], [number, 1.0]])}

    reached = group.start_from(epochs(), torch.device("cpu"))
    assert (reached.epoch, reached.step) == (2, 0)
    assert reached.state.params["weight"].tolist() == [[2, 0], [2, 1]]
    assert group.trajectory(1)["params.weight"].tolist() == [[0, 1], [1, 1], [2, 1]]


def test_a_file_by_the_clock_comes_an_interval_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()  # a clock that is a second later whenever it is read
    monkeypatch.setattr(expert_group, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(expert_group, "KEPT_EVERY", 9.5)
    group = expert_group.ExpertGroup(tmp_path, [0, 1], "digest")
    state = BlobTask().init(Draws(0))
    for epoch in range(60):
        group.note(LiveTraining(epoch, 0, state, torch.optim.SGD(state.params.values(), lr=1.0)))
    assert 4 <= len(list(group.folder.glob("epochs-*.safetensors"))) <= 6


def test_a_long_epoch_is_kept_by_the_clock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(expert_group, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(expert_group, "KEPT_EVERY", 9.5)
    state = BlobTask().init(Draws(0))
    optimizer = torch.optim.SGD(state.params.values(), lr=1.0)
    group = expert_group.ExpertGroup(tmp_path, [0, 1], "digest")
    for step in range(60):
        for tensor in state.params.values():
            tensor.fill_(step)
        group.note(LiveTraining(0, step, state, optimizer))
    reached = expert_group.ExpertGroup(tmp_path, [0, 1], "digest").load_state(torch.device("cpu"))
    assert reached is not None
    assert reached.epoch == 0
    assert 45 <= reached.step < 60
    assert all((tensor == reached.step).all() for tensor in reached.state.params.values())
    assert [path.name for path in group.folder.glob("epochs-*")] == ["epochs-0000-0000.safetensors"]


@pytest.mark.parametrize("name", [STATE, "epochs-0002-0002.safetensors"])
def test_damage_begins_the_group_anew(
    name: str, whole: Callable[[str], dict[str, bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, recipe = BlobTask(), ExpertRecipe(PROTOCOLS["plain"])
    interrupted(task, tmp_path / "cut", recipe, 3 * STEPS)
    damaged = tmp_path / "cut" / "group-0000-2" / name
    damaged.write_bytes(damaged.read_bytes()[:100])
    train_experts(task, tmp_path / "cut", 3, recipe, together=2)
    assert "experts begin anew, since what is left of them cannot be used" in caplog.text
    assert contents(tmp_path / "cut") == whole("plain")


def test_a_larger_group_is_left_for_smaller_ones(tmp_path: Path) -> None:
    task, recipe = BlobTask(), ExpertRecipe(PROTOCOLS["plain"])
    interrupted(task, tmp_path, recipe, 3 * STEPS, together=3)
    assert expert_group.open_groups(tmp_path, 3, 3) == [[0, 1, 2]]
    train_experts(task, tmp_path, 3, recipe, together=1)
    assert sorted(contents(tmp_path)) == [*(f"expert-000{index}.safetensors" for index in range(3)), "experts.json"]
    assert not (tmp_path / "group-0000-3").exists()


def test_files_without_a_state_are_of_no_use_and_do_not_stay(tmp_path: Path) -> None:
    task, recipe = BlobTask(), ExpertRecipe(PROTOCOLS["plain"])
    interrupted(task, tmp_path, recipe, 3 * STEPS, together=3)
    (tmp_path / "group-0000-3" / STATE).unlink()
    train_experts(task, tmp_path, 3, recipe, together=1)
    assert not (tmp_path / "group-0000-3").exists()


def test_a_second_process_waits_for_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = (
        "import sys, time; from pathlib import Path; from mmdistill.files.locks import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])): print('kept', flush=True); time.sleep(1); Path(sys.argv[2]).touch()"
    )
    command = [sys.executable, "-c", keeper, str(tmp_path / "experts"), str(tmp_path / "done")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "kept\n"
        with sole_writer(tmp_path / "experts", wait="train experts"):
            assert (tmp_path / "done").exists()
    assert "waiting for another process, which is there to train experts in" in caplog.text
