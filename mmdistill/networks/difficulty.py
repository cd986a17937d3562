"""How hard real samples are to learn: the error that networks make early in their training (EL2N)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from mmdistill.abilities import GradesSamples
from mmdistill.errors import CheckpointError, ConfigError
from mmdistill.execution.portions import samples_at_once
from mmdistill.labels import are_probabilities, as_probabilities, hard_labels
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.store import opened_tensors, write_tensors
from mmdistill.task import Batch, NetworkState, Task, take

SCORE_BATCH = 1024
"""Samples that a network scores at once, fewer of large images."""
SCORERS_SEED = 1
"""Differs from the seed of experts and teachers, so that scorers are other networks."""
SCORES = "scores"
SCORERS = FitProtocol(epochs=20, momentum=0.9, weight_decay=0.0, decay_at=())
"""With momentum, unlike experts: the trajectories of these networks do not matter, only what they know early."""


@dataclass(frozen=True)
class Scoring:
    """The networks that score the difficulty of samples.

    Args:
        networks: number of networks.
        protocol: how each of them trains on the real data.
    Source: Paul et al., NeurIPS 2021: ten networks, after twenty of two hundred epochs.
    """

    networks: int = 10
    protocol: FitProtocol = SCORERS

    def __post_init__(self) -> None:
        if min(self.networks, self.protocol.epochs) < 1:
            raise ConfigError(
                f"difficulty is scored by a network and after an epoch or more, got {self.networks} networks and "
                f"{self.protocol.epochs} epochs"
            )


BY_TEN = Scoring()


def scored_classes(batch: Batch) -> Tensor:
    """Return the samples' classes, ``(n,)`` int64.

    Raises:
        ConfigError: samples without classes.
    """
    targets = batch.targets
    if not isinstance(targets, Tensor) or targets.ndim > 2 or not are_probabilities(targets):
        raise ConfigError("difficulty is scored by class, and these samples have none; leave expert_easy and so on out")
    return hard_labels(targets)


def difficulty_of(task: Task, data: Batch, networks: Iterable[NetworkState]) -> Tensor:
    """Return the difficulty of the training samples, ``(n,)``: the task's own grades, or the networks' errors."""
    return task.difficulty(networks) if isinstance(task, GradesSamples) else el2n(task, data, networks)


@torch.no_grad()
def el2n(task: Task, data: Batch, networks: Iterable[NetworkState]) -> Tensor:
    r"""Return each sample's mean error over some networks (EL2N), higher for harder samples.

    .. math:: \frac{1}{K} \sum_k \| \mathrm{softmax}\, f_{\theta_k}(x) - y \|_2

    Args:
        task: the networks' task.
        data: the samples, as networks train on them.
        networks: networks early in their training.
    Shapes:
        n samples; returns ``(n,)``.
    Source: Paul et al., NeurIPS 2021, Sec. 2.2.
    """
    rows = torch.arange(data.weight.shape[0], device=data.weight.device)
    parts = torch.split(rows, samples_at_once(SCORE_BATCH, data.inputs))
    classes = scored_classes(data)
    total, number = torch.zeros_like(data.weight), 0
    for network in networks:
        errors = []
        for part in parts:
            predicted = task.predict(network, take(data, part).inputs)[0].softmax(-1)
            errors.append((predicted - as_probabilities(classes[part], predicted.shape[1])).norm(dim=1))
        total, number = total + torch.cat(errors), number + 1
    return total / number


def cached_scores(path: Path, count: int, make: Callable[[], Tensor]) -> Tensor:
    """Return the scores of ``count`` samples from a file, or make and save them if it is missing or does not fit."""
    if path.exists():
        try:
            with opened_tensors(path) as handle:
                cached: Tensor = handle.get_tensor(SCORES)
            if cached.shape == (count,):
                return cached
        except (CheckpointError, safetensors.SafetensorError, OSError):  # a damaged file is written anew
            pass
    scores = make().cpu()
    write_tensors(path, {SCORES: scores})
    return scores
