"""Running out of memory, said in words that help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmdistill.errors import MemoryExhaustedError

MARKS = (
    *("can't allocate memory", "not enough memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED"),
    *("CUDA driver error: out of memory", "Triton Error [CUDA]: out of memory"),
)
"""How torch's CPU allocator words it in a plain RuntimeError, and how CUDA and its libraries do, which need it too."""
PROBABLY = "unable to find an engine to execute this computation"
"""What convolutions on CUDA say where there is no memory for any way to compute them (pytorch issue 108645), and,
seldom, for other reasons."""


def exhausted(error: BaseException, *, surely: bool = False) -> bool:
    """Return whether an error says that memory ran out or, where it need not be sure, probably means it."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    marks = MARKS if surely else (*MARKS, PROBABLY)
    return known or (isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks))


@contextmanager
def out_of_memory_advice(what: str, lower: str) -> Iterator[None]:
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
        if not exhausted(error):
            raise
        reason = str(error).split("\n", 1)[0]
        said = f"{'probably ' * (PROBABLY in str(error))}out of memory in {what}"
        raise MemoryExhaustedError(f"{said}; try {lower} ({reason or 'no more memory'})") from error
