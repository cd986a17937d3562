"""The start of difficulty-aligned matching: real samples that experts classify correctly, with the experts' labels."""

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
"""Returns the same networks at each call, to be read one by one."""


def known_samples(experts: Callable[[Settings], NetworkSchedule]) -> Parameterizer:
    """Return a builder of raw samples that start from real ones which trained experts classify correctly.

    Only random real samples (``init`` of ``real``) are selected so; other starts are unchanged. Soft labels start as in
    :func:`labelled_by_experts`.

    Args:
        experts: builds the method's schedule of experts from the settings.
    """

    def build(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        if settings.init != "real" or is_rehearsal():
            return raw_samples(task, budget, settings.init, label, draws)
        finals = finals_of(experts, settings, task)
        counts, classes, num_classes = shares_of(task, budget)
        inputs = start_inputs(task, lambda present: recognised(task, finals, present, draws), counts, draws)
        return Raw(inputs, make_labels(label, classes, num_classes), classes, num_classes)

    return labelled_by_experts(experts, build)


def labelled_by_experts(experts: Callable[[Settings], NetworkSchedule], build: Parameterizer) -> Parameterizer:
    """Return a builder of the same samples whose soft labels start from experts' logits, see :func:`labels_by`.

    Soft labels of noise start near its classes instead.

    Args:
        experts: as for :func:`known_samples`.
        build: builds the samples.
    """

    def built(task: Task, budget: int, settings: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        """Build the samples, and replace soft labels by the experts'.

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
    """Return a function that yields the settings' experts at the end of their training.

    Raises:
        ConfigError: the schedule has no experts.
    """
    schedule = experts(settings)
    if not isinstance(schedule, ExpertTrajectories):
        raise ConfigError(f"samples are chosen and labelled by experts, which {type(schedule).__name__} has not")
    return partial(schedule.finals, task)


@torch.no_grad()
def recognised(task: Task, networks: Networks, counts: Tensor, draws: Draws) -> Tensor:
    """Return the indices of random real samples that the first network classifies correctly.

    Where these are too few of a class, it is filled up with those that the next networks classify correctly, in turn,
    and at last with any others.

    Args:
        task: a task with classes.
        networks: the networks that classify the samples.
        counts: the number of samples of each class.
        draws: the key.
    Shapes:
        counts ``(C,)``; returns ``(counts.sum(),)`` int64, class after class.
    Raises:
        DataError: a class has fewer samples than requested.
    """
    assert task.labels is not None
    require_samples(task, counts)
    sizes = torch.bincount(task.labels, minlength=len(counts))
    shuffled = torch.split(random_subset(task.labels, sizes, draws.fold("subset")), sizes.tolist())
    chosen = []
    for label, (candidates, missing) in enumerate(zip(shuffled, counts.tolist(), strict=True)):
        for network in networks():
            correct = _first_correct(task, network, candidates, label, missing)
            chosen.append(candidates[correct])
            candidates, missing = candidates[~correct], missing - int(correct.sum())
            if not missing:
                break
        chosen.append(candidates[:missing])
    return torch.cat(chosen)


def _first_correct(task: Task, network: NetworkState, rows: Tensor, label: int, count: int) -> Tensor:
    """Mark the first ``count`` of a class's samples that a network classifies correctly, ``(n,)`` bool."""
    correct = torch.zeros(len(rows), dtype=torch.bool)
    begin, marked = 0, 0
    for part in chunks(task, rows) if len(rows) else ():
        part_correct = task.predict(network, task.select(part).inputs)[0].argmax(1).cpu() == label
        part_correct &= part_correct.cumsum(0) <= count - marked
        correct[begin : begin + len(part)] = part_correct
        begin, marked = begin + len(part), marked + int(part_correct.sum())
        if marked == count:
            break
    return correct


@torch.no_grad()
def labels_by(task: Task, networks: Networks, samples: Batch, classes: Tensor) -> Tensor:
    """Return each sample's mean logits over the networks that classify it correctly.

    Where none does, they are the mean over all networks, with the sample's own class raised to the largest logit, so
    that no label ranks another class above it.

    Shapes:
        M samples, classes ``(M,)``; returns ``(M, C)``.
    Source: the published code of Guo et al., ICLR 2024, where every sample is classified correctly, and of Zhang et
    al., ICML 2024, which raises the logit.
    """
    rows = torch.arange(len(classes), device=classes.device)
    parts = torch.split(rows, forward_size(task, samples.inputs))
    logit_sum = torch.zeros((), device=classes.device)
    correct_sum, correct_count, network_count = logit_sum, logit_sum, 0
    for network in networks():
        logits = torch.cat([task.predict(network, take(samples, part).inputs)[0] for part in parts])
        correct = (logits.argmax(1) == classes)[:, None].to(logits.dtype)
        logit_sum, correct_sum = logit_sum + logits, correct_sum + correct * logits
        correct_count = correct_count + correct
        network_count += 1
    fallback = logit_sum / network_count
    fallback[rows, classes] = fallback.amax(1)
    return torch.where(correct_count > 0, correct_sum / correct_count.clamp_min(1), fallback)
