"""Runs that resume: bit-identically, from what is whole, and from checkpoints of their own alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError, ConfigError, NonFiniteError
from mmdistill.method import Storage
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.runs import keeper
from mmdistill.runs import loop as run_loop
from mmdistill.runs.checkpoints import Checkpoints
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from mmdistill.store import load_tree, save_tree
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState
from tests.runs.blobs import method, samples
from tests.toys import BlobTask, Uncompiled


@pytest.mark.parametrize("name", ["dc", "dm"])
@pytest.mark.parametrize("stopped_at", [3, 7])
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, name: str, stopped_at: int) -> None:
    task = BlobTask()
    whole = distill(task, method(name), ipc=2, seed=4)

    def stop(done: int, total: int, loss: float) -> None:
        if done == stopped_at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(task, method(name), ipc=2, seed=4, out=tmp_path, progress=stop)
    assert not (tmp_path / "distilled.json").exists()
    resumed = distill(task, method(name), ipc=2, seed=4, out=tmp_path, resume=True)
    assert torch.equal(samples(whole), samples(resumed))
    assert torch.equal(samples(DistilledSet.load(tmp_path)), samples(whole))


def test_a_run_that_is_killed_as_soon_as_it_has_replaced_another_goes_on(tmp_path: Path) -> None:
    task, run = BlobTask(), {"ipc": 1, "seed": 1, "out": tmp_path}
    distill(task, method("dm"), ipc=1, out=tmp_path)

    def stop(done: int, total: int, loss: float) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        distill(task, method("dm"), **run, overwrite=True, progress=stop)  # type: ignore[arg-type]
    resumed = distill(task, method("dm"), **run, resume=True)  # type: ignore[arg-type]
    assert torch.equal(samples(resumed), samples(distill(task, method("dm"), ipc=1, seed=1)))


def test_optimizer_and_label_state_resume_too(tmp_path: Path) -> None:
    learned = replace(
        method(
            "dc", optimizers={"codes": OptimizerSpec("adam", 0.05, cosine=True), "labels": OptimizerSpec("sgd", 0.1)}
        ),
        label="soft",
    )
    task = BlobTask()
    whole = distill(task, learned, ipc=2)
    assert isinstance(whole.batch.targets, Tensor)
    assert whole.batch.targets.shape == (6, 3)

    def stop(done: int, total: int, loss: float) -> None:
        if done == 6:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        distill(task, learned, ipc=2, out=tmp_path, checkpoint_every=5, progress=stop)
    resumed = distill(task, learned, ipc=2, out=tmp_path, checkpoint_every=5, resume=True)
    assert torch.equal(samples(whole), samples(resumed))
    assert torch.equal(whole.batch.targets, resumed.batch.targets)  # type: ignore[arg-type]


def test_a_resumed_run_counts_the_seconds_before_it(tmp_path: Path) -> None:
    distill(BlobTask(), method("dm"), ipc=1, out=tmp_path)
    older, newest = sorted((tmp_path / "checkpoints").iterdir())
    newest.unlink()
    tree = load_tree(older)
    run = {**tree["run"], "setup_seconds": 300.0, "compile_seconds": 200.0}
    save_tree(older, {**tree, "run": run, "seconds": 1000.0})
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, resume=True)
    assert 1000 < resumed.seconds < 1100
    assert 300 < resumed.setup_seconds < 400
    assert resumed.compile_seconds == 200


def test_resuming_what_is_finished_tells_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.objectives.compiled.Program", Uncompiled)
    assert distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, compile="on").path == "compiled"
    assert distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, resume=True).path == "compiled"


def test_slow_steps_are_shown_and_change_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[Path, list[int]] = {tmp_path / "quick": [], tmp_path / "slow": []}
    monkeypatch.setattr(run_loop, "READS_PER_RUN", 3)
    for folder, seconds in zip(shown, (1e9, 0.0), strict=True):
        monkeypatch.setattr(run_loop, "LONGEST_UNSHOWN", seconds)
        steps = shown[folder]
        distill(BlobTask(), method(), ipc=2, out=folder, progress=lambda done, total, loss, to=steps: to.append(done))  # type: ignore[misc]
    assert list(shown.values()) == [[1, 4, 8, 12], list(range(1, 13))]
    quick, slow = (json.loads((folder / "history.json").read_text()) for folder in shown)
    assert quick == slow
    assert quick["step"] == [1, 4, 8, 12]


KILLED = """
import sys, time
from pathlib import Path
from mmdistill.distill import distill
from tests.runs.blobs import method
from tests.toys import BlobTask, Uncompiled

def report(done, total, loss):
    print(done, flush=True)
    time.sleep(0.02 if done < 20 else 60)  # in which it is killed

distill(BlobTask(), method("dc", steps=30), ipc=2, out=Path(sys.argv[1]), checkpoint_every=5, progress=report)
"""


def test_a_killed_process_loses_at_most_one_interval(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    done = 0
    deadline = time.time() + 60
    while done < 17 and time.time() < deadline:
        done = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    steps = sorted(int(p.stem.removeprefix("step-")) for p in (tmp_path / "checkpoints").glob("step-*.safetensors"))
    assert steps[-1] >= done - done % 5
    task, full = BlobTask(), method("dc", steps=30)
    resumed = distill(task, full, ipc=2, out=tmp_path, resume=True)
    assert torch.equal(samples(resumed), samples(distill(task, full, ipc=2)))


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    task = BlobTask()
    expected = distill(task, method(), ipc=2, out=tmp_path, checkpoint_every=4)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:200])
    resumed = distill(task, method(), ipc=2, out=tmp_path, resume=True, checkpoint_every=4)
    assert torch.equal(samples(resumed), samples(expected))
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no readable checkpoint: .*; begin anew with --overwrite"):
        distill(task, method(), ipc=2, out=tmp_path, resume=True)


def test_the_newest_readable_checkpoint_tells_whose_they_are(tmp_path: Path) -> None:
    for step, seed in ((5, 1), (10, 2)):
        Checkpoints(tmp_path, {"seed": seed}).write({"step": step}, 0.0)
    older, newest = Checkpoints(tmp_path, {}).paths()
    assert Checkpoints(tmp_path, {}).newest() == (newest, {"seed": 2})
    Checkpoints(tmp_path, {"seed": 2}).require_own("leave")
    with pytest.raises(CheckpointError, match="seed is 2, not 1"):
        Checkpoints(tmp_path, {"seed": 1}).require_own("leave")
    newest.write_bytes(b"")
    assert Checkpoints(tmp_path, {}).newest() == (older, {"seed": 1})
    older.write_bytes(b"")
    assert Checkpoints(tmp_path, {}).newest() is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    task = BlobTask()
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        distill(task, method(), ipc=2, out=tmp_path, resume=True)
    distill(task, method(), ipc=2, out=tmp_path)
    with pytest.raises(CheckpointError, match="its budget is 2, not 3"):
        distill(task, method(), ipc=3, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="its seed is 0, not 1"):
        distill(task, method(), ipc=2, seed=1, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"its settings\.inner_lr is 0\.01, not 0\.5"):
        distill(task, method(inner_lr=0.5), ipc=2, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"its network\.0\.weight is \[8, 4\], not \[16, 4\]"):
        distill(BlobTask(width=16), method(), ipc=2, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="its precision is float32, not mixed"):
        distill(task, method(), ipc=2, out=tmp_path, resume=True, precision="mixed")
    with pytest.raises(ConfigError, match="needs the folder"):
        distill(task, method(), ipc=2, resume=True)


def test_a_checkpoint_of_other_layers_is_refused(tmp_path: Path) -> None:
    class Described(BlobTask):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            self.activation = activation

        def architecture(self) -> str:
            return str(nn.Sequential(nn.Linear(4, 3), self.activation))

    whole = distill(Described(nn.ReLU()), method(), ipc=2, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"its network has \(1\): ReLU\(\), not \(1\): Tanh\(\);"):
        distill(Described(nn.Tanh()), method(), ipc=2, out=tmp_path, resume=True)
    assert torch.equal(
        samples(distill(Described(nn.ReLU()), method(), ipc=2, out=tmp_path, resume=True)), samples(whole)
    )


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    places = [tmp_path, tmp_path / "checkpoints"]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / ".a.json.x1.mmdistill-part").write_bytes(b"half")
        (place / ".mine.part").write_bytes(b"a user's")
    distill(BlobTask(), method("dm"), ipc=2, out=tmp_path)
    for place in places:
        assert not list(place.glob(".*.mmdistill-part"))
        assert (place / ".mine.part").exists()


class Spoiled(BlobTask):
    """Real data that hold NaN in the sixth batch."""

    calls = 0

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        found = super().sample_real(draws, classes, n)
        if isinstance(found, Batch):  # what a check reads
            return found
        self.calls += 1
        assert isinstance(found.batch.inputs, Tensor)
        if self.calls == 6:
            found.batch.inputs[0, 0, 0] = torch.nan
        return found


def test_a_non_finite_step_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="became nan at or before step 6"):
        distill(Spoiled(), method("dm"), ipc=2, out=tmp_path, checkpoint_every=1)
    steps = [path.stem for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert steps == ["step-00000004", "step-00000005"]
    assert not (tmp_path / "distilled.json").exists()
    resumed = distill(BlobTask(), method("dm"), ipc=2, out=tmp_path, resume=True, checkpoint_every=1)
    assert torch.equal(samples(resumed), samples(distill(BlobTask(), method("dm"), ipc=2)))


def test_a_run_that_bursts_early_tells_what_it_left(tmp_path: Path) -> None:
    left = re.escape(f"{tmp_path / 'checkpoints' / 'step-00000004.safetensors'} holds the last good state")
    with pytest.raises(NonFiniteError, match=f"became nan .*; {left}"):
        distill(Spoiled(), method("dm", steps=200), ipc=2, out=tmp_path)
    with pytest.raises(NonFiniteError, match="no checkpoint was written before"):
        distill(Spoiled(), method("dm"), ipc=2)
    kept = keeper.Keeper(tmp_path, {}, 0, 0.0)
    assert [step for step in range(1, 41) if kept.is_due(step, 60)] == [1, 2, 4, *range(6, 41, 6)]
    assert "step-00000000" not in [path.stem for path in (tmp_path / "checkpoints").iterdir()]


def test_a_run_that_bursts_before_its_first_checkpoint_leaves_its_start(tmp_path: Path) -> None:
    start = tmp_path / "checkpoints" / "step-00000000.safetensors"
    left = re.escape(f"{start} holds the last good state, from which resuming comes to the same step again")
    averaged = method("dm", ema=0.5)
    with pytest.raises(NonFiniteError, match=f"became nan .*; {left}"):
        distill(Spoiled(), averaged, ipc=2, out=tmp_path, checkpoint_every=10)
    assert list((tmp_path / "checkpoints").iterdir()) == [start]
    resumed = distill(BlobTask(), averaged, ipc=2, out=tmp_path, resume=True)
    assert torch.equal(samples(resumed), samples(distill(BlobTask(), averaged, ipc=2)))
    former = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(NonFiniteError, match=f"no checkpoint was written before, and the former run in {tmp_path}"):
        distill(Infinite(), method("dm"), ipc=2, out=tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == former


class Infinite(BlobTask):
    """A loss that is none from the first step on."""

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        return tuple(tensor / 0 for tensor in super().features(state, inputs))


def test_a_checkpoint_comes_before_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LONGEST_UNSAVED", -1.0)
    monkeypatch.setattr("mmdistill.runs.checkpoints.KEPT_CHECKPOINTS", 100)
    distill(BlobTask(), method("dm", steps=30), ipc=1, out=tmp_path / "often")
    distill(BlobTask(), method("dm", steps=30), ipc=1, out=tmp_path / "as asked", checkpoint_every=10)
    often, asked = (len(list((tmp_path / name / "checkpoints").iterdir())) for name in ("often", "as asked"))
    assert (often, asked) == (30, 3)


class Ticking:
    """A clock that is a second later whenever it is read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        self.seconds += 1
        return self.seconds


def test_a_checkpoint_by_the_clock_comes_an_interval_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "time", Ticking())
    monkeypatch.setattr(keeper, "LONGEST_UNSAVED", 9.5)
    monkeypatch.setattr(keeper.Keeper, "is_due", lambda *_: False)
    monkeypatch.setattr("mmdistill.runs.checkpoints.KEPT_CHECKPOINTS", 100)
    distill(BlobTask(), method("dm", steps=60), ipc=1, out=tmp_path)
    assert 5 <= len(list((tmp_path / "checkpoints").iterdir())) <= 8


def test_a_loss_is_shown_by_the_clock_an_interval_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_loop, "time", Ticking())
    monkeypatch.setattr(run_loop, "LONGEST_UNSHOWN", 9.5)
    monkeypatch.setattr(run_loop, "READS_PER_RUN", 1)
    monkeypatch.setattr(run_loop, "ESTIMATE_AFTER_SECONDS", 0.0)  # estimated at once, no longer asked
    shown: list[int] = []
    distill(BlobTask(), method("dm", steps=60), ipc=1, progress=lambda done, total, loss: shown.append(done))
    assert 6 <= len(shown) <= 9


def stored_otherwise(*arguments: Any) -> Parameterization:
    task, budget, settings, label, draws = arguments
    return raw_samples(task, budget, settings.init, label, draws)


@pytest.mark.parametrize("change", [{"parameterization": Storage(stored_otherwise, "otherwise")}, {"label": "soft"}])
def test_a_run_goes_on_with_its_own_storage_and_labels_alone(change: dict[str, Any], tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    (name,) = change
    with pytest.raises(CheckpointError, match=f"belongs to another run: its {name} is "):
        distill(BlobTask(), method(), ipc=2, out=tmp_path, resume=True, **change)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_kind_says_how_to_begin_it(finished: bool, tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path, checkpoint_every=5)
    if not finished:
        (tmp_path / "distilled.json").unlink()
        max((tmp_path / "checkpoints").iterdir()).unlink()
    ways = r"; choose another folder, or leave resume out with overwrite=True \(--overwrite\)$"
    with pytest.raises(CheckpointError, match=r"its settings\.inner_lr is 0\.01, not 0\.5" + ways):
        distill(BlobTask(), method(inner_lr=0.5), ipc=2, out=tmp_path, resume="auto")
