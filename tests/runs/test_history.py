"""The history of a run goes with its set: in the process that made it, from its folder, and into other folders."""

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from mmdistill import DistilledSet, distill, save_evaluation, selection
from mmdistill.errors import MmdistillWarning
from mmdistill.evaluation import Entry, Evaluation
from mmdistill.labels import FixedLabels
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from mmdistill.parameterizations.raw import Raw
from mmdistill.runs.history import Reading
from mmdistill.settings import Settings
from tests.runs.blobs import method
from tests.toys import BlobTask

CLOSED = Method(
    "Closed", None, CORE_METHODS["dm"].network, lambda ipc: Settings(0),
    solve=lambda task, budget, settings, draws: Raw(
        torch.ones(3, 4), FixedLabels(torch.arange(3)), torch.arange(3), 3
    ),
)  # fmt: skip


def test_a_set_has_the_losses_that_were_shown(tmp_path: Path) -> None:
    shown: list[tuple[int, float]] = []
    found = distill(BlobTask(), method(), ipc=1, progress=lambda done, total, loss: shown.append((done, loss)))
    assert [*found.history] == shown
    assert [reading.step for reading in found.history] == [*range(1, found.steps + 1)]
    assert len({reading.loss for reading in found.history}) > 1
    frame = pd.DataFrame(found.history)
    assert frame.columns.tolist() == ["step", "loss"]
    assert frame.loss.tolist() == [loss for _, loss in shown]
    kept = distill(BlobTask(), method(), ipc=1, out=tmp_path)
    assert kept.history == found.history == DistilledSet.load(tmp_path).history
    assert all(isinstance(reading, Reading) for reading in DistilledSet.load(tmp_path).history)
    assert distill(BlobTask(), method(), ipc=1, out=tmp_path, resume="auto").history == found.history
    assert pickle.loads(pickle.dumps(found)).history == found.history
    written = json.loads((tmp_path / "history.json").read_text())
    assert written == {"step": [step for step, _ in shown], "loss": [loss for _, loss in shown]}
    assert "history" not in json.loads((tmp_path / "distilled.json").read_text())


def test_the_history_of_a_resumed_run_is_that_of_all_its_steps(tmp_path: Path) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method(), ipc=1, out=tmp_path, progress=stop)
    resumed = distill(BlobTask(), method(), ipc=1, out=tmp_path, resume=True)
    assert resumed.history == distill(BlobTask(), method(), ipc=1).history


def test_what_took_no_steps_has_no_history(tmp_path: Path) -> None:
    solved = distill(BlobTask(), CLOSED, ipc=1, out=tmp_path / "closed")
    assert solved.history == DistilledSet.load(tmp_path / "closed").history == ()
    assert json.loads((tmp_path / "closed" / "history.json").read_text()) == {"step": [], "loss": []}
    chosen = selection(BlobTask(), "random", ipc=1)
    chosen.save(tmp_path / "chosen")
    assert chosen.history == DistilledSet.load(tmp_path / "chosen").history == ()
    assert not (tmp_path / "chosen" / "history.json").exists()


def test_a_saved_set_has_its_own_history_and_none_of_a_former_one(tmp_path: Path) -> None:
    found = distill(BlobTask(), method(), ipc=1)
    found.save(tmp_path)
    assert DistilledSet.load(tmp_path).history == found.history
    replace(found, history=()).save(tmp_path)
    assert DistilledSet.load(tmp_path).history == ()


def test_a_set_saved_with_its_evaluation_has_its_curve(tmp_path: Path) -> None:
    task = BlobTask()
    found = distill(task, method(), ipc=1)
    save_evaluation(task, found, Evaluation([Entry("mlp", "accuracy", 0.5, 0.1, 2)]), tmp_path)
    assert DistilledSet.load(tmp_path).history == found.history
    assert (tmp_path / "pictures" / "loss.png").is_file()
    assert "loss.png" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"step": [1]}', '{"step": [1.5], "loss": [0]}', '{"step": [1], "loss": ["a"]}', '{"step": 1}']
)
def test_a_damaged_history_is_left_out_and_said(tmp_path: Path, text: str) -> None:
    found = distill(BlobTask(), method(), ipc=1)
    found.save(tmp_path)
    (tmp_path / "history.json").write_text(text)
    with pytest.warns(MmdistillWarning, match=r"history.json .*; the loss of this run is left out"):
        assert DistilledSet.load(tmp_path).history == ()
    (tmp_path / "history.json").unlink()
    assert DistilledSet.load(tmp_path).history == ()
