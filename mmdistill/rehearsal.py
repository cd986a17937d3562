"""Rehearsals: a run's samples are built without long computations, so that its errors come before these.

Functions that train something on the way to a run's samples test :func:`is_rehearsal`, and return an untrained
substitute of the same form in a rehearsal.
"""

from contextlib import AbstractContextManager
from contextvars import ContextVar

from mmdistill.contexts import holding

_rehearsing = ContextVar("rehearsing", default=False)


def rehearsal() -> AbstractContextManager[None]:
    """Within this context :func:`is_rehearsal` is true."""
    return holding(_rehearsing, True)


def is_rehearsal() -> bool:
    """Return whether samples are built only as a check, so that any values of the right form will do."""
    return _rehearsing.get()
