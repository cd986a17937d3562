"""Runs in the place of former ones, which stay until the next one works."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from mmdistill.labels import FixedLabels
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from mmdistill.parameterizations.raw import Raw
from mmdistill.settings import Settings
from tests.runs.blobs import method
from tests.toys import BlobTask


def test_a_run_that_begins_anew_leaves_nothing_of_the_former_one_to_be_taken_for_its_own(tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    with pytest.raises(DataError, match="lower the budget"):
        distill(BlobTask(), method(init="real"), ipc=500, out=tmp_path, overwrite=True)
    assert DistilledSet.load(tmp_path).seed == 0

    def stop(done: int, total: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path, overwrite=True, progress=stop)
    with pytest.raises(CheckpointError, match="holds no distilled set"):
        DistilledSet.load(tmp_path)


def test_a_run_is_not_replaced_without_asking(tmp_path: Path) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method(), ipc=2, out=tmp_path, progress=stop)
    with pytest.raises(ConfigError, match="unfinished run; continue it with resume=True"):
        distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path)
    distill(BlobTask(), method(), ipc=2, out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"already holds a finished run; .* overwrite=True"):
        distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path)
    assert DistilledSet.load(tmp_path).seed == 0


def test_a_former_run_stays_until_the_first_step_has_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(*arguments: object, **options: object) -> None:
        raise ConfigError("refused in the first step")

    monkeypatch.setattr("mmdistill.distiller.Distiller.step", refused)
    with pytest.raises(ConfigError, match="refused in the first step"):
        distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_former_run_stays_where_the_disk_is_too_full_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mmdistill.runs.checkpoints.save_tree", full)
        with pytest.raises(OSError, match="No space left"):
            distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path, overwrite=True).seed == 1
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_former_run_stays_where_the_disk_is_too_full_for_a_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    closed = Method(
        "Closed", None, CORE_METHODS["dm"].network, lambda ipc: Settings(0),
        solve=lambda task, budget, settings, draws: Raw(
            torch.ones(3, 4), FixedLabels(torch.arange(3)), torch.arange(3), 3
        ),
    )  # fmt: skip

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for writer in ("write_tensors", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mmdistill.distilled.{writer}", full)
            with pytest.raises(OSError, match="No space left"):
                distill(BlobTask(), closed, ipc=1, seed=1, out=tmp_path, overwrite=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    distill(BlobTask(), closed, ipc=1, seed=1, out=tmp_path, overwrite=True)
    assert DistilledSet.load(tmp_path).seed == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "checkpoints", "distilled.json", "distilled.safetensors", "history.json",
    ]  # fmt: skip


def test_a_damaged_listing_of_exports_stops_no_new_run(tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text("{")
    assert distill(BlobTask(), method(), ipc=2, seed=1, out=tmp_path, overwrite=True).seed == 1
    assert DistilledSet.load(tmp_path).seed == 1


def test_a_closed_form_that_fails_leaves_the_former_run(tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=1, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    broken = torch.full((3, 8), float("nan"))
    spoiled = Method(
        "Spoiled", None, CORE_METHODS["dm"].network, lambda ipc: Settings(0),
        solve=lambda task, budget, settings, draws: Raw(broken, FixedLabels(torch.arange(3)), torch.arange(3), 3),
    )  # fmt: skip
    with pytest.raises(NonFiniteError):
        distill(BlobTask(), spoiled, ipc=1, out=tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
