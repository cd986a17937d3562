"""The task of token embeddings: networks on token vectors, class batches of real texts, judges."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmdistill.abilities import in_place_of, judging_overrides
from mmdistill.checks import require_kind, require_sizes
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.execution.isolation import isolated
from mmdistill.files.classes import ClassNames
from mmdistill.labels import require_targets, target_loss, weighted_mean
from mmdistill.names import called
from mmdistill.networks.architecture import OWN
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.networks.pretrained import TeacherLike, given_as_teacher
from mmdistill.networks.trial import try_network
from mmdistill.runtime import Draws, checked_seed, choose_device
from mmdistill.task import Batch, Inputs, NetworkState, Scores, TaskInfo, Tensors
from mmdistill.text.attention import attention_loss, class_labels
from mmdistill.text.base import TextClassification, weighed
from mmdistill.text.data import SOURCES, TextData, TextInput, load_text
from mmdistill.text.encoder import PAIR, TransformerEncoder
from mmdistill.text.encoders import make_encoder
from mmdistill.text.inputs import Pair, Table
from mmdistill.text.models import TOKEN_MODELS, network_name
from mmdistill.text.reading import encode_splits
from mmdistill.text.samples import Samples
from mmdistill.text.token_judges import TokenJudge, protocol_for
from mmdistill.text.token_models import TransformerClassifier, named_module
from mmdistill.text.vocabulary import Tokens, Vocabulary, as_mask, load_vocabulary, token_inputs

PROJECTED = "projected"
"""The judge that trains the network on the nearest real tokens instead of the vectors."""
TokenModelLike = str | ModuleFactory | FunctionalModule
"""A network by name, a function that returns a module from a dict of ``vectors`` and ``mask`` to logits, or such a
network already made functional (a :class:`~mmdistill.text.token_models.PretrainedModule` keeps its body)."""


@dataclass(frozen=True)
class TokenSplits:
    """The token numbers of the three splits."""

    train: Tokens
    dev: Tokens
    test: Tokens

    @property
    def truncated(self) -> int:
        """The number of truncated texts."""
        return self.train.truncated + self.dev.truncated + self.test.truncated


class TokenTask(TextClassification):
    """Classification of texts by networks that read their tokens' vectors.

    A synthetic sample is a sequence of L vectors with a label: ``inputs`` are a dict of ``vectors`` ``(n, L, H)``, in
    the standard units of the vocabulary, and ``mask`` ``(n, L)``. Judges, in this order:

    - the network distilled with, then the others of ``textcnn``, ``bilstm``, ``bigru`` and ``transformer``.
    - ``projected``: the first network on the nearest real tokens.
    - ``read-alone``, ``read-tfidf``, ``read-average``, ``read-minilm``: another encoder reads each sample's nearest
      tokens as a text, for logistic regression.

    Args:
        data: the texts, split.
        vocabulary: tokens and their vectors.
        tokens: the tokens of the three splits, all of one length.
        model: the network to distil with.
        encoder: the model of the tokens and of ``transformer``.
        network_name: name of the network in reports; if empty, it is the user's own, and as a judge called ``model``.
        protocol: how networks train on sets without learned steps; None is each network's default.
        judge_epochs: epochs of that training; None keeps the protocol's number.
        judge_batch: size of its minibatches; None keeps the protocol's.
    Raises:
        ConfigError: epochs or a batch size that is not a whole number of at least 1, or a network that does not fit.
    """

    encoder: TransformerEncoder

    def __init__(
        self,
        data: TextData,
        vocabulary: Vocabulary,
        tokens: TokenSplits,
        model: FunctionalModule,
        *,
        encoder: TransformerEncoder,
        network_name: str = "",
        protocol: FitProtocol | None = None,
        judge_epochs: int | None = None,
        judge_batch: int | None = None,
    ) -> None:
        judges = dict.fromkeys((network_name or OWN, *TOKEN_MODELS, PROJECTED))
        require_kind(FitProtocol, protocol=protocol)
        judging = judging_overrides(judge_epochs, judge_batch, protocol=in_place_of(protocol, protocol_for(model)))
        super().__init__(data, model, network_name, tuple(judges), judging)
        self.vocabulary = vocabulary.to(self.device)
        self.space_in_words = f"summed token vectors of {vocabulary.name}"
        self.tokens, self.encoder, self.protocol = tokens, encoder, protocol
        self.judge_epochs, self.judge_batch = judge_epochs, judge_batch
        self._ids, self._mask = tokens.train.ids.to(self.device), tokens.train.mask.to(self.device)
        self.try_network()

    def try_network(self) -> None:
        """Run the network once on a text, twice."""
        inputs = self.select(torch.zeros(2, dtype=torch.long)).inputs
        shapes = (2, self.length, self.vocabulary.dim), (2, self.length)
        try_network(self, inputs, f"a dict of vectors {shapes[0]} and a mask {shapes[1]}", self.class_count)

    @property
    def length(self) -> int:
        """L, the tokens kept of each text."""
        return self._ids.shape[1]

    @property
    def candidates(self) -> Tensor:
        """The numbers of the tokens in training texts, without special tokens, ``(k,)``."""
        used = torch.zeros(len(self.vocabulary.vectors), dtype=torch.bool, device=self.device)
        used[self._ids[self._mask]] = True
        return (used & ~self.vocabulary.special).nonzero().flatten()

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the mean :func:`~mmdistill.labels.target_loss`, plus the attention loss if there are such labels."""
        if isinstance(batch.targets, dict):
            return self._attention_loss(state, batch, batch.targets)
        return super().loss(state, batch, train=train, draws=draws)

    def _attention_loss(self, state: NetworkState, batch: Batch, targets: Tensors) -> Tensor:
        network, inputs = _WithAttention(self.require_transformer()), self.network_inputs(batch.inputs)
        params = {f"model.{name}": tensor for name, tensor in {**state.params, **state.buffers}.items()}
        logits, attention = torch.func.functional_call(network, params, (inputs,))
        self.model.forget()
        losses = target_loss(logits, targets["labels"]) + attention_loss(attention, targets["attention"])
        return weighted_mean(losses, batch.weight)

    def require_transformer(self) -> TransformerClassifier:
        """Return the network after checking that it is the transformer, whose attention can be read.

        Raises:
            ConfigError: another network.
        """
        module = self.model.module
        if not isinstance(module, TransformerClassifier):
            raise ConfigError(
                f"this method needs --model transformer; {self.judges[0]!r} has no attention and no encoder"
            )
        return module

    def network_inputs(self, inputs: Inputs) -> Tensors:
        """Return inputs unchanged after checking that they are token embeddings.

        Raises:
            ShapeError: other inputs.
        """
        return token_inputs(inputs)

    def embedding(self) -> Tensor:
        """Return the encoder's sentence points of the training texts, ``(N, d)``, for selection by distance."""
        return self._encoded

    @functools.cached_property
    def _encoded(self) -> Tensor:
        return encode_splits(self.encoder, self.data).train.to(self.device)

    def points(self, inputs: Inputs) -> Tensor:
        """Return the sum of each sequence's vectors."""
        sequences = self.network_inputs(inputs)
        return (sequences["vectors"] * sequences["mask"][..., None]).to(self.device).sum(1)

    def training_points(self) -> Tensor:
        """Return the sum of the vectors of each training text, which has the direction of their mean."""
        chunks = torch.split(torch.arange(len(self._ids), device=self.device), 1024)
        return torch.cat([self.look_up(self._ids[rows], self._mask[rows])["vectors"].sum(1) for rows in chunks])

    def look_up(self, ids: Tensor, mask: Tensor) -> Tensors:
        """Return the vectors of tokens, zero where the mask is false."""
        mask = mask.to(self.device)
        vectors = self.vocabulary.vectors[ids.to(self.device)] * mask[..., None]
        return {"vectors": vectors, "mask": mask}

    def real_inputs(self, indices: Tensor) -> Tensors:
        """Return training texts as vectors."""
        return self.look_up(self._ids[indices], self._mask[indices])

    def score(self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]) -> Scores:
        """Train networks and score them on the test texts.

        If a set carries learned steps, the network that it was distilled with takes exactly these.
        """
        batch = self._training_tokens() if synthetic is None else synthetic
        if judge == PROJECTED and synthetic is not None:  # real texts need no projection
            batch = batch._replace(inputs=self.projected(batch.inputs)[0])
        queries = (self.tokens.test, self.data.test.labels)
        return self._judge(judge, learned).score(batch, queries, draws, n)

    def epochs_on(self, judge: str, count: int) -> int:
        """Return a judge's number of epochs on ``count`` texts without learned steps."""
        return self._judge(judge, {}).epochs_on(count)

    def _training_tokens(self) -> Batch:
        """Return all training texts as token numbers, since vectors would take L x H floats for each text."""
        return Batch(
            {"ids": self._ids, "mask": self._mask}, self._classes, torch.ones(len(self._ids), device=self.device)
        )

    def vectors(self, inputs: Inputs) -> Tensors:
        """Return inputs as vectors; token numbers (``ids`` and ``mask``) are looked up."""
        if isinstance(inputs, dict) and "ids" in inputs:
            return self.look_up(inputs["ids"], inputs["mask"])
        return self.network_inputs(inputs)

    def _judge(self, key: str, learned: Mapping[str, Tensor]) -> TokenJudge:
        is_own = key in (self.judges[0], PROJECTED)
        model = self.model if is_own else self.given.get(key) or self._build_network(key)
        base = self.protocol or protocol_for(model)
        protocol = replace(base, epochs=self.judge_epochs or base.epochs, batch=self.judge_batch or base.batch)
        return TokenJudge(self, model, key, protocol, learned if is_own else {})

    def _build_network(self, name: str) -> FunctionalModule:
        return named_module(name, self.vocabulary, self.class_count, encoder=self.encoder, device=self.device)

    def projected(self, inputs: Inputs) -> tuple[Tensors, Tensor]:
        """Replace each vector by the nearest training token's vector; return the token numbers too."""
        sequences = self.network_inputs(inputs)
        special = self.vocabulary.special.nonzero().flatten()
        ids = self.vocabulary.nearest(sequences["vectors"], torch.cat([self.candidates, special]))
        return self.look_up(ids, sequences["mask"]), ids

    def readable(self, inputs: Inputs) -> list[str]:
        """Return the text of each sample's nearest tokens."""
        sequences, ids = self.projected(inputs)
        rows = zip(ids.cpu(), sequences["mask"].cpu(), strict=True)
        return [self.vocabulary.words(row[mask], PAIR in self.data.train.texts[0]) for row, mask in rows]

    def checked(self, synthetic: Batch) -> Batch:
        """Return sequences after checking them, unchanged but for their mask, which becomes truth values.

        Raises:
            ShapeError: vectors of another dimension, a mask of another shape, or labels of other classes.
            DataError: a mask of other numbers than 0 and 1.
        """
        sequences = self.network_inputs(synthetic.inputs)
        vectors, targets = sequences["vectors"], class_labels(synthetic.targets)
        if vectors.ndim != 3 or vectors.shape[2] != self.vocabulary.dim:
            raise ShapeError(
                f"vectors of shape {tuple(vectors.shape)} are not of the tokens of {self.vocabulary.name!r}, "
                f"(n, L, {self.vocabulary.dim})"
            )
        if sequences["mask"].shape != vectors.shape[:2]:
            raise ShapeError(
                f"vectors {tuple(vectors.shape)} have a mask {tuple(vectors.shape[:2])}, "
                f"got {tuple(sequences['mask'].shape)}"
            )
        require_targets(targets, len(vectors), self.class_count, self.data.name)
        return synthetic._replace(inputs={**sequences, "mask": as_mask(sequences["mask"])})

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the mean development accuracy of two networks."""
        queries = (self.tokens.dev, self.data.dev.labels)
        values = self._judge(self.judges[0], learned).score(weighed(synthetic), queries, draws, 2).values["accuracy"]
        return sum(values) / len(values)

    def describe(self) -> TaskInfo:
        """Return the task's identity, which includes the vocabulary and the length."""
        return self.described(
            f"{self.vocabulary.identity}|{self.length}",
            {
                "encoder": self.vocabulary.name,
                "space": self.vocabulary.identity,
                "dim": self.vocabulary.dim,
                "length": self.length,
                "scale": self.vocabulary.scale,
                "truncated_texts": self.tokens.truncated,
            },
            {"inputs.vectors": (None, self.vocabulary.dim)},
            {"mean": self.vocabulary.mean},
        )


class _WithAttention(torch.nn.Module):
    """A module whose forward pass returns a transformer's logits and attention, for ``functional_call``."""

    def __init__(self, model: TransformerClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        return self.model.with_attention(inputs)


@isolated
def token_task(
    data: TextInput,
    *,
    model: TokenModelLike = "textcnn",
    encoder: str | Path | TransformerEncoder = "minilm",
    length: int | None = None,
    width: int | None = None,
    features: str | Sequence[str] = (),
    test: Pair | Samples | Table | str | Path | None = None,
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
) -> TokenTask:
    """Tokenize labelled texts once and return the task of distilling sequences of token embeddings.

    Args:
        data: a name, a file or folder, ``hf:NAME``, ``(texts, labels)``, two such pairs to train and to test
            on, a list or data set of ``(text, label)``, a table (a data frame, a list with a dictionary per row, a
            dictionary with a list per column, or a Hugging Face data set), or such by split name, ``{"train": ...,
            "dev": ..., "test": ...}``.
        model: ``textcnn``, ``bilstm``, ``bigru``, ``transformer`` (the encoder's body with a fresh head), or a function
            that returns a module from a dict of ``vectors`` and ``mask`` to logits, or a ``PretrainedModule``.
        encoder: the transformers model whose tokens and input embeddings are used: ``minilm``, a name or a folder.
        length: tokens kept of each text, special ones included; by default as many as 95 % of the training texts have.
        width: filters of each window or units of each direction; 64 by default.
        features: for your own network, the submodules whose activations are its features.
        test: a pair, a table or a file of one to test on, with ``data`` a pair ``(texts, labels)``, a table or a file
            of one; a fifth is held out by default. Files with test data are data in memory, which ``name`` may name.
        text_column: the text column; guessed by default.
        label_column: the label column; guessed by default.
        class_names: names by class index: a list, an array, or a mapping as transformers' ``id2label``.
        name: name of in-memory data in reports and run comparisons.
        device: where everything runs; ``auto`` is a CUDA device if there is one, else the CPU.
        judge_epochs: epochs of trained judges, for sets without learned steps; None keeps the protocol's number.
        judge_batch: their minibatch size; None keeps the protocol's.
        protocol: how they are trained; by default :func:`~mmdistill.text.token_judges.protocol_for` each network.
        teacher: a trained network that labels samples, instead of training a teacher: an ``nn.Module`` of the task's
            own ``model``, its state dict, or the path of a ``.safetensors``, ``.pt`` or ``.pth`` file of one.
        seed: seed of the splits that the data lack.
    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.
    Raises:
        ConfigError: an unknown name, an encoder without tokens, or a network that does not fit.
        DataError: unusable data, see :func:`~mmdistill.text.data.load_text`.
    """
    seed = checked_seed(seed)
    require_sizes(length=length, width=width, judge_epochs=judge_epochs, judge_batch=judge_batch)
    require_kind(FitProtocol, protocol=protocol)
    network = network_name(model, width, features, tokens=True)
    device = choose_device(device)
    loaded = load_text(
        data, test=test, text_column=text_column, label_column=label_column, class_names=class_names, seed=seed
    )
    loaded = called(loaded, name, data if test is None else {}, SOURCES)
    token_encoder = make_encoder(encoder, device)
    if not isinstance(token_encoder, TransformerEncoder):
        raise ConfigError(
            f"the encoder {token_encoder.name!r} has no table of token embeddings; use 'minilm' or another "
            "transformers model"
        )
    token_encoder.fit(loaded.train.texts)
    loaded = replace(loaded, notes=(*loaded.notes, *token_encoder.notes))
    vocabulary = load_vocabulary(token_encoder)
    train = vocabulary.tokenize(loaded.train.texts, length, trim=True)
    dev, test_tokens = (vocabulary.tokenize(split.texts, train.ids.shape[1]) for split in (loaded.dev, loaded.test))
    if isinstance(model, str):
        module = named_module(
            network, vocabulary, len(loaded.class_names), encoder=token_encoder, width=width, device=device
        )
    else:
        module = model if isinstance(model, FunctionalModule) else FunctionalModule(model, features, device)
    task = TokenTask(
        loaded,
        vocabulary,
        TokenSplits(train, dev, test_tokens),
        module,
        encoder=token_encoder,
        network_name=network,
        protocol=protocol,
        judge_epochs=judge_epochs,
        judge_batch=judge_batch,
    )
    task.given_teacher = None if teacher is None else given_as_teacher(teacher, module)
    return task
