"""A finished run whose set is damaged or has lost a file is made whole by resuming, and by nothing else."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdistill.cli import main
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError
from mmdistill.runs.mending import load_whole
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
    with pytest.raises(CheckpointError, match=r"distill\(task, .*, resume=True\) in Python writes it again"):
        load_whole(run)
    with caplog.at_level(logging.WARNING):
        distill(BlobTask(), method("dm"), ipc=1, out=run, resume=resume)  # type: ignore[arg-type]
    assert ("the set is written again from the run's last checkpoint" in caplog.text) == (resume == "auto")
    found, before = files(run), files(finished)
    assert found.pop(Path(SAMPLES)) == before.pop(Path(SAMPLES))
    said, expected = (json.loads(content.pop(Path(SET))) for content in (found, before))
    measured = ("seconds", "setup_seconds", "peak_memory_bytes")
    assert {**said, **dict.fromkeys(measured)} == {**expected, **dict.fromkeys(measured)}
    assert found == before  # metrics, report, exports and checkpoints


LOST: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "all": (lambda paths: shutil.rmtree(paths[0].parent), "there is no checkpoint of its run.*overwrite=True"),
    "the last": (
        lambda paths: paths[-1].unlink(),
        r"is of step 11 of 12; without distilled\.json beside it the run goes",
    ),
    "half of the last": (lambda paths: paths[-1].write_text(""), r"is damaged.*; without distilled\.json beside it"),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_set_that_no_last_checkpoint_makes_is_told_apart(lost: str, run: Path) -> None:
    lose, message = LOST[lost]
    lose(sorted((run / "checkpoints").iterdir()))
    changed_byte(run)
    before = files(run)
    with pytest.raises(CheckpointError, match=message):
        distill(BlobTask(), method("dm"), ipc=1, out=run, resume="auto")
    with pytest.raises(CheckpointError) as told:
        load_whole(run)
    assert "again" not in str(told.value)
    assert files(run) == before


def test_what_is_whole_is_not_written_over(run: Path) -> None:
    said = json.loads((run / SET).read_text())
    (run / SET).write_text(json.dumps(said | {"version": 1}))
    with pytest.raises(CheckpointError, match=r"another version; this mmdistill reads 2$"):
        load_whole(run)
    with pytest.raises(CheckpointError, match=r"another version; this mmdistill reads 2$"):
        distill(BlobTask(), method("dm"), ipc=1, out=run, resume="auto")
    changed_byte(run)
    (run / SET).write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"belongs to another run: its settings\.steps is 12, not 20"):
        distill(BlobTask(), method("dm", steps=20), ipc=1, out=run, resume="auto")


@pytest.mark.parametrize("damage", ["samples changed", "description empty"])
def test_a_damaged_set_taken_further_leaves_nothing_that_was_made_of_it(damage: str, run: Path) -> None:
    DAMAGES[damage](run)
    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method("dm", steps=20), ipc=1, out=run, resume=True, progress=interrupted_at(16))
    assert all((run / name).exists() for name in DERIVED)
    distill(BlobTask(), method("dm", steps=20), ipc=1, out=run, resume=True)
    assert DistilledSet.load(run).taken == 20
    assert not any((run / name).exists() for name in DERIVED)


def test_what_patience_ended_is_over(tmp_path: Path) -> None:
    full = method("dc", validate_every=2, patience=4, steps=20)
    distill(Validated(), full, ipc=2, out=tmp_path)
    before = (tmp_path / SAMPLES).read_bytes()
    changed_byte(tmp_path)
    distill(Validated(), full, ipc=2, out=tmp_path, resume="auto")
    assert (tmp_path / SAMPLES).read_bytes() == before


def test_commands_name_what_writes_a_set_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    common = ["--data", "digits", "--ipc", "1", "--networks", "1", "--judge-epochs", "1", "--baselines", ""]
    assert main(["distill", "--method", "dm", "--steps", "2", "--out", str(run), *common, "--width", "8"]) == 0
    before = files(run)
    (run / SET).write_text("{")
    again = f"mmdistill distill --resume {run} writes it again"
    for command in ("report", "export", "evaluate", "compare"):
        assert main([command, str(run)]) == 2
        assert again in capsys.readouterr().err
    assert main(["distill", "--resume", str(run)]) == 0
    assert "the set is written again from the run's last checkpoint" in capsys.readouterr().out
    found = files(run)
    assert found[Path(SAMPLES)] == before[Path(SAMPLES)]
    assert found[Path("metrics.json")] == before[Path("metrics.json")]
    shutil.rmtree(run / "checkpoints")
    (run / SET).write_text("{")
    assert main(["distill", "--resume", str(run)]) == 2
    assert f"mmdistill distill --config {run / 'config.yaml'} --out {run} --overwrite" in capsys.readouterr().err
