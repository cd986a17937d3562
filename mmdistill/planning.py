"""What a run would do, in words, before it does it."""

from dataclasses import asdict

import torch

from mmdistill.allocation import allocate, require_members
from mmdistill.composition import network_unread
from mmdistill.config import DistillConfig
from mmdistill.evaluate import find_judges
from mmdistill.method import Method
from mmdistill.networks.architecture import network_title
from mmdistill.report import settings_in_words
from mmdistill.task import Task


def plan_rows(config: DistillConfig, task: Task, method: Method, budget: int) -> list[list[str]]:
    """Return what a configuration means, as name and value: the settings in effect, who judges, and where it lies.

    Raises:
        ConfigError: a budget that cannot be shared among the classes.
        DataError: fewer real samples of a class than the set starts from.
    """
    info, settings = task.describe(), method.settings(budget)
    counts = allocate(budget, info.budget, task.labels, task.num_classes)
    if (
        task.labels is not None
        and method.parameterization is None
        and method.solve is None
        and settings.init != "noise"
    ):
        require_members(torch.bincount(task.labels, minlength=len(counts)), counts, info.class_names)
    judges = find_judges(task, config.judge_names(), method.judge)
    networks = f"{config.networks} network{'' if config.networks == 1 else 's'} each"
    facts = {
        "data": f"{info.data} ({info.domain}, {info.num_train:,} training samples, {info.stored_bytes:,} bytes)",
        "method": f"{method.title}, {settings.steps:,} steps, seed {config.seed}",
        "budget": f"{info.budget} {budget}",
        "network": "" if network_unread(method, budget) else network_title(task),
        "stored as": method.storage or "the method's own way",
        "labels": method.label,
        "settings": settings_in_words(asdict(settings)),
        "judges": f"{', '.join(judges)}, {networks}",
        "baselines": config.baselines,
        "run folder": str(config.folder()),
    }
    return [[name, value] for name, value in facts.items() if value]
