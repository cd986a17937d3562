"""Finished runs are judged again, and their reports are written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill import judgements
from mmdistill.cli import main
from mmdistill.commands import finished, making
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.errors import DataError
from mmdistill.image import load
from mmdistill.task import Task
from tests.commands.digits import distil


def test_judging_again_adds_to_the_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--models", "MLP", "--networks", "2", "--baselines", "none"]) == 0
    assert "mlp" in capsys.readouterr().out
    judges = [entry["judge"] for entry in json.loads((run / "metrics.json").read_text())["results"]]
    assert judges == ["convnet", "mlp"]


def test_runs_are_judged_by_their_own_seeds(run: Path, tmp_path: Path) -> None:
    for seed in (0, 5):
        folder = tmp_path / str(seed)
        shutil.copytree(run, folder)
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("seed: 0\n", f"seed: {seed}\n"))
        (folder / "distilled.json").write_text(
            json.dumps({**json.loads((folder / "distilled.json").read_text()), "seed": seed})
        )
    assert main(["evaluate", str(tmp_path), "--judges", "mlp", "--networks", "1", "--baselines", "random"]) == 0
    first, second = (json.loads((tmp_path / str(seed) / "metrics.json").read_text()) for seed in (0, 5))
    assert first["results"][-1]["judge"] == second["results"][-1]["judge"] == "mlp"
    assert first["results"][-1]["mean"] != second["results"][-1]["mean"]
    assert first["baselines"]["random"][-1]["mean"] != second["baselines"]["random"][-1]["mean"]


def test_several_runs_are_judged_and_drawn_though_one_cannot_be(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "a" / "config.yaml").write_text("nothing: here\n")
    before = (tmp_path / "runs" / "a" / "metrics.json").read_text()
    judge = ["--judges", "mlp", "--networks", "1", "--baselines", "none"]
    assert main(["evaluate", str(tmp_path / "runs"), str(run), str(tmp_path / "runs" / "b"), *judge]) == 2
    told = capsys.readouterr()
    places = [told.out.index(f"{folder}:") for folder in (tmp_path / "runs" / "a", tmp_path / "runs" / "b", run)]
    assert places == sorted(places)
    assert told.out.count("mlp") == 2
    assert "failed: " in told.out[places[0] : places[1]]
    assert f"1 of 3 runs failed: {tmp_path / 'runs' / 'a'} (see above)" in told.err
    assert "mlp" in (tmp_path / "runs" / "b" / "metrics.json").read_text()
    assert (tmp_path / "runs" / "a" / "metrics.json").read_text() == before
    assert main(["report", str(run), str(tmp_path / "runs" / "b")]) == 0
    assert capsys.readouterr().out.count("report.html") == 2


def test_what_nobody_foresaw_of_one_runs_files_keeps_no_other_from_its_turn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "report.md").unlink(missing_ok=True)
    found = DistilledSet.load(run)
    assert isinstance(found.batch.inputs, Tensor)
    wide = replace(found, batch=found.batch._replace(inputs=found.batch.inputs.flatten(1)))
    wide.save(tmp_path / "a")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "failed: " in said.out
    assert "1 of 2 runs failed" in said.err
    assert (tmp_path / "b" / "report.md").is_file()


def test_baselines_that_were_judged_otherwise_are_dropped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    judge = ["evaluate", str(folder), "--judges", "convnet", "--networks", "1", "--baselines"]
    assert main([*judge, "none"]) == 0
    assert "dropped" not in capsys.readouterr().out
    assert main([*judge, "random", "--judge-epochs", "3"]) == 0
    dropped = "dropped, since judged otherwise than the set now is: herding by convnet, whole by convnet\n"
    assert dropped in capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    entries = [e for es in (metrics["results"], *metrics["baselines"].values()) for e in es if e["judge"] == "convnet"]
    assert [entry["judging"] for entry in entries] == [{"epochs": 3}] * 2
    assert main(["report", str(folder)]) == 0
    assert "| convnet (epochs 3) | accuracy |" in (folder / "report.md").read_text()


def test_nothing_stays_that_was_judged_on_other_test_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    before = json.loads((folder / "metrics.json").read_text())
    data = load("digits")
    relabelled = replace(data, test_labels=data.test_labels.roll(1))
    assert relabelled.fingerprint == data.fingerprint
    monkeypatch.setattr("mmdistill.image.task.load", lambda *given, **options: relabelled)
    assert main(["evaluate", str(folder), "--judges", "mlp", "--networks", "1", "--baselines", "none"]) == 0
    printed = capsys.readouterr().out
    assert "note: the test data are others than before, so earlier results are dropped\n" in printed
    assert "dropped, since judged otherwise" not in printed
    after = json.loads((folder / "metrics.json").read_text())
    assert [entry["judge"] for entry in after["results"]] == ["mlp"]
    assert after["baselines"] == {}
    assert before["tested_on"] != after["tested_on"] == relabelled.test_fingerprint
    assert main(["distill", "--resume", str(folder)]) == 0
    resumed = json.loads((folder / "metrics.json").read_text())
    assert {entry["judge"] for entry in resumed["results"]} == {"mlp", "convnet"}
    assert set(resumed["baselines"]) == set(before["baselines"])
    monkeypatch.setattr("mmdistill.image.task.load", lambda *given, **options: data)
    assert main(["distill", "--resume", str(folder)]) == 0
    again = json.loads((folder / "metrics.json").read_text())
    assert again["tested_on"] == before["tested_on"]
    assert [entry["judge"] for entry in again["results"]] == ["convnet"]


def test_data_that_have_moved_are_named_and_others_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(name: str, seed: int) -> str:
        images = np.random.default_rng(seed).random((40, 1, 8, 8)).astype(np.float32)
        np.savez(tmp_path / name, images=images, labels=np.arange(40) % 2)
        return str(tmp_path / name)

    monkeypatch.chdir(tmp_path)
    run, data = tmp_path / "run", save("own.npz", 0)
    assert distil(run, "--data", data, "--baselines", "none", "--model", "mlp") == 0
    Path(data).rename(tmp_path / "moved.npz")
    judged = ["evaluate", str(run), "--judges", "mlp-w16", "--networks", "1", "--baselines", "none"]
    before = (run / "metrics.json").read_text()
    for command in (judged, ["report", str(run)]):
        capsys.readouterr()
        assert main(command) == 2
        assert "evaluate, report and export take their place by --data" in capsys.readouterr().err
        assert main([*command, "--data", save("others.npz", 1)]) == 2
        assert "was distilled from" in capsys.readouterr().err
        assert (run / "metrics.json").read_text() == before
    for command in (judged, ["report", str(run)]):
        assert main([*command, "--data", "moved.npz"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert [entry["judge"] for entry in metrics["results"]] == ["mlp", "mlp-w16"]
    assert metrics["data"] == json.loads(before)["data"]
    assert main(["export", str(run), "--data", "moved.npz", "--to", str(tmp_path / "tensors")]) == 0
    assert "note: this export reads no real data: --data changes nothing\n" in capsys.readouterr().out
    assert f"data: {data}\n" in (run / "config.yaml").read_text()


def test_a_judge_in_closed_form_has_no_epochs(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "metrics.json").unlink()  # what is judged again would keep its place
    judge = ["evaluate", str(folder), "--networks", "1", "--baselines", "random", "--judges"]
    assert main([*judge, "ntk,mlp", "--judge-epochs", "3", "--judge-batch", "5"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    entries = [*metrics["results"], *metrics["baselines"]["random"]]
    judging = [(entry["judge"], entry.get("judging")) for entry in entries if entry["judge"] in ("ntk", "mlp")]
    assert judging == 2 * [("ntk", None), ("mlp", {"epochs": 3, "batch": 5})]
    assert main(["report", str(folder)]) == 0
    assert "| ntk | accuracy |" in (folder / "report.md").read_text()


def test_judging_again_goes_as_the_run_says(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    judge = ["evaluate", str(folder), "--networks", "1", "--baselines", "none", "--judges", "convnet"]

    def judging() -> list[object]:
        found = json.loads((folder / "metrics.json").read_text())["results"]
        return [(e["judge"], e.get("judging")) for e in found if e["judge"].startswith("convnet")]

    assert main([*judge, "--judge-batch", "5"]) == 0
    assert judging() == [("convnet", {"epochs": 2, "batch": 5})]
    assert main([*judge, "--protocol", "dm", "--judge-epochs", "1"]) == 0
    assert judging()[1:] == [("convnet [dm]", {"epochs": 1})]
    assert main([*judge, "--judge-precision", "bf16"]) == 0
    assert judging()[0] == ("convnet", {"epochs": 2, "precision": "bf16"})
    assert main([*judge, "--judge-precision", "float32"]) == 0
    assert judging()[0] == ("convnet", {"epochs": 2})


def test_the_report_is_one_page(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "random" in (run / "report.md").read_text()


def test_scores_are_printed_before_pictures_are_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)

    def undrawn(task: Task, distilled: DistilledSet, folder: Path) -> list[Path]:
        raise DataError("no pictures of these")

    monkeypatch.setattr(making, "draw", undrawn)
    assert main(["distill", "--resume", str(folder)]) == 2
    told = capsys.readouterr()
    assert "no pictures of these" in told.err
    assert "convnet" in told.out


@pytest.mark.parametrize("wrong", [["--judges", "convnett"], ["--baselines", "randon"]])
def test_misspelt_judges_and_baselines_are_refused_before_distilling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert distil(tmp_path / "run", *wrong) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_finished_judgements_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judgements, "coreset", interrupted)  # after the set's own judgement
        assert distil(tmp_path / "run") == 130
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [entry["judge"] for entry in kept["results"]] == ["convnet"]
    assert not kept["baselines"]
    assert main(["distill", "--resume", str(tmp_path / "run")]) == 0
    assert "already distilled" in capsys.readouterr().out
    judged = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert judged["results"] == kept["results"]
    assert {"random", "herding", "whole"} == set(judged["baselines"])


def test_deterministic_kernels_are_those_of_one_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else runs that are judged after one with --deterministic are judged as it is."""
    for name, deterministic in (("a", True), ("b", False)):
        shutil.copytree(run, tmp_path / name)
        options = DistillConfig.load(tmp_path / name / "config.yaml")
        replace(options, deterministic=deterministic).save(tmp_path / name / "config.yaml")
    seen: list[bool] = []

    def judged(*args: object, **chosen: object) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise DataError("seen")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(finished, "judge_and_keep", judged)
    assert main(["evaluate", str(tmp_path), "--baselines", "none"]) == 2
    assert distil(tmp_path / "c", "--deterministic", "true", "--baselines", "none", "--dry-run") == 0
    assert (seen, torch.are_deterministic_algorithms_enabled()) == ([True, False], False)
