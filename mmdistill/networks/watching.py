"""Lets whoever shows progress follow the epochs of networks that train somewhere below."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[int, int], None]
"""Called after each epoch with its number and how many there are."""
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
"""Of this thread alone."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let a watcher follow whatever trains meanwhile, without a hand in it."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def tell_watchers(epoch: int, epochs: int) -> None:
    """Tell all watchers that an epoch is over."""
    for watcher in _watchers.get():
        watcher(epoch, epochs)
