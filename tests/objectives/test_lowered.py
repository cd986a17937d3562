"""Which networks of class-wise matching run in bfloat16: those of the real side, or of both."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmdistill.objectives.base import Network, Objective
from mmdistill.objectives.calibration import CalibratedMatching
from mmdistill.objectives.characteristic import CharacteristicMatching
from mmdistill.objectives.discrimination import DiscriminativeMatching
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.objectives.regularised import RegularisedMatching
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Inputs, NetworkState, share_classes
from tests.objectives.test_objectives import class_batch
from tests.toys import BlobTask

SYN, REAL = 2, 9


class WatchedTask(BlobTask):
    """Blobs that note whether each side's networks run in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.lowered: defaultdict[str, set[bool]] = defaultdict(set)

    def note(self, inputs: Inputs) -> None:
        assert isinstance(inputs, Tensor)
        self.lowered["real" if len(inputs) % REAL == 0 else "syn"].add(torch.is_autocast_enabled("cpu"))

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        self.note(inputs)
        return super().features(state, inputs)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        self.note(batch.inputs)
        return super().loss(state, batch, train=train, draws=draws)


@pytest.mark.parametrize(
    "make",
    [
        GradientMatching,
        DistributionMatching,
        DiscriminativeMatching,
        lambda: CharacteristicMatching(4),
        RegularisedMatching,
        CalibratedMatching,
    ],
)
def test_mixed_lowers_the_real_side_and_bf16_both(make: Callable[[], Objective]) -> None:
    for precision, syn_is_lowered in (("mixed", False), ("bf16", True)):
        task, key = WatchedTask(), Draws(3)
        network = Network(task, task.init(key), target=task.init(key.fold("expert")).params, precision=precision)
        sides = class_batch(task, SYN, "syn"), class_batch(task, REAL, "real")
        make()(network._replace(accuracy=torch.tensor(0.5)), *sides, key)
        assert task.lowered == {"real": {True}, "syn": {syn_is_lowered}}


@pytest.mark.parametrize(
    "make", [GradientMatching, DistributionMatching, lambda: UnrolledPerformance(2, InnerRate(0.1))]
)
def test_classes_that_share_inputs_and_students_are_lowered_by_bf16_alone(make: Callable[[], Objective]) -> None:
    for precision, lowered in (("mixed", False), ("bf16", True)):
        task, objective = WatchedTask(), make()
        network = Network(task, task.init(Draws(3)), precision=precision)  # type: ignore[arg-type]
        sides = [task.select(torch.arange(count)) for count in (SYN, REAL)]
        if objective.view == "classes":
            sides = [share_classes(batch, torch.ones(3, len(batch.weight))) for batch in sides]
        objective(network, *sides, Draws(4))
        assert task.lowered == {"real": {lowered}, "syn": {lowered}}
