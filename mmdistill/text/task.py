"""The task of sentence points from a frozen encoder: networks on points, class batches, and judges."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.abilities import in_place_of, judging_overrides
from mmdistill.checks import require_at_least, require_kind, require_sizes
from mmdistill.errors import DataError, ShapeError
from mmdistill.execution.isolation import isolated
from mmdistill.files.classes import ClassNames
from mmdistill.labels import are_probabilities, require_targets
from mmdistill.names import called
from mmdistill.networks.architecture import OWN
from mmdistill.networks.fit import fit_networks
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.pretrained import TeacherLike, given_as_teacher
from mmdistill.networks.stacked import Mode, state_at
from mmdistill.networks.trial import try_network
from mmdistill.parameterizations.base import index_bytes
from mmdistill.runtime import Draws, checked_seed, choose_device
from mmdistill.task import Batch, ClassBatch, Inputs, Scores, TaskInfo, one_tensor
from mmdistill.text.base import TextClassification, weighed
from mmdistill.text.data import SOURCES, TextData, TextInput, load_text
from mmdistill.text.encoder import SentenceEncoder
from mmdistill.text.encoders import EncoderLike, make_encoder
from mmdistill.text.inputs import Pair, Table
from mmdistill.text.judges import (
    RIDGES,
    centred_targets,
    choose_ridge,
    distributions,
    epochs_for,
    judge_loss,
    knn_scores,
    logistic_predictions,
    ridge_weights,
)
from mmdistill.text.models import ModelLike, network_name, point_module
from mmdistill.text.reading import Encoded, encode_splits
from mmdistill.text.samples import Samples
from mmdistill.text.selection import SELECTIONS, centroid_batch

JUDGE_STEPS = 300
SOLVED = ("logreg", "knn", "ridge")
"""Deterministic judges without training."""
JUDGE = FitProtocol(epochs=0, lr=3e-3, optimizer="adam", weight_decay=1e-3, batch=256, decay_at=(0.75,), decay=0.1)
"""How trained judges are fitted; the epochs follow from :data:`JUDGE_STEPS`, so every set gets equally many updates."""


@dataclass(frozen=True)
class Points:
    """Points ``(n, d)`` with class indices ``(n,)``, both on the task's device."""

    inputs: Tensor
    labels: Tensor


class TextTask(TextClassification):
    """Classification of texts by their points in a frozen encoder's space.

    A synthetic sample is a point of that space with a soft or hard label. Judges, in this order:

    - ``model``, the user's own network, if one is given.
    - ``mlp``: one hidden layer, trained with soft cross entropy, or squared error if labels are scores.
    - ``logreg``: logistic regression; C is chosen on development data.
    - ``knn``: cosine-weighted votes.
    - ``ridge``: no bias; lambda is chosen once on development data for the whole training set.
    - ``read-alone``, ``read-tfidf``, ``read-average`` and ``read-minilm``: another encoder reads each point's nearest
      training text, for logistic regression; the encoder of ``read-alone`` is fitted to these texts only.

    Args:
        data: the texts, split.
        encoded: the points of each split, in the order of the texts; development points choose hyper-parameters, and
            test points are used for results only.
        model: the network to distil with.
        encoder: the encoder of the points; sets of another encoder's space belong to another task.
        network_name: name of the network in reports; if empty, the network is the user's own and becomes a judge.
        protocol: how trained judges are fitted; None is :data:`JUDGE`; 0 epochs stand for the default number of
            updates.
        judge_epochs: their epochs; None keeps the protocol's number.
        judge_batch: their minibatch size; None keeps the protocol's.
        noise: the norm of the Gaussian noise that ``augment`` adds, relative to unit vectors; 0 adds none.
    Raises:
        ConfigError: a number out of range, or a network that does not fit the points.
    """

    def __init__(
        self,
        data: TextData,
        encoded: Encoded,
        model: FunctionalModule,
        *,
        encoder: SentenceEncoder,
        network_name: str = "",
        protocol: FitProtocol | None = None,
        judge_epochs: int | None = None,
        judge_batch: int | None = None,
        noise: float = 0.0,
    ) -> None:
        own_judge = () if network_name else (OWN,)
        require_kind(FitProtocol, protocol=protocol)
        judging = judging_overrides(judge_epochs, judge_batch, protocol=in_place_of(protocol, JUDGE))
        super().__init__(data, model, network_name, (*own_judge, "mlp", *SOLVED), judging, SOLVED)
        self.train = Points(encoded.train.to(self.device), self._classes)
        self.dev = Points(encoded.dev.to(self.device), data.dev.labels.to(self.device))
        self.test = Points(encoded.test.to(self.device), data.test.labels.to(self.device))
        self.encoder = encoder
        self.space, self.space_in_words = encoder.space(encoded.train), f"the space of {encoder.name}"
        self.selections: Sequence[str] = SELECTIONS
        self.truncated = encoded.truncated
        base = protocol or JUDGE
        self.protocol = replace(base, epochs=judge_epochs or base.epochs, batch=judge_batch or base.batch)
        self.noise = noise
        require_at_least(self, {"noise": 0.0})
        self.dim = encoded.train.shape[1]
        self._mlp = point_module("mlp", self.dim, self.class_count, device=self.device)
        self.try_network()

    @functools.cached_property
    def ridge(self) -> float:
        """The ridge with the best development accuracy when fitted to the whole training set."""
        targets = centred_targets(self.train.labels, self.class_count)
        unit = float(self.train.inputs.double().square().sum(1).mean())
        grid = [ridge * unit for ridge in RIDGES]
        return choose_ridge(self.train.inputs, targets, self.dev.inputs, self.dev.labels, grid)

    def try_network(self) -> None:
        """Run the network once on two points."""
        points = f"points of shape (n, {self.dim}) of the encoder {self.encoder.name!r}"
        try_network(self, self.train.inputs[:2], points, self.class_count)

    def network_inputs(self, inputs: Inputs) -> Tensor:
        """Return points unchanged."""
        return one_tensor(inputs)

    def points(self, inputs: Inputs) -> Tensor:
        """Return points unchanged, on the device."""
        return one_tensor(inputs).to(self.device)

    def training_points(self) -> Tensor:
        """Return the points of the training texts."""
        return self.train.inputs

    def embedding(self) -> Tensor:
        """Return the training points, ``(N, d)``."""
        return self.train.inputs

    def selection(self, kind: str, counts: Tensor, draws: Draws) -> Batch:
        """Return the k-means centroids of each class, equal to those of the method ``k-means`` with the same key."""
        return centroid_batch(self, counts, draws)

    def selection_bytes(self, kind: str, count: int) -> int:
        """Return the bytes of ``count`` centroids: points in float32, and classes."""
        return count * (4 * self.dim + index_bytes(self.class_count))

    def real_inputs(self, indices: Tensor) -> Tensor:
        """Return training points."""
        return self.train.inputs[indices]

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Add Gaussian noise of the task's strength: one vector per class if ``shared``, else one per sample."""
        if self.noise == 0:
            return batch
        if isinstance(batch, ClassBatch):
            return ClassBatch(self._add_noise(draws, batch.batch, shared), batch.dims)
        return self._add_noise(draws, batch, shared)

    def _add_noise(self, draws: Draws, batch: Batch, shared: bool) -> Batch:
        points = one_tensor(batch.inputs)
        shape = (*points.shape[:-2], 1, points.shape[-1]) if shared else tuple(points.shape)
        vectors = draws.to(self.device).normal(*shape) * (self.noise / math.sqrt(self.dim))
        return batch._replace(inputs=points + vectors.to(points.dtype))

    def score(self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]) -> Scores:
        """Fit judges to points and score them on the test points."""
        batch = self.select(torch.arange(len(self._classes))) if synthetic is None else synthetic
        notes = list[str]()
        if judge in SOLVED:
            predictions, notes = self._predict_solved(batch, judge)
        else:
            predictions = self._predict_trained(batch, judge, self.test.inputs, draws, n)
        if judge in ("logreg", "knn") and not are_probabilities(one_tensor(batch.targets)):
            notes.append("labels are scores; shifted, clipped at 0 and normalised for this judge")
        return self.scores_of(judge, predictions, self.test.labels, notes)

    def epochs_on(self, judge: str, count: int) -> int:
        """Return the protocol's epochs, or enough for :data:`JUDGE_STEPS` updates."""
        return epochs_for(self.protocol, count, JUDGE_STEPS)

    def readable(self, inputs: Inputs) -> list[str]:
        """Return the training text nearest to each point, by cosine."""
        similarity = self.points(inputs) @ F.normalize(self.train.inputs, dim=1).T
        return [self.data.train.texts[index] for index in similarity.argmax(1).tolist()]

    def _predict_solved(self, batch: Batch, judge: str) -> tuple[Tensor, list[str]]:
        """Fit a deterministic judge; return its ``(1, m)`` test predictions and notes on chosen hyper-parameters."""
        points, targets = one_tensor(batch.inputs), one_tensor(batch.targets)
        if judge == "logreg":
            on_cpu = Batch(points.cpu(), targets.cpu(), batch.weight.cpu())
            predicted, penalty = logistic_predictions(
                on_cpu, self.class_count, self.dev.inputs.cpu(), self.dev.labels.cpu(), self.test.inputs.cpu()
            )
            return predicted[None].to(self.device), [f"C = {penalty:g}, chosen on development data"]
        if judge == "knn":
            weighted = distributions(targets, self.class_count) * batch.weight[:, None]
            return knn_scores(points, weighted, self.test.inputs).argmax(1)[None], []
        weights = ridge_weights(points, centred_targets(targets, self.class_count), self.ridge, batch.weight)
        return (self.test.inputs.double() @ weights).argmax(1)[None], [f"ridge = {self.ridge:g}"]

    def checked(self, synthetic: Batch) -> Batch:
        """Return points on the device after checking them.

        Raises:
            ShapeError: points of another dimension, or labels of other classes.
        """
        points, targets = one_tensor(synthetic.inputs), one_tensor(synthetic.targets)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ShapeError(
                f"points of shape {tuple(points.shape)} are not of the space of {self.encoder.name!r}, (n, {self.dim})"
            )
        require_targets(targets, len(points), self.class_count, self.data.name)
        return synthetic.map(lambda tensor: tensor.to(self.device))

    def _predict_trained(self, batch: Batch, judge: str, queries: Tensor, draws: Draws, n: int) -> Tensor:
        """Fit n networks to a batch and return their ``(n, m)`` predictions for queries."""
        module = self._mlp if judge == "mlp" else self.given.get(judge, self.model)
        protocol = replace(self.protocol, epochs=self.epochs_on(judge, len(batch.weight)))
        loss = judge_loss(module, one_tensor, one_tensor(batch.targets))
        # A user's network may do what vmap cannot: dropout, running statistics, recurrent layers.
        mode: Mode = "vmap" if module is self._mlp else "loop"
        with module.drawn(draws):
            fitted = fit_networks(module.init, loss, batch, protocol, n, draws, mode=mode)
        with torch.no_grad():
            return torch.stack([module(state_at(fitted, index), queries)[0].argmax(1) for index in range(n)])

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the mean development accuracy of two networks of the first judge."""
        predictions = self._predict_trained(weighed(self.checked(synthetic)), self.judges[0], self.dev.inputs, draws, 2)
        return float((predictions == self.dev.labels).double().mean())

    def describe(self) -> TaskInfo:
        """Return the task's identity, which includes the encoder's space."""
        return self.described(
            self.space,
            {
                "encoder": self.encoder.name,
                "space": self.space,
                "dim": self.dim,
                "truncated_texts": self.truncated,
                **({"augmentation": {"noise": self.noise}} if self.noise else {}),
            },
            {"inputs": (self.dim,)},
        )


@isolated
def text_task(
    data: TextInput,
    *,
    encoder: EncoderLike = "minilm",
    model: ModelLike = "mlp",
    width: int | None = None,
    features: str | Sequence[str] = (),
    test: Pair | Samples | Table | str | Path | None = None,
    noise: float = 0.0,
    text_column: str | None = None,
    label_column: str | None = None,
    class_names: ClassNames | None = None,
    name: str | None = None,
    device: torch.device | str = "auto",
    judge_epochs: int | None = None,
    judge_batch: int | None = None,
    protocol: FitProtocol | None = None,
    teacher: TeacherLike | None = None,
    seed: int = 0,
) -> TextTask:
    """Encode labelled texts once and return the task of distilling their points.

    Args:
        data: a name, a file or folder, ``hf:NAME``, ``(texts, labels)``, two such pairs to train and to test
            on, a list or data set of ``(text, label)``, a table (a data frame, a list with a dictionary per row, a
            dictionary with a list per column, or a Hugging Face data set), or such by split name, ``{"train": ...,
            "dev": ..., "test": ...}``.
        encoder: ``minilm``, ``tfidf``, ``average``, a transformers model's name or folder, or a function from a list
            of n texts to an ``(n, d)`` tensor, or a model with such a method called ``encode`` or ``transform``. A
            function is identified by its name and some training points. ``CallableEncoder(function, name)`` identifies
            it by your name instead, and then its points are cached.
        model: the network to distil with: ``mlp``, ``linear``, or a function that returns a module.
        width: hidden units of ``mlp``; 256 by default.
        features: for your own network, the submodules whose activations are its features.
        test: a pair, a table or a file of one to test on, with ``data`` a pair ``(texts, labels)``, a table or a file
            of one; a fifth is held out by default. Files with test data are data in memory, which ``name`` may name.
        noise: the strength of the noise that siamese augmentation adds; 0 is none.
        text_column: the text column; guessed by default.
        label_column: the label column; guessed by default.
        class_names: names by class index: a list, an array, or a mapping as transformers' ``id2label``.
        name: name of in-memory data in reports and run comparisons.
        device: where everything runs; ``auto`` is a CUDA device if there is one, else the CPU.
        judge_epochs: epochs of trained judges; None keeps the protocol's number.
        judge_batch: their minibatch size; None keeps the protocol's.
        protocol: how they are trained; by default :data:`JUDGE`, which gives every set the same number of updates.
        teacher: a trained network that labels samples, instead of training a teacher: an ``nn.Module`` of the task's
            own ``model``, its state dict, or the path of a ``.safetensors``, ``.pt`` or ``.pth`` file of one.
        seed: seed of the splits that the data lack.
    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.
    Raises:
        ConfigError: an unknown name, or a network that does not fit the points.
        DataError: unusable data, see :func:`~mmdistill.text.data.load_text`.
        ShapeError: an encoder that returns no ``(n, d)``.
    """
    seed = checked_seed(seed)
    require_at_least(SimpleNamespace(noise=noise), {"noise": 0.0})
    require_sizes(width=width, judge_epochs=judge_epochs, judge_batch=judge_batch)
    require_kind(FitProtocol, protocol=protocol)
    network = network_name(model, width, features, tokens=False)
    device = choose_device(device)
    loaded = load_text(
        data, test=test, text_column=text_column, label_column=label_column, class_names=class_names, seed=seed
    )
    loaded = called(loaded, name, data if test is None else {}, SOURCES)
    sentence_encoder = make_encoder(encoder, device)
    encoded = encode_splits(sentence_encoder, loaded)
    loaded = replace(loaded, notes=(*loaded.notes, *sentence_encoder.notes))
    if not encoded.train.any():
        raise DataError(f"the encoder {sentence_encoder.name!r} gives the zero vector for every training text")
    if (encoded.train == encoded.train[0]).all():
        reason = "".join(f": {note}" for note in sentence_encoder.notes)
        raise DataError(f"the encoder {sentence_encoder.name!r} gives the same point for every training text{reason}")
    if isinstance(model, str):
        module = point_module(network, encoded.train.shape[1], len(loaded.class_names), width, device)
    else:
        module = FunctionalModule(model, features, device)
    task = TextTask(
        loaded,
        encoded,
        module,
        encoder=sentence_encoder,
        network_name=network,
        protocol=protocol,
        judge_epochs=judge_epochs,
        judge_batch=judge_batch,
        noise=noise,
    )
    task.given_teacher = None if teacher is None else given_as_teacher(teacher, module)
    return task
