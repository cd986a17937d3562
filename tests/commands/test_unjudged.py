"""Sets are distilled now and judged later (``--judges none``)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdistill import image_task
from mmdistill.cli import main
from mmdistill.runtime import Draws
from tests.commands.digits import FAST, distil

DIGITS = ["--data", "digits", "--method", "dm", "--ipc", "1", *FAST]


def judges(folder: Path) -> list[str]:
    return [entry["judge"] for entry in json.loads((folder / "metrics.json").read_text())["results"]]


def how(folder: Path) -> str:
    return f"not judged; that does: mmdistill evaluate {folder}\n"


def test_a_run_without_judges_ends_with_its_set_and_says_how_to_judge_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert distil(run, "--judges", "none") == 0
    said = capsys.readouterr().out
    assert how(run) in said
    assert "judging with" not in said
    assert f"\nset and 1 picture(s) are in {run}; " in said
    assert not (run / "metrics.json").exists()
    assert json.loads((run / "distilled.json").read_text())["seconds"] > 0
    assert main(["distill", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{run} is already distilled\n" in said
    assert how(run) in said
    assert main(["distill", *DIGITS, "--out", str(run), "--judges", "none", "--resume", "auto"]) == 0
    assert how(run) in capsys.readouterr().out
    assert main(["export", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    for page in ("report.md", "report.html"):
        report = (run / page).read_text()
        assert f"not judged yet: mmdistill evaluate {run}" in report
        assert not [words for words in ("Percent", "| judge", "<th>judge") if words in report]
    assert main(["compare", str(run)]) == 2
    assert f"not judged; that does: mmdistill evaluate {run}" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--networks", "1", "--baselines", "random"]) == 0
    assert judges(run) == ["convnet"]
    assert main(["report", str(run)]) == 0
    for page, header in (("report.md", "| judge |"), ("report.html", "<th>judge</th>")):
        report = (run / page).read_text()
        assert "Percent, on untouched test data." in report
        assert header in report
        assert "not judged yet" not in report
    capsys.readouterr()
    assert main(["distill", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "not judged" not in said
    assert f"\nset, metrics and 1 picture(s) are in {run}; " in said


def test_it_is_judged_later_by_its_methods_own_judge(tmp_path: Path) -> None:
    kip = ["--data", "digits", "--method", "kip", "--ipc", "1", "--steps", "1", "--real-batch", "8"]
    assert main(["distill", *kip, "--out", str(tmp_path), "--judges", "none"]) == 0
    assert main(["evaluate", str(tmp_path), "--baselines", "none"]) == 0
    assert judges(tmp_path) == ["ntk"]


@pytest.mark.parametrize("command", ["distill", "evaluate", "sweep"])
def test_none_stands_alone_and_where_a_set_is_made(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = {
        "distill": [*DIGITS, "--out", str(tmp_path / "new"), "--judges", "none,convnet"],
        "evaluate": [str(run), "--judges", "none"],
        "sweep": ["--data", "digits", "--methods", "dm", "--ipc", "1", "--out", str(tmp_path), "--judges", "mlp,none"],
    }
    assert main([command, *arguments[command]]) == 2
    assert "'none' is no judge: alone, where a set is made, it leaves judging for later" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_planned_without_judges_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert distil(run, "--judges", "None", "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"none; later mmdistill evaluate {run}\n" in said
    assert "nothing is judged here: --networks and --baselines are for the later mmdistill evaluate" in said
    assert "\nbaselines " not in said
    order = ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", "--judges", "none", "--dry-run"]
    assert main([*order, "--out", str(run)]) == 0
    assert "nothing is judged here" not in capsys.readouterr().out


def test_a_teacher_that_only_judges_ask_is_not_called_idle_before_they_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = image_task("digits", model="convnet", width=8)
    params, buffers = task.init(Draws(0))
    save_file({**params, **buffers}, tmp_path / "teacher.safetensors")
    teacher = ["--teacher", str(tmp_path / "teacher.safetensors")]
    assert distil(tmp_path / "a", "--dry-run", *teacher) == 0
    assert "--teacher changes nothing" in capsys.readouterr().out
    assert distil(tmp_path / "a", "--dry-run", *teacher, "--judges", "none") == 0
    assert "--teacher changes nothing" not in capsys.readouterr().out


def test_options_of_judging_of_a_run_without_judges_are_those_of_evaluate(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unjudged = tmp_path / "run"
    assert distil(unjudged, "--judges", "none") == 0
    assert distil(unjudged, "--resume", "auto") == 2
    assert f"; mmdistill evaluate {unjudged} judges its set so; " in capsys.readouterr().err
    assert distil(run, "--judges", "none", "--resume", "auto") == 2
    assert "judges its set so" not in capsys.readouterr().err


def test_options_that_only_judging_reads_make_no_other_run_of_one_without_judges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert distil(run, "--judges", "none") == 0
    again = ("--judges", "none", "--resume", "auto")
    for options in (["--networks", "3"], ["--baselines", "none"], ["--networks-at-once", "2"]):
        assert distil(run, *again, *options) == 0
    assert how(run) in capsys.readouterr().out
    assert distil(run, *again, "--judge-epochs", "3") == 2  # validation trains its networks likewise
    assert "of judge-epochs 2 in place of 3;" in capsys.readouterr().err
    assert distil(run, "--networks", "3", "--resume", "auto") == 2
    assert "judges none in place of by default" in capsys.readouterr().err


def test_a_sweep_without_judges_is_finished_once_its_sets_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["sweep", "--data", "digits", "--methods", "dm", "--ipc", "1", "--out", str(tmp_path), *FAST]
    assert main([*sweep, "--judges", "None,"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1: dm ipc 1 seed 0 ... distilled, not judged, in " in said
    assert said.endswith(how(tmp_path))
    assert main([*sweep, "--judges", "none"]) == 0
    said = capsys.readouterr().out
    assert said == f"runs in {tmp_path}: 1 finished\n{how(tmp_path)}"
    assert main(["evaluate", str(tmp_path), "--networks", "1", "--baselines", "none"]) == 0
    capsys.readouterr()
    assert main([*sweep, "--judges", "none"]) == 0
    said = capsys.readouterr().out
    assert "not judged" not in said
    assert (tmp_path / "comparison" / "comparison.csv").is_file()


def test_a_set_is_imported_now_and_judged_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"images": torch.rand(10, 1, 8, 8), "labels": torch.arange(10)}, tmp_path / "set.pt")
    run = tmp_path / "run"
    order = ["import", str(tmp_path / "set.pt"), "--data", "digits", "--name", "theirs", "--width", "8"]
    assert main([*order, "--units", "pixels", "--out", str(run), "--judges", "none"]) == 0
    assert how(run) in capsys.readouterr().out
    assert main(["evaluate", str(run), "--networks", "1", "--judge-epochs", "1", "--baselines", "none"]) == 0
    assert judges(run) == ["convnet"]
