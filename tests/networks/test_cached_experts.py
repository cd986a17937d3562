"""Experts in the cache: those of more epochs serve fewer, and those of fewer are gone on from; results are the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.errors import CheckpointError
from mmdistill.execution import compilation
from mmdistill.methods import CORE_METHODS
from mmdistill.networks import expert_group
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import default_folder, open_experts, serving_folder, train_experts
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.teacher import trained_teacher
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.task import Task
from tests.networks.test_expert_group import contents, normed
from tests.toys import BlobTask

STEPS = 3
"""Of an epoch: 90 samples in minibatches of 32."""
RECIPE = ExpertRecipe(replace(PUBLISHED, epochs=2, lr=0.1, batch=32))
LONGER = RECIPE.of_epochs(5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "experts"


def cached(task: Task, recipe: ExpertRecipe, count: int = 3, together: int = 10) -> Path:
    folder = default_folder(task, recipe)
    train_experts(task, folder, count, recipe, together=together)
    return folder


def ticked(task: Task, folder: Path, recipe: ExpertRecipe, together: int = 10) -> int:
    """Train three experts and return how many steps that took."""
    ticks: list[tuple[int, int]] = []
    train_experts(task, folder, 3, recipe, together=together, progress=lambda *seen: ticks.append(seen[:2]))
    assert ticks[-1] == (len(ticks), len(ticks))
    return len(ticks)


def test_experts_of_more_epochs_serve_fewer(tmp_path: Path, cache: Path) -> None:
    task = BlobTask()
    folders = [cached(task, RECIPE.of_epochs(epochs)) for epochs in (1, 7, 5)]
    found = ExpertTrajectories(3, 1, 2, RECIPE)
    assert found.folder_for(task) == folders[2]  # the least that has them
    own = train_experts(task, tmp_path / "own", 3, RECIPE)
    served = open_experts(task, found.folder_for(task), 3, RECIPE)
    for expert in range(3):
        for epoch in range(3):
            there, here = served.snapshot(expert, epoch), own.snapshot(expert, epoch)
            assert all(torch.equal(tensor, there.params[name]) for name, tensor in here.params.items())
    (folders[2] / "experts.json").write_text("{")
    assert serving_folder(task, RECIPE, 3) == folders[1]
    cached(task, RECIPE)
    assert serving_folder(task, RECIPE, 3) == default_folder(task, RECIPE)
    assert len(list(cache.iterdir())) == 4


def test_a_run_ends_alike_whichever_folder_serves(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"steps": 3, "inner_steps": 2, "experts": 3, "expert_steps": 1}
    own = distill(BlobTask(), "mtt", ipc=1, settings={**few, "start_epochs": 1})
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "other"))
    distill(BlobTask(), "mtt", ipc=1, settings={**few, "start_epochs": 4})
    served = distill(BlobTask(), "mtt", ipc=1, settings={**few, "start_epochs": 1})
    assert len(list((tmp_path / "other" / "experts").iterdir())) == 1
    assert torch.equal(own.batch.inputs, served.batch.inputs)  # type: ignore[arg-type]
    schedule = CORE_METHODS["mtt"].with_settings(**few, start_epochs=2)
    schedule.make_schedule(schedule.settings(1)).require_ready(BlobTask())


def test_a_longer_teacher_serves_as_one_of_fewer_epochs(cache: Path) -> None:
    task = BlobTask()
    first = trained_teacher(task, 2)
    trained_teacher(task, 3)  # momentum is not kept, so it begins anew
    assert len(list(cache.iterdir())) == 2
    for path in default_folder(task, ExpertRecipe(replace(PUBLISHED, momentum=0.9, epochs=2))).iterdir():
        path.unlink()
    again = trained_teacher(task, 2)
    assert all(torch.equal(tensor, again.params[name]) for name, tensor in first.params.items())


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.2},
        {"sam": 0.01},
        {"decay_at": (0.5,)},
        {"cosine": True},
        {"momentum": 0.5, "cosine": True},
    ],
    ids=str,
)
def test_experts_of_another_training_do_not_serve(change: dict[str, object]) -> None:
    task = BlobTask()
    longer = LONGER if set(change) <= {"lr", "sam"} else replace(LONGER, protocol=replace(LONGER.protocol, **change))  # type: ignore[arg-type]
    cached(task, longer)
    other = replace(RECIPE, protocol=replace(RECIPE.protocol, **change))  # type: ignore[arg-type]
    assert serving_folder(task, other, 3) == default_folder(task, other)
    assert ticked(task, default_folder(task, other), other) == 2 * STEPS


def test_experts_that_trained_with_others_do_not_serve() -> None:
    task = BlobTask()
    longer = cached(task, LONGER, count=4)
    assert serving_folder(task, RECIPE, 4) == longer
    for count in (3, 5):  # which are drawn for three or five together
        assert serving_folder(task, RECIPE, count) == default_folder(task, RECIPE)
    cached(task, RECIPE, count=2)
    for path in default_folder(task, RECIPE).glob("*1.safetensors"):
        path.unlink()
    assert serving_folder(task, RECIPE, 4) == default_folder(task, RECIPE)  # whose two trained together
    wide = BlobTask(width=9)
    cached(wide, LONGER, together=2)
    assert serving_folder(wide, RECIPE, 3) == default_folder(wide, RECIPE)


def test_a_compiled_training_does_not_serve_for_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    task = BlobTask()
    longer = cached(task, LONGER)
    seen: list[float] = []
    monkeypatch.setattr("mmdistill.networks.stacked.worth_compiling", lambda total: seen.append(total) or False)
    assert serving_folder(task, RECIPE, 3) == longer
    few, many = sorted(set(seen))
    assert many == 2.5 * few > 0
    monkeypatch.undo()
    monkeypatch.setenv("MMDISTILL_CACHE", str(longer.parent.parent))
    monkeypatch.setattr(compilation, "WORTH_OPERATIONS", 2 * few / torch.get_num_threads())
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    assert serving_folder(task, RECIPE, 3) == default_folder(task, RECIPE)
    monkeypatch.setattr(compilation, "WORTH_OPERATIONS", few / torch.get_num_threads())
    assert serving_folder(task, RECIPE, 3) == longer


@pytest.mark.parametrize("kept_every", [0.0, 60.0])
@pytest.mark.parametrize("make", [BlobTask, normed])
def test_longer_experts_go_on_from_shorter_ones(
    make: type[BlobTask], kept_every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_group, "KEPT_EVERY", kept_every)
    task = make()
    train_experts(task, tmp_path / "whole", 3, LONGER, together=2)
    cached(task, RECIPE.of_epochs(1), together=2)
    cached(task, RECIPE, together=2)
    folder = default_folder(task, LONGER)
    steps = 2 * (LONGER.protocol.epochs - 2) * (STEPS if make is BlobTask else 2)
    assert ticked(task, folder, LONGER, together=2) == steps
    assert contents(folder) == contents(tmp_path / "whole")
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_an_interrupted_training_that_went_on_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, total: int, seconds: float) -> None:
        if done == STEPS + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(expert_group, "KEPT_EVERY", 0.0)
    task = BlobTask()
    train_experts(task, tmp_path / "whole", 3, LONGER)
    cached(task, RECIPE)
    with pytest.raises(KeyboardInterrupt):
        train_experts(task, default_folder(task, LONGER), 3, LONGER, progress=stop)
    assert ticked(task, default_folder(task, LONGER), LONGER) == 2 * STEPS - 1
    assert contents(default_folder(task, LONGER)) == contents(tmp_path / "whole")


def test_what_cannot_be_gone_on_from_is_trained_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, whole = BlobTask(), 5 * STEPS
    cached(task, RECIPE, together=2)
    assert ticked(task, default_folder(task, LONGER), LONGER) == whole  # others trained together
    momentum = replace(RECIPE, protocol=replace(RECIPE.protocol, momentum=0.9))
    adam = ExpertRecipe(FitProtocol(2, optimizer="adam", momentum=0.0, batch=32, decay_at=()))
    for recipe in (momentum, adam):
        cached(task, recipe)
        assert ticked(task, default_folder(task, recipe.of_epochs(5)), recipe.of_epochs(5)) == whole
    wide = BlobTask(width=9)
    damaged = cached(wide, RECIPE) / "expert-0001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-40] + bytes(40))
    assert ticked(wide, tmp_path / "own", LONGER) == whole  # a folder of the user's
    assert ticked(wide, default_folder(wide, LONGER), LONGER) == whole
    assert "do not go on from those of 2 epochs" in caplog.text
    assert contents(default_folder(wide, LONGER)) == contents(tmp_path / "own")


def test_a_named_folder_of_more_epochs_will_do_where_they_are_the_same(tmp_path: Path) -> None:
    task = BlobTask()
    train_experts(task, tmp_path / "own", 3, LONGER)
    assert open_experts(task, tmp_path / "own", 3, RECIPE).epochs == 5
    assert train_experts(task, tmp_path / "own", 4, RECIPE).epochs == 5
    assert train_experts(task, tmp_path / "own", 4, RECIPE).snapshot(3, 5)
    annealed = replace(RECIPE, protocol=replace(RECIPE.protocol, cosine=True))
    train_experts(task, tmp_path / "annealed", 3, annealed.of_epochs(5))
    for use in (open_experts, train_experts):
        with pytest.raises(CheckpointError, match="trained with epochs = 5, not 2; use another folder"):
            use(task, tmp_path / "annealed", 3, annealed)  # type: ignore[operator]
