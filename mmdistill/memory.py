"""Running out of memory, said in words that help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmdistill.errors import MemoryExhaustedError

MARKS = (
    *("can't allocate memory", "not enough memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""How torch's CPU allocator words it in a plain RuntimeError, and how CUDA and its libraries do, which need it too."""


@contextmanager
def explained(what: str, lower: str) -> Iterator[None]:
    """Turn running out of memory into an error that says in what, and what to lower.

    Args:
        what: was being done.
        lower: what takes less memory.

    Raises:
        MemoryExhaustedError: in place of torch's or Python's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not exhausted and not any(mark in str(error) for mark in MARKS):
            raise
        reason = str(error).split("\n", 1)[0]
        raise MemoryExhaustedError(f"out of memory in {what}; try {lower} ({reason or 'no more memory'})") from error
