"""Unrolled performance and trajectory matching: their oracles, their gradients, their place in a run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdistill.distill import distill
from mmdistill.distilled import DistilledSet
from mmdistill.distiller import Distiller
from mmdistill.errors import ConfigError, ShapeError
from mmdistill.evaluate import evaluate
from mmdistill.image import DOMAIN
from mmdistill.method import Method
from mmdistill.methods import CORE_METHODS, fresh
from mmdistill.networks.expert_recipe import ExpertRecipe
from mmdistill.networks.fit_protocol import FitProtocol
from mmdistill.networks.trajectories import ExpertTrajectories
from mmdistill.networks.unroll import Unrolling
from mmdistill.objectives.base import Network
from mmdistill.objectives.trajectory import TrajectoryMatching, TrajectoryMatchingConstantMemory
from mmdistill.objectives.unrolled import InnerRate, UnrolledPerformance, student_loss
from mmdistill.registry import get_method
from mmdistill.runtime import Draws
from mmdistill.settings import OptimizerSpec, Settings
from mmdistill.task import Batch
from mmdistill.testing import check_objective
from tests.oracles import objectives as networks
from tests.oracles import unroll as oracle
from tests.toys import BlobTask, RecordedTask

DRAWS = Draws(3)
RATE = 0.25  # exact in float32, in which rates are made


@pytest.fixture(scope="module")
def network(task: BlobTask) -> Network:
    return Network(task, task.init(DRAWS.fold("net")), task.init(DRAWS.fold("end")).params)


def flat(task: BlobTask, n: int, name: str) -> Batch:
    batch = task.sample_real(DRAWS.fold(name), None, n)
    assert isinstance(batch, Batch)
    return batch


def numpy_of(params: dict[str, Tensor]) -> networks.Params:
    return {name: p.numpy() for name, p in params.items()}


def samples(batch: Batch) -> tuple[networks.Array, networks.Array]:
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(batch.targets, Tensor)
    return batch.inputs.detach().numpy(), np.eye(3)[batch.targets.numpy()]


def rate(value: float = RATE, steps: int | None = None) -> InnerRate:
    return InnerRate(value, steps).double()


def test_unrolled_performance_equals_its_oracle(task: BlobTask, network: Network) -> None:
    syn, real = flat(task, 6, "syn"), flat(task, 9, "real")
    xs, ys = samples(syn)
    parts = [(xs[0::2], ys[0::2]), (xs[1::2], ys[1::2])] * 2
    for beta in (0.0, 0.9):
        check_objective(
            UnrolledPerformance(4, rate(RATE, 4), parts=2, unrolling=Unrolling(beta)), network, syn, real,
            oracle=lambda beta=beta: oracle.performance(  # type: ignore[misc]
                numpy_of(network.state.params), parts, [RATE] * 4, beta, *samples(real)
            ),
            by_position="the parts of a partition are every second sample",
        )  # fmt: skip


def test_a_window_ends_at_random_steps_and_gradients_flow_through_it_alone(task: BlobTask, network: Network) -> None:
    syn, real = flat(task, 6, "syn"), flat(task, 9, "real")
    objective = UnrolledPerformance(5, InnerRate(RATE, learn=False).double(), unrolling=Unrolling(0.9), window=2)
    expected = {
        steps: oracle.performance(
            numpy_of(network.state.params), [samples(syn)] * steps, [RATE] * steps, 0.9, *samples(real)
        )
        for steps in (2, 3, 4, 5)
    }
    assert isinstance(syn.inputs, Tensor)
    seen = set()
    for index in range(24):
        leaf = syn.inputs.clone().requires_grad_()
        draws = DRAWS.fold(index)
        value = objective(network, syn._replace(inputs=leaf), real, draws)
        steps = next(n for n, wanted in expected.items() if abs(float(value.detach()) - wanted) < 1e-9)
        seen.add(steps)
        again = syn.inputs.clone().requires_grad_()
        cut = UnrolledPerformance(steps, InnerRate(RATE, learn=False).double(), unrolling=Unrolling(0.9, truncate=2))(
            network, syn._replace(inputs=again), real, draws
        )
        (found,), (wanted,) = torch.autograd.grad(value, leaf), torch.autograd.grad(cut, again)
        assert torch.equal(found, wanted)
    assert seen == {2, 3, 4, 5}
    assert UnrolledPerformance(2, InnerRate(RATE, learn=False), window=2).student_steps(DRAWS) == 2
    assert objective.learned() == {}
    assert not objective.steady


def test_trajectory_matching_equals_its_oracle(task: BlobTask, network: Network) -> None:
    syn = flat(task, 6, "syn")
    assert network.target is not None
    start, target = numpy_of(network.state.params), numpy_of(network.target)
    check_objective(
        TrajectoryMatching(3, rate()), network, syn, syn,
        oracle=lambda: oracle.trajectory(start, target, [samples(syn)] * 3, [RATE] * 3),
    )  # fmt: skip


def gradients(objective: TrajectoryMatching, network: Network, syn: Batch) -> tuple[Tensor, Tensor, Tensor]:
    assert isinstance(syn.inputs, Tensor)
    leaf = syn.inputs.clone().requires_grad_()
    value = objective(network, syn._replace(inputs=leaf), syn, DRAWS)
    return value.detach(), *torch.autograd.grad(value, [leaf, objective.rate.value])


def test_constant_memory_has_the_published_gradient_and_not_the_exact_one(task: BlobTask, network: Network) -> None:
    syn = flat(task, 6, "syn")
    assert network.target is not None
    start, target = numpy_of(network.state.params), numpy_of(network.target)
    value, held, held_rate = gradients(TrajectoryMatchingConstantMemory(4, rate()), network, syn)
    exact_value, exact, exact_rate = gradients(TrajectoryMatching(4, rate()), network, syn)
    assert torch.equal(value, exact_value)
    written = sum(oracle.held_gradient(start, target, [samples(syn)] * 4, RATE))
    assert np.abs(held.numpy() - written).max() < 1e-8 * np.abs(written).max()
    assert float((held - exact).norm()) > 1e-2 * float(exact.norm())
    assert float(held_rate) != float(exact_rate)
    # a single step has no later states to hold
    one, other = (
        gradients(kind(1, rate()), network, syn) for kind in (TrajectoryMatching, TrajectoryMatchingConstantMemory)
    )
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_constant_memory_trains_the_same_student_with_momentum(task: BlobTask, network: Network) -> None:
    syn = flat(task, 6, "syn")
    start, target = numpy_of(network.state.params), numpy_of(network.target or {})
    wanted = oracle.trajectory(start, target, [samples(syn)] * 4, [RATE] * 4, 0.9)
    for kind in (TrajectoryMatching, TrajectoryMatchingConstantMemory):
        found = kind(4, rate(), unrolling=Unrolling(0.9))(network, syn, syn, DRAWS)
        assert float(found.detach()) == pytest.approx(wanted, rel=1e-9)


def test_a_student_that_reaches_the_target_has_zero_loss(task: BlobTask, network: Network) -> None:
    syn = flat(task, 6, "syn")
    objective = TrajectoryMatching(3, rate())
    with torch.no_grad():
        end = objective.train_student(network, syn, DRAWS)
        assert float(objective(network._replace(target=end), syn, syn, DRAWS)) == 0.0
        still = TrajectoryMatching(3, rate(1e-12))
        assert float(still(network, syn, syn, DRAWS)) == pytest.approx(1.0)


def test_minibatches_and_augmentation_derive_from_the_key(task: BlobTask) -> None:
    syn = flat(task, 7, "syn")
    objective = UnrolledPerformance(8, rate(), batch=3, augment=True)
    steps = objective.step_batches(task, syn, DRAWS)
    again = objective.step_batches(task, syn, DRAWS)
    assert isinstance(steps.inputs, Tensor)
    assert steps.inputs.shape == (8, 3, 4)
    assert torch.equal(steps.inputs, again.inputs)  # type: ignore[arg-type]
    assert not torch.equal(steps.inputs, objective.step_batches(task, syn, DRAWS.fold(1)).inputs)  # type: ignore[arg-type]
    assert steps.weight.sum(1).tolist() == [3, 3, 1, 3, 3, 1, 3, 3]
    plain = UnrolledPerformance(8, rate(), batch=3)
    assert (plain.samples_read, UnrolledPerformance(8, rate()).samples_read) == (24, None)
    first, other = (plain.step_batches(task, syn, key).inputs for key in (DRAWS, DRAWS.fold(1)))
    assert not torch.equal(first, other)  # type: ignore[arg-type]
    whole = UnrolledPerformance(2, rate(), batch=7).step_batches(task, syn, DRAWS)
    assert torch.equal(whole.inputs[1], syn.inputs)  # type: ignore[arg-type]


def test_a_students_samples_are_augmented_each_by_itself() -> None:
    task = RecordedTask()
    UnrolledPerformance(4, rate(), batch=3, augment=True).step_batches(task, flat(task, 9, "syn"), DRAWS)
    assert [shared for *_, shared in task.augmented] == [False]


def test_each_step_of_a_student_has_a_key_of_its_own() -> None:
    task = RecordedTask()
    state, syn = task.init(DRAWS), flat(task, 9, "syn")
    loss = student_loss(Network(task, state), DRAWS)
    for step in (0, 1, 0):
        loss(state.params, syn, step)
    first, second, again = (draws.path for draws, _ in task.losses if draws is not None)
    assert first == again != second


@pytest.mark.parametrize("form", ["raw", "softplus"])
def test_rates_start_where_they_are_told(form: str) -> None:
    rates = InnerRate(0.02, 3, form)  # type: ignore[arg-type]
    assert rates().tolist() == pytest.approx([0.02] * 3, rel=1e-5)
    assert UnrolledPerformance(3, rates).learned()["inner_lr"].tolist() == pytest.approx([0.02] * 3, rel=1e-5)
    fixed = InnerRate(0.02, form=form, learn=False)  # type: ignore[arg-type]
    assert not list(fixed.parameters())
    assert float(fixed()) == pytest.approx(0.02, rel=1e-5)


def test_steps_that_can_be_taken_again_alone_are_carried() -> None:
    whole = UnrolledPerformance(2, rate(), parts=2, unrolling=Unrolling(0.9)).learned()
    assert set(whole) == {"inner_lr", "inner_parts", "inner_momentum"}
    assert (int(whole["inner_parts"]), float(whole["inner_momentum"])) == (2, pytest.approx(0.9))
    for drawn in (UnrolledPerformance(2, rate(), batch=3), UnrolledPerformance(2, rate(), augment=True)):
        assert set(drawn.learned()) == {"inner_lr"}
    fixed = InnerRate(RATE, learn=False)
    assert UnrolledPerformance(2, fixed, unrolling=Unrolling(optimizer="adam")).learned() == {}


def test_wrong_compositions_are_refused(task: BlobTask, network: Network) -> None:
    syn = flat(task, 6, "syn")
    with pytest.raises(ConfigError, match="expert's end point"):
        TrajectoryMatching(2, rate())(network._replace(target=None), syn, syn, DRAWS)
    with pytest.raises(ShapeError, match=r"no such parameter for 0\.weight"):
        TrajectoryMatching(2, rate())(network._replace(target={}), syn, syn, DRAWS)
    for build, message in (
        (lambda: UnrolledPerformance(0, rate()), "at least 1"),
        (lambda: UnrolledPerformance(2, rate(), batch=3, parts=2), "not both"),
        (lambda: UnrolledPerformance(2, rate(steps=3)), "of 3 steps"),
        (lambda: TrajectoryMatchingConstantMemory(2, rate(), unrolling=Unrolling(truncate=1)), "nothing to truncate"),
        (lambda: InnerRate(0.0), "above 0"),
        (lambda: UnrolledPerformance(2, InnerRate(0.1, learn=False), window=3), "from 1 to all 2"),
        (lambda: UnrolledPerformance(2, InnerRate(0.1, learn=False), window=0), "from 1 to all 2"),
        (lambda: UnrolledPerformance(2, rate(), window=1), "use rat-bptt"),
        (
            lambda: UnrolledPerformance(2, InnerRate(0.1, learn=False), unrolling=Unrolling(truncate=1), window=1),
            "nothing else to truncate",
        ),
        (lambda: UnrolledPerformance(2, rate(), unrolling=Unrolling(optimizer="adam")), "use it in SGD"),
        (
            lambda: TrajectoryMatchingConstantMemory(
                2, InnerRate(0.1, learn=False), unrolling=Unrolling(optimizer="adam")
            ),
            "students of SGD alone",
        ),
        (lambda: InnerRate(0.1, form="log"), "raw or softplus"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=message):
            build()
    with pytest.raises(ConfigError, match="FreshNetworks does not give"):
        Distiller(BlobTask(), replace(CORE_METHODS["mtt"], network=fresh), 1).start()


def small(name: str, folder: Path, **changes: object) -> Method:
    """A method of the table at the scale of toys."""
    adam = OptimizerSpec("adam", 0.05)
    base = {
        "steps": 40, "real_batch": 64, "inner_steps": 8, "inner_lr": 0.1, "init": "real", "augment": False,
        "optimizers": {"codes": adam, "objective": OptimizerSpec("adam", 0.003 if name != "dd" else 0.05)},
    }  # fmt: skip
    method = CORE_METHODS[name].with_settings(**{**base, **changes})
    if name == "dd":
        return method
    training = FitProtocol(5, lr=0.05, momentum=0.0, weight_decay=0.0, batch=64, decay_at=())
    recipe = ExpertRecipe(training, augment=False)

    def schedule(settings: Settings) -> ExpertTrajectories:
        return ExpertTrajectories(8, 3, 3, recipe, folder)

    return replace(method, network=schedule)


@pytest.mark.parametrize(
    ("name", "changes", "option"),
    [
        ("dd", {"inner_batch": 4, "inner_parts": 2}, "--inner-batch 0, or --set inner_parts=1"),
        ("tesla", {"kept_steps": 1}, "--kept-steps"),
        ("mtt", {"inner_optimizer": "adam"}, "leave --set inner_optimizer=adam out"),
        ("mtt", {"inner_optimizer": "adam", "inner_momentum": 0.5}, "--inner-momentum"),
        ("haba", {"inner_parts": 1}, "--set inner_parts"),
    ],
)
def test_refused_settings_are_called_as_options(name: str, changes: dict[str, object], option: str) -> None:
    method = get_method(DOMAIN, name).with_settings(**changes)
    with pytest.raises(ConfigError, match=option):
        method.make_objective(method.settings(1))


def test_a_rate_that_ends_below_0_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fast = {"codes": OptimizerSpec("adam", 0.05), "objective": OptimizerSpec("adam", 0.3)}
    for initial, warned in ((0.5, False), (5.0, False), (0.1, True)):
        made = distill(BlobTask(), small("mtt", tmp_path, steps=1, inner_lr=initial, optimizers=fast), ipc=1)
        warnings = [record.getMessage() for record in caplog.records if "cannot train" in record.getMessage()]
        assert bool(warnings) == warned == (float(made.learned["inner_lr"]) <= 0), initial
    assert f"ended at {float(made.learned['inner_lr']):.3g}, which cannot train" in warnings[0]
    assert "--inner-lr" in warnings[0]


@pytest.mark.parametrize("name", ["dd", "mtt", "tesla"])
def test_runs_resume_bit_identically_and_carry_the_rate(name: str, tmp_path: Path) -> None:
    task = BlobTask()
    method = small(name, tmp_path / "experts", steps=6)
    whole = distill(task, method, ipc=1, seed=2)

    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(task, method, ipc=1, seed=2, out=tmp_path / "run", checkpoint_every=1, progress=stop)
    resumed = distill(task, method, ipc=1, seed=2, out=tmp_path / "run", resume=True)
    assert torch.equal(whole.batch.inputs, resumed.batch.inputs)  # type: ignore[arg-type]
    loaded = DistilledSet.load(tmp_path / "run").learned["inner_lr"]
    assert torch.equal(loaded, whole.learned["inner_lr"])
    assert not torch.allclose(loaded, torch.full_like(loaded, 0.1), rtol=1e-6)
    assert loaded.shape == ((8,) if name == "dd" else ())


@pytest.mark.parametrize("name", [pytest.param("dd", marks=pytest.mark.slow), "mtt"])
def test_one_digit_per_class_beats_random_and_herding(name: str, tmp_path: Path) -> None:
    # Not TESLA, whose labels are those of the experts' ends: ends this early know too little to label images, and it is
    # tested with its own schedule in tests/image/test_end_to_end.py.
    image_task = pytest.importorskip("mmdistill.image.task").image_task
    task = image_task("digits", model="mlp", width=32, judge_epochs=150, judge_augment=False)
    # A judge trains at the learned rate with momentum, so the rate must be one that momentum bears.
    codes, rate = (0.1, 0.02) if name == "dd" else (0.05, 0.0002)
    optimizers = {"codes": OptimizerSpec("adam", codes), "objective": OptimizerSpec("adam", rate)}
    changes = (
        {"inner_steps": 20, "inner_momentum": 0.5}
        if name == "dd"
        else {"steps": 40, "inner_steps": 10, "inner_lr": 0.03}
    )
    margins = []
    for seed in range(3):
        result = distill(task, small(name, tmp_path, optimizers=optimizers, **changes), ipc=1, seed=seed)
        judged = evaluate(task, result, n=2, seed=seed, baselines=("random", "herding"))
        margins.append([judged.headline().mean - judged.baselines[b][0].mean for b in ("random", "herding")])
    random, herding = np.array(margins).T
    assert (random > 0).all(), margins
    assert herding.mean() > 0, margins
