"""What only the start of a run can tell of its parts is refused there, in words."""

import math
import random
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from mmdistill.distill import distill
from mmdistill.errors import ConfigError, MmdistillError, MmdistillWarning, ShapeError
from mmdistill.labels import FixedLabels, LabelKind, make_labels
from mmdistill.method import Method, Storage
from mmdistill.methods import CORE_METHODS, fresh
from mmdistill.networks.schedules import (
    EMPTY,
    FreshNetworks,
    NetworkSchedule,
    ScheduleState,
    Synthetic,
    TrainedOnS,
)
from mmdistill.objectives.base import Network, Objective, class_means, class_sides
from mmdistill.objectives.distribution import DistributionMatching
from mmdistill.objectives.infinite_width import convolutional, fully_connected
from mmdistill.parameterizations.base import Parameterization
from mmdistill.parameterizations.raw import Raw
from mmdistill.runs.first_step import Unsaved
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch, ClassBatch, Inputs, NetworkState, Task, Tensors
from mmdistill.testing import ConformanceError, check_objective_on
from tests.toys import BlobTask


def settings(ipc: int) -> Settings:
    return Settings(steps=3, real_batch=8, optimizers={"codes": OptimizerSpec("sgd", 0.1)})


class Forgetful(DistributionMatching):
    """Matches by class and forgets to say that it reads no labels."""

    reads_labels = True


class Scaled(DistributionMatching):
    """Has a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Meddling(DistributionMatching):
    """Does something beside its loss with what it is given."""

    def __init__(self, meddle: Callable[[Network, Batch, Batch], object]) -> None:
        super().__init__()
        self.meddle = meddle

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        assert isinstance(syn, ClassBatch)
        assert isinstance(real, ClassBatch)
        with torch.no_grad():
            self.meddle(network, syn.batch, real.batch)
        return super().forward(network, syn, real, draws)


@pytest.mark.parametrize(
    ("what", "meddle"),
    [
        ("synthetic samples", lambda network, syn, real: syn.inputs.clamp_(0, 1)),
        ("real samples", lambda network, syn, real: real.inputs.mul_(0.5)),
        ("real samples", lambda network, syn, real: real.weight.fill_(1)),
        ("network", lambda network, syn, real: [p.mul_(0.5) for p in network.state.params.values()]),
    ],
)
def test_an_objective_that_changes_what_it_is_given_is_refused(
    what: str, meddle: Callable[[Network, Batch, Batch], object]
) -> None:
    method = Method("Meddling", lambda: Meddling(meddle), fresh, settings)
    with pytest.raises(ConfigError, match=rf"Meddling changes the {what} in place.*let it make new tensors"):
        distill(BlobTask(), method, ipc=1)


def test_conformance_tells_of_changes_behind_autograds_back() -> None:
    def scale(network: Network, syn: Batch, real: Batch) -> None:
        assert isinstance(real.inputs, Tensor)
        real.inputs.data.mul_(0.5)

    with pytest.raises(ConformanceError, match="changes the real samples in place"):
        check_objective_on(BlobTask(), lambda: Meddling(scale))


@pytest.mark.parametrize(
    ("source", "draw"),
    [
        ("torch's", lambda network, syn, real: torch.rand(())),
        ("numpy's", lambda network, syn, real: np.random.rand()),  # noqa: NPY002  # users still draw from it
        ("Python's", lambda network, syn, real: random.random()),
    ],
)
def test_runs_warn_of_numbers_that_no_key_gives(source: str, draw: Callable[[Network, Batch, Batch], object]) -> None:
    method = Method("Meddling", lambda: Meddling(draw), fresh, settings)
    with pytest.warns(MmdistillWarning, match=f"Meddling draws random numbers from {source} global generator"):
        distill(BlobTask(), method, ipc=1)


def test_runs_do_not_warn_of_keyed_draws() -> None:
    def draw(network: Network, syn: Batch, real: Batch) -> None:
        Draws(0).normal(3)
        torch.rand(3, generator=Draws(0).generator())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert distill(BlobTask(), Method("Meddling", lambda: Meddling(draw), fresh, settings), ipc=1).steps == 3


def test_labels_that_no_gradient_reaches_are_refused() -> None:
    method = Method("Forgetful", Forgetful, fresh, settings)
    with pytest.raises(ConfigError, match=r"no gradient to the labels.*say reads_labels = False.*or use hard labels"):
        distill(BlobTask(), method, ipc=1, label="soft")
    assert distill(BlobTask(), method, ipc=1).steps == 3


def test_an_objectives_unread_parameters_are_refused() -> None:
    rates = {"codes": OptimizerSpec("sgd", 0.1), "objective": OptimizerSpec("adam", 0.01)}
    method = Method("Scaled", Scaled, fresh, lambda ipc: replace(settings(ipc), optimizers=rates))
    with pytest.raises(ConfigError, match=r"Scaled gives no gradient to the objective.*read its parameters in forward"):
        distill(BlobTask(), method, ipc=1)


class CutOff(BlobTask):
    """A task whose network lets no gradient through to its inputs."""

    def predict(
        self, state: NetworkState, inputs: Inputs, *, train: bool = False, draws: Draws | None = None
    ) -> tuple[Tensor, Tensors]:
        assert isinstance(inputs, Tensor)
        return super().predict(state, inputs.detach(), train=train, draws=draws)


def test_an_unrolled_training_that_is_cut_off_is_refused() -> None:
    few = {"steps": 2, "inner_steps": 2}
    with pytest.raises(ConfigError, match=r"to all samples are exactly zero.*detach"):
        distill(CutOff(), "dd", ipc=1, settings=few)
    assert distill(BlobTask(), "dd", ipc=1, settings=few).steps == 2


class Weighted(Raw):
    """Raw samples whose weights are set."""

    factors: Tensor

    def forward(self, draws: Draws) -> Batch:
        decoded = super().forward(draws)
        return decoded._replace(weight=decoded.weight * self.factors)


Classes = Callable[[Tensor], Tensor | None]


def storage(change: Classes = lambda classes: classes, weight: Tensor | None = None) -> Storage:
    def build(task: Task, budget: int, own: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        classes = torch.arange(3).repeat_interleave(budget)
        inputs = draws.normal(len(classes), 4)
        made = Weighted(inputs, make_labels(label, classes, 3), change(classes), 3)
        made.register_buffer("factors", torch.ones(len(classes)) if weight is None else weight)
        return made

    return Storage(build, "set")


def test_classes_that_contradict_the_hard_labels_are_refused() -> None:
    task = BlobTask()
    with pytest.raises(ConfigError, match=r"says class 2 of sample 0, whose hard label is 0 \(4 of 6 samples differ\)"):
        distill(task, CORE_METHODS["dm"].with_settings(steps=2), ipc=2, parameterization=storage(lambda c: c.flip(0)))
    assert distill(task, "dm", ipc=2, parameterization=storage(), settings={"steps": 2}).steps == 2


def test_samples_without_classes_are_refused_where_these_are_matched() -> None:
    with pytest.raises(ConfigError, match="matches class by class, and Weighted says the classes of no samples"):
        distill(BlobTask(), "dm", ipc=2, parameterization=storage(lambda classes: None), settings={"steps": 2})


@pytest.mark.parametrize(
    ("weight", "message"),
    [(torch.zeros(3), "all samples with"), (torch.tensor([1.0, 0.0, 0.0]), "all samples of class 1 with")],
)
def test_samples_that_weigh_nothing_are_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=f"Weighted decodes {message} weight 0"):
        distill(BlobTask(), "dm", ipc=1, parameterization=storage(weight=weight), settings={"steps": 2})


class Unweighing(BlobTask):
    """Real samples of one class have no weight, nor have those that are drawn from all classes together."""

    def sample_real(self, draws: Draws, classes: Tensor | None, n: int) -> Batch | ClassBatch:
        found = super().sample_real(draws, classes, n)
        weight = found.batch.weight[1] if isinstance(found, ClassBatch) else found.weight
        weight.zero_()
        return found


@pytest.mark.parametrize(("method", "which"), [("dm", "of class 1 "), ("dc", "of class 1 "), ("krr", "")])
def test_real_samples_that_weigh_nothing_are_refused(method: str, which: str) -> None:
    with pytest.raises(ConfigError, match=f"Unweighing.sample_real gives all samples {which}with weight 0"):
        distill(Unweighing(), method, ipc=1, settings={"steps": 2})
    assert distill(Unweighing(), "mtt", ipc=1, settings={"steps": 1, "experts": 1}).steps == 1  # reads none


class Summed(Objective):
    """Takes features of all classes at once, as no network does."""

    reads_labels = False

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        syn, real = class_sides(syn, real, "sums")
        apart = network.features(syn.batch.inputs)[-1] - network.features(real.batch.inputs)[-1]
        return apart.square().sum()


class Flat(BlobTask):
    """A task whose network takes samples of 2 x 2 numbers in one axis alone."""

    def features(self, state: NetworkState, inputs: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(inputs, Tensor)
        return (torch.nn.functional.conv1d(inputs[:, None], torch.ones(1, 1, 2)).flatten(1),)


def test_features_of_a_class_axis_name_what_gives_them() -> None:
    with pytest.raises(ShapeError, match=r"got inputs of \(3, 2, 4\); class_summary and class_means"):
        distill(Flat(), Method("Summed", Summed, fresh, settings), ipc=2)


class Served(NetworkSchedule):
    """Returns what it is given."""

    def __init__(self, state: Callable[[ScheduleState], object]) -> None:
        self.state = state

    def advance(self, task: Task, state: ScheduleState, syn: Synthetic, draws: Draws) -> ScheduleState:
        return self.state(state)  # type: ignore[return-value]


class Means(Objective):
    """Matches class means."""

    reads_labels = False

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        syn, real = class_sides(syn, real, "means")
        return (class_means(network, syn)[-1] - class_means(network, real)[-1].detach()).square().sum()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda state: None, "Served.advance returns a ScheduleState, got NoneType"),
        (
            lambda state: ScheduleState(state.network, 1, {"mean": {}}),
            "keeps 'mean' in its memory, a dict",
        ),
        (lambda state: ScheduleState(state.network, 1, {"count": 3}), "keeps 'count' in its memory, a int"),
        (lambda state: ScheduleState(state.network, 1, None), "memory as a dict of tensors by name, got NoneType"),
        (lambda state: ScheduleState({}, 1, {}), "a network as a NetworkState or None, got dict"),
        (lambda state: state, "keeps the network at age 0 after 0, so that it would be drawn anew"),
    ],
)
def test_schedules_that_cannot_go_on_are_refused(returned: Callable[[ScheduleState], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(BlobTask(), Method("Served", Means, lambda own: Served(returned), settings), ipc=1)


@pytest.mark.parametrize(
    "returned", [lambda state: EMPTY, lambda state: state._replace(age=state.age + 1, memory={"x": torch.ones(2)})]
)
def test_schedules_that_can_go_on_do(returned: Callable[[ScheduleState], object]) -> None:
    assert distill(BlobTask(), Method("Served", Means, lambda own: Served(returned), settings), ipc=1).steps == 3


@pytest.mark.parametrize("kind", [FreshNetworks, TrainedOnS])
def test_a_schedules_class_in_place_of_a_function_is_refused(kind: type[NetworkSchedule]) -> None:
    with pytest.raises(ConfigError, match=f"such as lambda settings: {kind.__name__}\\(\\), got the class itself"):
        distill(BlobTask(), Method("Class", Means, kind, settings), ipc=1)


class OfSettings(FreshNetworks):
    """Made of the settings, as a method's network is."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings


def test_a_class_that_is_made_of_settings_is_such_a_function() -> None:
    assert distill(BlobTask(), Method("Class", Means, OfSettings, settings), ipc=1).steps == 3


@pytest.mark.parametrize("kernel", [fully_connected, convolutional])
def test_kernels_of_whole_numbers_are_refused(kernel: Callable[..., object]) -> None:
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    given = pixels if kernel is convolutional else pixels.flatten(1)
    with pytest.raises(MmdistillError, match=r"floating-point numbers, got torch\.uint8"):
        kernel(given, given)


def own_labels(targets: Tensor) -> Storage:
    def build(task: Task, budget: int, own: Settings, label: LabelKind, draws: Draws) -> Parameterization:
        return Raw(draws.normal(3, 4), FixedLabels(targets), torch.arange(3), 3)

    return Storage(build, "own labels")


def test_labels_asked_for_beside_a_storage_with_its_own_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    shares = torch.full((3, 3), 0.1) + 0.7 * torch.eye(3)
    few = {"steps": 2}
    result = distill(BlobTask(), "dm", ipc=1, parameterization=own_labels(shares), label="teacher", settings=few)
    assert result.label == "fixed probabilities"
    assert "labels of their own (fixed probabilities): label teacher is not read" in caplog.text
    caplog.clear()
    distill(BlobTask(), "dm", ipc=1, parameterization=own_labels(shares), settings=few)
    distill(BlobTask(), "dm", ipc=1, label="teacher", settings={**few, "teacher_epochs": 1})
    assert "labels of their own" not in caplog.text


@pytest.mark.parametrize(
    ("targets", "title"),
    [
        (torch.arange(3), "hard"),
        (torch.full((2, 4), 0.25), "fixed probabilities"),
        (torch.tensor([[0.333, 0.333, 0.3335]]), "fixed probabilities"),  # as losses read them
        (torch.tensor([[2.0, -1.0]]), "fixed scores"),
        (torch.tensor([[2.0, 1.0]]), "fixed scores"),
    ],
)
def test_fixed_labels_say_what_they_are(targets: Tensor, title: str) -> None:
    assert FixedLabels(targets).title == title


@dataclass
class Counter:
    """A number in a dataclass, which says what it is, and another that does not."""

    n: int = 0
    beside: int = field(default=0, compare=False)
    _read: int = 0

    def value(self) -> int:
        return self.n


class Log:
    """An object that knows its owner."""

    def __init__(self, owner: object) -> None:
        self.owner, self.values, self._seen = owner, list[int](), 0


class Remembering(DistributionMatching):
    """Changes something of its own in each step."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        self.others = [Counter() for _ in range(40)]
        self.calls, self.mean, self._cache = 0, torch.zeros(2), 0
        self.means, self.byname, self.array = [torch.ones(2)], {"a": torch.ones(2)}, np.zeros(2)
        self.recent, self.parts, self.broken = deque[int](), nn.Sequential(nn.Identity()), math.nan
        self.parts[0].calls = 0
        self.register_buffer("kept", torch.zeros(2))
        self.both = {"kept": self.kept}
        self.steps, self.state, self.power = np.int64(0), Counter(), partial(pow, 2)
        self.log, self._change = Log(self), change
        self.matrix = sparse.csc_array((np.ones(2), np.array([1, 0]), np.array([0, 2, 2])), shape=(2, 2))
        self.rounded, self.get, self.seen = partial(round, ndigits=2), Counter(2).value, {0}
        self.texts, self.hidden = np.array(["a"], dtype=object), [nn.Linear(2, 2)]
        self.deep = Log(self)
        for _ in range(400):
            self.deep = Log(self.deep)
        with torch.inference_mode():
            self.fixed = torch.ones(2)

    def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
        self._change(self)
        return super().forward(network, syn, real, draws)


def counts(made: Any) -> None:
    made.calls += 1


def averages(made: Any) -> None:
    made.mean = 0.9 * made.mean


def averages_in_place(made: Any) -> None:
    made.mean.mul_(0.9)


def adds(made: Any) -> None:
    made.found = made.mean


def averages_in_a_list(made: Any) -> None:
    made.means[0] = 0.9 * made.means[0]


def writes_in_a_mapping(made: Any) -> None:
    made.byname["a"].mul_(0.9)


def writes_an_array(made: Any) -> None:
    made.array += 1


def appends(made: Any) -> None:
    made.recent.append(1)


def counts_in_a_part(made: Any) -> None:
    made.parts[0].calls += 1


def counts_in_numpy(made: Any) -> None:
    made.steps = made.steps + 1


def counts_in_a_dataclass(made: Any) -> None:
    made.state.n += 1


def counts_beside_what_is_compared(made: Any) -> None:
    made.state.beside += 1


def takes_another_argument(made: Any) -> None:
    made.power = partial(pow, made.power.args[0] + 1)


def takes_another_option(made: Any) -> None:
    made.rounded = partial(round, ndigits=3)


def takes_the_method_of_another(made: Any) -> None:
    made.get = Counter(made.get() + 1).value


def notes_in_a_set(made: Any) -> None:
    made.seen.add(1)


def writes_an_array_of_texts(made: Any) -> None:
    made.texts[0] += "a"


def trains_what_is_no_part(made: Any) -> None:
    with torch.no_grad():
        made.hidden[0].weight.mul_(0.5)


def logs(made: Any) -> None:
    made.log.values.append(1)


def caches(made: Any) -> None:
    made.parts.eval()  # as the next step does
    made.matrix.sort_indices()
    made.log._seen += 1
    made.state._read += 1
    made._cache += 1
    made.kept += 1
    made.both["kept"].mul_(1.5)


def renews(made: Any) -> None:
    made.table.loc[0, "a"] += 1
    made.array, made.state = made.array.copy(), Counter()


def counts_late(made: Any) -> None:
    made._cache += 1
    made.calls = made._cache // 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (counts, "calls"),
        (averages, "mean"),
        (averages_in_place, "mean"),
        (adds, "found"),
        (averages_in_a_list, "means"),
        (writes_in_a_mapping, "byname"),
        (writes_an_array, "array"),
        (appends, "recent"),
        (counts_in_a_part, r"parts\.0\.calls"),
        (counts_in_numpy, "steps"),
        (counts_in_a_dataclass, "state"),
        (counts_beside_what_is_compared, "state"),
        (takes_another_argument, "power"),
        (takes_another_option, "rounded"),
        (takes_the_method_of_another, "get"),
        (notes_in_a_set, "seen"),
        (writes_an_array_of_texts, "texts"),
        (trains_what_is_no_part, "hidden"),
        (logs, "log"),
    ],
)
def test_what_checkpoints_do_not_hold_may_not_change(change: Callable[[Any], None], name: str) -> None:
    method = Method("Remembering", lambda: Remembering(change), fresh, settings)
    with pytest.raises(ConfigError, match=f"Remembering has changed its {name}, .*buffers.*network.step"):
        distill(BlobTask(), method, ipc=1)


def test_tables_and_equal_objects_in_anothers_place_may_change(tmp_path: Path) -> None:
    class WithTable(Remembering):
        def __init__(self) -> None:
            super().__init__(renews)
            self.table = pytest.importorskip("pandas").DataFrame({"a": [0.0]})

    distill(BlobTask(), Method("WithTable", WithTable, fresh, settings), ipc=1, out=tmp_path, compile="off")


def test_arrays_are_read_after_the_first_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remembering(caches)
    unsaved = Unsaved(made)
    unsaved.require_unchanged()
    with monkeypatch.context() as patched:
        patched.setattr("mmdistill.runs.first_step.np.ascontiguousarray", None)
        unsaved.require_unchanged()
    made.array = made.array + 1
    with pytest.raises(ConfigError, match="has changed its array"):
        unsaved.require_unchanged()


def test_what_is_learned_may_not_change_within_a_run() -> None:
    class Unfreezing(Remembering):
        def __init__(self) -> None:
            super().__init__(caches)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

        def forward(self, network: Network, syn: Batch | ClassBatch, real: Batch | ClassBatch, draws: Draws) -> Tensor:
            self.frozen.requires_grad_(self._cache > 1)
            return super().forward(network, syn, real, draws)

    with pytest.raises(ConfigError, match=r"changed whether its frozen\.bias and frozen\.weight is learned"):
        distill(BlobTask(), Method("Unfreezing", Unfreezing, fresh, settings), ipc=1, compile="off")


def test_what_changes_later_is_told_before_a_checkpoint_without_it(tmp_path: Path) -> None:
    method = Method("Remembering", lambda: Remembering(counts_late), fresh, settings)
    with pytest.raises(ConfigError, match="has changed its calls"):
        distill(BlobTask(), method, ipc=1, out=tmp_path, compile="off")
    assert not (tmp_path / "distilled.json").exists()


def test_buffers_and_private_attributes_may_change(tmp_path: Path) -> None:
    method = Method("Remembering", lambda: Remembering(caches), fresh, settings)
    assert distill(BlobTask(), method, ipc=1, out=tmp_path).steps == 3
