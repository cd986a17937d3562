"""Networks of the user's that classify graphs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv, global_add_pool, global_mean_pool

from mmdistill import distill, evaluate, graph_set_task
from mmdistill.abilities import judge_title
from mmdistill.errors import ConfigError, MmdistillWarning, ShapeError
from mmdistill.graph.sets import GraphSet, GraphSetTask
from mmdistill.graph.sets.own import GraphModule
from mmdistill.graph.sets.synthetic import SyntheticGraphs
from mmdistill.networks.schedules import EMPTY, FreshNetworks
from mmdistill.objectives.base import Network, class_gradients, class_means
from mmdistill.objectives.distances import relative_squared_error
from mmdistill.objectives.gradient import GradientMatching
from mmdistill.runtime import Draws
from mmdistill.settings import Settings
from mmdistill.task import NetworkState, Tensors
from mmdistill.testing import check_task
from tests.graph.sets.toy import FAST, rings


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> GraphSet:
    return rings(tmp_path_factory.mktemp("sets"))


class Weighted(nn.Module):
    """What :class:`~mmdistill.graph.sets.models.GraphClassifier` computes, of torch-geometric's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(8, 16), GCNConv(16, 16), GCNConv(16, 16)])
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, batch: Tensor | None = None):  # type: ignore[no-untyped-def]
        for conv in self.convs:
            x = conv(x, edge_index, edge_weight).relu()
        return self.head(global_mean_pool(x, batch))


class Cached(Weighted):
    """The same, whose layers would keep the edges of the first graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(size, 16, cached=True) for size in (8, 16, 16)])


class Isomorphism(nn.Module):
    """A GIN with a batch norm and dropout, which takes no weights; another argument has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GINConv(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16)))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None, batch: Tensor | None = None):  # type: ignore[no-untyped-def]
        assert edge_attr is None
        return self.head(self.dropout(global_add_pool(self.conv(x, edge_index), batch)))


def own(graphs: GraphSet, model: Callable[[], nn.Module] = Weighted) -> GraphSetTask:
    return graph_set_task(graphs, model=model, protocol=FAST)


OWN_NAMES = {
    **{f"layer{i}.bias": f"convs.{i}.bias" for i in range(3)},
    **{f"layer{i}.weight": f"convs.{i}.lin.weight" for i in range(3)},
    **{f"head.{name}": f"head.{name}" for name in ("weight", "bias")},
}
"""By the name of a classifier's parameter, that in the same module of the user's."""


def as_own(params: Tensors) -> Tensors:
    return {own: params[name] for name, own in OWN_NAMES.items()}


def as_built_in(params: Tensors) -> Tensors:
    return {name: params[own] for name, own in OWN_NAMES.items()}


@pytest.mark.parametrize("model", [Weighted, Isomorphism])
def test_conformance(graphs: GraphSet, model: Callable[[], nn.Module]) -> None:
    task = graph_set_task(graphs, model=model, protocol=replace(FAST, epochs=4))
    assert tuple(task.judges) == ("model", "gcn")
    for judge in task.judges:
        check_task(task, judge=judge)


def test_a_module_gets_what_the_own_network_reads(graphs: GraphSet) -> None:
    """Logits, class gradients and the gradient of a matched set are those of the same network of the package's."""
    task, built_in = own(graphs), graph_set_task(graphs, width=16)
    params = built_in.init(Draws(0)).params
    states = (NetworkState(as_own(params), {}), NetworkState(params, {}))
    chosen = torch.tensor([7, 3, 3, 0, 39])
    for inputs in (graphs.padded(chosen), graphs.padded(chosen, nodes=15), graphs.joined(chosen)):
        mine, theirs = task.predict(states[0], inputs)[0], built_in.predict(states[1], inputs)[0]
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(task.features(states[0], inputs)[-1], built_in.features(states[1], inputs)[-1])
    found = []
    for each, state in zip((task, built_in), states, strict=True):
        network = Network(each, state)
        real = each.sample_real(Draws(1), torch.arange(2), 6)
        samples = each.stored(2, Settings(steps=1), "hard", Draws(2))
        assert isinstance(samples, SyntheticGraphs)
        syn = samples.class_batches(samples(Draws(3)))
        gradients = class_gradients(network, real)  # type: ignore[arg-type]
        value = GradientMatching(relative_squared_error)(network, syn, real, Draws(4))
        leaves = [samples.codes, samples.decoder.logits]
        found.append((gradients, value, torch.autograd.grad(value, leaves), class_means(network, syn)))  # type: ignore[arg-type]
    torch.testing.assert_close(as_built_in(found[0][0]), found[1][0], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0][2])


def test_layers_keep_nothing_of_the_first_graphs(graphs: GraphSet) -> None:
    plain = own(graphs)
    with pytest.warns(MmdistillWarning, match=r"convs\.0, convs\.1, convs\.2: cached=True is taken as False"):
        caching = own(graphs, Cached)
    state = plain.init(Draws(0))
    for chosen in (torch.tensor([7, 3]), torch.tensor([0, 39, 5])):
        inputs = graphs.joined(chosen)
        assert torch.equal(caching.predict(state, inputs)[0], plain.predict(state, inputs)[0])


def test_a_module_distils_and_judges(graphs: GraphSet) -> None:
    task = own(graphs)
    result = distill(task, "doscond", ipc=2, settings={"steps": 5, "real_batch": 16})
    start = task.stored(2, Settings(steps=1), "hard", Draws(0)).finished(Draws(0)).inputs
    assert not torch.equal(result.batch.inputs["x"], start["x"])  # type: ignore[index]
    scores = evaluate(task, result, n=2, baselines=["random"])
    assert judge_title(task, scores.headline().judge) == "model"
    assert "Weighted" in repr(task)
    assert evaluate(task, result, n=1, judges=["gcn"], baselines=[]).headline().judge == "gcn"


class Unweighted(Weighted):
    """Takes weights and ignores them."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, batch: Tensor | None = None):  # type: ignore[no-untyped-def]
        return super().forward(x, edge_index, None, batch)


@pytest.mark.parametrize("kind", [Isomorphism, Unweighted])
def test_edges_stay_where_a_module_reads_no_weights(graphs: GraphSet, kind: type[nn.Module]) -> None:
    task = own(graphs, kind)
    with pytest.warns(MmdistillWarning, match="reads no edge weights, so only the features of nodes are learned"):
        start = task.stored(1, Settings(steps=1), "hard", Draws(0, ("start",)))
    assert set(start.groups()) == {"codes"}
    with pytest.warns(MmdistillWarning, match="reads no edge weights"):
        result = distill(task, "doscond", ipc=1, settings={"steps": 5, "real_batch": 16})
    real = graphs.padded(graphs.train)
    inputs = result.batch.inputs
    assert isinstance(inputs, dict)
    for x, adjacency in zip(inputs["x"], inputs["adjacency"], strict=True):
        width = adjacency.shape[1]
        alike = (real["adjacency"][:, :width, :width] == adjacency).all((1, 2))
        assert alike.any()
        assert not (real["x"][:, :width] == x).all((1, 2)).any()


def test_a_module_that_says_that_it_ignores_weights_gets_none(graphs: GraphSet) -> None:
    class Ignoring(Weighted):
        supports_edge_weight = False

        def forward(
            self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None, batch: Tensor | None = None
        ):  # type: ignore[no-untyped-def]
            assert edge_weight is None
            return super().forward(x, edge_index, None, batch)

    network = own(graphs, Ignoring).network
    assert isinstance(network, GraphModule)
    assert not network.takes_weight
    strong = {**graphs.padded(torch.tensor([0, 1]))}
    for weight, kept in ((1.0, True), (0.5, True), (0.4, False)):
        weighted = {**strong, "adjacency": weight * strong["adjacency"]}
        assert network.precomputed(weighted)["edge_index"].shape[1] == kept * int(strong["adjacency"].sum())


def test_a_batch_norm_takes_the_statistics_of_real_graphs(graphs: GraphSet) -> None:
    task = own(graphs, Isomorphism)
    network = FreshNetworks().fetch(task, EMPTY, Draws(0)).network
    assert network is not None
    nodes = torch.cat([torch.arange(int(graphs.start[one]), int(graphs.start[one + 1])) for one in graphs.train])
    x, edges = graphs.x, graphs.edge_index
    summed = x.index_add(0, edges[1], x[edges[0]])  # all 16 training graphs of each class are drawn
    hidden = (summed @ network.params["conv.nn.0.weight"].T + network.params["conv.nn.0.bias"])[nodes]
    torch.testing.assert_close(network.buffers["conv.nn.1.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_modules_that_cannot_work_are_refused_in_words(graphs: GraphSet) -> None:
    class NoBatch(Weighted):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
            return x

    class Edges(Weighted):
        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor) -> Tensor:  # type: ignore[override]
            return x

    class Nodes(Weighted):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:  # type: ignore[override]
            out: Tensor = self.head(self.convs[0](x, edge_index))
            return out

    class Unpooled(Weighted):
        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:  # type: ignore[override]
            return global_mean_pool(super().forward(x, edge_index, batch=torch.arange(len(x))), batch)

    one = Weighted()
    for model, said in (
        (NoBatch, r"forward takes x, edge_index; .* after them 'batch'"),
        (Edges, "needs 'edge_attr': call it edge_weight"),
        (Nodes, r"it must return \(graphs, classes\) logits \(2, 2\)"),
        (one, "lambda: Weighted"),
        (lambda: one, "one and the same network twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            own(graphs, model)  # type: ignore[arg-type]
    task = own(graphs, Unpooled)
    with pytest.raises(ShapeError, match=r"'head' has .* rows of features for 2 graphs; name a submodule that comes"):
        task.features(task.init(Draws(0)), graphs.joined(torch.tensor([0, 1])))
    for options, said in (
        ({"model": Weighted, "width": 8}, "a module of your own"),
        ({"model": "gin"}, "gin"),
        ({"features": "head"}, "gcn"),
    ):
        with pytest.raises(ConfigError, match=said):
            graph_set_task(graphs, **options)  # type: ignore[arg-type]


def test_given_modules_judge_as_the_module_distilled_with_does(graphs: GraphSet) -> None:
    usual, mine = graph_set_task(graphs, protocol=FAST), own(graphs, Isomorphism)
    batch = usual.training_batch()
    beside = usual.with_judge("gin", Isomorphism)
    scores = [task.evaluate(batch, judge, Draws(0), 1, {}) for task, judge in ((mine, "model"), (beside, "gin"))]
    assert scores[0].values == scores[1].values
    mine.classifier = None  # type: ignore[assignment]  # the module validates
    assert 0 <= mine.validate(batch, Draws(0), {}) <= 1
    judges = {"gin": Isomorphism, "weighted": Weighted, "gcn": None}
    found = evaluate(usual, batch, judges=judges, n=1)
    assert [entry.judge for entry in found.results] == list(judges)
    identities = [str(entry.judging.get("network", "")).split(" ")[0] for entry in found.results]
    assert identities == ["Isomorphism", "Weighted", ""]
    with pytest.raises(ConfigError, match=r"the judge 'conv': GCNConv\.forward takes x, edge_index"):
        evaluate(usual, batch, judges={"conv": lambda: GCNConv(8, 2)}, n=1)
