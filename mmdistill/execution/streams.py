"""CUDA streams, on which several networks are computed side by side on one device."""

import functools
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle

import torch

STREAMS = 4
"""Networks of the field's usual size that a large device can train side by side."""
TORCHS_STREAMS = 32
"""Streams of a device that torch hands out in turn."""
_TAKEN: dict[torch.device, set[int]] = defaultdict(set)
"""Handles of torch's streams that are in use here."""
_SPARE: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
"""Streams that were lent to owners which are gone."""


@contextmanager
def side_streams(device: torch.device) -> Iterator[Iterator[AbstractContextManager[object]]]:
    """Yield an endless iterator of contexts, each of which launches on the next stream; without CUDA they do nothing.

    All streams start after earlier launches, and later launches wait for all streams. So memory that one stream frees
    is not used by another too early.
    """
    if device.type != "cuda":
        yield cycle([nullcontext()])
        return
    current = torch.cuda.current_stream(device)
    streams = [kept_stream(device, index) for index in range(STREAMS)]
    for stream in streams:
        stream.wait_stream(current)
    try:
        yield (torch.cuda.stream(stream) for stream in cycle(streams))
    finally:
        for stream in streams:
            current.wait_stream(stream)


@functools.cache
def kept_stream(device: torch.device, use: int) -> torch.cuda.Stream:
    """Return a device's stream for one use, always the same one, since only it can reuse the memory that it freed."""
    return _new_stream(device)


def lent_stream(device: torch.device, owner: object) -> torch.cuda.Stream:
    """Return a device's stream that belongs to ``owner`` for as long as it lives."""
    spare = _SPARE[device]
    stream = spare.pop() if spare else _new_stream(device)
    weakref.finalize(owner, spare.append, stream)
    return stream


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream that is not in use here, if torch has one left."""
    for _ in range(TORCHS_STREAMS):
        stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        if stream.cuda_stream not in _TAKEN[device]:
            break
    _TAKEN[device].add(stream.cuda_stream)
    return stream
