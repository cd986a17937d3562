"""The run around Algorithm 1: it resumes bit-identically, stops cleanly, and never loses finished work."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill.budget import find_budget
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import CheckpointError, ConfigError, DataError, MemoryExhaustedError, NonFiniteError
from mmdistill.image import image_task
from mmdistill.labels import FixedLabels, LabelKind
from mmdistill.method import Method, Storage
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.schedules import FreshNetworks, NetworkSchedule, ScheduleState, UnreadNetwork
from mmdistill.objectives.base import Objective
from mmdistill.objectives.discrimination import DiscriminativeMatching
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw, raw_samples
from mmdistill.progress import StepProgress
from mmdistill.recsys import recsys_task
from mmdistill.registry import get_domain, get_method
from mmdistill.reporting.report import fact_rows
from mmdistill.runs import keeper
from mmdistill.runs import loop as run_loop
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.store import load_tree, save_tree
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Task
from tests.toys import BlobTask, Uncompiled


def method(name: str = "dc", **changes: object) -> Method:
    base = {"steps": 12, "real_batch": 8, "augment": name == "dm", "outer_steps": 4, "inner_steps": 3}
    return CORE_METHODS[name].with_settings(**{**base, **changes})


def samples(result: DistilledSet) -> Tensor:
    assert isinstance(result.batch.inputs, Tensor)
    return result.batch.inputs


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
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    save_tree(newest, load_tree(newest) | {"seconds": 1000.0})
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, resume=True)
    assert 1000 < resumed.seconds < 1100


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("dm", ("--classes-at-once 1", "--real-batch", "--syn-batch", "--width"), ("--kept-steps", "--inner")),
        ("dc", ("--classes-at-once 1", "--real-batch", "--inner-batch"), ("--kept-steps", "--inner-steps")),
        ("dd", ("--kept-steps 0", "--real-batch", "--inner-steps"), ("--classes-at-once", "--syn-batch")),
        ("kip", ("--real-batch", "a smaller synthetic budget"), ("--kept", "--inner", "--classes-at-once", "--width")),
    ],
)
def test_out_of_memory_names_what_the_method_has(
    name: str, said: tuple[str, ...], unsaid: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Distiller, "step", exhausted)
    with pytest.raises(MemoryExhaustedError, match="in step 1 of the distillation") as raised:
        distill(image_task("digits", width=8), name, ipc=2, settings={"steps": 1})
    assert all(option in str(raised.value) for option in said)
    assert not any(option in str(raised.value) for option in unsaid)


def test_out_of_memory_in_choosing_samples_names_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mmdistill.coresets.briefly_trained", exhausted)
    with pytest.raises(MemoryExhaustedError, match=r"the start .*--init real in place of herding") as raised:
        distill(BlobTask(), method("dm", init="herding"), ipc=1)
    assert "budget" not in str(raised.value)


class Tardy(FreshNetworks):
    """Takes its time to get ready, and between steps."""

    def make_ready(self, task: Task) -> None:
        time.sleep(0.3)

    def advance(self, task: Task, state: ScheduleState, syn: Callable[[], Batch], draws: Draws) -> ScheduleState:
        time.sleep(0.02)
        return super().advance(task, state, syn, draws)


def test_the_time_of_a_step_has_no_setup_in_it_and_is_told_without_inner_loops(tmp_path: Path) -> None:
    tardy = replace(method("dm", steps=6), network=lambda settings: Tardy())
    found = distill(BlobTask(), tardy, ipc=1, out=tmp_path, checkpoint_every=3)
    assert found.inner_seconds is not None
    assert found.setup_seconds > 0.3
    assert found.inner_seconds > 6 * 0.02
    step, update = found.seconds_per_step, found.seconds_per_update
    assert step == pytest.approx((found.seconds - found.setup_seconds) / 6)
    assert update == pytest.approx(step - found.inner_seconds / 6)
    (tmp_path / "checkpoints" / "step-00000006.safetensors").unlink()
    (tmp_path / "distilled.json").unlink()
    resumed = distill(BlobTask(), tardy, ipc=1, out=tmp_path, checkpoint_every=3, resume=True)
    assert resumed.inner_seconds is not None
    assert resumed.setup_seconds > 0.6  # it got ready twice
    assert 6 * 0.02 < resumed.inner_seconds < found.inner_seconds + 3 * 0.02 + 5.0  # a busy machine
    assert resumed.seconds > resumed.setup_seconds + resumed.inner_seconds
    cost = dict(fact_rows(resumed))["cost"]
    assert re.search(
        r" of them without training networks between updates, \d+\.\d s before the first step\), peak", cost
    )
    assert DistilledSet.load(tmp_path).inner_seconds == resumed.inner_seconds


def test_checkpoints_and_sets_that_measured_no_setup_are_taken_as_they_are(tmp_path: Path) -> None:
    distill(BlobTask(), method("dm"), ipc=1, out=tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    tree = load_tree(newest)
    for name in ("setup_seconds", "inner_seconds"):
        del tree["run"][name]
    save_tree(newest, tree)
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, resume=True)
    assert resumed.setup_seconds == 0  # unknown, as what went before it was not measured
    assert resumed.inner_seconds is None
    said = json.loads((tmp_path / "distilled.json").read_text())
    del said["setup_seconds"], said["inner_seconds"]
    (tmp_path / "distilled.json").write_text(json.dumps(said))
    before = DistilledSet.load(tmp_path)
    assert (before.setup_seconds, before.inner_seconds, before.seconds_per_update) == (0.0, None, None)
    assert before.seconds_per_step == pytest.approx(before.seconds / before.taken)
    assert "first step" not in dict(fact_rows(before))["cost"]


def test_closed_forms_have_no_seconds_of_a_step() -> None:
    found = distill(image_task("digits", width=8), "random-soft", ipc=1)
    assert (found.seconds_per_step, found.seconds_per_update, found.inner_seconds) == (None, None, None)


def test_resuming_what_is_finished_tells_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.distiller.Program", Uncompiled)
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
from tests.test_distill import method
from tests.toys import BlobTask, Uncompiled

def report(done, total, loss):
    print(done, flush=True)
    time.sleep(0.02 if done < 20 else 60)  # in which it is killed

distill(BlobTask(), method("dc", steps=30), ipc=2, out=Path(sys.argv[1]), checkpoint_every=5, progress=report)
"""


def test_a_killed_process_loses_at_most_one_interval(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
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
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    tree = load_tree(newest)
    earlier = {name: value for name, value in json.loads(tree["identity"]).items() if name != "precision"}
    save_tree(newest, tree | {"identity": json.dumps(earlier)})
    with pytest.raises(CheckpointError, match="is of an earlier version, which did not note its precision"):
        distill(task, method(), ipc=2, out=tmp_path, resume=True)
    save_tree(newest, tree)
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
    with pytest.raises(CheckpointError, match=r"its network has \(1\): ReLU\(\), not \(1\): Tanh\(\)$"):
        distill(Described(nn.Tanh()), method(), ipc=2, out=tmp_path, resume=True)
    assert torch.equal(
        samples(distill(Described(nn.ReLU()), method(), ipc=2, out=tmp_path, resume=True)), samples(whole)
    )


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
    shown: list[int] = []
    distill(BlobTask(), method("dm", steps=60), ipc=1, progress=lambda done, total, loss: shown.append(done))
    assert 6 <= len(shown) <= 9


@pytest.fixture
def own_handlers() -> Iterator[dict[signal.Signals, Callable[[int, object], None]]]:
    """Handlers of this test's own, which stand while it runs."""
    own: dict[signal.Signals, Callable[[int, object], None]] = {
        number: lambda *_: None for number in (signal.SIGINT, signal.SIGTERM)
    }
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield own
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_gives_signals_back_to_who_handled_them_before(
    own_handlers: dict[signal.Signals, Callable[[int, object], None]],
) -> None:
    def fail(done: int, total: int, loss: float) -> None:
        assert signal.getsignal(signal.SIGINT) not in own_handlers.values()
        raise RuntimeError("of the program's own")

    distill(BlobTask(), method("dm"), ipc=1)
    assert {number: signal.getsignal(number) for number in own_handlers} == own_handlers
    with pytest.raises(RuntimeError, match="own"):
        distill(BlobTask(), method("dm"), ipc=1, progress=fail)
    assert {number: signal.getsignal(number) for number in own_handlers} == own_handlers


@contextmanager
def handled_by(handler: Callable[[int, object], None] | signal.Handlers) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def at_three(done: int, total: int, loss: float) -> None:
    if done == 3:
        signal.raise_signal(signal.SIGTERM)


def checkpointed(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("step-*")}


def test_a_programs_own_handler_is_called_when_the_step_is_kept(tmp_path: Path) -> None:
    calls: list[tuple[int, set[str]]] = []

    def run(name: str, progress: StepProgress | None = at_three) -> DistilledSet:
        return distill(BlobTask(), method("dm"), ipc=1, out=tmp_path / name, checkpoint_every=1000, progress=progress)

    whole = run("whole", None)

    def handler(number: int, frame: object) -> None:
        calls.append((number, checkpointed(tmp_path / "run")))
        if len(calls) > 1:
            raise SystemExit(3)

    with handled_by(handler):
        assert torch.equal(samples(run("run")), samples(whole))
        ((number, kept),) = calls
        assert (number, len(kept)) == (signal.SIGTERM, 1)
        assert (tmp_path / "run/history.json").read_text() == (tmp_path / "whole/history.json").read_text()
        with pytest.raises(SystemExit):
            run("other")
        assert signal.getsignal(signal.SIGTERM) is handler
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path / "other", resume=True)
    assert torch.equal(samples(resumed), samples(whole))


def test_a_signal_during_the_last_step_ends_what_comes_after_the_run(tmp_path: Path) -> None:
    def at_the_end(done: int, total: int, loss: float) -> None:
        if done == total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, progress=at_the_end)
    assert torch.equal(samples(DistilledSet.load(tmp_path)), samples(distill(BlobTask(), method("dm"), ipc=1)))


def test_a_signal_that_comes_again_is_the_programs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    survived: list[int] = []

    def handler(number: int, frame: object) -> None:
        raise SystemExit(3)

    def interrupted(*arguments: object, **options: object) -> None:
        for number in (1, 2, 3):
            signal.raise_signal(signal.SIGTERM)
            survived.append(number)

    monkeypatch.setattr("mmdistill.distiller.Distiller.step", interrupted)
    with handled_by(handler), pytest.raises(SystemExit):
        distill(BlobTask(), method("dm"), ipc=1)
    assert survived == [1]


def test_a_signal_that_is_ignored_stays_so() -> None:
    with handled_by(signal.SIG_IGN):
        assert samples(distill(BlobTask(), method("dm"), ipc=1, progress=at_three)).isfinite().all()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_handlers_that_python_does_not_know_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that another language has installed, for which ``getsignal`` returns None."""
    taken: list[int] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.append(number))
    distill(BlobTask(), method("dm"), ipc=1)
    assert not taken


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(RuntimeError("g++ was killed"), KeyboardInterrupt), (DataError("no such images"), DataError)],
)
def test_a_step_that_fails_once_asked_to_stop_ends_as_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: type[BaseException]
) -> None:
    """Ctrl-C reaches the compiler too; an own error of the package is no such failure."""
    step = Distiller.step

    def failing(distiller: Distiller, run: RunState, gradients: object = None) -> tuple[RunState, Tensor]:
        if run.step == 7:
            signal.raise_signal(signal.SIGINT)
            raise failure
        return step(distiller, run, gradients)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Distiller, "step", failing)
        with pytest.raises(expected) as ended:
            distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, checkpoint_every=5)
    if expected is KeyboardInterrupt:
        assert ended.value.__cause__ is failure
        assert "step-00000005" in ended.value.__notes__[0]
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, checkpoint_every=5, resume=True)
    assert torch.equal(samples(resumed), samples(distill(BlobTask(), method("dm"), ipc=1)))


def test_a_second_interruption_ends_the_step_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    survived: list[int] = []

    def interrupted(*arguments: object, **options: object) -> None:
        for number in (1, 2, 3):
            signal.raise_signal(signal.SIGINT)
            survived.append(number)

    monkeypatch.setattr("mmdistill.distiller.Distiller.step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method("dm"), ipc=1)
    assert survived == [1]


@pytest.mark.parametrize("seconds", [1e9, 0.0])
def test_a_loss_that_grows_a_thousandfold_is_warned_of_once(
    seconds: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_loop, "READS_PER_RUN", 1)
    monkeypatch.setattr(run_loop, "LONGEST_UNSHOWN", seconds)
    network = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))  # noqa: E731
    settings = {"steps": 5, "lr": 1e3, "real_batch": 2}
    distill(image_task("digits", model=network), "dm", ipc=1, settings=settings, progress=lambda *given: None)
    (warning,) = caplog.messages
    assert "the loss grew from" in warning
    assert warning.endswith("Lower the learning rate (--lr, or lr among the settings)")
    caplog.clear()
    distill(BlobTask(), method("dm"), ipc=2)
    assert not caplog.messages


def test_a_last_update_that_bursts_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is taken before the update, so that it alone would not tell."""
    update = Distiller._update

    def burst(self: Distiller, run: RunState, gradients: list[Tensor | None]) -> None:
        update(self, run, gradients)
        if run.step == 11:
            next(run.parameterization.parameters()).data[0] = torch.inf

    monkeypatch.setattr(Distiller, "_update", burst)
    for out in (tmp_path, None):
        with pytest.raises(NonFiniteError, match="what is learned became NaN or infinite at or before step 12"):
            distill(BlobTask(), method("dm"), ipc=2, out=out, checkpoint_every=5)
    assert [path.stem for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000005", "step-00000010"]
    assert not (tmp_path / "distilled.json").exists()


class Validated(BlobTask):
    """Scores the third validation best."""

    calls = 0

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        self.calls += 1
        return -abs(self.calls - 3.0)


def test_validation_keeps_the_best_step() -> None:
    task = Validated()
    kept = distill(task, method("dc", validate_every=2), ipc=2)
    assert kept.steps == 6
    short = distill(BlobTask(), method("dc", steps=6), ipc=2)
    assert torch.equal(samples(kept), samples(short))


def test_what_is_validated_is_what_the_set_holds() -> None:
    class Listening(Validated):
        def validate(self, synthetic: object, draws: object, learned: object) -> float:
            assert isinstance(synthetic, Batch)
            assert isinstance(synthetic.targets, Tensor)
            validated.append(synthetic.targets.clone())
            return float(len(validated))

    validated: list[Tensor] = []
    taught = method("dm", validate_every=4, teacher_epochs=2).labelled("teacher")
    found = distill(Listening(), taught, ipc=2).batch.targets
    assert isinstance(found, Tensor)
    assert 0.01 < float(found.max(1).values.min()) < 0.99
    assert torch.equal(validated[-1], found)
    assert not torch.equal(validated[0], validated[-1])


def test_an_optimizer_of_nothing_is_refused() -> None:
    sgd = OptimizerSpec("sgd", 0.1)
    with pytest.raises(ConfigError, match=r"an optimizer for 'objectiv', .*; did you mean 'objective'"):
        Distiller(BlobTask(), method("dd", optimizers={"codes": sgd, "objectiv": sgd}), 1).start()
    Distiller(BlobTask(), method("dm", optimizers={"codes": sgd, "labels": sgd}), 1).start()  # which would be learned


def test_what_makes_networks_and_settings_is_a_function() -> None:
    for wrong in ({"settings": Settings(1)}, {"network": FreshNetworks()}):
        with pytest.raises(ConfigError, match=f"the {next(iter(wrong))} of DM is a function"):
            replace(CORE_METHODS["dm"], **wrong)  # type: ignore[arg-type]


def test_a_set_that_is_taken_on_the_way_leaves_the_run_as_it_is() -> None:
    task, rates = Validated(), {"codes": OptimizerSpec("sgd", 0.1), "objective": OptimizerSpec("sgd", 1.0)}
    for changed in (method("dm", ema=0.9), method("dd", inner_steps=2, optimizers=rates, validate_every=1)):
        distiller = Distiller(task, changed, 2)
        run = distiller.start()
        for _ in range(4):
            run, _ = distiller.step(run)
            if distiller.settings.validate_every:
                distiller.validate(run)
        live = run.parameterization(Draws(0)).inputs.clone()
        learned = {name: tensor.clone() for name, tensor in run.objective.learned().items()}
        taken = distiller.result(run, "own", 0.0)
        assert not torch.equal(samples(taken), live)
        assert torch.equal(run.parameterization(Draws(0)).inputs, live)
        assert all(torch.equal(run.objective.learned()[name], tensor) for name, tensor in learned.items())
        before = samples(taken).clone()
        distiller.step(run)
        assert torch.equal(samples(taken), before)


def test_validation_keeps_what_the_objective_learned_by_the_best_step() -> None:
    rates = {"codes": OptimizerSpec("sgd", 0.1), "objective": OptimizerSpec("sgd", 1.0)}
    task, dd = Validated(), method("dd", inner_steps=2, optimizers=rates)
    kept, whole, short = (
        distill(task, dd.with_settings(**changes), ipc=1).learned["inner_lr"]
        for changes in ({"validate_every": 2}, {}, {"steps": 6})
    )
    assert torch.equal(kept, short)
    assert not torch.equal(kept, whole)


def test_the_last_step_is_validated_wherever_it_falls() -> None:
    task = Validated()
    assert distill(task, method("dm", steps=5, validate_every=2), ipc=1).steps == 5
    assert task.calls == 3


class Undecided(BlobTask):
    """Scores all steps alike."""

    def validate(self, synthetic: object, draws: object, learned: object) -> float:
        return 0.5


def test_of_steps_that_score_alike_the_first_is_kept() -> None:
    assert distill(Undecided(), method("dm", validate_every=3), ipc=1).steps == 3


def test_validations_that_cannot_be_are_refused_before_the_first_step() -> None:
    with pytest.raises(
        ConfigError, match=r"DC selects by validation \(validate_every 2\), but .*'blobs' cannot validate"
    ):
        Distiller(BlobTask(), method("dc", validate_every=2), 2)
    with pytest.raises(ConfigError, match="without validate_every there are none; got a patience of 3"):
        Distiller(Validated(), method("dc", patience=3), 2)
    Distiller(Validated(), method("dc", validate_every=2, patience=3), 2)


class Unvalidated(BlobTask):
    """Has no validation data."""

    def validate(self, synthetic: object, draws: object, learned: object) -> None:
        return None


def test_without_validation_data_the_last_step_is_kept() -> None:
    kept = distill(Unvalidated(), method("dc", steps=6, validate_every=2), ipc=2)
    assert kept.steps == 6
    assert torch.equal(samples(kept), samples(distill(BlobTask(), method("dc", steps=6), ipc=2)))


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    whole = distill(Validated(), method("dc", validate_every=2, steps=40), ipc=2)
    task = Validated()
    short = distill(task, method("dc", validate_every=2, steps=40, patience=4), ipc=2)
    assert task.calls == 3 + 4
    assert short.steps == whole.steps == 6
    assert torch.equal(samples(short), samples(whole))
    assert (short.taken, whole.taken) == (14, 40)
    assert short.settings["steps"] == whole.settings["steps"] == 40  # as asked for


def test_a_run_that_ends_by_patience_keeps_its_last_state_and_loss(tmp_path: Path) -> None:
    ended = distill(Undecided(), method("dm", validate_every=2, steps=400, patience=4), ipc=2, out=tmp_path)
    assert (ended.steps, ended.taken) == (2, 10)
    assert json.loads((tmp_path / "history.json").read_text())["step"][-1] == 10
    assert sorted((tmp_path / "checkpoints").glob("step-*"))[-1].stem == "step-00000010"


def test_what_burst_is_not_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunState, "stored_finite", lambda run: torch.tensor(run.step < 4))
    task = Validated()
    with pytest.raises(NonFiniteError, match="what is learned became NaN or infinite at or before step 4"):
        distill(task, method("dm", validate_every=2), ipc=2)
    assert task.calls == 1


@pytest.mark.parametrize("kind", get_args(LabelKind))
@pytest.mark.parametrize("objective", [DistributionMatching, DiscriminativeMatching, GradientMatching])
def test_labels_are_learned_where_the_objective_reads_them_alone(kind: LabelKind, objective: type[Objective]) -> None:
    task = BlobTask()
    distiller = Distiller(task, replace(method("dm").labelled(kind), objective=objective), 2)
    if kind == "unrestricted" and objective is GradientMatching:
        with pytest.raises(ConfigError, match="needs labels that are distributions"):
            distiller.start()
    elif kind in ("hard", "teacher") or objective is GradientMatching:
        run = distiller.start()
        before = run.parameterization.labels().clone()
        for _ in range(2):
            run, _ = distiller.step(run)
        # A teacher labels each step's samples for objectives that read labels, and always those of the finished set.
        stay = kind == "hard" or not objective.reads_labels
        assert torch.equal(run.parameterization.labels(), before) == stay
        assert torch.equal(distiller.result(run, "dm", 0.0).batch.targets, before) == (kind == "hard")  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigError, match=f"{objective.__name__} never reads labels"):
            distiller.start()


def test_a_misspelt_setting_and_one_of_an_optimizer_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'step'; did you mean 'steps'"):
        method("dm", step=3)
    with pytest.raises(
        ConfigError, match=r"'lr'; it is an optimizer's: optimizers={'codes': OptimizerSpec\('sgd', lr="
    ):
        method("dm", lr=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "steps is a whole number of at least 0, got 'many'"),
        ({"steps": -1}, "steps is a whole number of at least 0, got -1"),
        ({"steps": 1.5}, "steps is a whole number"),
        ({"steps": True}, "steps is a whole number"),
        ({"real_batch": 0}, "real_batch is a whole number of at least 1, got 0"),
        ({"outer_steps": 0}, "outer_steps is"),
        ({"patience": -1}, "patience is"),
        ({"inner_momentum": 2.0}, "inner_momentum is at least 0 and below 1, got 2"),
        ({"inner_lr": float("nan")}, "inner_lr is a number of at least 0, got nan"),
        ({"clip": -1.0}, "clip is"),
        ({"augment": "no"}, "augment is true or false, got 'no'"),
        ({"init": "realz"}, "is real or noise or .*, got 'realz'; did you mean 'real'"),
        ({1: 2}, "settings are called by their names, got 1"),
        ({"optimizers": 3}, "optimizers are a mapping from groups to OptimizerSpecs, got 3"),
        ({"optimizers": {"codes": {"lr": 1.0}}}, "the optimizer of 'codes' is an OptimizerSpec, got dict"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(BlobTask(), CORE_METHODS["dm"], ipc=1, settings=changes)


def test_calls_that_cannot_be_are_refused(tmp_path: Path) -> None:
    task, dm = BlobTask(), method("dm")
    (tmp_path / "file").touch()
    for options, message in (
        ({"ipc": 2**70}, "is between 1 and 1,000,000,000"),
        ({"budget": 1, "ipc": 2}, "the budget was given twice: 1, and ipc"),
        ({"ipc": 1, "seed": 1.5}, "seed is a whole number, got 1.5"),
        ({"ipc": 1, "settings": [("steps", 2)]}, "settings are a mapping from names to values, got list"),
        ({"ipc": 1, "parameterization": 2}, "a parameterization is a name or a Storage, got int"),
        ({"ipc": 1, "checkpoint_every": 1.5}, "checkpoint_every is a number of steps"),
        ({"ipc": 1, "progress": 3}, r"progress is called with \(steps done, steps in all, loss\), got int"),
        ({"ipc": 1, "out": ""}, "out is a folder, got ''"),
        ({"ipc": 1, "out": tmp_path / "file"}, "is a file, and a run needs a folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill(task, dm, **options)  # type: ignore[arg-type]


def test_a_set_names_its_seed_plainly(tmp_path: Path) -> None:
    made = distill(BlobTask(), method("dm", steps=1), ipc=1, seed=np.int64(3), out=tmp_path)  # type: ignore[arg-type]
    assert type(made.seed) is int
    assert DistilledSet.load(tmp_path).seed == 3


def test_labels_and_the_samples_rate_are_chosen_as_on_the_command_line() -> None:
    task = BlobTask()
    made = distill(task, method("dc", steps=2), ipc=1, label="soft", settings={"lr": 0.5})
    assert made.label == "soft"
    expected = distill(task, method("dc", steps=2).labelled("soft").with_rate(0.5), ipc=1)
    assert torch.equal(samples(made), samples(expected))
    assert not torch.equal(samples(made), samples(distill(task, method("dc", steps=2), ipc=1, label="soft")))
    with pytest.raises(ConfigError, match="unknown kind of labels 'sofd'; did you mean 'soft'"):
        distill(task, method("dc"), ipc=1, label="sofd")
    with pytest.raises(ConfigError, match="unknown kind of labels 'softmax'"):
        replace(method("dc"), label="softmax")
    with pytest.raises(ConfigError, match="lr is a number of at least 0, got 'fast'"):
        distill(task, method("dc"), ipc=1, settings={"lr": "fast"})


@pytest.mark.parametrize("settings", [{"steps": 3}, {"lr": 0.1}])
def test_a_closed_form_takes_no_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"closed form and takes no steps, so --{next(iter(settings))} would do"):
        distill(image_task("digits", width=4), "random-soft", ipc=1, settings=settings)


def test_a_set_says_how_it_was_made(tmp_path: Path) -> None:
    made = distill(BlobTask(), method("dc", steps=1).labelled("soft"), ipc=1, out=tmp_path)
    assert (made.parameterization, made.network, made.label) == ("raw", "139 parameters", "soft")
    task = image_task("digits", width=8)
    stored = distill(task, "dm", ipc=1, parameterization="upsample-2", settings={"steps": 1, "real_batch": 2})
    assert (stored.parameterization, stored.label) == ("upsample-2", "hard")
    assert stored.network.startswith("convnet, ")
    whole = json.loads((tmp_path / "distilled.json").read_text())
    earlier = {name: value for name, value in whole.items() if name not in ("parameterization", "network", "label")}
    (tmp_path / "distilled.json").write_text(json.dumps(earlier))
    assert DistilledSet.load(tmp_path).network == ""
    facts = dict(fact_rows(made))
    assert (facts["network"], facts["stored as"], facts["labels"]) == ("139 parameters", "raw", "soft")
    assert "network" not in dict(fact_rows(DistilledSet.load(tmp_path)))
    stored.save(tmp_path / "stored")
    facts = dict(fact_rows(DistilledSet.load(tmp_path / "stored")))
    assert facts["settings"] == "codes adam lr 0.01, real batch 2, init real, augment"


def test_a_schedule_is_chosen_by_name() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="unknown schedule 'short'"):
        distill(task, "dm", ipc=1, schedule="short")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a schedule goes with a method's name"):
        distill(task, method("dc"), ipc=1, schedule="reduced")
    matrix = np.kron(np.eye(3), np.ones((6, 4)))  # three tastes
    settings = {"steps": 1, "real_batch": 4}
    made = distill(recsys_task(matrix), "distill-cf", users=3, schedule="reduced", settings=settings)
    reduced = get_method(get_domain("recsys"), "distill-cf", "", "reduced").settings(3)
    assert made.settings["validate_every"] == reduced.validate_every


def test_rates_below_0_are_refused() -> None:
    with pytest.raises(ConfigError, match="lr is a number of at least 0, got -1"):
        OptimizerSpec("sgd", -1.0)


def test_arguments_of_another_kind_are_named() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="a task is expected, got str; make one with image_task"):
        distill("digits", "dm", ipc=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ipc is a whole number, got '1'"):
        distill(task, method("dm"), ipc="1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ipc is a whole number, got 1\.5"):
        distill(task, method("dm"), ipc=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a method is a name or a Method, got NoneType"):
        distill(task, None, ipc=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown precision 'fp16'"):
        distill(task, method("dm"), ipc=1, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown compile 'yes'"):
        distill(task, method("dm"), ipc=1, compile="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="checkpoint_every"):
        distill(task, method("dm"), ipc=1, checkpoint_every=-1)


class Recorded(BlobTask):
    """Notes with which key batches are augmented, and whether siamese."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, bool]] = []

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        self.calls.append((draws.path, shared))
        return super().augment(draws, batch, shared=shared)


def test_both_batches_of_a_step_are_augmented_alike() -> None:
    task = Recorded()
    distill(task, method("dm", steps=1), ipc=1)
    first, second = task.calls
    assert first == second
    assert first[1]


def test_groups_rest_outside_their_active_steps() -> None:
    task = BlobTask()
    resting = method("dm", optimizers={"codes": OptimizerSpec("sgd", 1.0, active=(5, 6, 100))}, steps=5)
    start = distill(task, method("dm", steps=0), ipc=2)
    assert torch.equal(samples(distill(task, resting, ipc=2)), samples(start))
    moved = resting.with_settings(steps=6)
    assert not torch.equal(samples(distill(task, moved, ipc=2)), samples(start))


def test_clipping_scales_the_gradients_of_all_groups_together() -> None:
    task, rate = BlobTask(), 0.5
    groups = {"codes": OptimizerSpec("sgd", rate), "labels": OptimizerSpec("sgd", rate)}
    learned = replace(method("dc", optimizers=groups, steps=1), label="soft")

    def moved(clip: float) -> Tensor:
        distiller = Distiller(task, learned.with_settings(clip=clip), 2)
        run = distiller.start()
        before = torch.cat([tensor.detach().flatten() for tensor in run.parameterization.parameters()])
        distiller.step(run)
        return before - torch.cat([tensor.detach().flatten() for tensor in run.parameterization.parameters()])

    free = moved(0.0)
    norm = float(free.norm()) / rate
    assert torch.equal(moved(2 * norm), free)
    # A tenth of the norm: every group keeps its direction and its share.
    assert torch.allclose(moved(0.1 * norm), 0.1 * free, rtol=1e-3, atol=1e-7)
    with pytest.raises(ConfigError, match="clip"):
        Distiller(task, learned.with_settings(clip=-1.0), 2)


def test_impossible_compositions_fail_when_built() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match="learns the group 'codes'"):
        distill(task, method("dm", optimizers={}), ipc=2)
    with pytest.raises(ConfigError, match="LD would learn nothing; use labels that are learned"):
        distill(task, get_method(get_domain("image"), "ld").labelled("hard"), ipc=2)
    with pytest.raises(ConfigError, match="unknown setting 'stepz'"):
        distill(task, CORE_METHODS["dm"], ipc=2, settings={"stepz": 3})
    with pytest.raises(ConfigError, match=r"take their budget as ipc=N or bytes=SIZE .*, got nodes=3"):
        distill(task, method("dm"), nodes=3)
    with pytest.raises(ConfigError, match="got no budget"):
        find_budget(task, method("dm"))


def test_bytes_hold_more_noise_than_there_are_real_samples() -> None:
    task = BlobTask(per_class=5)
    for init, ipc in (("noise", 8), ("real", 5)):
        assert find_budget(task, method("dc", init=init), bytes=8 * 3 * (4 * 4 + 1))[1] == ipc


def test_the_seed_is_all_that_matters() -> None:
    task = BlobTask()
    one, same, other = (distill(task, method("dm"), ipc=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(samples(one), samples(same))
    assert not torch.equal(samples(one), samples(other))


def test_the_last_step_trains_no_network_in_vain() -> None:
    # outer_steps networks are trained between updates only: published loops skip the training after the last
    task = BlobTask()
    called: list[int] = []
    original = task.loss

    def counting(*args: object, **options: object) -> Tensor:
        called.append(1)
        return original(*args, **options)  # type: ignore[arg-type]

    task.loss = counting  # type: ignore[method-assign]
    distill(task, method("dc", steps=4, outer_steps=2, inner_steps=5), ipc=1)
    assert len(called) == 4 * 2 + 2 * 5


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


def stored_otherwise(*arguments: Any) -> Parameterization:
    task, budget, settings, label, draws = arguments
    return raw_samples(task, budget, settings.init, label, draws)


@pytest.mark.parametrize("change", [{"parameterization": Storage(stored_otherwise, "otherwise")}, {"label": "soft"}])
def test_a_run_goes_on_with_its_own_storage_and_labels_alone(change: dict[str, Any], tmp_path: Path) -> None:
    distill(BlobTask(), method(), ipc=2, out=tmp_path)
    (name,) = change
    with pytest.raises(CheckpointError, match=f"belongs to another run: its {name} is "):
        distill(BlobTask(), method(), ipc=2, out=tmp_path, resume=True, **change)


def test_a_method_that_learns_labels_alone_keeps_its_samples() -> None:
    for storage in ("upsample-2", "canvas", "raw"):
        with pytest.raises(ConfigError, match="LD learns its samples' labels alone and leaves the samples as they are"):
            distill(image_task("digits", width=4), "ld", ipc=3, parameterization=storage, settings={"steps": 1})


def test_an_unknown_view_is_refused() -> None:
    class Sideways(DistributionMatching):
        view = "class"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"the view of Sideways.*'class'"):
        distill(BlobTask(), replace(method("dm"), objective=Sideways), ipc=1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"objective": DistributionMatching()}, "takes what makes one .*, not a DistributionMatching"),
        ({"objective": lambda: None}, "of type NoneType, where a method needs Objective"),
        (
            {"network": lambda settings: None},
            "schedule of .* is of type NoneType, where a method needs NetworkSchedule",
        ),
        ({"parameterization": lambda *given: None}, "of type NoneType, where a method needs Parameterization"),
    ],
)
def test_parts_that_make_something_else_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(BlobTask(), replace(method("dm"), **parts), ipc=1)


def test_settings_that_a_users_parts_read_are_not_called_idle() -> None:
    class Both(DistributionMatching):
        needs_target = True  # beside the real batch

    assert replace(CORE_METHODS["mtt"], objective=Both).unread(1, ["real_batch"]) == []
    assert CORE_METHODS["mtt"].unread(1, ["real_batch"]) == ["real_batch"]

    def taught(settings: Settings) -> NetworkSchedule:
        return FreshNetworks() if settings.teacher_epochs else UnreadNetwork()

    assert replace(CORE_METHODS["dm"], network=taught).unread(1, ["teacher_epochs"]) == []
    assert CORE_METHODS["dm"].unread(1, ["teacher_epochs"]) == ["teacher_epochs"]


def test_a_set_that_no_step_has_looked_at_is_finite(tmp_path: Path) -> None:
    spoiled = Method(
        "Spoiled", None, CORE_METHODS["dm"].network, lambda ipc: Settings(0),
        solve=lambda task, budget, settings, draws: Raw(
            torch.full((3, 8), float("nan")), FixedLabels(torch.arange(3)), torch.arange(3), 3
        ),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"holds NaN or infinite values \(inputs\): the data"):
        distill(BlobTask(), spoiled, ipc=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "distilled.json").exists()


@pytest.mark.parametrize("name", ["lr", "inner_lr"])
def test_rates_that_no_float_holds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is too large, got 1e"):
        distill(BlobTask(), "dd", ipc=1, settings={name: 1e39})


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
