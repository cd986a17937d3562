"""CONTRIBUTING.md shows how to add a method and a kind of data; this does just what it shows."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdistill.distill import distill
from mmdistill.errors import ConfigError
from mmdistill.evaluate import evaluate
from mmdistill.method import MethodTable
from mmdistill.methods import CORE_METHODS
from mmdistill.registry import DOMAIN_PACKAGES, domain_methods, get_domain, get_method
from mmdistill.runtime import Draws
from mmdistill.task import TaskInfo
from mmdistill.testing import check_task

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def shown() -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {}
    domain = get_domain("image")
    before = [(table, dict(table)) for table in (domain.methods, domain.presets, domain.reduced)]
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    yield names
    for table, entries in before:  # what the page adds to the package is this page's alone
        assert isinstance(table, dict)
        table.clear()
        table.update(entries)


@pytest.fixture(scope="module")
def task(shown: dict[str, Any]) -> Any:
    labels = Draws(0).integers(3, 120)
    points = Draws(1).normal(120, 5) + 3 * Draws(2).normal(3, 5)[labels]
    return shown["PointTask"](points, labels)


def test_the_shown_task_keeps_its_contract(task: Any) -> None:
    check_task(task, judge="linear")


@pytest.mark.parametrize("name", ["mine", "spread", "powered"])
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


def test_settings_of_the_shown_class_are_replaced_and_recorded(shown: dict[str, Any], task: Any) -> None:
    result = distill(task, shown["powered"], ipc=1, settings={"power": 1.5, "steps": 2})
    assert result.settings["power"] == 1.5
    assert isinstance(described := result.described["objective"], dict)
    assert described == {"class": "SpreadMatching", "power": 1.5}


def test_the_shown_settings_for_a_data_set_are_found(shown: dict[str, Any]) -> None:
    domain = get_domain("image")
    assert get_method(domain, "flat-dc").settings(1).steps == 60
    assert get_method(domain, "flat-dc", "digits").settings(1).steps == 30
    assert get_method(domain, "flat-dc", "digits", "reduced").settings(1).steps == 5
    assert "dm" in domain.presets["digits"] or get_method(domain, "dm", "digits")  # what was there stays


def test_a_script_registers_a_domain_as_the_page_says(
    shown: dict[str, Any], task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Series(type(task)):  # type: ignore[misc]
        def describe(self) -> TaskInfo:
            return replace(super().describe(), domain="series")

    series, few = Series(task.points, task.labels), {"steps": 2, "real_batch": 8}
    with pytest.raises(ConfigError, match=r"unknown domain 'series'.*Method values.*DOMAIN_PACKAGES\['series'\]"):
        distill(series, "dm", ipc=1, settings=few)
    assert distill(series, CORE_METHODS["dm"], ipc=1, settings=few).steps == 2
    (tmp_path / "own_series.py").write_text(
        "from dataclasses import replace\n"
        "from mmdistill.methods import CORE_METHODS\n"
        "from mmdistill.registry import Domain\n"
        "DOMAIN = Domain('series', 'ipc', {}, lambda path: False, None, draw=lambda *_: [],\n"
        "                methods={'dm': replace(CORE_METHODS['dm'], domains=('series',))})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DOMAIN_PACKAGES, "series", "own_series")
    assert distill(series, "dm", ipc=1, settings=few).steps == 2
    assert isinstance(domain_methods(get_domain("series")), MethodTable)
    with pytest.raises(ConfigError, match=r"krr is a method for .*series data"):
        distill(series, "krr", ipc=1, settings=few)
