"""What a run would do, in words, before it does it."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import torch

from mmdistill.abilities import AsksTeacher, TellsEpochs, is_solved, judge_title
from mmdistill.allocation import allocate
from mmdistill.composition import asked_teacher
from mmdistill.config import DistillConfig
from mmdistill.distiller import Distiller
from mmdistill.evaluate import find_baselines, find_judges
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.method import Method
from mmdistill.names import counted, first_few
from mmdistill.networks.architecture import network_title
from mmdistill.networks.minibatches import carries_steps
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.reporting.report import settings_in_words
from mmdistill.runs.advice import lowering_start
from mmdistill.runs.folder import occupied, ways_out
from mmdistill.settings import Settings
from mmdistill.task import Task

UNKNOWN = "epochs that depend on the finished set"
"""What is said of judges' training where how many samples there will be, or what labels, is not known before."""


def plan_rows(config: DistillConfig, task: Task, method: Method, budget: int) -> list[list[str]]:
    """Return what a configuration means, as name and value: the settings in effect, who judges, and where it lies.

    Args:
        config: the configuration.
        task: that it names.
        method: that it names.
        budget: in the task's unit.
    Raises:
        ConfigError: a budget that cannot be shared among the classes, or parts that cannot go together.
        DataError: fewer real samples of a class than the set starts from, or others that a run refuses.
        MemoryExhaustedError: samples that do not fit into it.
        CheckpointError: experts that are there already, and are others than the method matches.
    """
    info, settings = task.describe(), method.settings(budget)
    counts = allocate(budget, info.budget, task.labels, task.num_classes)
    distiller = Distiller(task, method, budget, seed=config.seed, precision=config.precision)
    with out_of_memory_advice("the start of the distillation", lowering_start(settings)):
        made = distiller.rehearse()
    judges = find_judges(task, config.judge_names(), method.judge)
    folder = config.folder()
    taken = "" if config.overwrite else occupied(folder, **ways_out(folder))
    known = method.parameterization is None and method.label != "unrestricted"
    samples = None if made.classes is None else len(made.classes)
    judges_teacher = _judges_teacher(task, judges)
    own_steps = not judges_teacher and _carries_steps(method, settings)  # which belong to the labels of the set
    facts = {
        "data": f"{info.data} ({info.domain}, {info.num_train:,} training samples, {info.stored_bytes:,} bytes)",
        "classes": _classes(task),
        "method": f"{method.title}, {settings.steps:,} steps, seed {config.seed}",
        "budget": f"{info.budget} {budget}{'' if samples in (None, int(counts.sum())) else f', {samples:,} samples'}",
        "network": "" if method.reads_no_network(budget) else network_title(task),
        "stored as": method.storage,
        "labels": made.labels.title,
        "settings": settings_in_words(asdict(settings), method.storage),
        "generator": method.describe_pretraining(task),
        "experts": _experts(distiller),
        "teacher": asked_teacher(task, method, budget, settings, distiller.schedule, made),
        "judges": _judged(config, task, judges, {} if own_steps else _told(task, judges, int(counts.sum()), known)),
        "judges' teacher": judges_teacher,
        "baselines": _baselines(config, task, judges),
        "run folder": f"{folder} {taken}".strip(),
    }
    return [[name, value] for name, value in facts.items() if value]


def _classes(task: Task) -> str:
    """Return how many classes there are, which, and how many training samples they have; empty without classes."""
    if task.labels is None or task.num_classes is None:
        return ""
    counts = torch.bincount(task.labels[task.labels >= 0], minlength=task.num_classes)
    least, most = int(counts.min()), int(counts.max())
    each = f"{most:,} training samples each" if least == most else f"{least:,} to {most:,} training samples"
    return f"{task.num_classes:,}, of {each}: {first_few(task.describe().class_names)}"


def _told(task: Task, judges: list[str], samples: int, known: bool) -> dict[str, str]:
    """Return for how many epochs judges train, in words, of those that do; empty where the task does not tell it.

    Args:
        task: the task.
        judges: their names.
        samples: of classes in the set.
        known: whether it will hold these, and no decoded ones, or any labelled by scores.
    """
    found = {judge: _epochs(task, judge, samples) for judge in judges}
    return found if known else {judge: UNKNOWN if own else "" for judge, own in found.items()}


def _judged(config: DistillConfig, task: Task, judges: list[str], epochs: Mapping[str, str]) -> str:
    """Return who judges, how many networks of each, and for how many epochs these train.

    Args:
        config: the configuration.
        task: that it names.
        judges: their names.
        epochs: see :func:`_told`; empty where the set comes with steps, which judges then take.
    """
    solved = [judge for judge in judges if is_solved(task, judge)]
    trained = {judge: epochs.get(judge, "") for judge in judges if judge not in solved}
    title = partial(judge_title, task)
    told = [f"{', '.join(map(title, solved))}, solved without training"] if solved else []
    networks = f"{config.networks} network{'' if config.networks == 1 else 's'} each"
    if len(set(trained.values())) == 1:
        told.append(", ".join(filter(None, (*map(title, trained), networks, *set(trained.values())))))
    elif trained:
        each = (f"{title(judge)} ({own})" if own else title(judge) for judge, own in trained.items())
        told.append(f"{', '.join(each)}, {networks}")
    return "; ".join(told)


def _baselines(config: DistillConfig, task: Task, judges: list[str]) -> str:
    """Return the baselines, the whole set with the epochs for which networks train on it where the task tells them."""
    told = dict.fromkeys(filter(None, (_epochs(task, judge, None) for judge in judges)))
    whole = f"whole ({', '.join(told)})" if told else "whole"
    return ", ".join(whole if name == "whole" else name for name in find_baselines(task, config.baselines)) or "none"


def _epochs(task: Task, judge: str, samples: int | None) -> str:
    """Return for how many epochs a judge trains on so many samples (None: on all), in words; empty if unknown."""
    epochs = task.judging_epochs(judge, samples) if isinstance(task, TellsEpochs) else None
    return "" if epochs is None else counted(epochs, "epoch")


def _experts(distiller: Distiller) -> str:
    """Return which experts the run matches and how many it trains first, in words; empty of methods without any."""
    schedule = distiller.schedule
    return schedule.describe_experts(distiller.task) if isinstance(schedule, ExpertTrajectories) else ""


def _judges_teacher(task: Task, judges: list[str]) -> str:
    """Return which network labels what judges train on, and whether it trains first, in words; empty without any."""
    found = [task.judging_teacher(judge) for judge in judges] if isinstance(task, AsksTeacher) else []
    return ", ".join(dict.fromkeys(filter(None, found)))


def _carries_steps(method: Method, settings: Settings) -> bool:
    """Return whether the method's sets carry the steps that students take, which judges then take too."""
    return method.solve is None and carries_steps(method.make_objective(settings).learned())
