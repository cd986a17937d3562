"""Callbacks for the epochs of networks that train anywhere below in the call stack, as for progress bars."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar

from mmdistill.contexts import holding

Watcher = Callable[[int, int], None]
"""Called after each epoch with its number, from 1 on, and the number of all epochs."""
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
"""The active watchers, for this thread only."""


def watching(watcher: Watcher) -> AbstractContextManager[None]:
    """Within this context call ``watcher`` after each epoch of any training."""
    return holding(_watchers, (*_watchers.get(), watcher))


def tell_watchers(epoch: int, epochs: int) -> None:
    """Call all watchers after an epoch."""
    for watcher in _watchers.get():
        watcher(epoch, epochs)
