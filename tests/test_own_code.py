"""What a user's objective, closed form and way of storing are belongs to a run's identity: their code and content."""

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdistill.code_digests import code_value
from mmdistill.described import OWN_CODE, OWN_TENSORS, described, described_module, described_value
from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.errors import CheckpointError
from mmdistill.evaluate import evaluate
from mmdistill.method import Method
from mmdistill.methods import fresh, unread
from mmdistill.metrics import metrics_document
from mmdistill.objectives.base import Network, Objective, class_means
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import RealSamples, raw_samples
from mmdistill.reporting.comparison import judged_runs, read_runs
from mmdistill.reporting.side_by_side import titles
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.store import read_json, write_json
from mmdistill.task import Batch, ClassBatch, Task
from tests.toys import BlobTask

Side = Batch | ClassBatch


def settings(ipc: int) -> Settings:
    return Settings(steps=6, real_batch=8, optimizers={"codes": OptimizerSpec("sgd", 0.1)})


class Held(Objective):
    """Class means apart, as what it holds measures them."""

    reads_labels = False

    def __init__(self, measure: Callable[[Tensor], Tensor] = torch.square, weights: object = 1.0) -> None:
        super().__init__()
        self.measure, self.weights = measure, weights

    def forward(self, network: Network, syn: Side, real: Side, draws: Draws) -> Tensor:
        apart = class_means(network, syn)[-1] - class_means(network, real)[-1].detach()  # type: ignore[arg-type]
        weights = self.weights if isinstance(self.weights, Tensor | float) else torch.as_tensor(self.weights)
        return (self.measure(apart) * weights).sum()


def edited(power: int) -> type[Objective]:
    """The class Mine, whose file is edited between two runs."""

    class Mine(Held):
        if power == 1:

            def forward(self, network: Network, syn: Side, real: Side, draws: Draws) -> Tensor:
                return super().forward(network, syn, real, draws).sqrt()

    return Mine


def own(objective: Callable[[], Objective]) -> Method:
    return Method("Own", objective, fresh, settings)


def widened(width: float) -> Callable[[Tensor], Tensor]:
    def kernel(x: Tensor) -> Tensor:
        return x.square() / width

    def outer(x: Tensor) -> Tensor:
        return kernel(x)

    return outer


class Widened:
    """A function with a number."""

    def __init__(self, width: float) -> None:
        self.width, self.owner = width, self

    def __call__(self, x: Tensor) -> Tensor:
        return x.square() / self.width


def with_default(holder: Widened) -> Callable[[Tensor], Tensor]:
    def kernel(x: Tensor, held: Widened = holder) -> Tensor:
        return held(x)

    return kernel


def through(holder: Widened) -> Callable[[Tensor], Tensor]:
    return lambda x: holder(x)


class Projecting(Objective):
    """Means of the inputs, projected by a network of its own."""

    reads_labels = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, network: Network, syn: Side, real: Side, draws: Draws) -> Tensor:
        self.seen = self.seen + 1
        mine, theirs = ((side.batch if isinstance(side, ClassBatch) else side).inputs for side in (syn, real))
        assert isinstance(mine, Tensor)
        assert isinstance(theirs, Tensor)
        return (self.network(mine).mean(1) - self.network(theirs).mean(1)).square().sum()


def seeded(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())


PAIRS: dict[str, tuple[Callable[[], Objective], Callable[[], Objective]]] = {
    "code": (edited(1), edited(2)),
    "closure": (lambda: Held(widened(1.0)), lambda: Held(widened(2.0))),
    "object": (lambda: Held(Widened(1.0)), lambda: Held(Widened(2.0))),
    "closure of an object": (lambda: Held(through(Widened(1.0))), lambda: Held(through(Widened(2.0)))),
    "tensor": (lambda: Held(weights=torch.ones(1)), lambda: Held(weights=2 * torch.ones(1))),
    "array": (lambda: Held(weights=np.ones(1, np.float32)), lambda: Held(weights=2 * np.ones(1, np.float32))),
    "network": (lambda: Projecting(seeded(1)), lambda: Projecting(seeded(2))),
}


@pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS)
def test_another_objective_of_the_same_name_never_gets_the_first_ones_set(
    first: Callable[[], Objective], second: Callable[[], Objective], tmp_path: Path
) -> None:
    task = BlobTask()
    made = distill(task, own(first), ipc=1, out=tmp_path, resume="auto")
    again = distill(task, own(first), ipc=1, out=tmp_path, resume="auto")
    assert torch.equal(made.batch.inputs, again.batch.inputs)  # type: ignore[arg-type]
    assert "0x" not in json.dumps(made.described)
    with pytest.raises(CheckpointError, match=r"described\.objective.*another folder"):
        distill(task, own(second), ipc=1, out=tmp_path, resume="auto")


def stop_at(step: int) -> Callable[[int, int, float], None]:
    def stop(done: int, total: int, loss: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    return stop


def test_a_stopped_run_does_not_go_on_with_edited_code(tmp_path: Path) -> None:
    task = BlobTask()
    with pytest.raises(KeyboardInterrupt):
        distill(task, own(edited(1)), ipc=1, out=tmp_path, checkpoint_every=1, progress=stop_at(2))
    with pytest.raises(CheckpointError, match=r"described\.objective ran other code .*another folder, or leave"):
        distill(task, own(edited(2)), ipc=1, out=tmp_path, resume=True)
    assert distill(task, own(edited(1)), ipc=1, out=tmp_path, resume=True).steps == 6


def test_weights_that_an_objective_draws_for_itself_follow_the_seed_and_leave_a_run_resumable(tmp_path: Path) -> None:
    task, method = BlobTask(), own(lambda: Projecting(nn.Linear(4, 3)))
    whole = distill(task, method, ipc=1)
    torch.rand(3)
    with pytest.raises(KeyboardInterrupt):
        distill(task, method, ipc=1, out=tmp_path, checkpoint_every=1, progress=stop_at(3))
    torch.rand(3)
    resumed = distill(task, method, ipc=1, out=tmp_path, resume=True)
    assert torch.equal(resumed.batch.inputs, whole.batch.inputs)  # type: ignore[arg-type]
    other = distill(task, method, ipc=1, seed=1)
    assert other.described == whole.described


def test_a_frozen_network_within_an_objective_is_not_learned() -> None:
    made = distill(BlobTask(), own(lambda: Projecting(seeded(1))), ipc=1)
    assert made.steps == 6
    assert made.history[-1].loss < made.history[0].loss


def test_compare_keeps_runs_apart_that_differ_in_what_an_objective_is(tmp_path: Path) -> None:
    task = BlobTask()
    folders = []
    for name, made in {"a": PAIRS["network"][0], "b": PAIRS["network"][1], "c": edited(1), "d": edited(2)}.items():
        folders.append(tmp_path / name)
        result = distill(task, own(made), ipc=1, out=folders[-1])
        write_json(folders[-1] / "metrics.json", metrics_document(task, result, evaluate(task, result, n=1)))
    rows = read_runs(judged_runs(folders)[0])
    assert len(rows) == 4
    assert len(set(titles(rows))) == 4


def first_of_classes(task: Task, budget: int, settings: Settings, draws: Draws) -> Parameterization:
    assert task.labels is not None
    return RealSamples(task, task.labels.unique(return_inverse=True)[1].argsort(stable=True)[:: len(task.labels) // 3])


def last_of_classes(task: Task, budget: int, settings: Settings, draws: Draws) -> Parameterization:
    assert task.labels is not None
    return RealSamples(task, task.labels.argsort(stable=True).flip(0)[:: len(task.labels) // 3])


def solved_by(solve: Callable[..., Parameterization]) -> Method:
    return Method("Solved", None, unread, lambda ipc: Settings(steps=0), solve=solve)


@pytest.mark.parametrize("wrapped", [lambda solve: solve, partial])
def test_another_closed_form_of_the_same_name_never_gets_the_first_ones_set(wrapped: Any, tmp_path: Path) -> None:
    first, second = (solved_by(wrapped(solve)) for solve in (first_of_classes, last_of_classes))
    made = distill(BlobTask(), first, ipc=1, out=tmp_path, resume="auto")
    assert distill(BlobTask(), first, ipc=1, out=tmp_path, resume="auto").described == made.described
    with pytest.raises(CheckpointError, match=r"described\.solve.*another folder"):
        distill(BlobTask(), second, ipc=1, out=tmp_path, resume="auto")


def test_another_way_of_storing_of_the_same_name_is_told_apart(tmp_path: Path) -> None:
    def stored(scale: float) -> Method:
        def build(task: Task, budget: int, settings: Settings, label: Any, draws: Draws) -> Parameterization:
            return raw_samples(task, int(budget * scale), settings.init, label, draws)

        return Method("Stored", Held, fresh, settings, parameterization=build)

    distill(BlobTask(), stored(1.0), ipc=2, out=tmp_path, resume="auto")
    with pytest.raises(CheckpointError, match=r"described\.storage ran other code"):
        distill(BlobTask(), stored(0.5), ipc=2, out=tmp_path, resume="auto")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_values_that_are_equal_are_described_alike_and_others_are_not() -> None:
    coordinates = torch.tensor([[0, 1], [1, 0]])
    sparse = [
        torch.sparse_coo_tensor(coordinates, torch.tensor(values), (2, 2), check_invariants=True)
        for values in ([1.0, 2.0], [1.0, 3.0])
    ]
    names = [np.array(["a", "b"]), np.array(["a", "c"])]
    objects = [np.array([1, None], dtype=object), np.array([2, None], dtype=object)]
    bools = [np.bool_(True), np.bool_(False)]
    pairs: list[tuple[Any, Any]] = [
        (sparse[0], sparse[1]),
        (sparse[0].to_sparse_csr(), sparse[1].to_sparse_csr()),  # type: ignore[no-untyped-call]
        (names[0], names[1]),
        (objects[0], objects[1]),
        (bools[0], bools[1]),
        ({1, 2}, {1, 3}),
        (1j, 2j),
        (range(2), range(3)),
        (Widened, Held),
        (torch.device("cpu"), torch.device("meta")),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
        (with_default(Widened(1.0)), with_default(Widened(2.0))),
    ]
    for one, other in pairs:
        again = one.clone() if isinstance(one, Tensor) else copy.deepcopy(one)
        assert described_value(one) == described_value(again) != described_value(other)
        assert json.loads(json.dumps(described_value(one))) == described_value(one)
        assert "0x" not in json.dumps(described_value(one))


def test_code_of_properties_and_static_methods_counts() -> None:
    def kind(most: int) -> type:
        class Kind:
            @property
            def samples_read(self) -> int:
                return self.twice(most)

            @staticmethod
            def twice(n: int) -> int:
                return 2 * n if most < 3 else n

        return Kind

    one, same, other = (described(kind(most)())[OWN_CODE] for most in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property])
def test_a_method_of_another_kind_is_other_code(wrap: Callable[..., Any]) -> None:
    def twice(n: int) -> int:
        return 2 * n

    plain, wrapped = (type("Kind", (), {"twice": held}) for held in (twice, wrap(twice)))
    assert described(plain())[OWN_CODE] != described(wrapped())[OWN_CODE]


def test_a_short_value_is_written_out_wherever_a_function_holds_it() -> None:
    assert code_value([widened, {"again": widened}]) == [code_value(widened), [("again", code_value(widened))]]


def test_a_function_counts_alike_wherever_it_is_written() -> None:
    def written_elsewhere() -> Callable[[Any], Any]:
        return lambda x: x * 2

    assert described_value(lambda x: x * 2) == described_value(written_elsewhere())
    assert described_value(lambda x: x * 3) != described_value(written_elsewhere())


def test_networks_in_a_module_with_a_name_of_pythons_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptions = []
    for factor in (1, 20):  # of another length, which the cached code of the file goes by
        (tmp_path / "profile.py").write_text(
            f"import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x * {factor}\n"
        )
        specification = importlib.util.spec_from_file_location("profile", tmp_path / "profile.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, "profile", module)
        specification.loader.exec_module(module)
        descriptions.append(described_module(module.Net()))
    assert descriptions[0] != descriptions[1]


def test_attributes_beside_the_fields_of_a_dataclass_are_described_by_name() -> None:
    @dataclass
    class Power:
        exponent: int

        def __post_init__(self) -> None:
            self.twice, self._cache = 2 * self.exponent, object()

    assert described(Power(2)).keys() == {"class", OWN_CODE, "exponent", "twice"}


def test_private_buffers_and_attributes_are_no_part_of_what_an_objective_is() -> None:
    one, other = Held(), Held()
    other.register_buffer("_cache", torch.ones(2))
    other._log = [1]  # type: ignore[assignment]
    assert described(one) == described(other)
    other.register_buffer("table", torch.ones(2))
    assert described(other)[OWN_TENSORS]


def test_a_function_that_calls_itself_is_described() -> None:
    def recursive(n: int) -> int:
        return recursive(n - 1) if n else 0

    assert described_value(recursive) == described_value(recursive)


def test_the_set_says_what_its_code_was(tmp_path: Path) -> None:
    distill(BlobTask(), own(Held), ipc=1, out=tmp_path)
    assert DistilledSet.load(tmp_path).described["objective"][OWN_CODE]  # type: ignore[index]
    assert read_json(tmp_path / "distilled.json")["described"]["objective"]["measure"] == "square"
