"""Checks that the parts of a run go together, before its first step, and plain values that describe them."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from mmdistill.abilities import TrainsTeacher, Validates, ask_teacher, given_teacher
from mmdistill.allocation import ShortClassError, allocate
from mmdistill.checks import require_size
from mmdistill.described import described, described_value, is_own
from mmdistill.errors import ConfigError, MmdistillError, did_you_mean
from mmdistill.execution.precision import Precision
from mmdistill.labels import FixedLabels, Labels, LearnedLabels, TeacherLabels
from mmdistill.method import Method, Storage
from mmdistill.networks.architecture import own_network
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.teacher import describe_teacher
from mmdistill.objectives.base import Objective
from mmdistill.optimizers import make_optimizer
from mmdistill.parameterizations.base import Parameterization, takes_some
from mmdistill.rehearsal import rehearsal
from mmdistill.runtime import Draws, host_draws_from
from mmdistill.settings import Settings
from mmdistill.task import Task, require_task

NOISE = "--init noise (settings={'init': 'noise'} in Python)"
"""How users ask for samples that start from noise."""
TEACHER = "teacher"
"""The key of a given teacher's digest in a run's description."""
OF_ANOTHER = {"ema_start": "ema", "masked_by": "masked"}
"""Settings that say how another one acts, and do nothing where that is 0."""
GROUPS = ("codes", "decoder", "labels", "objective")
"""Groups that a method's settings may have optimizers for, even if this run does not learn them."""


def without_effect(task: Task, method: Method, budget: int, given: Mapping[str, object]) -> dict[str, str]:
    """Return the given settings that the run does not read, each with the reason, where ``{}`` stands for its name."""
    ignored = method.ignored_settings(budget, given)
    reasons = dict.fromkeys(ignored, f"{method.title} does not read {{}}, which changes nothing")
    if given.get("augment") and "augment" not in ignored:
        sample = task.select(torch.tensor([0]))
        if task.augment(Draws(0), sample, shared=False) is sample:
            reasons["augment"] = "{} changes nothing, since such data are not augmented"
    settings = method.settings(budget)
    for name, other in OF_ANOTHER.items():
        if name in given and name not in reasons and not getattr(settings, other):
            reasons[name] = f"{{}} changes nothing, since {other} is 0"
    if "teacher_epochs" in given and "teacher_epochs" not in reasons and given_teacher(task) is not None:
        reasons["teacher_epochs"] = "the given teacher is trained already: {} changes nothing"
    return reasons


def needs_teacher(samples: Parameterization, schedule: NetworkSchedule) -> bool:
    """Return whether the samples' labels need a teacher trained first; a schedule's experts replace it."""
    return isinstance(samples.labels, TeacherLabels) and not schedule.gives_target


def asked_teacher(
    task: Task,
    method: Method,
    budget: int,
    settings: Settings,
    schedule: NetworkSchedule,
    samples: Parameterization | None = None,
) -> str:
    """Describe the trained network that labels a run's samples or that its steps read; empty without one.

    Args:
        task: the task.
        method: the method.
        budget: in the task's unit.
        settings: of the run.
        schedule: of the run.
        samples: the run's samples, or others of the same kind; None: they are built in a rehearsal.
    """
    teachers = _own_teachers(task, method, settings, schedule)
    if samples is None and not any(teachers):
        with rehearsal(), suggest_noise(task, method, budget, settings):
            samples = method.make_parameterization(task, budget, settings, Draws(0, device=task.device).fold("start"))
    if samples is not None and needs_teacher(samples, schedule):
        return describe_teacher(task, settings.teacher_epochs)
    return ", ".join(filter(None, teachers))


def trains_first(task: Task, method: Method, settings: Settings) -> bool:
    """Return whether networks train before a run's first step: a generator, or the teacher of its objective."""
    return bool(method.describe_pretraining(task)) or any(_own_teachers(task, method, settings))


def _own_teachers(task: Task, method: Method, settings: Settings, *parts: object) -> list[str]:
    """Describe the teachers that a run's objective and other parts train; "" for one that is not needed."""
    objective = () if method.solve is not None else (method.make_objective(settings),)
    return [part.describe_teacher(task) for part in (*objective, *parts) if isinstance(part, TrainsTeacher)]


def is_teacher_idle(task: Task, method: Method, budget: int, judges: Iterable[str]) -> bool:
    """Return whether the task has a given teacher that neither the method nor the judges use.

    Judges of robust scores, which may use it, are not considered.
    """
    if given_teacher(task) is None or ask_teacher(task, judges):
        return False
    settings = method.settings(budget)
    return not asked_teacher(task, method, budget, settings, method.make_schedule(settings))


def count_warning(task: Task, method: Method, budget: int, count: int) -> str:
    """Return a warning if a closed form made another number of samples than its budget means; empty if it did not."""
    unit = task.describe().budget
    expected = int(allocate(budget, unit, task.labels, task.num_classes).sum())
    if method.solve is None or count == expected:
        return ""
    return (
        f"{method.title} made {count:,} samples, where {unit} {budget} is {expected:,}: so many have the baselines at "
        "equal count"
    )


def can_start_from_noise(task: Task, method: Method, budget: int, settings: Settings) -> bool:
    """Return whether a method's samples start from real ones but can start from noise, which is tried."""
    if method.solve is not None or settings.init == "noise" or "codes" not in settings.optimizers:
        return False
    try:
        method.make_parameterization(task, budget, replace(settings, init="noise"), Draws(0, device=task.device))
    except MmdistillError:
        return False
    return True


@contextmanager
def suggest_noise(task: Task, method: Method, budget: int, settings: Settings) -> Iterator[None]:
    """Within this context the error that a class has too few real samples suggests noise as a start, if possible.

    Raises:
        ShortClassError: with the suggestion, in place of the one without.
    """
    try:
        yield
    except ShortClassError as error:
        if error.misspelt or not can_start_from_noise(task, method, budget, settings):
            raise
        raise ShortClassError(error.fact, f"{error.advice}, or start from noise by {NOISE}") from error


def require_selectable(task: Task, method: Method, settings: Settings) -> None:
    """Refuse settings that select a step by validation where that is impossible.

    Raises:
        ConfigError: patience without validation, or a task that cannot validate.
    """
    if settings.patience and not settings.validate_every:
        raise ConfigError(
            f"patience counts validations, and without validate_every there are none; got a patience of "
            f"{settings.patience}"
        )
    if settings.validate_every and method.solve is None and not isinstance(task, Validates):
        raise ConfigError(
            f"{method.title} selects by validation (validate_every {settings.validate_every}), but the task of "
            f"{task.describe().data!r} cannot validate; leave --validate-every out (0 among the settings)"
        )


def require_parts(task: object, method: object, budget: object, settings: object) -> None:
    """Check the types of a run's parts.

    Args:
        task: what to distil.
        method: how.
        budget: how much.
        settings: the hyper-parameters; None are the method's own.
    Raises:
        ConfigError: a part of another type.
    """
    require_task(task)
    if not isinstance(method, Method):
        raise ConfigError(
            f"a run takes a Method, got {type(method).__name__}; get_method(get_domain('image'), 'dm') of "
            "mmdistill.registry finds one by its name"
        )
    require_size("the budget", budget, math.inf)  # allocation checks the upper bound
    if not isinstance(settings, Settings | None):
        raise ConfigError(
            f"settings are a Settings, got {type(settings).__name__}; method.with_settings(steps=3) changes those of a "
            "method"
        )


def check_and_build_optimizers(
    method: Method, settings: Settings, parameterization: Parameterization, objective: Objective, device: torch.device
) -> dict[str, torch.optim.Optimizer]:
    """Check that a run's parts go together, move them to the device, and return an optimizer for each learned group.

    Args:
        method: what composes them.
        settings: of the run.
        parameterization: the initial samples.
        objective: steps them; of a closed form, one that does nothing.
        device: where they learn.
    Raises:
        ConfigError: naming the parts that do not go together.
    """
    require_classes(parameterization, objective)
    require_labels(method, parameterization.labels, objective)
    require_styles(method, parameterization.styles, objective)
    if 0 < settings.stored_bytes < parameterization.stored_bytes():
        raise ConfigError(
            f"these samples take {parameterization.stored_bytes():,} bytes, more than the "
            f"{settings.stored_bytes:,} that they may; a Storage whose builder does not heed settings.stored_bytes "
            "has no fills=True"
        )
    steps = bool(settings.steps) and method.solve is None
    if steps and not grouped(parameterization, objective):
        raise ConfigError(
            f"{method.title} would learn nothing; use labels that are learned (--label soft or unrestricted)"
        )
    if takes_some(parameterization, settings.syn_batch) and not may_take_some(parameterization, objective):
        raise ConfigError(
            f"a step can take {settings.syn_batch} samples of each class where a method matches class by "
            f"class, labels are no teacher's, and samples do not share their inputs; set syn_batch to 0"
        )
    parameterization.to(device)
    objective.to(device)
    groups = grouped(parameterization, objective) if steps else {}
    require_groups(settings, groups)
    return make_optimizers(method, settings, groups)


def grouped(parameterization: Parameterization, objective: Objective) -> dict[str, list[nn.Parameter]]:
    """Return the learned parameters of samples and an objective, by optimizer group."""
    groups = parameterization.groups()
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return {**groups, "objective": parameters} if parameters else groups


def require_precision(method: Method, precision: Precision, objective: Objective) -> None:
    """Refuse bf16 for an objective that computes nothing in it.

    Raises:
        ConfigError: the objective computes nothing in bfloat16.
    """
    if precision == "bf16" and not objective.lowers:
        raise ConfigError(f"{method.title} computes nothing in bfloat16, so its precision cannot be bf16; use another")


def require_labels(method: Method, labels: Labels, objective: Objective) -> None:
    """Refuse learned labels that an objective does not read, and unrestricted ones where it needs distributions.

    Raises:
        ConfigError: naming the kinds that it does read.
    """
    if is_learned(labels) and not objective.reads_labels:
        raise ConfigError(
            f"{type(objective).__name__} never reads labels, only the class that groups the samples, so "
            f"{method.title} cannot learn any; use hard or a teacher's labels (--label hard or teacher), "
            "or a method that trains on the samples, such as gradient or kernel ridge matching"
        )
    if not objective.reads_scores and isinstance(labels, LearnedLabels):
        raise ConfigError(
            f"{type(objective).__name__} needs labels that are distributions (it has reads_scores = False), and "
            f"unrestricted ones are any numbers; with {method.title} use hard, soft or a teacher's labels (--label "
            "hard, soft or teacher)"
        )


def is_learned(module: nn.Module) -> bool:
    """Return whether a module has parameters to learn."""
    return any(parameter.requires_grad for parameter in module.parameters())


def require_styles(method: Method, styles: int, objective: Objective) -> None:
    """Refuse codes that each become another number of samples than the objective compares.

    Raises:
        ConfigError: naming both numbers.
    """
    if objective.styles not in (1, styles):
        raise ConfigError(
            f"{method.title} compares the {objective.styles} samples that as many decoders make of each code, "
            f"and these have {styles}; leave storing to the method (no --parameterization)"
        )


def require_groups(settings: Settings, groups: Iterable[str]) -> None:
    """Refuse optimizers for unknown groups, whose learning rates nothing would read.

    Args:
        settings: of the run.
        groups: names of the groups that the samples and the objective learn.
    Raises:
        ConfigError: suggesting the nearest name.
    """
    known = {*GROUPS, *groups}
    for name in settings.optimizers:
        if name not in known:
            raise ConfigError(
                f"there is an optimizer for {name!r}, which is nothing that a run learns (there are: "
                f"{', '.join(sorted(known))}){did_you_mean(name, known)}"
            )


def make_optimizers(
    method: Method, settings: Settings, groups: Mapping[str, list[nn.Parameter]]
) -> dict[str, torch.optim.Optimizer]:
    """Return an optimizer for each learned group.

    Raises:
        ConfigError: the settings have none for a group.
    """
    for name in groups:
        if name not in settings.optimizers:
            raise ConfigError(
                f"{method.title} learns the group {name!r} but its settings give no optimizer for it; "
                f"there are {sorted(settings.optimizers)}"
            )
    return {name: make_optimizer(settings.optimizers[name], parameters) for name, parameters in groups.items()}


def require_classes(parameterization: Parameterization, objective: Objective) -> None:
    """Refuse samples without classes where these are matched, and classes that contradict hard labels.

    Args:
        parameterization: the initial samples.
        objective: steps them.
    Raises:
        ConfigError: naming the first sample that differs.
    """
    name, classes, labels = type(parameterization).__name__, parameterization.classes, parameterization.labels
    if classes is None or parameterization.num_classes is None:
        if objective.view == "classes":
            raise ConfigError(
                f"{type(objective).__name__} matches class by class, and {name} says the classes of no samples; give "
                "its classes (M,) and num_classes to Parameterization.__init__"
            )
        return
    targets = labels.targets if isinstance(labels, FixedLabels) else None
    if targets is None or targets.is_floating_point() or targets.shape != classes.shape:
        return
    differing = (targets.cpu() != classes.cpu()).nonzero().flatten().tolist()
    if differing:
        first = differing[0]
        raise ConfigError(
            f"{name} says class {int(classes[first])} of sample {first}, whose hard label is {int(targets[first])} "
            f"({len(differing)} of {len(classes)} samples differ); give the same to its classes and its labels"
        )


def may_take_some(parameterization: Parameterization, objective: Objective) -> bool:
    """Return whether steps can take only some samples of each class (``syn_batch``)."""
    has_teacher = isinstance(parameterization.labels, TeacherLabels)
    return objective.view == "classes" and parameterization.divisible and not has_teacher


def describe_parts(
    task: Task, method: Method, budget: int, settings: Settings, schedule: NetworkSchedule
) -> dict[str, object]:
    """Return a run's objective, schedule and user-defined network as plain values, with a digest of its given teacher.

    The teacher counts only if the run uses it. A user's closed form and way of storing are described by their code.
    What the objective draws when it is made is drawn from one seed here, so that it does not tell runs apart.

    Raises:
        ConfigError: the method makes no objective.
    """
    network = "" if method.reads_no_network(settings) else own_network(task)
    parts: dict[str, object] = {"network": network} if network else {}
    if method.solve is None:
        with host_draws_from(0):
            parts |= {"objective": described(method.make_objective(settings)), "schedule": described(schedule)}
    builder = method.parameterization.build if isinstance(method.parameterization, Storage) else method.parameterization
    own_functions = {"solve": method.solve, "storage": builder}
    parts |= {name: described_value(function) for name, function in own_functions.items() if is_own(function)}
    if (teacher := given_teacher(task)) is not None and asked_teacher(task, method, budget, settings, schedule):
        parts[TEACHER] = teacher.digest
    return parts
