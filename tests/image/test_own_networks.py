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
from mmdistill.image.models import model_factory
from mmdistill.metrics import judging_record
from mmdistill.runs.folder import CHECKPOINTS, METRICS
from mmdistill.runtime import Draws

SHORT = {"steps": 1, "real_batch": 4}


def perceptron(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), activation(), nn.Linear(4, 10))


def own(activation: Callable[[], nn.Module]) -> ImageTask:
    return image_task("digits", model=perceptron(activation), judge_epochs=1)


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


def test_own_networks_judge_beside_each_other_and_beside_named_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = image_task("digits", model="mlp", width=4, judge_epochs=1)
    found = distill(task, "dm", ipc=1, settings=SHORT, out=tmp_path)
    judges = {"ResNet18-tv": perceptron(nn.ReLU), "mlp": None, "ntk-mine": perceptron(nn.Tanh)}
    scores = evaluate(task, found, judges=judges, n=1, baselines=["random"])
    assert [entry.judge for entry in scores.results] == list(judges)
    assert [entry.judge for entry in scores.baselines["random"]] == list(judges)
    save_evaluation(task, found, scores, tmp_path)
    kept = json.loads((tmp_path / METRICS).read_text())
    records = [entry["judging"] for entry in (*kept["results"], *kept["baselines"]["random"])]
    assert [record["epochs"] for record in records] == [1] * 6
    identities = [record.get("network") for record in records]
    assert identities[:3] == identities[3:]
    assert identities[1] is None
    assert len({*identities}) == 3
    assert all(str(identity).startswith("Sequential ") for identity in (identities[0], identities[2]))
    assert main(["compare", str(tmp_path), "--judges", "all"]) == 0
    assert "ResNet18-tv" in capsys.readouterr().out
    assert "ResNet18-tv" in (tmp_path / "report.md").read_text()


def test_another_network_under_a_judges_name_is_refused_in_its_folder(tmp_path: Path) -> None:
    task = image_task("digits", model="mlp", width=4, judge_epochs=1)
    found = distill(task, "dm", ipc=1, settings=SHORT, out=tmp_path)

    def save(activation: Callable[[], nn.Module]) -> None:
        judges = {"mine": perceptron(activation)}
        save_evaluation(task, found, evaluate(task, found, judges=judges, n=1, baselines=["random"]), tmp_path)

    save(nn.ReLU)
    before = json.loads((tmp_path / METRICS).read_text())["results"]
    with pytest.raises(ConfigError, match=r"another network of yours, Sequential .*, than the judge 'mine' is now"):
        save(nn.Tanh)
    save(nn.ReLU)
    assert json.loads((tmp_path / METRICS).read_text())["results"] == before


def test_a_given_judge_trains_like_the_named_one_of_its_kind() -> None:
    task = image_task("digits", model="convnet-w4", judge_epochs=2, protocol="dc")
    beside = task.with_judge("mine", model_factory("mlp", task.data.shape, 10))
    batch = task.select(Draws(0).permutation(1000)[:20])
    named, given = (beside.evaluate(batch, judge, Draws(0), 1, {}) for judge in ("mlp", "mine"))
    assert (given.values, given.judge) == (named.values, "mine [dc]")
    assert judging_record(beside, "mine [dc]") == judging_record(beside, "mine")
    assert str(judging_record(beside, "mine")["network"]).startswith("MLP ")
    assert beside.describe_judge("mine").epochs(20) == 2
    assert "mine" not in task.judges
    with pytest.raises(ConfigError, match="unknown judge 'mine'"):
        task.evaluate(batch, "mine", Draws(0), 1, {})


def test_networks_that_cannot_judge_are_refused_by_name() -> None:
    task = image_task("digits", model="mlp", width=4, judge_epochs=1)
    batch = task.select(Draws(0).permutation(100))
    fits = perceptron(nn.ReLU)
    for judges, said in (
        ({"model": fits}, "'model' is the name of another judge"),
        ({"MLP": fits}, "'MLP' is the name of another judge"),
        ({"vgg11-bn": fits}, "'vgg11-bn' is the name of another judge"),  # which digits are too small for
        ({"all": fits}, "'all' is the name of another judge"),
        ({"ntk-d2": fits}, "'ntk-d2' is the name of another judge"),
        ({"one": fits, "One": fits}, "'One' is the name of another judge"),
        ({" ": fits}, "a judge's name is a text of some letters without commas and brackets, .*; got ' '"),
        ({"None": fits}, "a judge's name is a text of some letters .* other than 'none'; got 'None'"),
        ({"a [b]": fits}, "a judge's name is a text"),
        (
            {"mine": fits()},
            r"the judge 'mine': give a function that makes a fresh network .*lambda: Sequential\(\.\.\.\)",
        ),
        ({"mine": "mlp"}, "the judge 'mine' is a function that makes a network, or None if known, got str"),
        ({"mine": lambda: nn.Linear(3, 3)}, "the judge 'mine': the network cannot run on images"),
        ({"mine": perceptron(nn.ReLU), "none": None}, "'none' is no judge"),
        ([fits()], r"judges are names, got \[a Sequential\]; those of your own have them in a mapping"),
        (fits, "judges are names, got a function; those of your own"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            evaluate(task, batch, judges=judges, n=1)  # type: ignore[arg-type]
        assert "in_features" not in str(caught.value)
