"""Errors of running out of memory, recognised and explained."""

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
"""Messages of plain RuntimeErrors by which torch's CPU allocator, CUDA and its libraries report a lack of memory."""
PROBABLY = "unable to find an engine to execute this computation"
"""The message of convolutions on CUDA if memory suffices for no algorithm (pytorch issue 108645), rarely for other
reasons."""


def exhausted(error: BaseException, *, surely: bool = False) -> bool:
    """Return whether an error says or, unless ``surely``, probably means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    marks = MARKS if surely else (*MARKS, PROBABLY)
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


@contextmanager
def out_of_memory_advice(what: str, lower: str) -> Iterator[None]:
    """Within this context turn running out of memory into an error that says where, and what to lower.

    Args:
        what: names the work in progress.
        lower: names what takes less memory.

    Raises:
        MemoryExhaustedError: in place of torch's or Python's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not exhausted(error):
            raise
        reason = str(error).split("\n", 1)[0]
        message = f"{'probably ' * (PROBABLY in str(error))}out of memory in {what}"
        raise MemoryExhaustedError(f"{message}; try {lower} ({reason or 'no more memory'})") from error
