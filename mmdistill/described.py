"""Objectives and network schedules as plain values, which tell runs of one name apart.

Users may edit their functions and classes without renaming them, so these are identified by digests of their code.
"""

import hashlib
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from inspect import isfunction, ismethod
from numbers import Integral, Real
from pathlib import PurePath
from types import CodeType, FunctionType

import torch
from torch import Tensor, nn

from mmdistill.store import digest_of

LIBRARIES = ("builtins", "mmdistill", "torch", "torch_geometric", "torchvision", "transformers")
"""Packages whose functions and classes are identified by name; those of others are a user's, who may edit them."""

OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that torch adds to every module."""


def described(part: object) -> dict[str, object]:
    """Return an object's class and its plain attributes by name, the same in any process.

    Numbers, texts, booleans and None stay as they are, in tuples, lists and mappings too. Dataclasses are described
    recursively, without fields excluded from comparison; so are modules without children, and objectives within an
    objective. Partial functions are described with their arguments, methods with their object, a user's lambdas by a
    digest of their code. Anything else is described by the name of its class or function.
    Private attributes (``_name``) hold state, not configuration, and are left out.

    Args:
        part: an objective or a schedule, before it draws or learns.
    """
    values = {name: value for name, value in {**_of_classes(part), **_own(part)}.items() if not name.startswith("_")}
    return {"class": type(part).__name__, **{name: _plain(values[name]) for name in sorted(values)}}


def _own(part: object) -> dict[str, object]:
    """Return an object's attributes, without the tensors of modules, which are drawn or learned."""
    if is_dataclass(part):
        return {entry.name: getattr(part, entry.name, None) for entry in fields(part) if entry.compare}
    attributes = {name: value for name, value in getattr(part, "__dict__", {}).items() if name not in OF_MODULES}
    return attributes | dict(part.named_children()) if isinstance(part, nn.Module) else attributes


def _of_classes(part: object) -> dict[str, object]:
    """Return the plain attributes of an object's classes, but for those of abstract base classes.

    The latter are flags on how a run computes, not on what.
    """
    classes = type(part).__mro__
    contract = {name for kind in classes if ABC in kind.__bases__ or kind is nn.Module for name in dir(kind)}
    return {
        name: getattr(part, name)
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
    if ismethod(value):
        return [_plain(value.__self__), value.__name__]
    if isfunction(value) and value.__name__ == "<lambda>" and is_users(value):
        return f"lambda {code_digest(value)}"
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    simple = isinstance(value, nn.Module) and (isinstance(value, ABC) or not list(value.children()))
    if simple or (is_dataclass(value) and not isinstance(value, type)):
        return described(value)
    return str(getattr(value, "__name__", type(value).__name__))


def is_users(definition: type | FunctionType) -> bool:
    """Return whether a class or function is a user's, outside of :data:`LIBRARIES`."""
    return (definition.__module__ or "").partition(".")[0] not in LIBRARIES


def code_digest(definition: type | FunctionType) -> str:
    """Return a digest of the code of a function, or of a class's own functions: the same in any process."""
    functions = vars(definition) if isinstance(definition, type) else {"": definition}
    values = {name: _computed(function) for name, function in functions.items() if isfunction(function)}
    return hashlib.blake2b(repr(sorted(values.items())).encode(), digest_size=4).hexdigest()


def code_value(value: object) -> object:
    """Return a constant of a code object, or an attribute, as plain values; other objects by their type.

    Sets, whose order varies between processes, are sorted; functions become their code, tensors a digest.
    """
    if isinstance(value, CodeType):
        return _code(value)
    if isfunction(value):
        return value.__qualname__, _computed(value)
    if isinstance(value, Tensor):
        return digest_of({"value": value.detach().cpu()})
    if isinstance(value, partial):
        return code_value([value.func, value.args, value.keywords])
    if isinstance(value, set | frozenset):
        return sorted(repr(code_value(entry)) for entry in value)
    if isinstance(value, list | tuple):
        return [code_value(entry) for entry in value]
    if isinstance(value, dict):
        return [(code_value(key), code_value(entry)) for key, entry in value.items()]
    if value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _code(code: CodeType) -> tuple[object, ...]:
    """Return a code object as plain values, the same in any process."""
    return code.co_code, code.co_names, [code_value(value) for value in code.co_consts]


def _computed(function: FunctionType) -> tuple[object, ...]:
    """Return a function's code, with its defaults and the variables of its closure."""
    defaults = [code_value(value) for value in (function.__defaults__, function.__kwdefaults__) if value]
    return _code(function.__code__), *defaults, *_enclosed(function)


def _enclosed(function: FunctionType) -> list[object]:
    """Return the variables of a function's closure by name; functions, which may be recursive, become their names."""
    variables: list[object] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it is not set yet
            continue
        if name == "__class__":  # super() reads it
            continue
        variables.append((name, value.__qualname__ if isfunction(value) else code_value(value)))
    return variables
