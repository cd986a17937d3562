"""The base class of text tasks: class batches, judges by name, identity."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor

from mmdistill.abilities import Judging, PlainJudge
from mmdistill.classification import classes_seen, collapse_note, scored
from mmdistill.described import described_module
from mmdistill.labels import target_loss, weighted_mean
from mmdistill.names import known_name
from mmdistill.networks.architecture import identified, task_line
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.networks.pretrained import GivenTeacher
from mmdistill.networks.statistics import settled_by_class
from mmdistill.runtime import Draws
from mmdistill.samples import counted
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Scores, TaskInfo, Tensors, one_tensor
from mmdistill.text.attention import class_labels
from mmdistill.text.data import TextData
from mmdistill.text.encoder import SentenceEncoder
from mmdistill.text.reading import READERS, Reader
from mmdistill.text.sampling import TextRows


def weighed(batch: Batch) -> Batch:
    """Return a set as judges read it: without samples of weight 0, with weights of mean 1, whatever their unit was.

    Ridges and penalties of judges are for weights around 1.

    Raises:
        DataError: no sample has a weight.
    """
    batch = counted(batch)
    return batch._replace(weight=batch.weight / batch.weight.mean())


class TextClassification(ABC):
    """Classification of texts by networks that read them in one form: as points, or as sequences of vectors.

    Args:
        data: the texts, split.
        model: the network to distil with.
        network_name: name of the network in reports; if empty, reports describe it.
        judges: names of the judges that read this form, the default one first; :data:`READERS` follow.
        judging: the user's judging settings, see :func:`~mmdistill.abilities.judging_overrides`.
        solved: those of ``judges`` that do not train.

    Attributes:
        given_teacher: a trained network to use instead of training a teacher.
        encoder: the encoder that gives the points or tokens of samples.
        given: networks of the user's that judge beside the task's own judges, by name.
        space_in_words: the space of :meth:`points`, as figures and tables describe it.
    """

    given_teacher: GivenTeacher | None = None
    encoder: SentenceEncoder
    space_in_words: str

    def __init__(
        self,
        data: TextData,
        model: FunctionalModule,
        network_name: str,
        judges: Sequence[str],
        judging: Judging,
        solved: Sequence[str] = (),
    ) -> None:
        self.data, self.model, self.network_name = data, model, network_name
        self.device = model.device
        self.labels: Tensor | None = data.train.labels
        self.class_count = len(data.class_names)
        self.num_classes: int | None = self.class_count
        self.judges: Sequence[str] = (*judges, *READERS)
        self.given: dict[str, FunctionalModule] = {}
        self.judging_chosen = judging
        self._solved = (*solved, *READERS)
        self._classes = data.train.labels.to(self.device)
        self._rows = TextRows(data.train.labels, self.class_count, self.device)
        self._reader = Reader(data, self.device)

    @abstractmethod
    def try_network(self) -> None:
        """Run the network once on two training texts, see :func:`~mmdistill.networks.trial.try_network`."""

    @abstractmethod
    def network_inputs(self, inputs: Inputs) -> Inputs:
        """Return inputs as the network reads them, or refuse inputs of another form."""

    @abstractmethod
    def real_inputs(self, indices: Tensor) -> Inputs:
        """Return the inputs of training texts, ``(*indices.shape, ...)``."""

    @abstractmethod
    def points(self, inputs: Inputs) -> Tensor:
        """Return samples as points in the space of :meth:`training_points`, ``(n, d)`` on the device."""

    @abstractmethod
    def training_points(self) -> Tensor:
        """Return the training texts as points of the space that :attr:`space_in_words` describes, ``(N, d)``."""

    @abstractmethod
    def readable(self, inputs: Inputs) -> list[str]:
        """Return the text that each sample stands for."""

    @abstractmethod
    def checked(self, synthetic: Batch) -> Batch:
        """Return synthetic samples for judges, or refuse samples of another space or of other classes."""

    @abstractmethod
    def score(self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]) -> Scores:
        """Return the scores of a judge that reads this form, fitted to checked samples (None: all training texts)."""

    @abstractmethod
    def epochs_on(self, judge: str, count: int) -> int:
        """Return the number of epochs that a judge trains on ``count`` samples."""

    @abstractmethod
    def describe(self) -> TaskInfo:
        """Return the task's identity, see :meth:`described`."""

    def __repr__(self) -> str:
        sizes = f"{len(self.data.train.labels):,} training and {len(self.data.test.labels):,} test texts"
        return task_line(self, self.data.name, sizes)

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network; a pre-trained one gets a fresh head."""
        return self.model.init(draws)

    def architecture(self) -> str:
        """Return the network's description by its module."""
        return described_module(self.model.module)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return ``(n, C)`` logits."""
        logits, buffers = self.model(state, self.network_inputs(inputs), train=train, draws=draws)
        return logits, buffers

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return the network with batch norm statistics of real texts of each class."""
        return settled_by_class(self, self.model, state, draws)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the weighted mean of :func:`~mmdistill.labels.target_loss`."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return weighted_mean(target_loss(logits, one_tensor(batch.targets)), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the network's features; the last is the embedding before the linear head."""
        return self.model.features(state, self.network_inputs(inputs))

    def classes(self, indices: Tensor) -> Tensor:
        """Return the classes of training texts."""
        return self._classes[indices.to(self.device)]

    def select(self, indices: Tensor) -> Batch:
        """Return training texts with their classes."""
        indices = indices.to(self.device)
        return Batch(self.real_inputs(indices), self._classes[indices], torch.ones(indices.shape, device=self.device))

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training texts without replacement: per class (padded with weight 0), or overall."""
        draws = draws.to(self.device)
        if classes is None:
            total = len(self._classes)
            return self.select(draws.permutation(total)[:n] if n < total else torch.arange(total))
        index, weight = self._rows.draw(draws, classes, n)
        return ClassBatch(self.select(index)._replace(weight=weight), Dims(0, 0))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch unchanged: texts have no established augmentation."""
        return batch

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Fit judges to a set (None: the whole training split) and score them on the test split.

        Deterministic judges give one value instead of n.

        Raises:
            ConfigError: an unknown judge.
        """
        key = known_name("judge", judge, self.judges)
        batch = None if synthetic is None else weighed(self.checked(synthetic))
        if key not in READERS:
            return self.score(batch, key, draws, n, learned)
        if batch is None:
            return self._reader.score(key, self.data.train.texts, self._classes, None)
        return self._reader.score(key, self.readable(batch.inputs), class_labels(batch.targets), batch.weight)

    def scores_of(self, judge: str, predicted: Tensor, truth: Tensor, notes: Sequence[str] = ()) -> Scores:
        """Return the scores of S networks, with a remark if one does not predict all classes.

        Shapes:
            predicted ``(S, m)`` and truth ``(m,)`` classes.
        """
        remark = partial(collapse_note, classes=self.class_count, least=self.class_count)
        return scored(judge, predicted == truth, truth, notes, seen=classes_seen(predicted), remark=remark)

    def describe_judge(self, judge: str) -> PlainJudge:
        """Return the facts of a judge; one that does not train reads no settings."""
        name = known_name("judge", judge, self.judges)
        if name in self._solved:
            return PlainJudge(name, reads=())
        network = identified(described_module(self.given[name].module)) if name in self.given else ""
        whole = len(self._classes)
        return PlainJudge(name, network=network, epochs_on=lambda samples: self.epochs_on(name, samples or whole))

    def with_judge(self, name: str, factory: ModuleFactory) -> Self:
        """Return a copy with a network of the user's as a judge, see :class:`~mmdistill.abilities.TakesJudges`."""
        trial, other = copy.copy(self), copy.copy(self)
        trial.model = FunctionalModule(factory, device=self.device)
        trial.try_network()
        other.given, other.judges = {**self.given, name: trial.model}, (*self.judges, name)
        return other

    def described(
        self,
        space: str,
        preprocessing: Mapping[str, object],
        forms: Mapping[str, tuple[int | None, ...]],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> TaskInfo:
        """Return the identity of a task of these texts.

        Args:
            space: identifies the space of samples; sets of another space do not belong to this task.
            preprocessing: properties of the space to store in sets.
            forms: shapes of samples, see :class:`~mmdistill.task.TaskInfo`.
            tensors: tensors of the space to store in sets.
        """
        identity = f"{self.data.fingerprint}|{space}"
        return TaskInfo(
            domain="text",
            data=self.data.name,
            budget="ipc",
            num_train=len(self._classes),
            stored_bytes=self.data.stored_bytes,
            fingerprint=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
            class_names=self.data.class_names,
            test_fingerprint=self.data.test_fingerprint,
            preprocessing={**preprocessing, "splits": list(self.data.notes)},
            tensors=tensors or {},
            forms=forms,
        )
