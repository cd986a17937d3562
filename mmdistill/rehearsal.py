"""Rehearsals: a run's samples are built without long computations, so that its errors come before these.

Functions that train something on the way to a run's samples test :func:`is_rehearsal`, and return an untrained
substitute of the same form in a rehearsal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_rehearsing = ContextVar("rehearsing", default=False)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Within this context :func:`is_rehearsal` is true."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def is_rehearsal() -> bool:
    """Return whether samples are built only as a check, so that any values of the right form will do."""
    return _rehearsing.get()
