"""Runs that an earlier version recorded with fewer details of what an objective holds count as equal."""

from abc import ABC
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill import image_task
from mmdistill.code_digests import code_digest, code_value
from mmdistill.composition import describe_parts
from mmdistill.described import FURTHER, described_module, described_value
from mmdistill.errors import CheckpointError
from mmdistill.image.task import ImageTask
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.architecture import identified
from mmdistill.runs.checkpoints import require_same


def power(x: Tensor, p: int) -> Tensor:
    return x**p


class Scaling:
    """A function with an object."""

    def scaled(self, x: Tensor) -> Tensor:
        return x


@dataclass
class Listing:
    """An object whose class holds a list."""

    kinds: ClassVar[list[str]] = ["a"]
    size: int = 1


def enclosing(held: Any) -> Callable[[Any], Any]:
    return lambda x: held(x)


OF_TENSOR, OF_FUNCTION = enclosing(torch.ones(2)), enclosing(power)
RECORDED: dict[str, tuple[Any, Any]] = {
    "layer without layers": (nn.MSELoss(), {"class": "MSELoss", "reduction": "mean"}),
    "layer with layers": (nn.Sequential(nn.Linear(4, 3)), "Sequential"),
    "partial": (partial(power, p=2), ["power", [], {"p": 2}]),
    "method": (Scaling().scaled, ["Scaling", "scaled"]),
    "list of functions": ([power, torch.square], ["power", "square"]),
    "tuple of tensors": ((torch.ones(1),), ["Tensor"]),
    "lambda of a tensor": (OF_TENSOR, f"lambda {code_digest(OF_TENSOR)}"),
    "lambda of a function": (OF_FUNCTION, f"lambda {code_digest(OF_FUNCTION)}"),
    "device": (torch.device("cpu"), "device"),
    "set": ({1, 2}, "set"),
    "range": (range(3), "range"),
    "complex": (1j, "complex"),
    "date": (date(2020, 1, 1), "date"),
    "bytes": (b"a", "bytes"),
    "queue": (deque([1]), "deque"),
    "function that keeps its results": (lru_cache(power), "power"),
    "attributes of a class": (Listing(), {"class": "Listing", "size": 1}),
    "long list twice": ([list(range(400))] * 2, [list(range(400))] * 2),
    "boolean of numpy": (np.bool_(True), type(np.bool_(True)).__name__),
}


def of_run(value: object) -> dict[str, object]:
    return {"described": {"objective": {"class": "Held", "held": value}}}


@pytest.mark.parametrize(("value", "recorded"), RECORDED.values(), ids=RECORDED)
def test_what_an_earlier_run_does_not_record_counts_as_equal(value: Any, recorded: Any, tmp_path: Path) -> None:
    require_same(tmp_path, of_run(recorded), of_run(described_value(value)))
    with pytest.raises(CheckpointError, match=r"described\.objective\.held"):
        require_same(tmp_path, of_run(f"{recorded} "), of_run(described_value(value)))


class Flat(nn.Module):
    """A network with a property and a static method."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(self.width, classes)

    @property
    def width(self) -> int:
        return 64

    @staticmethod
    def flat(x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(x))  # type: ignore[no-any-return]


def test_a_network_whose_properties_an_earlier_run_does_not_record_counts_as_equal(tmp_path: Path) -> None:
    task = image_task("digits", model=Flat)
    assert isinstance(task, ImageTask)
    layers = task.architecture()
    former = "\n".join(line for line in layers.split("\n") if not line.startswith(FURTHER))
    assert former != layers
    method = CORE_METHODS["dm"]
    settings = method.settings(1)
    parts = describe_parts(task, method, 1, settings, method.make_schedule(settings))
    current = {"layers": layers, "described": parts}
    require_same(tmp_path, {"layers": former, "described": {**parts, "network": identified(former)}}, current)
    assert parts["network"] != identified(former)
    with pytest.raises(CheckpointError, match="network has further code of Flat: 0, not further code of Flat: "):
        require_same(tmp_path, {**current, "layers": f"{former}\n{FURTHER}Flat: 0"}, current)
    with pytest.raises(CheckpointError, match=r"described\.network"):
        require_same(tmp_path, {**current, "described": {**parts, "network": "Flat 01234567"}}, current)


Kind = TypeVar("Kind")


class Typed(Flat, ABC, Generic[Kind]):
    """A network that also derives from classes of Python's own."""


def test_an_earlier_description_of_a_network_names_classes_of_pythons_own() -> None:
    lines = described_module(Typed()).split("\n")
    codes = [line.split(":")[0] for line in lines if line.startswith("code of ")]
    assert codes == ["code of ABC", "code of Flat", "code of Generic", "code of Typed"]
    assert [line.split(":")[0] for line in lines if line.startswith(FURTHER)] == [f"{FURTHER}Flat"]


def test_an_earlier_version_wrote_a_function_out_wherever_it_is_held() -> None:
    assert code_value([power, {"again": power}]) == [code_value(power), [("again", code_value(power))]]
