"""Token embeddings as a task: networks on token vectors, class batches of real texts, judges."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.abilities import JUDGING
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.isolation import isolated
from mmdistill.labels import require_targets, target_loss, weighted_mean
from mmdistill.names import canonical, unknown_name
from mmdistill.networks.architecture import OWN, described_module, task_line
from mmdistill.networks.fit import FitProtocol
from mmdistill.networks.module import FunctionalModule, ModuleFactory
from mmdistill.networks.statistics import settled_by_class
from mmdistill.networks.trial import try_network
from mmdistill.runtime import Draws, checked_seed, choose_device
from mmdistill.settings import require_no_features, require_no_width, require_sizes
from mmdistill.task import Batch, ClassBatch, Dims, Inputs, NetworkState, Scores, TaskInfo, Tensors
from mmdistill.text.attention import attention_loss, class_labels
from mmdistill.text.data import TextData, TextInput, load_text
from mmdistill.text.encoder import PAIR, TransformerEncoder, make_encoder
from mmdistill.text.reading import READERS, Reader, encode_splits, with_test
from mmdistill.text.sampling import ClassRows
from mmdistill.text.token_judges import TokenJudge, protocol_for
from mmdistill.text.token_models import TOKEN_MODELS, TransformerClassifier, named_module
from mmdistill.text.vocabulary import Tokens, Vocabulary, load_vocabulary, token_inputs

PROJECTED = "projected"
"""The judge that trains the network on the nearest real tokens instead of the vectors."""
TokenModelLike = str | ModuleFactory | FunctionalModule
"""A network by name, a function that returns a module from a dict of ``vectors`` and ``mask`` to logits, or such a
network already made functional (a :class:`~mmdistill.text.token_models.PretrainedModule`, whose body stays)."""


@dataclass(frozen=True)
class TokenSplits:
    """The token numbers of the three splits."""

    train: Tokens
    dev: Tokens
    test: Tokens

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return self.train.truncated + self.dev.truncated + self.test.truncated


class TokenTask:
    """Classification of texts by networks that read their tokens' vectors.

    A synthetic sample is a sequence of L vectors with a label: ``inputs`` are the dict of ``vectors`` ``(n, L, H)``, in
    the standard units of the vocabulary, and ``mask`` ``(n, L)``. Judges are the network distilled with, the others of
    ``textcnn``, ``bilstm``, ``bigru`` and ``transformer``, ``projected`` (the first network on the nearest real
    tokens), and ``read-alone``, ``read-tfidf``, ``read-average``, ``read-minilm``: the nearest tokens read as texts by
    another encoder, with logistic regression.

    Args:
        data: the texts, split.
        vocabulary: tokens and their vectors.
        tokens: of the three splits, of one length.
        model: the network to distil with.
        encoder: the model that tokens and transformer come from.
        name: of the network, as a judge.
        protocol: how networks are trained on sets that carry no steps of their own; None is the network's default.
    """

    def __init__(
        self,
        data: TextData,
        vocabulary: Vocabulary,
        tokens: TokenSplits,
        model: FunctionalModule,
        *,
        encoder: TransformerEncoder,
        name: str,
        protocol: FitProtocol | None = None,
    ) -> None:
        self.data = data
        self.device = model.device
        self.vocabulary = vocabulary.to(self.device)
        self.tokens = tokens
        self.labels: Tensor | None = data.train.labels
        self.class_count = len(data.class_names)
        self.num_classes: int | None = self.class_count
        self.model = model
        self.encoder = encoder
        self.network_name = "" if name == OWN else name
        self.protocol = protocol
        others = tuple(other for other in TOKEN_MODELS if other != name)
        self.judges: Sequence[str] = (name, *others, PROJECTED, *READERS)
        self._train = data.train.labels.to(self.device)
        self._ids, self._mask = tokens.train.ids.to(self.device), tokens.train.mask.to(self.device)
        self._rows = ClassRows(data.train.labels, self.class_count, self.device)
        self._reader = Reader(data, self.device)
        self._points: Tensor | None = None
        inputs = self.select(torch.zeros(2, dtype=torch.long)).inputs
        shapes = (2, self.length, self.vocabulary.dim), (2, self.length)
        try_network(self, inputs, f"a dict of vectors {shapes[0]} and a mask {shapes[1]}", self.class_count)

    @property
    def length(self) -> int:
        """L, the tokens kept of each text."""
        return self._ids.shape[1]

    @property
    def candidates(self) -> Tensor:
        """The numbers of the tokens that occur in training texts, special ones left out, ``(k,)``."""
        used = torch.zeros(len(self.vocabulary.vectors), dtype=torch.bool, device=self.device)
        used[self._ids[self._mask]] = True
        return (used & ~self.vocabulary.special).nonzero().flatten()

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
        logits, buffers = self.model(state, self.named(inputs), train=train, draws=draws)
        return logits, buffers

    def settle(self, state: NetworkState, draws: Draws) -> NetworkState:
        """Return the network with the statistics of so many real texts of each class in its batch norms."""
        return settled_by_class(self, self.model, state, draws)

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        """Return the mean :func:`~mmdistill.labels.target_loss`, and the distance to attention labels."""
        if isinstance(batch.targets, dict):
            return self._attention_loss(state, batch, batch.targets)
        logits, _ = self.predict(state, batch.inputs, train=train, draws=draws)
        return weighted_mean(target_loss(logits, batch.targets), batch.weight)

    def _attention_loss(self, state: NetworkState, batch: Batch, targets: Tensors) -> Tensor:
        self.require_attention()
        params = {**state.params, **state.buffers}
        logits, attention = torch.func.functional_call(
            _WithAttention(self.model.module), {f"model.{k}": v for k, v in params.items()}, (self.named(batch.inputs),)
        )
        self.model.forget()
        each = target_loss(logits, targets["labels"]) + attention_loss(attention, targets["attention"])
        return weighted_mean(each, batch.weight)

    def require_attention(self) -> None:
        """Refuse networks whose attention cannot be read.

        Raises:
            ConfigError: any but the transformer.
        """
        if not isinstance(self.model.module, TransformerClassifier):
            raise ConfigError(
                f"this method needs --model transformer; {self.judges[0]!r} has no attention and no encoder"
            )

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the network's features, the input of the linear head last."""
        return self.model.features(state, self.named(inputs))

    def named(self, inputs: Inputs) -> Tensors:
        """Return inputs of this space as they are.

        Raises:
            ShapeError: inputs of another.
        """
        return token_inputs(inputs)

    def embedding(self) -> Tensor:
        """Return the encoder's sentence points of the training texts, ``(N, d)``, for selection by distance."""
        if self._points is None:
            self._points = encode_splits(self.encoder, self.data).train.to(self.device)
        return self._points

    def summed_vectors(self) -> Tensor:
        """Return the sum of the vectors of each training text, ``(N, H)``: by direction, their mean."""
        chunks = torch.split(torch.arange(len(self._ids), device=self.device), 1024)
        return torch.cat([self.look_up(self._ids[rows], self._mask[rows])["vectors"].sum(1) for rows in chunks])

    def select(self, indices: Tensor) -> Batch:
        """Return training texts as vectors, with their classes."""
        indices = indices.to(self.device)
        inputs = self.look_up(self._ids[indices], self._mask[indices])
        return Batch(inputs, self.classes(indices), torch.ones(indices.shape, device=self.device))

    def classes(self, indices: Tensor) -> Tensor:
        """Return the classes of training texts."""
        return self._train[indices.to(self.device)]

    def look_up(self, ids: Tensor, mask: Tensor) -> Tensors:
        """Return the vectors of tokens, zero where the mask is false."""
        mask = mask.to(self.device)
        vectors = self.vocabulary.vectors[ids.to(self.device)] * mask[..., None]
        return {"vectors": vectors, "mask": mask}

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        """Draw up to n training texts of each class (padded with weight 0), or of all, without replacement."""
        draws = draws.to(self.device)
        if classes is None:
            total = len(self._train)
            return self.select(draws.permutation(total)[:n] if n < total else torch.arange(total))
        index, weight = self._rows.draw(draws, classes, n)
        return ClassBatch(self.select(index)._replace(weight=weight), Dims(0, 0))

    def augment(self, draws: Draws, batch: Batch | ClassBatch, *, shared: bool) -> Batch | ClassBatch:
        """Return the batch as it is: no augmentation of token vectors is established."""
        return batch

    def evaluate(
        self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
    ) -> Scores:
        """Train judges on a set (None: the whole training split) and score them on the test split.

        A set that carries its steps trains the network that it was distilled with by just these.

        Raises:
            ConfigError: an unknown judge.
        """
        key = canonical(judge)
        if key not in self.judges:
            raise unknown_name("judge", judge, self.judges)
        if key in READERS:
            return self._read(synthetic, key)
        batch = self._numbers() if synthetic is None else self._checked(synthetic)
        if key == PROJECTED and synthetic is not None:  # real texts are real tokens as they are
            batch = batch._replace(inputs=self.projected(batch.inputs)[0])
        queries = (self.tokens.test, self.data.test.labels)
        return self._judge(key, learned).score(batch, queries, draws, n)

    def judging_read(self, judge: str) -> Sequence[str]:
        """Return what a judge reads of ``epochs`` and ``batch``: one that reads the set's words nothing."""
        return () if judge in READERS else JUDGING

    def _numbers(self) -> Batch:
        """Return all training texts as token numbers; their vectors would be L x H numbers for each."""
        return Batch(
            {"ids": self._ids, "mask": self._mask}, self._train, torch.ones(len(self._ids), device=self.device)
        )

    def vectors(self, inputs: Inputs) -> Tensors:
        """Return inputs as vectors; those given as token numbers (``ids`` and ``mask``) are looked up."""
        if isinstance(inputs, dict) and "ids" in inputs:
            return self.look_up(inputs["ids"], inputs["mask"])
        return self.named(inputs)

    def _judge(self, key: str, learned: Mapping[str, Tensor]) -> TokenJudge:
        own = key in (self.judges[0], PROJECTED)
        model = self.model if own else self._other(key)
        return TokenJudge(self, model, key, self.protocol or protocol_for(model), learned if own else {})

    def _other(self, name: str) -> FunctionalModule:
        return named_module(name, self.vocabulary, self.class_count, encoder=self.encoder, device=self.device)

    def _read(self, synthetic: Batch | None, judge: str) -> Scores:
        if synthetic is None:
            return self._reader.score(judge, self.data.train.texts, self._train, None)
        batch = self._checked(synthetic)
        texts = self.readable(batch.inputs)
        return self._reader.score(judge, texts, class_labels(batch.targets), batch.weight)

    def projected(self, inputs: Inputs) -> tuple[Tensors, Tensor]:
        """Return inputs whose vectors are those of the nearest tokens of training texts, and the token numbers."""
        named = self.named(inputs)
        special = self.vocabulary.special.nonzero().flatten()
        ids = self.vocabulary.nearest(named["vectors"], torch.cat([self.candidates, special]))
        return self.look_up(ids, named["mask"]), ids

    def readable(self, inputs: Inputs) -> list[str]:
        """Return each sample as the text of its nearest tokens."""
        named, ids = self.projected(inputs)
        rows = zip(ids.cpu(), named["mask"].cpu(), strict=True)
        return [self.vocabulary.words(row[kept], PAIR in self.data.train.texts[0]) for row, kept in rows]

    def _checked(self, synthetic: Batch) -> Batch:
        named = self.named(synthetic.inputs)
        vectors, targets = named["vectors"], class_labels(synthetic.targets)
        if vectors.ndim != 3 or vectors.shape[2] != self.vocabulary.dim:
            raise ShapeError(
                f"vectors of shape {tuple(vectors.shape)} are not of the tokens of {self.vocabulary.name!r}, "
                f"(n, L, {self.vocabulary.dim})"
            )
        require_targets(targets, len(vectors), self.class_count, self.data.name)
        return synthetic

    def validate(self, synthetic: Batch, draws: Draws, learned: Mapping[str, Tensor]) -> float:
        """Return the mean development accuracy of two networks."""
        queries = (self.tokens.dev, self.data.dev.labels)
        values = self._judge(self.judges[0], learned).score(synthetic, queries, draws, 2).values["accuracy"]
        return sum(values) / len(values)

    def describe(self) -> TaskInfo:
        """Return what identifies this task; the vocabulary and the length are part of it."""
        identity = f"{self.data.fingerprint}|{self.vocabulary.identity}|{self.length}"
        return TaskInfo(
            domain="text",
            data=self.data.name,
            budget="ipc",
            num_train=len(self._train),
            stored_bytes=self.data.stored_bytes,
            fingerprint=hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
            class_names=self.data.class_names,
            test_fingerprint=self.data.test_fingerprint,
            preprocessing={
                "encoder": self.vocabulary.name,
                "space": self.vocabulary.identity,
                "dim": self.vocabulary.dim,
                "length": self.length,
                "scale": self.vocabulary.scale,
                "truncated_texts": self.tokens.truncated,
                "splits": list(self.data.notes),
            },
            tensors={"mean": self.vocabulary.mean},
        )


class _WithAttention(torch.nn.Module):
    """Calls a transformer for logits and attention."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        assert isinstance(self.model, TransformerClassifier)
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
    test: tuple[Sequence[Any], Sequence[Any]] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    device: torch.device | str = "auto",
    judge_epochs: int | None = None,
    judge_batch: int | None = None,
    seed: int = 0,
) -> TokenTask:
    """Tokenize labelled texts once and return the task of distilling sequences of token embeddings.

    Args:
        data: a name, a file or folder, ``hf:NAME``, ``(texts, labels)``, or such pairs by split name.
        model: ``textcnn``, ``bilstm``, ``bigru``, ``transformer`` (the encoder's body with a fresh head), or a function
            that returns a module from a dict of ``vectors`` and ``mask`` to logits, or a ``PretrainedModule``.
        encoder: the transformers model whose tokens and input embeddings are used: ``minilm``, a name or a folder.
        length: tokens kept of each text, special ones included; by default as many as 95 % of the training texts have.
        width: filters of each window or units of each direction; 64 by default.
        features: for a network of one's own, the submodules whose activations are its features.
        test: texts and labels to test on, beside a pair ``(texts, labels)``; a fifth is held out by default.
        text_column: the column of texts; guessed by default.
        label_column: the column of labels; guessed by default.
        class_names: names by class index.
        device: where everything runs; ``auto`` is a CUDA device where there is one, else the CPU.
        judge_epochs: epochs of trained judges, for sets that carry no steps of their own.
        judge_batch: their minibatch size.
        seed: of the splits that the data do not come with.
    Returns:
        The task, for :func:`~mmdistill.distill` and :func:`~mmdistill.evaluate`.
    Raises:
        ConfigError: an unknown name, an encoder without tokens, or a network that does not fit.
        DataError: unusable data, see :func:`~mmdistill.text.data.load_text`.
    """
    seed = checked_seed(seed)
    require_sizes(length=length, width=width, judge_epochs=judge_epochs, judge_batch=judge_batch)
    device = choose_device(device)
    given = with_test(data, test)
    loaded = load_text(given, text_column=text_column, label_column=label_column, class_names=class_names, seed=seed)
    source = make_encoder(encoder, device)
    if not isinstance(source, TransformerEncoder):
        raise ConfigError(
            f"the encoder {source.name!r} has no table of token embeddings; use 'minilm' or another transformers model"
        )
    vocabulary = load_vocabulary(source)
    train = vocabulary.tokenize(loaded.train.texts, length, trim=True)
    dev, held_out = (vocabulary.tokenize(split.texts, train.ids.shape[1]) for split in (loaded.dev, loaded.test))
    if isinstance(model, str):
        name = canonical(model)
        require_no_features(features, name)
        module = named_module(name, vocabulary, len(loaded.class_names), encoder=source, width=width, device=device)
    else:
        require_no_width(width, "a module of your own")
        name = OWN
        if isinstance(model, FunctionalModule):
            require_no_features(features, f"a {type(model).__name__}")
        module = model if isinstance(model, FunctionalModule) else FunctionalModule(model, features, device)
    protocol = None
    if judge_epochs is not None or judge_batch is not None:
        base = protocol_for(module)
        protocol = replace(base, epochs=judge_epochs or base.epochs, batch=judge_batch or base.batch)
    return TokenTask(
        loaded, vocabulary, TokenSplits(train, dev, held_out), module, encoder=source, name=name, protocol=protocol
    )
