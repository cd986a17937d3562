"""Advice on how a run takes less memory or time: only options that its method and settings respond to."""

from collections.abc import Mapping

from torch import Tensor

from mmdistill.composition import may_take_some
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.execution.precision import multiplies_bfloat16
from mmdistill.labels import TeacherLabels, hard_labels
from mmdistill.networks.minibatches import useless_rates
from mmdistill.networks.schedules import InnerLoopSchedule, UnreadNetwork
from mmdistill.objectives.trajectory import TrajectoryMatchingConstantMemory
from mmdistill.objectives.unrolled import UnrolledObjective
from mmdistill.runs.state import RunState
from mmdistill.runtime import Draws
from mmdistill.settings import Settings

BF16_FROM_CHANNELS = 64
"""The channels from which convolutions in bfloat16 were measured to take about half the time, on CPUs made for it."""

LITTLE_TAUGHT = 0.25
"""How far from chance to certainty a teacher must recognise samples for its labels to be worth having."""


def lowering_steps(distiller: Distiller, run: RunState) -> str:
    """Return ways to take less memory in a run's steps, in words; first those that leave its result the same."""
    settings, objective = distiller.settings, run.objective
    students = [part for part in objective.modules() if isinstance(part, UnrolledObjective)]
    storing = [part for part in students if not isinstance(part, TrajectoryMatchingConstantMemory)]
    reads_network = not isinstance(distiller.schedule, UnreadNetwork)
    by_class = objective.view == "classes" and objective.divided
    minibatches = bool(settings.inner_batch and (students or isinstance(distiller.schedule, InnerLoopSchedule)))
    ways = {
        "fewer classes at once (--classes-at-once 1, also with --resume)": (
            by_class and reads_network and settings.classes_at_once != 1
        ),
        "no kept activations (--kept-steps 0, also with --resume)": bool(storing and settings.kept_steps),
        "a smaller real batch (--real-batch)": objective.reads_real,
        "fewer samples of each class in a step (--syn-batch)": (
            may_take_some(run.parameterization, objective) and run.parameterization.largest_class > 1
        ),
        "a shorter window (--inner-window)": bool(students and settings.inner_window),
        "fewer inner steps (--inner-steps)": bool(students and not settings.inner_window),
        "smaller minibatches of the networks (--inner-batch)": minibatches,
        "a smaller synthetic budget": True,
        "a narrower network (--width)": reads_network and bool(_parameters(distiller)),
    }
    return _alternatives([way for way, applies in ways.items() if applies])


def lowering_start(settings: Settings) -> str:
    """Return ways to take less memory before the first step, in words; a network may choose the samples then."""
    ways = ["a smaller synthetic budget"]
    if settings.init not in ("real", "noise"):
        ways = [f"samples drawn at random (--init real in place of {settings.init})"]
    return _alternatives([*ways, "a narrower network (--width)"])


def faster_precision(distiller: Distiller, run: RunState) -> str:
    """Return advice on a precision in which a run's steps are faster on this CPU; empty if there is none."""
    objective = run.objective
    in_float32 = distiller.precision == "float32" and distiller.task.device.type == "cpu"
    if not (in_float32 and objective.lowers and not objective.exact and multiplies_bfloat16()):
        return ""
    if not any(tensor.ndim == 4 and len(tensor) >= BF16_FROM_CHANNELS for tensor in _parameters(distiller).values()):
        return ""
    if objective.view == "classes":
        return "; --precision mixed (precision='mixed') takes about half the time on this CPU"
    return "; --precision bf16 (precision='bf16') takes about half the time on this CPU, by rougher gradients"


def skipped_warning(run: RunState, skip_above: float) -> str:
    """Return a warning that at least half of the steps were skipped; empty if fewer were.

    Args:
        run: the finished run.
        skip_above: the loss above which steps were skipped.
    """
    if not run.skipped or 2 * run.skipped < run.step:
        return ""
    return (
        f"{run.skipped:,} of {run.step:,} steps changed nothing, since their loss was above {skip_above:g} "
        "(skip_above), so the set is much as it began; lower the student's rate (--inner-lr) or that of the samples "
        "(--lr), or take every step (--set skip_above=0)"
    )


def rate_warning(learned: Mapping[str, Tensor]) -> str:
    """Return a warning that no network can train at the rate that a run learned; empty if one can."""
    if not (useless := useless_rates(learned)):
        return ""
    return (
        f"the student's learned rate ended at {useless[0]:.3g}, which cannot train, so judges take their protocol's; "
        "begin at another one (--inner-lr), or learn it more slowly (the settings' optimizer of the group 'objective')"
    )


def teacher_warning(result: DistilledSet, gives_target: bool) -> str:
    """Return a warning that a teacher hardly tells the samples' classes apart; empty if it does, or none labels them.

    Args:
        result: the finished set.
        gives_target: whether an expert labels, at the end that the step matches, and no teacher of its own.
    """
    targets, classes = result.batch.targets, result.classes
    if result.label != TeacherLabels.title or not isinstance(targets, Tensor) or classes is None:
        return ""
    share = float((hard_labels(targets).cpu() == classes).float().mean())
    chance = 1 / targets.shape[1]
    if share >= chance + LITTLE_TAUGHT * (1 - chance):
        return ""
    if gives_target:
        remedy = "match experts that have trained for longer (--set expert_steps=N and --set start_epochs=N, in epochs)"
    elif result.teacher:
        remedy = "bring one that has learned these classes (--teacher)"
    else:
        remedy = "let it train for longer (--teacher-epochs)"
    return (
        f"the labels are a teacher's that sees their own class in {share:.0%} of the samples (by chance {chance:.0%}), "
        f"so they say little: {remedy}, or take class indices (--label hard)"
    )


def _parameters(distiller: Distiller) -> Mapping[str, Tensor]:
    """Return the parameters of one of the task's networks; infinitely wide ones have none."""
    return distiller.task.init(Draws(0, device=distiller.task.device)).params


def _alternatives(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"
