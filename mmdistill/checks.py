"""Checks of the numbers and arguments that users give, in words that name them."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mmdistill.errors import ConfigError
from mmdistill.names import in_words

LARGEST, LARGEST_WHOLE = 3e38, 2.0**62
"""What no number of a run exceeds, and no whole one: float32 holds the first, int64 the second."""


def is_of(value: object, *kinds: type) -> bool:
    """Return whether a value is of some types; booleans are no numbers."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def are_numbers(values: object, kind: type, count: int | None = None) -> bool:
    """Return whether something is a tuple or list of numbers of a kind, and of so many where a count is given."""
    if not isinstance(values, tuple | list) or count not in (None, len(values)):
        return False
    return all(is_of(value, kind) for value in values)


def require_at_least(owner: object, least: Mapping[str, float]) -> None:
    """Refuse numbers that are too small, infinite or none at all; those of numpy become Python's, which JSON holds.

    Args:
        owner: whose attributes they are.
        least: the smallest value by name; an integer asks for whole numbers.
    Raises:
        ConfigError: naming the first such number.
    """
    for name, lowest in least.items():
        value = getattr(owner, name)
        kind, words = (Integral, "a whole number") if isinstance(lowest, int) else (Real, "a number")
        if not is_of(value, kind) or not lowest <= value < math.inf:  # which takes whole numbers beyond any float
            raise ConfigError(f"{name} is {words} of at least {lowest:g}, got {value!r}")
        if value > (LARGEST_WHOLE if isinstance(lowest, int) else LARGEST):
            raise ConfigError(f"{name} is too large, got {value!r}")
        kept: type = type(value)
        if kept not in (int, float) or value > LARGEST_WHOLE:
            object.__setattr__(owner, name, int(value) if isinstance(lowest, int) else float(value))


def require_positive(owner: object, *names: str) -> None:
    """Refuse attributes that are no finite numbers above 0.

    Raises:
        ConfigError: naming the first such number.
    """
    require_at_least(owner, dict.fromkeys(names, 0.0))
    for name in names:
        if getattr(owner, name) == 0:
            raise ConfigError(f"{name} is above 0, got 0")


def require_below_one(owner: object, *names: str) -> None:
    """Refuse attributes that are no numbers of at least 0 and below 1.

    Raises:
        ConfigError: naming the first such number.
    """
    require_at_least(owner, dict.fromkeys(names, 0.0))
    for name in names:
        if getattr(owner, name) >= 1:
            raise ConfigError(f"{name} is at least 0 and below 1, got {getattr(owner, name):g}")


def require_size(name: str, value: Any, largest: float = 1_000_000) -> None:
    """Refuse a size that is no whole number of at least 1.

    Args:
        name: what it is called.
        value: the size.
        largest: what is above it is a slip: no network is so wide, and no judge trains for so many epochs.

    Raises:
        ConfigError: naming it.
    """
    if not is_of(value, Integral) or value < 1:
        raise ConfigError(f"{name} is a whole number of at least 1, got {value!r}")
    if value > largest:
        raise ConfigError(f"{name} is at most {largest:,}, got {value:,}")


def require_sizes(largest: int = 1_000_000, /, **sizes: int | None) -> None:
    """Refuse sizes by name as :func:`require_size` does; None stands for a default."""
    for name, value in sizes.items():
        if value is not None:
            require_size(name, value, largest)


def require_no_width(width: int | None, model: str) -> None:
    """Refuse a width beside a model that takes none.

    Raises:
        ConfigError: naming the model.
    """
    if width is not None:
        raise ConfigError(f"{model} takes no width; leave it out")


def require_no_features(features: str | Sequence[str], model: str) -> None:
    """Refuse names of submodules beside a model whose features are its own.

    Raises:
        ConfigError: naming the model.
    """
    if features:
        raise ConfigError(f"features name submodules of a module of your own, and {model} takes none; leave them out")


def require_left_out(known: str, **given: object) -> None:
    """Refuse arguments that would change nothing; None stands for one that is left out.

    Args:
        known: why they would not, in words.
        given: the arguments by name.

    Raises:
        ConfigError: naming those that are given.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"{known}; leave {in_words(names)} out")


def require_kind(kind: type, **values: object) -> None:
    """Refuse values of another type; None stands for a default.

    Raises:
        ConfigError: naming the first such value.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, kind):
            wanted = "True or False" if kind is bool else f"a {kind.__name__}"
            raise ConfigError(f"{name} is {wanted}, got {value!r}")


def require_centroids(init: str, *others: str) -> None:
    """Refuse a start of samples that begin as the k-means centroids of their class.

    Args:
        init: the start that is asked for.
        others: those that they know as well.

    Raises:
        ConfigError: it is none of them.
    """
    if init not in ("k-means", *others):
        also = f" or as {' or '.join(others)}" if others else ""
        raise ConfigError(f"these samples start as the k-means centroids of their class{also}; leave --init {init} out")


def require_checkpoint_every(steps: int) -> None:
    """Refuse what is no number of steps between checkpoints.

    Raises:
        ConfigError: naming it.
    """
    if not is_of(steps, Integral) or steps < 0:
        raise ConfigError(f"checkpoint_every is a number of steps, or 0 for a tenth of the run, got {steps}")


def has_type(value: object, kind: Any) -> bool:
    """Return whether a value that a file holds is of a field's type, as its annotation says it."""
    if get_origin(kind) in (UnionType, Union):
        return any(has_type(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)
