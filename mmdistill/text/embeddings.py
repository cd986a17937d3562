"""The disk cache of what frozen sentence encoders return."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from mmdistill.errors import DataError
from mmdistill.runtime import cache_folder, remove_stale_parts
from mmdistill.store import write_tensors
from mmdistill.text.encoder import Encoding, SentenceEncoder, hash_texts

logger = logging.getLogger(__name__)

CACHE_VERSION = 2
MANY = 1000
"""Texts from which encoding takes so long that it is announced."""


def encode(encoder: SentenceEncoder, texts: Sequence[str]) -> Encoding:
    """Encode texts once: a second call with the same texts and encoder reads the cache.

    A cache file that is damaged, or that does not hold one finite point per text, is computed again.

    Raises:
        DataError: the encoder returned NaN or Inf.
    """
    if not encoder.cached:
        return _checked(encoder, encoder.encode(texts))
    key = hashlib.blake2b(f"{CACHE_VERSION}|{encoder.identity()}|{hash_texts(texts)}".encode(), digest_size=16)
    path = cache_folder() / "embeddings" / f"{key.hexdigest()}.safetensors"
    found = _read_cache(path, len(texts))
    if found is not None:
        return found
    if len(texts) >= MANY:
        logger.info("encoding %d texts by %s, which is done once", len(texts), encoder.name)
    fresh = _checked(encoder, encoder.encode(texts))
    remove_stale_parts(path.parent)
    try:
        write_tensors(path, {"points": fresh.points.contiguous(), "truncated": torch.tensor(fresh.truncated)})
    except OSError as error:
        logger.warning("the embeddings could not be cached at %s (%s); they will be computed again", path, error)
    return fresh


def _checked(encoder: SentenceEncoder, encoding: Encoding) -> Encoding:
    broken = (~encoding.points.isfinite().all(1)).nonzero()
    if len(broken):
        raise DataError(f"the encoder {encoder.name!r} returned NaN or Inf for text {int(broken[0])}")
    return encoding


def _read_cache(path: Path, count: int) -> Encoding | None:
    try:
        stored = load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        logger.warning("the cached embeddings %s are damaged (%s) and are computed again", path, error)
        return None
    points, truncated = stored.get("points"), stored.get("truncated")
    if points is None or truncated is None or points.ndim != 2 or len(points) != count or not points.isfinite().all():
        logger.warning("the cached embeddings %s are not what was expected and are computed again", path)
        return None
    return Encoding(points, int(truncated))
