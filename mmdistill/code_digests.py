"""Digests of the code of functions and classes, and of tensors: the same in any process."""

import sys
import sysconfig
from collections.abc import Mapping
from functools import _lru_cache_wrapper, cached_property, partial
from inspect import isfunction
from pathlib import Path
from types import CodeType, FunctionType

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from mmdistill.store import digest_of, short_digest

LIBRARIES = frozenset(("mmdistill", "torch", "torch_geometric", "torchvision", "transformers"))
"""Packages whose functions and classes are identified by name, as are Python's own."""
STANDARD = sys.stdlib_module_names - {"test"}
STANDARD_FILES = Path(sysconfig.get_path("stdlib"))
"""Where Python's own modules lie, by whose names files of a user may be called."""
REPEATED = 10_000
"""Characters of a value in a function that is written again where it comes again; a longer one is named."""


def is_users(definition: type | FunctionType) -> bool:
    """Return whether a class or function is a user's, who may edit it: none of a library or of Python itself."""
    module = definition.__module__ or ""
    return module.partition(".")[0] not in LIBRARIES and not _is_of_python(module)


def _is_of_python(module: str) -> bool:
    """Return whether a module is one of Python itself; a user's file may have the name of one, such as ``profile``."""
    if module.partition(".")[0] not in STANDARD:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or Path(file).is_relative_to(STANDARD_FILES)


def is_edited(definition: type | FunctionType) -> bool:
    """Return whether a class or function is a user's who may edit it: not one of an installed package."""
    file = getattr(sys.modules.get(definition.__module__ or ""), "__file__", None) or ""
    return is_users(definition) and not {"site-packages", "dist-packages"} & {*Path(file).parts}


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors on any device, an empty text without any; those of lazy layers do not exist yet.

    Tensors without values, as on the meta device, count by their shape.
    """
    dense: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            continue
        if tensor.is_nested:
            dense |= {f"{name} {row}": part.detach().cpu() for row, part in enumerate(tensor.unbind())}
        elif tensor.is_meta or tensor.is_quantized:
            dense[f"{name} {tuple(tensor.shape)} {tensor.dtype}"] = torch.empty(0)
        elif tensor.layout is torch.strided:
            dense[name] = tensor.detach().cpu()
        else:
            sparse = (tensor if tensor.is_sparse else tensor.to_sparse()).detach().coalesce()
            dense |= {f"{name} at": sparse.indices().cpu(), f"{name} {tuple(tensor.shape)}": sparse.values().cpu()}
    return digest_of(dense)[:8] if dense else ""


def code_digest(definition: type | FunctionType) -> str:
    """Return a digest of the code of a function, or of a class's functions: the same in any process."""
    attributes = {"": definition} if isfunction(definition) else vars(definition)
    codes = [
        (name, type(attributes[name]).__name__, _computed(function))
        for name, function in functions_of(definition).items()
    ]
    return short_digest(repr(sorted(codes)))


def functions_of(definition: type | FunctionType) -> dict[str, FunctionType]:
    """Return the functions of a class by name, those of its properties, static and class methods too.

    A function itself has an empty name.
    """
    attributes = {"": definition} if isfunction(definition) else vars(definition)
    values = {name: unwrapped(value) for name, value in attributes.items()}
    return {name: function for name, function in values.items() if isfunction(function)}


def unwrapped(attribute: object) -> object:
    """Return the function of a static or class method, a property or an ``lru_cache``; others as they are."""
    if isinstance(attribute, property):
        return attribute.fget
    if isinstance(attribute, cached_property):
        return attribute.func
    if isinstance(attribute, staticmethod | classmethod):
        return unwrapped(attribute.__func__)
    return attribute.__wrapped__ if isinstance(attribute, _lru_cache_wrapper) else attribute


def code_value(value: object, met: dict[int, tuple[object, object]] | None = None) -> object:
    """Return a constant of a code object, or an attribute, as plain values; other objects by their type.

    Sets, whose order varies between processes, are sorted; functions become their code, tensors a digest.

    Args:
        value: the constant or attribute.
        met: functions and containers met before by id, with what stands for them; None: the value is the first.
    """
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not (value.is_nested or value.is_meta or value.is_quantized)
        return digest_of({"value": value.detach().cpu()}) if plain else digest_of_tensors({"value": value})
    if value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    # A dictionary's attributes may be its items, of which a missing one is a KeyError.
    own_name = None if isinstance(value, dict) else getattr(value, "__qualname__", None)
    name = own_name if isinstance(own_name, str) else type(value).__qualname__
    if not isinstance(value, FunctionType | partial | set | frozenset | list | tuple | dict):
        return name
    met = {} if met is None else met
    if id(value) not in met:
        met[id(value)] = value, name
        composed = _composed(value, met)
        met[id(value)] = value, composed if len(repr(composed)) <= REPEATED else name
        return composed
    return met[id(value)][1]


def _composed(value: object, met: dict[int, tuple[object, object]]) -> object:
    """Return a function or a container as plain values; ``met`` is as in :func:`code_value`."""
    if isfunction(value):
        return value.__qualname__, _computed(value, met)
    if isinstance(value, partial):
        return [code_value(entry, met) for entry in (value.func, value.args, value.keywords)]
    if isinstance(value, set | frozenset):
        return sorted(repr(code_value(entry, met)) for entry in value)
    if isinstance(value, dict):
        return [(code_value(key, met), code_value(entry, met)) for key, entry in value.items()]
    return [code_value(entry, met) for entry in value]  # type: ignore[attr-defined]


def _code(code: CodeType) -> tuple[object, ...]:
    """Return a code object as plain values, the same in any process."""
    return code.co_code, code.co_names, [code_value(value) for value in code.co_consts]


def _computed(function: FunctionType, met: dict[int, tuple[object, object]] | None = None) -> tuple[object, ...]:
    """Return a function's code, with its defaults and the variables of its closure; functions become their names.

    ``met`` is as in :func:`code_value`.
    """
    met = {id(function): (function, function.__qualname__)} if met is None else met
    defaults = [code_value(value, met) for value in (function.__defaults__, function.__kwdefaults__) if value]
    enclosed = [
        (name, value.__qualname__ if isfunction(value) else code_value(value, met))
        for name, value in enclosed_variables(function).items()
    ]
    return _code(function.__code__), *defaults, *enclosed


def enclosed_variables(function: FunctionType) -> dict[str, object]:
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
