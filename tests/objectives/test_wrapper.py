"""Objectives that add to another one say of themselves what that one says."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

import mmdistill
from mmdistill.objectives.adversary import StyleAdversary
from mmdistill.objectives.base import Network, Objective
from mmdistill.objectives.calibration import CalibratedMatching, KnowledgeExtraction
from mmdistill.objectives.wrapper import FLAGS, ObjectiveWrapper
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Task
from tests.toys import BlobTask

OWN = {
    StyleAdversary: {"view", "reads_labels", "steady", "styles"},
    CalibratedMatching: {"view", "reads_labels", "reads_scores", "needs_target"},
    KnowledgeExtraction: {"reads_labels", "reads_scores", "needs_target"},
}
"""What each wrapper of the package says itself."""


class Inner(Objective):
    """Says of itself what no objective says by default, and remembers what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        raise NotImplementedError

    def check(self, task: Task) -> None:
        self.asked.append("check")

    def begin(self, task: Task, draws: Draws) -> None:
        self.asked.append("begin")


def inner_of(view: str) -> Inner:
    """Return one of a view, in which all other flags differ from their defaults."""
    made = Inner()
    for flag in FLAGS:
        default = getattr(Objective, flag)
        setattr(made, flag, view if flag == "view" else default + 1 if type(default) is int else not default)
    return made


def wrapped(kind: type[ObjectiveWrapper], inner: Objective) -> ObjectiveWrapper:
    if kind is CalibratedMatching:
        return CalibratedMatching(matching=inner)
    return StyleAdversary(inner, 2) if kind is StyleAdversary else KnowledgeExtraction(inner, 0.5)


def test_each_wrapper_of_the_package_is_tested() -> None:
    for module in pkgutil.walk_packages(mmdistill.__path__, "mmdistill."):
        if module.name.split(".")[-1] != "__main__":
            import_module(module.name)
    found, rest = set(), [Objective]
    while rest:
        kind = rest.pop()
        rest += kind.__subclasses__()
        taken = " ".join(str(one.annotation) for one in inspect.signature(kind.__init__).parameters.values())
        if kind.__module__.startswith("mmdistill.") and (issubclass(kind, ObjectiveWrapper) or "Objective" in taken):
            found.add(kind)
    assert found - {ObjectiveWrapper} == set(OWN)


@pytest.mark.parametrize("kind", OWN)
def test_flags_are_passed_on(kind: type[ObjectiveWrapper]) -> None:
    inner = inner_of("classes" if kind is CalibratedMatching else "flat")
    outer = wrapped(kind, inner)
    for flag in FLAGS:
        if flag not in OWN[kind]:
            assert getattr(outer, flag) == getattr(inner, flag) != getattr(Objective, flag), flag


@pytest.mark.parametrize("kind", OWN)
def test_what_the_inner_objective_checks_draws_and_learns_is_passed_on(kind: type[ObjectiveWrapper]) -> None:
    inner, task = inner_of("classes" if kind is CalibratedMatching else "flat"), BlobTask()
    outer = wrapped(kind, inner)
    outer.check(task)
    outer.begin(task, Draws(0))
    assert inner.asked == ["check", "begin"]
    assert outer.learned().keys() == {"temperature"}


def test_a_flag_says_what_the_inner_objective_says_now() -> None:
    inner = inner_of("classes")
    outer = CalibratedMatching(matching=inner)
    inner.compiling = 7
    assert outer.compiling == 7
