import pytest
import torch
from torch import Tensor

from mmdistill.graph.students import SEGMENT, trained_in_closed_form, trains_in_closed_form
from mmdistill.graph.task import GraphTask, graph_task
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


@pytest.mark.parametrize("count", [6, 30])  # of fewer nodes than features, and of more than twice as many
@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("model", ["sgc", "gcn", "mlp"])
def test_the_closed_form_ends_where_the_engine_does_with_the_same_gradients(model: str, kind: str, count: int) -> None:
    """Against the unrolled engine on the network itself, over more than one stretch of steps."""
    own, steps = task(model), SEGMENT + 7
    start = as_float64(own.init(Draws(1))).params

    def closed(x: Tensor, rate: Tensor, targets: Tensor) -> Tensors:
        found = trained_in_closed_form(dict(reversed(start.items())), nodes(x, targets), rate, steps)
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
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(found[0][0], start[next(iter(start))])


def test_the_closed_form_is_for_nodes_without_edges_and_networks_without_dropout() -> None:
    x = Draws(2).normal(6, 12).double()
    plain = nodes(x, TARGETS["hard"])
    assert all(trains_in_closed_form(task(model), plain) for model in ("sgc", "gcn", "mlp"))
    edges = plain._replace(inputs={"x": x, "adjacency": torch.ones(6, 6)})
    assert not trains_in_closed_form(task("gcn"), edges)
    dropping = task("gcn")
    dropping.network.dropout = 0.5  # type: ignore[attr-defined]
    assert not trains_in_closed_form(dropping, plain)
