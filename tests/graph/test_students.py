from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmdistill.graph import students
from mmdistill.graph.students import train_in_closed_form, trains_in_closed_form
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.labels import target_loss
from mmdistill.networks.unroll import unroll
from mmdistill.runtime import Draws
from mmdistill.task import Batch, NetworkState, Tensors
from mmdistill.testing import as_float64
from tests.graph.toy import FAST, planted_graph

TARGETS = {
    "hard": torch.arange(6) % 3,
    "soft": Draws(7).normal(6, 3).double().softmax(1),
    "nearly": 1.0008 * Draws(7).normal(6, 3).double().softmax(1),  # distributions but for rounding
    "scores": Draws(8).normal(6, 3).double(),
}


def task(model: str) -> GraphTask:
    return graph_task(planted_graph(), model=model, width=None if model == "sgc" else 8, protocol=FAST)


def nodes(x: Tensor, targets: Tensor) -> Batch:
    weight = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 1.0], dtype=torch.float64)
    return Batch({"x": x}, targets, weight.repeat(len(x) // 6))


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "SEGMENT", 25)


@pytest.mark.parametrize("count", [6, 30])  # of fewer nodes than features, and of more than twice as many
@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("model", ["sgc", "gcn", "mlp"])
def test_the_closed_form_ends_where_the_engine_does_with_the_same_gradients(model: str, kind: str, count: int) -> None:
    """Against the unrolled engine on the network itself, over two stretches of steps and a shorter one."""
    own, steps = task(model), 57
    start = as_float64(own.init(Draws(1))).params

    def closed(x: Tensor, rate: Tensor, targets: Tensor) -> Tensors:
        found = train_in_closed_form(dict(reversed(start.items())), nodes(x, targets), rate, steps)
        return {name: found[name] for name in start}  # in whatever order parameters come

    def by_engine(x: Tensor, rate: Tensor, targets: Tensor) -> Tensors:
        def loss(params: Tensors, batch: Batch, step: int) -> Tensor:
            return own.loss(NetworkState(params, {}), batch, train=True, draws=Draws(step))

        return unroll(loss, start, nodes(x, targets).map(lambda t: t.expand(steps, *t.shape)), rate)

    found = []
    for train in (closed, by_engine):
        x, rate = Draws(2).normal(count, 12).double().requires_grad_(), torch.tensor(0.05).double().requires_grad_()
        targets = torch.cat([TARGETS[kind]] * (count // 6))
        targets.requires_grad_(targets.is_floating_point())
        end = train(x, rate, targets)
        reading = sum((Draws(index).normal(*t.shape).double() * t).sum() for index, t in enumerate(end.values()))
        assert isinstance(reading, Tensor)
        leaves = [leaf for leaf in (x, rate, targets) if leaf.requires_grad]
        found.append([*end.values(), *torch.autograd.grad(reading, leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(found[0][0], start[next(iter(start))])


def leaves_of(model: str, kind: str, count: int, dtype: torch.dtype = torch.float64) -> tuple[list[str], list[Tensor]]:
    """Return names of parameters, and nodes, rate, targets, weights and parameters that all want gradients."""
    start = as_float64(task(model).init(Draws(1))).params
    targets = torch.cat([TARGETS[kind]] * (count // 6))
    targets = torch.nn.functional.one_hot(targets).double() if kind == "hard" else targets
    leaves = [Draws(2).normal(count, 12).double(), torch.tensor(0.05), targets, nodes(targets, targets).weight]
    return list(start), [leaf.detach().to(dtype).requires_grad_() for leaf in [*leaves, *start.values()]]


def reading(
    names: list[str], steps: int, train: Callable[..., Tensors] = train_in_closed_form
) -> Callable[..., Tensor]:
    """Return a scalar of where a student ends, as a function of all that it depends on."""

    def read(x: Tensor, rate: Tensor, targets: Tensor, weight: Tensor, *params: Tensor) -> Tensor:
        end = train(dict(zip(names, params, strict=True)), Batch({"x": x}, targets, weight), rate, steps)
        parts = [(Draws(i).normal(*end[name].shape).to(x) * end[name].sin()).sum() for i, name in enumerate(names)]
        return torch.stack(parts).sum()

    return read


def plain_loop(start: Tensors, syn: Batch, rate: Tensor, steps: int) -> Tensors:
    """SGD on the weighted mean of the losses, differentiated through its gradients."""
    params, x = dict(start), syn.inputs["x"]  # type: ignore[index,call-overload]
    assert isinstance(syn.targets, Tensor)
    for _ in range(steps):
        weights = list(params.values())
        logits = torch.nn.functional.linear(x, *weights[:2])
        if len(weights) == 4:
            logits = torch.nn.functional.linear(logits.relu(), *weights[2:])
        loss = (syn.weight * target_loss(logits, syn.targets)).sum() / syn.weight.sum()
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        params = {name: old - rate * slope for (name, old), slope in zip(params.items(), gradients, strict=True)}
    return params


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("model", ["sgc", "gcn"])
def test_all_gradients_are_those_of_a_plain_loop(model: str, kind: str, count: int, dtype: torch.dtype) -> None:
    names, leaves = leaves_of(model, kind, count, dtype)
    value = reading(names, 57)(*leaves)
    expected = reading(names, 57, plain_loop)(*leaves)
    bound = 1e-12 if dtype == torch.float64 else 1e-4
    for mine, theirs in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert mine.dtype == dtype
        assert (mine - theirs).norm() <= bound * theirs.norm()


@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("kind", ["soft", "scores"])
@pytest.mark.parametrize("model", ["sgc", "gcn"])
def test_gradients_are_slopes(model: str, kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "SEGMENT", 2)
    names, leaves = leaves_of(model, kind, count)
    assert torch.autograd.gradcheck(reading(names, 5), leaves, fast_mode=True)


@pytest.mark.parametrize("steps", [0, 1, 25, 26, 57])
def test_a_second_backward_pass_gives_the_same_and_second_derivatives_are_refused(steps: int) -> None:
    """Whether or not a pass repeats steps."""
    names, leaves = leaves_of("gcn", "soft", 6)
    value = reading(names, steps)(*leaves)
    some = leaves[4:]
    for once, again in zip(*(torch.autograd.grad(value, some, retain_graph=True) for _ in range(2)), strict=True):
        assert torch.equal(once, again)
    if steps:
        slope = torch.autograd.grad(value, leaves[0], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_stretches_keep_memory_from_growing_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forward pass keeps: a state of each stretch, and of the last one each step."""
    monkeypatch.setattr(students, "SEGMENT", 10)
    kept = []
    for steps in (20, 100):
        names, leaves = leaves_of("gcn", "soft", 30)
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            reading(names, steps)(*leaves)
        kept.append(sum(sizes.values()))
    assert kept[1] < 2 * kept[0]


def test_the_closed_form_is_for_nodes_without_edges_and_networks_without_dropout() -> None:
    x = Draws(2).normal(6, 12).double()
    plain = nodes(x, TARGETS["hard"])
    assert all(trains_in_closed_form(task(model), plain) for model in ("sgc", "gcn", "mlp"))
    edges = plain._replace(inputs={"x": x, "adjacency": torch.ones(6, 6)})
    assert not trains_in_closed_form(task("gcn"), edges)
    dropping = task("gcn")
    dropping.network.dropout = 0.5  # type: ignore[attr-defined]
    assert not trains_in_closed_form(dropping, plain)
