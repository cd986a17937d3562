"""Isolation of public calls from the torch settings of the host program, and of the host from those of the calls.

A public call runs with torch's own defaults: tensors are float32 and on the CPU unless a device is named, gradients are
recorded, autocast is off, and float32 is computed as :data:`~mmdistill.execution.precision.PLAIN` says. So one seed
gives one result in any host program.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mmdistill.execution.precision import choose_plain

P = ParamSpec("P")
R = TypeVar("R")

CAST_ON = ("cpu", "cuda")
"""The types of devices on which calls run and a host may have turned on autocast."""


class _Calls:
    """The number of open public calls, and the functions that undo their settings when the last call ends."""

    def __init__(self) -> None:
        self.count = 0
        self.undo: list[Callable[[], None]] = []

    def end(self) -> None:
        """Close a call."""
        self.count -= 1
        while not self.count and self.undo:
            self.undo.pop()()


class _CallsOfThread(_Calls, threading.local):
    """The calls of the current thread, and the locks of tasks whose turn it has, by the tasks' ids."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: dict[int, Any] = {}


_open, _lock = _Calls(), threading.RLock()
"""The calls of all threads, changed only under the lock."""
_open_here = _CallsOfThread()
_turns: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Locks of the tasks that open calls use, by the tasks' ids; changed only under the lock."""


def at_last(undo: Callable[[], None]) -> None:
    """Call ``undo`` when the last open public call ends; if none is open, when the next ones have ended."""
    _open.undo.append(undo)


def at_last_here(undo: Callable[[], None]) -> None:
    """Call ``undo`` when the last open public call of this thread ends."""
    _open_here.undo.append(undo)


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Return a public function that runs within :func:`own_state`, whatever its caller has set."""

    @functools.wraps(function)
    def in_own_state(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_state():
            return function(*args, **kwargs)

    return in_own_state


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Return a public function for which threads that share a task, its first argument, wait for one another.

    A task's network holds one network's tensors at a time. Calls within a call do not wait for it, and within
    :func:`turns_let_go` no other thread does. A call waits forever if other code of a user's that it runs, such as a
    baseline, waits for another thread with its task, or if such code in two threads calls for each other's task.
    """

    @functools.wraps(function)
    def once_it_is_free(*args: P.args, **kwargs: P.kwargs) -> R:
        with _turn_of(args[0] if args else kwargs.get("task")):
            return function(*args, **kwargs)

    return once_it_is_free


@contextmanager
def _turn_of(task: object) -> Iterator[None]:
    """Within this context it is this thread's turn to use a task; wait until no other thread uses it."""
    if id(task) in _open_here.turns:
        yield
        return
    with _lock:
        turn = _turns.setdefault(id(task), threading.Lock())
    _take({id(task): turn})
    try:
        yield
    finally:
        if _open_here.turns.pop(id(task), None):  # None: interrupted while it waited for the turn again
            turn.release()


@contextmanager
def turns_let_go() -> Iterator[None]:
    """Within this context other threads may use the tasks of this thread's calls, whose networks hold no tensors."""
    turns = dict(_open_here.turns)
    _open_here.turns.clear()
    for turn in turns.values():
        turn.release()
    try:
        yield
    finally:
        _take(turns)


def _take(turns: dict[int, Any]) -> None:
    """Wait for the turns of tasks, one after the other."""
    for task_id, turn in turns.items():
        turn.acquire()
        _open_here.turns[task_id] = turn


def _forget_other_threads() -> None:
    """Make the locks new in a forked process, which has no thread to release those that others held."""
    global _lock
    _lock = threading.RLock()
    _turns.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_other_threads)


def recordable(tensor: Tensor) -> Tensor:
    """Return a user's tensor that autograd can record; an inference tensor is copied."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def own_state() -> Iterator[None]:
    """Within this context torch has its defaults; the caller's settings return afterwards. It may be nested.

    Only settings that differ are changed: if a host sets nothing, this costs no time, and compiled code stays valid.
    """
    with ExitStack() as stack:
        stack.enter_context(_process_settings())
        stack.enter_context(_thread_settings())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in CAST_ON:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _process_settings() -> Iterator[None]:
    """Set the defaults that all threads share when the first call begins; restore them when the last one ends."""
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
def _thread_settings() -> Iterator[None]:
    """Restore the settings that this thread's calls changed for the thread when the last of them ends."""
    _open_here.count += 1
    try:
        yield
    finally:
        _open_here.end()
