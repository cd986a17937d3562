"""What judging gave is kept in a run's folder, for runs made in Python."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdistill import DistilledSet, distill, evaluate, image_task, save_evaluation
from mmdistill.errors import CheckpointError, ConfigError, UnsupportedError
from mmdistill.image.protocols import PROTOCOLS
from mmdistill.registry import DOMAIN_PACKAGES
from mmdistill.reporting.comparison import judged_runs, read_runs
from mmdistill.runs.folder import METRICS
from mmdistill.runs.saving import draw
from mmdistill.task import TaskInfo
from tests.toys import BlobTask, held


def made(folder: Path | None = None, seed: int = 0) -> DistilledSet:
    return distill(BlobTask(), "dm", ipc=1, settings={"steps": 1, "real_batch": 4}, seed=seed, out=folder)


def test_results_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    task, found = BlobTask(), made(tmp_path)
    pages = save_evaluation(task, found, evaluate(task, found, n=2, baselines=["random"]), tmp_path)
    assert [page.name for page in pages] == ["report.md", "report.html"]
    save_evaluation(task, found, evaluate(task, found, n=1, baselines=["whole"], baselines_only=True), str(tmp_path))
    metrics = json.loads((tmp_path / METRICS).read_text())
    assert [entry["n"] for entry in metrics["results"]] == [2]
    assert list(metrics["baselines"]) == ["random", "whole"]


def test_a_set_without_a_folder_gets_one_and_is_compared(tmp_path: Path) -> None:
    task, found = BlobTask(), made()
    evaluation = evaluate(task, found, n=1, baselines=())
    save_evaluation(task, found, evaluation, tmp_path / "new", judging={"epochs": 5})
    assert torch.equal(DistilledSet.load(tmp_path / "new").batch.weight, found.batch.weight)
    (row,) = read_runs(judged_runs([tmp_path / "new"])[0])
    assert row.judge.endswith("(epochs 5)")


def test_judges_that_train_otherwise_do_not_stand_side_by_side(tmp_path: Path) -> None:
    def judged(baselines: list[str], **chosen: object) -> dict[str, list[dict[str, object]]]:
        task = image_task("digits", model="mlp", width=8, **chosen)  # type: ignore[arg-type]
        found = DistilledSet.load(tmp_path) if baselines else distill(task, "dm", ipc=1, settings={"steps": 1})
        save_evaluation(task, found, evaluate(task, found, n=1, baselines=baselines or ["random"]), tmp_path)
        metrics = json.loads((tmp_path / METRICS).read_text())
        return {"results": metrics["results"], **metrics["baselines"]}

    short = judged([], judge_epochs=np.int64(2), judge_precision="float32")
    assert {name: entry["judging"] for name, (entry,) in short.items()} == {
        "results": {"epochs": 2},
        "random": {"epochs": 2},
    }
    longer = judged(["herding"], judge_epochs=3, judge_batch=4)
    assert {name: entry["judging"] for name, (entry,) in longer.items()} == {
        "results": {"epochs": 3, "batch": 4},
        "herding": {"epochs": 3, "batch": 4},
    }


def test_protocols_of_ones_own_are_told_apart(tmp_path: Path) -> None:
    usual = PROTOCOLS["dsa"]
    for rate in (0.01, 0.5):  # one of which is the usual one
        own = replace(usual, fit=replace(usual.fit, epochs=2, lr=rate))
        task = image_task("digits", model="mlp", width=8, protocol=own)
        found = distill(task, "dm", ipc=1, settings={"steps": 1})
        save_evaluation(task, found, evaluate(task, found, n=1, baselines=()), tmp_path / str(rate))
    rows = read_runs(judged_runs([tmp_path])[0])
    assert [row.judge for row in rows] == [
        "mlp [dsa] (protocol fit epochs 2)",
        "mlp [dsa] (protocol fit epochs 2, fit lr 0.5)",
    ]
    assert "fit lr 0.5" in (tmp_path / "0.5" / "report.md").read_text()


def test_a_task_of_ones_own_says_or_is_given_what_was_set_of_judging(tmp_path: Path) -> None:
    task, found = BlobTask(), made()
    evaluation = evaluate(task, found, n=1, baselines=())

    def kept() -> object:
        return json.loads((tmp_path / METRICS).read_text())["results"][0].get("judging")

    save_evaluation(task, found, evaluation, tmp_path)
    assert kept() is None
    task.judging_chosen = {"epochs": 5}  # type: ignore[attr-defined]
    save_evaluation(task, found, evaluation, tmp_path)
    assert kept() == {"epochs": 5}
    save_evaluation(task, found, evaluation, tmp_path, judging={"batch": 8, "precision": "float32"})
    assert kept() == {"epochs": 5, "batch": 8}
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(ConfigError, match="protocol is a str, got 3"):
        save_evaluation(task, found, evaluation, tmp_path, judging={"protocol": 3})
    with pytest.raises(ConfigError, match="unknown setting of judging 'epoch'; did you mean 'epochs'"):
        save_evaluation(task, found, evaluation, tmp_path, judging={"epoch": 5})
    with pytest.raises(ConfigError, match="epochs is a whole number of at least 1, got '5'"):
        save_evaluation(task, found, evaluation, tmp_path, judging={"epochs": "5"})
    with pytest.raises(ConfigError, match="precision"):
        save_evaluation(task, found, evaluation, tmp_path, judging={"precision": "float8"})
    with pytest.raises(ConfigError, match="judging is a Mapping, got"):
        save_evaluation(task, found, evaluation, tmp_path, judging=("epochs", 5))  # type: ignore[arg-type]
    assert (tmp_path / METRICS).read_bytes() == before


@pytest.mark.parametrize("domain", DOMAIN_PACKAGES)
def test_results_of_a_task_that_its_domain_cannot_draw_are_kept(domain: str, tmp_path: Path) -> None:
    class Own(BlobTask):
        def describe(self) -> TaskInfo:
            return replace(super().describe(), domain=domain)

    task = Own()
    found = held(task, task.select(torch.arange(3)))
    with pytest.raises(UnsupportedError):
        draw(task, found, tmp_path)
    save_evaluation(task, found, evaluate(task, found, n=1, baselines=()), tmp_path)
    assert len(json.loads((tmp_path / METRICS).read_text())["results"]) == 1


def test_what_is_left_of_a_set_that_is_gone_is_not_taken_over(tmp_path: Path) -> None:
    task, one, other = BlobTask(), made(), made(seed=1)
    save_evaluation(task, one, evaluate(task, one, n=1, baselines=["random"]), tmp_path)
    (tmp_path / "distilled.json").unlink()
    save_evaluation(task, other, evaluate(task, other, n=1, baselines=()), tmp_path)
    assert json.loads((tmp_path / METRICS).read_text())["baselines"] == {}


def test_results_on_other_test_data_are_replaced(tmp_path: Path) -> None:
    class Tested(BlobTask):
        def describe(self) -> TaskInfo:
            return replace(super().describe(), test_fingerprint=fingerprint)

    found = made()
    for fingerprint, baseline, kept in (("a", "random", []), ("a", "whole", ["random"]), ("b", "herding", [])):
        save_evaluation(Tested(), found, evaluate(Tested(), found, n=1, baselines=[baseline]), tmp_path)
        metrics = json.loads((tmp_path / METRICS).read_text())
        assert metrics["tested_on"] == fingerprint
        assert list(metrics["baselines"]) == [*kept, baseline]


def test_another_sets_folder_and_what_is_no_result_are_refused(tmp_path: Path) -> None:
    task, found, other = BlobTask(), made(tmp_path / "one"), made(seed=1)
    evaluation = evaluate(task, other, n=1, baselines=())
    with pytest.raises(CheckpointError, match="holds another set than was judged"):
        save_evaluation(task, other, evaluation, tmp_path / "one")
    (tmp_path / "one" / "distilled.json").unlink()
    with pytest.raises(CheckpointError, match="is unfinished"):
        save_evaluation(task, found, evaluation, tmp_path / "one")
    with pytest.raises(ConfigError, match="got dict"):
        save_evaluation(task, found, {}, tmp_path / "two")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        save_evaluation(task, found, evaluation, tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "file"}
