"""Descriptions of networks: two must agree for one to continue from the other's state."""

from itertools import zip_longest

from mmdistill.abilities import DescribesNetwork, NamesNetwork
from mmdistill.runtime import Draws
from mmdistill.store import short_digest
from mmdistill.task import Task

OWN = "model"
"""The name of the user's own network as a judge."""


def described_layers(task: Task) -> str:
    """Return the description of a task's network; empty for tasks that give none, where only shapes are compared."""
    return task.architecture() if isinstance(task, DescribesNetwork) else ""


def own_network(task: Task) -> str:
    """Return the name of the user's own network and a digest of its description; empty for built-in networks.

    It tells runs and judges apart, as a built-in network's name does.
    """
    layers = described_layers(task) if OWN in task.judges else ""
    if not layers:
        return ""
    return identified(layers, _network_name(task))


def identified(description: str, name: str = "") -> str:
    """Return what tells networks apart: a name, by default the class's, and a digest of its description."""
    return f"{name or _class_name(description)} {short_digest(description)}"


def _class_name(description: str) -> str:
    return description.partition("\n")[0].removesuffix("(")


def network_title(task: Task) -> str:
    """Return the name of a task's network and its number of parameters, in words."""
    params = task.init(Draws(0, device=task.device)).params  # empty for an infinitely wide network
    count = f"{sum(tensor.numel() for tensor in params.values()):,} parameters" if params else ""
    return ", ".join(filter(None, (_network_name(task), count)))


def task_line(task: Task, data: str, sizes: str) -> str:
    """Return a task in one line: its class, its data and their sizes, its network and its device."""
    parts = (data, sizes, _network_name(task), str(task.device))
    return f"{type(task).__name__}({', '.join(filter(None, parts))})"


def _network_name(task: Task) -> str:
    """Return the name that a task gives its network, or else the class name in the network's description."""
    name = task.network_name if isinstance(task, NamesNetwork) else ""
    return name or _class_name(described_layers(task))


def differing_lines(old: str, new: str) -> tuple[str, str]:
    """Return the first lines in which two descriptions differ; the descriptions themselves if none does."""
    for old_line, new_line in zip_longest(old.splitlines(), new.splitlines(), fillvalue="nothing"):
        if old_line != new_line:
            # A module with submodules ends its line with an opening bracket.
            return old_line.strip().removesuffix("("), new_line.strip().removesuffix("(")
    return old, new
