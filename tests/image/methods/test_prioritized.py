"""PAD: its published settings, and what it adds to DATM."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.errors import MmdistillError
from mmdistill.image import DOMAIN, image_task
from mmdistill.networks.curriculum import Curriculum
from mmdistill.networks.difficulty import Scoring
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.objectives.trajectory import Masking, TrajectoryMatching
from mmdistill.registry import get_method

ROWS = {
    ("cifar10", 1): (80, 2, 0, 0, 4, 0, 100.0, 5.0, 1e-7, 0, 1.1, 0.0),
    ("cifar10", 10): (80, 2, 0, 10, 20, 1000, 100.0, 2.0, 1e-5, 0, 1.0, 0.5),
    ("cifar10", 50): (80, 3, 0, 20, 40, 2000, 1000.0, 2.0, 1e-5, 0, 1.0, 0.25),
    ("cifar10", 500): (40, 2, 40, 60, 70, 2000, 50.0, 10.0, 1e-5, 1000, 1.0, 0.5),
    ("cifar10", 1000): (100, 2, 40, 0, 60, 0, 50.0, 10.0, 1e-5, 1000, 1.0, 0.5),
    ("cifar100", 1): (40, 3, 0, 20, 30, 1000, 1000.0, 10.0, 1e-5, 1000, 1.0, 0.5),
    ("cifar100", 10): (80, 2, 0, 30, 50, 2000, 1000.0, 10.0, 1e-5, 1000, 1.0, 0.5),
    ("cifar100", 50): (80, 2, 20, 0, 70, 0, 1000.0, 10.0, 1e-5, 1000, 1.0, 0.0),
    ("cifar100", 100): (80, 2, 30, 0, 70, 0, 50.0, 10.0, 1e-5, 1000, 1.0, 0.5),
    ("tiny-imagenet", 1): (40, 2, 0, 15, 20, 2000, 10_000.0, 10.0, 1e-4, 1000, 1.0, 0.5),
    ("tiny-imagenet", 10): (40, 2, 10, 0, 50, 0, 100.0, 10.0, 1e-4, 500, 1.0, 0.5),
    ("tiny-imagenet", 50): (20, 2, 40, 0, 70, 0, 100.0, 10.0, 1e-4, 1000, 1.0, 0.5),
}
"""By data and ipc: student's steps, expert's epochs, first start, starts at first and in the end, steps between these;
rates of images, labels and the rate; minibatch, highest loss; share of masked parameters."""


@pytest.mark.parametrize(("data", "ipc"), ROWS)
def test_every_published_configuration(data: str, ipc: int) -> None:
    method = get_method(DOMAIN, "pad", data)
    found, row = method.settings(ipc), ROWS[data, ipc]
    rates = {name: (spec.name, spec.lr, spec.momentum) for name, spec in found.optimizers.items()}
    assert rates == {"codes": ("sgd", row[6], 0.5), "labels": ("sgd", row[7], 0.9), "objective": ("sgd", row[8], 0.5)}
    lengths = (found.inner_steps, found.expert_steps)
    starts = (found.start_first, found.start_bound, found.start_epochs, found.start_steps)
    assert (*lengths, *starts, *row[6:9], found.inner_batch, found.skip_above, found.masked) == row
    assert (found.steps, found.init, found.inner_lr, found.augment) == (10_000, "real", 0.01, True)
    assert method.label == "soft"
    objective = method.make_objective(found)
    assert isinstance(objective, TrajectoryMatching)
    assert objective.masking == Masking(row[-1])
    made = method.make_schedule(found)
    assert isinstance(made, ExpertTrajectories)
    flat = {"sam": 0.01, "sam_gap": 0.3, "sam_adaptive": True}
    plain = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "batch": 256, "decay_at": ()}
    assert made.recipe.protocol == FitProtocol(100, **plain, **flat)  # type: ignore[arg-type]
    assert made.recipe.curriculum == Curriculum(0.75, 20, ((41, 0.1), (61, 0.2)), Scoring())


@pytest.mark.parametrize("table", [DOMAIN.reduced["cifar10"], DOMAIN.presets["digits"]])
@pytest.mark.parametrize(("ipc", "masked"), [(1, 0.0), (10, 0.5), (50, 0.25)])
def test_short_schedules_are_datms_in_all_else(table: dict[str, object], ipc: int, masked: float) -> None:
    datm, pad = (table[name].settings(ipc) for name in ("datm", "pad"))  # type: ignore[attr-defined]
    stages = Curriculum(pad.expert_easy, pad.expert_joining, pad.expert_leaving)
    of = pad.expert_epochs
    assert stages == Curriculum(0.75, round(of / 5), ((round(0.4 * of), 0.1), (round(0.6 * of), 0.2)))
    assert pad.masked == masked
    names = ("masked", "expert_easy", "expert_joining", "expert_leaving")
    assert {name for name in vars(pad) if getattr(pad, name) != getattr(datm, name)} <= set(names)


def test_pad_runs_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path))
    digits = image_task("digits", model="mlp", width=4, judge_epochs=2)
    made = distill(digits, "pad", ipc=1, settings={"steps": 2, "inner_steps": 3, "experts": 2})
    assert isinstance(made.batch.targets, Tensor)
    torch.testing.assert_close(made.batch.targets.sum(1), torch.ones(10))
    assert len(list((tmp_path / "experts").iterdir())) == 2  # experts, and who scores for them


def test_a_run_goes_on_with_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    digits = image_task("digits", model="mlp", width=4, judge_epochs=2)
    few = {"inner_steps": 3, "experts": 2}
    whole = distill(digits, "pad", ipc=10, settings={**few, "steps": 3})
    distill(digits, "pad", ipc=10, settings={**few, "steps": 1}, out=tmp_path / "run")
    again = distill(digits, "pad", ipc=10, settings={**few, "steps": 3}, out=tmp_path / "run", resume=True)
    assert isinstance(again.batch.inputs, Tensor)
    assert isinstance(whole.batch.inputs, Tensor)
    assert torch.equal(again.batch.inputs, whole.batch.inputs)
    with pytest.raises(MmdistillError, match="masked"):
        distill(digits, "pad", ipc=10, settings={**few, "masked": 0.1}, out=tmp_path / "run", resume=True)
