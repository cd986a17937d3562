"""The vocabulary of every domain: batches, network states, and the Task protocol that a domain must supply."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.runtime import Draws

Tensors = dict[str, Tensor]
Inputs = Tensor | Tensors
Targets = Tensor | Tensors


class Batch(NamedTuple):
    """Samples with targets and weights; a named tuple, hence a pytree.

    Shapes:
        inputs ``(n, ...)`` or a named dict of tensors; targets ``(n,)`` class indices (int64) or ``(n, C)``
        soft labels (float); weight ``(n,)``, 0 for padding. A loss is the weighted mean over samples.
    """

    inputs: Inputs
    targets: Targets
    weight: Tensor


class Dims(NamedTuple):
    """Where the class axis of a :class:`ClassBatch` is: 0 or None (shared)."""

    inputs: int | None
    targets: int | None
    weight: int = 0


class ClassBatch(NamedTuple):
    """One batch for each of C classes, stacked.

    Shapes:
        With ``dims.inputs == 0`` each input tensor is ``(C, n, ...)``; with None the inputs (the nodes and edges of
        one graph, say) are shared and have no class axis. ``batch.weight`` is always ``(C, n)``; a ragged class
        is padded with weight 0.
    """

    batch: Batch
    dims: Dims

    @property
    def num_classes(self) -> int:
        """The length of the class axis."""
        return self.batch.weight.shape[0]

    def one_class(self, index: int) -> Batch:
        """Return the batch of one class, without the class axis."""
        inputs, targets, weight = self.batch
        if self.dims.inputs is not None:
            inputs = map_inputs(lambda t: t[index], inputs)
        if self.dims.targets is not None:
            targets = map_inputs(lambda t: t[index], targets)
        return Batch(inputs, targets, weight[index])

    def part(self, start: int, stop: int) -> "ClassBatch":
        """Return consecutive classes."""
        inputs, targets, weight = self.batch
        if self.dims.inputs is not None:
            inputs = map_inputs(lambda t: t[start:stop], inputs)
        if self.dims.targets is not None:
            targets = map_inputs(lambda t: t[start:stop], targets)
        return ClassBatch(Batch(inputs, targets, weight[start:stop]), self.dims)


class NetworkState(NamedTuple):
    """All of a network that is not code: parameters and buffers by name."""

    params: Tensors
    buffers: Tensors

    def shapes(self) -> dict[str, list[int]]:
        """Return the parameters' shapes as plain values: what tells one architecture from another on disk."""
        return {name: list(tensor.shape) for name, tensor in self.params.items()}


def map_inputs(function: "TensorMap", inputs: Inputs) -> Inputs:
    """Apply a function to the tensor, or to each tensor of a named dict."""
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return function(inputs)


class TensorMap(Protocol):
    """A function from tensor to tensor."""

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """Return the mapped tensor."""
        ...


def one_tensor(value: Inputs | Targets, reader: str = "this") -> Tensor:
    """Return inputs or targets that are one tensor.

    Args:
        value: inputs or targets.
        reader: who reads them, for the error.
    Raises:
        ShapeError: a named dict.
    """
    if isinstance(value, dict):
        raise ShapeError(f"{reader} reads one tensor, got a dict of {', '.join(value)}")
    return value


def num_samples(inputs: Inputs) -> int:
    """Return the length of the first axis (of the first tensor of a dict)."""
    tensor = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return tensor.shape[0]


def take(batch: Batch, index: Tensor | slice | int) -> Batch:
    """Return some samples of a batch, in the shape of the indices (one row for each of several networks, say)."""
    inputs = map_inputs(lambda t: t[index], batch.inputs)
    return Batch(inputs, map_inputs(lambda t: t[index], batch.targets), batch.weight[index])


def stack_classes(batch: Batch, table: Tensor, present: Tensor) -> ClassBatch:
    """Gather a flat batch into one padded batch per class.

    Args:
        batch: n samples.
        table: ``(C, m)`` indices into the samples; padding repeats any valid index.
        present: ``(C, m)``, 1 where the table holds a sample, 0 where it pads.
    Shapes:
        the batch's tensors ``(n, ...)`` come back as ``(C, m, ...)``.
    Raises:
        ShapeError: table and present differ in shape.
    """
    if table.shape != present.shape:
        raise ShapeError(f"table {tuple(table.shape)} and present {tuple(present.shape)} must have one shape")
    found = take(batch, table)
    return ClassBatch(found._replace(weight=found.weight * present), Dims(0, 0))


def share_classes(batch: Batch, membership: Tensor) -> ClassBatch:
    """Give shared inputs one weight vector per class (the nodes of one graph, say).

    Args:
        batch: n samples whose inputs and targets every class shares.
        membership: ``(C, n)``, the weight of each sample in each class.
    """
    return ClassBatch(Batch(batch.inputs, batch.targets, batch.weight * membership), Dims(None, None))


BudgetKind = Literal["ipc", "nodes", "users"]
UNITS = ("scale", "mean", "std", "whitening")
"""Entries of the preprocessing by which numbers are scaled."""
WORDS = ("splits", "notes")
"""Entries of the preprocessing that are sentences."""


@dataclass(frozen=True)
class TaskInfo:
    """What a task says of itself: enough for storage, reports and for refusing a set of another task.

    Args:
        domain: ``image``, ``graph``, ``graph-set``, ``text`` or ``recsys``.
        data: the data set's name or path as the user gave it.
        budget: how synthetic size is counted.
        num_train: the number of real training samples (labelled nodes, users).
        stored_bytes: bytes of the whole training set as a user stores it.
        fingerprint: a hash of the training data; checkpoints of other data are refused.
        class_names: names by class index; empty where there are no classes.
        preprocessing: plain values or tensors-as-lists that must travel with the set (normalisation, vocabulary).
        sample_bytes: bytes of one real sample alone, where that is not its share of the whole (a graph stores far
            more nodes than it has labels); 0 means the share.
        tensors: preprocessing too large for plain values (a whitening matrix), which is stored in the set's file.
    """

    domain: str
    data: str
    budget: BudgetKind
    num_train: int
    stored_bytes: int
    fingerprint: str
    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    sample_bytes: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def units(self) -> dict[str, object]:
        """What turns the data's numbers into those that networks read, where the data have such."""
        return {name: self.preprocessing[name] for name in UNITS if name in self.preprocessing}

    @property
    def prepared(self) -> dict[str, object]:
        """The preprocessing without what says it in words, which may be worded anew."""
        return {name: value for name, value in self.preprocessing.items() if name not in WORDS}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was held out of the data or changed on the way in, in words."""
        entries = [self.preprocessing.get(name) for name in WORDS]
        return tuple(str(note) for entry in entries if isinstance(entry, list) for note in entry)


@dataclass(frozen=True)
class Scores:
    """One judge's results, one value per independently drawn network, as fractions.

    Args:
        judge: the judge's name.
        values: metric name to the values of the runs; the first metric is the headline.
        notes: warnings that a reader of the number must see (collapse to few classes, say).
    """

    judge: str
    values: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()


@runtime_checkable
class Task(Protocol):
    """All that a domain must supply; objectives, schedules and the distiller know nothing else of it.

    ``labels`` holds the class of each real training sample, ``(N,)`` on the CPU, and is None in tasks without
    classes, as is ``num_classes``. ``judges`` names the judges of :meth:`evaluate`, the default one first. All
    tensors that methods return lie on ``device``.
    """

    num_classes: int | None
    labels: Tensor | None
    judges: Sequence[str]
    device: torch.device

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network."""
        ...

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return the network's outputs, ``(n, C)`` logits where there are classes, and its updated buffers."""
        ...

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the weighted mean training loss of a batch, a scalar."""
        ...

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return one ``(n, d_l)`` tensor per layer, the embedding before the linear head last."""
        ...

    def select(self, indices: Tensor) -> Batch:
        """Return real training samples in the form synthetic ones have; inputs ``(*indices.shape, ...)``.

        Where samples are linked (graphs) this is the induced subset.
        """
        ...

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw n real samples of each class as a :class:`ClassBatch`, or, with classes None, n of all as a Batch."""
        ...

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Augment differentiably; the same key means the same augmentation.

        Args:
            draws: the key; siamese augmentation calls twice with one key.
            batch: what to augment.
            shared: one set of parameters per class batch (siamese matching) instead of one per sample.
        """
        ...

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Train n fresh judges on a synthetic batch (None: on the whole training set) and score them on test data.

        Args:
            synthetic: the distilled samples, decoded.
            judge: one of ``judges``.
            draws: the key of all randomness in judging.
            n: how many independently drawn judges.
            learned: what was learned beside the samples and belongs to the set (inner learning rates, ridge).
        """
        ...

    def describe(self) -> TaskInfo:
        """Return what identifies this task."""
        ...


@runtime_checkable
class Validates(Protocol):
    """A task that can score a synthetic batch on validation data, so that a run keeps its best step."""

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float | None:
        """Return a score, higher is better, from validation data only; None where the data come without any."""
        ...


@runtime_checkable
class DescribesNetwork(Protocol):
    """A task that says what its network is made of: shapes do not tell activations, norms, pooling, dropout apart."""

    def architecture(self) -> str:
        """Return the network in words, as a module describes itself; the same for the same network in any process."""
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
class TrainsWhole(Protocol):
    """A task whose networks train on more than the selected samples hold (a graph's labelled nodes read the others)."""

    def training_batch(self) -> Batch:
        """Return all real training samples as networks train on them."""
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
    """A task not all of whose judges train for the epochs and by the minibatches that a user sets."""

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge, by name or title, reads of ``epochs`` and ``batch``; nothing where it is solved."""
        ...


JUDGING = ("epochs", "batch")
"""What a user can set of judging: epochs, and the size of minibatches."""
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
        """
        ...


def require_task(task: object) -> None:
    """Refuse what is no task.

    Raises:
        ConfigError: data or a name instead of their task, say.
    """
    if not isinstance(task, Task):
        raise ConfigError(
            f"a task is expected, got {type(task).__name__}; make one with image_task, graph_task, graph_set_task, "
            "text_task, token_task or recsys_task"
        )
