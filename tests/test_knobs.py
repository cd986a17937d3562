"""The knobs of memory and precision: what they change, and that they change nothing else."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdistill.cli import build_parser, spelled
from mmdistill.config import DistillConfig
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.evaluate import evaluate
from mmdistill.execution.precision import matrix_products, resolved
from mmdistill.labels import LabelKind
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from mmdistill.networks.schedules import ScheduleState
from mmdistill.objectives.base import (
    Network,
    class_gradients,
    class_means,
    class_summary,
    classes_at_once,
    features_at_once,
)
from mmdistill.objectives.kernel_ridge import FeatureKernel, Kernel, KernelRidgeMatching, LinearKernel
from mmdistill.objectives.ridge import RandomFeatureRidge
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.registry import get_domain, get_method
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, Scores, stack_classes
from tests.toys import BlobTask

CPU = torch.device("cpu")


def class_batch(task: BlobTask) -> ClassBatch:
    batch = task.sample_real(Draws(2), torch.arange(3), 7)
    assert isinstance(batch, ClassBatch)
    return batch


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_classes_at_once_change_no_gradient_and_no_feature(size: int) -> None:
    task = BlobTask(dtype=torch.float64)
    state, batch = task.init(Draws(1)), class_batch(task)
    few, whole = Network(task, state, classes_at_once=size), Network(task, state)
    for name, gradient in class_gradients(whole, batch).items():
        assert torch.allclose(class_gradients(few, batch)[name], gradient, atol=1e-12), name
    (few_means, few_last), (means, last) = class_summary(few, batch), class_summary(whole, batch)
    for one, other in zip((*few_means, few_last), (*means, last), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    layers = task.features(state, batch.batch.inputs.flatten(0, 1))  # type: ignore[union-attr]
    assert torch.allclose(last.flatten(0, 1), layers[-1], atol=1e-12)
    assert torch.allclose(means[0], layers[0].unflatten(0, (3, 7)).mean(1), atol=1e-12)
    assert torch.allclose(class_means(few, batch, -1)[0], class_means(whole, batch)[-1], atol=1e-12)


class Watched(BlobTask):
    """Notes for each forward pass whether a graph is kept and whether it runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()

    def features(self, state: NetworkState, inputs: Tensor | dict[str, Tensor]) -> tuple[Tensor, ...]:
        self.seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return super().features(state, inputs)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("auto", {(True, False), (False, False)}),
        ("mixed", {(True, False), (False, True)}),
        ("bf16", {(True, True), (False, True)}),
    ],
)
def test_mixed_precision_lowers_the_real_side_alone(precision: str, expected: set[tuple[bool, bool]]) -> None:
    task = Watched()
    method = CORE_METHODS["dm"].with_settings(steps=1, augment=False, real_batch=8)
    distiller = Distiller(task, method, 1, precision=precision)  # type: ignore[arg-type]
    run = distiller.start()
    task.seen.clear()  # of the check that there are features
    _, loss = distiller.step(run)
    assert task.seen == expected
    assert loss.dtype == torch.float32


class WatchedLoss(BlobTask):
    """Notes for each loss of how many samples it is, and whether it runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, bool]] = set()

    def loss(self, state: NetworkState, batch: Batch, *, train: bool = False, draws: Draws | None = None) -> Tensor:
        self.seen.add((len(batch.weight), torch.is_autocast_enabled("cpu")))
        return super().loss(state, batch, train=train, draws=draws)


@pytest.mark.parametrize(("precision", "lowered"), [("auto", False), ("mixed", False), ("bf16", True)])
def test_bf16_lowers_the_students_steps_and_the_real_loss(precision: str, lowered: bool) -> None:
    task = WatchedLoss()
    method = CORE_METHODS["dd"].with_settings(steps=1, inner_steps=2, real_batch=16)
    distiller = Distiller(task, method, 2, precision=precision)  # type: ignore[arg-type]
    distiller.step(distiller.start())
    assert task.seen == {(3, lowered), (16, lowered)}  # inner_parts: a step takes half of the six samples


@pytest.mark.parametrize("name", ["dm", "dc", "dd"])
def test_bfloat16_moves_the_samples_nearly_as_float32_does(name: str) -> None:
    moved = []
    for precision in ("float32", "mixed", "bf16"):
        specs = {"codes": OptimizerSpec("sgd", 1.0), "objective": OptimizerSpec("sgd", 1e-3)}
        changes: dict[str, object] = {"optimizers": specs, "inner_steps": 2, "augment": False, "real_batch": 16}
        distiller = Distiller(BlobTask(), CORE_METHODS[name].with_settings(**changes), 2, precision=precision)  # type: ignore[arg-type]
        run = distiller.start()
        before = next(run.parameterization.parameters()).detach().clone()
        run, _ = distiller.step(run)
        moved.append(next(run.parameterization.parameters()).detach() - before)
    for other in moved[1:]:
        assert (other - moved[0]).norm() < 0.1 * moved[0].norm()


RIDGE = replace(CORE_METHODS["dm"], objective=lambda: KernelRidgeMatching(FeatureKernel()))
CLOSED = replace(
    CORE_METHODS["dm"], solve=lambda task, budget, settings, key: raw_samples(task, budget, "real", "hard", key)
)


@pytest.mark.parametrize("method", [RIDGE, replace(RIDGE, objective=RandomFeatureRidge), CLOSED])
def test_what_computes_nothing_in_bfloat16_refuses_it(method: Method) -> None:
    with pytest.raises(ConfigError, match="DM computes nothing in bfloat16, so its precision cannot be bf16"):
        Distiller(BlobTask(), method, 2, precision="bf16").start()
    rate = OptimizerSpec("sgd", 0.1)
    method = method.with_settings(optimizers={"codes": rate, "objective": rate})
    assert Distiller(BlobTask(), method, 2, precision="mixed").start().step == 0


def test_precisions_are_resolved_by_device() -> None:
    assert resolved("auto", CPU) == "float32"
    assert resolved("auto", torch.device("cuda")) == "mixed"
    with pytest.raises(ConfigError, match="tf32 is a format of CUDA"):
        resolved("tf32", CPU)
    with pytest.raises(ConfigError, match="classes_at_once"):
        Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(classes_at_once=-1), 1)


@pytest.mark.parametrize(
    ("place", "value"), [("cuda.matmul", "tf32"), ("cudnn.conv", "ieee"), ("cudnn.rnn", "ieee"), (None, "tf32")]
)
def test_products_mix_with_what_the_user_chose_by_torchs_newer_names(place: str | None, value: str) -> None:
    backends: Any = torch.backends
    places = {name: attrgetter(name)(backends) for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn")}
    kept = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    try:
        (backends if place is None else places[place]).fp32_precision = value
        before = {name: found.fp32_precision for name, found in places.items()}
        for precision, expected in (("float32", "ieee"), ("mixed", "tf32")):
            with matrix_products(precision, torch.device("cuda")):  # type: ignore[arg-type]
                assert {found.fp32_precision for found in places.values()} == {expected}
            assert {name: found.fp32_precision for name, found in places.items()} == before
    finally:
        for found in (backends, *places.values()):
            found.fp32_precision = "none"
        backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"  # torch's own defaults
        torch.set_float32_matmul_precision(kept[0])
        backends.cudnn.allow_tf32 = kept[1]


def test_the_formats_of_a_step_are_set_where_others_were_and_are_heard_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.execution.precision._not_yet_warned", {"read", "set"})
    changed: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", changed.append)
    registry: dict[Any, Any] = {}
    cuda = torch.device("cuda")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for _ in range(3):
            with matrix_products("mixed", cuda):
                pass
            warnings.warn_explicit("of the host", UserWarning, "host", 1, registry=registry)
    assert changed == ["high", "highest"] * 3
    assert len(heard) == 1
    changed.clear()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    with matrix_products("mixed", cuda), matrix_products("tf32", cuda):
        assert changed == []


def test_a_step_takes_some_samples_of_each_class_and_moves_no_other() -> None:
    few = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(syn_batch=2, real_batch=8, augment=False), 5)
    run, key = few.start(), Draws(3)
    schedule = few.schedule.fetch(few.task, run.schedule, key.fold("network"))
    real = few.real(run, key)
    moved = []
    for step in ("one", "two"):
        loss, (gradient,) = few.gradients(run, schedule, real, key.fold(step))
        assert gradient is not None
        rows = gradient.flatten(1).abs().sum(1).nonzero().flatten()
        assert torch.bincount(run.parameterization.classes[rows]).tolist() == [2, 2, 2]  # type: ignore[index]
        syn = stack_classes(run.parameterization(key), rows.view(3, 2), torch.ones(3, 2))
        expected = run.objective(Network(few.task, few_network(schedule)), syn, real, key.fold(step))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        moved.append(rows.tolist())
    assert moved[0] != moved[1]


def few_network(schedule: ScheduleState) -> NetworkState:
    assert schedule.network is not None
    return schedule.network


def test_a_step_of_all_samples_is_the_plain_one() -> None:
    found = []
    for most in (0, 5, 9):
        distiller = Distiller(BlobTask(), CORE_METHODS["dm"].with_settings(syn_batch=most, real_batch=8), 5)
        run, _ = distiller.step(distiller.start())
        found.append(next(run.parameterization.parameters()).detach().clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", [CORE_METHODS["dd"], RIDGE, replace(CORE_METHODS["dm"], label="teacher")])
def test_steps_that_need_all_samples_refuse_some(method: Method) -> None:
    method = method.with_settings(syn_batch=2)
    with pytest.raises(ConfigError, match="set syn_batch to 0"):
        Distiller(BlobTask(), method, 5).start()


def test_kept_steps_reach_the_unrolled_loop_and_change_no_gradient() -> None:
    changes: dict[str, object] = {"inner_steps": 4, "real_batch": 8, "inner_lr": 0.1}
    found = []
    for kept in (-1, 0, 3):
        distiller = Distiller(BlobTask(), CORE_METHODS["dd"].with_settings(**changes, kept_steps=kept), 2)
        run = distiller.start()
        assert run.objective.unrolling.keep == (None if kept < 0 else kept)  # type: ignore[union-attr]
        run, _ = distiller.step(run)
        found.append(next(run.parameterization.parameters()).detach().clone())
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


RIDGES = {
    "image": {"krr": 1e-6, "frepo": 1e-6, "rfad": 5e-3, "kip": 1e-6, "kip-conv": 1e-6},
    "text": {"krr": 1e-2, "krr-tokens": 1e-2, "krr-encoder": 1e-2},
    "graph": {"krr": 1e-2},
}
"""By domain, methods whose lambda is not learned, and its published value."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in RIDGES for name in RIDGES[kind]])
def test_the_settings_lambda_reaches_the_objective(kind: str, name: str) -> None:
    method = get_method(get_domain(kind), name)
    for given, wanted in ((0.0, RIDGES[kind][name]), (0.5, 0.5)):
        objective = method.make_objective(replace(method.settings(10), ridge=given))
        found = objective.ridge if isinstance(objective, RandomFeatureRidge) else objective.log_ridge.exp()
        assert float(found) == pytest.approx(wanted)  # type: ignore[arg-type]
    assert method.ignored_settings(10, ["ridge"]) == []


def test_a_lambda_is_idle_where_there_is_no_regression_or_it_is_learned() -> None:
    for kind, name in (("image", "dm"), ("recsys", "distill-cf"), ("recsys", "distill-ease")):
        assert get_method(get_domain(kind), name).ignored_settings(10, ["ridge"]) == ["ridge"]


def test_networks_judge_in_groups_where_not_all_fit_at_once() -> None:
    groups: list[int] = []
    keys: list[int] = []

    class Judged(BlobTask):
        def evaluate(
            self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
        ) -> Scores:
            groups.append(n)
            keys.append(draws.integer())
            return super().evaluate(synthetic, judge, draws, n, learned)

    task = Judged()
    entry = evaluate(task, task.select(torch.arange(0, 90, 10)), n=5, at_once=2, baselines=[]).headline()
    assert (entry.n, groups) == (5, [2, 2, 1])
    assert len(set(keys)) == 3
    with pytest.raises(ConfigError, match="networks at once is a whole number of at least 1, got 0"):
        evaluate(task, task.select(torch.arange(3)), n=2, at_once=0)


def test_the_command_line_has_the_knobs() -> None:
    line = "distill --data digits --method dc --ipc 1 --classes-at-once 2 --kept-steps 3 --precision bf16 --ridge 0.5"
    options = build_parser().parse_args(spelled([*line.split(), "--networks-at-once", "4"])).distill
    chosen = {name: value for name, value in vars(options).items() if name not in ("config", "resume", "dry_run")}
    config = DistillConfig(**chosen)
    assert config.overrides() == {"classes_at_once": 2, "kept_steps": 3, "ridge": 0.5}
    assert (config.precision, config.networks_at_once) == ("bf16", 4)


@pytest.mark.parametrize(("classes", "at_once"), [(10, 10), (100, 10), (200, 3)])
def test_a_device_takes_no_more_classes_at_once_than_fit_its_memory(classes: int, at_once: int) -> None:
    """Real batches of 256: of CIFAR-10 all at once, of CIFAR-100 and Tiny-ImageNet some."""
    side = 64 if classes == 200 else 32
    inputs, weight = (torch.empty(classes, 256, *shape, device="meta") for shape in ((3, side, side), ()))
    batch = ClassBatch(Batch(inputs, torch.empty(classes, 256, device="meta"), weight), Dims(0, 0))
    network = Network(BlobTask(), BlobTask().init(Draws(1)))
    assert features_at_once(network, batch) == at_once
    assert classes_at_once(network, batch) == at_once
    chosen = network._replace(classes_at_once=2)
    assert features_at_once(chosen, batch) == classes_at_once(chosen, batch) == 2


@pytest.mark.parametrize(
    ("objective", "expected"), [(LinearKernel, "float32"), (FeatureKernel, "mixed"), (None, "mixed")]
)
def test_closed_form_kernels_are_computed_in_full_float32(
    objective: type[Kernel] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 is a format of CUDA, so what the step asks for is all that can be seen here."""
    asked: list[str] = []

    @contextmanager
    def products(precision: str, device: torch.device) -> Iterator[None]:
        asked.append(precision)
        yield

    monkeypatch.setattr("mmdistill.distiller.matrix_products", products)
    method = CORE_METHODS["dm"].with_settings(steps=1, real_batch=4)
    if objective is not None:
        method = replace(method, objective=lambda: KernelRidgeMatching(objective(), ridge=1e-3))
    distiller = Distiller(BlobTask(), method, 2)
    distiller.precision = "mixed"
    distiller.step(distiller.start())
    assert asked == [expected]


@pytest.mark.parametrize(("label", "stepped"), [("hard", False), ("teacher", False), ("soft", True)])
def test_labels_have_an_optimizer_where_they_are_learned(label: LabelKind, stepped: bool) -> None:
    method = replace(CORE_METHODS["dc"], label="hard" if label != "hard" else "teacher")
    assert ("labels" in method.labelled(label).settings(1).optimizers) == stepped
