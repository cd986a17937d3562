"""The sorts of judges of images: networks, which train by a protocol, and kernels, which are solved for.

What is no network is an entry of :data:`JUDGES`, where a user's code adds other sorts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from mmdistill.abilities import JUDGING
from mmdistill.image.judge import Judge, with_learned
from mmdistill.image.kernel_judge import KERNELS, kernel_judge
from mmdistill.image.models import FAMILIES
from mmdistill.image.protocols import JudgingCase, Plan, plan_for, whole_note
from mmdistill.labels import are_probabilities
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.fit import Augment
from mmdistill.open_table import OpenTable
from mmdistill.runtime import Draws
from mmdistill.task import Batch, Scores, one_tensor

if TYPE_CHECKING:  # which look judges up here
    from mmdistill.image.named_judges import NamedJudges
    from mmdistill.image.task import ImageTask


class ImageJudge(Protocol):
    """A judge of one task's images; another sort of judge is another class with these members."""

    @property
    def name(self) -> str:
        """Its name in its one spelling; an error says why there is no such judge."""
        ...

    @property
    def title(self) -> str:
        """Its name for the scores, which begins with that of its entry."""
        ...

    @property
    def reads(self) -> Sequence[str]:
        """What it reads of :data:`~mmdistill.abilities.JUDGING`; no ``epochs`` where it does not train."""
        ...

    @property
    def teacher(self) -> str:
        """Which network labels what it trains on and whether that trains first, in words; empty where none does."""
        ...

    def epochs(self, samples: int | None) -> int | None:
        """Return for how many epochs it trains on so many images, None: on all; None where it does not train."""
        ...

    def require(self, samples: int) -> None:
        """Check, before they are made, that it can judge so many images."""
        ...

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Return the test scores of n of its kind on a set, or on the whole training set."""
        ...


@dataclass(frozen=True)
class ClosedFormJudge:
    """A judge that no protocol, no choice of judging and no learned rate moves, such as a kernel's ridge regression.

    Args:
        name: in its one spelling, and for the scores.
        solve: gives the test scores of a set, from its flat batch, a key and how many values are asked for; without
            randomness one will do.
        limit: refuses so many images, before they are made.
    """

    name: str
    solve: Callable[[Batch, Draws, int], Scores]
    limit: Callable[[int], object] = lambda samples: None
    reads: Sequence[str] = ()
    teacher: str = ""

    @property
    def title(self) -> str:
        """The same name, without a protocol."""
        return self.name

    def epochs(self, samples: int | None) -> int | None:
        """Return None: it does not train."""
        return None

    def require(self, samples: int) -> None:
        """Check that it takes so many samples."""
        self.limit(samples)

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Return the test scores on a set."""
        return self.solve(batch, draws, n)


@dataclass(frozen=True)
class NetworkJudge:
    """Fresh networks of one kind, trained by the task's protocol with what its user chose instead.

    Args:
        task: whose images they judge.
        names: says which networks there are.
        asked: their name, or the title of their scores where nothing is asked but what they read.
    """

    task: "ImageTask"
    names: "NamedJudges"
    asked: str
    reads: Sequence[str] = JUDGING

    @property
    def name(self) -> str:
        """Their name in its one spelling, see :meth:`NamedJudges.spelled`."""
        return self.names.spelled(self.asked)

    @property
    def title(self) -> str:
        """Their name with the protocol's where they train by another than the default one."""
        found, protocol = self.names.network_name(self.asked), self.task.protocol.name
        return found if protocol == "default" else f"{found} [{protocol}]"

    @property
    def teacher(self) -> str:
        """The protocol's teacher."""
        teacher = self.task.protocol.teacher
        return "" if teacher is None else teacher.describe_teacher(self.task, self.task.data.whole_epochs)

    def epochs(self, samples: int | None) -> int | None:
        """Return for how many epochs they train on so many images, None: on all."""
        images = samples or len(self.task.data.train_labels)
        return self._plan(self.names.occasion(self.asked, images, whole=samples is None)).fit.epochs

    def require(self, samples: int) -> None:
        """Check nothing: networks train on any number."""

    def _plan(self, occasion: JudgingCase) -> Plan:
        """Return how they train by the protocol and what the user chose."""
        return plan_for(self.task.protocol, self.task.data, occasion, self.task.chosen)

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Train n networks (see :mod:`mmdistill.image.judge`) and return their last-epoch test accuracy."""
        task, names, data = self.task, self.names, self.task.data
        scores = not are_probabilities(one_tensor(batch.targets))
        occasion = names.occasion(self.asked, len(batch.weight), scores=scores, whole=whole)
        plan = self._plan(occasion)
        plan, steps, notes = with_learned(plan, task.protocol, occasion, batch, learned)
        views = partial(task.views, plan, n)
        augment: Augment | None = views if plan.augment != "none" or plan.cutmix else None
        if plan.teacher is not None:
            augment = plan.teacher.asking(task, data.whole_epochs, augment)
            notes += (plan.teacher.note(task, data.whole_epochs),)
        classes = len(data.class_names)
        notes += whole_note(plan, occasion, self.epochs(classes))
        scorer = Judge(names.network(self.asked), self.title, classes, plan, augment, steps, notes)
        return scorer.score(batch, data.normalise, task.test_set, n, draws.to(task.device))


def of_kernel(task: "ImageTask", name: str) -> ClosedFormJudge:
    """Return a kernel's ridge regression, which gives one value of each metric, however many are asked for.

    Raises:
        UnknownNameError: the name's options are none of a kernel.
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
"""What makes the judges that are no networks, of the task and the judge's name, by what the name begins with.

Options may follow it, after a hyphen.
"""


def entry_of(name: str) -> str:
    """Return the name in :data:`JUDGES` with which a judge's name or title begins; nothing where there is none."""
    key = canonical(name)
    fitting = [own for own in JUDGES if key.startswith(own) and not key[len(own) :][:1].isalnum()]
    return max(fitting, key=len, default="")


def is_added_judge(name: str) -> bool:
    """Return whether a judge's name or title is of an entry that a user's code added, and may change."""
    return JUDGES.added(entry_of(name))
