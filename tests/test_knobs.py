"""The knobs of memory and precision: what they change, and that they change nothing else."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmdistill.cli import build_parser, spelled
from mmdistill.config import DistillConfig
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError
from mmdistill.evaluate import evaluate
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS
from mmdistill.objectives.base import Network, class_gradients, class_means, class_summary
from mmdistill.objectives.performance import FeatureKernel, KernelRidgeMatching
from mmdistill.objectives.ridge import RandomFeatureRidge
from mmdistill.parameterizations.raw import raw_samples
from mmdistill.precision import resolved
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec
from mmdistill.task import Batch, ClassBatch, NetworkState, Scores
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
    _, loss = distiller.step(distiller.start())
    assert task.seen == expected
    assert loss.dtype == torch.float32


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
CLOSED = replace(CORE_METHODS["dm"], solve=lambda task, budget, key: raw_samples(task, budget, "real", "fixed", key))


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


def test_networks_judge_in_groups_where_not_all_fit_at_once() -> None:
    groups: list[int] = []

    class Judged(BlobTask):
        def evaluate(
            self, synthetic: Batch | None, judge: str, draws: Draws, n: int, learned: Mapping[str, Tensor]
        ) -> Scores:
            groups.append(n)
            return super().evaluate(synthetic, judge, draws, n, learned)

    task = Judged()
    entry = evaluate(task, task.select(torch.arange(0, 90, 10)), n=5, at_once=2, baselines=[]).headline()
    assert (entry.n, groups) == (5, [2, 2, 1])
    with pytest.raises(ConfigError, match="networks at once is a whole number of at least 1, got 0"):
        evaluate(task, task.select(torch.arange(3)), n=2, at_once=0)


def test_the_command_line_has_the_knobs() -> None:
    line = "distill --data digits --method dc --ipc 1 --classes-at-once 2 --kept-steps 3 --precision bf16"
    options = build_parser().parse_args(spelled([*line.split(), "--networks-at-once", "4"])).distill
    chosen = {name: value for name, value in vars(options).items() if name not in ("config", "resume")}
    config = DistillConfig(**chosen)
    assert config.overrides() == {"classes_at_once": 2, "kept_steps": 3}
    assert (config.precision, config.networks_at_once) == ("bf16", 4)
