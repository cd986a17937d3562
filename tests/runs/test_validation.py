"""Validation: which step is kept, and when a run ends by it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, NonFiniteError
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from mmdistill.task import Batch
from tests.runs.blobs import Undecided, Validated, method, samples
from tests.toys import BlobTask


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


class Scaled(DistributionMatching):
    """Learns a factor, which is saved with the set as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *given: Any) -> Tensor:
        return self.scale * super().forward(*given)


def test_a_set_that_is_taken_on_the_way_leaves_the_run_as_it_is() -> None:
    task, rates = Validated(), {"codes": OptimizerSpec("sgd", 0.1), "objective": OptimizerSpec("sgd", 1.0)}
    scaled = replace(method("dm", ema=0.9, optimizers=rates), objective=Scaled)
    for changed in (scaled, method("dd", inner_steps=2, optimizers=rates, validate_every=1)):
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
        before, values = samples(taken).clone(), [value.tolist() for value in taken.learned.values()]
        distiller.step(run)
        assert torch.equal(samples(taken), before)
        assert [value.tolist() for value in taken.learned.values()] == values


def test_averages_are_validated_and_the_best_of_them_is_the_set() -> None:
    """Whatever the samples themselves are by then; a run that ends at that step gives the same set."""
    seen: list[Tensor] = []

    class Listening(Validated):
        def validate(self, synthetic: object, draws: object, learned: object) -> float:
            assert isinstance(synthetic, Batch)
            assert isinstance(synthetic.inputs, Tensor)
            seen.append(synthetic.inputs.clone())
            return -abs(len(seen) - 2.0)  # the second one is the best

    averaged = method("dm", ema=0.9, validate_every=2, steps=6)
    found = distill(Listening(), averaged, ipc=2)
    assert found.steps == 4
    assert torch.equal(samples(found), seen[1])
    ended = distill(Validated(), averaged.with_settings(steps=4, validate_every=0), ipc=2)
    assert torch.equal(samples(found), samples(ended))
    live = distill(Validated(), averaged.with_settings(steps=4, validate_every=0, ema=0.0), ipc=2)
    assert not torch.equal(samples(found), samples(live))


@pytest.mark.parametrize("start", [True, False])
def test_an_average_weighs_steps_by_powers_of_its_decay(start: bool) -> None:
    """With its start as the oldest, or of the steps alone, by weights that sum to one."""
    distiller = Distiller(BlobTask(), method("dm", ema=0.8, ema_start=start), 2)
    run = distiller.start()
    path = [run.parameterization(Draws(0)).inputs.double()]
    for done in range(1, 4):
        run, _ = distiller.step(run)
        path.append(run.parameterization(Draws(0)).inputs.double())
        weights = [0.2 * 0.8 ** (done - step) for step in range(1, done + 1)]
        weights = [0.8**done if start else 0.0, *(weights if start else [w / sum(weights) for w in weights])]
        expected = sum(weight * inputs for weight, inputs in zip(weights, path, strict=True))
        with run.averaged():
            found = run.parameterization(Draws(0)).inputs.double()
        torch.testing.assert_close(found, expected)


def test_validation_reads_and_keeps_what_the_objective_learned_by_the_best_step() -> None:
    """With the same random numbers each time, so that steps differ by their samples alone."""

    class Listening(Validated):
        def validate(self, synthetic: object, draws: object, learned: object) -> float:
            assert isinstance(draws, Draws)
            assert isinstance(learned, Mapping)
            seen.append((learned["inner_lr"].clone(), draws.integer()))
            return super().validate(synthetic, draws, learned)

    seen: list[tuple[Tensor, int]] = []
    rates = {"codes": OptimizerSpec("sgd", 0.1), "objective": OptimizerSpec("sgd", 1.0)}
    task, dd = Listening(), method("dd", inner_steps=2, optimizers=rates)
    kept, whole, short = (
        distill(task, dd.with_settings(**changes), ipc=1).learned["inner_lr"]
        for changes in ({"validate_every": 2}, {}, {"steps": 6})
    )
    assert torch.equal(kept, short)
    assert torch.equal(kept, seen[2][0])
    assert len({number for _, number in seen}) == 1
    assert not torch.equal(kept, whole)


def test_the_last_step_is_validated_wherever_it_falls() -> None:
    task = Validated()
    assert distill(task, method("dm", steps=5, validate_every=2), ipc=1).steps == 5
    assert task.calls == 3


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
