"""Which parts of a run go together, said before its first step, and what they are."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from mmdistill.abilities import TrainsTeacher, Validates, ask_teacher, given_teacher
from mmdistill.allocation import ShortClassError, allocate
from mmdistill.checks import require_size
from mmdistill.described import described
from mmdistill.errors import ConfigError, MmdistillError, did_you_mean
from mmdistill.execution.precision import Precision
from mmdistill.labels import FixedLabels, Labels, LearnedLabels, TeacherLabels
from mmdistill.method import Method
from mmdistill.networks.architecture import own_network
from mmdistill.networks.schedules import NetworkSchedule
from mmdistill.networks.teacher import describe_teacher
from mmdistill.objectives.base import Objective
from mmdistill.optimizers import make_optimizer
from mmdistill.parameterizations.base import Chosen, Parameterization, require_alike
from mmdistill.rehearsal import rehearsal
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import Batch, ClassBatch, Task, require_task

NOISE = "--init noise (settings={'init': 'noise'} in Python)"
"""How users ask for samples that start from noise."""
TEACHER = "teacher"
"""Under which a run's description has a digest of the teacher that it was given."""
GROUPS = ("codes", "decoder", "labels", "objective")
"""What the settings of a method may have optimizers for, whether this run learns it or not."""


def without_effect(task: Task, method: Method, budget: int, given: Mapping[str, object]) -> dict[str, str]:
    """Return the settings among those given that nothing looks at, and for each why, with ``{}`` for its name."""
    found = method.ignored_settings(budget, given)
    if given.get("augment") and "augment" not in found:
        one = task.select(torch.tensor([0]))
        if task.augment(Draws(0), one, shared=False) is one:  # there is no augmentation of such data
            found.append("augment")
    told = dict.fromkeys(found, f"{method.title} does not read {{}}, which changes nothing")
    if "teacher_epochs" in given and "teacher_epochs" not in told and given_teacher(task) is not None:
        told["teacher_epochs"] = "the given teacher is trained already: {} changes nothing"
    return told


def needs_teacher(made: Parameterization, schedule: NetworkSchedule) -> bool:
    """Return whether a network is trained first that labels samples, since no expert does."""
    return isinstance(made.labels, TeacherLabels) and not schedule.gives_target


def asked_teacher(
    task: Task,
    method: Method,
    budget: int,
    settings: Settings,
    schedule: NetworkSchedule,
    made: Parameterization | None = None,
) -> str:
    """Return which trained network labels a run's samples, or is read by its steps, in words; empty without any.

    Args:
        task: the task.
        method: the method.
        budget: in the task's unit.
        settings: of the run.
        schedule: of the run.
        made: the run's samples, or others of the same kind; None: they are built to be looked at.
    """
    parts = (*(() if method.solve is not None else (method.make_objective(settings),)), schedule)
    told = [part.describe_teacher(task) for part in parts if isinstance(part, TrainsTeacher)]
    if made is None and not any(told):
        with rehearsal(), noise_suggested(task, method, budget, settings):
            made = method.make_parameterization(task, budget, settings, Draws(0, device=task.device).fold("start"))
    if made is not None and needs_teacher(made, schedule):
        return describe_teacher(task, settings.teacher_epochs)
    return ", ".join(filter(None, told))


def is_teacher_idle(task: Task, method: Method, budget: int, judges: Iterable[str]) -> bool:
    """Return whether the teacher that a task was given is asked by neither the method nor the judges; if there is one.

    Judges of robust scores, which may ask it, are others.
    """
    if given_teacher(task) is None or ask_teacher(task, judges):
        return False
    settings = method.settings(budget)
    return not asked_teacher(task, method, budget, settings, method.make_schedule(settings))


def other_count(task: Task, method: Method, budget: int, count: int) -> str:
    """Return in words that a closed form made another number of samples than its budget names; empty if it did not."""
    unit = task.describe().budget
    asked = int(allocate(budget, unit, task.labels, task.num_classes).sum())
    if method.solve is None or count == asked:
        return ""
    return (
        f"{method.title} made {count:,} samples, where {unit} {budget} is {asked:,}: so many have the baselines at "
        "equal count"
    )


def starts_from_noise(task: Task, method: Method, budget: int, settings: Settings) -> bool:
    """Return whether a method's samples start from real ones and may start from noise, by building them so."""
    if method.solve is not None or settings.init == "noise" or "codes" not in settings.optimizers:
        return False
    try:
        method.make_parameterization(task, budget, replace(settings, init="noise"), Draws(0, device=task.device))
    except MmdistillError:
        return False
    return True


@contextmanager
def noise_suggested(task: Task, method: Method, budget: int, settings: Settings) -> Iterator[None]:
    """Have the error that a class has too few real samples to start from say that noise takes none, where it may be.

    Raises:
        ShortClassError: in place of the one that does not say so.
    """
    try:
        yield
    except ShortClassError as error:
        if error.misspelt or not starts_from_noise(task, method, budget, settings):
            raise
        raise ShortClassError(error.fact, f"{error.advice}, or start from noise by {NOISE}") from error


def require_selectable(task: Task, method: Method, settings: Settings) -> None:
    """Refuse settings by which no step could be chosen as they say.

    Raises:
        ConfigError: saying which of them, or that the task cannot validate.
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
    """Refuse what no run is made of.

    Args:
        task: what to distil.
        method: how.
        budget: how much.
        settings: the hyper-parameters; None are the method's own.
    Raises:
        ConfigError: something of another kind.
    """
    require_task(task)
    if not isinstance(method, Method):
        raise ConfigError(
            f"a run takes a Method, got {type(method).__name__}; get_method(get_domain('image'), 'dm') of "
            "mmdistill.registry finds one by its name"
        )
    require_size("the budget", budget, math.inf)  # how large it may be is said where it is shared out
    if not isinstance(settings, Settings | None):
        raise ConfigError(
            f"settings are a Settings, got {type(settings).__name__}; method.with_settings(steps=3) changes those of a "
            "method"
        )


def check_and_build_optimizers(
    method: Method, settings: Settings, parameterization: Parameterization, objective: Objective, device: torch.device
) -> dict[str, torch.optim.Optimizer]:
    """Return an optimizer for each group that a run learns, once its parts, which go to a device, go together.

    Args:
        method: what composes them.
        settings: of the run.
        parameterization: the initial samples.
        objective: that is to step them; of a closed form, one that does nothing.
        device: where they learn.
    Raises:
        ConfigError: saying which do not go together.
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
    if takes_some(settings, parameterization) and not may_take_some(parameterization, objective):
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
    """Return what is learned of samples and an objective, by optimizer group."""
    groups, own = parameterization.groups(), list(objective.parameters())
    return {**groups, "objective": own} if own else groups


def require_precision(method: Method, precision: Precision, objective: Objective) -> None:
    """Refuse bf16 for an objective that computes nothing in it.

    Raises:
        ConfigError: it does not.
    """
    if precision == "bf16" and not objective.lowers:
        raise ConfigError(f"{method.title} computes nothing in bfloat16, so its precision cannot be bf16; use another")


def require_labels(method: Method, labels: Labels, objective: Objective) -> None:
    """Refuse labels that an objective does not read, or not as numbers.

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
    """Return whether a module has anything to learn."""
    return any(parameter.requires_grad for parameter in module.parameters())


def require_styles(method: Method, styles: int, objective: Objective) -> None:
    """Refuse codes of which each becomes another number of samples than an objective compares.

    Raises:
        ConfigError: naming both numbers.
    """
    if objective.styles not in (1, styles):
        raise ConfigError(
            f"{method.title} compares the {objective.styles} samples that as many decoders make of each code, "
            f"and these have {styles}; leave storing to the method (no --parameterization)"
        )


def require_groups(settings: Settings, groups: Iterable[str]) -> None:
    """Refuse optimizers for what nothing is called, which would leave its learning rate unread.

    Args:
        settings: of the run.
        groups: what the samples and the objective learn.
    Raises:
        ConfigError: naming the nearest group.
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
    """Return an optimizer for each group that is learned.

    Raises:
        ConfigError: the settings give none for a group.
    """
    for name in groups:
        if name not in settings.optimizers:
            raise ConfigError(
                f"{method.title} learns the group {name!r} but its settings give no optimizer for it; "
                f"there are {sorted(settings.optimizers)}"
            )
    return {name: make_optimizer(settings.optimizers[name], parameters) for name, parameters in groups.items()}


def require_classes(parameterization: Parameterization, objective: Objective) -> None:
    """Refuse samples that do not say their classes where they are matched by these, or say others than their labels.

    Args:
        parameterization: the initial samples.
        objective: that is to step them.
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
    """Return whether steps may take some samples of each class (``syn_batch``)."""
    whole = isinstance(parameterization.labels, TeacherLabels) or not parameterization.divisible
    return objective.view == "classes" and not whole


def takes_some(settings: Settings, parameterization: Parameterization) -> bool:
    """Return whether steps take some samples of each class, not all."""
    return 0 < settings.syn_batch < parameterization.largest_class


def decode_for_step(
    objective: Objective, samples: Parameterization, settings: Settings, real: Batch | ClassBatch, key: Draws
) -> tuple[Batch, Chosen | None]:
    """Decode the synthetic samples that one step reads.

    They are ``syn_batch`` samples of each class, or for a flat objective as many as it reads, or all.

    Returns:
        The samples, and which of each class they are; None where they were not drawn by class.
    Raises:
        ShapeError: they are not as the real ones are.
    """
    decode, chosen = key.fold("synthetic"), None
    if takes_some(settings, samples):
        chosen = samples.choose(key.fold("chosen"), settings.syn_batch)
        rows: torch.Tensor | None = chosen.rows.flatten()
    else:
        rows = samples.drawn(key.fold("drawn"), objective.samples_read if objective.view == "flat" else None)
    decoded: Batch = samples(decode) if rows is None else samples.part(rows, decode)
    require_alike(samples, decoded, real, None if rows is None else len(rows))
    return decoded, chosen


def described_parts(
    task: Task, method: Method, budget: int, settings: Settings, schedule: NetworkSchedule
) -> dict[str, object]:
    """Return a user's own network, the objective and the schedule of a run as plain values, and of a given teacher.

    Of the teacher that a task was given a digest counts, and only where the run asks it.

    Raises:
        ConfigError: the method makes no objective.
    """
    own = "" if method.reads_no_network(budget) else own_network(task)
    found: dict[str, object] = {"network": own} if own else {}
    if method.solve is None:
        found |= {"objective": described(method.make_objective(settings)), "schedule": described(schedule)}
    if (given := given_teacher(task)) is not None and asked_teacher(task, method, budget, settings, schedule):
        found[TEACHER] = given.digest
    return found
