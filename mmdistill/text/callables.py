"""User-defined functions as encoders."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, MmdistillError, ShapeError, first_line
from mmdistill.execution.isolation import recordable
from mmdistill.execution.memory import exhausted
from mmdistill.text.encoder import PAIR, Encoding, SentenceEncoder

SKETCHED = (4, 8)
"""Numbers of points and of coordinates that tell spaces apart."""
SKETCH_STEPS = 10
"""Coordinates are rounded to a tenth (one over this number) of a point's largest one. With finer steps or more numbers,
rounding errors of another device or batch would look like another space."""


def sketch(points: Tensor) -> str:
    """Return a hash of a few coarsely rounded coordinates, which does not change with rounding errors.

    Shapes:
        points ``(n, d)``; the first, the last and some in between are read.
    """
    rows, columns = (
        torch.linspace(0, size - 1, min(most, size)).round().long()
        for size, most in zip(points.shape, SKETCHED, strict=True)
    )
    chosen = points.detach().cpu().double()[rows]
    scaled = chosen[:, columns] / chosen.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    steps = (scaled * SKETCH_STEPS).round().long()
    return hashlib.blake2b(repr(steps.tolist()).encode(), digest_size=8).hexdigest()


def _as_tensor(output: Any) -> Tensor:
    """Return a tensor, an array, a data frame, or a list of rows as one tensor."""
    if isinstance(output, list | tuple):
        tensors = bool(output) and all(isinstance(row, Tensor) for row in output)
        return torch.stack([*output]) if tensors else torch.as_tensor(np.asarray(output))
    return torch.as_tensor(output.to_numpy() if hasattr(output, "to_numpy") else output)


class CallableEncoder(SentenceEncoder):
    """A user's function from a list of n texts to an ``(n, d)`` tensor, array or data frame, or a list of n tensors.

    It gets a pair of texts as two lines.

    Functions cannot be told apart before they are called, so the output is cached only if the user gives a name.
    Without one, some of the training points identify the space.

    Args:
        function: the encoder.
        name: identifies the space; the same name must mean the same function.
        label: what messages call a function without such a name; its ``__name__`` by default.
    """

    def __init__(self, function: Callable[[list[str]], Any], name: str | None = None, label: str = "") -> None:
        self.function = function
        self.cached = name is not None
        self.name = name or label or str(getattr(function, "__name__", type(function).__name__))

    def identity(self) -> str:
        """Return the name."""
        return f"callable:{self.name}"

    def space(self, points: Tensor) -> str:
        """Return the name; if the user gave none, add the dimension and a digest of some points."""
        return self.identity() if self.cached else f"{self.identity()}:{points.shape[1]}:{sketch(points)}"

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Call the function once with all texts.

        Raises:
            ConfigError: the function fails, or returns a sparse array or no array of numbers.
            ShapeError: the array does not have one row per text.
        """
        lines = [text.replace(PAIR, "\n") for text in texts]
        try:
            with torch.no_grad():
                output = self.function(lines)
        except MmdistillError:
            raise
        except Exception as error:  # a user's function may raise anything
            if exhausted(error):
                raise
            raise ConfigError(f"the encoder {self.name!r} failed: {first_line(error)}") from error
        if hasattr(output, "toarray"):
            raise ConfigError(
                f"the encoder {self.name!r} returned a sparse matrix, and points are dense: return its toarray(), or "
                "a projection to a few hundred dimensions (sklearn's TruncatedSVD)"
            )
        try:
            points = recordable(_as_tensor(output).detach().float().cpu())
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"the encoder {self.name!r} returned {type(output).__name__}, which is no array of numbers: {error}"
            ) from error
        if points.ndim != 2 or len(points) != len(texts):
            raise ShapeError(
                f"the encoder {self.name!r} returned {tuple(points.shape)} for {len(texts)} texts; "
                f"expected ({len(texts)}, d)"
            )
        return Encoding(points, 0)
