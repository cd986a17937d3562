"""Values that hold within a context, for all that is called there."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Within this context a variable has the given value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
