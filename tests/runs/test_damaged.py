"""A finished run whose set is damaged or has lost a file goes on from its newest whole checkpoint when resumed."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from mmdistill.cli import main
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, MmdistillError
from mmdistill.reporting.compare import compare
from mmdistill.runs.damaged import load_whole, whole_set
from tests.runs.blobs import Validated, method
from tests.test_taken_further import DERIVED, interrupted_at, judged
from tests.toys import BlobTask

SAMPLES, SET = "distilled.safetensors", "distilled.json"


def changed_byte(folder: Path) -> None:
    content = bytearray((folder / SAMPLES).read_bytes())
    content[-1] ^= 1
    (folder / SAMPLES).write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "samples cut off": lambda folder: (folder / SAMPLES).write_bytes((folder / SAMPLES).read_bytes()[:50]),
    "samples changed": changed_byte,
    "samples lost": lambda folder: (folder / SAMPLES).unlink(),
    "description cut off": lambda folder: (folder / SET).write_text((folder / SET).read_text()[:200]),
    "description empty": lambda folder: (folder / SET).write_bytes(b""),
    "description of nothing": lambda folder: (folder / SET).write_text("{}"),
    "both": lambda folder: [(folder / name).write_bytes(b"x") for name in (SAMPLES, SET)],
}


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps, with what commands make of it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    distill(BlobTask(), method("dm"), ipc=1, out=folder)
    judged(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_resuming_writes_a_damaged_set_again(
    damage: str, resume: bool, run: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](run)
    with pytest.raises(CheckpointError, match=r"its run makes it again; distill\(task, .*, resume=True\) in Python"):
        load_whole(run)
    with caplog.at_level(logging.WARNING):
        distill(BlobTask(), method("dm"), ipc=1, out=run, resume=resume)  # type: ignore[arg-type]
    assert ("its run goes on from the newest whole checkpoint" in caplog.text) == (resume == "auto")
    found, before = files(run), files(finished)
    assert found.pop(Path(SAMPLES)) == before.pop(Path(SAMPLES))
    said, expected = (json.loads(content.pop(Path(SET))) for content in (found, before))
    measured = ("seconds", "setup_seconds", "peak_memory_bytes")
    assert {**said, **dict.fromkeys(measured)} == {**expected, **dict.fromkeys(measured)}
    assert found == before  # metrics, report, exports and checkpoints


LOST: dict[str, Callable[[Path], object]] = {
    "last": lambda path: path.unlink(),
    "half of the last": lambda path: path.write_text(""),
}


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize("lost", LOST)
def test_without_the_last_checkpoint_the_one_before_makes_a_damaged_set(
    lost: str, resume: bool, run: Path, finished: Path
) -> None:
    LOST[lost](sorted((run / "checkpoints").iterdir())[-1])
    changed_byte(run)
    distill(BlobTask(), method("dm"), ipc=1, out=run, resume=resume)  # type: ignore[arg-type]
    assert (run / SAMPLES).read_bytes() == (finished / SAMPLES).read_bytes()
    assert not any((run / name).exists() for name in DERIVED)  # on a GPU the set would be another one


def test_a_damaged_set_without_a_whole_checkpoint_is_made_anew(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_text("")
    changed_byte(run)
    before = files(run)
    for load in (load_whole, lambda _: distill(BlobTask(), method("dm"), ipc=1, out=run, resume="auto")):
        with pytest.raises(
            CheckpointError, match=r"distilled\.json beside it; .*overwrite=True\) in Python makes it anew"
        ):
            load(run)
    assert files(run) == before


def test_an_imported_set_that_is_damaged_is_imported_again(run: Path) -> None:
    (run / "config.yaml").write_text("imported: true\n")
    changed_byte(run)
    for load in (load_whole, whole_set):
        with pytest.raises(CheckpointError, match=r"mmdistill import FILES .* --overwrite imports its set again"):
            load(run)


def test_what_is_whole_is_not_written_over(run: Path) -> None:
    said = json.loads((run / SET).read_text())
    (run / SET).write_text(json.dumps(said | {"version": 1}))
    before = files(run)
    resumed: list[bool | Literal["auto"]] = [True, "auto"]
    goes_on = [partial(distill, BlobTask(), method("dm"), ipc=1, out=run, resume=resume) for resume in resumed]
    for read in (partial(load_whole, run), partial(compare, run), *goes_on):
        with pytest.raises(
            MmdistillError, match=r"distilled\.json has version 1, this mmdistill reads 2; use another folder"
        ):
            read()
    assert files(run) == before
    changed_byte(run)
    (run / SET).write_text(json.dumps(said))
    before = files(run)
    with pytest.raises(CheckpointError, match="belongs to another run: its seed is 0, not 1"):
        distill(BlobTask(), method("dm"), ipc=1, seed=1, out=run, resume="auto")
    assert files(run) == before


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize("damage", ["samples changed", "description empty"])
def test_a_damaged_set_taken_further_leaves_nothing_that_was_made_of_it(damage: str, resume: bool, run: Path) -> None:
    DAMAGES[damage](run)
    further = {"ipc": 1, "out": run, "resume": resume}
    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method("dm", steps=20), progress=interrupted_at(16), **further)  # type: ignore[arg-type]
    assert all((run / name).exists() for name in DERIVED)
    distill(BlobTask(), method("dm", steps=20), **further)  # type: ignore[arg-type]
    assert DistilledSet.load(run).taken == 20
    assert not any((run / name).exists() for name in DERIVED)


def test_what_patience_ended_is_over(tmp_path: Path) -> None:
    full = method("dc", validate_every=2, patience=4, steps=20)
    distill(Validated(), full, ipc=2, out=tmp_path)
    before = (tmp_path / SAMPLES).read_bytes()
    changed_byte(tmp_path)
    distill(Validated(), full, ipc=2, out=tmp_path, resume="auto")
    assert (tmp_path / SAMPLES).read_bytes() == before


def test_commands_name_what_writes_a_set_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    common = ["--data", "digits", "--ipc", "1", "--networks", "1", "--judge-epochs", "1", "--baselines", ""]
    assert main(["distill", "--method", "dm", "--steps", "2", "--out", str(run), *common, "--width", "8"]) == 0
    before = files(run)
    (run / SET).write_text("{")
    again = f"its run makes it again; it goes on with: mmdistill distill --resume {run}"
    for command in ("report", "export", "evaluate", "compare"):
        assert main([command, str(run)]) == 2
        assert again in capsys.readouterr().err
    assert main(["distill", "--resume", str(run)]) == 0
    assert "its run goes on from the newest whole checkpoint" in caplog.text
    found = files(run)
    assert found[Path(SAMPLES)] == before[Path(SAMPLES)]
    assert found[Path("metrics.json")] == before[Path("metrics.json")]
    shutil.rmtree(run / "checkpoints")
    (run / SET).write_text("{")
    anew = f"mmdistill distill --config {run / 'config.yaml'} --out {run} --overwrite makes it anew"
    for command in (["distill", "--resume"], ["report"], ["evaluate"], ["compare"]):
        assert main([*command, str(run)]) == 2
        assert anew in capsys.readouterr().err
