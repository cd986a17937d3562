"""Rehearsals: samples are built as a run builds them, but for what takes long, so that what it refuses is told first.

Whatever trains on the way to a run's samples asks :func:`is_rehearsal`, and gives something of the same kind instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_rehearsing = ContextVar("rehearsing", default=False)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Rehearse inside."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def is_rehearsal() -> bool:
    """Return whether samples are built to be looked at and thrown away: of the same kind, with any values."""
    return _rehearsing.get()
