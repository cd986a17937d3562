"""Teachers: networks trained on the real data, which label synthetic samples (Sec. 3.5) or are inverted themselves."""

from dataclasses import replace

import torch
from torch import Tensor

from mmdistill.abilities import given_teacher
from mmdistill.errors import ConfigError
from mmdistill.execution.portions import samples_at_once
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import describe_experts, open_experts, serving_folder
from mmdistill.networks.schedules import NetworkSchedule, ScheduleState, Synthetic
from mmdistill.runtime import Draws
from mmdistill.task import Inputs, NetworkState, Task

TRAINING = replace(PUBLISHED, momentum=0.9)
"""Momentum trains a teacher faster; experts go without, since their trajectories matter."""

LABEL_BATCH = 512
"""Samples that a teacher labels at once, fewer of large images."""


def trained_teacher(task: Task, epochs: int) -> NetworkState:
    """Return a network trained on the real data, from the cache if it is there.

    It depends on the data, the network and the epochs, not on the distillation's seed. If the task was given a teacher,
    return a copy of that one; ``epochs`` are then ignored.

    Raises:
        ConfigError: no epoch.
    """
    if (given := given_teacher(task)) is not None:
        return given.state.map(lambda tensor: tensor.clone())
    recipe = _recipe(epochs)
    return open_experts(task, serving_folder(task, recipe, 1), 1, recipe, called="teacher").snapshot(0, epochs)


def describe_teacher(task: Task, epochs: int) -> str:
    """Describe in words where the network of :func:`trained_teacher` is, or that it will be trained or was given.

    Raises:
        ConfigError: no epoch.
    """
    if (given := given_teacher(task)) is not None:
        return f"the given {given}, trained already; how accurate it is, nothing checks"
    recipe = _recipe(epochs)
    return describe_experts(task, serving_folder(task, recipe, 1), 1, recipe, called="a network")


def _recipe(epochs: int) -> ExpertRecipe:
    if epochs < 1:
        raise ConfigError(f"a teacher trains for at least 1 epoch, got {epochs}")
    return ExpertRecipe(replace(TRAINING, epochs=epochs))


@torch.no_grad()
def soft_labels(task: Task, teacher: NetworkState, inputs: Inputs, temperature: float = 1.0) -> Tensor:
    """Return a teacher's class probabilities of samples, ``(n, C)``, computed in portions.

    Args:
        task: the task.
        teacher: a network of the task.
        inputs: the samples.
        temperature: divides the logits.

    Source: Cui et al., ICML 2023, Sec. 3.3.
    """
    parts = torch.split(inputs, samples_at_once(LABEL_BATCH, inputs)) if isinstance(inputs, Tensor) else (inputs,)
    return torch.cat([(task.predict(teacher, part)[0] / temperature).softmax(-1) for part in parts])


class TrainedNetwork(NetworkSchedule):
    """Give all steps the network that :func:`trained_teacher` trains, with the statistics of its training.

    The run's state keeps it, so that a resumed run continues with the same network.

    Args:
        epochs: epochs of training on the real data, the setting ``teacher_epochs``, as for a teacher that labels.
    Raises:
        ConfigError: no epoch.
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise ConfigError(f"a network that steps read trains for at least 1 epoch, got {epochs}")
        self.epochs = epochs

    def make_ready(self, task: Task) -> None:
        """Train the network if it is not in the cache."""
        trained_teacher(task, self.epochs)

    def describe_teacher(self, task: Task) -> str:
        """Describe in words where the network is, or that it will be trained."""
        return describe_teacher(task, self.epochs)

    def fetch(self, task: Task, state: ScheduleState, draws: Draws) -> ScheduleState:
        """Return the network, whose batch norms keep the statistics of its training."""
        return ScheduleState(trained_teacher(task, self.epochs), 0, {}) if state.network is None else state

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        """Keep the network."""
        return state._replace(age=state.age + 1)
