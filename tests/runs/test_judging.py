"""What a run asks for and its metrics lack."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdistill.abilities import PlainJudge, judge_title
from mmdistill.cli import main
from mmdistill.config import DistillConfig
from mmdistill.distill import distill
from mmdistill.evaluate import JudgingRequest
from mmdistill.image import ImageTask
from mmdistill.runs.judging import missing, wanted_scores
from mmdistill.task import Batch, Scores
from tests.graph.toy import planted_fields
from tests.toys import BlobTask


def entry(judge: str, **more: object) -> dict[str, object]:
    return {"judge": judge, "metric": "accuracy", "mean": 0.5, "sd": 0.0, "n": 1, **more}


def request(judges: list[str], baselines: list[str], only: bool = False) -> JudgingRequest:
    return JudgingRequest(judges, baselines, n=2, at_once=None, seed=0, baselines_only=only)


def chosen(**judging: int) -> BlobTask:
    """Return a task that keeps what its user set of judging."""
    task = BlobTask()
    task.judging_chosen = judging  # type: ignore[attr-defined]
    return task


def test_what_was_never_judged_is_missing() -> None:
    both = ["random", "whole"]
    assert missing(BlobTask(), request(["mlp"], both), {}) == [request(["mlp"], both)]
    metrics = {"results": [entry("mlp")], "baselines": {"random": [entry("mlp")]}}
    assert missing(BlobTask(), request(["mlp", "other"], both), metrics) == [
        request(["other"], both, False),
        request(["mlp"], ["whole"], True),
    ]
    assert missing(BlobTask(), request(["mlp"], ["random"]), metrics) == []


def test_a_number_that_was_made_otherwise_lacks_no_baselines() -> None:
    metrics = {"results": [entry("mlp", judging={"epochs": 20})], "baselines": {}}
    assert missing(chosen(epochs=2), request(["mlp"], ["random"]), metrics) == []
    assert missing(chosen(epochs=20), request(["mlp"], ["random"]), metrics) == [request(["mlp"], ["random"], True)]


def test_what_a_judge_does_not_read_makes_no_difference() -> None:
    task = chosen(epochs=20)
    task.describe_judge = lambda judge: PlainJudge(judge, reads=())  # type: ignore[attr-defined]
    metrics = {"results": [entry("mlp")], "baselines": {}}
    assert missing(task, request(["mlp"], ["random"]), metrics) == [request(["mlp"], ["random"], True)]


class Titled(PlainJudge):
    """A judge whose scores say more than its name."""

    @property
    def title(self) -> str:
        return f"{self.name} [frepo]"


def test_judges_are_found_by_the_titles_of_their_scores() -> None:
    task = BlobTask()
    task.describe_judge = Titled  # type: ignore[attr-defined]
    asked = ["mlp"], ["random"]
    assert missing(task, request(*asked), {"results": [entry("mlp")], "baselines": {}}) == [request(*asked, False)]
    assert missing(task, request(*asked), {"results": [entry("mlp [frepo]")], "baselines": {}}) == [
        request(*asked, True)
    ]


def test_scores_of_a_task_that_says_no_more_are_called_by_the_judges_name() -> None:
    task = BlobTask()
    assert judge_title(task, "mlp") == "mlp"
    task.describe_judge = Titled  # type: ignore[attr-defined]
    assert judge_title(task, "mlp") == "mlp [frepo]"


def test_a_run_is_judged_as_its_options_say() -> None:
    options = DistillConfig("blobs", "dm", ipc=1, seed=4, networks=3, networks_at_once=2, baselines="random")
    made = distill(BlobTask(), "dm", ipc=1, settings={"steps": 1})
    assert wanted_scores(options, BlobTask(), made) == JudgingRequest(["mlp"], ["random"], n=3, at_once=2, seed=4)


def test_robust_scores_are_no_judgement() -> None:
    metrics = {"results": [entry("mlp", metric="label-robust score")], "baselines": {}}
    assert missing(BlobTask(), request(["mlp"], ["random"]), metrics) == [request(["mlp"], ["random"], False)]


def test_what_a_judge_has_found_is_kept_when_the_next_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged: list[tuple[str, bool]] = []
    score = ImageTask.evaluate

    def stopped(self: ImageTask, synthetic: Batch | None, judge: str, *rest: Any) -> Scores:
        if stop_at == len(judged):
            raise KeyboardInterrupt
        judged.append((judge, synthetic is None))
        return score(self, synthetic, judge, *rest)

    monkeypatch.setattr(ImageTask, "evaluate", stopped)
    run = ["--data", "digits", "--model", "mlp", "--width", "4", "--method", "dm", "--ipc", "1", "--out", str(tmp_path)]
    options = ["--steps", "1", "--networks", "1", "--judge-epochs", "1", "--baselines", "whole"]
    stop_at = 1
    assert main(["distill", *run, *options, "--judges", "mlp,mlp-w8"]) == 130
    assert "mmdistill: stopped; continue with" in capsys.readouterr().err
    assert [one["judge"] for one in json.loads((tmp_path / "metrics.json").read_text())["results"]] == ["mlp"]
    stop_at = 3
    assert main(["distill", "--resume", str(tmp_path)]) == 130
    stop_at = -1
    assert main(["distill", "--resume", str(tmp_path)]) == 0
    assert judged == [("mlp", False), ("mlp-w8", False), ("mlp-w8", True), ("mlp", True)]


def test_the_bar_tells_the_epochs_of_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmdistill.bars.LOG_SECONDS", 0.0)
        options = ["--steps", "1", "--networks", "1", "--judge-epochs", "3", "--baselines", "none"]
        assert (
            main(["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--out", str(tmp_path), *options]) == 0
        )
    said = capsys.readouterr().err
    assert re.search(r"0/1 \[\d\d:\d\d, now=the distilled set by convnet, epoch 2/3, \d+ s left\]", said)


def test_the_bar_tells_the_epochs_of_judges_of_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(planted_fields(), tmp_path / "graph.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmdistill.bars.LOG_SECONDS", 0.0)
        options = ["--steps", "1", "--networks", "1", "--judge-epochs", "4", "--baselines", "none"]
        run = [
            "--data",
            str(tmp_path / "graph.pt"),
            "--method",
            "gcond-x",
            "--nodes",
            "3",
            "--out",
            str(tmp_path / "r"),
        ]
        assert main(["distill", *run, *options, "--judges", "gcn,gat"]) == 0
    said = capsys.readouterr().err
    assert "by gcn, epoch 3/4" in said
    assert "by gat, epoch 3/4" in said
