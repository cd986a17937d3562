"""Ctrl-C, SIGTERM and killed processes: what is kept, and how to go on."""

import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch

from mmdistill.cli import main
from mmdistill.commands import finished, making
from mmdistill.config import DistillConfig
from mmdistill.distiller import Distiller
from mmdistill.errors import note_kept
from mmdistill.runs.signals import ENDING
from mmdistill.runtime import atomic_write
from tests.commands.digits import FAST, distil


def test_an_interruption_says_what_was_kept_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
        stop = KeyboardInterrupt()
        stop.add_note("finished experts are kept")
        raise stop

    monkeypatch.setattr(making, "distill_command", interrupted)
    assert distil(tmp_path / "run") == 130
    assert capsys.readouterr().err == "mmdistill: stopped; finished experts are kept\n"


def test_what_an_interruption_leaves_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
        stop = KeyboardInterrupt()
        note_kept(stop, "finished experts are kept")
        raise stop

    monkeypatch.setattr(making, "distill_command", interrupted)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    assert distil(tmp_path / "run") == 130
    assert capsys.readouterr().err == "mmdistill: stopped; finished experts are kept\n"
    note_kept(KeyboardInterrupt(), "as in Python")
    assert capsys.readouterr().err == "as in Python\n"


@pytest.mark.parametrize("replaced", [True, False])
def test_an_interruption_before_the_former_run_is_replaced_does_not_offer_to_resume_it(
    replaced: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(run, folder)
    interrupted = Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patched:  # in the first step, or when the set that it led to is judged
        patched.setattr(Distiller, "step", Distiller.step if replaced else interrupted)
        patched.setattr(making, "judge_missing", interrupted)
        assert distil(folder, "--overwrite", "--lr", "3") == 130
    printed = capsys.readouterr().err
    assert ("continue with" in printed) == replaced
    assert (f"the former run in {folder} is untouched" in printed) != replaced
    assert ("nothing of the new run is finished yet" in printed) != replaced


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_as_an_interruption_does(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(**options: object) -> None:
        with atomic_write(tmp_path / "made" / "file"):
            os.kill(os.getpid(), number)
            time.sleep(10)

    before = signal.getsignal(number)
    monkeypatch.setattr(finished, "export_command", terminated)
    assert main(["export", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "mmdistill: stopped; finished work is kept\n"
    assert not any((tmp_path / "made").iterdir())
    assert signal.getsignal(number) == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_is_gone_interrupts_a_command_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def hung_up(**options: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            ended.append("with a checkpoint")

    monkeypatch.setattr(finished, "export_command", hung_up)
    assert main(["export", "run"]) == 130
    assert ended


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_is_ignored_or_handled_stays_so(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    monkeypatch.setattr("mmdistill.commands.listings.data_command", lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, handler)
    try:
        assert main(["data"]) == 0
        signal.signal(number, signal.SIG_IGN)
        assert main(["data"]) == 0
    finally:
        signal.signal(number, before)
    assert heard == [number]


@pytest.mark.parametrize("kept", [True, False])
def test_an_interruption_says_how_to_go_on(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my run"

    def interrupted(config: DistillConfig, resume: str | None, dry_run: bool) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        if kept:
            (folder / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "distill_command", interrupted)
    assert distil(folder) == 130
    printed = capsys.readouterr().err
    assert (f"mmdistill distill --resume '{folder}'" in printed) == kept
    assert ("nothing is finished yet" in printed) != kept


def test_an_interruption_before_the_first_step_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "distill", interrupted)
    for options in ([], ["--lr", "3"]):
        assert distil(tmp_path / "run", *options) == 130
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert DistillConfig.load(tmp_path / "run" / "config.yaml").lr == 3


def start(folder: Path, *extra: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mmdistill", "distill", "--data", "digits", "--method", "DM", "--ipc", "1"]
    options = [*FAST, "--steps", "400", "--checkpoint_every", "5", "--baselines", "none", "--out", str(folder), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_a_stopped_run_resumes_bit_identical(tmp_path: Path, number: int) -> None:
    whole = start(tmp_path / "whole")
    stopped = start(tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    deadline = time.time() + 120
    while not list(checkpoints.glob("step-*")) and time.time() < deadline:
        time.sleep(0.1)
    stopped.send_signal(number)
    _, printed = stopped.communicate(timeout=60)
    if number == signal.SIGINT:
        assert stopped.returncode == 130
        assert f"continue with: mmdistill distill --resume {tmp_path / 'stopped'}" in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "stopped" / "distilled.json").exists()
    assert main(["distill", "--resume", str(tmp_path / "stopped")]) == 0
    whole.communicate(timeout=300)
    one, two = (safetensors.torch.load_file(tmp_path / n / "distilled.safetensors") for n in ("whole", "stopped"))
    assert torch.equal(one["inputs"], two["inputs"])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_run_whose_terminal_is_closed_keeps_a_checkpoint(tmp_path: Path) -> None:
    import pty

    terminal, own = pty.openpty()
    child = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY); os.execv(sys.executable, sys.argv[1:])"
    what = ["distill", "--data", "digits", "--method", "dm", "--ipc", "1", *FAST, "--steps", "100000"]
    options = ["--checkpoint_every", "90000", "--baselines", "none", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", child, sys.executable, "-m", "mmdistill", *what, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdin=own, stdout=own, stderr=own, start_new_session=True)
    os.close(own)
    printed = b""
    while b"step" not in printed:
        printed += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(timeout=60) == 130
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_of_a_run_whose_reader_it_ends_too(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--steps", "100000", "--checkpoint_every", "90000")
    assert process.stderr is not None
    while "step" not in process.stderr.readline():
        pass
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def test_an_interruption_before_there_is_a_command_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("mmdistill.cli"), "main", interrupted)
    assert importlib.import_module("mmdistill.__main__").run() == 130
    assert capsys.readouterr().err == "mmdistill: stopped\n"
