"""Callbacks for the epochs of networks that train anywhere below in the call stack, as for progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[int, int], None]
"""Called after each epoch with its number, from 1 on, and the number of all epochs."""
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
"""The active watchers, for this thread only."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within this context call ``watcher`` after each epoch of any training."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def tell_watchers(epoch: int, epochs: int) -> None:
    """Call all watchers after an epoch."""
    for watcher in _watchers.get():
        watcher(epoch, epochs)
