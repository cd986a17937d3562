"""Trajectory matching on a graph: SGC's rates in a unit of the graph, and students in closed form."""

import logging
from dataclasses import dataclass, replace
from typing import Unpack

from torch import Tensor

from mmdistill.graph.models import SGC
from mmdistill.graph.students import train_in_closed_form, trains_in_closed_form
from mmdistill.graph.task import GraphTask
from mmdistill.method import Configured
from mmdistill.methods import experts_by, trajectory_matching
from mmdistill.networks.difficulty import Scoring
from mmdistill.networks.expert_recipe import ExpertRecipe
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.objectives.base import Network, flatten_classes
from mmdistill.objectives.calibration import KnowledgeExtraction
from mmdistill.objectives.trajectory import TrajectoryMatching, TrajectoryOptions
from mmdistill.objectives.unrolled import InnerRate
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Task, Tensors

logger = logging.getLogger(__name__)

STEPS_OF_EPOCH = 100
"""Full-batch steps between two saved networks of an expert."""
EXPERTS = FitProtocol(epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, batch=None, decay_at=(), passes=STEPS_OF_EPOCH)
"""Full-batch SGD on the labelled nodes; the rate is the settings' own."""

GRADERS, GRADED = 2, 20
"""Networks that predict the classes of unlabelled nodes, where experts begin with easy nodes; and their epochs."""


def rate_unit(task: Task) -> float:
    """Return one over the mean squared length of the training nodes' propagated features for SGC; 1 for other networks.

    Steps of softmax regression are stable up to a few times this rate, so that one preset suits features of any size.
    """
    if not (isinstance(task, GraphTask) and isinstance(task.network, SGC)):
        return 1.0
    return 1.0 / max(float(task.embedding().square().sum(1).mean()), 1e-12)


class GraphTrajectoryMatching(TrajectoryMatching):
    """Match the end of a student that trains on synthetic nodes; its SGD rate is in units of :func:`rate_unit`.

    A two-layer student or an SGC that takes plain steps on all nodes trains in closed form; any other one trains step
    by step through its network, with the same result.

    Args: as for :class:`~mmdistill.objectives.trajectory.TrajectoryMatching`.
    Source: Zheng et al., NeurIPS 2023, Sec. 3.2.
    """

    def __init__(self, steps: int, rate: InnerRate, **student: Unpack[TrajectoryOptions]) -> None:
        super().__init__(steps, rate, **student)
        self._measured: tuple[Task, float] | None = None

    def check(self, task: Task) -> None:
        """Refuse impossible settings, warn of an SGC, and measure the unit of rates."""
        super().check(task)
        if isinstance(task, GraphTask) and isinstance(task.network, SGC):
            logger.warning("trajectories of an SGC make a poor set: distil with a GCN (model='gcn', --model gcn)")
        self._unit(task)

    def _unit(self, task: Task) -> float:
        """Return the unit of a task's rates, measured once per task."""
        if self._measured is None or self._measured[0] is not task:
            self._measured = task, rate_unit(task) if self.unrolling.optimizer == "sgd" else 1.0
        return self._measured[1]

    def learned(self) -> Tensors:
        """Return the students' rate, multiplied by its unit."""
        unit = 1.0 if self._measured is None else self._measured[1]
        return {name: tensor * unit for name, tensor in super().learned().items()}

    def student_rate(self, task: Task) -> Tensor:
        """Return the rate of the task's students, multiplied by the task's unit."""
        return super().student_rate(task) * self._unit(task)

    def train_student(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Tensors:
        """Train a student from the network's parameters, and return its own, differentiable."""
        flat = flatten_classes(syn)
        if not (self._steps_are_plain(network, flat) and trains_in_closed_form(network.task, flat)):
            return super().train_student(network, syn, draws)
        return train_in_closed_form(network.state.params, flat, self.student_rate(network.task), self.steps)

    def _steps_are_plain(self, network: Network, syn: Batch) -> bool:
        """Return whether steps are plain SGD on all samples, with one rate and gradients through every step."""
        unrolling = self.unrolling
        whole = self.parts == 1 and (self.batch is None or self.batch >= len(syn.weight))
        sgd = unrolling.optimizer == "sgd" and not unrolling.momentum and unrolling.truncate is None
        return whole and sgd and not self.rate.value.ndim and network.precision != "bf16"


class GraphExperts(ExpertTrajectories):
    """Experts that train on the labelled nodes of the real graph; their rate is in units of :func:`rate_unit`.

    Args: as for :class:`~mmdistill.networks.trajectories.ExpertTrajectories`.
    """

    def recipe_for(self, task: Task) -> ExpertRecipe:
        """Return the recipe of experts, and of networks that grade nodes, with rates multiplied by the graph's unit."""
        recipe, unit = self.recipe, rate_unit(task)
        if recipe.curriculum is not None:
            scoring = recipe.curriculum.scoring
            scoring = replace(scoring, protocol=_scale_rate(scoring.protocol, unit))
            recipe = replace(recipe, curriculum=replace(recipe.curriculum, scoring=scoring))
        return replace(recipe, protocol=_scale_rate(recipe.protocol, unit))


def _scale_rate(protocol: FitProtocol, unit: float) -> FitProtocol:
    return replace(protocol, lr=protocol.lr * unit)


def graph_experts(settings: Settings) -> NetworkSchedule:
    """Return experts on the real graph; without a rate of their own they train at the student's initial rate."""
    protocol = replace(EXPERTS, lr=settings.inner_lr)
    graders = replace(protocol, epochs=GRADED, lr=settings.expert_lr or settings.inner_lr)
    return experts_by(protocol, GraphExperts, Scoring(GRADERS, graders))(settings)


graph_trajectory_matching = trajectory_matching(GraphTrajectoryMatching)
"""Trajectory matching of the settings' students on synthetic nodes; their rate is learned if the settings say so."""


@dataclass(frozen=True)
class KnowledgeSettings(Settings):
    """Settings of trajectory matching with knowledge from an expert.

    Args:
        knowledge: the weight of the divergence of the expert's predictions from the nodes' labels; 0 matches alone.
    """

    knowledge: float = 0.01


def _make_extraction(settings: KnowledgeSettings) -> KnowledgeExtraction:
    return KnowledgeExtraction(graph_trajectory_matching.make(settings), settings.knowledge)


knowledge_extraction = Configured(_make_extraction)
"""Trajectory matching plus the divergence between the expert's final predictions and the nodes' labels."""
