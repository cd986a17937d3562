"""Optional abilities of a task beyond the Task protocol; their users test for them by ``isinstance``."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from torch import Tensor

from mmdistill.checks import require_sizes
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Scores, Task, Tensors

if TYPE_CHECKING:  # these modules import tasks themselves
    from mmdistill.labels import LabelKind
    from mmdistill.networks.module import ModuleFactory
    from mmdistill.networks.pretrained import GivenTeacher
    from mmdistill.parameterizations.base import Parameterization
    from mmdistill.settings import Settings


MapReader = Callable[[Tensor], Tensor]
"""A function of a layer's maps, from ``(n, channels, height, width)`` to ``(n, d)``."""


class EveryLayer:
    """A reader that only flattens maps, and that is given every layer: see :meth:`GivesMaps.maps`."""

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the maps, flattened."""
        return maps.flatten(1)


NormReader = Callable[[Tensor, Tensor, Tensor], Tensors]
"""A function of a batch norm's input ``(n, channels, ...)``, running mean and running variance."""


@runtime_checkable
class Validates(Protocol):
    """A task that can score a synthetic batch on validation data, so that a run keeps its best step."""

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float | None:
        """Return a score, higher is better, from validation data only; None without such data."""
        ...


@runtime_checkable
class GivesClassGradients(Protocol):
    """A task with a closed form of its network's gradients by class."""

    def class_gradients(self, state: NetworkState, batch: ClassBatch) -> Tensors | None:
        """Return each parameter's gradients, ``(C, *shape)``, differentiable; None if this network has none."""
        ...


@runtime_checkable
class GivesMaps(Protocol):
    """A task whose network has feature maps: layer outputs with spatial axes."""

    def maps(self, state: NetworkState, inputs: Inputs, read: MapReader) -> tuple[Tensor, ...]:
        """Return ``read`` of each layer's maps, ``(n, d_l)``, and the embedding last, in one forward pass.

        Layers come in the order of :meth:`Task.features`, those without maps left out, each before its pooling. An
        :class:`EveryLayer` also receives layers without maps, as their features, and then the block that the embedding
        comes from, if the network names it: its maps, and if they are pooled, the result, which is the embedding again.
        """
        ...


@runtime_checkable
class GivesNorms(Protocol):
    """A task whose network exposes the inputs of its batch norms, which normalise by running statistics meanwhile."""

    def norms(self, state: NetworkState, inputs: Inputs, read: NormReader) -> tuple[Tensor, Mapping[str, Tensors]]:
        """Return the outputs, and ``read`` of each batch norm's input; an error lists the network's norms."""
        ...


@runtime_checkable
class DescribesNetwork(Protocol):
    """A task that describes its network's modules: shapes do not tell activations, norms, pooling and dropout apart."""

    def architecture(self) -> str:
        """Return the network's ``repr``, the same for the same network in any process."""
        ...


@runtime_checkable
class NamesNetwork(Protocol):
    """A task with a name for its network in reports; if empty, the network's description is used."""

    @property
    def network_name(self) -> str:
        """Return the name."""
        ...


@runtime_checkable
class StoresSamples(Protocol):
    """A task with a default storage other than raw tensors."""

    def stored(self, budget: int, settings: "Settings", label: "LabelKind", draws: Draws) -> "Parameterization":
        """Return the initialised samples of a budget."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A task with its own embedding of the real training samples, for selection by distance."""

    def embedding(self) -> Tensor:
        """Return ``(N, d)``, one row per training sample, in the order of ``labels``."""
        ...


@runtime_checkable
class Selects(Protocol):
    """A task with selections of its own, which serve as baselines like random and herding.

    ``selections`` names them.
    """

    selections: Sequence[str]

    def selection(self, kind: str, counts: Tensor, draws: Draws) -> Batch:
        """Return the samples of a selection, ``counts`` of each class (without classes, of the one group)."""
        ...


@runtime_checkable
class SizesSelections(Selects, Protocol):
    """A task whose own selections take other bytes than real samples at equal count."""

    def selection_bytes(self, kind: str, count: int) -> int:
        """Return the stored bytes of ``count`` samples of a selection."""
        ...


@runtime_checkable
class TrainsWhole(Protocol):
    """A task whose networks read more than selected samples when they train (labelled nodes read their neighbours)."""

    def training_batch(self) -> Batch:
        """Return all real training samples as networks train on them."""
        ...


@runtime_checkable
class GradesSamples(Protocol):
    """A task with its own measure of how hard training samples are to learn (a graph: from its edges)."""

    def difficulty(self, networks: Iterable[NetworkState]) -> Tensor:
        """Return one number per training sample, ``(n,)``, higher for harder ones, from briefly trained networks."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A task that can set its networks' running statistics from real samples."""

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return a network with the running statistics of drawn real samples; one without any is returned as it is."""
        ...


@runtime_checkable
class TrainsTeacher(Protocol):
    """An objective or schedule that first trains networks of its own, to label real samples or to be read by steps."""

    def describe_teacher(self, task: Task) -> str:
        """Describe these networks; empty if a task needs none."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """A task that may be given a trained network of its own kind, which then replaces one that would train first."""

    given_teacher: "GivenTeacher | None"


def given_teacher(task: Task) -> "GivenTeacher | None":
    """Return the trained network that a task was given as its teacher; None if one is trained when needed."""
    return task.given_teacher if isinstance(task, HasTeacher) else None


JUDGING = ("epochs", "batch", "precision", "protocol", "testing", "augmentation")
"""The settings of judging: epochs, minibatch size and, for images, number formats.

In Python also, as texts, how a user's own protocol differs in training and in testing, and a user's augmentation.
"""
Judging = Mapping[str, int | str]
"""A user's settings of judging, by the names of :data:`JUDGING`."""


@runtime_checkable
class KeepsJudging(Protocol):
    """A task that keeps its user's settings of judging, see :func:`judging_overrides`; other tasks have none.

    They are stored with results, to tell these from results of judges that trained otherwise.
    """

    judging_chosen: Judging


def judging_overrides(
    epochs: int | None = None,
    batch: int | None = None,
    precision: str | None = None,
    protocol: str = "",
    testing: str = "",
    augmentation: str = "",
) -> dict[str, int | str]:
    """Return a user's settings of judging as a task keeps them; float32, the default, is left out.

    A task calls this in its constructor, so that the settings are known in whatever way it was built.

    Args:
        epochs: of judges; None: not set, as for the next two.
        batch: their minibatch size.
        precision: the number formats that they train in.
        protocol: how their training differs from the usual one, see :func:`in_place_of`.
        testing: how their test differs.
        augmentation: the user's own, by which they may train.
    Raises:
        ConfigError: epochs or a size that are not whole numbers of at least 1.
    """
    require_sizes(judge_epochs=epochs, judge_batch=batch)
    sizes = {"epochs": epochs, "batch": batch}
    overrides: dict[str, int | str] = {name: int(size) for name, size in sizes.items() if size is not None}
    texts = {"precision": "" if precision in (None, "float32") else str(precision)}
    texts |= {"protocol": protocol, "testing": testing, "augmentation": augmentation}
    return overrides | {name: text for name, text in texts.items() if text}


def in_place_of(own: object, usual: object, apart: Collection[str] = ()) -> str:
    """List the fields in which a dataclass differs from the usual one, including those of nested dataclasses.

    Args:
        own: a user's protocol, say; None for none.
        usual: the dataclass that it replaces.
        apart: fields to ignore.
    Returns:
        The differences in words; empty if there are none, or ``own`` is None.
    """
    return "" if own is None else ", ".join(_differing(own, usual, apart))


def _differing(own: object, usual: object, apart: Collection[str]) -> list[str]:
    differences = []
    for entry in fields(own):  # type: ignore[arg-type]
        value, other, words = getattr(own, entry.name), getattr(usual, entry.name, None), entry.name.replace("_", " ")
        if is_dataclass(value) and is_dataclass(other):
            differences += [f"{words} {part}" for part in _differing(value, other, apart)]
        elif entry.name not in apart and value != other:
            differences.append(f"{words} {value}")
    return differences


def overrides_of(task: Task) -> Judging:
    """Return the user's settings of a task's judging; a named protocol is part of the judge's name instead."""
    return task.judging_chosen if isinstance(task, KeepsJudging) else {}


class JudgeFacts(Protocol):
    """What a task tells of one of its judges; that of a network that the user gave also has :func:`given_network`."""

    @property
    def name(self) -> str:
        """The judge's name in its one spelling; raises if there is no such judge."""
        ...

    @property
    def title(self) -> str:
        """The judge's name for the scores, which may say more, such as its training protocol."""
        ...

    @property
    def reads(self) -> Sequence[str]:
        """The settings of :data:`JUDGING` that it uses; ``epochs`` only if it trains."""
        ...

    @property
    def teacher(self) -> str:
        """In words, which network labels its minibatches and whether that must train first; empty if none does."""
        ...

    def epochs(self, samples: int | None) -> int | None:
        """Return its epochs on ``samples`` samples (None: on all); None if it does not train or nobody knows."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlainJudge:
    """The facts of a judge as plain values; by default nothing is known but its name.

    Args:
        name: in its one spelling, and for the scores.
        reads: the settings of :data:`JUDGING` that it uses; ``epochs`` only if it trains.
        teacher: in words, the network that labels its minibatches.
        network: the identity of a network that the user gave as this judge.
        epochs_on: returns its epochs on a number of samples (None: on all).
    """

    name: str = field(kw_only=False)
    reads: Sequence[str] = JUDGING
    teacher: str = ""
    network: str = ""
    epochs_on: Callable[[int | None], int | None] = lambda samples: None

    @property
    def title(self) -> str:
        """The same name."""
        return self.name

    def epochs(self, samples: int | None) -> int | None:
        """Return its epochs on ``samples`` samples (None: on all)."""
        return self.epochs_on(samples)


@runtime_checkable
class DescribesJudges(Protocol):
    """A task that tells more of its judges than their names, or that has more of them than it lists."""

    def describe_judge(self, judge: str) -> JudgeFacts:
        """Return the facts of a judge, given by name or title; an unknown one raises here or at its ``name``."""
        ...


@runtime_checkable
class TakesJudges(Protocol):
    """A task that networks of the user's can judge beside its own judges; their facts identify them."""

    def with_judge(self, name: str, factory: "ModuleFactory") -> Self:
        """Return a copy of the task that also has this judge, last in ``judges``; it shares the data.

        Raises:
            ConfigError: a network that cannot run on the task's samples, see
                :func:`~mmdistill.networks.trial.try_network`.
        """
        ...


def judge_facts(task: Task, judge: str) -> JudgeFacts:
    """Return what a task tells of a judge."""
    return task.describe_judge(judge) if isinstance(task, DescribesJudges) else PlainJudge(judge)


def given_network(facts: JudgeFacts) -> str:
    """Return the ``network`` of a judge's facts: the identity of one that the user gave; empty for all other judges."""
    network = getattr(facts, "network", "")
    return network if isinstance(network, str) else ""


def judge_title(task: Task, judge: str) -> str:
    """Return a judge's title in scores, by default its name."""
    return judge_facts(task, judge).title


def is_solved(task: Task, judge: str) -> bool:
    """Return whether a task's judge is solved in closed form, without training for epochs."""
    return "epochs" not in judge_facts(task, judge).reads


def ask_teacher(task: Task, judges: Iterable[str]) -> bool:
    """Return whether any of the judges trains on labels from a trained network."""
    return any(judge_facts(task, judge).teacher for judge in judges)


ROBUST_METRICS = (
    "label-robust score",
    "augmentation-robust score",
    "hard-label gap",
    "over random",
    "over random, plain",
)
"""The two robust scores and the differences of accuracies that they are made of; none of these is an accuracy."""


@runtime_checkable
class ScoresRobustness(Protocol):
    """A task with the field's label-robust and augmentation-robust scores."""

    def robust(
        self,
        synthetic: Batch,
        judge: str,
        draws: Draws,
        n: int,
        learned: Mapping[str, Tensor],
        subset: Callable[[Draws], Batch] | None,
        classes: Tensor | None = None,
    ) -> Scores:
        """Score a synthetic batch against the whole training set and random subsets at equal count.

        Args:
            synthetic: the distilled samples, decoded.
            judge: the judge's name.
            draws: the key.
            n: how many independently drawn judges.
            learned: as for :meth:`Task.evaluate`.
            subset: draws a random subset of real samples at equal count; None if a class has too few of them: only the
                scores that need no subset are returned.
            classes: the samples' classes, if their labels need not tell.
        """
        ...
