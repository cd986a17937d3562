"""Objectives and network schedules as plain values, which tell runs of one name apart.

Users may edit their functions and classes without renaming them, so these are identified by digests of their code.
"""

import hashlib
import json
import math
import sys
from abc import ABC
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from inspect import isfunction, ismethod
from numbers import Integral, Real
from pathlib import PurePath
from reprlib import recursive_repr
from types import CodeType, FunctionType, SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmdistill.store import digest_of

LIBRARIES = frozenset(
    ("mmdistill", "torch", "torch_geometric", "torchvision", "transformers", *sys.stdlib_module_names)
) - {"test"}
"""Packages whose functions and classes are identified by name; those of others are a user's, who may edit them."""

OWN_CODE = "own code"
OWN_LAYERS = "own layers"
OWN_TENSORS = "own tensors"
"""Keys of digests in a description: of a user's code, of the layers of a module, and of tensors. No attribute has such
a name."""

OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that torch adds to every module."""


def described(part: object) -> dict[str, object]:
    """Return an object's class and its plain attributes by name, the same in any process.

    Numbers, texts, booleans and None stay as they are, in tuples, lists, sets and mappings too. Dataclasses are
    described recursively, without fields excluded from comparison; so are objects of users' classes, namespaces, and
    objectives within an objective. Partial functions are described with their arguments, methods with their object,
    tensors and arrays by a digest, other modules by digests of their layers and tensors. A user's functions and classes
    come with a digest of their code, and a user's modules with one of their own tensors. Anything else is described by
    the name of its class or function.
    Private attributes (``_name``) hold state, not configuration, and are left out.

    Args:
        part: an objective or a schedule, before it draws or learns.
    """
    values = {name: value for name, value in {**_of_classes(part), **_own(part)}.items() if not name.startswith("_")}
    plain = {name: described_value(values[name]) for name in sorted(values)}
    return {"class": type(part).__name__, **_digests(part), **plain}


def _digests(part: object) -> dict[str, str]:
    """Return digests of the code and the tensors of an object whose class is a user's, and nothing of others."""
    own_code = _code_of_classes(type(part))
    if not own_code or not isinstance(part, nn.Module):
        return own_code
    tensors = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
    return own_code | _content({name: tensor for name, tensor in tensors.items() if not name.startswith("_")})


def _code_of_classes(kind: type) -> dict[str, str]:
    """Return a digest of the code of a class and of its bases, as far as these are a user's."""
    codes = [f"{base.__qualname__}: {code_digest(base)}" for base in kind.__mro__ if is_users(base)]
    return {OWN_CODE: _short_digest("\n".join(codes))} if codes else {}


def _content(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a digest of tensors on any device, if there are any; those of lazy layers do not exist yet."""
    dense: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided:
            dense |= {} if is_lazy(tensor) else {name: tensor.detach().cpu()}
        else:
            sparse = (tensor if tensor.is_sparse else tensor.to_sparse()).detach().coalesce()
            dense |= {f"{name} at": sparse.indices().cpu(), f"{name} {tuple(tensor.shape)}": sparse.values().cpu()}
    return {OWN_TENSORS: digest_of(dense)[:8]} if dense else {}


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


def described_value(value: object) -> object:
    """Return an attribute's value, or a function, as JSON can hold it; see :func:`described`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Enum | torch.dtype | torch.device | PurePath | complex | range):
        return str(value)
    if isinstance(value, partial):
        return [described_value(value.func), described_value(value.args), described_value(value.keywords)]
    if ismethod(value):
        return [described_value(value.__self__), value.__name__]
    if isfunction(value) and is_users(value):
        code = code_digest(value)
        return f"lambda {code}" if value.__name__ == "<lambda>" else {"class": value.__name__, OWN_CODE: code}
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, (tuple, list)):
        return [described_value(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((described_value(entry) for entry in value), key=json.dumps)
    if isinstance(value, Mapping):
        return {str(name): described_value(entry) for name, entry in value.items()}
    if isinstance(value, type):
        return {"class": value.__name__, **codes} if (codes := _code_of_classes(value)) else value.__name__
    if isinstance(value, np.generic):
        return described_value(value.item())
    if _has_content(value):
        return json.loads(_described_once(value))
    return str(getattr(value, "__name__", type(value).__name__))


def _has_content(value: object) -> bool:
    """Return whether what a value holds identifies it, beside the name of its class."""
    kinds = (Tensor, np.ndarray, nn.Module, Namespace, SimpleNamespace)
    return isinstance(value, kinds) or is_dataclass(value) or is_users(type(value))


@recursive_repr('"itself"')  # of an object that holds itself, as by a link to its owner
def _described_once(value: object) -> str:
    """Return the description of a tensor, an array, a module or another object as JSON."""
    name = {"class": type(value).__name__}
    if isinstance(value, Tensor):
        return json.dumps({**name, **_content({"value": value})})
    if isinstance(value, np.ndarray):
        simple = value.dtype.kind in "biufc"
        content = str(value.dtype).encode() + str(value.shape).encode()
        content += value.tobytes() if simple else json.dumps(described_value(value.tolist())).encode()
        return json.dumps({**name, OWN_TENSORS: _short_digest(content)})
    ours = type(value).__module__.startswith("mmdistill.")  # described by their settings
    if isinstance(value, nn.Module) and not isinstance(value, ABC) and not ours:
        tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        return json.dumps({**name, OWN_LAYERS: _short_digest(described_module(value)), **_content(tensors)})
    return json.dumps(described(value))


def digest_in_words(part: object) -> str:
    """Return an object's class with a digest of its description."""
    return f"{type(part).__name__} {_short_digest(json.dumps(described(part)))}"


def is_own(part: object) -> bool:
    """Return whether a function, its partial or method, or a callable object is a user's."""
    if isinstance(part, partial):
        return any(map(is_own, (part.func, *part.args, *part.keywords.values())))
    if ismethod(part):
        return is_own(part.__self__)
    return is_users(part if isinstance(part, type | FunctionType) else type(part))


def is_users(definition: type | FunctionType) -> bool:
    """Return whether a class or function is a user's, outside of :data:`LIBRARIES`."""
    return (definition.__module__ or "").partition(".")[0] not in LIBRARIES


@recursive_repr("itself")  # a function may be recursive
def code_digest(definition: type | FunctionType) -> str:
    """Return a digest of the code of a function, or of a class's own functions: the same in any process."""
    functions = vars(definition) if isinstance(definition, type) else {"": definition}
    unwrapped = {name: _unwrapped(function) for name, function in functions.items()}
    values = {name: _computed(function) for name, function in unwrapped.items() if isfunction(function)}
    return _short_digest(repr(sorted(values.items())))


def _unwrapped(attribute: object) -> object:
    """Return the function of a static or class method or a property; other attributes as they are."""
    if isinstance(attribute, property):
        return attribute.fget
    if isinstance(attribute, cached_property):
        return attribute.func
    return attribute.__func__ if isinstance(attribute, staticmethod | classmethod) else attribute


def _short_digest(content: str | bytes) -> str:
    """Return eight characters that tell contents apart."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=4).hexdigest()


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
    enclosed = _enclosed(function)
    names = [(name, value.__qualname__ if isfunction(value) else code_value(value)) for name, value in enclosed.items()]
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *enclosed.values()]
    contents = [described_value(value) for value in held if _is_users_function(value) or _has_content(value)]
    return _code(function.__code__), *defaults, *names, *contents


def _is_users_function(value: object) -> bool:
    return isfunction(value) and is_users(value)


def _enclosed(function: FunctionType) -> dict[str, object]:
    """Return the variables of a function's closure by name."""
    variables: dict[str, object] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it is not set yet
            continue
        if name != "__class__":  # super() reads it
            variables[name] = value
    return variables
