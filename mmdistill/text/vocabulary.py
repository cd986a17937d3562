"""The tokens of a transformers model and their vectors: the space of learned token embeddings."""

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError, DataError, ShapeError
from mmdistill.task import Inputs, Tensors
from mmdistill.text.encoder import PAIR, Encoding, SentenceEncoder, TransformerEncoder

logger = logging.getLogger(__name__)

MOST_TOKENS = 128
"""Upper limit of the default length."""
COVERED = 0.95
"""Share of the texts that the default length holds without truncation."""
DISTANCE_CHUNK = 256
"""Vectors compared with the whole vocabulary at once."""


class Tokens(NamedTuple):
    """Token numbers of texts, and the number of truncated texts.

    Shapes:
        ids ``(n, L)`` int64, 0 after a text's end; mask ``(n, L)`` bool, true for tokens.
    """

    ids: Tensor
    mask: Tensor
    truncated: int


class Vocabulary:
    """A tokenizer and the vectors of its tokens in standard units.

    A token's vector is its row of the model's input embeddings, minus the mean row, divided by the root mean square of
    all such differences. So the zero vector, used after a text's end, is the mean of all tokens, and learning rates
    carry over between models. :func:`in_model_units` converts back to the model's ``inputs_embeds``.

    Args:
        tokenizer: a transformers tokenizer. Padding is masked, so it needs no pad token.
        table: the model's input embeddings, ``(V, H)``.
        name: the user's name for the model.
        identity: a string that differs whenever tokenizer or table differ.
    Raises:
        ShapeError: the table is not ``(V, H)``.
        ConfigError: all tokens have the same vector.
    """

    def __init__(self, tokenizer: Any, table: Tensor, *, name: str, identity: str) -> None:
        if table.ndim != 2:
            raise ShapeError(f"input embeddings are (tokens, numbers), got {tuple(table.shape)}")
        self.tokenizer = tokenizer
        self.name = name
        self.identity = identity
        self.mean = table.mean(0)
        self.scale = float((table - self.mean).square().mean().sqrt())
        if not self.scale > 0:
            raise ConfigError(f"all tokens of {name!r} have the same vector; there is nothing to learn in")
        self.vectors = (table - self.mean) / self.scale
        special = set(tokenizer.all_special_ids)
        self.special = torch.tensor([index in special for index in range(len(table))])

    @property
    def dim(self) -> int:
        """H, the numbers in a vector."""
        return self.vectors.shape[1]

    def tokenize(self, texts: Sequence[str], length: int | None = None, *, trim: bool = False) -> Tokens:
        """Return the token numbers of texts, special tokens included; the tokenizer joins pairs.

        Args:
            texts: n texts.
            length: L, the tokens kept of each text; None: the 95 % quantile of the texts' lengths, at most 128.
            trim: reduce a length above 128 that no text reaches to that of the longest text.
        Raises:
            ConfigError: a length without room for a word, or for pairs without room for a word of each text.
        """
        full: list[list[int]] = [self._numbers(text) for text in texts]
        counts = torch.tensor([len(row) for row in full])
        paired = any(text.partition(PAIR)[2] for text in texts)
        room = 1 + paired + self.tokenizer.num_special_tokens_to_add(pair=paired)
        if length is None:
            length = max(room, min(int(counts.double().quantile(COVERED).ceil()), MOST_TOKENS))
        if length < room:
            what = "a word of each text of a pair" if paired else "a word"
            raise ConfigError(f"a length of {length} tokens leaves no room for {what}; give at least {room}")
        longest = max(int(counts.max()), room)
        if trim and length > max(longest, MOST_TOKENS):
            logger.warning("no training text has more than %d tokens, so the length is not %d", longest, length)
            length = longest
        ids = torch.zeros(len(full), length, dtype=torch.long)
        for row, (text, numbers) in enumerate(zip(texts, full, strict=True)):
            kept = numbers if len(numbers) <= length else self._numbers(text, length)
            ids[row, : len(kept)] = torch.tensor(kept)
        mask = torch.arange(length) < counts[:, None]
        return Tokens(ids, mask, int((counts > length).sum()))

    def _numbers(self, text: str, length: int | None = None) -> list[int]:
        cut = {} if length is None else {"truncation": True, "max_length": length}
        first, _, second = text.partition(PAIR)
        found = self.tokenizer(first, second or None, verbose=False, **cut)["input_ids"]
        numbers: list[int] = list(found)
        return numbers

    def nearest(self, vectors: Tensor, candidates: Tensor) -> Tensor:
        """Return each vector's nearest token (Euclidean) among ``candidates``.

        Shapes:
            vectors ``(..., H)``; candidates ``(k,)`` token numbers; returns ``(...)`` token numbers.
        Raises:
            ShapeError: the vectors have another H.
        """
        if vectors.shape[-1] != self.dim:
            raise ShapeError(f"vectors of {vectors.shape[-1]} numbers are not of {self.name!r}, whose have {self.dim}")
        table = self.vectors[candidates].to(vectors)
        norms = 0.5 * table.square().sum(1)
        chunks = torch.split(vectors.reshape(-1, self.dim), DISTANCE_CHUNK)
        rows = [(part @ table.T - norms).argmax(1) for part in chunks]
        return candidates.to(vectors.device)[torch.cat(rows)].view(vectors.shape[:-1])

    def in_own_units(self, vectors: Tensor) -> Tensor:
        """Convert vectors from the model's units (``inputs_embeds``), the inverse of :func:`in_model_units`."""
        return (vectors - self.mean.to(vectors)) / self.scale

    def words(self, ids: Tensor, pair: bool = False) -> str:
        """Decode tokens to a text without special tokens; ``pair`` splits it at separators if these give two texts."""
        numbers, end = ids.tolist(), getattr(self.tokenizer, "sep_token_id", None)
        if pair:
            parts = [list(own) for mark, own in groupby(numbers, lambda number: number == end) if not mark]
            texts = [self.tokenizer.decode(part, skip_special_tokens=True) for part in parts]
            filled = [text for text in texts if text.strip()]
            if len(filled) == 2:
                return PAIR.join(filled)
        text: str = self.tokenizer.decode(numbers, skip_special_tokens=True)
        return text

    def to(self, device: torch.device | str) -> "Vocabulary":
        """Move the vectors to a device; returns itself."""
        self.mean, self.vectors = self.mean.to(device), self.vectors.to(device)
        self.special = self.special.to(device)
        return self


def token_inputs(inputs: Inputs) -> Tensors:
    """Return inputs unchanged after checking that they are token embeddings.

    Raises:
        ShapeError: other inputs.
    """
    if not isinstance(inputs, dict) or not {"vectors", "mask"} <= inputs.keys():
        found = ", ".join(inputs) if isinstance(inputs, dict) else f"one tensor {tuple(inputs.shape)}"
        raise ShapeError(f"token embeddings are a dict of 'vectors' (n, L, H) and 'mask' (n, L), got {found}")
    return inputs


def as_mask(mask: Tensor) -> Tensor:
    """Return a mask of tokens as truth values, from zeros and ones of any type.

    Raises:
        DataError: other numbers, such as those that transformers add to attention scores (0 for tokens).
    """
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise DataError(
            f"a mask is 1 (or true) for tokens and 0 elsewhere, got numbers from {mask.min():.3g} to {mask.max():.3g}"
        )
    return mask.bool()


def in_model_units(vectors: Tensor, scale: float, mean: Tensor) -> Tensor:
    """Convert token vectors to the model's units (``inputs_embeds``), given the scale and mean of its tokens."""
    return vectors * scale + mean.to(vectors)


def load_vocabulary(encoder: TransformerEncoder) -> Vocabulary:
    """Load the tokenizer and input embeddings of an encoder's model.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    tokenizer = encoder.load_tokenizer()
    table = encoder.load_body().get_input_embeddings().weight.detach().clone()
    settings = json.dumps([encoder.identity(), "input embeddings"])
    digest = hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
    return Vocabulary(tokenizer, table, name=encoder.name, identity=f"tokens:{digest}")


class AverageEncoder(SentenceEncoder):
    """The L2-normalised mean of the vectors of a text's tokens: a bag of word vectors, without any context.

    Args:
        source: the encoder whose tokens and input embeddings are averaged.
    """

    name = "average"
    cached = False

    def __init__(self, source: TransformerEncoder) -> None:
        self.source = source

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens and their vectors."""
        return load_vocabulary(self.source)

    def fit(self, texts: Sequence[str]) -> None:
        """Learn nothing, but note what the source's tokenizer does not know."""
        self.source.fit(texts)
        self.notes = self.source.notes

    def identity(self) -> str:
        """Return the vocabulary's identity with the pooling."""
        return f"{self.vocabulary.identity}:mean:l2"

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Return one unit vector per text; a text without tokens is the zero vector."""
        vocabulary = self.vocabulary
        ids, mask, truncated = vocabulary.tokenize(texts, self.source.max_length)
        counted = mask & ~vocabulary.special[ids]
        points = torch.stack([vocabulary.vectors[row[kept]].sum(0) for row, kept in zip(ids, counted, strict=True)])
        return Encoding(F.normalize(points, dim=1), truncated)
