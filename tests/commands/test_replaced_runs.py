"""Runs in folders that hold another one: nothing finished is lost, and nothing of two is mixed."""

import importlib
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mmdistill.cli import main
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.registry import get_domain
from mmdistill.runs.state import RunState
from mmdistill.store import write_text
from mmdistill.task import Batch, Task
from tests.commands.digits import distil


def test_a_run_that_replaces_another_leaves_nothing_of_it_but_what_is_the_users(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "replaced"
    shutil.copytree(run, folder)

    def draw(task: Task, batch: Batch, place: Path) -> list[Path]:
        write_text(place / "own.md", "as a domain of one's own names it")
        return [place / "own.md"]

    with monkeypatch.context() as patched:
        patched.setattr("mmdistill.runs.saving.get_domain", lambda name: replace(get_domain(name), draw=draw))
        assert main(["report", str(folder)]) == 0
    assert {path.name for path in (folder / "pictures").iterdir()} == {"images.png", "loss.png", "own.md", "drawn.json"}
    assert main(["export", str(folder), "--format", "folder"]) == 0
    notes = [folder / "notes.md", folder / "export" / "mine.txt", folder / "export" / "images" / "0" / "mine.txt"]
    notes += [folder / "pictures" / "holiday.png", folder / "pictures" / "mine.md"]
    for path in notes:
        path.write_text("mine")
    assert distil(folder, "--overwrite", "--baselines", "none") == 0
    assert all(path.read_text() == "mine" for path in notes)
    assert [path.name for path in (folder / "export").rglob("*") if path.is_file()] == ["mine.txt"] * 2
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        *("images.png", "drawn.json", "holiday.png", "mine.md")
    }
    assert not list(folder.glob("report.*"))


def test_a_run_that_cannot_begin_leaves_the_former_one_whole(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(run, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert distil(folder, "--overwrite", "true", "--ipc", "500") == 2
    assert distil(folder, "--overwrite", "true", "--networks", "0") == 2
    assert distil(folder, "--overwrite", "true", "--parameterization", "hallucinated") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "refused",
    [
        ["--ipc", "0"],
        ["--ipc", "-3"],
        ["--ipc", "500"],
        ["--label", "soft"],
        ["--parameterization", "gan-latents", "--label", "soft"],
        ["--parameterization", "latent", "--bytes", "100"],
    ],
)
def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path, refused: list[str]) -> None:
    count = [] if "--bytes" in refused else ["--ipc", "1"]
    options = ["distill", "--data", "digits", "--method", "dm", *count, *refused]
    assert main([*options, "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.md").write_text("mine")
    assert main([*options, "--out", str(mine)]) == 2
    assert [path.name for path in mine.iterdir()] == ["notes.md"]


def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", "/proc/none")  # where no expert can be written
    options = ["distill", "--data", "digits", "--method", "mtt", "--ipc", "1", "--experts", "1", "--steps", "1"]
    assert main([*options, "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("made_in_python", [False, True])
def test_a_refused_run_leaves_an_unfinished_one_whole(run: Path, tmp_path: Path, made_in_python: bool) -> None:
    folder = tmp_path / "cut short"
    shutil.copytree(run, folder)
    (folder / "distilled.json").unlink()
    if made_in_python:
        (folder / "config.yaml").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert distil(folder, "--overwrite", "--ipc", "500") == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_former_run_keeps_its_configuration_until_it_is_replaced(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next --resume would take the former run's set for that of the new one."""
    folder = tmp_path / "kept"
    shutil.copytree(run, folder)
    before = (folder / "config.yaml").read_bytes()
    for raised in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patched:
            patched.setattr(Distiller, "step", Mock(side_effect=raised))
            assert distil(folder, "--overwrite", "--lr", "3") != 0
        assert (folder / "config.yaml").read_bytes() == before
        assert (folder / "distilled.json").exists()
    with monkeypatch.context() as patched:  # after the step, when its first checkpoint is written
        patched.setattr(
            "mmdistill.runs.checkpoints.save_tree", Mock(side_effect=OSError(28, "No space left on device"))
        )
        assert distil(folder, "--overwrite", "--lr", "3") == 2
    assert (folder / "config.yaml").read_bytes() == before
    assert distil(folder, "--overwrite", "--lr", "3") == 0
    assert DistillConfig.load(folder / "config.yaml").lr == 3


def test_options_of_another_run_than_the_set_beside_them_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(run, folder)
    saved = DistillConfig.load(folder / "config.yaml")
    for changed, name in ((replace(saved, seed=7), "seed is 7"), (replace(saved, ipc=2), "ipc is 2")):
        changed.save(folder / "config.yaml")
        for command in (["distill", "--resume"], ["evaluate"], ["report"]):
            assert main([*command, str(folder)]) == 2
            assert f"is of another run than the set beside it: its {name}" in capsys.readouterr().err


def test_unfinished_work_is_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cut short"
    shutil.copytree(run, folder)
    (folder / "distilled.json").unlink()
    before = sorted((folder / "checkpoints").iterdir())
    assert distil(folder) == 2
    assert f"continue it with --resume '{folder}'" in capsys.readouterr().err
    for command in (["evaluate"], ["report"], ["export", "--format", "pt"]):
        assert main([*command, str(folder)]) == 2
        expected = f"the run in {folder} is unfinished; it goes on with: mmdistill distill --resume '{folder}'"
        assert expected in capsys.readouterr().err
    assert sorted((folder / "checkpoints").iterdir()) == before
    assert distil(folder, "--overwrite") == 0


def test_a_run_that_has_no_checkpoint_yet_begins_anew(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    for name in (".history.json.x.mmdistill-part", "pictures/.images.png.x.mmdistill-part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"what a killed process was writing")
    assert main(["distill", "--resume", str(folder)]) == 0
    assert not list(folder.rglob("*.mmdistill-part"))
    first, second = (safetensors.torch.load_file(f / "distilled.safetensors") for f in (run, folder))
    assert torch.equal(first["inputs"], second["inputs"])


def test_finished_work_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "distilled.safetensors").read_bytes()
    assert distil(run) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert (run / "distilled.safetensors").read_bytes() == before


def test_a_finished_run_resumes_with_what_is_missing_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    assert main(["evaluate", str(folder), "--judges", "mlp", "--networks", "2", "--baselines", "none"]) == 0
    whole = json.loads((folder / "metrics.json").read_text())
    lacking = {**whole, "baselines": {n: es for n, es in whole["baselines"].items() if n != "herding"}}
    (folder / "metrics.json").write_text(json.dumps(lacking))
    capsys.readouterr()
    assert main(["distill", "--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "already distilled" in said
    assert "judging with 1 network ..." in said
    assert re.search(r"^mlp +accuracy", said, re.MULTILINE)
    assert json.loads((folder / "metrics.json").read_text()) == whole
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("mmdistill.runs.judging"), "evaluate", None)  # is not called again
        assert main(["distill", "--resume", str(folder)]) == 0
    assert "judging" not in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text()) == whole


def test_options_beside_resume_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["distill", "--resume", str(run), "--steps", "500", "--lr", "5", "--judge-epochs=3"]) == 2
    assert "a run resumes with its own options; omit --lr, --judge-epochs, or begin another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_may_resume_with_other_bounds_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(distiller: Distiller, run: RunState, gradients: object = None) -> tuple[RunState, Tensor]:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(distiller, run, gradients)  # type: ignore[arg-type]

    step = Distiller.step
    what = ["--data", "digits", "--method", "dc", "--ipc", "1", "--steps", "4", "--width", "4", "--judge-epochs", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(Distiller, "step", stopped)
        assert main(["distill", *what, "--networks", "1", "--out", str(tmp_path)]) == 130
    assert main(["distill", "--resume", str(tmp_path), "--classes-at-once", "1"]) == 0
    assert DistilledSet.load(tmp_path).settings["classes_at_once"] == 1
    assert DistillConfig.load(tmp_path / "config.yaml").classes_at_once == 1
