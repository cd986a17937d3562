"""Objectives and network schedules as plain values, which tell runs of one name apart.

Users may edit their functions and classes without renaming them, so these are identified by digests of their code.
"""

import json
import math
import re
from abc import ABC
from argparse import Namespace
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial
from inspect import isfunction, ismethod
from numbers import Integral, Real
from pathlib import PurePath
from types import FunctionType, MemberDescriptorType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdistill.code_digests import (
    code_digest,
    code_value,
    digest_of_tensors,
    enclosed_variables,
    functions_of,
    is_edited,
    is_users,
    unwrapped,
)
from mmdistill.store import short_digest

OWN_CODE = "own code"
OWN_LAYERS = "own layers"
OWN_TENSORS = "own tensors"
OWN_VALUES = "own values"
"""Keys in a description: digests of a user's code, of the layers of a module, of tensors and of long values; the last
also of what a function encloses. No attribute has such a name."""

DEEPEST = 30
"""Levels of objects within one another that are described; what lies deeper is named."""
REPEATED = 3_000
"""Characters of a description that is written again where its object comes again; a longer one is not."""
LONGEST = 100_000
"""Characters of a description; a longer one is replaced by its digest."""
MANY = 20_000
"""Numbers of a list from which it is replaced by its digest."""
NAMED_BY_TEXT = (torch.device, complex, range, slice, bytes, bytearray, date, timedelta, Decimal, re.Pattern)
"""Types whose values are identified by their texts, beside their class."""
OF_CLASSES = (list, dict, set, frozenset, np.ndarray, Tensor)
"""Types of attributes of a user's class that count beside numbers, texts and tuples."""
IN_CODE = (bool, int, float, complex, str, bytes, type(None))
"""Types of values in a function that the digest of its code holds, as it does names."""

OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that torch adds to every module."""


def described(part: object) -> dict[str, object]:
    """Return an object's class and its plain attributes by name, the same in any process.

    Numbers, texts, booleans and None stay as they are, in tuples, lists, sets and mappings too. Dataclasses are
    described recursively, without fields excluded from comparison; so are objects of users' classes, namespaces, and
    objectives within an objective. Partial functions are described with their arguments, methods with their object,
    tensors, arrays, tables and long lists by a digest, modules with layers of their own by digests of these and of
    their tensors. A user's functions and classes come with a digest of their code and with what it lacks of the values
    that they hold, and a user's modules with one of their own tensors. Anything else is described by the name of its
    class or function; so are objects of installed packages, what an object holds of itself, and what lies deeper than
    :data:`DEEPEST`.
    Private attributes (``_name``) hold state, not configuration, and are left out.

    Args:
        part: an objective or a schedule, before it draws or learns.
    """
    return _Walk().described(part)


def described_value(value: object) -> object:
    """Return an attribute's value, or a function, as JSON can hold it; see :func:`described`."""
    return _Walk().value(value)


class _Walk:
    """Describes values that hold one another, each once: a long one that comes again is only named, with a digest.

    Args:
        depth: at which the walk begins.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._met: dict[int, tuple[object, object]] = {}  # values by id, with what stands for them from now on

    def described(self, part: object) -> dict[str, object]:
        """Return the description of an object, see :func:`described`."""
        self._met.setdefault(id(part), (part, type(part).__name__))
        values = {**_of_classes(part), **own_attributes(part)}
        code = self._code(*type(part).__mro__)
        if code and is_dataclass(part):
            of_fields = {entry.name for entry in fields(part)}
            values |= {name: value for name, value in set_attributes(part).items() if name not in of_fields}
        attributes = {name: self.value(values[name]) for name in sorted(values) if name[0] != "_"}
        tensors = _tensors(part, recurse=False) if code and isinstance(part, nn.Module) else {}
        return {"class": type(part).__name__, **code, **_content(tensors), **attributes}

    def value(self, value: object) -> object:
        """Return the description of a value, see :func:`described_value`."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str | Enum | torch.dtype | PurePath):
            return str(value)
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            return float(value) if math.isfinite(value) else str(float(value))
        name = _name(value)
        if id(value) in self._met:
            return self._met[id(value)][1]
        if self._depth >= DEEPEST:
            return name
        self._met[id(value)] = value, name
        self._depth += 1
        description = self._composed(value, name)
        self._depth -= 1
        text = json.dumps(description)
        brief = {"class": name, OWN_VALUES: short_digest(text)} if len(text) > REPEATED else description
        self._met[id(value)] = value, brief
        return description if len(text) <= LONGEST else brief

    def _composed(self, value: object, name: str) -> object:
        """Return the description of a value that is no number or text; ``name`` is its own or its class's."""
        if isinstance(value, partial):
            return [self.value(entry) for entry in (value.func, value.args, value.keywords)]
        if ismethod(value):
            return [self.value(value.__self__), value.__name__]
        if isinstance(value, deque):
            return {"class": name, "value": self.value([*value])}
        if isinstance(value, tuple | list):
            return _digest_of_numbers(value, name) or [self.value(entry) for entry in value]
        if isinstance(value, Mapping):
            return {str(key): self.value(entry) for key, entry in value.items()}
        if isinstance(value, set | frozenset):  # a walk for each entry, since their order varies between processes
            entries = [_Walk(self._depth + DEEPEST // 2).value(entry) for entry in value]
            return {"class": name, "value": sorted(entries, key=json.dumps)}
        if isinstance(value, NAMED_BY_TEXT):
            return {"class": name, "value": str(value)}
        if isinstance(value, np.generic):
            return {"class": name, "value": self.value(value.item())}
        if isinstance(value, type):
            return {"class": name, **self._code(*value.__mro__)} if is_edited(value) else name
        value = unwrapped(value)
        if isfunction(value) and is_edited(value):
            return {"class": name, **self._code(value)}
        return self._object(value, name) if has_content(value) else name

    def _object(self, value: object, name: str) -> object:
        """Return the description of an object that its content identifies."""
        if isinstance(value, Tensor):
            return {"class": name, **_content({"value": value})}
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "biufc":
                return {"class": name, OWN_TENSORS: short_digest(*_bytes_of(value))}
            content = json.dumps(_Walk(self._depth).value(value.tolist()))
            return {"class": name, OWN_TENSORS: short_digest(f"{value.dtype}{value.shape}", content)}
        if is_table(value):
            return {"class": name, OWN_VALUES: _digest_of_table(value)}
        ours = type(value).__module__.startswith("mmdistill.")  # described by their settings
        if not isinstance(value, nn.Module) or isinstance(value, ABC) or ours:
            return self.described(value)
        if not list(value.children()):
            return {**self.described(value), **_content(_tensors(value))}
        return {"class": name, OWN_LAYERS: short_digest(described_module(value)), **_content(_tensors(value))}

    def _code(self, *definitions: type | FunctionType) -> dict[str, Any]:
        """Return a digest of the code of a function or of classes, as far as these are a user's, and what it holds."""
        own = [definition for definition in definitions if is_users(definition)]
        if not own:
            return {}
        # A function counts alike wherever it is written.
        names = [part.__name__ if isfunction(part) else part.__qualname__ for part in own]
        codes = [f"{name}: {code_digest(part)}" for name, part in zip(names, own, strict=True)]
        enclosed: dict[str, object] = {}
        for part in filter(is_edited, reversed(own)):
            enclosed |= self._enclosed_by(functions_of(part))
            if isinstance(part, type):
                held = {name: value for name, value in vars(part).items() if isinstance(value, OF_CLASSES)}
                enclosed |= {name: self.value(value) for name, value in held.items() if name[0] != "_"}
        return {OWN_CODE: short_digest("\n".join(codes)), **({OWN_VALUES: enclosed} if enclosed else {})}

    def _enclosed_by(self, functions: Mapping[str, FunctionType]) -> dict[str, object]:
        """Return what functions hold by their closure or as defaults, if anything that is not in their code."""
        held: dict[str, object] = {}
        for name, function in functions.items():
            if name.startswith("__") and name not in ("__init__", "__call__"):  # such as those that dataclasses add
                continue
            defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
            values = {**{str(place): value for place, value in enumerate(defaults)}, **enclosed_variables(function)}
            for variable, value in values.items():
                if type(value) not in IN_CODE and (description := self.value(value)) != _name(value):
                    held[f"{name} {variable}".lstrip()] = description
        return held


def _name(value: object) -> str:
    """Return a value's own name, or that of its class."""
    return str(getattr(value, "__name__", type(value).__name__))


def _tensors(module: nn.Module, *, recurse: bool = True) -> dict[str, Tensor]:
    """Return the public parameters and buffers of a module, and with ``recurse`` those of its layers."""
    tensors = {**dict(module.named_parameters(recurse=recurse)), **dict(module.named_buffers(recurse=recurse))}
    return {name: tensor for name, tensor in tensors.items() if not name.rpartition(".")[2].startswith("_")}


def _content(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Return a digest of tensors under its key, if there are any."""
    digest = digest_of_tensors(tensors)
    return {OWN_TENSORS: digest} if digest else {}


def _digest_of_numbers(values: Sequence[object], name: str) -> dict[str, object] | None:
    """Return the description of a long list of plain numbers; None for others."""
    if len(values) < MANY or not set(map(type, values)) <= {bool, int, float}:
        return None
    numbers = np.asarray(values)
    return None if numbers.dtype.hasobject else {"class": name, OWN_VALUES: short_digest(numbers.tobytes())}


def described_module(module: nn.Module) -> str:
    """Return a module's own description and, of classes that users wrote, digests of the code and their attributes."""
    classes = {kind for part in module.modules() for kind in type(part).__mro__ if is_users(kind)}
    codes = sorted(f"code of {kind.__qualname__}: {code_digest(kind)}" for kind in classes)
    attributes = [
        f"{name or 'network'}.{attribute} = {code_value(value)!r}"
        for name, part in module.named_modules()
        if is_users(type(part))
        for attribute, value in sorted(vars(part).items())
        if not attribute.startswith("_") and attribute != "training"
    ]
    return "\n".join([str(module), *codes, *attributes])


def own_attributes(part: object) -> dict[str, object]:
    """Return an object's attributes, without the tensors of modules, which are drawn or learned."""
    if is_dataclass(part):
        return {entry.name: getattr(part, entry.name, None) for entry in fields(part) if entry.compare}
    attributes = {name: value for name, value in set_attributes(part).items() if name not in OF_MODULES}
    return attributes | dict(part.named_children()) if isinstance(part, nn.Module) else attributes


def set_attributes(part: object) -> dict[str, object]:
    """Return the attributes that are set on an object, in slots too, without what its cached properties keep."""
    of_classes = {name: made for kind in type(part).__mro__ for name, made in vars(kind).items()}
    slots = [name for name, made in of_classes.items() if isinstance(made, MemberDescriptorType)]
    values = {name: getattr(part, name) for name in slots if hasattr(part, name)} | getattr(part, "__dict__", {})
    return {name: value for name, value in values.items() if not isinstance(of_classes.get(name), cached_property)}


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


def has_content(value: object) -> bool:
    """Return whether what a value holds identifies it, beside the name of its class."""
    kinds = (Tensor, np.ndarray, nn.Module, Namespace, SimpleNamespace)
    if isinstance(value, type):
        return False
    return isinstance(value, kinds) or is_dataclass(value) or is_edited(type(value)) or is_table(value)


def is_table(value: object) -> bool:
    """Return whether a value is a table, a column or an index of pandas, or a sparse matrix of scipy."""
    package = type(value).__module__.partition(".")[0]
    return (package == "pandas" and hasattr(value, "memory_usage")) or (package == "scipy" and hasattr(value, "tocoo"))


def _digest_of_table(table: Any) -> str:
    """Return a digest of what :func:`is_table` tells."""
    if hasattr(table, "tocoo"):
        entries = table.tocoo()
        arrays = [np.asarray(array) for array in (entries.shape, *entries.nonzero(), entries.data)]
        return short_digest(*(part for array in arrays for part in _bytes_of(array)))
    from pandas.util import hash_pandas_object

    frame = table if hasattr(table, "columns") else table.to_frame()
    columns = repr([(str(name), str(dtype)) for name, dtype in frame.dtypes.items()])
    try:
        rows = hash_pandas_object(frame)
    except TypeError:  # it holds lists or the like
        rows = hash_pandas_object(frame.astype(str))
    return short_digest(columns, *_bytes_of(rows.to_numpy()))


def _bytes_of(array: np.ndarray) -> tuple[str, memoryview]:
    """Return the type and shape of an array of numbers, and its bytes without a copy if they are in order."""
    return f"{array.dtype}{array.shape}", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def digest_in_words(part: object) -> str:
    """Return an object's class with a digest of its description."""
    return f"{type(part).__name__} {short_digest(json.dumps(described(part)))}"


def is_own(part: object) -> bool:
    """Return whether a function, its partial or method, or a callable object is a user's."""
    if isinstance(part, partial):
        return any(map(is_own, (part.func, *part.args, *part.keywords.values())))
    if ismethod(part):
        return is_own(part.__self__)
    return is_users(part if isinstance(part, type | FunctionType) else type(part))
