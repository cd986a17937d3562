"""What a task's network is made of, in words: what networks must share that go on from each other's states."""

import hashlib
from itertools import zip_longest

from torch import nn

from mmdistill.abilities import DescribesNetwork, NamesNetwork
from mmdistill.described import code_digest, code_value, is_users
from mmdistill.runtime import Draws
from mmdistill.task import Task

OWN = "model"
"""What the user's own network is called as a judge."""


def described_module(module: nn.Module) -> str:
    """Return a module as it describes itself, with a user's classes: a digest of their code, and their attributes."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__ if is_users(kind)}
    codes = sorted(f"code of {kind.__qualname__}: {code_digest(kind)}" for kind in kinds)
    attributes = [
        f"{name or 'network'}.{attribute} = {code_value(value)!r}"
        for name, part in module.named_modules()
        if is_users(type(part))
        for attribute, value in sorted(vars(part).items())
        if not attribute.startswith("_") and attribute != "training"
    ]
    return "\n".join([str(module), *codes, *attributes])


def described_layers(task: Task) -> str:
    """Return a task's network in its own description; empty for tasks that give none, whose shapes must do."""
    return task.architecture() if isinstance(task, DescribesNetwork) else ""


def own_network(task: Task) -> str:
    """Return the user's own network as its module's name and a digest of what it is made of; empty for named ones.

    By it runs and judges are told apart whose networks have no name that would.
    """
    layers = described_layers(task) if OWN in task.judges else ""
    if not layers:
        return ""
    return f"{_network_name(task)} {hashlib.blake2b(layers.encode(), digest_size=4).hexdigest()}"


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
