"""The script that measures on a GPU, which may get one short chance: it writes as it goes and goes on where it was."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdistill.execution.capture import LATER_CHECK, WARM_UP_CALLS
from mmdistill.networks.stacked import GradientEngine
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import Stepper
from mmdistill.store import read_json
from tests.execution.test_capture import RepeatedCall
from tests.meta import META, NoTransfers

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "benchmarks"
FOUND = {"ours_ms": 1.0, "textbook_ms": 2.0, "ratio": 2.0, "first_s": 0.0, "path": "eager", "ours_mib": 1.0}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu  # type: ignore[import-not-found]

    precision = torch.get_float32_matmul_precision()
    yield gpu
    torch.set_float32_matmul_precision(precision)  # which the script sets for its whole process


def call(gpu: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--small", "--repeats", "1", "--out", str(out), *options])
    gpu.main()
    rows: dict[str, Any] = read_json(out.with_suffix(".json"))["rows"]
    return rows


def in_no_time(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the script neither measure its machine nor clear up after each row, which takes a second."""
    for name in ("throughput", "bandwidth"):
        monkeypatch.setattr(gpu.speed, name, lambda device: 1.0)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: None)
    monkeypatch.setattr(gpu, "gc", SimpleNamespace(collect=lambda: None))


def test_what_a_stop_cut_short_is_tried_again_after_all_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    out = tmp_path / "new" / "gpu"
    stops = {"dc ipc 10 auto"}

    def measured(task: Any, row: Any, *others: Any) -> dict[str, Any]:
        called.append(row.name)
        if row.name in stops:
            raise KeyboardInterrupt  # as a time limit would end it
        if row.method == "dsa":
            raise RuntimeError("out of luck\nand more")
        return {**FOUND, "textbook_mib": None}

    in_no_time(gpu, monkeypatch)
    monkeypatch.setattr(gpu, "measured", measured)
    with pytest.raises(KeyboardInterrupt):
        call(gpu, out, monkeypatch)
    assert called == ["dm ipc 10 auto", "dc ipc 10 auto"]
    stops.clear()
    called.clear()
    rows = call(gpu, out, monkeypatch)
    assert "dm ipc 10 auto" not in called
    assert called[-1] == "dc ipc 10 auto"
    assert rows["dsa ipc 10 auto"] == {"failed": "failed: RuntimeError: out of luck"}
    assert rows["dc ipc 10 auto"] == {**FOUND, "textbook_mib": None, "target": 18}
    page = out.with_suffix(".md").read_text()
    assert "| dc ipc 10 auto | 1.00 | 2.0 | 2.0 | 18 |" in page
    assert "| dsa ipc 10 auto | failed: RuntimeError: out of luck |" in page
    called.clear()
    assert call(gpu, out, monkeypatch) == rows
    assert called == []


def on_a_device(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the script take itself to be on a device, of which nothing is asked."""
    in_no_time(gpu, monkeypatch)
    monkeypatch.setattr(gpu.speed, "make_task", lambda *sizes: None)
    monkeypatch.setattr(gpu, "describe_device", str)
    monkeypatch.setattr(gpu, "measured", lambda *inputs: {**FOUND, "textbook_mib": 3.0})
    monkeypatch.setattr(gpu, "check_judges", lambda task: "fine")
    monkeypatch.setattr(gpu, "check_replays", lambda task, name: "fine")
    monkeypatch.setattr(gpu, "check_waiting", lambda task, name: "fine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_a_device_in_an_error_ends_the_call_with_a_status_of_its_own(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    on_a_device(gpu, monkeypatch)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--only", "dm ipc 10 auto", "--out", str(tmp_path / "gpu")])
    assert gpu.main() == 3
    assert list(read_json(tmp_path / "gpu.json")["checks"]) == ["replays of dm"]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert gpu.main() == 0


def test_the_most_telling_rows_come_directly_after_their_checks(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_device(gpu, monkeypatch)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(tmp_path / "gpu")])
    gpu.main()
    done = capsys.readouterr().out.splitlines()
    first = "replays of dm", "waiting of dm", "dm ipc 10 auto", "replays of dc", "waiting of dc", "dc ipc 10 auto"
    for name, line in zip((*first, "judges", "evaluate ipc 10 auto", "replays of dsa"), done, strict=False):
        assert line.startswith(name)
    assert len(done) == 19 + len(gpu.table())


def test_what_was_warned_of_stands_beside_what_was_found(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*inputs: Any) -> dict[str, Any]:
        for _ in range(2):
            warnings.warn("a step could not be captured and stays as it is: why\nand where", stacklevel=2)
        return {**FOUND, "textbook_mib": 3.0}

    in_no_time(gpu, monkeypatch)
    monkeypatch.setattr(gpu, "measured", measured)
    rows = call(gpu, tmp_path / "gpu", monkeypatch, "--only", "dm ipc 10 auto")
    said = "a step could not be captured and stays as it is: why"
    assert rows["dm ipc 10 auto"]["warned"] == [said]
    assert f"- dm ipc 10 auto warned: {said}\n" in (tmp_path / "gpu.md").read_text()
    assert gpu.checked(lambda: warnings.warn("odd", stacklevel=2) or "eager") == "eager; warned: odd"


@pytest.mark.parametrize(("name", "steps"), [("dm", 110), ("mtt", 12)])
def test_checks_go_past_the_later_comparison_where_steps_are_cheap(
    name: str, steps: int, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    state = SimpleNamespace(parameterization=torch.nn.Linear(1, 1)), None
    contest = SimpleNamespace(ours=lambda: taken.append(name) or state, path=lambda: "captured")
    monkeypatch.setattr(gpu.speed, "contest", lambda *inputs: contest)
    assert gpu.check_replays(None, name) == f"captured, {steps} steps, relative difference 0.0e+00"
    assert len(taken) == 2 * steps
    assert (steps >= WARM_UP_CALLS + 2 + LATER_CHECK) == (name == "dm")


class WrongReplays(Stepper):
    """Steps by gradients that are a hundredth too large, where they would be replayed."""

    def __call__(self, run: RunState) -> tuple[RunState, Tensor]:
        return self.distiller.step(run, self.enlarged if self.mode == "auto" else None)

    def enlarged(self, *inputs: Any) -> tuple[Tensor, list[Tensor | None]]:
        loss, found = self.distiller.gradients(*inputs)
        return loss, [None if gradient is None else 1.01 * gradient for gradient in found]


@pytest.mark.parametrize("name", ["frepo", "kip", pytest.param("rcig", marks=pytest.mark.slow)])
def test_checks_of_replays_find_wrong_gradients(name: str, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CHECKED_STEPS", 20)
    task = gpu.speed.make_task((3, 8, 8), 8, 16, torch.device("cpu"))
    assert gpu.check_replays(task, name) == "eager, 20 steps, relative difference 0.0e+00"
    monkeypatch.setattr(gpu.speed, "Stepper", WrongReplays)
    assert float(gpu.check_replays(task, name).split()[-1]) > 1e-4


def test_judges_that_are_replayed_are_seen_and_their_graphs_let_go(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(engine: GradientEngine, *inputs: Any) -> None:
        engine._replay = engine._make_replay(RepeatedCall)

    monkeypatch.setattr(GradientEngine, "_begin", begin)
    task = gpu.speed.make_task((3, 8, 8), 4, 16, torch.device("cpu"))
    contest = gpu.speed.judging(task, 1, 2, WARM_UP_CALLS + 4, siamese=False, compile="off")
    contest.ours()
    assert contest.path() == "captured"


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32)])
def test_the_textbook_has_the_network_of_ours(shape: tuple[int, int, int], gpu: ModuleType) -> None:
    task = gpu.speed.make_task(shape, 4, 8, torch.device("cpu"))
    found = {name: tensor.shape for name, tensor in gpu.speed.make_network(task).named_parameters()}
    assert found == {name: tensor.shape for name, tensor in task.network.module.named_parameters()}


def test_memory_that_is_not_told_apart_is_null(gpu: ModuleType) -> None:
    assert gpu.speed.peak(lambda: None, torch.device("cpu")) is None
    assert (gpu.speed.in_mib(None), gpu.speed.in_mib(2.4)) == ("-", "2")


@pytest.mark.parametrize("name", ["dm", "dc", "mtt", "dd", "frepo", "kip"])
def test_textbook_steps_wait_for_nothing(name: str, gpu: ModuleType) -> None:
    task = gpu.speed.make_task((3, 8, 8), 16, 64, torch.device("cpu"))
    problem = gpu.speed.problem_of(task, 1, 16)
    task.device = META
    problem.images, problem.labels, problem.targets = (
        tensor.to(META) for tensor in (problem.images, problem.labels, problem.targets)
    )
    problem.members = [own.to(META) for own in problem.members]
    problem.synthetic = problem.synthetic.detach().to(META).requires_grad_()
    inner = {"mtt": (2, 5, 0.01), "dd": (2, 0.02, 0.9)}.get(name, ())
    with NoTransfers():
        gradient = getattr(gpu.speed.textbook, name)(problem, *inner)
    assert gradient.device == META


@pytest.mark.slow
def test_every_row_can_be_measured(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"MTT": {1: (2, 5), 10: (2, 10), 50: (2, 10)}, "DD_STEPS": 2, "WARM_UP": 1}
    for name, value in small.items():
        monkeypatch.setattr(gpu.speed, name, value)
    monkeypatch.setattr(gpu, "SMALL", gpu.Sizes((3, 32, 32), 4, 64, 4, 2, 2, "off"))
    rows = call(gpu, tmp_path / "gpu", monkeypatch)
    assert {name: row["failed"] for name, row in rows.items() if "failed" in row} == {}
    assert len(rows) == sum(row.precision != "tf32" for row in gpu.table())


@pytest.mark.slow
def test_tests_of_a_device_run_where_packages_of_others_are_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('jsonargparse', 'kornia', 'implicit'):\n"
        "            raise ModuleNotFoundError(f'no {name}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    page = (ROOT / "docs" / "performance.md").read_text()
    files = re.findall(r"tests/\S+\.py", page.split("    pytest -m gpu tests/", 1)[1].split("\n\n", 1)[0])
    files = ["tests/runs/test_stepper.py", *files]
    assert len(files) == 4
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *files]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
