"""Several methods, budgets and seeds in one command: what runs, in which order, and what is left when it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mmdistill.cli import build_parser, main
from mmdistill.commands import sweep
from mmdistill.commands.finished import compare_command
from mmdistill.commands.making import distill_command
from mmdistill.commands.processes import follow_starter, own_program, start, stop
from mmdistill.commands.sweep import plan_runs
from mmdistill.config import DistillConfig, SweepConfig
from mmdistill.distilled import DistilledSet
from mmdistill.files.locks import sole_writer
from mmdistill.image import METHODS
from mmdistill.image.models import FAMILIES, MLP, Family
from mmdistill.methods import CORE_METHODS
from mmdistill.rules import RULES
from mmdistill.runs.signals import ENDING
from mmdistill.settings import Settings

FAST = ["--steps", "6", "--width", "8", "--networks", "1", "--judge-epochs", "2", "--real-batch", "8"]
FAST += ["--baselines", "none"]
CHILD = """
import json, os, pathlib, shutil, signal, sys, time
made, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3].partition("=")[2])
assert sys.argv[2] == "distill"
options = (folder / "config.yaml").read_text()
def value(name):
    return next(line.partition(": ")[2] for line in options.splitlines() if line.startswith(name + ":"))
def stopped(*_):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000001.safetensors").write_bytes(b"")
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped)
with (folder.parent / "calls").open("a") as calls:
    print(folder.name, value("device"), (folder / "checkpoints").exists(), file=calls)
BODY
for path in made.glob("*.json"):
    shutil.copy(path, folder)
shutil.copy(made / "distilled.safetensors", folder)
own = json.loads((folder / "distilled.json").read_text())
(folder / "distilled.json").write_text(json.dumps({**own, "seed": int(value("seed"))}))
"""
"""A process in place of a distillation's: it does BODY, and leaves what a finished run leaves."""

Fake = Callable[[str], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    options = ["--ipc", "1", "--out", str(folder), *FAST, "--judge-epochs", "1"]
    assert main(["distill", "--data", "digits", "--method", "dm", *options]) == 0
    return folder


@pytest.fixture
def fake(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Let sweeps start a process that does what is given in place of distilling, and compare nothing."""
    monkeypatch.setattr(sweep, "compare_command", lambda runs, *how: print("compared", *runs))

    def install(body: str) -> None:
        script = tmp_path / "child.py"
        script.write_text(CHILD.replace("BODY", body))
        monkeypatch.setattr(sweep, "own_program", lambda: [sys.executable, str(script), str(made)])
        monkeypatch.setattr(sweep, "PAUSE", 0.01)

    return install


def swept(folder: Path, *extra: str) -> int:
    return main(["sweep", "--data", "digits", "--methods", "dm", "--out", str(folder), *FAST, *extra])


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_whole_tables_come_seed_by_seed() -> None:
    asked = SweepConfig(methods="DM, dc,dm", ipc="1,10", seeds="0,3", out="place")
    configs = plan_runs(asked, DistillConfig(data="digits", steps=5))
    assert [(config.method, config.ipc, config.seed, config.steps) for config in configs] == [
        (method, ipc, seed, 5) for seed in (0, 3) for ipc in (1, 10) for method in ("dm", "dc")
    ]
    assert [config.out for config in configs][3:5] == ["place/digits-dc-10", "place/digits-dm-1-seed3"]
    both = plan_runs(
        SweepConfig(methods="dm", ipc="1", seeds="0,1", out="x"), DistillConfig(data="digits", split_seed=7)
    )
    assert [(config.seed, config.split_seed) for config in both] == [(0, 7), (1, 7)]
    (config,) = plan_runs(SweepConfig(methods="dm", ipc="1", out="place"), DistillConfig(data="Digits"))
    assert (config.data, config.out) == ("digits", "place/digits-dm-1")
    (config,) = plan_runs(
        SweepConfig(methods="dm", bytes="10KB", out="place"),
        DistillConfig(data="digits", parameterization="upsample-2"),
    )
    assert (config.out, config.bytes) == ("place/digits-dm-upsample-2-10KB", "10KB")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--methods", "dm,dmm"], "did you mean 'dm'?"),
        (["--methods", ","], "--methods is needed"),
        (["--data", "digitz"], "unknown data set 'digitz'; did you mean 'digits'?"),
        (["--ipc", "1,0"], "the budget (--ipc) is between 1 and"),
        (["--ipc", "1,many"], "--ipc takes whole numbers, comma-separated, got '1,many'"),
        (["--bytes", "10KB"], "a sweep takes one of --ipc, --nodes, --users, --bytes, got ipc and bytes"),
        (["--seeds", ""], "--seeds takes whole numbers"),
        (["--devices", "cpu,mps"], "use cpu or cuda"),
        (["--judges", "convent"], "did you mean 'convnet'?"),
        (["--baselines", "rnadom"], "did you mean 'random'?"),
        (["--parameterization", "upsampel-2"], "unknown parameterization"),
        (["--encoder", "tfidf"], "--encoder is for text data"),
        (["--set", "inner_part=2"], "has no setting 'inner_part' for --set; did you mean 'inner_parts'?"),
        (["--set", "inner_parts=many"], "inner_parts"),
        (["--methods", "dm,random-soft"], "--steps, --real-batch would do nothing; all runs of a sweep have the same"),
    ],
)
def test_what_is_wrong_for_every_run_is_said_before_any_starts(
    changed: list[str], message: str, tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("")
    assert swept(tmp_path / "out", "--ipc", "1", *changed) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_set_of_some_methods_alone_is_refused_before_any_runs(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Powered(Settings):
        power: float = 2.0

    fake("")
    monkeypatch.setitem(METHODS, "own", replace(CORE_METHODS["dm"], settings=lambda ipc: Powered(steps=1)))
    asked = ["--methods", "dm,own,dc", "--ipc", "1", "--set", "power=3"]
    for dry in ([], ["--dry-run"]):
        assert swept(tmp_path / "out", *asked, *dry) == 2
        message = capsys.readouterr().err
        assert "DM has no setting 'power' for --set" in message
        assert "sweep dm, dc apart, perhaps into the same --out" in message
    assert swept(tmp_path / "out", *asked, "--methods", "own", "--dry-run") == 0


def test_budgets_are_in_the_datas_own_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swept(tmp_path / "out", "--nodes", "7") == 2
    assert "image data take their budget as ipc=N" in capsys.readouterr().err
    assert swept(tmp_path / "out", "--bytes", "10KB,lots") == 2
    assert "such as 100KB; got 'lots'" in capsys.readouterr().err
    assert swept(tmp_path / "out") == 2
    assert "got none" in capsys.readouterr().err


def test_torchrun_starts_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert swept(tmp_path / "out", "--ipc", "1") == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_runs_are_made_once_and_compared(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1,2", "--dry-run") == 0
    assert not out.exists()
    assert swept(out, "--ipc", "1") == 0
    capsys.readouterr()
    assert swept(out, "--ipc", "1", "--seeds", "0,1", "--devices", "cpu", "--dry-run") == 0
    assert capsys.readouterr().out.split() == [
        *(str(out / "digits-dm-1"), "finished", str(out / "digits-dm-1-seed1"), "new"),
    ]
    monkeypatch.setattr(sweep, "compare_command", compare_command)
    assert swept(out, "--ipc", "1", "--seeds", "0,1", "--devices", "cpu") == 0
    said = capsys.readouterr().out
    assert calls(out) == ["digits-dm-1 auto False", "digits-dm-1-seed1 cpu False"]
    assert said.startswith(f"runs in {out}: 1 finished, 1 new\n2 of 2: dm ipc 1 seed 1 ... ")
    assert re.search(r" by \S+ in \d+ s\ndata    method  budget", said)
    names = {path.name for path in (out / "comparison").iterdir()}
    assert names == {"comparison.html", "comparison.csv", "comparison.tex", "digits-budgets.png"}
    fake("sys.exit('called again')")
    assert swept(out, "--ipc", "1", "--seeds", "0,1") == 0


def test_a_finished_run_that_lacks_scores_is_judged(tmp_path: Path, fake: Fake) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    (out / "digits-dm-1" / "metrics.json").unlink()
    assert swept(out, "--ipc", "1") == 0
    assert len(calls(out)) == 2


def test_a_run_that_was_judged_on_other_test_data_is_judged_again(tmp_path: Path, fake: Fake) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    path = out / "digits-dm-1" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tested_on": "others"}))
    assert swept(out, "--ipc", "1") == 0
    assert len(calls(out)) == 2


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_finished_run_of_other_training_data_is_refused_before_any_starts(
    option: tuple[str, ...], tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    document = out / "digits-dm-1" / "distilled.json"
    content = json.loads(document.read_text())
    content["info"]["fingerprint"] = "of former data"
    document.write_text(json.dumps(content))
    assert swept(out, "--ipc", "2,1", *option) == 2
    said = capsys.readouterr().err
    assert f"{out}/digits-dm-1 is finished, and this set was distilled from 'digits' as it was with" in said
    assert "bring the data back as they were" in said
    assert "or sweep into another --out" in said
    assert not (out / "digits-dm-2").exists()


def test_the_seeds_of_a_sweep_may_hold_out_other_samples_of_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(last: float) -> None:
        images = np.random.default_rng(0).random((40, 1, 4, 4)).astype(np.float32)
        images[::4] *= last  # in every split
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2)

    def sweep_own(*extra: str) -> int:
        places = ["--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "out")]
        return main(["sweep", *places, "--methods", "dm", "--ipc", "1", "--model", "mlp", *FAST, *extra])

    def in_this_process(configs: list[DistillConfig], devices: list[str], total: int) -> list[DistillConfig]:
        for config in configs:
            distill_command(config, None, False)
        return []

    save(0.5)
    monkeypatch.setattr(sweep, "run_all", in_this_process)
    monkeypatch.setattr(sweep, "compare_command", lambda *how: None)
    assert sweep_own("--seeds", "0,1") == 0
    capsys.readouterr()
    assert sweep_own("--seeds", "0,1", "--dry-run") == 0
    assert capsys.readouterr().out.split()[1::2] == ["finished", "finished"]
    assert sweep_own("--seeds", "2,1", "--dry-run") == 0  # the task of the first run is of another split
    assert capsys.readouterr().out.split()[1::2] == ["new", "finished"]
    save(0.25)
    assert sweep_own("--seeds", "2,1") == 2
    assert "own-dm-1-seed1 is finished, and this set was distilled from" in capsys.readouterr().err


def test_a_run_on_its_way_further_is_unfinished(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    assert swept(out, "--ipc", "1", "--steps", "9") == 2  # which is for its run to do
    assert f"distill --resume {out}/digits-dm-1 --steps N takes a run further" in capsys.readouterr().err
    assert swept(out, "--ipc", "1", "--steps", "3") == 2  # of which there is nothing to take further
    assert "takes a run further" not in capsys.readouterr().err
    options = out / "digits-dm-1" / "config.yaml"
    options.write_text(options.read_text().replace("steps: 6", "steps: 9"))
    assert swept(out, "--ipc", "1", "--steps", "9") == 0
    assert "1 unfinished" in capsys.readouterr().out
    assert len(calls(out)) == 2


def test_other_judging_is_that_of_evaluate(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    assert swept(out, "--ipc", "1", "--networks", "3", "--judge-epochs", "4") == 2
    again = f"mmdistill evaluate {out}/digits-dm-1 --networks 3 --judge-epochs 4 judges its set so"
    assert again in capsys.readouterr().err
    (tmp_path / "digits.npz").touch()
    assert swept(out, "--ipc", "1", "--data", str(tmp_path / "digits.npz")) == 2
    assert (said := capsys.readouterr().err).strip().endswith("digits.npz; choose another --out or remove it")
    assert "of data digits in place of" in said


def test_a_run_folder_is_no_sweeps_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert swept(made, "--ipc", "2") == 2
    assert f"{made} holds a run of its own" in capsys.readouterr().err


def test_other_options_are_refused_by_name_unless_they_only_say_how_it_runs(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    assert swept(out, "--ipc", "2,1", "--lr", "3", "--networks", "2") == 2
    message = f"{out}/digits-dm-1 holds another run, of lr by default in place of 3.0, networks 1 in place of 2; "
    assert message in capsys.readouterr().err
    assert not (out / "digits-dm-2").exists()
    assert swept(out, "--ipc", "1", "--compile", "off", "--classes-at-once", "3", "--checkpoint-every", "2") == 0
    assert len(calls(out)) == 1
    (out / "digits-dm-2").write_text("")
    assert swept(out, "--ipc", "1,2") == 2
    assert f"{out}/digits-dm-2 is a file" in capsys.readouterr().err


def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(
        "seed = value('seed')\n"
        "if seed == '1': sys.exit('mmdistill: error: no room; try less')\n"
        "if seed == '2': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if seed == '3': (folder / 'distilled.json').write_text('{}'); sys.exit()\n"
    )
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1", "--seeds", "1,2,3,4") == 2
    said = capsys.readouterr()
    assert "1 of 4: dm ipc 1 seed 1 ... failed: no room; try less\n" in said.out
    assert "2 of 4: dm ipc 1 seed 2 ... failed: killed by SIGKILL\n" in said.out
    assert f"3 of 4: dm ipc 1 seed 3 ... failed: {out}/digits-dm-1-seed3/metrics.json is missing\n" in said.out
    assert said.out.endswith(f" s\ncompared {out}\n")
    names = "digits-dm-1-seed1, digits-dm-1-seed2, digits-dm-1-seed3"
    assert said.err == f"mmdistill: error: 3 of 4 runs failed (log.txt in their folders says how): {names}\n"


def test_where_all_fail_there_is_no_table(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake("sys.exit(3)")
    assert swept(tmp_path / "out", "--ipc", "1") == 2
    said = capsys.readouterr()
    assert said.out.endswith("1 of 1: dm ipc 1 seed 0 ... failed: ended with 3\n")
    assert "1 of 1 runs failed" in said.err


def test_each_device_has_one_run_at_a_time(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """Two go on once both have begun, and the third when one of them has ended."""
    fake(
        "until = time.time() + 30\n"
        "while len((folder.parent / 'calls').read_text().splitlines()) < 2 and time.time() < until: time.sleep(0.01)\n"
        "if value('seed') == '2': assert any(folder.parent.glob('*/metrics.json'))\n"
    )
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1", "--seeds", "0,1,2", "--devices", "cpu,cpu") == 0
    assert sorted(calls(out)) == [f"digits-dm-1{seed} cpu False" for seed in ("", "-seed1", "-seed2")]
    lines = [line for line in capsys.readouterr().out.splitlines() if " of 3: " in line]
    assert all(" seed " in line and line.endswith(" s") for line in lines)
    assert len(lines) == 3


@pytest.mark.parametrize("number", ENDING)
def test_an_interrupted_sweep_stops_its_runs_and_goes_on_when_called_again(
    number: signal.Signals, tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("if not (folder / 'checkpoints').exists(): time.sleep(60)\n")
    out = tmp_path / "out"

    def interrupt() -> None:
        until = time.time() + 30
        written = out / "calls"  # there before anything is in it
        while not (written.exists() and written.stat().st_size) and time.time() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert swept(out, "--ipc", "1", "--seeds", "0,1") == 130
    thread.join()
    said = capsys.readouterr().err
    assert "1 run(s) end their step and keep a checkpoint" in said
    assert said.endswith("mmdistill: stopped; finished work is kept; call it again\n")
    (out / "digits-dm-1-seed1" / "checkpoints").mkdir(parents=True)  # so that it does not wait
    assert swept(out, "--ipc", "1", "--seeds", "0,1") == 0
    assert f"runs in {out}: 1 unfinished, 1 new" in capsys.readouterr().out
    assert calls(out) == ["digits-dm-1 auto False", "digits-dm-1 auto True", "digits-dm-1-seed1 auto True"]


STARTER = """
import sys, time
from mmdistill.commands.processes import start
with open(sys.argv[1], "wb") as log:
    for name in "ab":
        start([sys.executable, "-u", "-c", sys.argv[2], name], log)
time.sleep(60)
"""
FOLLOWER = """
import os, signal, sys, time
from mmdistill.commands.processes import follow_starter
def stopped(*_):
    print(f"kept {sys.argv[1]}", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stopped)
follow_starter()
print(f"begun {sys.argv[1]} {sys.stdin.read()!r} {'MMDISTILL_FOLLOWS_STDIN' in os.environ}", flush=True)
time.sleep(60)
"""


def lines_once(log: Path, count: int) -> list[str]:
    """Return a log's lines once it has so many."""
    until = time.time() + 20
    while len(lines := sorted(log.read_text().splitlines()) if log.exists() else []) < count and time.time() < until:
        time.sleep(0.01)
    return lines


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_runs_end_with_a_checkpoint_when_what_started_them_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(log), FOLLOWER])
    begun = ["begun a '' False", "begun b '' False"]
    assert lines_once(log, 2) == begun
    time.sleep(0.1)
    assert lines_once(log, 2) == begun
    starter.kill()
    assert starter.wait() == -signal.SIGKILL
    assert lines_once(log, 4) == [*begun, "kept a", "kept b"]


def test_what_no_sweep_started_follows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMDISTILL_FOLLOWS_STDIN", raising=False)
    threads = threading.active_count()
    follow_starter()
    assert threading.active_count() == threads


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_killed_sweep_leaves_no_run_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmdistill", "sweep", "--data", "digits", "--methods", "dm", "--ipc", "1", *FAST]
    options = ["--steps", "1000000", "--checkpoint-every", "5", "--out", str(tmp_path / "out")]
    killed, until = subprocess.Popen([*command, *options]), time.time() + 300
    while not list(tmp_path.glob("out/*/checkpoints/step-*")) and time.time() < until:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    log = tmp_path / "out" / "digits-dm-1" / "log.txt"
    while "mmdistill: stopped; continue with: " not in log.read_text() and time.time() < until:
        time.sleep(0.05)
    assert "mmdistill: stopped; continue with: " in log.read_text()


def test_runs_that_get_ctrl_c_themselves_as_on_windows_end_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There terminate() would kill them, and the console tells all processes in it of Ctrl-C."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess.Popen, "terminate", subprocess.Popen.kill)
    child = """
import time
try:
    print("begun: \u00e9", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("kept", flush=True)
"""
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        process = start([sys.executable, "-c", child], file)
    while not log.stat().st_size and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stop([process])
    assert log.read_text(encoding="utf-8").split() == ["begun:", "é", "kept"]


@pytest.mark.parametrize(("interrupted", "ended"), [(True, []), (False, ["ended"])])
def test_a_sweep_on_windows_ends_its_runs_itself_unless_ctrl_c_has_reached_them(
    interrupted: bool, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    process = Mock(poll=Mock(return_value=0))
    stop([process], interrupted)
    assert ["ended" for _ in process.terminate.mock_calls] == ended


def test_a_log_is_utf_8_whatever_the_systems_encoding_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    with (tmp_path / "log.txt").open("wb") as file:
        start([sys.executable, "-c", "print('\u00e9')"], file).wait()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").strip() == "é"


def test_runs_that_other_processes_are_at_work_on_are_left_to_them(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("")
    out = tmp_path / "out"
    with sole_writer(out / "digits-dm-1"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(swept, out, "--ipc", "1", "--seeds", "0,1").result() == 0
        said = capsys.readouterr().out
        assert "1 of 2: dm ipc 1 seed 0 ... skipped: another process is at work on it\n2 of 2: " in said
        assert said.endswith(f"compared {out}\n")
        assert not (out / "digits-dm-1" / "config.yaml").exists()
    assert swept(out, "--ipc", "1", "--seeds", "0,1") == 0
    assert calls(out) == ["digits-dm-1-seed1 auto False", "digits-dm-1 auto False"]
    assert not list(out.rglob(".*"))


def test_a_run_of_other_options_that_another_sweep_has_begun_is_no_run_of_this_one(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as jobs of an array that each have a rate of their own, all named like runs of one rate."""
    fake("while not (folder.parent / 'go').exists(): time.sleep(0.01)\n")
    out = tmp_path / "out"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(swept, out, "--ipc", "1", "--lr", "1")
        until = time.time() + 60
        while not (out / "calls").exists() and time.time() < until:
            time.sleep(0.01)
        assert pool.submit(swept, out, "--ipc", "1", "--lr", "3").result() == 2
        (out / "go").touch()
        assert first.result() == 0
    assert calls(out) == ["digits-dm-1 auto False"]
    assert "1 of 1: dm ipc 1 seed 0 ... failed: " in (said := capsys.readouterr()).out
    assert "holds another run, of lr 1.0 in place of 3.0" in said.out


def test_sweeps_of_the_same_runs_share_them(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins while the first is at work on the first run, and the first finds the second run made."""
    fake(
        "until = time.time() + 60\n"
        "go = folder.parent / 'go'\n"
        "while not go.exists() and folder.name == 'digits-dm-1' and time.time() < until: time.sleep(0.01)\n"
    )
    out = tmp_path / "out"
    asked = (out, "--ipc", "1", "--seeds", "0,1")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(swept, *asked)
        until = time.time() + 60
        while not (out / "calls").exists() and time.time() < until:
            time.sleep(0.01)
        assert pool.submit(swept, *asked).result() == 0
        (out / "go").touch()
        assert first.result() == 0
    assert calls(out) == ["digits-dm-1 auto False", "digits-dm-1-seed1 auto False"]
    said = capsys.readouterr().out
    assert "1 of 2: dm ipc 1 seed 0 ... skipped: another process is at work on it" in said
    assert "2 of 2: dm ipc 1 seed 1 ... judged by another process meanwhile" in said


@pytest.mark.parametrize(
    ("judge", "expected"), [("", ["digits-dm-1"]), ("other", ["digits-dm-1", "digits-dm-1-seed1"])]
)
def test_a_run_that_another_process_judged_in_part_is_judged_on(
    judge: str, expected: list[str], tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the first run is made, another process makes the second and judges it, by the sweep's judges or not."""
    fake(
        "second = folder.parent / 'digits-dm-1-seed1'\n"
        "if folder.name == 'digits-dm-1':\n"
        "    shutil.copytree(made, second)\n"
        "    (second / 'config.yaml').write_text(options.replace('seed: 0', 'seed: 1'))\n"
        "    metrics = json.loads((second / 'metrics.json').read_text())\n"
        f"    metrics['results'][0]['judge'] = {judge!r} or metrics['results'][0]['judge']\n"
        "    (second / 'metrics.json').write_text(json.dumps(metrics))\n"
    )
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1", "--seeds", "0,1") == 0
    assert [call.split()[0] for call in calls(out)] == expected
    assert ("judged by another process meanwhile" in capsys.readouterr().out) == (len(expected) == 1)


def test_one_sweep_at_a_time_writes_the_comparison(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake("")
    out = tmp_path / "out"
    assert swept(out, "--ipc", "1") == 0
    with ThreadPoolExecutor(1) as pool:
        with sole_writer(out / "comparison"):
            waiting = pool.submit(swept, out, "--ipc", "1")
            until = time.time() + 60
            while "compare the runs of a sweep" not in caplog.text and time.time() < until:
                time.sleep(0.01)
            assert not waiting.done()
        assert waiting.result() == 0


def test_a_file_may_hold_lists_and_the_options_of_all_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"data: digits\nmethods: [dm, DC]\nipc: [1, 10]\nseeds: 2\nout: {tmp_path}/out\nsteps: 7\n")
    found = build_parser().parse_args(["sweep", "--config", str(file)])["sweep"]
    assert (found["methods"], found["ipc"], found["seeds"], found["steps"]) == ("dm,DC", "1,10", 2, 7)
    assert main(["sweep", "--bytes", "10KB", "--config", str(file), "--dry-run"]) == 0
    assert capsys.readouterr().out.split()[::2] == [f"{tmp_path}/out/digits-{name}-10KB-seed2" for name in ("dm", "dc")]
    file.write_text("method: dm\n")
    assert main(["sweep", "--config", str(file), "--ipc", "1"]) == 2
    assert "has an unknown setting 'method'; did you mean 'methods'?" in capsys.readouterr().err
    file.write_text("methods: dm\n")
    assert main(["distill", "--config", str(file)]) == 2
    assert "has an unknown setting 'methods'; did you mean 'method'?" in capsys.readouterr().err


def test_options_of_single_runs_are_none_of_a_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    for option, meant in (("method", "methods"), ("seed", "seeds"), ("device", "devices")):
        with pytest.raises(SystemExit):
            main(["sweep", f"--{option}", "1"])
        assert f"did you mean '--{meant}'?" in capsys.readouterr().err


def _module(name: str, origin: str) -> SimpleNamespace:
    """The main module that is started by its name, or as that of an archive."""
    return SimpleNamespace(__spec__=SimpleNamespace(name=name, origin=origin), __file__=origin)


@pytest.mark.parametrize(
    ("started", "main", "words"),
    [
        (["/bin/mmdistill", "sweep"], SimpleNamespace(__spec__=None, __file__="/bin/mmdistill"), ["-m", "mmdistill"]),
        (["x.py", "sweep"], SimpleNamespace(__spec__=None, __file__="/y/x.py"), ["/y/x.py"]),
        (["x.py"], SimpleNamespace(__spec__=None, __file__="/y/x.py"), ["-m", "mmdistill"]),  # calls main([...]) itself
        (["/m.py", "sweep"], _module("mmdistill.__main__", "/m.py"), ["-m", "mmdistill"]),
        (["/m.py", "sweep"], _module("mine.work", "/m.py"), ["-m", "mine.work"]),
        (["mmdistill", "sweep"], _module("cProfile", "/lib/cProfile.py"), ["-m", "mmdistill"]),
        (["/y/x.py", "sweep"], _module("cProfile", "/lib/cProfile.py"), ["/y/x.py"]),
        ([__name__, "sweep"], _module("cProfile", "/lib/cProfile.py"), ["-m", __name__]),
        (["/bin/mmdistill", "sweep"], _module("__main__", "/bin/mmdistill.exe/__main__.py"), ["/bin/mmdistill.exe"]),
        (["", "sweep"], SimpleNamespace(__spec__=None), ["-m", "mmdistill"]),
    ],
)
def test_a_process_is_of_the_program_that_the_user_started(
    started: list[str], main: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", started)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert own_program() == [sys.executable, "-u", *words]


def test_an_archive_starts_itself_again(tmp_path: Path) -> None:
    """As nothing here is a fake: what pip installs on Windows is an archive too."""
    archive, said = (
        tmp_path / "own.zip",
        "import sys; from mmdistill.commands.processes import own_program; print(own_program())",
    )
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", said)
    done = subprocess.run([sys.executable, str(archive), "sweep"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr([sys.executable, "-u", str(archive)])


SCRIPT = """
import sys
from dataclasses import replace
from mmdistill.__main__ import run
from mmdistill.image import METHODS
from mmdistill.methods import CORE_METHODS

METHODS["own"] = replace(CORE_METHODS["dm"], title="Own")
sys.exit(run())
"""


@pytest.mark.slow
def test_the_methods_of_a_script_are_swept_by_it(tmp_path: Path) -> None:
    """As nothing here is a fake: the script, which alone knows the method, and the run."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "sweep", "--data", "digits", "--methods", "own", "--ipc", "1"]
    done = subprocess.run([*command, "--out", str(out), *FAST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1: own ipc 1 seed 0 ... " in done.stdout
    assert DistilledSet.load(out / "digits-own-1").method == "own"
    assert r"own & $" in (out / "comparison" / "comparison.tex").read_text()


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_to_the_sets_of_one_that_was_not(tmp_path: Path) -> None:
    """HaBa's smallest set takes more bytes than one image per class, which concerns no other run."""

    def start(folder: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "mmdistill", "sweep", "--data", "digits", "--methods", "dm,haba,dc"]
        options = ["--ipc", "1", *FAST, "--steps", "200", "--checkpoint-every", "5", "--out", str(folder)]
        return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    out, until = tmp_path / "stopped", time.time() + 300
    stopped = start(out)
    while not list(out.glob("*/checkpoints/step-*")) and time.time() < until:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    _, printed = stopped.communicate(timeout=120)
    assert stopped.returncode == 130
    assert "Traceback" not in printed
    assert "mmdistill: stopped; continue with: " in (out / "digits-dm-1" / "log.txt").read_text()
    assert not list(out.glob("*/distilled.json"))
    again, whole = start(out), start(tmp_path / "whole")
    said, printed = again.communicate(timeout=600)
    whole.communicate(timeout=600)
    assert again.returncode == 2
    assert f"runs in {out}: 1 unfinished, 2 new" in said
    assert "2 of 3: haba ipc 1 seed 0 ... failed: " in said
    assert "1 of 3 runs failed (log.txt in their folders says how): digits-haba-1\n" in printed
    for name in ("digits-dm-1", "digits-dc-1"):
        one, two = (DistilledSet.load(tmp_path / place / name).batch.inputs for place in ("stopped", "whole"))
        assert torch.equal(one, two)


def test_a_scripts_methods_that_its_runs_would_not_know_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "ours", replace(CORE_METHODS["dm"]))
    given = ["sweep", "--data", "digits", "--methods", "dm,ours", "--ipc", "1", "--out", str(tmp_path / "runs")]
    assert main(given) == 2
    assert "ours would be unknown to the runs" in capsys.readouterr().err
    monkeypatch.setitem(FAMILIES, "mine", Family(MLP, smallest=4, options=("width",)))
    for option in ("--model", "--judges"):
        own = ["sweep", "--data", "digits", "--methods", "dm", "--ipc", "1", "--out", str(tmp_path / "runs")]
        assert main([*own, option, "mine-w4"]) == 2
        assert "mine-w4 would be unknown to the runs" in capsys.readouterr().err
    monkeypatch.setitem(RULES, "outer", RULES["herding"])
    for option in ("--init", "--baselines"):
        assert main([*own, option, "outer"]) == 2
        assert "outer would be unknown to the runs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr("sys.argv", ["x.py", "sweep"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None, __file__="/y/x.py"))
    assert main([*given, "--dry-run"]) == 0
