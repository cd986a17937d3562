"""What a task's network is made of, in words: what networks must share that go on from each other's states."""

import hashlib
from functools import partial
from inspect import isfunction
from itertools import zip_longest
from types import CodeType

from torch import Tensor, nn

from mmdistill.abilities import DescribesNetwork, NamesNetwork
from mmdistill.runtime import Draws
from mmdistill.store import digest_of
from mmdistill.task import Task

LIBRARIES = ("builtins", "mmdistill", "torch", "torch_geometric", "torchvision", "transformers")
"""Packages whose classes are what their names say; those of others are a user's, who may edit them."""


def described_module(module: nn.Module) -> str:
    """Return a module as it describes itself, with a user's classes: a digest of their code, and their attributes."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__ if _is_users(kind)}
    codes = sorted(f"code of {kind.__qualname__}: {_digest(kind)}" for kind in kinds)
    attributes = [
        f"{name or 'network'}.{attribute} = {_constant(value)!r}"
        for name, part in module.named_modules()
        if _is_users(type(part))
        for attribute, value in sorted(vars(part).items())
        if not attribute.startswith("_") and attribute != "training"
    ]
    return "\n".join([str(module), *codes, *attributes])


def _is_users(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in LIBRARIES


def _digest(kind: type) -> str:
    """Return a digest of what a class's own functions do."""
    codes = {name: _plain(function.__code__) for name, function in vars(kind).items() if isfunction(function)}
    return hashlib.blake2b(repr(sorted(codes.items())).encode(), digest_size=4).hexdigest()


def _plain(code: CodeType) -> tuple[object, ...]:
    """Return what a piece of code computes as plain values, the same in any process."""
    return code.co_code, code.co_names, [_constant(value) for value in code.co_consts]


def _constant(value: object) -> object:
    """Return a constant of a piece of code, or an attribute, as plain values; what has none by its type.

    Sets, whose order is chance, are in order; of functions the code counts, of tensors a digest.
    """
    if isinstance(value, CodeType):
        return _plain(value)
    if isfunction(value):
        return value.__qualname__, _plain(value.__code__)
    if isinstance(value, Tensor):
        return digest_of({"value": value.detach().cpu()})
    if isinstance(value, partial):
        return _constant([value.func, value.args, value.keywords])
    if isinstance(value, set | frozenset):
        return sorted(repr(_constant(entry)) for entry in value)
    if isinstance(value, list | tuple):
        return [_constant(entry) for entry in value]
    if isinstance(value, dict):
        return [(_constant(key), _constant(entry)) for key, entry in value.items()]
    if value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def described_layers(task: Task) -> str:
    """Return a task's network in its own description; empty for tasks that give none, whose shapes must do."""
    return task.architecture() if isinstance(task, DescribesNetwork) else ""


def network_title(task: Task) -> str:
    """Return a task's network in few words: its name, or what it calls itself, and how many numbers it learns."""
    params = task.init(Draws(0, device=task.device)).params  # of an infinitely wide one none
    count = f"{sum(tensor.numel() for tensor in params.values()):,} parameters" if params else ""
    return ", ".join(filter(None, (_network_name(task), count)))


def task_line(task: Task, data: str, sizes: str) -> str:
    """Return a task in one line: its kind, its data and how large they are, its network and its device."""
    parts = (data, sizes, _network_name(task), str(task.device))
    return f"{type(task).__name__}({', '.join(filter(None, parts))})"


def _network_name(task: Task) -> str:
    """Return the name of a task's network, or what that calls itself."""
    named = task.network_name if isinstance(task, NamesNetwork) else ""
    return named or described_layers(task).partition("\n")[0].removesuffix("(")


def differing_lines(old: str, new: str) -> tuple[str, str]:
    """Return the first lines in which two descriptions differ; the descriptions themselves where none does."""
    for there, here in zip_longest(old.splitlines(), new.splitlines(), fillvalue="nothing"):
        if there != here:
            return there.strip().removesuffix("("), here.strip().removesuffix("(")  # of a module with more below
    return old, new
