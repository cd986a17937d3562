"""What a task may be able to do beyond the Task protocol; who can make use of it asks by isinstance."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from mmdistill.checks import require_sizes
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Scores, Task, Tensors

if TYPE_CHECKING:  # they know of tasks themselves
    from mmdistill.labels import LabelKind
    from mmdistill.networks.pretrained import GivenTeacher
    from mmdistill.parameterizations.base import Parameterization
    from mmdistill.settings import Settings


MapReader = Callable[[Tensor], Tensor]
"""What is made of a layer's maps: from ``(n, channels, height, width)`` to ``(n, d)``, a row for each sample."""


class EveryLayer:
    """A reader that keeps maps as they are, and asks for every layer: see :meth:`GivesMaps.maps`."""

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the maps, flattened."""
        return maps.flatten(1)


NormReader = Callable[[Tensor, Tensor, Tensor], Tensors]
"""What is made of a batch norm's input ``(n, channels, ...)``, running mean and running variance."""


@runtime_checkable
class Validates(Protocol):
    """A task that can score a synthetic batch on validation data, so that a run keeps its best step."""

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float | None:
        """Return a score, higher is better, from validation data only; None where the data come without any."""
        ...


@runtime_checkable
class GivesClassGradients(Protocol):
    """A task that has its network's gradients of all classes in closed form."""

    def class_gradients(self, state: NetworkState, batch: ClassBatch) -> Tensors | None:
        """Return each parameter's gradients, ``(C, *shape)``, differentiable; None where this network has none."""
        ...


@runtime_checkable
class GivesMaps(Protocol):
    """A task whose network has maps: what layers give for each place of a sample."""

    def maps(self, state: NetworkState, inputs: Inputs, read: MapReader) -> tuple[Tensor, ...]:
        """Return what a reader makes of each layer's maps, ``(n, d_l)``, and the embedding last; one forward pass.

        Layers come in the order of :meth:`Task.features`, those without maps left out, each before it is pooled. A
        reader that is an :class:`EveryLayer` is also given layers without maps, as their features, and after these the
        block that the embedding is made of, where the network names it: its maps, and these pooled, if they are, which
        is the embedding once more.
        """
        ...


@runtime_checkable
class GivesNorms(Protocol):
    """A task whose network tells what its batch norms are given, while it normalises by their running statistics."""

    def norms(self, state: NetworkState, inputs: Inputs, read: NormReader) -> tuple[Tensor, Mapping[str, Tensors]]:
        """Return outputs and what a reader makes of each batch norm's input; an error names the norms there are."""
        ...


@runtime_checkable
class DescribesNetwork(Protocol):
    """A task that says what its network is made of: shapes do not tell activations, norms, pooling, dropout apart."""

    def architecture(self) -> str:
        """Return the network in words, as a module describes itself; the same for the same network in any process."""
        ...


@runtime_checkable
class NamesNetwork(Protocol):
    """A task that names its network, as reports call it; empty where the network's own description must do."""

    @property
    def network_name(self) -> str:
        """Return the name."""
        ...


@runtime_checkable
class StoresSamples(Protocol):
    """A task whose samples are not just tensors to learn: it says how they are stored where a method does not."""

    def stored(self, budget: int, settings: "Settings", label: "LabelKind", draws: Draws) -> "Parameterization":
        """Return the initialised samples of a budget."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A task that has its own embedding of the real training samples, for selection by distance."""

    def embedding(self) -> Tensor:
        """Return ``(N, d)``, one row per training sample, in the order of ``labels``."""
        ...


@runtime_checkable
class Selects(Protocol):
    """A task that has selections of its own, which stand beside a result like random and herding.

    ``selections`` names them.
    """

    selections: Sequence[str]

    def selection(self, kind: str, counts: Tensor, draws: Draws) -> Batch:
        """Return the samples of a selection, as many of each class as ``counts`` says (of the one group without)."""
        ...


@runtime_checkable
class SizesSelections(Selects, Protocol):
    """A task whose own selections take other bytes than as many real samples do."""

    def selection_bytes(self, kind: str, count: int) -> int:
        """Return the bytes that so many samples of a selection are stored in."""
        ...


@runtime_checkable
class TrainsWhole(Protocol):
    """A task whose networks train on more than the selected samples hold (a graph's labelled nodes read the others)."""

    def training_batch(self) -> Batch:
        """Return all real training samples as networks train on them."""
        ...


@runtime_checkable
class GradesSamples(Protocol):
    """A task that says how hard its training samples are to learn by what it knows of them (a graph, by its edges)."""

    def difficulty(self, networks: Iterable[NetworkState]) -> Tensor:
        """Return one number per training sample, ``(n,)``, higher for harder ones, from briefly trained networks."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A task whose networks may normalise by running statistics, which it can take from real samples."""

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return a network whose running statistics are those of drawn real samples; one without any as it is."""
        ...


@runtime_checkable
class NamesJudges(Protocol):
    """A task whose judges are more than those it lists, by a grammar of names."""

    def judge_name(self, name: str) -> str:
        """Return a judge's name in its one spelling; an error says why there is no such judge."""
        ...


@runtime_checkable
class TitlesJudges(Protocol):
    """A task whose scores call a judge by more than its name, such as the protocol by which it trained."""

    def judge_title(self, judge: str) -> str:
        """Return what the scores of a judge are called."""
        ...


@runtime_checkable
class LimitsJudging(Protocol):
    """A task not all of whose judges train as a user sets it."""

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge, by name or title, reads of :data:`JUDGING`; no ``epochs`` where it is solved."""
        ...


@runtime_checkable
class TellsEpochs(Protocol):
    """A task that can tell for how long judges will train."""

    def judging_epochs(self, judge: str, samples: int | None) -> int | None:
        """Return for how many epochs a judge trains on so many samples, None: on all; None where it does not train."""
        ...


@runtime_checkable
class TrainsTeacher(Protocol):
    """An objective or schedule that trains networks of its own first, which label real samples or steps read."""

    def describe_teacher(self, task: Task) -> str:
        """Return which ones these will be, in words; empty where a task needs none."""
        ...


@runtime_checkable
class AsksTeacher(Protocol):
    """A task whose judges may have a trained network label what they train on, whatever labels it comes with."""

    def judging_teacher(self, judge: str) -> str:
        """Return which network does so for a judge and whether it trains first, in words; empty where none does."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """A task that may be given a trained network of its own kind, which is asked in place of one that trains first."""

    given_teacher: "GivenTeacher | None"


def given_teacher(task: Task) -> "GivenTeacher | None":
    """Return the trained network that a task was given as its teacher; None where one is trained as soon as asked."""
    return task.given_teacher if isinstance(task, HasTeacher) else None


def ask_teacher(task: Task, judges: Iterable[str]) -> bool:
    """Return whether any of some judges, by name, has a trained network label what it trains on."""
    return isinstance(task, AsksTeacher) and any(map(task.judging_teacher, judges))


JUDGING = ("epochs", "batch", "precision", "protocol", "testing")
"""What a user can set of judging: epochs, the size of minibatches and, of images, the number formats.

In Python also, as texts, in what a protocol of the user's own differs, how judges train and how they are tested.
"""
Judging = Mapping[str, int | str]
"""What a user has set of judging, by the names of :data:`JUDGING`."""


@runtime_checkable
class KeepsJudging(Protocol):
    """A task that keeps what its user set of judging, see :func:`judging_overrides`; of other tasks nothing was set.

    Results are kept with it, which tells them from those of judges that trained otherwise.
    """

    judging_chosen: Judging


def judging_overrides(
    epochs: int | None = None,
    batch: int | None = None,
    precision: str | None = None,
    protocol: str = "",
    testing: str = "",
) -> dict[str, int | str]:
    """Return what a user sets of judging as a task keeps it; float32, in which judges train anyway, is nothing.

    A task asks for it where it is constructed, so that it is known however the task came about.

    Args:
        epochs: of judges; None where the user says nothing, as of the next two.
        batch: samples in their minibatches.
        precision: number formats that they train in.
        protocol: in what their training differs from the usual one, see :func:`in_place_of`.
        testing: in what their test does.
    Raises:
        ConfigError: epochs or a size that are no whole numbers of at least 1.
    """
    require_sizes(judge_epochs=epochs, judge_batch=batch)
    sizes = {"epochs": epochs, "batch": batch}
    found: dict[str, int | str] = {name: int(size) for name, size in sizes.items() if size is not None}
    texts = {"precision": "" if precision in (None, "float32") else str(precision)}
    texts |= {"protocol": protocol, "testing": testing}
    return found | {name: text for name, text in texts.items() if text}


def in_place_of(own: object, usual: object, apart: Collection[str] = ()) -> str:
    """Return in words in which fields a dataclass differs from the usual one, those of its dataclasses too.

    Args:
        own: a protocol of the user's, say; None for none.
        usual: what it stands in the place of.
        apart: fields that make no difference.
    Returns:
        Nothing where they are alike, or there is none.
    """
    return "" if own is None else ", ".join(_differing(own, usual, apart))


def _differing(own: object, usual: object, apart: Collection[str]) -> list[str]:
    found = []
    for entry in fields(own):  # type: ignore[arg-type]
        value, other, words = getattr(own, entry.name), getattr(usual, entry.name, None), entry.name.replace("_", " ")
        if is_dataclass(value) and is_dataclass(other):
            found += [f"{words} {part}" for part in _differing(value, other, apart)]
        elif entry.name not in apart and value != other:
            found.append(f"{words} {value}")
    return found


def overrides_of(task: Task) -> Judging:
    """Return what the user set of a task's judging. A named protocol is in the judge's name."""
    return task.judging_chosen if isinstance(task, KeepsJudging) else {}


def judge_title(task: Task, judge: str) -> str:
    """Return what the scores of a task's judge are called: its name, where the task says no more."""
    return task.judge_title(judge) if isinstance(task, TitlesJudges) else judge


def is_solved(task: Task, judge: str) -> bool:
    """Return whether a task's judge is solved, so that nothing trains for epochs."""
    return isinstance(task, LimitsJudging) and "epochs" not in task.judging_read(judge)


ROBUST_METRICS = (
    "label-robust score",
    "augmentation-robust score",
    "hard-label gap",
    "over random",
    "over random, plain",
)
"""The two robust scores and the differences of accuracies that they are made of, which are no accuracies."""


@runtime_checkable
class ScoresRobustness(Protocol):
    """A task that has the field's label-robust and augmentation-robust scores."""

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
            judge: who judges.
            draws: the key.
            n: how many independently drawn judges.
            learned: as for :meth:`Task.evaluate`.
            subset: draws a random subset of real samples at equal count; None where a class has too few of them, which
                leaves what needs no such subset.
            classes: that the samples stand for, where their labels need not say it.
        """
        ...
