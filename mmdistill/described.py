"""What an objective and a network schedule are, as plain values: by these, runs of one name are told apart."""

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from numbers import Integral, Real
from pathlib import PurePath

import torch
from torch import nn

OF_MODULES = frozenset(vars(nn.Module()))
"""What torch keeps in every module, beside what its class says of itself."""


def described(made: object) -> dict[str, object]:
    """Return an object's class and its own plain attributes, by name; nothing of where it lies in memory.

    Numbers, texts, booleans and None are as they are, in tuples, lists and mappings too. Dataclasses are described
    likewise, without fields that do not count when two are compared; so are modules that hold no others, and
    objectives within an objective. Of partial functions their arguments count. Anything else is the name of its class
    or, of a function, its own. Private attributes (``_name``) are what is kept, not what is set, and do not count.

    Args:
        made: an objective or a schedule, as it was made: before it draws or learns.
    """
    values = {name: value for name, value in {**_of_classes(made), **_own(made)}.items() if not name.startswith("_")}
    return {"class": type(made).__name__, **{name: _plain(values[name]) for name in sorted(values)}}


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
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Enum | torch.dtype | PurePath):
        return str(value)
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
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
