"""Frozen sentence encoders.

A text task sees texts only through an encoder: a function from texts to points of one fixed space. The space is part
of the data: a set distilled in one encoder's space is meaningless in another's. So every encoder has an identity, which
enters the cache key and the task's fingerprint.
"""

import functools
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError, first_line
from mmdistill.files.paths import users_path
from mmdistill.text.unknown import unknown_note

AFTER_PADDING = ("roberta", "camembert", "mpnet", "xmod", "data2vec-text")
"""Model types whose position ids start after the padding id."""
UNBOUNDED = 2**31
"""The token limit of a model without a position table."""
COUNTED = 1 << 20
"""Characters tokenized at once to count tokens (about 1,000 texts of 200 words), since a token takes 200 bytes."""
PAIR = "\x1f"
"""Separates the two texts of a pair: the ASCII unit separator, which no text of a table holds."""


class Encoding(NamedTuple):
    """Points of an encoder's space, and the number of truncated texts.

    Shapes:
        points ``(n, d)`` float32 on the CPU.
    """

    points: Tensor
    truncated: int


class Batches(NamedTuple):
    """Texts divided into batches for an encoder.

    Args:
        rows: the indices of each batch's texts; each text occurs once.
        tokens: number of tokens computed for each batch, padding included.
        dim: d, the numbers in a point.
        truncated: the number of truncated texts.
        read: returns the points ``(k, d)`` of a batch's texts, float32 on the CPU.
    """

    rows: list[list[int]]
    tokens: list[int]
    dim: int
    truncated: int
    read: Callable[[list[int]], Tensor]


class SentenceEncoder(ABC):
    """A frozen function from texts to points ``(n, d)``."""

    name: str
    """The encoder's name as the user gave it."""
    cached: bool = True
    """Whether to cache its output on disk; its identity must then determine the output."""
    notes: tuple[str, ...] = ()
    """Remarks on how it was fitted, or how well it fits the training texts, for readers of results."""

    def fit(self, texts: Sequence[str]) -> None:  # noqa: B027 (most encoders are pre-trained and learn nothing here)
        """Fit the encoder to the training texts."""

    def learned(self) -> dict[str, Tensor | str]:
        """Return what :meth:`fit` learned, as far as another tool needs it to encode new texts alike."""
        return {}

    @abstractmethod
    def identity(self) -> str:
        """Return a string that differs whenever the space differs."""

    def space(self, points: Tensor) -> str:
        """Return an identifier of the space of training points ``(n, d)``; by default :meth:`identity`."""
        return self.identity()

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Encoding:
        """Return one point per text, in order."""


class TransformerEncoder(SentenceEncoder):
    """Mean-pooled, L2-normalised last hidden states of any ``transformers`` encoder.

    The mean runs over the attended tokens only. Texts are batched by length to reduce padding.

    Args:
        model: a name on the Hugging Face hub or the path of a model folder. Only safetensors weights are read.
        name: the user's name for it; ``model`` by default.
        max_length: tokens read of each text; longer texts are truncated, and their number is reported.
        batch: texts per forward pass.
        device: where the model runs; the points return to the CPU.
    Raises:
        ConfigError: the model is neither a folder nor available from the hub (or its cache, when offline).
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        max_length: int = 256,
        batch: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        folder = users_path(model)
        self.model = str(folder if folder.is_dir() else model)
        self.name = name or self.model
        self.max_length = max_length
        self.batch = batch
        self.device = torch.device(device)

    def fit(self, texts: Sequence[str]) -> None:
        """Learn nothing, but note if the tokenizer does not know many tokens of the training texts.

        Raises:
            ConfigError: the model is not available.
        """
        self.notes = unknown_note(self.name, texts, self.load_tokenizer, both)

    def identity(self) -> str:
        """Return the hash of the model's files or the hub's commit, with the pooling and the length."""
        return f"transformer:{self._weights}:mean:l2:{self.max_length}"

    @functools.cached_property
    def _weights(self) -> str:
        """An identifier of the model's weights."""
        if (folder := Path(self.model)).is_dir():
            return _hash_files(folder)
        from transformers import AutoConfig

        config = self.load(AutoConfig)
        return f"{self.model}@{getattr(config, '_commit_hash', None)}"

    def load(self, kind: Any, **options: Any) -> Any:
        """Load the model by a transformers class.

        Args:
            kind: the class, such as ``AutoModel``.
            options: keyword arguments of its ``from_pretrained``.
        Raises:
            ConfigError: the model is not available, or has no safetensors weights.
        """
        try:
            return kind.from_pretrained(self.model, **options)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot load the encoder {self.model!r}: expected minilm, tfidf, average, a folder with a "
                f"transformers model, or a model of the Hugging Face hub with safetensors weights "
                f"({first_line(error)})"
            ) from error

    def load_tokenizer(self) -> Any:
        """Load the model's tokenizer.

        Raises:
            ConfigError: as :meth:`load`.
        """
        from transformers import AutoTokenizer

        return self.load(AutoTokenizer)

    def load_body(self, **options: Any) -> Any:
        """Load the model without a head, in float32 whatever the format of its weights.

        Raises:
            ConfigError: as :meth:`load`.
        """
        from transformers import AutoModel

        with quiet_transformers():
            return self.load(AutoModel, use_safetensors=True, **options).float()

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Return one unit vector per text.

        Raises:
            ConfigError: a model that cannot be loaded, or a tokenizer without a token to pad with.
        """
        batches = self.batches(texts)
        points = torch.empty(len(texts), batches.dim)
        for rows in batches.rows:
            points[rows] = batches.read(rows)
        return Encoding(points, batches.truncated)

    def batches(self, texts: Sequence[str]) -> Batches:
        """Divide texts into batches of similar length, the longest first.

        Pairs and single texts are batched separately, pairs first: in one call a tokenizer would read all as pairs.

        Raises:
            ConfigError: as :meth:`encode`.
        """
        tokenizer = self.load_tokenizer()
        model = self.load_body().to(self.device).eval()
        if tokenizer.pad_token is None:  # any token will do, since padding is masked
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.sep_token
        if tokenizer.pad_token is None:
            raise ConfigError(
                f"the tokenizer of {self.name!r} has neither a pad token nor one that could stand for it; set one in "
                "its tokenizer_config.json"
            )
        limit = min(self.max_length, int(tokenizer.model_max_length), positions(model.config))

        @torch.no_grad()
        def read(rows: list[int]) -> Tensor:
            tokens = tokenizer(
                *both([texts[row] for row in rows]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self.device)
            return mean_pool(model(**tokens).last_hidden_state, tokens["attention_mask"]).float().cpu()

        batches, counts, truncated = list[list[int]](), list[int](), 0
        are_pairs = torch.tensor([PAIR in text for text in texts], dtype=torch.bool)
        for in_group in (are_pairs, ~are_pairs):
            if not in_group.any():
                continue
            rows = in_group.nonzero().flatten()
            lengths = token_counts(tokenizer, [texts[row] for row in rows.tolist()])
            truncated += int((lengths > limit).sum())
            for chosen in torch.split(lengths.argsort(descending=True, stable=True), self.batch):
                batches.append(rows[chosen].tolist())
                counts.append(len(chosen) * min(int(lengths[chosen[0]]), limit))
        return Batches(batches, counts, model.config.hidden_size, truncated, read)


def token_counts(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return the number of tokens of each text, special ones included, ``(n,)`` int64.

    Tokenizes texts in blocks of :data:`COUNTED` characters to limit memory.
    """
    counts, blocks = list[int](), np.cumsum([len(text) for text in texts]) // COUNTED
    for _, block in groupby(zip(blocks, texts, strict=True), itemgetter(0)):
        tokens = tokenizer(*both([text for _, text in block]), add_special_tokens=True, verbose=False)["input_ids"]
        counts += map(len, tokens)
    return torch.tensor(counts)


def positions(config: Any) -> int:
    """Return the largest number of tokens that a transformers model reads."""
    size = getattr(config, "max_position_embeddings", None)
    if not isinstance(size, int) or size < 1:
        return UNBOUNDED
    starts_late = config.pad_token_id is not None and any(kind in str(config.model_type) for kind in AFTER_PADDING)
    return size - config.pad_token_id - 1 if starts_late else size


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within this context transformers draws no progress bar, which would overwrite ours."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    was_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bars.enable_progress_bar()


def both(texts: Sequence[str]) -> tuple[list[str], ...]:
    """Return texts as arguments of a tokenizer: one list, or for pairs the first texts and the second texts."""
    split = [text.partition(PAIR) for text in texts]
    first = [part for part, _, _ in split]
    return (first, [part for _, _, part in split]) if any(mark for _, mark, _ in split) else (first,)


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the L2-normalised mean of the attended tokens.

    Shapes:
        hidden ``(n, L, d)``; attention_mask ``(n, L)``, 1 where a token counts; returns ``(n, d)``.
    """
    mask = attention_mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


def hash_texts(texts: Sequence[str]) -> str:
    """Return a hash of texts in their order."""
    # JSON preserves the boundaries between texts; plain joining would not.
    return hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=16).hexdigest()


def _hash_files(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".safetensors", ".model")):
        digest.update(os.fsencode(path.name))
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
