"""Trajectory matching on a graph: SGC's rates in a unit of the graph's own, and students in closed form."""

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
"""Steps on the whole graph between two networks of an expert that are kept."""
EXPERTS = FitProtocol(epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, batch=None, decay_at=(), passes=STEPS_OF_EPOCH)
"""Full-batch SGD on the labelled nodes; the rate is the settings' own."""

GRADERS, GRADED = 2, 20
"""Networks that say the classes of nodes without a label, where experts begin with easy nodes, and their epochs."""


def rate_unit(task: Task) -> float:
    """Return one over the mean squared length of the training nodes' propagated features for SGC; 1 for other networks.

    Steps of softmax regression are stable up to a few times this rate, so that one preset suits features of any size.
    """
    if not (isinstance(task, GraphTask) and isinstance(task.network, SGC)):
        return 1.0
    return 1.0 / max(float(task.embedding().square().sum(1).mean()), 1e-12)


class GraphTrajectoryMatching(TrajectoryMatching):
    """Match where a student ends that trains on synthetic nodes; its rate in SGD counts in :func:`rate_unit`.

    A student of two layers or an SGC that takes plain steps on all nodes trains in closed form, any other one step by
    step through its network, with the same result.

    Args: as for :class:`~mmdistill.objectives.trajectory.TrajectoryMatching`.
    Source: Zheng et al., NeurIPS 2023, Sec. 3.2.
    """

    def __init__(self, steps: int, rate: InnerRate, **student: Unpack[TrajectoryOptions]) -> None:
        super().__init__(steps, rate, **student)
        self._measured: tuple[Task, float] | None = None

    def check(self, task: Task) -> None:
        """Refuse what cannot be, and measure the unit of the graph's rates."""
        super().check(task)
        if isinstance(task, GraphTask) and isinstance(task.network, SGC):
            logger.warning("trajectories of an SGC make a poor set: distil with a GCN (model='gcn', --model gcn)")
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

    def train_student(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Tensors:
        """Return the parameters of a student that started at the network and took all steps, differentiably."""
        flat = flatten_classes(syn)
        if not (self._steps_are_plain(network, flat) and trains_in_closed_form(network.task, flat)):
            return super().train_student(network, syn, draws)
        return train_in_closed_form(network.state.params, flat, self.student_rate(network.task), self.steps)

    def _steps_are_plain(self, network: Network, syn: Batch) -> bool:
        """Return whether each step is one of SGD on all samples, at one rate and with all gradients."""
        unrolling = self.unrolling
        whole = self.parts == 1 and (self.batch is None or self.batch >= len(syn.weight))
        sgd = unrolling.optimizer == "sgd" and not unrolling.momentum and unrolling.truncate is None
        return whole and sgd and not self.rate.value.ndim and network.precision != "bf16"


class GraphExperts(ExpertTrajectories):
    """Experts that train on the labelled nodes of the real graph; their rate counts in :func:`rate_unit`.

    Args: as for :class:`~mmdistill.networks.trajectories.ExpertTrajectories`.
    """

    def recipe_for(self, task: Task) -> ExpertRecipe:
        """Return how experts train, and what grades their nodes, at rates in the graph's unit."""
        recipe, unit = self.recipe, rate_unit(task)
        if recipe.curriculum is not None:
            scoring = recipe.curriculum.scoring
            scoring = replace(scoring, protocol=_times(scoring.protocol, unit))
            recipe = replace(recipe, curriculum=replace(recipe.curriculum, scoring=scoring))
        return replace(recipe, protocol=_times(recipe.protocol, unit))


def _times(protocol: FitProtocol, unit: float) -> FitProtocol:
    return replace(protocol, lr=protocol.lr * unit)


def graph_experts(settings: Settings) -> NetworkSchedule:
    """Experts on the real graph that train at the student's first rate where they have none of their own."""
    protocol = replace(EXPERTS, lr=settings.inner_lr)
    graders = replace(protocol, epochs=GRADED, lr=settings.expert_lr or settings.inner_lr)
    return experts_by(protocol, GraphExperts, Scoring(GRADERS, graders))(settings)


graph_trajectory_matching = trajectory_matching(GraphTrajectoryMatching)
"""Trajectory matching of the settings' students on synthetic nodes, their rate learned where asked for."""


@dataclass(frozen=True)
class KnowledgeSettings(Settings):
    """Settings of trajectory matching beside which an expert says what the nodes are.

    Args:
        knowledge: the weight of the divergence of what it says from the nodes' labels; 0 matches alone.
    """

    knowledge: float = 0.01


def _extracting(settings: KnowledgeSettings) -> KnowledgeExtraction:
    return KnowledgeExtraction(graph_trajectory_matching.make(settings), settings.knowledge)


knowledge_extraction = Configured(_extracting)
"""The same, beside which the expert's end says of the nodes what their labels say."""
