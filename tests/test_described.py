"""What is set of an objective and a schedule belongs to a run's identity, whatever name its method has."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill.described import OWN_CODE, OWN_LAYERS, OWN_TENSORS, described, described_module, described_value
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError
from mmdistill.evaluate import evaluate
from mmdistill.image.methods.matching import COLOR_CROP, COLOR_CROP_CUTOUT
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS, fresh
from mmdistill.metrics import metrics_document
from mmdistill.networks.schedules import EMPTY, NetworkSchedule, ScheduleState, Synthetic, TrainedOnS
from mmdistill.networks.unroll import Unrolling
from mmdistill.objectives.base import Network, Objective, class_means, class_sides
from mmdistill.objectives.distances import row_cosine
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.reporting.comparison import judged_runs, read_runs
from mmdistill.reporting.side_by_side import titles
from mmdistill.runs.checkpoints import require_same
from mmdistill.runtime import Draws, host_draws_from
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.store import write_json
from mmdistill.task import Batch, ClassBatch, Task
from tests.toys import BlobTask


@dataclass(frozen=True)
class Options:
    power: float = 2.0
    _cache: dict[int, int] = field(default_factory=dict, compare=False)

    def taken(self, x: Tensor) -> Tensor:
        return x**self.power


class Powered(Objective):
    """A power of the distances between class means, times a factor."""

    reads_labels = False
    offset = 0.5

    def __init__(self, factor: float, options: Options | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.options = options or Options()

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        syn, real = class_sides(syn, real, "powers")
        apart = class_means(network, syn)[-1] - class_means(network, real)[-1].detach()
        return self.factor * (apart.abs() ** self.options.power).sum()


class Composed(Powered):
    """Has attributes of all kinds."""

    def __init__(self, factor: float, options: Options | None = None) -> None:
        super().__init__(factor, options)
        self.measure = torch.sum
        self.names = ("a", None, True)
        self.scale = nn.Parameter(torch.ones(()))
        self.layer = nn.Linear(2, 3)
        self.stack = nn.Sequential(nn.Linear(2, 3))
        self.inner = Powered(1.0)
        self.cache = {1: torch.ones(2)}


class Serving(NetworkSchedule):
    """One network for some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        return EMPTY if state.age + 1 >= self.steps else state._replace(age=state.age + 1)


def settings(ipc: int) -> Settings:
    return Settings(steps=6, real_batch=8, optimizers={"codes": OptimizerSpec("sgd", 0.1)})


def powered(factor: float = 1.0, power: float = 2.0) -> Method:
    return Method("Powered", lambda: Powered(factor, Options(power)), fresh, settings)


def serving(steps: int) -> Method:
    return Method("Powered", powered().objective, lambda settings: Serving(steps), settings)


def test_a_description_says_what_is_set_and_nothing_of_memory() -> None:
    with host_draws_from(0):
        found = described(Composed(3, Options(1.5)))
    assert found["class"] == "Composed"
    assert (found["factor"], found["offset"], found["measure"], found["names"]) == (3, 0.5, "sum", ["a", None, True])
    assert found["options"] == {"class": "Options", OWN_CODE: code_of(Options), "power": 1.5}
    assert found["inner"] == described(Powered(1.0))
    assert isinstance(layer := found["layer"], dict)
    assert set(layer) == {"class", "in_features", "out_features", OWN_TENSORS}
    assert isinstance(stack := found["stack"], dict)
    assert set(stack) == {"class", OWN_LAYERS, OWN_TENSORS}
    assert isinstance(cache := found["cache"], dict)
    assert set(cache["1"]) == {"class", OWN_TENSORS}
    assert not {"scale", "training", "reads_labels", "view"} & set(found)
    assert "0x" not in json.dumps(found)
    with host_draws_from(0):
        assert json.loads(json.dumps(found)) == described(Composed(3, Options(1.5)))
    with host_draws_from(1):
        other = described(Composed(3, Options(1.5)))
    assert {name for name in found if found[name] != other[name]} == {"layer", "stack"}


def code_of(kind: type) -> object:
    """The digest of a class's code in a description of one of its objects."""
    value = described_value(kind)
    assert isinstance(value, dict)
    return value[OWN_CODE]


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: factor * x


def test_methods_and_functions_without_a_name_are_told_apart_by_what_they_hold() -> None:
    def own(measure: object) -> object:
        made = Powered(1.0)
        made.measure = measure  # type: ignore[assignment]
        return described(made)["measure"]

    assert own(Options(1.5).taken) == [{"class": "Options", OWN_CODE: code_of(Options), "power": 1.5}, "taken"]
    assert own(Options(1.5).taken) != own(Options(2.5).taken)
    assert own(lambda x: x.abs()) != own(lambda x: x.square())
    assert own(scaled(2.0)) == own(scaled(2.0)) != own(scaled(3.0))
    assert own(lambda x, n=2: x * n) != own(lambda x, n=3: x * n)


def test_matching_under_other_augmentations_is_another_objective() -> None:
    one, other = (GradientMatching(row_cosine, augment=kind.of_classes) for kind in (COLOR_CROP, COLOR_CROP_CUTOUT))
    assert described(one) != described(other)
    assert described(one) == described(GradientMatching(row_cosine, augment=COLOR_CROP.of_classes))


def test_descriptions_tell_the_packages_own_schedules_apart() -> None:
    one, other = described(TrainedOnS(outer_steps=3)), described(TrainedOnS(outer_steps=4))
    assert {name for name in one if one[name] != other[name]} == {"outer_steps"}
    assert described(Unrolling(0.5, keep=1)) == described(Unrolling(0.5, keep=7))  # it bounds memory alone


def stopped(task: Task, method: Method, out: Path) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(task, method, ipc=1, out=out, checkpoint_every=1, progress=stop)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (powered(1.0), powered(8.0), r"its described\.objective\.factor is 1\.0, not 8\.0"),
        (powered(power=2.0), powered(power=4.0), r"its described\.objective\.options\.power is 2\.0, not 4\.0"),
        (serving(3), serving(5), r"its described\.schedule\.steps is 3, not 5"),
        (powered(), serving(5), r"its described\.schedule\.class is FreshNetworks, not Serving"),
    ],
)
def test_a_resume_refuses_another_objective_or_schedule_of_the_same_name(
    tmp_path: Path, first: Method, second: Method, message: str
) -> None:
    task = BlobTask()
    stopped(task, first, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        distill(task, second, ipc=1, out=tmp_path, resume=True)
    assert distill(task, first, ipc=1, out=tmp_path, resume=True).steps == 6


def test_a_run_resumes_with_other_settings_that_bound_memory(tmp_path: Path) -> None:
    task, few = BlobTask(), {"steps": 3, "inner_steps": 2}
    stopped(task, CORE_METHODS["dd"].with_settings(**few, kept_steps=1), tmp_path)
    assert distill(task, "dd", ipc=1, settings={**few, "kept_steps": 0}, out=tmp_path, resume=True).steps == 3


def judged(folder: Path, method: Method, seed: int = 0) -> Path:
    task = BlobTask()
    result = distill(task, method, ipc=1, seed=seed, out=folder)
    document = metrics_document(task, result, evaluate(task, result, n=1, baselines=[]))
    write_json(folder / "metrics.json", document)
    return folder


def test_compared_runs_of_one_name_are_told_apart_by_what_is_set(tmp_path: Path) -> None:
    made: list[tuple[str, Callable[[], Method], int]] = [
        ("a", powered, 0),
        ("b", powered, 1),
        ("c", lambda: powered(8.0), 0),
        ("d", lambda: serving(3), 0),
    ]
    runs = [judged(tmp_path / name, make(), seed) for name, make, seed in made]
    rows = read_runs(judged_runs(runs)[0])
    assert sorted(len(row.score.values) for row in rows) == [1, 1, 2]
    assert sorted(titles(read_runs(judged_runs(runs[:3])[0]))) == [
        "powered (objective factor 1.0)",
        "powered (objective factor 8.0)",
    ]
    code = f"networks own code {code_of(Serving)}"
    assert f"powered (objective factor 1.0, networks Serving, {code}, networks steps 3)" in titles(rows)
    assert DistilledSet.load(runs[2]).described["objective"]["factor"] == 8.0  # type: ignore[index]


def test_what_settings_say_already_is_not_said_again(tmp_path: Path) -> None:
    few = {"steps": 2, "real_batch": 4, "outer_steps": 2}
    runs = [
        judged(tmp_path / str(lr), CORE_METHODS["dc"].with_settings(**few, inner_steps=1, inner_lr=lr))
        for lr in (0.1, 0.2)
    ]
    assert titles(read_runs(judged_runs(runs)[0])) == ["dc (inner-lr 0.1)", "dc (inner-lr 0.2)"]


class Kind(Enum):
    ONE = 1
    OTHER = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(max, 1), partial(max, 2)),
        (Kind.ONE, Kind.OTHER),
        (torch.float32, torch.float64),
        (Path("a"), Path("b")),
        (np.str_("a"), np.str_("b")),
    ],
)
def test_values_of_one_class_are_told_apart(one: object, other: object) -> None:
    assert described(SimpleNamespace(value=one)) != described(SimpleNamespace(value=other))
    assert json.loads(json.dumps(described(SimpleNamespace(value=one)))) == described(SimpleNamespace(value=one))


def test_what_an_object_keeps_for_itself_is_not_what_it_is() -> None:
    assert described(SimpleNamespace(a=1, _opened=None)) == described(SimpleNamespace(a=1, _opened=["x"]))


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        ({"described": {"objective": {"class": "A"}}}, r"its described\.objective\.new is absent, not None"),
        ({"described": {"objective": {"class": "A", "new": None, "old": 2}}}, r"\.old is 2, not absent"),
        ({}, "its described is absent, not"),
    ],
)
def test_a_checkpoint_that_says_less_or_more_of_its_run_is_refused_by_name(
    saved: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        require_same(tmp_path, saved, {"described": {"objective": {"class": "A", "new": None}}})


def test_a_checkpoint_of_one_optimizer_more_is_refused_by_name(tmp_path: Path) -> None:
    own = {"settings": {"optimizers": {"codes": {}}}}
    with pytest.raises(CheckpointError, match=r"its settings\.optimizers\.objective is \{\}, not absent"):
        require_same(tmp_path, {"settings": {"optimizers": {"codes": {}, "objective": {}}}}, own)


class Attributes(dict[str, int]):
    """Settings as many configurations hold them: a missing one is a KeyError."""

    def __getattr__(self, name: str) -> int:
        return self[name]


def test_settings_that_are_attributes_of_a_dictionary_count_by_their_values() -> None:
    class Network(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.settings = Attributes(width=width)

    assert described_module(Network(8)) == described_module(Network(8))
    assert described_module(Network(8)) != described_module(Network(9))
