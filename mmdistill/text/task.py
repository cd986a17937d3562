"""Sentence points of a frozen encoder as a task: networks on points, class batches, and judges."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.abilities import JUDGING
from mmdistill.classification import accuracies, collapse_note
from mmdistill.errors import ConfigError, DataError, ShapeError
from mmdistill.isolation import isolated
from mmdistill.labels import are_probabilities, require_targets, target_loss, weighted_mean
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.architecture import OWN, described_module, task_line
from mmdistill.networks.fit import FitProtocol, fit_networks
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.stacked import Mode, state_at
from mmdistill.networks.statistics import settled_by_class
from mmdistill.networks.trial import try_network
from mmdistill.runtime import Draws, checked_seed, choose_device
from mmdistill.settings import require_sizes
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Scores, TaskInfo, Tensors, one_tensor
from mmdistill.text.data import TextData, TextInput, load_text
from mmdistill.text.encoder import EncoderLike, SentenceEncoder, make_encoder
from mmdistill.text.judges import (
    centred_targets,
    choose_ridge,
    distributions,
    judge_loss,
    knn_scores,
    logistic_predictions,
    ridge_weights,
)
from mmdistill.text.models import ModelLike, make_module, mlp_head
from mmdistill.text.reading import READERS, Reader, encode_splits, with_test
from mmdistill.text.sampling import ClassRows

JUDGE_STEPS = 300
JUDGE = FitProtocol(epochs=0, lr=3e-3, optimizer="adam", weight_decay=1e-3, batch=256, decay_at=(0.75,), decay=0.1)
"""How trained judges are fitted; the epochs follow from :data:`JUDGE_STEPS`, so every set gets as many updates."""


@dataclass(frozen=True)
class Points:
    """Points ``(n, d)`` with class indices ``(n,)``, both on the task's device."""

    inputs: Tensor
    labels: Tensor


class TextTask:
    """Classification of texts by the points that a frozen encoder gives them.

    A synthetic sample is a point of the encoder's space with a label, soft or hard. Judges are ``mlp`` (one hidden
    layer, trained with the soft cross entropy, or with the squared error where labels are scores), ``logreg`` (its C
    chosen on development data), ``knn`` (cosine-weighted votes), ``ridge`` (no bias; lambda chosen once on development
    data for the whole training set), ``read-alone``, ``read-tfidf``, ``read-average`` and ``read-minilm`` (each point's
    nearest training text, read by another encoder, with logistic regression; that of ``read-alone`` is learned from
    these texts and no others), and first ``model``, the user's own network, where one is given.

    Args:
        data: the texts, split.
        train: the training points, in the order of the texts.
        dev: development points, which choose hyper-parameters.
        test: test points, which only results see.
        model: the network to distil with.
        encoder: which gave the points; a set of another encoder's space is another task's.
        network_name: what reports call the network; by default it is described.
        truncated: how many texts the encoder cut off.
        own_model: whether the network is the user's, and hence a judge.
        protocol: how trained judges are fitted; 0 epochs stand for the default number of updates.
        noise: the norm of the Gaussian noise that ``augment`` adds, relative to unit vectors; 0 is the identity.
    """

    def __init__(
        self,
        data: TextData,
        train: Tensor,
        dev: Tensor,
        test: Tensor,
        model: FunctionalModule,
        *,
        encoder: SentenceEncoder,
        network_name: str = "",
        truncated: int = 0,
        own_model: bool = False,
        protocol: FitProtocol = JUDGE,
        noise: float = 0.0,
    ) -> None:
        self.data = data
        self.device = model.device
        self.labels: Tensor | None = data.train.labels
        self.class_count = len(data.class_names)
        self.num_classes: int | None = self.class_count
        self.train = Points(train.to(self.device), data.train.labels.to(self.device))
        self.dev = Points(dev.to(self.device), data.dev.labels.to(self.device))
        self.test = Points(test.to(self.device), data.test.labels.to(self.device))
        self.model = model
        self.sentence_encoder = encoder
        self.space = encoder.space(train)
        self.encoder = encoder.name
        self.network_name = network_name
        self.truncated = truncated
        self.protocol = protocol
        self.noise = noise
        self.judges: Sequence[str] = (OWN,) * own_model + ("mlp", "logreg", "knn", "ridge", *READERS)
        self.dim = train.shape[1]
        self._rows = ClassRows(data.train.labels, self.class_count, self.device)
        self._mlp = FunctionalModule(partial(mlp_head, self.dim, self.class_count), device=self.device)
        self._ridge: float | None = None
        self._reader = Reader(data, self.device)
        points = f"points of shape (n, {self.dim}) of the encoder {self.encoder!r}"
        try_network(self, self.train.inputs[:2], points, self.class_count)

    @property
    def ridge(self) -> float:
        """The ridge that did best on development data when fitted to the whole training set."""
        if self._ridge is None:
            targets = centred_targets(self.train.labels, self.class_count)
            self._ridge = choose_ridge(self.train.inputs, targets, self.dev.inputs, self.dev.labels)
        return self._ridge

    def __repr__(self) -> str:
        sizes = f"{len(self.data.train.labels):,} training and {len(self.data.test.labels):,} test texts"
        return task_line(self, self.data.name, sizes)

    def init(self, draws: Draws) -> NetworkState:
        """Draw a fresh network."""
        return self.model.init(draws)

    def architecture(self) -> str:
        """Return the network as its module describes itself."""
        return described_module(self.model.module)

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        """Return ``(n, C)`` logits of ``(n, d)`` points."""
        logits, buffers = self.model(state, one_tensor(inputs), train=train, draws=draws)
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
        return self.model.features(state, one_tensor(inputs))

    def embedding(self) -> Tensor:
        """Return the training points, ``(N, d)``."""
        return self.train.inputs

    def select(self, indices: Tensor) -> Batch:
        """Return training points with their classes."""
        indices = indices.to(self.device)
        weight = torch.ones(indices.shape, device=self.device)
        return Batch(self.train.inputs[indices], self.train.labels[indices], weight)

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training points of each class, or of all, without replacement.

        A class of fewer points comes whole, padded with weight 0. All classes are drawn in one call.
        """
        draws = draws.to(self.device)
        if classes is None:
            total = len(self.train.labels)
            return self.select(draws.permutation(total)[:n] if n < total else torch.arange(total))
        index, weight = self._rows.draw(draws, classes, n)
        return ClassBatch(Batch(self.train.inputs[index], self.train.labels[index], weight), Dims(0, 0))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Add Gaussian noise of the task's strength: one vector per class where shared, else one per sample."""
        if self.noise == 0:
            return batch
        if isinstance(batch, ClassBatch):
            return ClassBatch(self._noisy(draws, batch.batch, shared), batch.dims)
        return self._noisy(draws, batch, shared)

    def _noisy(self, draws: Draws, batch: Batch, shared: bool) -> Batch:
        points = one_tensor(batch.inputs)
        shape = (*points.shape[:-2], 1, points.shape[-1]) if shared else tuple(points.shape)
        vectors = draws.to(self.device).normal(*shape) * (self.noise / math.sqrt(self.dim))
        return batch._replace(inputs=points + vectors.to(points.dtype))

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Fit judges to a set (None: the whole training split) and score them on the test split.

        The judges without randomness give one value, whatever n is.

        Raises:
            ConfigError: an unknown judge.
        """
        key = canonical(judge)
        if key not in self.judges:
            raise unknown_name("judge", judge, self.judges)
        if key in READERS:
            return self._read(synthetic, key)
        batch = self._checked(synthetic)
        notes: list[str] = []
        if key in ("mlp", OWN):
            predictions = self._trained(batch, key, self.test.inputs, draws, n)
        else:
            predictions, notes = self._closed(batch, key)
        if synthetic is not None and key in ("logreg", "knn") and not are_probabilities(one_tensor(batch.targets)):
            notes.append("labels are scores; shifted, clipped at 0 and normalised for this judge")
        notes += collapse_note(predictions, self.class_count, self.class_count)
        return Scores(key, accuracies(predictions == self.test.labels, self.test.labels), tuple(notes))

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge reads of ``epochs`` and ``batch``: all but networks nothing."""
        return JUDGING if judge in ("mlp", OWN) else ()

    def judging_epochs(self, judge: str, samples: int | None) -> int | None:
        """Return for how many epochs a judge trains on so many texts, None: on all; None of what is solved."""
        return self._epochs(samples or len(self.train.labels)) if self.judging_read(judge) else None

    def _epochs(self, samples: int) -> int:
        """Return the protocol's epochs, or as many as make the usual number of updates."""
        updates_per_epoch = math.ceil(samples / (self.protocol.batch or samples))
        return self.protocol.epochs or max(1, round(JUDGE_STEPS / updates_per_epoch))

    def _read(self, synthetic: Batch | None, judge: str) -> Scores:
        if synthetic is None:
            return self._reader.score(judge, self.data.train.texts, self.train.labels, None)
        batch = self._checked(synthetic)
        texts = self.readable(batch.inputs)
        return self._reader.score(judge, texts, one_tensor(batch.targets), batch.weight)

    def readable(self, inputs: Inputs) -> list[str]:
        """Return the training text nearest to each point (cosine)."""
        similarity = F.normalize(one_tensor(inputs).to(self.device), dim=1) @ F.normalize(self.train.inputs, dim=1).T
        return [self.data.train.texts[index] for index in similarity.argmax(1).tolist()]

    def _closed(self, batch: Batch, judge: str) -> tuple[Tensor, list[str]]:
        """Return ``(1, m)`` test predictions of a judge without randomness, and what was chosen."""
        points, targets = one_tensor(batch.inputs), one_tensor(batch.targets)
        if judge == "logreg":
            on_cpu = Batch(points.cpu(), targets.cpu(), batch.weight.cpu())
            found, penalty = logistic_predictions(
                on_cpu, self.class_count, self.dev.inputs.cpu(), self.dev.labels.cpu(), self.test.inputs.cpu()
            )
            return found[None].to(self.device), [f"C = {penalty:g}, chosen on development data"]
        if judge == "knn":
            weighted = distributions(targets, self.class_count) * batch.weight[:, None]
            return knn_scores(points, weighted, self.test.inputs).argmax(1)[None], []
        weights = ridge_weights(points, centred_targets(targets, self.class_count), self.ridge, batch.weight)
        return (self.test.inputs.double() @ weights).argmax(1)[None], [f"ridge = {self.ridge:g}"]

    def _checked(self, synthetic: Batch | None) -> Batch:
        if synthetic is None:
            return self.select(torch.arange(len(self.train.labels)))
        points, targets = one_tensor(synthetic.inputs), one_tensor(synthetic.targets)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ShapeError(
                f"points of shape {tuple(points.shape)} are not of the space of {self.encoder!r}, (n, {self.dim})"
            )
        require_targets(targets, len(points), self.class_count, self.data.name)
        return Batch(points.to(self.device), targets.to(self.device), synthetic.weight.to(self.device))

    def _trained(self, batch: Batch, judge: str, queries: Tensor, draws: Draws, n: int) -> Tensor:
        """Return ``(n, m)`` predictions of n networks fitted to a batch."""
        module = self._mlp if judge == "mlp" else self.model
        epochs = self._epochs(len(batch.weight))
        loss = judge_loss(module, one_tensor, one_tensor(batch.targets))
        # A user's network may do what a batched call cannot: drop units, write its running statistics, recur.
        mode: Mode = "vmap" if module is self._mlp else "loop"
        with module.drawn(draws):
            fitted = fit_networks(module.init, loss, batch, replace(self.protocol, epochs=epochs), n, draws, mode=mode)
        with torch.no_grad():
            return torch.stack([module(state_at(fitted, index), queries)[0].argmax(1) for index in range(n)])

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the mean development accuracy of two networks of the first judge."""
        batch = self._checked(synthetic)
        predictions = self._trained(batch, self.judges[0], self.dev.inputs, draws, 2)
        return float((predictions == self.dev.labels).double().mean())

    def describe(self) -> TaskInfo:
        """Return what identifies this task; the encoder's space is part of its identity."""
        fingerprint = hashlib.blake2b(f"{self.data.fingerprint}|{self.space}".encode(), digest_size=16).hexdigest()
        return TaskInfo(
            domain="text",
            data=self.data.name,
            budget="ipc",
            num_train=len(self.train.labels),
            stored_bytes=self.data.stored_bytes,
            fingerprint=fingerprint,
            class_names=self.data.class_names,
            test_fingerprint=self.data.test_fingerprint,
            preprocessing={
                "encoder": self.encoder,
                "space": self.space,
                "dim": self.dim,
                "truncated_texts": self.truncated,
                "splits": list(self.data.notes),
                **({"augmentation": {"noise": self.noise}} if self.noise else {}),
            },
        )


@isolated
def text_task(
    data: TextInput,
    *,
    encoder: EncoderLike = "minilm",
    model: ModelLike = "mlp",
    width: int | None = None,
    features: str | Sequence[str] = (),
    test: tuple[Sequence[Any], Sequence[Any]] | None = None,
    noise: float = 0.0,
    text_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str = "auto",
    judge_epochs: int | None = None,
    judge_batch: int | None = None,
    seed: int = 0,
) -> TextTask:
    """Encode labelled texts once and return the task of distilling their points.

    Args:
        data: a name, a file or folder, ``hf:NAME``, ``(texts, labels)``, or such pairs by split name.
        encoder: ``minilm``, ``tfidf``, ``average``, a transformers model's name or folder, or a function from a list
            of n texts to an ``(n, d)`` tensor, or a model with such a function called ``encode``. Functions are told
            apart by their names and some training points; a name of your own, ``CallableEncoder(function, name)``,
            identifies one instead and keeps its points in the cache.
        model: the network to distil with: ``mlp``, ``linear``, or a function that returns a module.
        width: hidden units of ``mlp``; 256 by default.
        features: for a network of one's own, the submodules whose activations are its features.
        test: texts and labels to test on, beside a pair ``(texts, labels)``; a fifth is held out by default.
        noise: the strength of the noise that siamese augmentation adds; 0 is none.
        text_column: the column of texts; guessed by default.
        label_column: the column of labels; guessed by default.
        class_names: names by class index.
        device: where everything runs; ``auto`` is a CUDA device where there is one, else the CPU.
        judge_epochs: epochs of trained judges; by default every set gets the same number of updates.
        judge_batch: their minibatch size.
        seed: of the splits that the data do not come with.
    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.
    Raises:
        ConfigError: an unknown name, or a network that does not fit the points.
        DataError: unusable data, see :func:`~mmdistill.text.data.load_text`.
        ShapeError: an encoder that returns no ``(n, d)``.
    """
    seed = checked_seed(seed)
    if noise < 0:
        raise ConfigError(f"the noise is a norm, so it is 0 or more; got {noise}")
    require_sizes(width=width, judge_epochs=judge_epochs, judge_batch=judge_batch)
    device = choose_device(device)
    given = with_test(data, test)
    loaded = load_text(given, text_column=text_column, label_column=label_column, class_names=class_names, seed=seed)
    sentence_encoder = make_encoder(encoder, device)
    encoded = encode_splits(sentence_encoder, loaded)
    if not any((points.norm(dim=1) > 0).any() for points in encoded[:3]):
        raise DataError(f"the encoder {sentence_encoder.name!r} gives the zero vector for every text")
    module = make_module(model, encoded.train.shape[1], len(loaded.class_names), width, features, device)
    protocol = replace(JUDGE, epochs=judge_epochs or 0, batch=judge_batch or JUDGE.batch)
    return TextTask(
        loaded,
        encoded.train,
        encoded.dev,
        encoded.test,
        module,
        encoder=sentence_encoder,
        network_name=canonical(model) if isinstance(model, str) else "",
        truncated=encoded.truncated,
        own_model=not isinstance(model, str),
        protocol=protocol,
        noise=noise,
    )
