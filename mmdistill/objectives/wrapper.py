"""Objectives that add to another objective."""

from typing import Any

from mmdistill.objectives.base import Objective
from mmdistill.runtime import Draws
from mmdistill.task import Task

FLAGS = tuple(
    name for name, value in vars(Objective).items() if isinstance(value, int | float | str) and not name.startswith("_")
)
"""Names of the class attributes by which objectives say what they read."""


class ObjectiveWrapper(Objective):
    """Base of the objectives that add a term to an inner objective, which they keep as an attribute.

    Flags are the inner objective's, unless the class or the instance sets them itself. Checks, ``begin`` and
    ``learned`` are passed on to it. ``samples_read`` is not, so all samples are read: the added term may need them.
    """

    @property
    def inner(self) -> Objective:
        """The only child module that is an objective, whatever its name."""
        (inner,) = (module for module in self.children() if isinstance(module, Objective))
        return inner

    def check(self, task: Task) -> None:
        """Refuse a task that does not fit the view, or that the inner objective refuses."""
        super().check(task)
        self.inner.check(task)

    def begin(self, task: Task, draws: Draws) -> None:
        """Let the inner objective draw what it keeps."""
        self.inner.begin(task, draws)


class _InnerFlag:
    """A descriptor that reads a flag from the inner objective; an attribute of the instance takes precedence."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: ObjectiveWrapper | None, kind: type[ObjectiveWrapper]) -> Any:
        return getattr(Objective if wrapper is None else wrapper.inner, self.name)


for _flag in FLAGS:
    setattr(ObjectiveWrapper, _flag, _InnerFlag(_flag))
