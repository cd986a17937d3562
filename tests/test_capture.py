"""What of the captured step can be checked without a device: the bookkeeping of its generators, and when it is used."""

import pytest
import torch

from mmdistill.capture import Generators, Stepper, capturable
from mmdistill.distiller import Distiller
from mmdistill.methods import CORE_METHODS, OptimizerSpec
from mmdistill.runtime import Draws, compiled
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
    stepper = Stepper(distiller, "on")
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
