"""What tasks of texts share, whatever form networks read them in: class batches, judges by name, identity."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mmdistill.abilities import JUDGING, Judging
from mmdistill.classification import classes_seen, collapse_note, scored
from mmdistill.labels import target_loss, weighted_mean
from mmdistill.names import known_name
from mmdistill.networks.architecture import described_module, task_line
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.pretrained import GivenTeacher
from mmdistill.networks.statistics import settled_by_class
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Scores, TaskInfo, Tensors, one_tensor
from mmdistill.text.attention import class_labels
from mmdistill.text.data import TextData
from mmdistill.text.encoder import SentenceEncoder
from mmdistill.text.reading import READERS, Reader
from mmdistill.text.sampling import ClassRows


class TextClassification(ABC):
    """Classification of texts by networks that read them in one form: as points, or as sequences of vectors.

    Args:
        data: the texts, split.
        model: the network to distil with.
        network_name: what reports call the network; where it is empty, it is described.
        judges: the names of those that read this form, the default one first; :data:`READERS` follow.
        judging: what the user set of judging, see :func:`~mmdistill.abilities.judging_overrides`.
        solved: those of them that do not train.

    Attributes:
        given_teacher: a trained network that is asked in place of one that would train first.
        encoder: whose points, or tokens, samples are made of.
        space_in_words: of which space samples are points in pictures and tables.
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
        self.judging_chosen = judging
        self._solved = (*solved, *READERS)
        self._classes = data.train.labels.to(self.device)
        self._rows = ClassRows(data.train.labels, self.class_count, self.device)
        self._reader = Reader(data, self.device)

    @abstractmethod
    def network_inputs(self, inputs: Inputs) -> Inputs:
        """Return inputs as the network reads them; those of another form are refused."""

    @abstractmethod
    def real_inputs(self, indices: Tensor) -> Inputs:
        """Return the inputs of training texts, ``(*indices.shape, ...)``."""

    @abstractmethod
    def points(self, inputs: Inputs) -> Tensor:
        """Return where samples lie among :meth:`training_points`, ``(n, d)`` on the device."""

    @abstractmethod
    def training_points(self) -> Tensor:
        """Return the training texts as points of the space that :attr:`space_in_words` names, ``(N, d)``."""

    @abstractmethod
    def readable(self, inputs: Inputs) -> list[str]:
        """Return the text that each sample stands for."""

    @abstractmethod
    def checked(self, synthetic: Batch) -> Batch:
        """Return synthetic samples for judges; those of another space or of other classes are refused."""

    @abstractmethod
    def score(self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]) -> Scores:
        """Return the scores of a judge that reads this form, on checked samples (None: on all training texts)."""

    @abstractmethod
    def epochs_on(self, judge: str, count: int) -> int:
        """Return for how many epochs a judge that trains does so on so many samples."""

    @abstractmethod
    def describe(self) -> TaskInfo:
        """Return what identifies this task, see :meth:`described`."""

    def __repr__(self) -> str:
        sizes = f"{len(self.data.train.labels):,} training and {len(self.data.test.labels):,} test texts"
        return task_line(self, self.data.name, sizes)

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network; of a pre-trained one, a fresh head."""
        return self.model.init(draws)

    def architecture(self) -> str:
        """Return the network as its module describes itself."""
        return described_module(self.model.module)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return ``(n, C)`` logits."""
        logits, buffers = self.model(state, self.network_inputs(inputs), train=train, draws=draws)
        return logits, buffers

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return the network with the statistics of so many real texts of each class in its batch norms."""
        return settled_by_class(self, self.model, state, draws)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the weighted mean of :func:`~mmdistill.labels.target_loss`."""
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return weighted_mean(target_loss(logits, one_tensor(batch.targets)), batch.weight)

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the network's features, the embedding before the linear head last."""
        return self.model.features(state, self.network_inputs(inputs))

    def classes(self, indices: Tensor) -> Tensor:
        """Return the classes of training texts."""
        return self._classes[indices.to(self.device)]

    def select(self, indices: Tensor) -> Batch:
        """Return training texts with their classes."""
        indices = indices.to(self.device)
        return Batch(self.real_inputs(indices), self._classes[indices], torch.ones(indices.shape, device=self.device))

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training texts of each class (padded with weight 0), or of all, without replacement."""
        draws = draws.to(self.device)
        if classes is None:
            total = len(self._classes)
            return self.select(draws.permutation(total)[:n] if n < total else torch.arange(total))
        index, weight = self._rows.draw(draws, classes, n)
        return ClassBatch(self.select(index)._replace(weight=weight), Dims(0, 0))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch as it is: no augmentation of texts is established."""
        return batch

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Fit judges to a set (None: the whole training split) and score them on the test split.

        The judges without randomness give one value, whatever n is.

        Raises:
            ConfigError: an unknown judge.
        """
        key = known_name("judge", judge, self.judges)
        batch = None if synthetic is None else self.checked(synthetic)
        if key not in READERS:
            return self.score(batch, key, draws, n, learned)
        if batch is None:
            return self._reader.score(key, self.data.train.texts, self._classes, None)
        return self._reader.score(key, self.readable(batch.inputs), class_labels(batch.targets), batch.weight)

    def scores_of(self, judge: str, predicted: Tensor, truth: Tensor, notes: Sequence[str] = ()) -> Scores:
        """Return the scores of S networks, and a remark where one does not predict all classes.

        Shapes:
            predicted ``(S, m)`` and truth ``(m,)`` classes.
        """
        remark = partial(collapse_note, classes=self.class_count, least=self.class_count)
        return scored(judge, predicted == truth, truth, notes, seen=classes_seen(predicted), remark=remark)

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge reads of what is set of judging: one that does not train nothing."""
        return () if judge in self._solved else JUDGING

    def judging_epochs(self, judge: str, samples: int | None) -> int | None:
        """Return for how many epochs a judge trains on so many texts, None: on all; None of what does not train."""
        return self.epochs_on(judge, samples or len(self._classes)) if self.judging_read(judge) else None

    def described(
        self,
        space: str,
        preprocessing: Mapping[str, object],
        forms: Mapping[str, tuple[int | None, ...]],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> TaskInfo:
        """Return what identifies a task of these texts.

        Args:
            space: what tells the space of samples from any other; sets of another one are not this task's.
            preprocessing: what sets must carry of it.
            forms: of samples, see :class:`~mmdistill.task.TaskInfo`.
            tensors: that belong to it.
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
