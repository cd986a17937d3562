"""The sorts of judges of images: networks, which train by a protocol, and kernels, which are solved for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from mmdistill.abilities import JUDGING
from mmdistill.image.judge import Judge, with_learned
from mmdistill.image.kernel_judge import KernelJudge
from mmdistill.image.protocols import Occasion, Plan, plan_for, whole_note
from mmdistill.labels import are_probabilities
from mmdistill.networks.fit import Augment
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
        """Its name for the scores."""
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
    """A kernel's ridge regression, which no protocol, no choice of judging and no learned rate moves.

    Args:
        task: whose images it judges.
        kernel: the regression.
    """

    task: "ImageTask"
    kernel: KernelJudge
    reads: Sequence[str] = ()
    teacher: str = ""

    @property
    def name(self) -> str:
        """The kernel's name in its one spelling."""
        return self.kernel.name

    @property
    def title(self) -> str:
        """The same name, without a protocol."""
        return self.kernel.name

    def epochs(self, samples: int | None) -> int | None:
        """Return None: it does not train."""
        return None

    def require(self, samples: int) -> None:
        """Check that one system can be solved for so many samples.

        Raises:
            UnsupportedError: they are too many.
        """
        self.kernel.require(samples)

    def score(self, batch: Batch, draws: Draws, n: int, learned: Mapping[str, Tensor], *, whole: bool) -> Scores:
        """Return one value of each metric, however many are asked for."""
        data = self.task.data
        return self.kernel.score(batch, len(data.class_names), data.normalise, self.task.test_set)


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
        return "" if teacher is None else teacher.foretold(self.task, self.task.data.whole_epochs)

    def epochs(self, samples: int | None) -> int | None:
        """Return for how many epochs they train on so many images, None: on all."""
        images = samples or len(self.task.data.train_labels)
        return self._plan(self.names.occasion(self.asked, images, whole=samples is None)).fit.epochs

    def require(self, samples: int) -> None:
        """Check nothing: networks train on any number."""

    def _plan(self, occasion: Occasion) -> Plan:
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
            notes += (plan.teacher.note(task.network_name, data.whole_epochs),)
        classes = len(data.class_names)
        notes += whole_note(plan, occasion, self.epochs(classes))
        scorer = Judge(names.network(self.asked), self.title, classes, plan, augment, steps, notes)
        return scorer.score(batch, data.normalise, task.test_set, n, draws.to(task.device))
