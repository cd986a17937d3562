"""Runs and judges whose networks are users' own, which have no names, are told apart by what these are made of."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from mmdistill import distill, evaluate, image_task, save_evaluation
from mmdistill.cli import main
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.image import ImageTask
from mmdistill.runs.folder import CHECKPOINTS, METRICS

SHORT = {"steps": 1, "real_batch": 4}


def own(activation: Callable[[], nn.Module]) -> ImageTask:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), activation(), nn.Linear(4, 10))

    return image_task("digits", model=network, judge_epochs=1)


def judged(task: ImageTask, seed: int, folder: Path) -> DistilledSet:
    found = distill(task, "dm", ipc=1, seed=seed, settings=SHORT, out=folder)
    save_evaluation(task, found, evaluate(task, found, n=1, baselines=()), folder)
    return found


def test_reports_call_an_own_network_by_its_module(tmp_path: Path) -> None:
    found = judged(own(nn.ReLU), 0, tmp_path)
    assert found.network == "Sequential, 310 parameters"
    assert "model" not in repr(own(nn.ReLU))


def test_runs_of_two_own_networks_are_two_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged(own(nn.ReLU), 0, tmp_path / "a")
    judged(own(nn.ReLU), 1, tmp_path / "b")
    judged(own(nn.Tanh), 1, tmp_path / "c")
    assert main(["compare", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("digits")]
    assert len(rows) == 2
    assert all("network Sequential " in row for row in rows)


def test_a_finished_run_is_no_other_own_networks(tmp_path: Path) -> None:
    distill(own(nn.ReLU), "dm", ipc=1, settings=SHORT, out=tmp_path)
    for checkpoint in (tmp_path / CHECKPOINTS).iterdir():
        checkpoint.unlink()
    distill(own(nn.ReLU), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto")
    with pytest.raises(CheckpointError, match=r"described\.network is Sequential \w+, not Sequential"):
        distill(own(nn.Tanh), "dm", ipc=1, settings=SHORT, out=tmp_path, resume="auto")


def test_one_own_network_does_not_replace_anothers_result(tmp_path: Path) -> None:
    found, other = judged(own(nn.ReLU), 0, tmp_path), own(nn.Tanh)
    evaluation = evaluate(other, found, n=1, baselines=())
    with pytest.raises(ConfigError, match=r"another network of yours, Sequential .* another folder"):
        save_evaluation(other, found, evaluation, tmp_path)
    beside = evaluate(other, found, n=1, baselines=["random"], baselines_only=True)
    with pytest.raises(ConfigError, match="another network of yours"):
        save_evaluation(other, found, beside, tmp_path)
    save_evaluation(other, found, evaluation, tmp_path / "other")
    (entry,) = json.loads((tmp_path / METRICS).read_text())["results"]
    assert entry["judge"] == "model"
    assert entry["judging"]["network"].startswith("Sequential ")
    judged_again = evaluate(own(nn.ReLU), found, n=1, baselines=())
    save_evaluation(own(nn.ReLU), found, judged_again, tmp_path)
