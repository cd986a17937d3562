"""Trajectory matching on a graph: rates in a unit of the graph's own, so that one preset suits features of any size."""

from dataclasses import replace
from typing import Unpack

from torch import Tensor

from mmdistill.graph.task import GraphTask
from mmdistill.methods import experts_by, trajectory_matching
from mmdistill.networks.experts import ExpertRecipe
from mmdistill.networks.fit import FitProtocol
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.objectives.trajectory import TrajectoryMatching, TrajectoryOptions
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.settings import Settings
from mmdistill.task import Task, Tensors

EXPERTS = FitProtocol(epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, batch=None, decay_at=())
"""Full-batch SGD on the labelled nodes; the rate is the settings' own."""


def rate_unit(task: Task) -> float:
    """Return one over the mean squared length of the training nodes' propagated features; 1 for other tasks.

    Steps of softmax regression are stable up to a few times this rate.
    """
    if not isinstance(task, GraphTask):
        return 1.0
    return 1.0 / max(float(task.embedding().square().sum(1).mean()), 1e-12)


class GraphTrajectoryMatching(TrajectoryMatching):
    """Match where a student ends that trains on synthetic nodes; its rate in SGD counts in :func:`rate_unit`.

    Args: as for :class:`~mmdistill.objectives.trajectory.TrajectoryMatching`.
    Source: Zheng et al., NeurIPS 2023, Sec. 3.2.
    """

    def __init__(self, steps: int, rate: InnerRate, **student: Unpack[TrajectoryOptions]) -> None:
        super().__init__(steps, rate, **student)
        self._measured: tuple[Task, float] | None = None

    def check(self, task: Task) -> None:
        """Refuse what cannot be, and measure the unit of the graph's rates."""
        super().check(task)
        self._unit(task)

    def _unit(self, task: Task) -> float:
        """Return the unit of a task's rates, measured once."""
        if self._measured is None or self._measured[0] is not task:
            self._measured = task, rate_unit(task) if self.unrolling.optimizer == "sgd" else 1.0
        return self._measured[1]

    def learned(self) -> Tensors:
        """Return the rate that students take, unit included."""
        unit = 1.0 if self._measured is None else self._measured[1]
        return {name: tensor * unit for name, tensor in super().learned().items()}

    def student_rate(self, task: Task) -> Tensor:
        """Return the rate of the task's students in its unit."""
        return super().student_rate(task) * self._unit(task)


class GraphExperts(ExpertTrajectories):
    """Experts that train on the labelled nodes of the real graph; their rate counts in :func:`rate_unit`.

    Args: as for :class:`~mmdistill.networks.trajectories.ExpertTrajectories`.
    """

    def recipe_for(self, task: Task) -> ExpertRecipe:
        """Return how experts train, at a rate in the graph's unit."""
        protocol = self.recipe.protocol
        return replace(self.recipe, protocol=replace(protocol, lr=protocol.lr * rate_unit(task)))


def graph_experts(settings: Settings) -> NetworkSchedule:
    """Experts on the real graph that train at the student's first rate."""
    return experts_by(replace(EXPERTS, lr=settings.inner_lr), GraphExperts)(settings)


graph_trajectory_matching = trajectory_matching(GraphTrajectoryMatching)
"""Trajectory matching of the settings' students on synthetic nodes, their rate learned where asked for."""
