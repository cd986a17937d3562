"""Runs that are asked to stop: whose handler is called, and when."""

import faulthandler
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import DataError
from mmdistill.progress import StepProgress
from mmdistill.runs import loop
from mmdistill.runs.signals import ENDING
from mmdistill.runs.state import RunState
from tests.runs.blobs import method, samples
from tests.toys import BlobTask


def test_it_is_told_once_how_long_a_long_run_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "ESTIMATE_AFTER_SECONDS", 0.0)
    task = BlobTask()
    distill(task, method("dm"), 1)
    assert "at this rate" not in caplog.text
    monkeypatch.setattr(loop, "WARN_FROM_SECONDS", 0.0)
    distill(task, method("dm"), 1)
    assert caplog.text.count("at this rate the 12 steps take another 0 hours") == 1


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
def handled_by(
    handler: Callable[[int, object], None] | signal.Handlers, number: signal.Signals = signal.SIGTERM
) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_is_gone_stops_a_run_after_its_step_however_often_it_is_told(tmp_path: Path) -> None:
    def often(done: int, total: int, loss: float) -> None:
        if done == 3:
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):  # as the system and the shell do
                signal.raise_signal(number)

    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, checkpoint_every=1000, progress=often)
    assert checkpointed(tmp_path) == {"step-00000004.safetensors"}
    assert signal.getsignal(signal.SIGHUP) == before
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, resume=True)
    assert torch.equal(samples(resumed), samples(distill(BlobTask(), method("dm"), ipc=1)))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_a_warning_of_the_end_of_a_jobs_time_stops_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    def warned(done: int, total: int, loss: float) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGUSR1)

    with handled_by(signal.SIG_DFL, signal.SIGUSR1):
        with pytest.raises(KeyboardInterrupt):
            distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, checkpoint_every=1000, progress=warned)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert checkpointed(tmp_path) == {"step-00000004.safetensors"}
    resumed = distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, resume=True)
    assert torch.equal(samples(resumed), samples(distill(BlobTask(), method("dm"), ipc=1)))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_a_programs_own_handler_of_a_warning_is_called_at_once(tmp_path: Path) -> None:
    steps: list[int] = []

    def warned(done: int, total: int, loss: float) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGUSR1)
            assert len(steps) == 1

    with handled_by(lambda *_: steps.append(1), signal.SIGUSR1):
        distill(BlobTask(), method("dm"), ipc=1, out=tmp_path, checkpoint_every=1000, progress=warned)
    assert len(steps) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells of handlers in C")
def test_a_handler_in_c_of_a_warning_stays(tmp_path: Path) -> None:
    def warned(done: int, total: int, loss: float) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGUSR1)

    with handled_by(signal.SIG_DFL, signal.SIGUSR1), (tmp_path / "dump").open("w+") as dump:
        faulthandler.register(signal.SIGUSR1, dump, all_threads=False)
        try:
            assert distill(BlobTask(), method("dm"), ipc=1, progress=warned).steps == 12
            signal.raise_signal(signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
        dump.seek(0)
        assert dump.read().count("most recent call first") == 2


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


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_is_ignored_stays_so(number: signal.Signals) -> None:
    """As SIGHUP is under nohup."""

    def ignored(done: int, total: int, loss: float) -> None:
        signal.raise_signal(number)

    with handled_by(signal.SIG_IGN, number):
        assert samples(distill(BlobTask(), method("dm"), ipc=1, progress=ignored)).isfinite().all()
        assert signal.getsignal(number) is signal.SIG_IGN


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
