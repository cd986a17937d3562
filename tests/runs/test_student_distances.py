"""What a run says where its students end no nearer to the experts' ends than they began."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.methods import CORE_METHODS, trajectory_matching
from mmdistill.objectives.base import Network
from mmdistill.objectives.calibration import KnowledgeExtraction
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import UnrolledPerformance
from mmdistill.settings import OptimizerSpec
from mmdistill.task import Batch
from tests.toys import BlobTask, RandomTargets

STILL = {"codes": OptimizerSpec("sgd", 0.0)}
MATCHING = replace(CORE_METHODS["mtt"], network=lambda settings: RandomTargets())


def said(caplog: pytest.LogCaptureFixture, **settings: object) -> list[str]:
    """Return the warnings of a short run whose samples stay as they are."""
    caplog.clear()
    made = MATCHING.with_settings(**{"steps": 4, "inner_steps": 3, "optimizers": STILL, "augment": False, **settings})
    distill(BlobTask(), made, ipc=2, progress=lambda *given: None)
    return caplog.messages


def test_students_that_end_no_nearer_than_they_began_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    first, last = said(caplog, inner_lr=100.0)
    assert first.startswith("the student ends ")
    assert "times as far from the expert's end as it began" in first
    assert first.endswith("Lower its rate (--inner-lr, or inner_lr among the settings)")
    assert last.startswith("the last losses are about ")
    assert "no nearer to the experts' ends than they began" in last
    (last,) = said(caplog, inner_lr=1e-6)  # such students do not move
    assert last.startswith("the last losses are about 1,")


def test_neither_a_good_run_nor_a_loss_without_that_scale_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(said(caplog, inner_lr=100.0)) == 2
    monkeypatch.setattr(TrajectoryMatching, "relative_to_start", False)
    assert not said(caplog, inner_lr=100.0)
    monkeypatch.setattr(TrajectoryMatching, "forward", losing(lambda step: 0.1 * step))
    assert not said(caplog)  # although the last loss is any number of times the first, which is 0


def losing(losses: Callable[[int], float]) -> Callable[..., Tensor]:
    """Return a forward whose loss at each step is given."""

    def forward(self: TrajectoryMatching, network: Network, syn: Batch, *rest: object) -> Tensor:
        assert isinstance(syn.inputs, Tensor)
        return syn.inputs.sum() * 1e-9 + losses(network.step)

    return forward


def test_a_number_of_times_is_the_root_of_a_squared_distance(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrajectoryMatching, "forward", losing(lambda step: 144.0))
    first, last = said(caplog)
    assert first.startswith("the student ends 12 times as far from the expert's end as it began (a loss of 144)")
    assert last.startswith("the last losses are about 144,")


@pytest.mark.parametrize(("end", "warned"), [(0.95, False), (1.0, True)])
def test_the_last_tenth_of_the_losses_counts(
    end: float, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrajectoryMatching, "forward", losing(lambda step: 9.0 if step < 18 else end))
    assert bool(said(caplog, steps=20)) == warned


def test_what_adds_to_such_a_loss_has_its_scale() -> None:
    inner = trajectory_matching().make(MATCHING.settings(1))
    assert KnowledgeExtraction(inner, 0.01).relative_to_start
    assert not UnrolledPerformance.relative_to_start
