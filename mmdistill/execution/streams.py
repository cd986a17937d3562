"""Work of several networks side by side on one device."""

import functools
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle

import torch

STREAMS = 4
"""Networks of the field's size that a large device can train side by side."""
TORCHS_STREAMS = 32
"""Those of a device that torch hands out in turn, again and again."""
_TAKEN: dict[torch.device, set[int]] = defaultdict(set)
"""Which of them serve something here."""
_SPARE: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
"""Streams that were lent, and whose owners are gone."""


@contextmanager
def side_streams(device: torch.device) -> Iterator[Iterator[AbstractContextManager[object]]]:
    """Give contexts in which launches go to one stream after the other; elsewhere than on CUDA they do nothing.

    All streams start after what was launched before, and what is launched afterwards waits for all of them. So memory
    that one of them frees is not used by another too early.
    """
    if device.type != "cuda":
        yield cycle([nullcontext()])
        return
    own = torch.cuda.current_stream(device)
    streams = [kept_stream(device, index) for index in range(STREAMS)]
    for stream in streams:
        stream.wait_stream(own)
    try:
        yield (torch.cuda.stream(stream) for stream in cycle(streams))
    finally:
        for stream in streams:
            own.wait_stream(stream)


@functools.cache
def kept_stream(device: torch.device, use: int) -> torch.cuda.Stream:
    """Return a device's stream for one use, the same one each time, since memory that it freed is its own."""
    return _new_stream(device)


def lent_stream(device: torch.device, owner: object) -> torch.cuda.Stream:
    """Return a device's stream that is an object's own for as long as it lives."""
    spare = _SPARE[device]
    stream = spare.pop() if spare else _new_stream(device)
    weakref.finalize(owner, spare.append, stream)
    return stream


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream that serves nothing else here, as long as torch has such a one."""
    for _ in range(TORCHS_STREAMS):
        stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        if stream.cuda_stream not in _TAKEN[device]:
            break
    _TAKEN[device].add(stream.cuda_stream)
    return stream
