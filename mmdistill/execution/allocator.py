"""Freed memory of the process: kept for its next tensors while public calls run, then returned to the kernel."""

import ctypes
import functools
import time

from mmdistill.execution.isolation import at_last

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3
"""The numbers of two settings of glibc's allocator, from malloc.h."""
ADJUSTED = 32 << 20
"""The block size in bytes below which glibc keeps freed memory once it has adjusted itself to large blocks."""
WORTH_TRIMMING = 1.0
"""Seconds of a call from which free memory is returned at once, which takes .2 s on a large heap."""


class _Allocator:
    """Whether glibc keeps freed memory, as :func:`keep_freed_memory` sets it."""

    keeps = False


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, instead of returning it to the kernel each time.

    A step on the CPU allocates the same tensors over and over. By default glibc maps every large one anew, and the
    kernel clears its pages first, which takes up to half of a step. Without glibc this does nothing.

    The setting ends with the outermost public call, which returns the memory.
    """
    if _Allocator.keeps:
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    if not libc.mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30):
        libc.mallopt(MALLOC_MMAP_THRESHOLD, 32 << 20)  # the largest value that older versions accept
    libc.mallopt(MALLOC_TRIM_THRESHOLD, (1 << 31) - 1)
    _Allocator.keeps = True
    at_last(functools.partial(_return_freed_memory, libc, time.monotonic()))


def _return_freed_memory(libc: ctypes.CDLL, began: float) -> None:
    """Return freed memory to the kernel, now (after a long call) and later whenever much of it is free.

    Thresholds that were set once no longer adjust themselves. So they get the values to which glibc adjusts them in a
    program of large tensors; with its initial ones, 128 KiB, each later tensor of the host would be mapped anew.
    """
    libc.mallopt(MALLOC_MMAP_THRESHOLD, ADJUSTED)
    libc.mallopt(MALLOC_TRIM_THRESHOLD, 2 * ADJUSTED)
    if time.monotonic() - began > WORTH_TRIMMING:
        libc.malloc_trim(0)
    _Allocator.keeps = False
