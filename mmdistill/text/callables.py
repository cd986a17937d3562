"""Encoders that are functions of the user's."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, MmdistillError, ShapeError, first_line
from mmdistill.execution.isolation import recordable
from mmdistill.execution.memory import exhausted
from mmdistill.text.encoder import PAIR, Encoding, SentenceEncoder

SKETCHED = (4, 8)
"""Of how many points how many coordinates tell spaces apart."""
SKETCH_STEPS = 10
"""To which part of a point's largest coordinate these are rounded. Finer steps or more numbers would make the rounding
errors of another device or batch look like another space."""


def sketch(points: Tensor) -> str:
    """Return a hash of a few coarsely rounded coordinates, the same for points that differ by rounding errors.

    Shapes:
        points ``(n, d)``, of which the first and the last and some between them count.
    """
    rows, columns = (
        torch.linspace(0, size - 1, min(most, size)).round().long()
        for size, most in zip(points.shape, SKETCHED, strict=True)
    )
    chosen = points.detach().cpu().double()[rows]
    scaled = chosen[:, columns] / chosen.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    steps = (scaled * SKETCH_STEPS).round().long()
    return hashlib.blake2b(repr(steps.tolist()).encode(), digest_size=8).hexdigest()


class CallableEncoder(SentenceEncoder):
    """A user's function from a list of n texts to an ``(n, d)`` tensor or array; a pair of texts comes as two lines.

    Nothing tells one function from the next before it is called, so the output is not cached unless it is given a name.
    Without one, some of the training points tell its space from that of another function.

    Args:
        function: the encoder.
        name: identifies the space; the same name must mean the same function.
        label: what messages call a function without such a name; its own name by default.
    """

    def __init__(self, function: Callable[[list[str]], Any], name: str | None = None, label: str = "") -> None:
        self.function = function
        self.cached = name is not None
        self.name = name or label or str(getattr(function, "__name__", type(function).__name__))

    def identity(self) -> str:
        """Return the name."""
        return f"callable:{self.name}"

    def space(self, points: Tensor) -> str:
        """Return the name or, where it is none of the user's, that with the dimension and a digest of some points."""
        return self.identity() if self.cached else f"{self.identity()}:{points.shape[1]}:{sketch(points)}"

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Call the function once with all texts.

        Raises:
            ConfigError: the function returns no array of numbers, or a sparse one.
            ShapeError: the array is none of one row per text.
        """
        plain = [text.replace(PAIR, "\n") for text in texts]
        try:
            with torch.no_grad():
                found = self.function(plain)
        except MmdistillError:
            raise
        except Exception as error:  # whatever a function of the user's raises
            if exhausted(error):
                raise
            raise ConfigError(f"the encoder {self.name!r} failed: {first_line(error)}") from error
        if hasattr(found, "toarray"):
            raise ConfigError(
                f"the encoder {self.name!r} returned a sparse matrix, and points are dense: return its toarray(), or "
                "a projection to a few hundred dimensions (sklearn's TruncatedSVD)"
            )
        try:
            points = recordable(torch.as_tensor(found).detach().float().cpu())
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"the encoder {self.name!r} returned {type(found).__name__}, which is no array of numbers: {error}"
            ) from error
        if points.ndim != 2 or len(points) != len(texts):
            raise ShapeError(
                f"the encoder {self.name!r} returned {tuple(points.shape)} for {len(texts)} texts; "
                f"expected ({len(texts)}, d)"
            )
        return Encoding(points, 0)
