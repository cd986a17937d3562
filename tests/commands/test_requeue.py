"""One command that a cluster calls again: it starts a run, continues it or judges it, wherever its data are by then."""

import csv
import importlib
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from mmdistill.cli import main
from mmdistill.config import DistillConfig
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.runs.state import RunState
from tests.commands.digits import FAST, distil

AUTO = ("--resume", "auto")


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    """Let runs be interrupted once they have taken some steps and take the next one."""
    step = Distiller.step

    def stopped(distiller: Distiller, run: RunState, gradients: object = None) -> tuple[RunState, Tensor]:
        if run.step == after:
            os.kill(os.getpid(), signal.SIGINT)
        return step(distiller, run, gradients)  # type: ignore[arg-type]

    monkeypatch.setattr(Distiller, "step", stopped)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_starts_a_run_goes_on_with_it_and_judges_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    with monkeypatch.context() as patched:
        interrupt(patched)
        assert distil(folder, *AUTO) == 130
    assert f"the run so far is in {folder}; the same command continues it" in capsys.readouterr().err
    assert distil(folder, *AUTO) == 0
    assert "distilled in" in capsys.readouterr().out
    first, second = (safetensors.torch.load_file(f / "distilled.safetensors") for f in (run, folder))
    assert torch.equal(first["inputs"], second["inputs"])
    (folder / "metrics.json").unlink()
    assert distil(folder, *AUTO) == 0
    assert "judging with 1 network ..." in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("mmdistill.runs.judging"), "evaluate", None)  # is not called again
        assert distil(folder, *AUTO, "--checkpoint-every", "2") == 0
    said = capsys.readouterr().out
    assert f"{folder} is already distilled" in said
    assert "distilled in" not in said
    assert re.search(r"^convnet +accuracy", said, re.MULTILINE)
    assert DistillConfig.load(folder / "config.yaml").checkpoint_every == 2


def test_options_without_a_checkpoint_give_way_to_those_of_the_command(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    assert distil(folder, *AUTO, "--seed", "3") == 0
    assert DistilledSet.load(folder).seed == DistillConfig.load(folder / "config.yaml").seed == 3


def test_options_that_a_person_corrected_are_still_the_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("method: dm", 'method: "dm"') + "# mine\n")
    assert distil(tmp_path, *AUTO) == 2
    said = capsys.readouterr().err
    assert "holds a config.yaml of yours" in said
    assert f"or, if it is a run's that you edited, continue it with --resume {tmp_path}\n" in said
    (tmp_path / "config.yaml").write_text(text.replace("method: dm", 'method:   "dm"'))
    assert distil(tmp_path, *AUTO) == 0


def test_a_folder_with_another_run_is_left_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    before = content(folder)
    for more in ((), ("--dry-run",)):
        assert distil(folder, *AUTO, "--lr", "3", *more) == 2
        assert f"{folder} holds another run, of lr by default in place of 3.0; " in capsys.readouterr().err
    assert distil(folder, *AUTO, "--networks", "3") == 2
    assert f"mmdistill evaluate {folder} --networks 3 judges its set so" in capsys.readouterr().err
    assert distil(folder, *AUTO, "--steps", "9") == 2
    said = capsys.readouterr().err
    assert "its settings.steps is 6, not 9; name its own steps (--steps 6), take the run further with" in said
    assert distil(folder, *AUTO, "--steps", "3") == 2
    assert "is 6, not 3; name its own steps (--steps 6), choose another folder" in capsys.readouterr().err
    assert content(folder) == before
    (folder / "config.yaml").unlink()  # as runs made in Python
    assert distil(folder, *AUTO, "--lr", "3") == 2
    assert "belongs to another run: its settings" in capsys.readouterr().err
    assert not (folder / "config.yaml").exists()
    assert distil(folder, *AUTO) == 0


def test_an_unfinished_run_goes_on_to_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt(patched)
        assert distil(tmp_path, *AUTO) == 130
    assert distil(tmp_path, *AUTO, "--steps", "8") == 0
    assert DistilledSet.load(tmp_path).steps == DistillConfig.load(tmp_path / "config.yaml").steps == 8


def test_what_goes_on_by_itself_replaces_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    assert distil(run, *AUTO, "--overwrite") == 2
    assert "--resume auto keeps what there is, which --overwrite replaces" in capsys.readouterr().err
    assert content(run) == before
    imported = tmp_path / "imported"
    imported.mkdir()
    (imported / "config.yaml").write_text("data: digits\nmethod: theirs\nimported: true\n")
    assert distil(imported, *AUTO) == 2
    assert "holds a set that was imported" in capsys.readouterr().err


def test_a_dry_run_of_one_that_goes_on_plans_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distil(run, *AUTO, "--dry-run") == 0
    assert re.search(rf"^run folder +{re.escape(str(run))}$", capsys.readouterr().out, re.MULTILINE)


def test_a_folder_of_that_name_is_told_apart(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "auto")
    assert main(["distill", *AUTO]) == 2
    said = capsys.readouterr()
    assert "note: the folder auto is given as --resume ./auto" in said.out
    assert "--data is needed" in said.err
    assert main(["distill", "--resume", "./auto"]) == 0
    assert "auto is already distilled" in capsys.readouterr().out


def save(file: Path, seed: int = 0) -> str:
    images = np.random.default_rng(seed).random((40, 1, 8, 8)).astype(np.float32)
    file.parent.mkdir(exist_ok=True)
    np.savez(file, images=images, labels=np.arange(40) % 2)
    return str(file)


OTHERS = "bring the data back as they were, or name their place by --data"
WAYS = pytest.mark.parametrize("way", ["auto", "folder"])


@WAYS
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_with_data_that_have_moved_and_refuses_others(
    way: str, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, first = tmp_path / "run", tmp_path / "job1"
    options = ["--baselines", "none", "--model", "mlp"]
    with monkeypatch.context() as patched:
        if not finished:
            interrupt(patched)
        assert distil(folder, "--data", save(first / "own.npz"), *options) == (0 if finished else 130)
    shutil.rmtree(first)

    def again(data: str) -> int:
        if way == "auto":
            return distil(folder, "--data", data, *options, *AUTO)
        return main(["distill", "--resume", str(folder), "--data", data])

    before = content(folder)
    with monkeypatch.context() as patched:
        patched.setattr(Distiller, "step", None)
        patched.setattr(Distiller, "start", None)
        patched.setattr(importlib.import_module("mmdistill.runs.judging"), "evaluate", None)
        capsys.readouterr()
        assert again(others := save(tmp_path / "job2" / "own.npz", seed=1)) == 2
        assert OTHERS in capsys.readouterr().err
        assert distil(folder, "--data", others, *options, *AUTO, "--dry-run") == 2
        assert OTHERS in capsys.readouterr().err
        if finished:
            (folder / "checkpoints").rename(tmp_path / "aside")
            for more in ((), ("--dry-run",)):
                assert distil(folder, "--data", others, *options, *AUTO, *more) == 2
                assert OTHERS in capsys.readouterr().err
            (tmp_path / "aside").rename(folder / "checkpoints")
    assert content(folder) == before
    assert again(data := save(tmp_path / "job3" / "own.npz")) == 0
    assert DistillConfig.load(folder / "config.yaml").data == data
    assert DistilledSet.load(folder).steps == 6
    assert main(["distill", "--resume", str(folder)]) == 0


@WAYS
def test_a_run_without_a_checkpoint_takes_its_data_from_elsewhere(way: str, tmp_path: Path) -> None:
    folder, data = tmp_path / "run", save(tmp_path / "job2" / "own.npz")
    options = {"model": "mlp", "width": 8, "networks": 1, "judge_epochs": 2, "real_batch": 8, "baselines": "none"}
    config = DistillConfig(data=str(tmp_path / "job1" / "own.npz"), method="dm", ipc=1, steps=6, **options)  # type: ignore[arg-type]
    folder.mkdir()
    config.save(folder / "config.yaml")
    given = ["--resume", str(folder), "--data", data]
    if way == "auto":
        given = ["--data", data, "--method", "dm", "--ipc", "1", "--model", "mlp", "--out", str(folder), *FAST, *AUTO]
    assert main(["distill", *given]) == 0
    assert DistillConfig.load(folder / "config.yaml").data == DistilledSet.load(folder).info.data == data


def test_an_interruption_says_where_the_data_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for after in (4, 2):
        interrupt(monkeypatch, after)
    assert distil(tmp_path / "run", "--data", save(tmp_path / "own.npz"), "--model", "mlp") == 130
    (tmp_path / "own.npz").rename(moved := tmp_path / "moved.npz")
    assert main(["distill", "--resume", str(tmp_path / "run"), "--data", str(moved)]) == 130
    assert f"continue with: mmdistill distill --resume {tmp_path / 'run'} --data {moved}" in capsys.readouterr().err


def test_a_sweep_goes_on_with_data_that_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, fast = tmp_path / "out", [*FAST, "--baselines", "none", "--model", "mlp"]

    def swept(data: str, seeds: str, *extra: str) -> int:
        given = ["--data", data, "--methods", "dm", "--ipc", "1", "--seeds", seeds]
        return main(["sweep", *given, "--out", str(out), *fast, *extra])

    def places() -> list[str | None]:
        return [DistillConfig.load(path).data for path in sorted(out.glob("*/config.yaml"))]

    first = save(tmp_path / "job1" / "own.npz")
    assert swept(first, "0") == 0
    unfinished = out / "own-dm-1-seed1"
    with monkeypatch.context() as patched:
        interrupt(patched)
        given = ["--data", first, "--method", "dm", "--ipc", "1", "--seed", "1", "--out", str(unfinished)]
        assert main(["distill", *given, *fast]) == 130
    shutil.rmtree(tmp_path / "job1")
    others = save(tmp_path / "job2" / "own.npz", seed=1)
    assert swept(others, "0,1") == 2
    assert f"{out}/own-dm-1 is finished, and this set was distilled from" in capsys.readouterr().err
    for more in ((), ("--dry-run",)):
        assert swept(others, "2,1", *more) == 2  # before that of the other seed begins
        said = capsys.readouterr().err
        assert re.search(r"own-dm-1-seed1/.* belongs to another run: its training data are others.* --out$", said)
    assert places() == [first, first]
    assert not (out / "own-dm-1-seed2").exists()
    second = save(tmp_path / "job3" / "own.npz")
    assert swept(second, "0,1,2", "--dry-run") == 0
    assert capsys.readouterr().out.split()[1::2] == ["finished", "unfinished", "new"]
    assert places() == [first, first]
    assert swept(second, "0,1,2") == 0
    assert "1 finished, 1 unfinished, 1 new" in capsys.readouterr().out
    assert places() == [second] * 3
    assert DistilledSet.load(unfinished).info.data == second
    (line,) = csv.DictReader((out / "comparison" / "comparison.csv").read_text().splitlines())
    assert (line["data"], line["runs"]) == (second, "3")
