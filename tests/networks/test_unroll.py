"""The unrolled loop against automatic differentiation through it, by finite differences, by hand and in its memory."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmdistill.errors import ConfigError, ShapeError, UnsupportedError
from mmdistill.labels import soft_cross_entropy, weighted_mean
from mmdistill.networks import step_choice
from mmdistill.networks.minibatches import fixed_order, gather_steps, repeat_steps, shuffled_order
from mmdistill.networks.module import FunctionalModule
from mmdistill.networks.unroll import StepLoss, Unrolling, unroll
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors
from tests.toys import BlobTask, smooth_mlp

KEY = Draws(11)
STEPS = 5


class Conv(nn.Module):
    """A small ConvNet of the field's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x.view(-1, 1, 4, 4)).flatten(1))
        return result


class Recurrent(nn.Module):
    """A network without forward-mode derivatives on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(x.view(-1, 4, 4))[0][:, -1])
        return result


class Problem:
    """An inner loop with everything that can be differentiated as a leaf."""

    def __init__(self, factory: Callable[[], nn.Module], features: int = 16, samples: int = 4) -> None:
        self.module = FunctionalModule(factory)
        drawn = self.module.init(KEY.fold("init")).params
        self.params = {name: tensor.double().requires_grad_() for name, tensor in drawn.items()}
        self.inputs = KEY.fold("x").normal(STEPS, samples, features).double().requires_grad_()
        self.labels = KEY.fold("y").normal(STEPS, samples, 3).double().softmax(-1).requires_grad_()
        self.weight = KEY.fold("w").uniform(STEPS, samples, low=0.5).double().requires_grad_()
        self.rates = KEY.fold("lr").uniform(STEPS, low=0.1, high=0.4).double().requires_grad_()

    def loss(self, params: Tensors, batch: Batch, step: int) -> Tensor:
        logits, _ = self.module(NetworkState(params, {}), batch.inputs)
        assert isinstance(batch.targets, Tensor)
        return weighted_mean(soft_cross_entropy(logits, batch.targets), batch.weight)

    @property
    def batch(self) -> Batch:
        return Batch(self.inputs, self.labels, self.weight)

    def leaves(self, theta: bool) -> list[Tensor]:
        own = [self.inputs, self.labels, self.weight, self.rates]
        return [*own, *self.params.values()] if theta else own


def plain(
    loss: StepLoss, params: Tensors, steps: Batch, rates: Tensor, beta: float = 0.0, last: int | None = None
) -> Tensors:
    """The loop as one would write it, differentiated through every step, or through the last ones."""
    assert isinstance(steps.inputs, Tensor)
    assert isinstance(steps.targets, Tensor)
    velocity: list[Tensor] | None = None
    for step, rate in enumerate(rates):
        if last is not None and step == len(rates) - last:
            params = {name: p.detach().requires_grad_() for name, p in params.items()}
            velocity = None if velocity is None else [v.detach() for v in velocity]
        batch = Batch(steps.inputs[step], steps.targets[step], steps.weight[step])
        gradient = torch.autograd.grad(loss(params, batch, step), list(params.values()), create_graph=True)
        velocity = (
            list(gradient) if velocity is None else [beta * v + g for v, g in zip(velocity, gradient, strict=True)]
        )
        params = {name: p - rate * v for (name, p), v in zip(params.items(), velocity, strict=True)}
    return params


def plain_adam(loss: StepLoss, params: Tensors, steps: Batch, rates: Tensor, last: int | None = None) -> Tensors:
    """The same loop with Adam, each line as in Kingma and Ba's Algorithm 1."""
    assert isinstance(steps.inputs, Tensor)
    assert isinstance(steps.targets, Tensor)
    mean = {name: torch.zeros_like(p) for name, p in params.items()}
    square = {name: torch.zeros_like(p) for name, p in params.items()}
    for step, rate in enumerate(rates):
        if last is not None and step == len(rates) - last:
            params = {name: p.detach().requires_grad_() for name, p in params.items()}
            mean, square = ({name: t.detach() for name, t in moment.items()} for moment in (mean, square))
        batch = Batch(steps.inputs[step], steps.targets[step], steps.weight[step])
        found = torch.autograd.grad(loss(params, batch, step), list(params.values()), create_graph=True)
        for name, g in zip(params, found, strict=True):
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g**2
            first, second = mean[name] / (1 - 0.9 ** (step + 1)), square[name] / (1 - 0.999 ** (step + 1))
            params = {**params, name: params[name] - rate * first / (second**0.5 + 1e-8)}
    return params


def terminal(params: Tensors) -> Tensor:
    return torch.stack([(p.sin() + p.square()).sum() * (k + 1) for k, p in enumerate(params.values())]).sum()


def assert_equal_gradients(one: Tensor, other: Tensor, leaves: list[Tensor]) -> None:
    assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
    expected = torch.autograd.grad(one, leaves)
    for found, wanted in zip(torch.autograd.grad(other, leaves), expected, strict=True):
        assert float((found - wanted).norm()) <= 1e-10 * max(float(wanted.norm()), 1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize(("mode", "keep"), [("forward", 0), ("reverse", 0), ("forward", 3)])
def test_gradients_equal_those_of_the_unrolled_graph(beta: float, truncate: int | None, mode: str, keep: int) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    leaves = problem.leaves(theta=truncate is None)
    reference = terminal(plain(problem.loss, problem.params, problem.batch, problem.rates, beta, truncate))
    options = Unrolling(beta, truncate, mode, keep)  # type: ignore[arg-type]
    assert_equal_gradients(
        reference, terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, options)), leaves
    )


@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize(("mode", "keep"), [("forward", 0), ("reverse", 0), ("forward", 3)])
def test_gradients_through_adam_equal_those_of_the_unrolled_graph(truncate: int | None, mode: str, keep: int) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    reference = terminal(plain_adam(problem.loss, problem.params, problem.batch, problem.rates, truncate))
    options = Unrolling(0.0, truncate, mode, keep, "adam")  # type: ignore[arg-type]
    found = terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, options))
    assert_equal_gradients(reference, found, problem.leaves(theta=truncate is None))


def test_adam_is_that_of_torch() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    params = {name: p.detach().clone().requires_grad_() for name, p in problem.params.items()}
    optimizer = torch.optim.Adam(params.values())
    for step, rate in enumerate(problem.rates.tolist()):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        batch = Batch(problem.inputs[step], problem.labels[step], problem.weight[step])
        problem.loss(params, batch, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    end = unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(optimizer="adam"))
    for name, found in end.items():
        torch.testing.assert_close(found, params[name], rtol=1e-9, atol=1e-12)


def test_adam_passes_no_gradient_to_parameters_that_never_had_one() -> None:
    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        return (params["used"] * batch.inputs + 0.0 * params["idle"]).square().sum()

    params = {"used": torch.tensor([1.0, 2.0]).double(), "idle": torch.ones(2).double()}
    inputs = torch.tensor([[[1.0, 2.0]], [[0.5, 1.0]]]).double().requires_grad_()
    end = unroll(loss, params, Batch(inputs, torch.zeros(2, 1), torch.ones(2, 1)), 0.1, Unrolling(optimizer="adam"))
    (gradient,) = torch.autograd.grad(end["used"].sum() + end["idle"].sum(), inputs)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_convnet_with_group_norm_relu_and_pooling(mode: str) -> None:
    problem = Problem(Conv)
    reference = terminal(plain(problem.loss, problem.params, problem.batch, problem.rates, 0.5))
    options = Unrolling(0.5, mode=mode)  # type: ignore[arg-type]
    found = terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, options))
    assert_equal_gradients(reference, found, problem.leaves(theta=True))


def test_layers_without_forward_mode_run_in_reverse() -> None:
    problem = Problem(Recurrent)
    found = terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(mode="reverse")))
    reference = terminal(plain(problem.loss, problem.params, problem.batch, problem.rates))
    assert_equal_gradients(reference, found, problem.leaves(theta=True))
    params = {name: p.detach().float() for name, p in problem.params.items()}  # float32 takes the fused layer
    narrow = Batch(*(t.detach().float() for t in (problem.inputs, problem.labels, problem.weight)))
    rates = problem.rates.detach().float().requires_grad_()
    refused = terminal(unroll(problem.loss, params, narrow, rates, Unrolling(mode="forward")))
    with pytest.raises(UnsupportedError, match="mode='reverse'"):
        torch.autograd.grad(refused, rates)


def test_finite_differences_confirm_the_gradients() -> None:
    problem = Problem(lambda: smooth_mlp(3, 2), 2, samples=2)

    def end(inputs: Tensor, labels: Tensor, weight: Tensor, rates: Tensor, *params: Tensor) -> Tensor:
        named = dict(zip(problem.params, params, strict=True))
        return terminal(unroll(problem.loss, named, Batch(inputs, labels, weight), rates, Unrolling(0.7)))

    assert torch.autograd.gradcheck(end, problem.leaves(theta=True), eps=1e-6, atol=1e-6)


def test_class_indices_named_inputs_and_one_rate() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    targets = KEY.fold("classes").integers(3, STEPS, 4)
    shift = torch.zeros(STEPS, 4, 16, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, dict)
        return problem.loss(params, batch._replace(inputs=batch.inputs["x"] + batch.inputs["shift"]), step)

    unread = torch.zeros(STEPS, 4, dtype=torch.float64, requires_grad=True)
    steps = Batch({"x": problem.inputs, "shift": shift, "unread": unread}, targets, problem.weight)
    reference = terminal(plain(problem.loss, problem.params, steps._replace(inputs=problem.inputs), rate.expand(STEPS)))
    found = terminal(unroll(loss, problem.params, steps, rate))
    assert_equal_gradients(reference, found, [problem.inputs, rate])
    for keep in (0, STEPS):
        again = terminal(unroll(loss, problem.params, steps, rate, Unrolling(keep=keep)))
        of_shift, of_inputs, of_unread = torch.autograd.grad(again, [shift, problem.inputs, unread])
        assert torch.equal(of_shift, of_inputs)
        assert not of_unread.any()


def quadratic(a: float) -> StepLoss:
    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        return (a * (params["theta"] - batch.inputs).square() / 2).mean()

    return loss


def test_two_linear_steps_by_hand_exactly_and_with_held_states() -> None:
    # loss a (theta - x)^2 / 2 on one x: theta_2 = (1 - lr a)^2 theta_0 + (lr a (1 - lr a) + lr a) x
    a, lr = 0.7, 0.3
    x = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    start = {"theta": torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)}
    syn = Batch(x[0], torch.zeros(1), torch.ones(1))
    end = unroll(quadratic(a), start, repeat_steps(syn, 2), lr)["theta"]
    assert float(end.detach()) == pytest.approx(-((1 - lr * a) ** 2) + (lr * a * (1 - lr * a) + lr * a) * 2)
    exact = torch.autograd.grad(end, [x, start["theta"]])
    assert [float(g) for g in exact] == pytest.approx([lr * a * (1 - lr * a) + lr * a, (1 - lr * a) ** 2])
    held = unroll(quadratic(a), start, repeat_steps(syn, 2), lr, held=True)["theta"]
    assert torch.equal(held, end)
    assert float(torch.autograd.grad(held, x)[0]) == pytest.approx(2 * lr * a)


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_held_states_drop_the_influence_on_later_gradients(beta: float) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    held = terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(beta), held=True))
    states, theta, velocity = [], {n: p.detach() for n, p in problem.params.items()}, None
    with torch.no_grad():
        for step in range(STEPS):
            states.append(theta)
            one = Batch(problem.inputs[step], problem.labels[step], problem.weight[step])
            gradient = torch.func.grad(problem.loss)(theta, one, step)
            velocity = gradient if velocity is None else {n: beta * velocity[n] + g for n, g in gradient.items()}
            theta = {n: p - problem.rates[step] * velocity[n] for n, p in theta.items()}
    end: Tensors = dict(problem.params)
    velocity = None
    for step in range(STEPS):
        leaf = {n: p.clone().requires_grad_() for n, p in states[step].items()}
        one = Batch(problem.inputs[step], problem.labels[step], problem.weight[step])
        found = torch.autograd.grad(problem.loss(leaf, one, step), list(leaf.values()), create_graph=True)
        gradient = dict(zip(leaf, found, strict=True))
        velocity = gradient if velocity is None else {n: beta * velocity[n] + g for n, g in gradient.items()}
        end = {n: p - problem.rates[step] * velocity[n] for n, p in end.items()}
    assert_equal_gradients(terminal(end), held, problem.leaves(theta=True))


def test_truncation_at_all_steps_is_the_full_unroll() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    ends = [
        terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, Unrolling(0.5, k)))
        for k in (None, STEPS, STEPS + 3, 2)
    ]
    gradients = [torch.autograd.grad(end, problem.inputs)[0] for end in ends]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert not gradients[3][: STEPS - 2].any()
    assert torch.equal(gradients[3][-2:], gradients[0][-2:])


def test_what_a_step_keeps_is_measured_once() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    calls = []

    def counted(params: Tensors, batch: Batch, step: int) -> Tensor:
        calls.append(step)
        return problem.loss(params, batch, step)

    options = Unrolling(0.5)
    for expected in ([0, *range(STEPS)], list(range(STEPS))):
        calls.clear()
        end = terminal(unroll(counted, problem.params, problem.batch, problem.rates, options))
        torch.autograd.grad(end, problem.inputs)
        assert calls == expected


@pytest.mark.parametrize("keep", [0, 3])
def test_truncation_passes_no_gradient_to_the_start(keep: int) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    options = Unrolling(0.5, truncate=2, keep=keep)
    end = terminal(unroll(problem.loss, problem.params, problem.batch, problem.rates, options))
    gradients = torch.autograd.grad(end, list(problem.params.values()), allow_unused=True)
    assert not any(gradient is not None and gradient.any() for gradient in gradients)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes alive at once among those that a call allocates."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        run()
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    alive = peak = 0
    for event in events:
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_memory_does_not_grow_with_the_steps(mode: str) -> None:
    task = BlobTask(width=16)
    params = task.init(KEY).params
    syn = Batch(KEY.normal(2048, 4), KEY.integers(3, 2048), torch.ones(2048))

    def differentiate(steps: int, ours: bool) -> object:
        rates = torch.full((steps,), 0.1, requires_grad=True)
        batch = repeat_steps(syn, steps)

        def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
            return task.loss(NetworkState(params, {}), batch)

        if ours:
            return torch.autograd.grad(terminal(unroll(loss, params, batch, rates, Unrolling(mode=mode))), rates)  # type: ignore[arg-type]
        own = {name: p.clone().requires_grad_() for name, p in params.items()}
        return torch.autograd.grad(terminal(plain(loss, own, batch, rates)), rates)

    ours = [peak_bytes(lambda steps=steps: differentiate(steps, True)) for steps in (3, 12)]  # type: ignore[misc]
    plainly = [peak_bytes(lambda steps=steps: differentiate(steps, False)) for steps in (3, 12)]  # type: ignore[misc]
    assert ours[1] < 1.1 * ours[0]
    assert plainly[1] > 3 * plainly[0]


def test_nothing_of_a_run_stays_in_memory() -> None:
    array = np.ones((3, 2, 4), dtype=np.float32)
    held = weakref.ref(array)
    steps = Batch(torch.from_numpy(array).requires_grad_(), torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2))

    def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
        assert isinstance(batch.inputs, Tensor)
        assert isinstance(batch.targets, Tensor)
        return nn.functional.cross_entropy(batch.inputs @ params["weight"], batch.targets)

    end = unroll(loss, {"weight": torch.zeros(4, 2)}, steps, 0.1, Unrolling(mode="auto"))
    end["weight"].square().sum().backward()
    del array, steps, end
    gc.collect()
    assert held() is None


def test_no_graph_where_nothing_is_differentiated() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    with torch.no_grad():
        end = unroll(problem.loss, problem.params, problem.batch, problem.rates)
    assert not any(tensor.requires_grad for tensor in end.values())


def test_a_shuffled_order_is_epochs_of_permutations() -> None:
    table, present = shuffled_order(KEY, 7, 8, 3)  # an epoch of 7 is 3 + 3 + 1
    assert table.shape == present.shape == (8, 3)
    for epoch in range(2):
        rows = slice(3 * epoch, 3 * epoch + 3)
        assert sorted(table[rows][present[rows] > 0].tolist()) == list(range(7))
    assert present.sum(1).tolist() == [3, 3, 1, 3, 3, 1, 3, 3]
    assert torch.equal(table, shuffled_order(KEY, 7, 8, 3).table)
    assert not torch.equal(table[:3], table[3:6])


def test_a_fixed_order_spreads_the_classes_of_a_class_major_set() -> None:
    classes = torch.arange(3).repeat_interleave(4)
    table, present = fixed_order(12, 6, 4, torch.device("cpu"))
    assert bool(present.all())
    for row in table:
        assert classes[row].tolist() == [0, 1, 2]
    assert torch.equal(table[:2], table[4:])
    ragged = fixed_order(5, 2, 2, torch.device("cpu"))
    assert sorted(ragged.table[ragged.present > 0].tolist()) == list(range(5))
    with pytest.raises(ConfigError, match="split into 6"):
        fixed_order(5, 2, 6, torch.device("cpu"))


def test_gathered_steps_pull_back_to_the_samples() -> None:
    x = KEY.normal(5, 2).requires_grad_()
    syn = Batch(x, torch.arange(5), torch.ones(5))
    order = shuffled_order(KEY, 5, 4, 2)
    steps = gather_steps(syn, order)
    assert isinstance(steps.inputs, Tensor)
    assert torch.equal(steps.targets, order.table)  # type: ignore[arg-type]
    assert torch.equal(steps.weight, order.present)
    (pulled,) = torch.autograd.grad((steps.inputs * steps.weight[..., None]).sum(), x)
    uses = torch.zeros(5).index_add(0, order.table.flatten(), order.present.flatten())
    assert torch.equal(pulled, uses[:, None].expand(5, 2))
    graph = Batch({"x": x, "edges": torch.zeros(2, 9)}, torch.arange(3), torch.ones(3))
    with pytest.raises(ConfigError, match="share their inputs"):
        gather_steps(graph, order)


def test_wrong_arguments_are_refused() -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    for name, value in (("momentum", 1.0), ("truncate", 0), ("mode", "both"), ("keep", -1)):
        with pytest.raises(ConfigError, match=name):
            Unrolling(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sgd or adam"):
        Unrolling(optimizer="lion")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="belongs to sgd"):
        Unrolling(0.9, optimizer="adam")
    with pytest.raises(ShapeError, match="one for each of 5 steps"):
        unroll(problem.loss, problem.params, problem.batch, torch.ones(4))
    with pytest.raises(ShapeError, match="axes \\(steps, samples"):
        unroll(problem.loss, problem.params, problem.batch._replace(inputs=problem.inputs[:3]), 0.1)
    with pytest.raises(ShapeError, match="axes \\(steps, samples"):
        unroll(problem.loss, problem.params, Batch(torch.ones(0, 2), torch.ones(0, 2), torch.ones(0, 2)), 0.1)
    mixed = {name: p.float() if "bias" in name else p for name, p in problem.params.items()}
    with pytest.raises(ShapeError, match="one dtype"):
        unroll(problem.loss, mixed, problem.batch, 0.1)


@pytest.mark.parametrize("held", [False, True])
def test_a_loss_that_closes_over_what_shall_be_learned_is_refused(held: bool) -> None:
    problem = Problem(lambda: smooth_mlp(6, 16), 16)
    heat = torch.tensor(1.5, requires_grad=True)

    def heated(params: Tensors, batch: Batch, step: int) -> Tensor:
        return (2 * heat) * problem.loss(params, batch, step)

    with pytest.raises(UnsupportedError, match=r"shape \(\) requires a gradient.*put it into the step's batch"):
        unroll(heated, problem.params, problem.batch, 0.1, held=held)
    with torch.no_grad():
        plain = unroll(heated, problem.params, problem.batch, 0.1, held=held)  # nobody asks for gradients
    heat.requires_grad_(False)
    ends = unroll(heated, problem.params, problem.batch, 0.1, held=held)
    assert all(torch.equal(plain[name], end) for name, end in ends.items())


@pytest.mark.parametrize("keep", [0, 2, None])
def test_the_graph_is_looked_through_in_the_first_step_alone(keep: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, options = Problem(lambda: smooth_mlp(6, 16), 16), Unrolling(keep=keep)
    looked: list[Tensor] = []
    found = step_choice.require_reached_from

    def counted(value: Tensor, *rest: object) -> None:
        looked.append(value)
        found(value, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(step_choice, "require_reached_from", counted)
    ends = [terminal(unroll(problem.loss, problem.params, problem.batch, 0.1, options)) for _ in range(2)]
    ends[0].backward()  # type: ignore[no-untyped-call]
    assert len(looked) == 1
    assert torch.equal(*ends)
