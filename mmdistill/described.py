"""What an objective and a network schedule are, as plain values: by these, runs of one name are told apart."""

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

from torch import nn

OF_MODULES = frozenset(vars(nn.Module()))
"""What torch keeps in every module, beside what its class says of itself."""


def described(made: object) -> dict[str, object]:
    """Return an object's class and its own plain attributes, by name; nothing of where it lies in memory.

    Numbers, texts, booleans and None are as they are, in tuples, lists and mappings too. Dataclasses are described
    likewise, without fields that do not count when two are compared; so are modules that hold no others, and
    objectives within an objective. Anything else is the name of its class or, of a function, its own.

    Args:
        made: an objective or a schedule, as it was made: before it draws or learns.
    """
    found = {name: _plain(value) for name, value in sorted({**_of_classes(made), **_own(made)}.items())}
    return {"class": type(made).__name__, **found}


def _own(made: object) -> dict[str, object]:
    """Return an object's attributes; tensors of modules aside, which are drawn or learned."""
    if is_dataclass(made):
        return {entry.name: getattr(made, entry.name, None) for entry in fields(made) if entry.compare}
    found = {name: value for name, value in getattr(made, "__dict__", {}).items() if name not in OF_MODULES}
    return found | dict(made.named_children()) if isinstance(made, nn.Module) else found


def _of_classes(made: object) -> dict[str, object]:
    """Return the plain attributes of an object's classes; of a contract, flags say how a run computes, not what."""
    classes = type(made).__mro__
    contract = {name for kind in classes if ABC in kind.__bases__ or kind is nn.Module for name in dir(kind)}
    return {
        name: getattr(made, name)
        for kind in classes
        for name, value in vars(kind).items()
        if name not in contract and not name.startswith("__") and isinstance(value, (Real, str, tuple))
    }


def _plain(value: object) -> object:
    """Return a value as JSON can hold it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    simple = isinstance(value, nn.Module) and (isinstance(value, ABC) or not list(value.children()))
    if simple or (is_dataclass(value) and not isinstance(value, type)):
        return described(value)
    return str(getattr(value, "__name__", type(value).__name__))
