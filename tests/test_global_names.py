"""What code reads by global names belongs to what a network and an objective are, as in a notebook's other cells."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mmdistill import distill, image_task
from mmdistill.code_digests import globals_read
from mmdistill.described import FURTHER, GLOBAL, OWN_GLOBALS, described_module, described_value, without_further
from mmdistill.errors import CheckpointError
from mmdistill.networks.architecture import as_identified, identified
from mmdistill.runs.checkpoints import require_same

NETWORK = """
import functools, logging
import torch
from torch import nn
from torch.nn import functional as F

WIDTH, SLOPE, CALLS, CACHE, NAMES = 8, 0.1, 0, {}, ["a"]
kind = nn.ReLU
layer = functools.partial(nn.Linear, bias=True)
logger = logging.getLogger(__name__)

class Sizes:
    classes = 3

def bend(x):
    return F.leaky_relu(x, SLOPE)

@torch.no_grad()
def again(x):
    return bend(x)

@functools.lru_cache
def size():
    return Sizes.classes

def act(x):
    return bend(x) if x.ndim else act(x) + again(x)

class Net(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = layer(64, WIDTH), kind(), layer(WIDTH, size())

    def forward(self, x):
        global CALLS
        CALLS += 1
        Net.calls += 1
        CACHE[CALLS] = logger, NAMES, __name__
        return self.head((lambda x: act(x))(self.a(x.flatten(1))))

    @property
    def width(self):
        return WIDTH
"""
SETTINGS: dict[str, object] = {"steps": 2, "real_batch": 8}
EXPERTS = {"steps": 2, "expert_epochs": 2, "experts": 1, "expert_steps": 1, "inner_steps": 2}


def notebook(*cells: str) -> dict[str, Any]:
    """Return the names of a notebook's kernel in which cells were run one after the other."""
    kernel = ModuleType("notebook")
    for cell in (NETWORK, *cells):
        exec(dedent(cell), vars(kernel))
    return vars(kernel)


def layers(*cells: str) -> str:
    return described_module(notebook(*cells)["Net"]())


EDITS = {
    "number": ("SLOPE = 0.2", "global SLOPE = 0.2"),
    "function": ("def bend(x): return torch.sin(x)", "global bend = bend "),
    "decorated function": ("@torch.no_grad()\ndef again(x): return x", "global func of again = again "),
    "function that keeps its results": ("@functools.lru_cache\ndef size(): return 4 - 1", "global size = size "),
    "attribute of a class": ("Sizes.classes = 4", "global Sizes.classes = 4"),
    "class of torch": ("kind = nn.GELU", "global kind = GELU"),
    "partial": ("layer = functools.partial(nn.Linear, bias=False)", "global layer = partial(Linear, bias=False)"),
    "long text": (f"SLOPE = {'a' * 2000!r}", "global SLOPE = "),
}


@pytest.mark.parametrize(("edit", "line"), EDITS.values(), ids=EDITS)
def test_what_another_cell_defines_belongs_to_what_a_network_is(edit: str, line: str) -> None:
    first, edited = layers().split("\n"), layers(edit).split("\n")
    (found,) = [text for text in edited if text.startswith(line)]
    assert found not in first
    assert len(found) < 200
    assert [text for text in edited if text.startswith(("code of", FURTHER))] == [
        text for text in first if text.startswith(("code of", FURTHER))
    ]


def test_counters_modules_and_unread_names_are_no_part_of_a_network() -> None:
    kernel = notebook()
    network = kernel["Net"]()
    before = described_module(network)
    network(torch.zeros(2, 64))
    exec("UNREAD, F = 1, torch.nn.functional\nCACHE[2], NAMES[0] = 3, 'b'", kernel)
    assert kernel["CALLS"] == kernel["Net"].calls == 1
    assert described_module(network) == before
    read = {line.split()[1] for line in before.split("\n") if line.startswith(GLOBAL)}
    assert {"act", "bend", "again", "func", "size", "Sizes.classes", "kind", "layer", "SLOPE", "WIDTH"} <= read
    assert not read & {"CALLS", "Net.calls", "F", "torch", "__name__", "UNREAD", "CACHE", "NAMES", "logger"}


def test_a_description_of_globals_is_the_same_in_another_process() -> None:
    command = [sys.executable, "-c", "from tests.test_global_names import layers; print(layers())"]
    other = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert other.stdout.rstrip("\n") == layers()


@pytest.fixture
def images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 100, (60, 1, 8, 8))
    return (noise + labels[:, None, None, None] * 50).astype(np.uint8), labels


EDIT = "def bend(x): return torch.sin(3 * x)"


def test_experts_are_trained_anew_after_a_helper_in_another_cell_is_edited(images: Any) -> None:
    def distilled(*cells: str) -> torch.Tensor:
        task = image_task(images, model=notebook(*cells)["Net"], judge_epochs=2)
        inputs = distill(task, "mtt", ipc=1, settings=EXPERTS).batch.inputs
        assert isinstance(inputs, torch.Tensor)
        return inputs

    first = distilled()
    assert torch.equal(distilled(), first)
    assert not torch.allclose(distilled(EDIT), first)


def test_a_run_is_refused_after_a_helper_in_another_cell_is_edited(images: Any, tmp_path: Path) -> None:
    def run(*cells: str) -> None:
        task = image_task(images, model=notebook(*cells)["Net"], judge_epochs=2)
        distill(task, "dm", ipc=1, settings=SETTINGS, out=tmp_path, resume="auto")

    run()
    run()
    for edit in (EDIT, "SLOPE = 0.2"):
        with pytest.raises(CheckpointError, match=r"belongs to another run: its described\.network is Net "):
            run(edit)
    with pytest.raises(CheckpointError, match=r"its network has global SLOPE = 0\.1, not global SLOPE = 0\.2;"):
        require_same(tmp_path, {"layers": layers()}, {"layers": layers("SLOPE = 0.2")})


def test_an_earlier_description_without_globals_counts_as_equal(tmp_path: Path) -> None:
    now = layers()
    further = "\n".join(line for line in now.split("\n") if not line.startswith(GLOBAL))
    first = without_further(now, "")
    assert len({now, further, first}) == 3
    for saved in (further, first):
        require_same(tmp_path, {"layers": saved}, {"layers": now})
        assert as_identified(identified(now), identified(saved)) == identified(saved)
    for other in (f"{further}.", f"{further}\n{GLOBAL}SLOPE = 1"):
        with pytest.raises(CheckpointError, match="its network has"):
            require_same(tmp_path, {"layers": other}, {"layers": now})
        assert as_identified(identified(now), identified(other)) == identified(now)


HOLDERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "function": lambda kernel: kernel["act"],
    "lambda": lambda kernel: eval("lambda x: act(x)", kernel),
    "object": lambda kernel: eval("type('Measure', (), {'__call__': lambda self, x: act(x)})()", kernel),
    "network": lambda kernel: kernel["Net"](),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_an_objective_holds_is_told_apart_by_what_its_code_reads(holder: str, tmp_path: Path) -> None:
    def run(value: object) -> dict[str, object]:
        return {"described": {"objective": {"class": "Held", "held": value}}}

    torch.manual_seed(0)
    current: Any = described_value(HOLDERS[holder](notebook()))
    torch.manual_seed(0)
    edited: Any = described_value(HOLDERS[holder](notebook("SLOPE = 0.2")))
    assert current[OWN_GLOBALS] != edited[OWN_GLOBALS]
    with pytest.raises(CheckpointError, match=r"objective\.held read other values by global names"):
        require_same(tmp_path, run(current), run(edited))
    earlier = {name: value for name, value in current.items() if name != OWN_GLOBALS}
    require_same(tmp_path, run(earlier if len(earlier) > 1 else earlier["class"]), run(current))


def test_code_of_installed_packages_reads_nothing() -> None:
    assert globals_read(torch.nn.Linear, np.mean, pytest.raises, 3, None, ModuleType("empty")) == {}
