"""What of the captured step can be checked without a device: the bookkeeping of its generators, and when it is used."""

from collections.abc import Callable

import pytest
import torch

from mmdistill.capture import Generators, Stepper, capturable
from mmdistill.compilation import compiled, operations
from mmdistill.distiller import Distiller
from mmdistill.image import image_task
from mmdistill.methods import CORE_METHODS
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from tests.toys import BlobTask


def test_generators_are_set_to_what_the_new_step_would_draw() -> None:
    record = Generators()
    key = Draws(5).fold("step", 3)
    for name in ("real", "augment"):
        record.record(key.fold(name))
    record.seed(8)
    for name, generator in zip(("real", "augment"), record.generators, strict=True):
        expected = Draws(5).fold("step", 8, name).normal(4)
        assert torch.equal(torch.randn(4, generator=generator), expected)


def test_a_step_that_draws_otherwise_than_recorded_is_refused() -> None:
    record = Generators()
    record.record(Draws(5).fold("step", 3, "real"))
    record.rewind()
    assert record.record(Draws(5).fold("step", 4, "real")) is record.generators[0]
    record.rewind()
    with pytest.raises(RuntimeError, match="had drawn something else"):
        record.record(Draws(5).fold("step", 4, "augment"))


def test_the_cpu_and_changing_steps_are_never_captured() -> None:
    task = BlobTask()
    method = CORE_METHODS["dm"].with_settings(steps=2, augment=False)
    distiller = Distiller(task, method, 1)
    stepper = Stepper(distiller, "auto")
    assert not stepper.captures
    run, loss = stepper(distiller.start())
    assert (run.step, stepper.path) == (1, "eager")
    assert loss.isfinite()
    task.device = torch.device("cuda")  # only asked about, nothing is put there
    assert capturable(distiller)
    cosine = {"codes": OptimizerSpec("sgd", 1.0, cosine=True)}
    changing = method.with_settings(optimizers=cosine)
    distiller.settings = changing.settings(1)
    assert not capturable(distiller)


def test_compiling_that_fails_stays_eager_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, dynamic: bool) -> object:
        def call(x: int) -> int:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)

    def double(x: int) -> int:
        return 2 * x

    program = compiled(double)
    with pytest.warns(UserWarning, match="stays eager: no compiler"):
        assert program(2) == 4
    assert program(3) == 6  # warnings are errors here, so a second one would fail


def test_a_run_compiles_where_its_operations_repay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def kept(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            asked.append(function.__name__)
            return function(*args)

        return call

    monkeypatch.setattr("mmdistill.distiller.compiled", kept)
    losses = []
    for worth, path in ((1e30, "eager"), (1.0, "compiled")):
        monkeypatch.setattr("mmdistill.compilation.WORTH_OPERATIONS", worth)
        distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=20, augment=False), 1)
        stepper = Stepper(distiller)
        run, loss = stepper(distiller.start())
        losses.append(loss)
        assert (run.step, stepper.path) == (1, path)
    assert asked == ["features", "features"]
    assert torch.equal(*losses)


def test_operations_count_products_and_leave_the_run_alone() -> None:
    distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(steps=3, augment=False), 1)
    run = distiller.start()
    before = [p.detach().clone() for p in run.parameterization.parameters()]
    assert distiller.operations(run) > 0
    assert run.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameterization.parameters(), strict=True))
    assert operations(lambda: torch.ones(3, 4) @ torch.ones(4, 5))[1] == 2 * 3 * 4 * 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("name", ["dm", "dc"])
def test_the_compiled_step_equals_the_eager_one_on_the_cpu(name: str) -> None:
    task = image_task("digits", width=8)
    steps = {}
    for mode in ("off", "on"):
        distiller = Distiller(task, CORE_METHODS[name].with_settings(steps=2, augment=False, real_batch=16), 2)
        stepper = Stepper(distiller, mode)  # type: ignore[arg-type]
        _, steps[mode] = stepper(distiller.start())
        assert stepper.path == ("eager" if mode == "off" else "compiled")
    assert torch.allclose(steps["off"], steps["on"], rtol=1e-4)
