"""Inner steps by programs: the same gradients as the eager steps, and only where a trace says all that they read."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mmdistill.distiller import Distiller
from mmdistill.errors import MmdistillWarning
from mmdistill.execution import compilation
from mmdistill.image import image_task
from mmdistill.image.models.convnet import ConvNet
from mmdistill.networks import step_choice, step_programs
from mmdistill.networks.step_programs import StepPrograms
from mmdistill.networks.unroll import Unrolling, unroll
from mmdistill.registry import get_domain, get_method
from mmdistill.task import Batch, Tensors
from tests.networks.test_unroll import KEY, STEPS, Conv, Problem, assert_equal_gradients, plain, plain_adam, terminal
from tests.toys import smooth_mlp


class Counted:
    """Stands in for a compiled program: the trace as it is, with its calls."""

    calls = 0
    seconds = 1.0

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __call__(self, *tensors: Tensor) -> object:
        Counted.calls += 1
        return self.function(*tensors)


class OwnLayers(nn.Module):
    """A ConvNet of this package's layers, whose forms depend on whether they are compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ConvNet((1, 4, 4), 3, width=4)
        self.compiling: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.compiling.append(compilation.is_compiling())
        result: Tensor = self.body(x.view(-1, 1, 4, 4))
        return result


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[StepPrograms]:
    """Programs that trace and do not compile."""
    monkeypatch.setattr(step_programs, "Program", Counted)
    Counted.calls = 0
    return StepPrograms(lowered=True)


@pytest.mark.parametrize(
    ("factory", "options", "expected"),
    [
        (Conv, Unrolling(), plain),
        (Conv, Unrolling(0.9), partial(plain, beta=0.9)),
        (Conv, Unrolling(0.9, truncate=3), partial(plain, beta=0.9, last=3)),
        (OwnLayers, Unrolling(0.9), partial(plain, beta=0.9)),
        # Biases before norms have gradients of 0 but for rounding, which Adam makes steps of.
        (lambda: smooth_mlp(6, 16), Unrolling(optimizer="adam"), plain_adam),
    ],
    ids=["sgd", "momentum", "truncated", "layers", "adam"],
)
def test_programs_give_the_gradients_of_the_unrolled_graph(
    factory: Callable[[], nn.Module], options: Unrolling, expected: Callable[..., Tensors], programs: StepPrograms
) -> None:
    problem = Problem(factory)
    ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, options, programs)
    wanted = expected(problem.loss, problem.params, problem.batch, problem.rates)
    assert Counted.calls == STEPS
    leaves = problem.leaves(theta=options.truncate is None)
    if options.truncate:  # the first steps' batches move nothing, in the graph not even as zeros
        leaves = [problem.rates]
        wanted = {name: end + 0 * problem.rates.sum() for name, end in wanted.items()}
    assert_equal_gradients(terminal(wanted), terminal(ends), leaves)
    assert Counted.calls == STEPS + (options.truncate or STEPS)  # nothing is kept, so each step has its slope
    assert programs.seconds == 2


def test_layers_are_traced_in_the_forms_that_compile_well(programs: StepPrograms) -> None:
    made: list[OwnLayers] = []

    def network() -> OwnLayers:
        made.append(OwnLayers())
        return made[-1]

    problem = Problem(network)
    terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(), programs)).backward()  # type: ignore[no-untyped-call]
    told = [value for one in made for value in one.compiling]
    assert told.count(True) == 2  # the traces of a gradient and of a slope
    assert told.count(False) > 0
    assert not compilation.is_compiling()


def test_a_later_step_and_another_network_are_no_part_of_the_trace(programs: StepPrograms) -> None:
    options = Unrolling(0.9)
    for number in range(2):
        problem = Problem(Conv)
        problem.params = {
            name: (tensor.detach() * (1 + number)).requires_grad_() for name, tensor in problem.params.items()
        }
        problem.inputs = (problem.inputs.detach() + number).requires_grad_()
        ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, options, programs)
        wanted = plain(problem.loss, problem.params, problem.batch, problem.rates, 0.9)
        assert_equal_gradients(terminal(wanted), terminal(ends), problem.leaves(theta=True))
    assert programs.seconds == 2


def test_programs_take_portions(programs: StepPrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_choice, "recorded_bytes", lambda _, at: len(at.leaves[-1]))
    monkeypatch.setattr(step_choice, "PORTION_BYTES", 4)
    problem = Problem(Conv, samples=12)
    problem.weight = problem.weight.detach().clone()
    problem.weight[:, :4] = 0  # a portion of which no sample counts
    ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(0.9), programs)
    wanted = plain(problem.loss, problem.params, problem.batch, problem.rates, 0.9)
    leaves = [problem.inputs, problem.labels, problem.rates, *problem.params.values()]
    assert_equal_gradients(terminal(wanted), terminal(ends), leaves)
    assert Counted.calls == 2 * 2 * STEPS
    assert programs.seconds == 2  # all portions are of one size


@pytest.mark.parametrize("portion", [None, 4])
def test_programs_with_held_states(
    portion: int | None, programs: StepPrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portion is not None:
        monkeypatch.setattr(step_choice, "recorded_bytes", lambda _, at: len(at.leaves[-1]))
        monkeypatch.setattr(step_choice, "PORTION_BYTES", portion)
    problem = Problem(Conv, samples=16)
    problem.weight = problem.weight.detach().clone()
    problem.weight[0, 4:8] = 0  # a portion of which no sample counts
    leaves, found = [problem.inputs, problem.labels, problem.rates], []
    for own in (None, programs):
        ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(0.9), own, held=True)
        found.append(torch.autograd.grad(terminal(ends), leaves))
    assert Counted.calls == (2 * STEPS if portion is None else 2 * (4 * STEPS - 1))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-12)


def test_kept_steps_and_dropout_stay_eager(programs: StepPrograms) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16))

    def dropped(params: Tensors, batch: Batch, step: int) -> Tensor:
        mask = KEY.fold("mask", step).uniform(*batch.weight.shape) > 0.5
        return problem.loss(params, batch._replace(weight=batch.weight * (mask + 0.5)), step)

    ends = unroll(dropped, problem.params, problem.batch, problem.rates, Unrolling(), programs)
    wanted = plain(dropped, problem.params, problem.batch, problem.rates)
    assert_equal_gradients(terminal(wanted), terminal(ends), problem.leaves(theta=True))
    assert Counted.calls == 0
    ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(keep=STEPS), programs)
    terminal(ends).backward()  # type: ignore[no-untyped-call]
    assert Counted.calls == 0


def test_what_cannot_be_traced_stays_eager_and_says_why(programs: StepPrograms) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16))

    def branching(params: Tensors, batch: Batch, step: int) -> Tensor:
        value = problem.loss(params, batch, step)
        return value if bool(value > 0) else -value

    def ours() -> Tensor:
        return terminal(unroll(branching, problem.params, problem.batch, problem.rates, Unrolling(), programs))

    leaves = problem.leaves(theta=True)
    with pytest.warns(MmdistillWarning, match="cannot be traced and stay eager"):
        torch.autograd.grad(ours(), leaves)
    wanted = plain(branching, problem.params, problem.batch, problem.rates)
    assert_equal_gradients(terminal(wanted), ours(), leaves)
    assert Counted.calls == 0


def test_after_so_many_shapes_steps_stay_eager_and_say_so_once(
    programs: StepPrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_programs, "SHAPES", 1)
    for samples, calls, told in ((4, STEPS, 0), (5, 0, 1), (4, STEPS, 0), (6, 0, 0)):
        Counted.calls = 0
        problem = Problem(Conv, samples=samples)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MmdistillWarning)
            terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(), programs))
        found = [str(one.message).startswith("inner steps came in more than 1 shapes") for one in caught]
        assert found == [True] * told
        assert Counted.calls == calls


@pytest.mark.parametrize(("most", "calls"), [(0.5, 2 * STEPS), (2.0, 0)])
def test_steps_that_are_mostly_products_stay_eager(
    most: float, calls: int, programs: StepPrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_choice, "recorded_bytes", lambda *_: 100)
    monkeypatch.setattr(step_choice, "operations", lambda call: (call(), round(100 * most)))
    programs.most = 1.0
    problem = Problem(Conv)
    terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(), programs)).backward()  # type: ignore[no-untyped-call]
    assert Counted.calls == calls


@pytest.mark.slow
@pytest.mark.skipif(not compilation.has_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize("factory", [Conv, OwnLayers])
def test_compiled_steps_agree_with_the_unrolled_graph(factory: Callable[[], nn.Module]) -> None:
    problem, programs = Problem(factory), StepPrograms(lowered=True)
    ends = unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(0.9), programs)
    wanted = plain(problem.loss, problem.params, problem.batch, problem.rates, 0.9)
    assert_equal_gradients(terminal(wanted), terminal(ends), problem.leaves(theta=True))
    assert programs.seconds > 0


@pytest.mark.slow
@pytest.mark.skipif(not compilation.has_compiler(), reason="needs a C++ compiler")
def test_steps_on_colour_compile_in_bfloat16() -> None:
    # Torch's compiled group norms give gradients in float32 there, which products refused.
    images, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 2
    task = image_task((images, labels), test=(images, labels), width=4)
    method = get_method(get_domain("image"), "bptt")
    settings = replace(method.settings(1), inner_steps=2, real_batch=10, init="noise")
    distiller = Distiller(task, method, 1, settings=settings, precision="bf16")
    distiller.compile()
    distiller.step(distiller.start())
    assert distiller.uses_compiled
