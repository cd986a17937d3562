"""The kinds of image judges: networks, which train by a protocol, and kernels, which are solved in closed form.

Judges that are not networks are entries of :data:`JUDGES`; a user's code can add more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from mmdistill.abilities import JUDGING, JudgeFacts, PlainJudge
from mmdistill.described import described_module
from mmdistill.image.judge_networks import JudgeNetworks
from mmdistill.image.judge_training import JudgeTraining, with_learned
from mmdistill.image.kernel_judge import KERNELS, kernel_judge
from mmdistill.image.models import FAMILIES, fitting_models
from mmdistill.image.protocols import JudgingCase, Plan, plan_for, whole_note
from mmdistill.labels import are_probabilities
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.architecture import identified
from mmdistill.networks.fit import Augment
from mmdistill.open_table import OpenTable
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores, one_tensor

if TYPE_CHECKING:  # that module imports this one
    from mmdistill.image.task import ImageTask


class ImageJudge(JudgeFacts, Protocol):
    """A judge of one task's images, whose title begins with its entry's name. Each kind of judge has these members."""

    def require(self, samples: int) -> None:
        """Check that it can judge ``samples`` images, before these are made."""
        ...

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Return test scores of n judges of this kind, on a set or (``whole``) on the whole training set."""
        ...


@dataclass(frozen=True)
class ClosedFormJudge(PlainJudge):
    """A judge without a protocol, judging settings or learned rates, such as a kernel's ridge regression.

    Args:
        name: in its one spelling, and for the scores.
        solve: maps a set's flat batch, a key and a number of values to test scores; one value is enough if nothing is
            random.
        limit: raises if it cannot judge this many images; called before these are made.
    """

    solve: Callable[[Batch, Draws, int], Scores]
    limit: Callable[[int], object] = lambda samples: None
    reads: Sequence[str] = field(default=(), kw_only=True)

    def require(self, samples: int) -> None:
        """Check that it takes ``samples`` images."""
        self.limit(samples)

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Return the test scores on a set."""
        return self.solve(batch, draws, n)


@dataclass(frozen=True)
class NetworkJudge:
    """A judge of fresh networks of one kind, which train by the task's protocol and its user's choices.

    Args:
        task: the task whose images they judge.
        networks: the task's networks by name.
        judge: the network's name. If only ``reads`` or ``network`` is needed, the title of their scores will do.
    """

    task: "ImageTask"
    networks: JudgeNetworks
    judge: str

    @property
    def reads(self) -> Sequence[str]:
        """The settings of judging; the augmentation only if they train by it, on a set or on all images."""
        name = self.judge.partition(" [")[0]
        name = self.networks.model if name == self.networks.first_judge() else name
        plans = [self._plan(self.networks.judging_case(name, 1, whole=whole)) for whole in (False, True)]
        augments = any(plan.augment == "dsa" for plan in plans)
        return tuple(setting for setting in JUDGING if augments or setting != "augmentation")

    @property
    def name(self) -> str:
        """Their name in its one spelling, see :meth:`JudgeNetworks.spelled`."""
        return self.networks.spelled(self.judge)

    @property
    def title(self) -> str:
        """Their name, followed by the protocol's unless that is the default."""
        network, protocol = self.networks.network_name(self.judge), self.task.protocol.name
        return network if protocol == "default" else f"{network} [{protocol}]"

    @property
    def network(self) -> str:
        """The identity of a network of the user's; empty for named ones."""
        given = self.networks.given_as(self.judge)
        return "" if given is None else identified(described_module(given.module))

    @property
    def teacher(self) -> str:
        """The protocol's teacher, in words."""
        teacher = self.task.protocol.teacher
        return "" if teacher is None else teacher.describe_teacher(self.task)

    def epochs(self, samples: int | None) -> int | None:
        """Return for how many epochs they train on ``samples`` images (None: on all)."""
        images = samples or len(self.task.data.train_labels)
        return self._plan(self.networks.judging_case(self.judge, images, whole=samples is None)).fit.epochs

    def require(self, samples: int) -> None:
        """Accept any number of images."""

    def _plan(self, case: JudgingCase) -> Plan:
        """Return how they train by the protocol and the user's choices."""
        return plan_for(self.task.protocol, self.task.data, case, self.task.chosen)

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Train n networks (see :mod:`mmdistill.image.judge_training`) and return their last-epoch test accuracy."""
        task, networks, data = self.task, self.networks, self.task.data
        scores = not are_probabilities(one_tensor(batch.targets))
        case = networks.judging_case(self.judge, len(batch.weight), scores=scores, whole=whole)
        plan = self._plan(case)
        plan, steps, notes = with_learned(plan, task.protocol, case, batch, learned)
        views = partial(task.views, plan, n)
        augment: Augment | None = views if plan.augment != "none" or plan.cutmix else None
        if plan.teacher is not None:
            augment = plan.teacher.labeller(task, augment)
            notes += (plan.teacher.note(task),)
        classes = len(data.class_names)
        notes += whole_note(plan, case, self.epochs(classes))
        network = networks.network(self.judge)
        training = JudgeTraining(network, self.title, classes, plan, augment, steps, notes)
        return training.score(batch, data.normalise, task.test_set, n, draws.to(task.device))


def of_kernel(task: "ImageTask", name: str) -> ClosedFormJudge:
    """Return a kernel's ridge regression, which gives one value of each metric, whatever ``n`` is.

    Raises:
        UnknownNameError: the name has options that no kernel takes.
    """
    kernel = kernel_judge(name)
    if kernel is None:
        raise unknown_name("judge", name, KERNELS)
    data = task.data

    def solve(batch: Batch, draws: Draws, n: int) -> Scores:
        return kernel.score(batch, len(data.class_names), data.normalise, task.test_set)

    return ClosedFormJudge(kernel.name, solve, kernel.require)


JUDGES: OpenTable[Callable[["ImageTask", str], ImageJudge]] = OpenTable(
    {"ntk": of_kernel, "nngp": of_kernel}, reserved=FAMILIES
)
"""Builders of judges that are not networks, by name; each takes the task and the judge's full name.

A full name is an entry's name, then any options after a hyphen.
"""


def listed_judges(model: str, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the judges of images of a shape that ``all`` stands for: first the distillation network's, ``model``."""
    return (*dict.fromkeys((model, *fitting_models(shape), "ntk", *filter(JUDGES.added, JUDGES))),)


def entry_of(name: str) -> str:
    """Return the longest name in :data:`JUDGES` that a judge's name or title begins with; empty if there is none."""
    key = canonical(name)
    fitting = [entry for entry in JUDGES if key.startswith(entry) and not key[len(entry) :][:1].isalnum()]
    return max(fitting, key=len, default="")


def is_added_judge(name: str) -> bool:
    """Return whether a judge's name or title belongs to an entry that a user's code added, which may change."""
    return JUDGES.added(entry_of(name))
