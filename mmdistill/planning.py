"""What a run would do, in words, before it does it."""

from dataclasses import asdict

import torch

from mmdistill.abilities import TellsEpochs
from mmdistill.allocation import allocate, require_members
from mmdistill.config import DistillConfig
from mmdistill.evaluate import find_judges
from mmdistill.method import Method
from mmdistill.names import baseline_names
from mmdistill.networks.architecture import network_title
from mmdistill.report import settings_in_words
from mmdistill.run_folder import occupied, ways_out
from mmdistill.settings import Settings
from mmdistill.task import Task


def plan_rows(config: DistillConfig, task: Task, method: Method, budget: int) -> list[list[str]]:
    """Return what a configuration means, as name and value: the settings in effect, who judges, and where it lies.

    Args:
        config: the configuration.
        task: that it names.
        method: that it names.
        budget: in the task's unit.
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
    folder = config.folder()
    taken = "" if config.overwrite else occupied(folder, **ways_out(folder))
    known = method.parameterization is None and method.label != "unrestricted" and not _carries_steps(method, settings)
    facts = {
        "data": f"{info.data} ({info.domain}, {info.num_train:,} training samples, {info.stored_bytes:,} bytes)",
        "method": f"{method.title}, {settings.steps:,} steps, seed {config.seed}",
        "budget": f"{info.budget} {budget}",
        "network": "" if method.reads_no_network(budget) else network_title(task),
        "stored as": method.storage or "the method's own way",
        "labels": method.label,
        "settings": settings_in_words(asdict(settings)),
        "judges": _judged(config, task, judges, int(counts.sum()) if known else None),
        "baselines": _baselines(config, task, judges),
        "run folder": f"{folder} {taken}".strip(),
    }
    return [[name, value] for name, value in facts.items() if value]


def _judged(config: DistillConfig, task: Task, judges: list[str], samples: int | None) -> str:
    """Return who judges, how many networks of each, and for how many epochs these train where the task tells.

    Args:
        config: the configuration.
        task: the task.
        judges: their names.
        samples: of classes in the set; None where they are decoded, or labelled by scores, or come with steps.
    """
    epochs = {judge: None if samples is None else _epochs(task, judge, samples) for judge in judges}
    networks = f"{config.networks} network{'' if config.networks == 1 else 's'} each"
    if len(set(epochs.values())) == 1:
        return ", ".join([*judges, networks, *([own] if (own := epochs[judges[0]]) else [])])
    return f"{', '.join(f'{judge} ({own})' if own else judge for judge, own in epochs.items())}, {networks}"


def _baselines(config: DistillConfig, task: Task, judges: list[str]) -> str:
    """Return the baselines, the whole set with the epochs for which networks train on it where the task tells them."""
    told = dict.fromkeys(filter(None, (_epochs(task, judge, None) for judge in judges)))
    whole = f"whole ({', '.join(told)})" if told else "whole"
    return ", ".join(whole if name == "whole" else name for name in baseline_names(config.baselines)) or "none"


def _epochs(task: Task, judge: str, samples: int | None) -> str:
    """Return for how many epochs a judge trains on so many samples (None: on all), in words; empty if unknown."""
    epochs = task.judging_epochs(judge, samples) if isinstance(task, TellsEpochs) else None
    return "" if epochs is None else f"{epochs:,} epoch{'' if epochs == 1 else 's'}"


def _carries_steps(method: Method, settings: Settings) -> bool:
    """Return whether the method's sets carry the steps that students take, which judges then take too."""
    return method.solve is None and "inner_parts" in method.make_objective(settings).learned()
