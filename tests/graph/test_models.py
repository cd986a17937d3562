from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN2Conv, GCNConv, SGConv, SSGConv
from torch_geometric.nn.models import basic_gnn

from mmdistill.distill import distill
from mmdistill.errors import ConfigError, MmdistillWarning, UnsupportedError
from mmdistill.graph import teacher
from mmdistill.graph.adjacency import undirected
from mmdistill.graph.judges import JudgeProtocol, fit_apart, read_apart
from mmdistill.graph.models import GCN, SGC, ModuleNetwork
from mmdistill.graph.propagation import normalise_dense, propagate, propagate_columns
from mmdistill.graph.schedules import TrainedOnGraph
from mmdistill.graph.task import graph_task
from mmdistill.graph.teacher import TeacherRecipe
from mmdistill.networks.schedules import EMPTY, FreshNetworks
from mmdistill.runtime import Draws
from mmdistill.task import Batch, ClassBatch, Dims, NetworkState, Tensors
from mmdistill.testing import as_float64
from tests.graph.toy import planted_graph
from tests.oracles import graph as oracle

GRAPH = planted_graph()
NODES = len(GRAPH.x)


def dense_weights() -> Tensor:
    dense = torch.zeros(NODES, NODES)
    dense[GRAPH.edge_index[0], GRAPH.edge_index[1]] = GRAPH.edge_weight
    return dense


def sparse() -> Tensors:
    return GRAPH.adjacency.normalised()


def test_sparse_and_dense_propagation_equal_the_oracle() -> None:
    x = GRAPH.x.double()[:, :3]
    expected = torch.from_numpy(oracle.propagated(dense_weights().double().numpy(), x.numpy(), 1))
    assert torch.allclose(normalise_dense(dense_weights().double()) @ x, expected, atol=1e-12)
    assert torch.allclose(propagate(sparse(), x), expected, atol=1e-6)  # edge weights are float32
    wide = GRAPH.x.repeat(1, 15)  # more columns than are taken at a time
    assert torch.allclose(propagate_columns(sparse(), wide), propagate(sparse(), wide), atol=1e-6)


def test_what_is_propagated_in_bfloat16_is_summed_in_float32() -> None:
    x = GRAPH.x.bfloat16()
    found = propagate(sparse(), x)
    assert found.dtype == torch.float32
    assert torch.equal(found, propagate(sparse(), x.float()))


def test_sparse_propagation_has_both_derivatives_and_batches() -> None:
    chain, _ = undirected(torch.tensor([[0, 1], [1, 2]]), None, 3)
    graph = chain.normalised()
    x = Draws(0).normal(3, 2, dtype=torch.float64).requires_grad_()

    def squared(t: Tensor) -> Tensor:
        return propagate(graph, t).square()

    assert torch.autograd.gradcheck(squared, (x,))
    assert torch.autograd.gradgradcheck(squared, (x,))
    stacked = Draws(1).normal(5, 3, 2)
    together = torch.func.vmap(lambda t: propagate(graph, t))(stacked)
    assert torch.allclose(together, torch.stack([propagate(graph, t) for t in stacked]), atol=1e-6)
    middle = torch.func.vmap(lambda t: propagate(graph, t), in_dims=1)(stacked.transpose(0, 1))
    assert torch.allclose(middle, together)


@pytest.mark.parametrize("network", [SGC(12, 3), GCN(12, 3, 8)], ids=["sgc", "gcn"])
def test_a_graph_as_edges_and_as_a_dense_matrix_give_the_same_logits(network: SGC | GCN) -> None:
    state = network.init(Draws(0))
    by_edges, _ = network.logits(state, {"x": GRAPH.x, **sparse()})
    by_matrix, _ = network.logits(state, {"x": GRAPH.x, "adjacency": dense_weights()})
    assert torch.allclose(by_edges, by_matrix, atol=1e-5)


def test_a_forward_pass_normalises_a_dense_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []

    def counted(adjacency: Tensor) -> Tensor:
        calls.append(adjacency)
        return normalise_dense(adjacency)

    monkeypatch.setattr("mmdistill.graph.propagation.normalise_dense", counted)
    network, inputs = GCN(12, 3, 8), {"x": GRAPH.x, "adjacency": dense_weights()}
    network.logits(network.init(Draws(0)), inputs)
    network.layers(network.init(Draws(0)), inputs)
    assert len(calls) == 2


def test_sgc_on_propagated_rows_is_sgc_on_the_graph() -> None:
    network = SGC(12, 3)
    state = network.init(Draws(0))
    rows = {"x": graph_task(GRAPH).scene.propagated(2)}
    logits, _ = network.logits(state, {"x": GRAPH.x, "adjacency": dense_weights()})
    assert torch.allclose(network.logits(state, rows)[0], logits, atol=1e-5)


def test_gcn_equals_torch_geometrics_layers() -> None:
    network = GCN(12, 3, 8, dropout=0.0)
    state = network.init(Draws(2))
    first, second = GCNConv(12, 8), GCNConv(8, 3)
    with torch.no_grad():
        for conv, name in ((first, "first"), (second, "second")):
            conv.lin.weight.copy_(state.params[f"{name}.weight"])
            conv.bias.copy_(state.params[f"{name}.bias"])
        expected = second(first(GRAPH.x, GRAPH.edge_index).relu(), GRAPH.edge_index)
    logits, _ = network.logits(state, {"x": GRAPH.x, **sparse()})
    assert torch.allclose(logits, expected, atol=1e-5)


def test_closed_form_sgc_gradients_equal_the_oracle() -> None:
    network = SGC(12, 3)
    state = as_float64(network.init(Draws(0)))
    x, y = GRAPH.x.double()[:9], GRAPH.y[:9]
    membership = nn.functional.one_hot(y).T.double()
    got = network.class_gradients(state, {"x": x}, nn.functional.one_hot(y).double(), membership)
    for label in range(3):
        own = (y == label).nonzero()[:, 0]
        weight, bias = oracle.softmax_regression_gradient(
            x[own].numpy(), [label] * len(own), state.params["weight"].numpy(), state.params["bias"].numpy()
        )
        assert np.allclose(got["weight"][label].numpy(), weight, atol=1e-12)
        assert np.allclose(got["bias"][label].numpy(), bias, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1 / 3], ids=["probabilities", "scores"])
def test_closed_form_sgc_gradients_are_those_of_the_tasks_loss(shift: float) -> None:
    own = graph_task(GRAPH, model="sgc")
    state, weight = as_float64(own.init(Draws(0))), torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]]).double()
    soft = Draws(1).uniform(4, 3).double().softmax(1) - shift
    inputs = {"x": GRAPH.x.double()[:4]}
    batch = ClassBatch(Batch(inputs, soft, weight), Dims(None, None))
    got = own.class_gradients(state, batch)
    assert got is not None
    gradient = torch.func.grad(lambda params, one: own.loss(NetworkState(params, {}), one))
    for label in range(2):
        wanted = gradient(state.params, batch.one_class(label))
        torch.testing.assert_close({name: gradient[label] for name, gradient in got.items()}, wanted)


def test_scores_have_a_loss_with_a_lower_bound() -> None:
    scores = torch.tensor([[2 / 3, -1 / 3, -1 / 3]])
    for own in (graph_task(GRAPH, model="sgc"), graph_task(GRAPH, model="gcn")):
        state = own.init(Draws(0))
        far = NetworkState({name: -1e3 * tensor for name, tensor in state.params.items()}, state.buffers)
        batch = Batch({"x": GRAPH.x[:1]}, scores, torch.ones(1))
        assert float(own.loss(far, batch)) > 0


def test_dropout_follows_its_key() -> None:
    network = GCN(12, 3, 8)
    state = network.init(Draws(0))
    one, same, other = (network.logits(state, {"x": GRAPH.x}, train=True, draws=Draws(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(*(network.logits(state, {"x": GRAPH.x}, draws=draws)[0] for draws in (Draws(1), None)))
    first, second = state.params["first.weight"], state.params["second.weight"]
    kept = Draws(1).uniform(NODES, 8) >= 0.5
    torch.testing.assert_close(one, 2 * ((GRAPH.x @ first.mT).relu() * kept) @ second.mT)


def test_weights_start_within_glorots_bound() -> None:
    for weight in (GCN(12, 3, 8).init(Draws(0)).params["first.weight"], SGC(12, 3).init(Draws(0)).params["weight"]):
        assert 0.8 < float(weight.abs().max()) / (6 / sum(weight.shape)) ** 0.5 < 1


class PlainConvolutions(nn.Module):
    """A graph module whose layers take no edge weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(12, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x, edge_index).tanh())
        return out


def pyg_gcn() -> nn.Module:
    module: nn.Module = basic_gnn.GCN(12, 8, 2, 3, dropout=0.5)
    return module


def test_any_module_runs_in_every_input_form() -> None:
    network = ModuleNetwork(pyg_gcn)
    state = network.init(Draws(0))
    raw = {"x": GRAPH.x, "edge_index": GRAPH.edge_index, "edge_weight": GRAPH.edge_weight}
    by_edges, _ = network.logits(state, raw)
    by_matrix, _ = network.logits(state, {"x": GRAPH.x, "adjacency": dense_weights()})
    assert torch.allclose(by_edges, by_matrix, atol=1e-5)
    alone, _ = network.logits(state, {"x": GRAPH.x[:4]})
    assert alone.shape == (4, 3)
    assert network.layers(state, raw)[-1].shape == (NODES, 8)
    with patch("torch.manual_seed", side_effect=AssertionError):  # which would seed the generators of all devices
        one, same = (network.logits(state, raw, train=True, draws=Draws(5))[0] for _ in range(2))
    assert torch.equal(one, same)


def test_a_module_without_weights_reads_strong_edges_and_teaches_no_weights() -> None:
    network = ModuleNetwork(PlainConvolutions)
    state = network.init(Draws(0))
    raw = {"x": GRAPH.x, "edge_index": GRAPH.edge_index, "edge_weight": GRAPH.edge_weight}
    assert network.layers(state, raw)[-1].shape == (NODES, 5)
    weak = torch.where(dense_weights() > 0, 0.6, 0.4).fill_diagonal_(0)
    by_matrix, _ = network.logits(state, network.precomputed({"x": GRAPH.x, "adjacency": weak}))
    assert torch.allclose(by_matrix, network.logits(state, raw)[0], atol=1e-5)
    with pytest.raises(UnsupportedError, match="method without structure"):
        distill(graph_task(GRAPH, model=PlainConvolutions), "gcond", nodes=6, settings={"steps": 1})


@pytest.mark.parametrize("kind", [basic_gnn.GraphSAGE, basic_gnn.GAT, basic_gnn.GIN])
def test_models_that_ignore_weights_see_no_edge_where_there_is_none(kind: type[nn.Module]) -> None:
    network = ModuleNetwork(lambda: kind(12, 8, 2, 3))
    state = network.init(Draws(0))
    assert not network.takes_weight
    alone, _ = network.logits(state, {"x": GRAPH.x})
    zero = network.precomputed({"x": GRAPH.x, "adjacency": torch.zeros(NODES, NODES)})
    assert torch.equal(alone, network.logits(state, zero)[0])
    linked, _ = network.logits(state, network.precomputed({"x": GRAPH.x, "adjacency": dense_weights()}))
    by_edges, _ = network.logits(state, {"x": GRAPH.x, "edge_index": GRAPH.edge_index})
    assert torch.allclose(linked, by_edges, atol=1e-5)
    assert not torch.allclose(linked, alone, atol=1e-3)


def test_a_judge_that_ignores_weights_trains_on_the_edges_that_there_are() -> None:
    own = graph_task(GRAPH, model=lambda: basic_gnn.GraphSAGE(12, 8, 2, 3), protocol=JudgeProtocol(epochs=4))
    chosen = own.select(torch.arange(6))
    assert isinstance(chosen.inputs, dict)
    unlinked = chosen._replace(inputs={"x": chosen.inputs["x"]})
    without = chosen._replace(inputs={"x": chosen.inputs["x"], "adjacency": torch.zeros(6, 6)})
    one, same = (own.judging.fit(part, own.network, Draws(0), 1, own.protocol) for part in (unlinked, without))  # type: ignore[arg-type]
    assert torch.equal(one, same)


class Counting(nn.Module):
    """A graph module that counts the edges it reads, and whose third argument is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        assert batch is None
        out: Tensor = self.head(x) + edge_index.shape[1]
        return out


class WeightedCounting(Counting):
    """The same with a weight for each edge."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index)


def test_only_edge_weight_gets_the_weights_and_only_edges_of_a_weight_are_passed() -> None:
    plain, weighted = ModuleNetwork(Counting), ModuleNetwork(WeightedCounting)
    state = plain.init(Draws(0))
    inputs = {"x": GRAPH.x, "adjacency": 0.7 * dense_weights()}
    empty, _ = plain.logits(state, {"x": GRAPH.x})
    for network in (plain, weighted):
        counted = network.logits(state, network.precomputed(inputs))[0] - empty
        assert torch.allclose(counted, torch.tensor(float(GRAPH.edge_index.shape[1])))
    assert torch.allclose(weighted.logits(state, inputs)[0] - empty, torch.tensor(float(NODES * (NODES - 1))))


class ShortName(WeightedCounting):
    """The same whose weights have another name."""

    def forward(self, x: Tensor, edge_index: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index, w * 2) + w.sum()


class Attributes(Counting):
    """A module of edge attributes."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index)


class Unknown(Counting):
    """A module that cannot do without something that no graph has."""

    def forward(self, x: Tensor, edge_index: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, edge_index)


def test_weights_go_by_any_usual_name_and_are_never_left_out_unsaid(caplog: pytest.LogCaptureFixture) -> None:
    inputs = {"x": GRAPH.x, "edge_index": GRAPH.edge_index, "edge_weight": GRAPH.edge_weight}
    weighted, short = ModuleNetwork(WeightedCounting), ModuleNetwork(ShortName)
    state = weighted.init(Draws(0))
    gained = short.logits(state, inputs)[0] - weighted.logits(state, inputs)[0]
    torch.testing.assert_close(gained, GRAPH.edge_weight.sum().expand_as(gained))
    assert not ModuleNetwork(Attributes).takes_weight
    assert "the third argument of Attributes.forward is 'edge_attr', so it gets no weights" in caplog.text
    with pytest.raises(ConfigError, match=r"third argument of Unknown\.forward is 'positions': call it edge_weight"):
        ModuleNetwork(Unknown)


class Cached(nn.Module):
    """A layer of torch-geometric's, and APPNP, both of which may keep what they compute of the first graph."""

    def __init__(self, layer: type[nn.Module], cached: bool, runs: bool) -> None:
        super().__init__()
        sizes = (12,) if layer is GCN2Conv else (12, 12)
        self.conv = (
            layer(*sizes, alpha=0.1, cached=cached) if layer in (GCN2Conv, SSGConv) else layer(*sizes, cached=cached)
        )
        self.head, self.appnp = nn.Linear(12, 3), APPNP(2, 0.1, cached=cached)
        if runs:
            self(torch.randn(9, 12), torch.tensor([[0, 8], [8, 0]]))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        first = (x,) if isinstance(self.conv, GCN2Conv) else ()
        hidden = self.conv(x, *first, edge_index, edge_weight)
        out: Tensor = self.appnp(self.head(hidden), edge_index, edge_weight)
        return out


@pytest.mark.parametrize("runs", [False, True], ids=["fresh", "run before"])
@pytest.mark.parametrize("layer", [GCNConv, SGConv, SSGConv, GCN2Conv])
def test_layers_keep_nothing_of_the_first_graph(layer: type[nn.Module], runs: bool) -> None:
    with pytest.warns(MmdistillWarning, match="conv, appnp: cached=True is taken as False, since the network reads"):
        caching = ModuleNetwork(lambda: Cached(layer, True, runs))
    plain = ModuleNetwork(lambda: Cached(layer, False, False))
    state = plain.init(Draws(0))
    raw = {"x": GRAPH.x, "edge_index": GRAPH.edge_index, "edge_weight": GRAPH.edge_weight}
    for inputs in (raw, {"x": GRAPH.x[:6]}, {"x": GRAPH.x[:6], "adjacency": dense_weights()[:6, :6]}, raw):
        assert torch.equal(caching.logits(state, inputs)[0], plain.logits(state, inputs)[0])


class CachedOtherwise(nn.Module):
    """A layer of its own, which means something else by the name."""

    def __init__(self) -> None:
        super().__init__()
        self.cached, self._cached_scale, self.head = True, torch.ones(1), nn.Linear(12, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.head(x * self._cached_scale)
        return out


class CachedByProperty(nn.Linear):
    """A layer that cannot be told otherwise."""

    @property
    def cached(self) -> bool:
        return True

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def test_what_other_layers_call_cached_stays(recwarn: pytest.WarningsRecorder) -> None:
    module = ModuleNetwork(CachedOtherwise).functional.module
    assert isinstance(module, CachedOtherwise)
    assert module.cached is True
    assert module._cached_scale is not None
    assert ModuleNetwork(lambda: CachedByProperty(12, 3)).functional.module.cached
    assert not [one for one in recwarn if "cached" in str(one.message)]


def test_a_module_without_layers_to_read_has_no_features() -> None:
    with pytest.raises(UnsupportedError, match="has no nn"):
        ModuleNetwork(lambda: nn.Bilinear(2, 2, 2)).functional.features(NetworkState({}, {}))


def test_states_are_plain_values() -> None:
    assert isinstance(SGC(12, 3).init(Draws(0)), NetworkState)


class NormedConvolutions(nn.Module):
    """A graph module with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = GCNConv(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(x, edge_index)).relu())
        return out


@pytest.mark.parametrize("large", [False, True])
def test_a_batch_norm_takes_the_statistics_of_real_nodes(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.graph.data.LARGE", 0 if large else 10_000)
    monkeypatch.setattr("mmdistill.graph.task.FANOUTS", (10_000, 10_000))  # every node within two hops
    task = graph_task(GRAPH, model=NormedConvolutions)
    assert task.graph.is_large == large
    network = FreshNetworks().fetch(task, EMPTY, Draws(0)).network
    assert network is not None
    conv = GCNConv(12, 5)
    conv.load_state_dict({name[5:]: value for name, value in network.params.items() if name.startswith("conv.")})
    hidden = conv(GRAPH.x, GRAPH.edge_index).detach()
    torch.testing.assert_close(network.buffers["norm.running_mean"], hidden.mean(0))
    torch.testing.assert_close(network.buffers["norm.running_var"], hidden.var(0))


def test_a_judge_keeps_the_statistics_of_its_chosen_epoch() -> None:
    network = ModuleNetwork(NormedConvolutions)
    inputs = {"x": GRAPH.x, "edge_index": GRAPH.edge_index}
    sample = Batch(inputs, GRAPH.y, torch.ones(NODES))
    val = graph_task(GRAPH).parts["val"]
    protocol = JudgeProtocol(epochs=40, lr=0.3, validate_every=1)
    fitted = read_apart(network, fit_apart(network, sample, val, protocol, Draws(0), 3), val)
    keys = [Draws(0).fold("init", index) for index in range(3)]
    _, scores = oracle.trained_one_by_one(network, keys, sample, val, val, protocol)
    assert (fitted.argmax(-1) == val.classes).double().mean(1).tolist() == pytest.approx(scores.tolist())


class Recording(nn.Module):
    """Keeps whether it trains, and what its dropout would draw."""

    def __init__(self, seen: list[tuple[bool, float]]) -> None:
        super().__init__()
        self.head, self.seen = nn.Linear(12, 3), seen

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        self.seen.append((self.training, float(torch.rand(()))))
        out: Tensor = self.head(x)
        return out


def test_judges_train_with_dropout_of_their_own_and_are_read_without() -> None:
    seen: list[tuple[bool, float]] = []
    network, val = ModuleNetwork(lambda: Recording(seen)), graph_task(GRAPH).parts["val"]
    seen.clear()
    states = fit_apart(network, val.whole(False), None, JudgeProtocol(epochs=3), Draws(0), 2)
    assert [trains for trains, _ in seen] == [True] * 6
    assert len({drawn for _, drawn in seen}) == 6
    read_apart(network, states, val)
    assert [trains for trains, _ in seen[6:]] == [False] * 2


class WeightedNormed(nn.Module):
    """A graph module with a batch norm, whose layers take edge weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = GCNConv(12, 5), nn.BatchNorm1d(5), GCNConv(5, 3)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(x, edge_index, edge_weight)).relu(), edge_index, edge_weight)
        return out


def test_a_network_with_batch_norms_trains_on_a_learned_graph() -> None:
    task = graph_task(GRAPH, model=WeightedNormed)
    settings = {"steps": 3, "inner_steps": 2, "validate_every": 0}
    made = distill(task, "gcond", nodes=6, settings=settings)
    assert made.batch.inputs["x"].isfinite().all()  # type: ignore[call-overload]
    network = task.init(Draws(0))
    before = {name: tensor.clone() for name, tensor in network.buffers.items()}
    moved, _ = TrainedOnGraph().update(task, network, {}, task.select(torch.arange(6)), Draws(1))
    assert not torch.equal(moved.buffers["norm.running_mean"], before["norm.running_mean"])
    assert all(torch.equal(network.buffers[name], before[name]) for name in before)  # the step is a pure function


def test_ridge_matching_reads_networks_that_take_no_edge_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "TeacherRecipe", partial(TeacherRecipe, epochs=10))
    made = distill(
        graph_task(GRAPH, model=NormedConvolutions), "krr", nodes=6, settings={"steps": 2, "validate_every": 0}
    )
    assert made.batch.inputs["x"].isfinite().all()  # type: ignore[call-overload]
