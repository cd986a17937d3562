import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.nn.models import basic_gnn

from mmdistill.distill import distill
from mmdistill.graph.adjacency import undirected
from mmdistill.graph.data import GraphData
from mmdistill.graph.judges import StackedJudges
from mmdistill.graph.models import GCN, SGC
from mmdistill.graph.propagation import compressed_rows, constant_product, sparse_entries, sparse_rows
from mmdistill.graph.scene import Part, Scene, View, parts_of
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.objectives.base import Network, class_gradients, class_means, flatten_classes
from mmdistill.runtime import Draws
from mmdistill.task import ClassBatch, Dims
from mmdistill.testing import as_float64, check_task
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.oracles import graph as oracle

CPU = torch.device("cpu")


def induced(graph: GraphData, nodes: Tensor) -> Tensor:
    dense = torch.zeros(len(graph.x), len(graph.x))
    dense[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight
    return dense[nodes][:, nodes]


def inductive_graph(**changes: Tensor) -> GraphData:
    from mmdistill.graph.data import graph_from_fields

    return graph_from_fields({**planted_fields(), **changes}, "planted", inductive=True)


def test_rows_and_induced_subgraphs_are_those_of_the_dense_matrix() -> None:
    graph, nodes = planted_graph(), torch.tensor([7, 3, 60])
    dense = induced(graph, torch.arange(120))
    assert torch.equal(torch.from_numpy(graph.adjacency.rows(nodes).toarray()), dense[nodes])
    assert torch.equal(graph.adjacency.among(nodes), dense[nodes][:, nodes])
    many = torch.stack([nodes, nodes.flip(0)])
    assert torch.equal(graph.adjacency.among(many)[1], dense[nodes.flip(0)][:, nodes.flip(0)])
    own = graph.adjacency.induced(nodes)
    assert torch.equal(torch.from_numpy(own.matrix.toarray()), dense[nodes][:, nodes])
    assert torch.allclose(graph.adjacency.degree, dense.sum(1))
    scene = Scene(graph.x, graph.adjacency, graph.y, CPU)  # whose normalisation a part keeps
    assert torch.equal(scene.among(nodes, normalised=True)["scale"], scene.edges["scale"][nodes])


def test_of_weighted_duplicates_the_largest_stays_and_weights_may_differ_by_direction() -> None:
    edges = torch.tensor([[0, 0, 1, 2, 2], [1, 1, 0, 0, 2]])
    found, notes = undirected(edges, torch.tensor([1.0, 3.0, 2.0, 0.5, 9.0]), 3)
    assert found.matrix.toarray().tolist() == [[0, 3, 0.5], [3, 0, 0], [0.5, 0, 0]]
    assert "1 self-loops" in notes[0]


def test_sparse_matrices_are_made_unchecked_and_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return how torch 2.11 makes one."""

        def warned(*arguments: object, check_invariants: bool, **options: object) -> Tensor:
            warnings.warn("Sparse invariant checks are implicitly disabled. Memory errors", UserWarning, stacklevel=2)
            return make(*arguments, check_invariants=check_invariants, **options)

        return warned

    for name in ("sparse_coo_tensor", "sparse_csr_tensor"):
        monkeypatch.setattr(torch, name, warning(getattr(torch, name)))
    dense, values = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([2.0, 3.0])
    places = torch.tensor([[0, 1], [1, 0]])
    assert torch.equal(sparse_rows(torch.tensor([0, 1, 2]), places[1], values, (2, 2)).to_dense(), dense)
    for coalesced in (True, False):
        found = sparse_entries(places, values, (2, 2), coalesced=coalesced)
        assert found.is_coalesced() == coalesced
        assert torch.equal(found.to_dense(), dense)


@pytest.mark.parametrize("trains", [True, False])
def test_a_neighbourhood_propagates_twice_what_its_nodes_need(trains: bool) -> None:
    edges = planted_fields()["edge_index"]
    graph = planted_graph(edge_weight=1.0 + edges.sum(0) % 3)
    scene = parts_of(graph, CPU)["test"].scene
    view = scene.neighbourhood(graph.test, trains)
    assert view.second is not None
    found = view.second @ view.first.to_dense()
    dense = induced(graph, torch.arange(120)).double().numpy()
    expected = oracle.propagated(dense, graph.x.double().numpy(), 2)[graph.test.numpy()]
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_parts_of_an_inductive_graph_are_graphs_of_their_own() -> None:
    graph = inductive_graph(y=Draws(0).integers(3, 120))
    for name, ids in {"train": graph.train, "val": graph.val, "test": graph.test}.items():
        part: Part = parts_of(graph, CPU)[name]
        assert torch.equal(part.scene.x[part.nodes], graph.x[ids])
        expected = oracle.propagated(induced(graph, ids).double().numpy(), graph.x[ids].double().numpy(), 2)
        assert np.allclose(part.scene.propagated(2).numpy(), expected, atol=1e-5)
        assert torch.equal(part.classes, graph.y[ids])


def test_nodes_of_unknown_class_have_some_class_and_no_weight() -> None:
    graph = planted_graph()
    part = parts_of(replace(graph, y=graph.y.index_fill(0, graph.test, -1)), CPU)["train"]
    whole = part.whole(normalised=True)
    assert set(whole.targets.tolist()) == {0, 1, 2}  # type: ignore[union-attr]
    assert torch.equal(whole.weight.nonzero().flatten(), graph.train)


@pytest.mark.parametrize("model", ["sgc", "gcn"])
def test_inductive_condensing_reads_nothing_of_other_nodes(model: str) -> None:
    x = planted_fields()["x"].clone()
    x[~planted_fields()["train_mask"]] += 5.0

    def condensed(graph: GraphData) -> Tensor:
        task = graph_task(graph, model=model, width=8 if model in ("gcn", "mlp") else None, protocol=FAST)
        return distill(task, "gcond-x", nodes=6, settings={"steps": 3, "inner_steps": 2}).batch.inputs["x"]  # type: ignore[call-overload,no-any-return]

    assert torch.equal(condensed(inductive_graph()), condensed(inductive_graph(x=x)))


@pytest.mark.parametrize("judge", ["gcn", "sgc", "mlp", "appnp"])
def test_inductive_judges_are_scored_on_the_test_nodes_own_graph(judge: str) -> None:
    graph = inductive_graph()
    task = graph_task(graph, protocol=FAST)
    alone = planted_graph(edge_index=graph.edge_index[:, (torch.isin(graph.edge_index, graph.test)).all(0)])
    batch = task.select(torch.arange(9))
    fitted = task.judging.fit(batch, judge, Draws(1), 1, FAST)
    by_hand = graph_task(alone, protocol=FAST)
    by_hand.judging.parts = {**by_hand.parts, "val": task.parts["val"]}
    assert torch.allclose(by_hand.judging.fit(batch, judge, Draws(1), 1, FAST), fitted, atol=1e-4)


@pytest.mark.parametrize("epoch", [None, 2])
@pytest.mark.parametrize("network", [GCN(12, 3, 16), SGC(12, 3)])
def test_many_nodes_are_computed_and_differentiated_in_portions(
    network: GCN | SGC, epoch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = StackedJudges(network, Draws(0), range(3))
    graph = planted_graph()
    view = parts_of(graph, CPU)["test"].scene.neighbourhood(graph.test, trains=True)
    view = View(*(None if part is None else part.double() for part in view))
    params = [parameter.detach().double().requires_grad_() for parameter in judges.params]
    sizes, compute = [], judges._portion_logits
    monkeypatch.setattr(
        judges,
        "_portion_logits",
        lambda params, view, mask: (sizes.append(len(view.first)), compute(params, view, mask))[1],
    )

    def found() -> list[Tensor]:
        logits = judges.logits(params, view, epoch)
        return [logits, *torch.autograd.grad(logits.square().sum(), params), judges.read(params, view)]

    whole = found()
    assert sizes == [len(view.first)] * 2
    sizes.clear()
    monkeypatch.setattr("mmdistill.graph.judges.PORTION_BYTES", 4 * params[0][0].numel() * 7)
    for part, expected in zip(found(), whole, strict=True):
        assert torch.allclose(part, expected, rtol=1e-12, atol=1e-12)
    assert max(sizes) == 7
    assert sum(sizes) == 3 * len(view.first)  # forwards, in the backward pass, and read
    assert torch.equal(whole[0], whole[-1]) == (epoch is None or isinstance(network, SGC))


def test_what_nodes_read_of_their_neighbours_is_differentiated_by_its_transpose() -> None:
    graph = planted_graph()
    view = parts_of(graph, CPU)["test"].scene.neighbourhood(graph.test, trains=True)
    assert view.second is not None
    assert view.back is not None
    assert view.second.layout == view.back.layout == torch.sparse_csr
    assert torch.equal(view.back.to_dense(), view.second.to_dense().T)
    assert parts_of(graph, CPU)["test"].scene.neighbourhood(graph.test, trains=False).back is None


@pytest.mark.parametrize("judge", ["gcn", "sgc", "mlp"])
def test_judges_train_on_sparse_real_features_as_on_dense_ones(judge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, views = [], []
    for below in (0.0, 1.1):
        monkeypatch.setattr("mmdistill.graph.scene.SPARSE_BELOW", below)
        judging = graph_task(planted_graph(), protocol=FAST).judging
        fitted.append(judging.fit(None, judge, Draws(3), 2, FAST))
        views.append(judging._real_view(judge, "train"))
    assert [view.first.layout for view in views] == [torch.strided, torch.sparse_csr]
    assert torch.allclose(*fitted, atol=1e-3, rtol=1e-3)
    assert torch.equal(views[0].first, views[1].first.to_dense())


def test_only_sparse_features_on_a_cpu_are_trained_on_in_compressed_rows() -> None:
    x = torch.zeros(120, 12)
    for features, device, layout in (
        (x.index_fill(1, torch.tensor([0]), 1.0), CPU, torch.sparse_csr),
        (x.index_fill(1, torch.tensor([0, 1]), 1.0), CPU, torch.strided),
        (x, torch.device("meta"), torch.strided),
    ):
        scene = Scene(features, planted_graph().adjacency, torch.zeros(120, dtype=torch.long), device)
        assert scene.rows(torch.arange(5, device=device), 0, trains=True).first.layout == layout


def test_a_constant_product_has_the_gradient_of_the_dense_one() -> None:
    dense = torch.rand(5, 4, dtype=torch.float64) * (torch.rand(5, 4) < 0.4)
    dense[-1] = dense[:, -1] = 0.0
    weight = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    matrix, transposed = compressed_rows(dense), compressed_rows(dense.mT)
    assert torch.allclose(constant_product(matrix, transposed, weight), dense @ weight)
    assert torch.autograd.gradcheck(partial(constant_product, matrix, transposed), (weight,))


def test_judges_in_groups_are_the_same_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    task: GraphTask = graph_task(planted_graph(), protocol=FAST)
    batch = task.select(torch.arange(9))
    together = task.judging.fit(batch, "gcn", Draws(3), 3, FAST)
    monkeypatch.setattr("mmdistill.graph.judging.TOGETHER_BYTES", 1)
    apart = task.judging.fit(batch, "gcn", Draws(3), 3, FAST)
    assert torch.allclose(together, apart, atol=2e-3, rtol=2e-3)


def test_class_batches_of_an_inductive_graph_are_its_training_rows() -> None:
    task = graph_task(inductive_graph())
    batch = task.sample_real(Draws(0), torch.arange(3), 100)
    assert isinstance(batch, ClassBatch)
    rows = batch.one_class(1)
    expected = task.scene.propagated(2)[task.graph.y[task.graph.train] == 1]
    found = rows.inputs["x"][rows.weight > 0]  # type: ignore[call-overload]
    assert torch.allclose(found.sum(0), expected.sum(0), atol=1e-4)


def test_neighbours_are_sampled_within_their_hops() -> None:
    graph, nodes = planted_graph(), torch.tensor([7, 3, 60, 7])
    linked = induced(graph, torch.arange(120)) > 0
    one = linked[nodes].any(0)
    two = one | linked[one].any(0)
    near = set(two.nonzero().flatten().tolist()) | set(nodes.tolist())
    few = graph.adjacency.sampled(nodes, (2, 1), Draws(0))
    assert set(nodes.tolist()) <= set(few.tolist()) <= near
    assert len(few) <= 3 + 3 * 2 + 9
    assert torch.equal(few, graph.adjacency.sampled(nodes, (2, 1), Draws(0)))
    assert set(graph.adjacency.sampled(nodes, (500, 500), Draws(0)).tolist()) == near
    alone = undirected(torch.tensor([[0], [1]]), None, 3)[0]
    assert alone.sampled(torch.tensor([2]), (4,), Draws(0)).tolist() == [2]


def test_sampled_neighbourhoods_are_those_of_each_groups_own_walk() -> None:
    graph = planted_graph()
    scene, fanouts = parts_of(graph, CPU)["train"].scene, (3, 2)
    groups = [torch.tensor([3, 0, 60]), torch.tensor([1, 118])]
    found = scene.sampled_neighbourhoods(groups, fanouts, Draws(0))
    assert found is not None
    dense = induced(graph, torch.arange(120)).double().numpy() + np.eye(120)
    scale = dense.sum(1) ** -0.5
    matrix, x = scale[:, None] * dense * scale, graph.x.double().numpy()
    for index, nodes in enumerate(groups):
        alone = scene.sampled_neighbourhoods([nodes], fanouts, Draws(0))
        assert alone is not None
        key, (count, rows) = Draws(0).fold(int(nodes[0])), alone["second"].shape[1:]
        for name, own in alone.items():
            same, rest = found[name][index].split([len(own[0]), len(found[name][index]) - len(own[0])])
            assert torch.equal(same[..., : own.shape[-1]], own[0])
            assert not rest.any()
        near, reached = (scene.adjacency.sampled(nodes, fanouts[:hops], key).numpy() for hops in (1, 2))
        assert rows == len(near) < len(reached) < 120
        assert count == len(nodes)
        assert np.allclose(alone["second"][0], matrix[nodes.numpy()][:, near], atol=1e-6)
        assert np.allclose(alone["x"][0], matrix[near][:, reached] @ x[reached], atol=1e-5)


@pytest.mark.parametrize("model", ["gcn", "module"])
def test_class_batches_of_a_large_graph_are_its_sampled_neighbourhood(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all neighbours are reached, the logits of the drawn nodes are those in the whole graph."""
    kind = model if model == "gcn" else partial(basic_gnn.GCN, 12, 8, 2, 3, norm=None)
    own = graph_task(planted_graph(), model=kind, width=8 if kind in ("gcn", "mlp") else None, protocol=FAST)
    whole = own.sample_real(Draws(1), torch.arange(3), 2)
    monkeypatch.setattr("mmdistill.graph.data.LARGE", 100)
    monkeypatch.setattr("mmdistill.graph.task.FANOUTS", (500, 500, 500))
    near = own.sample_real(Draws(1), torch.arange(3), 2)
    assert isinstance(whole, ClassBatch)
    assert isinstance(near, ClassBatch)
    assert near.batch.weight.shape[1] <= 120
    state = own.init(Draws(2))
    for index in range(3):
        losses = [float(own.loss(state, side.one_class(index))) for side in (whole, near)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if model == "gcn":  # more than may be padded: one graph for all classes
        monkeypatch.setattr("mmdistill.graph.scene.SAMPLED_BYTES", 0)
        shared = own.sample_real(Draws(1), torch.arange(3), 2)
        assert isinstance(shared, ClassBatch)
        assert (near.dims.inputs, shared.dims.inputs) == (0, None)
        losses = [float(own.loss(state, side.one_class(0))) for side in (whole, shared)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    monkeypatch.setattr("mmdistill.graph.task.FANOUTS", (1,))
    few = own.sample_real(Draws(1), torch.arange(3), 2)
    assert isinstance(few, ClassBatch)
    assert few.batch.weight.shape[1] <= 12
    assert torch.equal(few.batch.weight.sum(1), torch.full((3,), 2.0))


def wide_graph() -> GraphData:
    """Return a graph in float64, of which its training nodes' neighbourhoods are a part."""
    from mmdistill.graph.data import graph_from_fields

    graph = graph_from_fields(planted_fields(features=400), "planted")
    return replace(graph, x=graph.x.double())


def drawn(own: GraphTask, classes: Tensor, n: int) -> ClassBatch:
    batch = own.sample_real(Draws(1), classes, n)
    assert isinstance(batch, ClassBatch)
    return ClassBatch(batch.batch._replace(weight=batch.batch.weight.double()), batch.dims)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("classes", "n"), [([0, 1, 2], 100), ([2, 0], 4)])
def test_what_matches_by_class_reads_in_neighbourhoods_what_it_reads_in_the_graph(
    dropout: float, classes: list[int], n: int
) -> None:
    own = GraphTask(wide_graph(), GCN(400, 3, 8, dropout))
    near = drawn(own, torch.tensor(classes), n)
    own._near = None
    whole = drawn(own, torch.tensor(classes), n)
    assert (near.dims, whole.dims) == (Dims(0, 0), Dims(None, None))
    assert near.batch.weight.sum(1).tolist() == [min(n, 6)] * len(classes)
    state = as_float64(own.init(Draws(2)))
    for at_once in (0, 1, 3):
        network = Network(own, state, classes_at_once=at_once)
        expected, found = class_gradients(network, whole), class_gradients(network, near)
        for name, gradient in expected.items():
            assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-12
        assert torch.allclose(class_means(network, near)[-1], class_means(network, whole)[-1], rtol=1e-12, atol=1e-12)
    one, same = (own.loss(state, flatten_classes(side), train=not dropout, draws=Draws(3)) for side in (near, whole))
    assert float(one) == pytest.approx(float(same), rel=1e-12)


def test_a_task_whose_classes_come_as_neighbourhoods_is_a_task() -> None:
    graph = wide_graph()
    own = GraphTask(replace(graph, x=graph.x.float()), GCN(400, 3, 8), FAST)
    assert own._near is not None
    check_task(own)


def test_neighbourhoods_stand_in_for_the_graph_where_they_are_less() -> None:
    graph = replace(wide_graph(), x=wide_graph().x.float())
    module = partial(basic_gnn.GCN, 400, 8, 2, 3, norm=None)
    for model, given, near in (("gcn", graph, True), ("gcn", planted_graph(), False), (module, graph, False)):
        own = graph_task(given, model=model)  # type: ignore[arg-type]
        batch = own.sample_real(Draws(0), torch.arange(3), 4)
        assert isinstance(batch, ClassBatch)
        assert ("second" in batch.batch.inputs) == near
        assert batch.dims == (Dims(0, 0) if near else Dims(None, None))


def test_raw_edges_move_to_the_device_once() -> None:
    graph = planted_graph()
    scene = Scene(graph.x, graph.adjacency, graph.y, torch.device("meta"))
    one, same = (scene.inputs(normalised=False) for _ in range(2))
    assert one["edge_index"].device.type == "meta"
    assert one["edge_index"] is same["edge_index"]
    assert one["edge_weight"] is same["edge_weight"]
