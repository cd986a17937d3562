"""Steps in portions: as the whole, only where samples know nothing of each other, and of a size that fits caches."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mmdistill.networks import step_choice
from mmdistill.networks.expert_loss import batches_networks
from mmdistill.networks.inner_steps import EagerStep, Layout, PortionedStep, StepLoss, StepPoint, flat_leaves
from mmdistill.networks.step_choice import portion_of, recorded_bytes
from mmdistill.networks.unroll import Unrolling, unroll
from mmdistill.task import Batch, Tensors
from tests.networks.test_unroll import KEY, STEPS, Conv, Problem, assert_equal_gradients, peak_bytes, plain, terminal
from tests.toys import BlobTask, smooth_mlp

SAMPLES = 13


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions of four samples at most, wherever portions are allowed."""
    monkeypatch.setattr(step_choice, "recorded_bytes", lambda _, at: len(at.leaves[-1]))
    monkeypatch.setattr(step_choice, "PORTION_BYTES", 4)


def without_weights(problem: Problem) -> Problem:
    """A problem whose weights are constants, of which the first four samples of a step and one more have none."""
    problem.weight = problem.weight.detach().clone()
    problem.weight[:, :4] = 0
    problem.weight[1, 7] = 0
    return problem


def posed(problem: Problem, loss: StepLoss | None = None) -> tuple[EagerStep, StepPoint]:
    """The first step of a problem, of whose inputs gradients are wanted."""
    layout = Layout.of(problem.params)
    leaves, rebuild = flat_leaves(problem.batch)
    theta = layout.flatten(problem.params).detach()
    return EagerStep(loss or problem.loss, layout, rebuild), StepPoint(
        theta, [leaf[0].detach() for leaf in leaves], 0, [0]
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("keep", "beta"), [(0, 0.0), (2, 0.9), (None, 0.0)])
@pytest.mark.parametrize("factory", [lambda: smooth_mlp(6, 16), Conv])
def test_portions_give_the_gradients_of_the_whole(
    factory: Callable[[], nn.Module], keep: int | None, beta: float
) -> None:
    problem, seen = without_weights(Problem(factory, samples=SAMPLES)), []

    def noted(params: Tensors, batch: Batch, step: int) -> Tensor:
        seen.append(len(batch.weight))
        return problem.loss(params, batch, step) / batch.weight.any()  # 0 / 0, as losses of one's own may be

    options = Unrolling(beta, keep=keep)
    ends = unroll(noted, problem.params, problem.batch, problem.rates, options)
    assert max(seen[-STEPS:]) == 4
    expected = plain(problem.loss, problem.params, problem.batch, problem.rates, beta)
    leaves = [problem.inputs, problem.labels, problem.rates, *problem.params.values()]
    assert_equal_gradients(terminal(expected), terminal(ends), leaves)
    (moved,) = torch.autograd.grad(
        terminal(unroll(noted, problem.params, problem.batch, problem.rates, options)), problem.inputs
    )
    assert not moved[:, :4].any()  # a portion of which no sample counts


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_portions_with_held_states(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, found = without_weights(Problem(Conv, samples=SAMPLES)), []
    leaves = [problem.inputs, problem.labels, problem.rates]
    for size in (SAMPLES, 4):
        monkeypatch.setattr(step_choice, "PORTION_BYTES", size)
        ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(beta), held=True)
        found.append(torch.autograd.grad(terminal(ends), leaves))
    for whole, parts in zip(*found, strict=True):
        assert not torch.equal(whole, parts)
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small")
def test_weights_that_are_learned_are_taken_together() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), samples=SAMPLES)
    expected = plain(problem.loss, problem.params, problem.batch, problem.rates)
    found = unroll(problem.loss, problem.params, problem.batch, problem.rates)
    assert_equal_gradients(terminal(expected), terminal(found), problem.leaves(theta=True))


@pytest.mark.usefixtures("small")
def test_all_weights_zero_are_no_finite_step() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), samples=SAMPLES)
    problem.weight = torch.zeros_like(problem.weight)
    ends = unroll(problem.loss, problem.params, problem.batch, problem.rates)
    whole = plain(problem.loss, problem.params, problem.batch, problem.rates)
    for name, end in ends.items():
        torch.testing.assert_close(end, whole[name], equal_nan=True)


class Normed(nn.Module):
    """A network whose batch norm keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


@pytest.mark.usefixtures("small")
def test_what_is_no_mean_over_single_samples_is_taken_whole() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), samples=SAMPLES)
    step, at = posed(problem)
    assert portion_of(step, at) == 4
    assert portion_of(step, at._replace(chosen=[0, len(at.leaves) - 1])) == 0

    def dropped(params: Tensors, batch: Batch, step: int) -> Tensor:
        mask = KEY.fold("mask", step).uniform(*batch.weight.shape) > 0.5
        return problem.loss(params, batch._replace(weight=batch.weight * mask), step) + mask.sum()

    def added(params: Tensors, batch: Batch, step: int) -> Tensor:
        return problem.loss(params, batch, step) * batch.weight.sum()

    def linked(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        return problem.loss(params, batch._replace(inputs=batch.inputs + 1e-6 * batch.inputs.roll(1, 0)), step)

    for loss in (dropped, added, linked):
        assert portion_of(*posed(problem, loss)) == 0
    assert portion_of(*posed(Problem(Normed, samples=SAMPLES))) == 0
    few = Problem(lambda: smooth_mlp(6, 16), samples=8)
    assert portion_of(*posed(few)) == 0


@pytest.mark.usefixtures("small")
def test_tokens_are_taken_whole() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), samples=SAMPLES)

    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        return problem.loss(params, batch._replace(inputs=batch.inputs.double()), step)

    step, at = posed(problem, loss)
    at = at._replace(chosen=[])
    assert portion_of(step, at) == 4
    tokens = torch.ones(SAMPLES, 16, dtype=torch.long)
    assert portion_of(step, at._replace(leaves=[tokens, *at.leaves[1:]])) == 0


def test_portions_are_of_one_size_and_fill_what_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    step, at = posed(Problem(Conv, samples=100))
    some = (at._replace(leaves=[leaf[:count] for leaf in at.leaves]) for count in (50, 100))
    less, more = (recorded_bytes(step, own) for own in some)
    each = (more - less) / 50
    for samples, expected in ((200, 0), (100, 0), (99, 50), (40, 25), (13, 10), (0.1, 1)):
        monkeypatch.setattr(step_choice, "PORTION_BYTES", int(samples * each) + 1)
        assert portion_of(step, at) % 100 == expected, samples


def test_a_step_needs_the_memory_of_one_portion() -> None:
    step, at = posed(Problem(Conv, samples=100))
    whole, portioned = (peak_bytes(partial(own.slope, at, at.theta)) for own in (step, PortionedStep(step, 20)))
    assert portioned < 0.5 * whole


def test_a_convolution_without_an_engine_for_all_networks_lets_them_train_one_by_one() -> None:
    class Lacking(BlobTask):
        def loss(self, *given: object, **options: object) -> Tensor:
            raise RuntimeError("GET was unable to find an engine to execute this computation")

    assert not batches_networks(Lacking(), BlobTask().select(torch.arange(4)))


def test_memory_that_runs_out_chooses_no_way() -> None:
    def exhausting(params: Tensors, batch: Batch, step: int) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    class Large(BlobTask):
        def loss(self, *given: object, **options: object) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    with pytest.raises(RuntimeError, match="can't allocate"):
        portion_of(*posed(Problem(lambda: smooth_mlp(6, 16), samples=SAMPLES), exhausting))
    with pytest.raises(RuntimeError, match="can't allocate"):
        batches_networks(Large(), BlobTask().select(torch.arange(4)))
