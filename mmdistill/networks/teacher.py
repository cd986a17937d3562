"""Teachers: networks trained on the real data, whose predictions become the labels of synthetic samples (Sec. 3.5)."""

from dataclasses import replace

import torch
from torch import Tensor

from mmdistill.abilities import given_teacher
from mmdistill.errors import ConfigError
from mmdistill.execution.portions import samples_at_once
from mmdistill.networks.expert_recipe import PUBLISHED, ExpertRecipe
from mmdistill.networks.experts import describe_experts, open_experts, serving_folder
from mmdistill.task import Inputs, NetworkState, Task

TRAINING = replace(PUBLISHED, momentum=0.9)
"""Unlike experts, of whom the way matters, a teacher may take momentum and arrive sooner."""

LABEL_BATCH = 512
"""Samples that a teacher labels at once, fewer of large images."""


def trained_teacher(task: Task, epochs: int) -> NetworkState:
    """Return a network that trained on the real data, from the cache folder where it is there already.

    It depends on the data, the network and the epochs, not on the distillation's seed. Where the task was given a
    teacher, it is a copy of that one, and the epochs are not read.

    Raises:
        ConfigError: no epoch.
    """
    if (given := given_teacher(task)) is not None:
        return given.state.map(lambda tensor: tensor.clone())
    recipe = _recipe(epochs)
    return open_experts(task, serving_folder(task, recipe, 1), 1, recipe, called="teacher").snapshot(0, epochs)


def describe_teacher(task: Task, epochs: int) -> str:
    """Return in words where the network of :func:`trained_teacher` is, or that it will be trained, or was given.

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
    """Return a teacher's class probabilities for some samples, ``(n, C)``, some at a time.

    Args:
        task: the task.
        teacher: a network of its.
        inputs: the samples.
        temperature: by which logits are divided.

    Source: Cui et al., ICML 2023, Sec. 3.3.
    """
    parts = torch.split(inputs, samples_at_once(LABEL_BATCH, inputs)) if isinstance(inputs, Tensor) else (inputs,)
    return torch.cat([(task.predict(teacher, part)[0] / temperature).softmax(-1) for part in parts])
