"""The fastest path of a step: when it is taken, and that it computes what the plain step does."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn

from mmdistill.distiller import Distiller
from mmdistill.execution.capture import WARM_UP_CALLS, Replay
from mmdistill.execution.compilation import CompileMode
from mmdistill.image import image_task
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.enriched import EnrichedPool
from mmdistill.networks.module import FunctionalModule
from mmdistill.objectives.regularised import RegularisedMatching
from mmdistill.registry import get_domain, get_method
from mmdistill.runs.state import RunState
from mmdistill.runs.stepper import FEWEST_STEPS, Stepper
from mmdistill.settings import OptimizerSpec
from tests.execution.test_capture import RepeatedCall
from tests.toys import BlobTask, noting

COUNTED = replace(
    CORE_METHODS["dm"],
    objective=RegularisedMatching,
    network=lambda settings: EnrichedPool(size=3, first=2, every=3, steps=2, batch=8),
)
"""Whose loss weighs by how accurate a step's network is."""


class CapturingStepper(Stepper):
    """Captures on the CPU too, where a stand-in for the graph repeats calls."""

    def _may_capture(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["dm", "dd"])
def test_graphs_are_freed_with_the_stepper(name: str) -> None:
    """Memory of a cycle is freed when the collector comes by, which may be during another graph's capture."""
    distiller = Distiller(BlobTask(), CORE_METHODS[name].with_settings(steps=9, augment=False, inner_steps=2), 1)
    run, stepper = distiller.start(), CapturingStepper(distiller, "off", RepeatedCall)
    gc.collect()
    gc.disable()
    try:
        for _ in range(WARM_UP_CALLS + 4):
            run, _ = stepper(run)
        assert stepper.path == "captured"
        (held,) = (weakref.ref(replay) for replay in stepper._replays.values())
        del stepper
        assert held() is None
    finally:
        gc.enable()


def test_networks_train_by_graphs_that_are_freed_with_the_distiller(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Replay]] = []

    def noted(*args: Any) -> Replay:
        replay = Replay(*args)
        made.append(weakref.ref(replay))
        return replay

    monkeypatch.setattr("mmdistill.networks.training.Replay", noted)
    settings = {"steps": 9, "outer_steps": 99, "inner_steps": 4, "augment": False, "real_batch": 8}
    gc.collect()
    gc.disable()
    try:
        found = []
        for kind in (Stepper, CapturingStepper):
            distiller = Distiller(BlobTask(), CORE_METHODS["dc"].with_settings(**settings), 1)
            run, stepper = distiller.start(), kind(distiller, "off", RepeatedCall)
            for _ in range(3):
                run, loss = stepper(run)
            found.append(loss)
        assert torch.equal(*found)
        replay = made[0]()
        assert replay is not None
        assert replay.captured
        del replay, stepper, distiller, run
        assert [held() for held in made] == [None]
    finally:
        gc.enable()


def test_what_moves_or_is_another_run_is_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FixedPlaces] = []

    def graph() -> FixedPlaces:
        made.append(FixedPlaces(run))
        return made[-1]

    captured = WARM_UP_CALLS + 2
    found = []
    for stepped in ("eager", "captured"):
        distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=50, augment=False, real_batch=8), 2)
        run, other = distiller.start(), distiller.start()
        stepper = CapturingStepper(distiller, "off", graph) if stepped == "captured" else Stepper(distiller, "off")
        for _ in range(captured + 2):
            run, _ = stepper(run)
        for parameter in run.parameterization.parameters():
            parameter.data = 2 * parameter.data  # as a project() may
        for _ in range(captured + 2):
            run, _ = stepper(run)
        run = other
        for _ in range(captured + 2):
            run, _ = stepper(run)
        found.append(next(run.parameterization.parameters()).detach())
    assert len(made) == 3
    assert torch.equal(*found)


class FixedPlaces(RepeatedCall):
    """Reads a run where it lay when it was captured, as a CUDA graph does."""

    def __init__(self, run: RunState) -> None:
        super().__init__()
        self.run = run
        self.places = [parameter.data for parameter in run.parameterization.parameters()]

    def replay(self) -> None:
        parameters = list(self.run.parameterization.parameters())
        now = [parameter.data for parameter in parameters]
        for parameter, place in zip(parameters, self.places, strict=True):
            parameter.data = place
        super().replay()
        for parameter, place in zip(parameters, now, strict=True):
            parameter.data = place


class Attending(nn.Module):
    """Reads four numbers as a sequence, by attention whose fused kernel cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(1, 8), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.lift(x[:, :, None])
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        result: torch.Tensor = self.head(attended.flatten(1))
        return result


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_a_network_with_attention_is_differentiated_twice(compile: CompileMode) -> None:
    task = BlobTask()
    task.module = FunctionalModule(Attending)
    method = CORE_METHODS["dc"].with_settings(steps=FEWEST_STEPS, real_batch=4, augment=False, inner_steps=1)
    distiller = Distiller(task, method, 1)
    _, loss = Stepper(distiller, compile)(distiller.start())
    assert loss.isfinite()


def test_the_cpu_is_never_captured() -> None:
    distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=2, augment=False), 1)
    stepper = Stepper(distiller, "auto")
    run, loss = stepper(distiller.start())
    assert not stepper.captures(run)
    assert (run.step, stepper.path) == (1, "eager")
    assert loss.isfinite()


def test_on_cuda_steady_objectives_are_captured() -> None:
    distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=30, augment=False), 1)
    run = distiller.start()
    distiller.task.device = torch.device("cuda")  # only asked about, nothing is put there
    assert Stepper(distiller, "auto").captures(run)
    assert not Stepper(distiller, "off").captures(run)
    run.objective.steady = False
    assert not Stepper(distiller, "on").captures(run)


@pytest.mark.parametrize(
    ("name", "active"), [("dm", None), ("dc", None), ("dm", (0, 2, 3)), ("dd", None), ("counted", None)]
)
def test_captured_steps_equal_eager_ones(name: str, active: tuple[int, int, int] | None) -> None:
    """Networks that age or are fresh, rates that change and groups that rest stay outside the graph."""
    steps = 2 * WARM_UP_CALLS + 6
    changes: dict[str, object] = {"steps": steps, "augment": False, "real_batch": 8, "outer_steps": 3, "inner_steps": 2}
    codes = OptimizerSpec("sgd", 0.1, 0.5, cosine=True, active=active)
    changes["optimizers"] = {"codes": codes, "objective": OptimizerSpec("sgd", 1e-3)}
    method = COUNTED if name == "counted" else CORE_METHODS[name]
    method, found = method.with_settings(**changes), []
    for kind in (Stepper, CapturingStepper):
        distiller = Distiller(BlobTask(), method, 2)
        run = distiller.start()
        stepper = kind(distiller, "off", RepeatedCall)
        for _ in range(steps):
            run, _ = stepper(run)
        found.append([p.detach().clone() for p in run.parameterization.parameters()])
    assert stepper.path == "captured"
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_run_compiles_where_its_operations_repay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mmdistill.objectives.compiled.Program", noting(asked))
    losses = []
    for worth, path in ((1e30, "eager"), (1.0, "compiled")):
        monkeypatch.setattr("mmdistill.execution.compilation.WORTH_OPERATIONS", worth)
        distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=20, augment=False), 1)
        stepper = Stepper(distiller)
        run, loss = stepper(distiller.start())
        losses.append(loss)
        assert (run.step, stepper.path) == (1, path)
    assert asked == ["features", "features"]
    assert torch.equal(*losses)


@pytest.mark.filterwarnings("ignore")  # of modules that torch looks at while it compiles; the one asked for must come
def test_a_run_whose_compiling_failed_says_that_it_was_eager() -> None:
    distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=1, augment=False), 1)
    stepper = Stepper(distiller, "on")
    with (
        torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)),
        pytest.warns(UserWarning, match="stays eager: .*no-such-compiler"),
    ):
        stepper(distiller.start())
    assert stepper.path == "eager"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("name", ["dm", "dc", "datadam", "idm"])
def test_the_compiled_step_equals_the_eager_one_on_the_cpu(name: str) -> None:
    task = image_task("digits", width=8)
    method = get_method(get_domain("image"), name).with_settings(steps=2, augment=False, real_batch=16)
    steps = {}
    for mode in ("off", "on"):
        distiller = Distiller(task, method, 2)
        stepper = Stepper(distiller, mode)  # type: ignore[arg-type]
        _, steps[mode] = stepper(distiller.start())
        assert stepper.path == ("eager" if mode == "off" else "compiled")
    assert distiller.compile_seconds > 0
    assert torch.allclose(steps["off"], steps["on"], rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("compile", ["auto", "on"])
@pytest.mark.parametrize("name", ["dm", "dc", "dsa", "dd", "frepo", "kip", "rcig", "datadam", "idm"])
def test_captured_steps_equal_eager_ones_on_cuda(name: str, compile: str) -> None:
    method = get_method(get_domain("image"), name).with_settings(steps=24, real_batch=16, inner_steps=3)
    sets = []
    for mode in ("off", compile):
        task = image_task("digits", width=16, device="cuda")
        distiller = Distiller(task, method, 1, precision="float32")
        run, stepper = distiller.start(), Stepper(distiller, mode)  # type: ignore[arg-type]
        for _ in range(12):
            run, _ = stepper(run)
        sets.append(next(run.parameterization.parameters()).detach().cpu())
    assert "captured" in stepper.path
    assert torch.allclose(*sets, rtol=1e-2, atol=1e-3)
