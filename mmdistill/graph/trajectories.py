"""Trajectory matching on a graph: rates in a unit of the graph's own, so that one preset suits features of any size."""

from dataclasses import replace

from torch import Tensor

from mmdistill.graph.task import GraphTask
from mmdistill.method import Configured
from mmdistill.networks.experts import ExpertRecipe, Experts, default_folder, open_experts
from mmdistill.networks.fit import FitProtocol
from mmdistill.networks.trajectories import ExpertTrajectories, needed_epochs
from mmdistill.networks.unroll import unroll
from mmdistill.objectives.base import Network
from mmdistill.objectives.trajectory import TrajectoryMatching
from mmdistill.objectives.unrolled import InnerRate, flat, student_loss
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Task, Tensors

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
    """Match where a student ends that trains on synthetic nodes; its rate counts in :func:`rate_unit`.

    Args: as for :class:`~mmdistill.objectives.unrolled.UnrolledObjective`.
    Source: Zheng et al., NeurIPS 2023, Sec. 3.2.
    """

    def train_student(self, network: Network, syn: Batch | ClassBatch, draws: Draws) -> Tensors:
        """Return the parameters of a student that started at the network and took all steps, differentiably."""
        steps = self.step_batches(network.task, flat(syn), draws)
        rate: Tensor = self.rate() * rate_unit(network.task)
        loss = student_loss(network, draws.fold("student"))
        return unroll(loss, network.state.params, steps, rate, self.unrolling)


class GraphExperts(ExpertTrajectories):
    """Experts that train on the labelled nodes of the real graph; their rate counts in :func:`rate_unit`.

    Args: as for :class:`~mmdistill.networks.trajectories.ExpertTrajectories`.
    """

    def _experts(self, task: Task) -> Experts:
        """Open the experts, training those that are missing."""
        if self._opened is None or self._opened[0] is not task:
            protocol = replace(self.recipe.protocol, lr=self.recipe.protocol.lr * rate_unit(task))
            recipe = replace(self.recipe, protocol=protocol)
            folder = self.folder or default_folder(task, recipe)
            self._opened = task, open_experts(task, folder, self.experts, recipe)
        return self._opened[1]


def graph_experts(settings: Settings) -> GraphExperts:
    """Experts on the real graph that train at the student's first rate."""
    epochs = needed_epochs(settings.start_epochs, settings.expert_steps)
    recipe = ExpertRecipe(replace(EXPERTS, epochs=epochs, lr=settings.inner_lr), augment=False)
    return GraphExperts(settings.experts, settings.start_epochs, settings.expert_steps, recipe)


def _matching(settings: Settings) -> GraphTrajectoryMatching:
    rate = InnerRate(settings.inner_lr, learn="objective" in settings.optimizers)
    return GraphTrajectoryMatching(settings.inner_steps, rate)


graph_trajectory_matching = Configured(_matching)
"""Trajectory matching of the settings' student steps on the whole synthetic set, its rate learned where asked for."""
