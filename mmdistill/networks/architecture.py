"""What a task's network is made of, in words: what networks must share that go on from each other's states."""

from itertools import zip_longest

from mmdistill.errors import UnsupportedError
from mmdistill.runtime import Draws
from mmdistill.task import DescribesNetwork, Task


def described_layers(task: Task) -> str:
    """Return a task's network in its own description; empty for tasks that give none, whose shapes must do."""
    return task.architecture() if isinstance(task, DescribesNetwork) else ""


def network_title(task: Task) -> str:
    """Return a task's network in few words: its name, or what it calls itself, and how many numbers it learns."""
    name = getattr(task, "model", "")
    if not isinstance(name, str) or not name:
        name = described_layers(task).partition("\n")[0].removesuffix("(")
    try:
        state = task.init(Draws(0, device=task.device))
    except UnsupportedError:  # an infinitely wide one
        return name
    count = f"{sum(tensor.numel() for tensor in state.params.values()):,} parameters"
    return f"{name}, {count}" if name else count


def differing_lines(old: str, new: str) -> tuple[str, str]:
    """Return the first lines in which two descriptions differ; the descriptions themselves where none does."""
    for there, here in zip_longest(old.splitlines(), new.splitlines(), fillvalue="nothing"):
        if there != here:
            return there.strip(), here.strip()
    return old, new
