"""CONTRIBUTING.md shows how to add a method and a kind of data; this does just what it shows."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.evaluate import evaluate
from mmdistill.runtime import Draws
from mmdistill.testing import check_task

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


@pytest.fixture(scope="module")
def task(shown: dict[str, Any]) -> Any:
    labels = Draws(0).integers(3, 120)
    points = Draws(1).normal(120, 5) + 3 * Draws(2).normal(3, 5)[labels]
    return shown["PointTask"](points, labels)


def test_the_shown_task_keeps_its_contract(task: Any) -> None:
    check_task(task, judge="linear")


@pytest.mark.parametrize("name", ["mine", "spread"])
def test_the_shown_methods_distil(shown: dict[str, Any], task: Any, name: str) -> None:
    losses: list[float] = []
    result = distill(task, shown[name], ipc=2, progress=lambda done, total, loss: losses.append(loss))
    assert result.batch.weight.shape == (6,)
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("name", ["dm", "krr"])
def test_the_packages_methods_distil_the_shown_task(task: Any, name: str) -> None:
    assert not torch.bincount(task.labels).eq(40).all()  # real batches are larger than some classes
    result = distill(task, name, ipc=2, settings={"steps": 2, "real_batch": 256})
    assert evaluate(task, result, n=1, baselines=["random"]).headline().mean > 0.3
