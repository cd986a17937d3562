"""The script that measures on a GPU, which may get one short chance: it writes as it goes and goes on where it was."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdistill.capture import WARM_UP_CALLS
from mmdistill.networks.stacked import GradientEngine
from mmdistill.run_state import RunState
from mmdistill.stepper import Stepper
from mmdistill.store import read_json
from tests.meta import META, NoTransfers
from tests.test_capture import RepeatedCall

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
FOUND = {"ours_ms": 1.0, "textbook_ms": 2.0, "ratio": 2.0, "first_s": 0.0, "path": "eager", "ours_mib": 1.0}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu  # type: ignore[import-not-found]

    return gpu  # type: ignore[no-any-return]


def call(gpu: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr("sys.argv", ["gpu.py", "--small", "--repeats", "1", "--out", str(out), *options])
    try:
        gpu.main()
    finally:
        torch.set_float32_matmul_precision(precision)
    rows: dict[str, Any] = read_json(out.with_suffix(".json"))["rows"]
    return rows


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
        return {**FOUND, "textbook_mib": 3.0}

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
    assert rows["dc ipc 10 auto"] == {**FOUND, "textbook_mib": 3.0, "target": 18}
    page = out.with_suffix(".md").read_text()
    assert "| dc ipc 10 auto | 1.00 | 2.0 | 2.0 | 18 |" in page
    assert "| dsa ipc 10 auto | failed: RuntimeError: out of luck |" in page
    called.clear()
    assert call(gpu, out, monkeypatch) == rows
    assert called == []


class WrongReplays(Stepper):
    """Steps by gradients that are a hundredth too large, where they would be replayed."""

    def __call__(self, run: RunState) -> tuple[RunState, Tensor]:
        return self.distiller.step(run, self.enlarged if self.mode == "auto" else None)

    def enlarged(self, *inputs: Any) -> tuple[Tensor, list[Tensor | None]]:
        loss, found = self.distiller.gradients(*inputs)
        return loss, [None if gradient is None else 1.01 * gradient for gradient in found]


@pytest.mark.parametrize("name", ["frepo", "kip"])
def test_checks_of_replays_find_wrong_gradients(name: str, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    task = gpu.speed.make_task((3, 8, 8), 16, 64, torch.device("cpu"))
    assert gpu.check_replays(task, name) == "eager, relative difference 0.0e+00"
    monkeypatch.setattr(gpu.speed, "Stepper", WrongReplays)
    assert float(gpu.check_replays(task, name).split()[-1]) > 1e-4


def test_judges_that_are_replayed_are_seen_and_their_graphs_let_go(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(engine: GradientEngine, *inputs: Any) -> None:
        engine._replay = engine._replayed(RepeatedCall)

    monkeypatch.setattr(GradientEngine, "_begin", begin)
    task = gpu.speed.make_task((3, 8, 8), 4, 16, torch.device("cpu"))
    contest = gpu.speed.judging(task, 1, 2, WARM_UP_CALLS + 4, siamese=False, compile="off")
    contest.ours()
    assert contest.path() == "captured"


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
