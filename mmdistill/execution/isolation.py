"""What a host program has set of torch does not reach into public calls, and what these set ends with them.

A public call runs with torch's own defaults: tensors are float32 and on the CPU unless a device is named, gradients are
recorded, nothing is cast, and float32 is computed as :data:`~mmdistill.execution.precision.PLAIN` says. So one seed
gives one result, whatever program the call is a part of.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from mmdistill.execution.precision import choose_plain

P = ParamSpec("P")
R = TypeVar("R")

CAST_ON = ("cpu", "cuda")
"""The types of devices on which calls run, and a host may have its tensors cast."""


class _Calls:
    """The public calls that are open, and what is put back when the last one ends."""

    def __init__(self) -> None:
        self.count = 0
        self.undo: list[Callable[[], None]] = []

    def end(self) -> None:
        """Close a call."""
        self.count -= 1
        while not self.count and self.undo:
            self.undo.pop()()


class _CallsOfThread(_Calls, threading.local):
    """Those of each thread, which sees its own alone."""


_open, _lock = _Calls(), threading.RLock()
"""The calls of all threads, which change under the lock."""
_open_here = _CallsOfThread()


def at_last(undo: Callable[[], None]) -> None:
    """Let something be undone when the last open public call ends; if none is open, that of the next ones."""
    _open.undo.append(undo)


def at_last_here(undo: Callable[[], None]) -> None:
    """Let something be undone when the last open public call of this thread ends."""
    _open_here.undo.append(undo)


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Return a public function that runs in the state of :func:`own_state`, whatever its caller has set."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_state():
            return function(*args, **kwargs)

    return alone


def recordable(tensor: Tensor) -> Tensor:
    """Return a tensor of the user's that gradients may be recorded with: a copy, of one that was made for inference."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def own_state() -> Iterator[None]:
    """Give torch's defaults to what runs inside, and the caller's settings back afterwards; it may be nested.

    Only what differs is set, so that nothing costs time, and compiled code is found again, where a host sets nothing.
    """
    with ExitStack() as held:
        held.enter_context(_of_the_process())
        held.enter_context(_of_this_thread())
        if torch.is_inference_mode_enabled():
            held.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            held.enter_context(torch.enable_grad())
        for kind in CAST_ON:
            if torch.is_autocast_enabled(kind):
                held.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            held.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _of_the_process() -> Iterator[None]:
    """Set what all threads share when the first call of any of them begins, and put it back when the last one ends."""
    with _lock:
        if not _open.count and (dtype := torch.get_default_dtype()) is not torch.float32:
            torch.set_default_dtype(torch.float32)
            at_last(functools.partial(torch.set_default_dtype, dtype))
        if not _open.count and (restore := choose_plain()) is not None:
            at_last(restore)
        _open.count += 1
    try:
        yield
    finally:
        with _lock:
            _open.end()


@contextmanager
def _of_this_thread() -> Iterator[None]:
    """Put back what calls of this thread have set for it alone when the last of them ends."""
    _open_here.count += 1
    try:
        yield
    finally:
        _open_here.end()
