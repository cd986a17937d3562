"""Checks of users' numbers and arguments, with messages that name them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mmdistill.errors import ConfigError, DataError, first_line
from mmdistill.names import in_words

LARGEST, LARGEST_WHOLE = 3e38, 2.0**62
"""The largest number and whole number of a run: float32 holds the first, int64 the second."""


def is_of(value: object, *kinds: type) -> bool:
    """Return whether a value has one of some types; a boolean is not a number."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def are_numbers(values: object, kind: type, count: int | None = None) -> bool:
    """Return whether ``values`` is a tuple or list of numbers of a kind, of length ``count`` if given."""
    if not isinstance(values, tuple | list) or count not in (None, len(values)):
        return False
    return all(is_of(value, kind) for value in values)


def require_at_least(owner: object, least: Mapping[str, float]) -> None:
    """Check that attributes are finite numbers of a least value; numpy's become Python's, which JSON can hold.

    Args:
        owner: the object with the attributes.
        least: the smallest value by name; an integer requires whole numbers.
    Raises:
        ConfigError: naming the first attribute that is not.
    """
    for name, lowest in least.items():
        value = getattr(owner, name)
        kind, words = (Integral, "a whole number") if isinstance(lowest, int) else (Real, "a number")
        if not is_of(value, kind) or not lowest <= value < math.inf:  # Python's integers beyond any float pass
            raise ConfigError(f"{name} is {words} of at least {lowest:g}, got {value!r}")
        if value > (LARGEST_WHOLE if isinstance(lowest, int) else LARGEST):
            raise ConfigError(f"{name} is too large, got {value!r}")
        value_type: type = type(value)
        if value_type not in (int, float) or value > LARGEST_WHOLE:
            object.__setattr__(owner, name, int(value) if isinstance(lowest, int) else float(value))


def require_positive(owner: object, *names: str) -> None:
    """Check that attributes are finite numbers above 0.

    Raises:
        ConfigError: naming the first attribute that is not.
    """
    require_at_least(owner, dict.fromkeys(names, 0.0))
    for name in names:
        if getattr(owner, name) == 0:
            raise ConfigError(f"{name} is above 0, got 0")


def require_below_one(owner: object, *names: str) -> None:
    """Check that attributes are numbers of at least 0 and below 1.

    Raises:
        ConfigError: naming the first attribute that is not.
    """
    require_at_least(owner, dict.fromkeys(names, 0.0))
    for name in names:
        if getattr(owner, name) >= 1:
            raise ConfigError(f"{name} is at least 0 and below 1, got {getattr(owner, name):g}")


def require_size(name: str, value: Any, largest: float = 1_000_000) -> None:
    """Check that a size is a whole number of at least 1.

    Args:
        name: the size's name for the error.
        value: the size.
        largest: the largest sensible value; by default more than any network's width or judge's epochs.

    Raises:
        ConfigError: naming it.
    """
    if not is_of(value, Integral) or value < 1:
        raise ConfigError(f"{name} is a whole number of at least 1, got {value!r}")
    if value > largest:
        raise ConfigError(f"{name} is at most {largest:,}, got {value:,}")


def require_sizes(largest: int = 1_000_000, /, **sizes: int | None) -> None:
    """Check sizes by name like :func:`require_size`; None stands for a default."""
    for name, value in sizes.items():
        if value is not None:
            require_size(name, value, largest)


def require_no_width(width: int | None, model: str) -> None:
    """Refuse a width for a model that takes none.

    Raises:
        ConfigError: naming the model.
    """
    if width is not None:
        raise ConfigError(f"{model} takes no width; leave it out")


def require_no_features(features: str | Sequence[str], model: str) -> None:
    """Refuse names of submodules for a model with features of its own.

    Raises:
        ConfigError: naming the model.
    """
    if features:
        raise ConfigError(f"features name submodules of a module of your own, and {model} takes none; leave them out")


def require_left_out(known: str, **given: object) -> None:
    """Refuse arguments that would change nothing; None stands for one that is left out.

    Args:
        known: why they would change nothing, in words.
        given: the arguments by name.

    Raises:
        ConfigError: naming the given arguments.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"{known}; leave {in_words(names)} out")


def require_kind(kind: type, **values: object) -> None:
    """Check the type of values; None stands for a default.

    Raises:
        ConfigError: naming the first value of another type.
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, kind):
            words = "True or False" if kind is bool else f"a {kind.__name__}"
            raise ConfigError(f"{name} is {words}, got {value!r}")


def require_made(what: str, result: object, expected: type) -> None:
    """Refuse a function's result of another type than the method needs.

    Args:
        what: the result in words, for the error.
        result: of the function.
        expected: its type.
    Raises:
        ConfigError: naming both types.
    """
    if not isinstance(result, expected):
        raise ConfigError(f"{what} is of type {type(result).__name__}, where a method needs {expected.__name__}")


@contextmanager
def refuse_missing_settings(whose: str, settings: object) -> Iterator[None]:
    """Within this context a setting that is read and that ``settings`` lack is refused.

    Args:
        whose: the method, for the message.
        settings: of another class than the method's, perhaps.
    Raises:
        ConfigError: naming the setting.
    """
    try:
        yield
    except AttributeError as error:
        if error.obj is not settings:
            raise
        raise ConfigError(
            f"{whose} reads the setting {error.name!r}, which these settings lack; change those of the method by "
            "method.with_settings(steps=3)"
        ) from error


def require_centroids(init: str, *others: str) -> None:
    """Check the start of samples that can only start as k-means centroids of their class, or from ``others``.

    Args:
        init: the given start.
        others: further starts that they support.

    Raises:
        ConfigError: another start.
    """
    if init not in ("k-means", *others):
        also = f" or as {' or '.join(others)}" if others else ""
        raise ConfigError(f"these samples start as the k-means centroids of their class{also}; leave --init {init} out")


def require_checkpoint_every(steps: int) -> None:
    """Check the number of steps between checkpoints.

    Raises:
        ConfigError: not a whole number of at least 0.
    """
    if not is_of(steps, Integral) or steps < 0:
        raise ConfigError(f"checkpoint_every is a number of steps, or 0 for a tenth of the run, got {steps}")


def has_type(value: object, kind: Any) -> bool:
    """Return whether a value from a file has the type of a field's annotation."""
    if get_origin(kind) in (UnionType, Union):
        return any(has_type(value, member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)


def item_by_number(source: Any, index: int, is_none: str, item: str) -> Any:
    """Return one item of a map-style data set, which has a length and items 0, 1 and so on.

    Args:
        source: an object with a length and items.
        index: the item's number.
        is_none: what the message begins with, "Corpus is no table".
        item: what a data set's items are.
    Raises:
        DataError: it does not give the item.
    """
    try:
        return source[index]
    except (LookupError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{is_none}, and a data set gives each {item} by number from 0, but item {index} failed "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def items_by_number(source: Any, is_none: str, item: str) -> list[Any]:
    """Return all items of a map-style data set, see :func:`item_by_number`."""
    return [item_by_number(source, index, is_none, item) for index in range(len(source))]
