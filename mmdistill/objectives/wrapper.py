"""Objectives that add to another objective."""

from typing import Any

from mmdistill.objectives.base import Objective
from mmdistill.runtime import Draws
from mmdistill.task import Task

FLAGS = tuple(
    name for name, value in vars(Objective).items() if isinstance(value, int | float | str) and not name.startswith("_")
)
"""What objectives say of themselves as attributes."""


class ObjectiveWrapper(Objective):
    """Base of the objectives that add something to the one objective which they keep as an attribute.

    Each flag is what the inner objective says, unless the class or the instance says it itself; so are the checks, what
    is drawn when a run begins, and what is learned. Which samples the addition reads the inner one cannot know, so all
    are read.
    """

    @property
    def inner(self) -> Objective:
        """The objective that is added to, under whatever name it is kept."""
        (inner,) = (part for part in self.children() if isinstance(part, Objective))
        return inner

    def check(self, task: Task) -> None:
        """Refuse what the view or the inner objective refuses."""
        super().check(task)
        self.inner.check(task)

    def begin(self, task: Task, draws: Draws) -> None:
        """Let the inner objective draw what it keeps."""
        self.inner.begin(task, draws)


class _PassedOn:
    """A flag that an inner objective says; an instance's own attribute of the name goes first."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: ObjectiveWrapper | None, kind: type[ObjectiveWrapper]) -> Any:
        return getattr(Objective if wrapper is None else wrapper.inner, self.name)


for _flag in FLAGS:
    setattr(ObjectiveWrapper, _flag, _PassedOn(_flag))
