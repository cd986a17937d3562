"""The vocabulary of every domain: batches, network states, and the Task protocol that a domain implements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, ShapeError
from mmdistill.names import in_words
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

    def __repr__(self) -> str:
        """Return the shapes in one line."""
        return f"Batch(inputs {shapes(self.inputs)}, targets {shapes(self.targets)}, weight {shapes(self.weight)})"

    def map(self, function: "TensorMap") -> "Batch":
        """Return the batch with a function applied to each of its tensors."""
        return Batch(map_inputs(function, self.inputs), map_inputs(function, self.targets), function(self.weight))


class Dims(NamedTuple):
    """Where the class axis of a :class:`ClassBatch` is: 0 or None (shared)."""

    inputs: int | None
    targets: int | None
    weight: int = 0


class ClassBatch(NamedTuple):
    """One batch for each of C classes, stacked.

    Shapes:
        With ``dims.inputs == 0`` each input tensor is ``(C, n, ...)``; with None the inputs (the nodes and edges of one
        graph, say) are shared, without a class axis. ``batch.weight`` is ``(C, n)``; padding of ragged classes is 0.
    """

    batch: Batch
    dims: Dims

    @property
    def num_classes(self) -> int:
        """The length of the class axis."""
        return self.batch.weight.shape[0]

    @property
    def shares(self) -> Tensor:
        """Each sample's share of its class, ``(C, n)``: the weights divided by their sum over the class."""
        return self.batch.weight / self.batch.weight.sum(1, keepdim=True)

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
    """A network's parameters and buffers by name, apart from its code."""

    params: Tensors
    buffers: Tensors

    def map(self, function: "TensorMap") -> "NetworkState":
        """Return the state with a function applied to each of its tensors."""
        return NetworkState(*({name: function(tensor) for name, tensor in part.items()} for part in self))

    def shapes(self) -> dict[str, list[int]]:
        """Return the parameters' shapes as plain values, which tell architectures apart on disk."""
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


def shapes(value: Inputs | Targets) -> str:
    """Return the shape of a tensor, or those of a named dict of tensors by name, in words."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in value.items()) + "}"
    return str(tuple(value.shape))


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


def tensors_of(value: Inputs | Targets) -> list[Tensor]:
    """Return the tensors of inputs or targets as a list."""
    return list(value.values()) if isinstance(value, dict) else [value]


def named_tensors(prefix: str, value: Inputs | Targets) -> Tensors:
    """Return inputs or targets under the name ``prefix``, or under ``prefix.NAME`` for a named dict."""
    if isinstance(value, dict):
        return {f"{prefix}.{name}": tensor for name, tensor in value.items()}
    return {prefix: value}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors whose names begin with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def num_samples(inputs: Inputs) -> int:
    """Return the length of the first axis (of the first tensor of a dict)."""
    return tensors_of(inputs)[0].shape[0]


def shares_inputs(batch: Batch) -> bool:
    """Return whether samples share inputs, like the nodes of one graph, and so cannot be taken singly."""
    return any(len(tensor) != len(batch.weight) for tensor in tensors_of(batch.inputs))


def take(batch: Batch, index: Tensor | slice | int) -> Batch:
    """Return the samples of a batch at some indices, in their shape (one row for each of several networks, say)."""
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
    gathered = take(batch, table)
    return ClassBatch(gathered._replace(weight=gathered.weight * present), Dims(0, 0))


def share_classes(batch: Batch, membership: Tensor) -> ClassBatch:
    """Give shared inputs one weight vector per class (the nodes of one graph, say).

    Args:
        batch: n samples whose inputs and targets every class shares.
        membership: ``(C, n)``, the weight of each sample in each class.
    """
    return ClassBatch(Batch(batch.inputs, batch.targets, batch.weight * membership), Dims(None, None))


BudgetKind = Literal["ipc", "nodes", "users"]
UNITS = ("scale", "mean", "std", "whitening")
"""Entries of the preprocessing that scale numbers."""
WORDS = ("splits", "notes")
"""Entries of the preprocessing that are sentences."""


@dataclass(frozen=True)
class TaskInfo:
    """A task's description of itself, for storage, for reports, and to refuse sets of other tasks.

    Args:
        domain: where names of methods are looked up: ``image``, ``graph``, ``graph-set``, ``text``, ``recsys`` or one
            of a user's own.
        data: the data set's name or path as the user gave it.
        budget: how synthetic size is counted.
        num_train: the number of real training samples (labelled nodes, users).
        stored_bytes: bytes of the whole training set as a user stores it.
        fingerprint: a hash of the training data; checkpoints of other data are refused.
        class_names: names by class index; empty without classes.
        preprocessing: plain values or tensors-as-lists that must travel with the set (normalisation, vocabulary); under
            ``augmentation``, the settings of random changes to real samples, which tell trainings apart.
        sample_bytes: bytes of a single real sample, if that is not its share of the whole (a graph's); 0: its share.
        tensors: preprocessing too large for plain values (a whitening matrix), which is stored in the set's file.
        test_fingerprint: a hash of the test data; scores on other test data are not compared. Empty: not known.
        forms: the axes after the first of each float tensor in a set's file, by its name there (``inputs``,
            ``inputs.x``); None is any length. Tensors without an entry have any form.
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
    test_fingerprint: str = ""
    forms: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def units(self) -> dict[str, object]:
        """The scaling from the data's numbers to those that networks read, as far as there is any."""
        return {name: self.preprocessing[name] for name in UNITS if name in self.preprocessing}

    @property
    def prepared(self) -> dict[str, object]:
        """The preprocessing without sentences, whose wording may change between versions."""
        return {name: value for name, value in self.preprocessing.items() if name not in WORDS}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what was held out of the data or changed when they were read."""
        entries = [self.preprocessing.get(name) for name in WORDS]
        return tuple(str(note) for entry in entries if isinstance(entry, list) for note in entry)


@dataclass(frozen=True)
class Scores:
    """One judge's results, one value per independently drawn network, as fractions.

    Args:
        judge: the judge's name.
        values: metric name to the values of the runs; the first metric is the headline.
        notes: warnings that a reader of the number must see (collapse to few classes, say).
        by_class: the accuracies of the runs on test samples of each class, by its index; empty if not known.
        seen: how many classes the network of each run predicts; empty if not known.
        remark: returns the notes that follow from the numbers; it is called again when runs are pooled.
    """

    judge: str
    values: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()
    by_class: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    seen: tuple[int, ...] = ()
    remark: Callable[["Scores"], tuple[str, ...]] | None = field(default=None, repr=False, compare=False)


@runtime_checkable
class Task(Protocol):
    """The interface of a domain; objectives, schedules and the distiller know nothing else of it.

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
        """Return real training samples in the form of synthetic ones; inputs ``(*indices.shape, ...)``.

        Where samples are linked (graphs) this is the induced subset.
        """
        ...

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw n real samples of each class as a :class:`ClassBatch`, or, with classes None, n of all as a Batch.

        A class with fewer samples gives all of them and is padded with weight 0. Networks compute on padding too, so
        there is no more of it than the largest class needs.
        """
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
        Returns:
            n values of each metric; a judge without randomness may give one.
        """
        ...

    def describe(self) -> TaskInfo:
        """Return the task's description of itself."""
        ...


Samples = TypeVar("Samples", bound=Batch | ClassBatch)


def real_samples(task: Task, draws: Draws, n: int) -> Batch:
    """Draw n real samples of all classes together.

    Raises:
        ShapeError: the task returns something else than a Batch.
    """
    return _of_kind(Batch, task.sample_real(draws, None, n), "sample_real without classes", task)


def real_classes(task: Task, draws: Draws, classes: Tensor, n: int) -> ClassBatch:
    """Draw n real samples of each of some classes.

    Raises:
        ShapeError: the task returns something else than a ClassBatch.
    """
    return _of_kind(ClassBatch, task.sample_real(draws, classes, n), "sample_real with classes", task)


def augmented(task: Task, draws: Draws, batch: Samples, *, shared: bool) -> Samples:
    """Augment samples by :meth:`Task.augment`, and check that a batch stays of its type.

    Raises:
        ShapeError: the task returns another type.
    """
    return _of_kind(type(batch), task.augment(draws, batch, shared=shared), "augment", task)


def _of_kind(kind: type[Samples], samples: Batch | ClassBatch, what: str, task: Task) -> Samples:
    if not isinstance(samples, kind):
        raise ShapeError(
            f"{what} of {type(task).__name__} must return a {kind.__name__}, and returned a {type(samples).__name__}"
        )
    return samples


MEMBERS = (*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_")))


def missing_members(task: object) -> list[str]:
    """Return the members of :class:`Task` that an object lacks; none for a task."""
    return [name for name in MEMBERS if not hasattr(task, name)]


def require_task(task: object) -> None:
    """Refuse an object that is not a task.

    Raises:
        ConfigError: something else (data or their name, say), or a task that lacks members.
    """
    missing = missing_members(task)
    if missing and len(missing) < len(MEMBERS) / 2 and not isinstance(task, type):
        raise ConfigError(f"{type(task).__name__} lacks {in_words(missing)}, which every task has")
    if missing:
        raise ConfigError(
            f"a task is expected, got {type(task).__name__}; make one with image_task, graph_task, graph_set_task, "
            "text_task, token_task or recsys_task"
        )
