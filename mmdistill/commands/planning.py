"""Describe what a run will do, for dry runs."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import torch

from mmdistill.abilities import is_solved, judge_facts, judge_title
from mmdistill.allocation import allocate
from mmdistill.composition import asked_teacher
from mmdistill.config import DistillConfig
from mmdistill.distiller import Distiller
from mmdistill.evaluate import find_baselines, find_judges
from mmdistill.execution.memory import out_of_memory_advice
from mmdistill.method import Method
from mmdistill.names import as_argument, counted, first_few
from mmdistill.networks.architecture import network_title
from mmdistill.networks.minibatches import carries_steps
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.reporting.report import settings_in_words
from mmdistill.runs.advice import lowering_start
from mmdistill.runs.folder import COMMON_NAMES, ways_out, why_occupied
from mmdistill.settings import Settings
from mmdistill.task import Task

UNKNOWN = "epochs that depend on the finished set"
"""How long judges train, if the number of samples or the kind of labels is not known before the run."""


def plan_rows(
    config: DistillConfig, task: Task, method: Method, budget: int, *, resumes: bool = False
) -> list[list[str]]:
    """Return rows of name and value that describe a run: its settings, judges and folder.

    Args:
        config: of the run.
        task: of the configuration.
        method: of the configuration.
        budget: in the task's unit.
        resumes: whether the run would go on with one in its folder.
    Raises:
        ConfigError: the budget cannot be shared among the classes, or the method's parts do not fit together.
        DataError: a class has fewer real samples than the set starts from, or the run would refuse the data.
        MemoryExhaustedError: the synthetic samples do not fit into memory.
        CheckpointError: the folder of experts holds others than the method matches.
    """
    info, settings = task.describe(), method.settings(budget)
    counts = allocate(budget, info.budget, task.labels, task.num_classes)
    distiller = Distiller(task, method, budget, seed=config.seed, precision=config.precision)
    with out_of_memory_advice("the start of the distillation", lowering_start(settings)):
        parameterization = distiller.rehearse()
    judges = find_judges(task, config.judge_names(), method.judge)
    folder = config.folder()
    obstacle = "" if config.overwrite or resumes else why_occupied(folder, **ways_out(folder), writes=COMMON_NAMES)
    foreseeable = method.parameterization is None and method.label != "unrestricted"
    samples = None if parameterization.classes is None else len(parameterization.classes)
    judges_teacher = _judges_teacher(task, judges)
    # A set's own steps were learned with its own labels, so judges with a teacher's labels do not take them.
    own_steps = not judges_teacher and _carries_steps(method, settings)
    facts = {
        "data": f"{info.data} ({info.domain}, {info.num_train:,} training samples, {info.stored_bytes:,} bytes)",
        "classes": _classes_in_words(task),
        "method": f"{method.title}, {settings.steps:,} steps, seed {config.seed}",
        "budget": f"{info.budget} {budget}{'' if samples in (None, int(counts.sum())) else f', {samples:,} samples'}",
        "network": "" if method.reads_no_network(settings) else network_title(task),
        "stored as": method.storage,
        "labels": parameterization.labels.title,
        "settings": settings_in_words(asdict(settings), method.storage),
        "generator": method.describe_pretraining(task),
        "experts": _experts(distiller),
        "teacher": asked_teacher(task, method, budget, settings, distiller.schedule, parameterization),
        "judges": _judges_in_words(
            config, task, judges, {} if own_steps else _epochs_by_judge(task, judges, int(counts.sum()), foreseeable)
        ),
        "judges' teacher": judges_teacher,
        "baselines": _baselines_in_words(config, task, judges) if judges else "",
        "run folder": f"{folder} {obstacle}".strip(),
    }
    return [[name, value] for name, value in facts.items() if value]


def _classes_in_words(task: Task) -> str:
    """Return the number of classes, their training samples and names; empty without classes."""
    if task.labels is None or task.num_classes is None:
        return ""
    counts = torch.bincount(task.labels[task.labels >= 0], minlength=task.num_classes)
    least, most = int(counts.min()), int(counts.max())
    each = f"{most:,} training samples each" if least == most else f"{least:,} to {most:,} training samples"
    return f"{task.num_classes:,}, of {each}: {first_few(task.describe().class_names)}"


def _epochs_by_judge(task: Task, judges: list[str], samples: int, foreseeable: bool) -> dict[str, str]:
    """Return how many epochs each judge trains, in words; empty texts if the task does not say.

    Args:
        task: the task.
        judges: their names.
        samples: in the set, by its budget.
        foreseeable: whether the set will hold just these, neither decoded nor labelled by scores.
    """
    epochs = {judge: _epochs(task, judge, samples) for judge in judges}
    return epochs if foreseeable else {judge: UNKNOWN if words else "" for judge, words in epochs.items()}


def _judges_in_words(config: DistillConfig, task: Task, judges: list[str], epochs: Mapping[str, str]) -> str:
    """Return who judges, with how many networks each, and for how many epochs these train; or what would judge later.

    Args:
        config: of the run.
        task: of the configuration.
        judges: their names.
        epochs: of :func:`_epochs_by_judge`; empty if judges take the set's own steps.
    """
    solved = [judge for judge in judges if is_solved(task, judge)]
    trained = {judge: epochs.get(judge, "") for judge in judges if judge not in solved}
    title = partial(judge_title, task)
    parts = [f"{', '.join(map(title, solved))}, solved without training"] if solved else []
    networks = f"{counted(config.networks, 'network')} each"
    if len(set(trained.values())) == 1:
        parts.append(", ".join(filter(None, (*map(title, trained), networks, *set(trained.values())))))
    elif trained:
        each = (f"{title(judge)} ({words})" if words else title(judge) for judge, words in trained.items())
        parts.append(f"{', '.join(each)}, {networks}")
    return "; ".join(parts) or f"none; later mmdistill evaluate {as_argument(config.folder())}"


def _baselines_in_words(config: DistillConfig, task: Task, judges: list[str]) -> str:
    """Return the baselines; behind ``whole`` the epochs that judges train on all data, if the task says."""
    epochs = dict.fromkeys(filter(None, (_epochs(task, judge, None) for judge in judges)))
    whole = f"whole ({', '.join(epochs)})" if epochs else "whole"
    return ", ".join(whole if name == "whole" else name for name in find_baselines(task, config.baselines)) or "none"


def _epochs(task: Task, judge: str, samples: int | None) -> str:
    """Return how many epochs a judge trains on ``samples`` (None: all real data), in words; empty if unknown."""
    epochs = judge_facts(task, judge).epochs(samples)
    return "" if epochs is None else counted(epochs, "epoch")


def _experts(distiller: Distiller) -> str:
    """Return which experts a run matches and how many it trains first, in words; empty for methods without experts."""
    schedule = distiller.schedule
    return schedule.describe_experts(distiller.task) if isinstance(schedule, ExpertTrajectories) else ""


def _judges_teacher(task: Task, judges: list[str]) -> str:
    """Return which teacher labels the judges' samples, and whether it trains first, in words; empty without one."""
    teachers = (judge_facts(task, judge).teacher for judge in judges)
    return ", ".join(dict.fromkeys(filter(None, teachers)))


def _carries_steps(method: Method, settings: Settings) -> bool:
    """Return whether a method's sets carry learned training steps, which judges then take."""
    return method.solve is None and carries_steps(method.make_objective(settings).learned())
