"""Real samples that experts know, with the experts' labels: what difficulty-aligned matching starts from."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from mmdistill.allocation import shares_of
from mmdistill.coresets import chunks, forward_size, require_samples
from mmdistill.errors import ConfigError
from mmdistill.labels import LabelKind, SoftmaxLabels, make_labels
from mmdistill.method import Parameterizer
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw, raw_samples
from mmdistill.parameterizations.starts import start_inputs
from mmdistill.rehearsal import is_rehearsal
from mmdistill.rules import random_subset
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, NetworkState, Task, take

Networks = Callable[[], Iterable[NetworkState]]
"""Gives the same networks each time, one by one."""


def known_samples(experts: Callable[[Settings], NetworkSchedule]) -> Parameterizer:
    """Return a builder of raw samples that start from what experts know at the end of their training.

    Random real samples are those of which an expert knows the class. Others, chosen in another way, are as chosen. Soft
    labels start as :func:`labelled_by_experts` has them.

    Args:
        experts: how the settings make the schedule whose experts these are; the method's own.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        if settings.init != "real" or is_rehearsal():
            return raw_samples(task, budget, settings.init, label, draws)
        finals = finals_of(experts, settings, task)
        counts, classes, num_classes = shares_of(task, budget)
        inputs = start_inputs(task, lambda once: recognised(task, finals, once, draws), counts, draws)
        return Raw(inputs, make_labels(label, classes, num_classes), classes, num_classes)

    return labelled_by_experts(experts, build)


def labelled_by_experts(experts: Callable[[Settings], NetworkSchedule], build: Parameterizer) -> Parameterizer:
    """Return a builder of the same samples whose soft labels start from experts' logits, :func:`labels_by`.

    Those of noise start near its classes.

    Args:
        experts: as for :func:`known_samples`.
        build: builds the samples.
    """

    def built(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        """Build samples that experts label where their labels are soft.

        Raises:
            ConfigError: a schedule without experts, a task without classes, or a budget that cannot be shared.
        """
        finals = finals_of(experts, settings, task)
        made = build(task, budget, settings, label, draws)
        if label == "soft" and settings.init != "noise" and not is_rehearsal():
            assert made.classes is not None
            made.labels = SoftmaxLabels.of_logits(labels_by(task, finals, made(draws), made.classes))
        return made

    return built


def finals_of(experts: Callable[[Settings], NetworkSchedule], settings: Settings, task: Task) -> Networks:
    """Return what gives the settings' experts as their training ended.

    Raises:
        ConfigError: a schedule without experts.
    """
    schedule = experts(settings)
    if not isinstance(schedule, ExpertTrajectories):
        raise ConfigError(f"samples are chosen and labelled by experts, which {type(schedule).__name__} has not")
    return partial(schedule.finals, task)


@torch.no_grad()
def recognised(task: Task, networks: Networks, counts: Tensor, draws: Draws) -> Tensor:
    """Return random real samples whose classes the first network knows.

    Of classes of which it knows too few, those that the next networks know follow, and in the end others.

    Args:
        task: the task, of classes.
        networks: who knows them.
        counts: how many of each class.
        draws: the key.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64, class after class.
    Raises:
        DataError: a class with fewer samples than asked for.
    """
    assert task.labels is not None
    require_samples(task, counts)
    sizes = torch.bincount(task.labels, minlength=len(counts))
    shuffled = torch.split(random_subset(task.labels, sizes, draws.fold("subset")), sizes.tolist())
    chosen = []
    for label, (left, wanted) in enumerate(zip(shuffled, counts.tolist(), strict=True)):
        found: list[Tensor] = []
        missing = wanted
        for network in networks():
            known = _first_known(task, network, left, label, missing)
            found.append(left[known])
            left, missing = left[~known], missing - int(known.sum())
            if not missing:
                break
        chosen += [*found, left[:missing]]
    return torch.cat(chosen)


def _first_known(task: Task, network: NetworkState, rows: Tensor, label: int, wanted: int) -> Tensor:
    """Return which of a class's samples, in their order, are the first so many that a network knows, ``(n,)`` bool."""
    known = torch.zeros(len(rows), dtype=torch.bool)
    begin, count = 0, 0
    for part in chunks(task, rows) if len(rows) else ():
        own = task.predict(network, task.select(part).inputs)[0].argmax(1).cpu() == label
        own &= own.cumsum(0) <= wanted - count
        known[begin : begin + len(part)] = own
        begin, count = begin + len(part), count + int(own.sum())
        if count == wanted:
            break
    return known


@torch.no_grad()
def labels_by(task: Task, networks: Networks, samples: Batch, classes: Tensor) -> Tensor:
    """Return the mean logits of those networks that know each sample's class.

    Where none does they are those of all, with the class's own raised to the largest: no label names another class
    alone.

    Shapes:
        M samples, classes ``(M,)``; returns ``(M, C)``.
    Source: the published code of Guo et al., ICLR 2024, where every sample is known, and of Zhang et al., ICML 2024,
    which raises.
    """
    rows = torch.arange(len(classes), device=classes.device)
    parts = torch.split(rows, forward_size(task, samples.inputs))
    every = torch.zeros((), device=classes.device)
    right, number, total = every, every, 0
    for network in networks():
        logits = torch.cat([task.predict(network, take(samples, part).inputs)[0] for part in parts])
        knows = (logits.argmax(1) == classes)[:, None].to(logits.dtype)
        every, right, number = every + logits, right + knows * logits, number + knows
        total += 1
    unknown = every / total
    unknown[rows, classes] = unknown.amax(1)
    return torch.where(number > 0, right / number.clamp_min(1), unknown)
