"""What a task's network is made of, in words: what networks must share that go on from each other's states."""

from itertools import zip_longest

from mmdistill.task import DescribesNetwork, Task


def described_layers(task: Task) -> str:
    """Return a task's network in its own description; empty for tasks that give none, whose shapes must do."""
    return task.architecture() if isinstance(task, DescribesNetwork) else ""


def differing_lines(old: str, new: str) -> tuple[str, str]:
    """Return the first lines in which two descriptions differ; the descriptions themselves where none does."""
    for there, here in zip_longest(old.splitlines(), new.splitlines(), fillvalue="nothing"):
        if there != here:
            return there.strip(), here.strip()
    return old, new
