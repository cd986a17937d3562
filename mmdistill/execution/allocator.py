"""Memory that a process has freed: kept for its next tensors while public calls run, and then given back."""

import ctypes
import functools
import time

from mmdistill.execution.isolation import at_last

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3
"""glibc's names for two settings of its allocator, from malloc.h."""
ADJUSTED = 32 << 20
"""The size of blocks, in bytes, up to which glibc by itself comes to keep what is freed, where large ones are."""
WORTH_TRIMMING = 1.0
"""Seconds of a call from which all that is free goes back at once, which takes a fifth of one on a large heap."""


class _Allocator:
    """Whether glibc keeps what is freed, as :func:`keep_freed_memory` has it."""

    keeps = False


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, instead of returning it to the kernel each time.

    A step on the CPU allocates the same tensors over and over. By default glibc maps every large one afresh, and the
    kernel clears its pages first, which takes up to half of a step. Nothing happens without glibc.

    It ends with the outermost public call, so that a host has its memory back.
    """
    if _Allocator.keeps:
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    if not libc.mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30):
        libc.mallopt(MALLOC_MMAP_THRESHOLD, 32 << 20)  # the most that older ones take
    libc.mallopt(MALLOC_TRIM_THRESHOLD, (1 << 31) - 1)
    _Allocator.keeps = True
    at_last(functools.partial(_return_freed_memory, libc, time.monotonic()))


def _return_freed_memory(libc: ctypes.CDLL, began: float) -> None:
    """Give memory back to the kernel, now and whenever much of it is freed.

    Thresholds that have been set no longer adjust themselves, so they get the values that they come to in a program of
    large tensors; with those that they begin with, 128 KiB, each tensor of a host would be mapped afresh from now on.
    """
    libc.mallopt(MALLOC_MMAP_THRESHOLD, ADJUSTED)
    libc.mallopt(MALLOC_TRIM_THRESHOLD, 2 * ADJUSTED)
    if time.monotonic() - began > WORTH_TRIMMING:
        libc.malloc_trim(0)
    _Allocator.keeps = False
