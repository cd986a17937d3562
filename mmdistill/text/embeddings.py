"""The disk cache of frozen sentence encoders' points."""

import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mmdistill.bars import UNSHOWN_SECONDS, is_redrawn, progress_bar
from mmdistill.errors import CheckpointError, DataError
from mmdistill.execution import ranks
from mmdistill.networks.clock import LoggedProgress, TrainingClock
from mmdistill.runtime import cache_folder, remove_stale_parts
from mmdistill.store import load_tree, save_tree, write_tensors
from mmdistill.text.encoder import Batches, Encoding, SentenceEncoder, TransformerEncoder, hash_texts

logger = logging.getLogger(__name__)

CACHE_VERSION = 2
MANY = 1000
"""Announce the encoding of at least this many texts, since it takes long."""
KEPT_SECONDS = 10.0
"""Write encoded batches to disk at this interval, so that an interruption loses no more than these seconds."""
ORPHANED_SECONDS = 30 * 86_400.0
"""Parts that no call has added to for so long are removed; those of a call at work are seconds old."""


def encode(encoder: SentenceEncoder, texts: Sequence[str]) -> Encoding:
    """Encode texts once: a second call with the same texts and encoder reads the cache.

    A cache file that is damaged, or that does not hold one finite point per text, is computed again. An interrupted
    transformer resumes with a bit-identical result; other encoders are called once with all texts.

    Raises:
        DataError: the encoder returned NaN or Inf.
    """
    if not encoder.cached:
        if len(texts) >= MANY:
            logger.info("calling the encoder %r on %s texts", encoder.name, f"{len(texts):,}")
        return _encode_whole(encoder, texts)
    key = hashlib.blake2b(f"{CACHE_VERSION}|{encoder.identity()}|{hash_texts(texts)}".encode(), digest_size=16)
    path = cache_folder() / "embeddings" / f"{key.hexdigest()}.safetensors"
    found = _read_cache(path, len(texts))
    if found is not None:
        _remove_parts(path)
        return found
    if len(texts) >= MANY:
        logger.info("encoding %s texts by %s, which is done once", f"{len(texts):,}", encoder.name)
    remove_stale_parts(path.parent)
    _remove_orphans(path)
    if isinstance(encoder, TransformerEncoder) and _encodes_in_batches(encoder):
        fresh = _encode_in_batches(encoder, texts, path)
    else:
        fresh = _encode_whole(encoder, texts)
    try:
        write_tensors(path, {"points": fresh.points.contiguous(), "truncated": torch.tensor(fresh.truncated)})
    except OSError as error:
        logger.warning("the embeddings could not be cached at %s (%s); they will be computed again", path, error)
    else:
        _remove_parts(path)
    return fresh


def _encode_whole(encoder: SentenceEncoder, texts: Sequence[str]) -> Encoding:
    found = encoder.encode(texts)
    _require_finite(encoder, found.points, range(len(texts)))
    return found


def _require_finite(encoder: SentenceEncoder, points: Tensor, rows: Sequence[int]) -> None:
    broken = (~points.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise DataError(f"the encoder {encoder.name!r} returned NaN or Inf for text {min(rows[i] for i in broken)}")


def _encodes_in_batches(encoder: TransformerEncoder) -> bool:
    """Return whether ``encode`` is the library's own; a subclass's ``encode`` may not work in batches."""
    return getattr(encoder.encode, "__func__", None) is TransformerEncoder.encode


def _encode_in_batches(encoder: TransformerEncoder, texts: Sequence[str], path: Path) -> Encoding:
    """Do what :meth:`TransformerEncoder.encode` does, with a progress bar and resumable from disk.

    The bar counts tokens, since batches of long texts come first and take longer.

    Args:
        encoder: the encoder.
        texts: n texts.
        path: the final cache file.
    """
    batches = encoder.batches(texts)
    points = torch.empty(len(texts), batches.dim)
    parts = _Parts(path, batches, f"{encoder.device} {encoder.batch}")
    kept = parts.read_into(points)
    if kept:
        count = sum(map(len, batches.rows[:kept]))
        logger.info("%s of %s texts were encoded by a call that was interrupted", f"{count:,}", f"{len(texts):,}")
    before, total = sum(batches.tokens[:kept]), sum(batches.tokens)
    drawn = ranks.is_first() and is_redrawn()
    clock = TrainingClock(total - before, None if drawn else LoggedProgress("texts", "encoded"))
    written = clock.began
    with progress_bar(f"encoding {len(texts):,} texts", "token", visible=drawn) as show:
        for number, rows in enumerate(batches.rows[kept:], start=kept):
            points[rows] = found = batches.read(rows)
            _require_finite(encoder, found, rows)
            clock.tick(batches.tokens[number])
            now = time.perf_counter()
            if now - clock.began > UNSHOWN_SECONDS:
                show(before + clock.done, total)
            if now - written > KEPT_SECONDS and parts.write(points, kept, number + 1):
                written, kept = now, number + 1
    return Encoding(points, batches.truncated)


class _Parts:
    """Files with the points of batches that are encoded so far.

    Each file holds consecutive batches and is named by the number of the first. It also records its rows and its
    folder's name, so that points of other texts, models or batches are not mistaken for these.

    Args:
        path: the final cache file.
        batches: the texts in their batches.
        settings: settings that change the points' rounding errors but not their space.
    """

    def __init__(self, path: Path, batches: Batches, settings: str) -> None:
        variant = hashlib.blake2b(settings.encode(), digest_size=4).hexdigest()
        self.folder = path.with_name(f"{path.stem}-{variant}.parts")
        self.batches = batches

    def write(self, points: Tensor, first: int, end: int) -> bool:
        """Write the points of batches ``first`` to ``end`` (exclusive); return whether that worked."""
        chosen = self.batches.rows[first:end]
        try:
            rows = [row for batch in chosen for row in batch]
            save_tree(self._file(first), {"of": self.folder.name, "rows": chosen, "points": points[rows]})
        except OSError:  # no warning here: writing the final file fails too, and warns
            return False
        return True

    def read_into(self, points: Tensor) -> int:
        """Fill in the points that an interrupted call left, up to the first gap; return the number of batches."""
        done = 0
        while True:
            try:
                part = load_tree(self._file(done))
            except (CheckpointError, OSError):  # no more files, or a damaged one
                return done
            chosen, found = part.get("rows"), part.get("points")
            if part.get("of") != self.folder.name or not chosen or not isinstance(found, Tensor):
                return done
            rows = [row for batch in self.batches.rows[done : done + len(chosen)] for row in batch]
            if chosen != self.batches.rows[done : done + len(chosen)] or found.shape != (len(rows), self.batches.dim):
                return done
            points[rows] = found
            done += len(chosen)

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:06d}.safetensors"


def _remove_parts(path: Path) -> None:
    """Remove the parts that interrupted calls left of points that are now complete."""
    for folder in path.parent.glob(f"{path.stem}-*.parts"):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(path: Path) -> None:
    """Remove the parts of other points than ``path``'s that no call has added to for :data:`ORPHANED_SECONDS`."""
    for folder in set(path.parent.glob("*.parts")) - set(path.parent.glob(f"{path.stem}-*.parts")):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > ORPHANED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


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
