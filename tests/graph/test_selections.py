import pytest
import torch

from mmdistill.distill import distill
from mmdistill.errors import UnsupportedError
from mmdistill.evaluate import evaluate
from mmdistill.graph.task import GraphTask, graph_task
from mmdistill.runtime import Draws
from mmdistill.selections import selection
from tests.graph.toy import FAST, planted_fields, planted_graph
from tests.oracles import graph as oracle


def task() -> GraphTask:
    return graph_task(planted_graph(), protocol=FAST)


def test_selections_stand_beside_a_result() -> None:
    own = task()
    names = ["random", "k-center", "propagated-means", "coarsening"]
    result = evaluate(own, distill(own, "propagated-means", nodes=6), n=2, baselines=names)
    assert set(result.baselines) == set(names)
    (entry, *_), (head, *rows) = result.results, result.class_rows()
    assert head == ["class", "distilled", *names]
    assert [row[0] for row in rows] == list(own.graph.class_names)
    sizes = torch.bincount(own.parts["test"].classes).double()
    mean = sum(size * entry.by_class[name] for size, name in zip(sizes, own.graph.class_names, strict=True))
    assert float(mean / sizes.sum()) == pytest.approx(entry.mean)


def test_nodes_are_chosen_by_bytes_too() -> None:
    nodes = selection(task(), "random", nodes=7)
    assert selection(task(), "random", bytes=nodes.stored_bytes).budget == 7


def test_rules_choose_nodes_by_their_features_after_two_hops() -> None:
    own = task()
    dense = torch.zeros(120, 120)
    dense[tuple(own.graph.edge_index)] = 1.0
    expected = oracle.propagated(dense.double().numpy(), own.graph.x.double().numpy(), 2)[own.graph.train.numpy()]
    torch.testing.assert_close(own.embedding().double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)


def test_the_means_are_those_of_the_method_of_that_name() -> None:
    own = task()
    found = distill(own, "propagated-means", nodes=6, seed=3).batch
    again = own.selection("propagated-means", torch.tensor([2, 2, 2]), Draws(3, ("start",)))
    assert torch.equal(found.targets, again.targets)  # type: ignore[arg-type]
    assert torch.allclose(found.inputs["x"], again.inputs["x"], atol=1e-5)  # type: ignore[call-overload]


def test_a_coarsened_graph_sums_up_the_real_one() -> None:
    """Two triangles of classes 0 and 1 with one edge between them merge into two linked nodes."""
    fields = planted_fields(nodes=6, classes=2, features=4)
    pairs = torch.tensor([[0, 0, 2, 1, 1, 3, 0], [2, 4, 4, 3, 5, 5, 1]])  # even nodes, odd nodes, a bridge
    x = torch.eye(4)[:2].repeat(3, 1)
    order = torch.arange(6)
    masks = {"train_mask": order < 2, "val_mask": order == 2, "test_mask": order > 2}
    own = graph_task(planted_graph(**{**fields, "x": x, "edge_index": pairs, **masks}), protocol=FAST)
    batch = own.selection("coarsening", torch.tensor([1, 1]), Draws(0))
    inputs = batch.inputs
    assert isinstance(inputs, dict)
    assert sorted(inputs["x"].tolist()) == sorted(torch.eye(4)[:2].tolist())
    assert inputs["adjacency"].tolist() == [[0.0, pytest.approx(1 / 9)], [pytest.approx(1 / 9), 0.0]]
    assert batch.weight.tolist() == [1.0, 1.0]
    assert torch.equal(batch.targets, inputs["x"][:, :2])  # type: ignore[arg-type]


def test_a_coarsened_graph_equals_the_oracle() -> None:
    """On a ring of weighted edges, some above 1; most nodes have no label."""
    ring, weight = torch.arange(14), 3 * Draws(0).uniform(14) + 0.1
    pairs, x, y = torch.stack([ring, ring.roll(-1)]), Draws(1).normal(14, 3), ring % 2
    masks = {"train_mask": ring < 6, "val_mask": None, "test_mask": ring > 9}
    graph = planted_graph(x=x, y=y, edge_index=pairs, edge_weight=weight, **masks)
    batch = graph_task(graph, protocol=FAST).selection("coarsening", torch.tensor([2, 3]), Draws(0))
    weights = torch.zeros(14, 14, dtype=torch.float64)
    weights[pairs[0], pairs[1]] = weights[pairs[1], pairs[0]] = weight.double()
    propagated = oracle.propagated(weights.numpy(), x.double().numpy(), 2)
    groups = oracle.ward_groups(propagated, weights.numpy(), 5)
    assert isinstance(batch.inputs, dict)
    order = [int((batch.inputs["x"] - x[group].mean(0)).abs().sum(1).argmin()) for group in groups]
    assert sorted(order) == list(range(5))
    for place, group in zip(order, groups, strict=True):
        torch.testing.assert_close(batch.inputs["x"][place], x[group].mean(0))
        labels = [int(y[node]) for node in group if node < 6]
        assert float(batch.weight[place]) == len(labels)
        shares = [labels.count(label) / len(labels) for label in (0, 1)] if labels else [0.5, 0.5]
        assert batch.targets[place].tolist() == pytest.approx(shares)  # type: ignore[call-overload, index, union-attr]
        for other, members in zip(order, groups, strict=True):
            expected = float(weights[group][:, members].mean()) if group is not members else 0.0
            assert float(batch.inputs["adjacency"][place, other]) == pytest.approx(expected)


def test_coarsening_spends_nothing_on_nodes_that_no_label_reaches() -> None:
    fields = planted_fields()
    lonely = torch.arange(120) >= 90
    edges = fields["edge_index"][:, (fields["edge_index"] < 90).all(0)]
    edges = torch.cat([edges, torch.tensor([[100, 101], [101, 100]])], 1)
    own = graph_task(planted_graph(edge_index=edges, x=fields["x"] + 50 * lonely[:, None]), protocol=FAST)
    batch = own.selection("coarsening", torch.tensor([2, 2, 2]), Draws(0))
    assert isinstance(batch.inputs, dict)
    assert len(batch.weight) == 6
    assert float(batch.inputs["x"].max()) < 20
    assert float(batch.weight.sum()) == 18


def test_coarsening_merges_nothing_where_as_few_nodes_are_left() -> None:
    own = graph_task(planted_graph(edge_index=torch.zeros(2, 0, dtype=torch.long)), protocol=FAST)
    batch = own.selection("coarsening", torch.tensor([7, 7, 7]), Draws(0))
    assert batch.weight.tolist() == [1.0] * 18


def test_coarsening_of_a_large_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdistill.graph.selections.LARGE", 100)
    with pytest.raises(UnsupportedError, match="120 nodes are too many"):
        task().selection("coarsening", torch.tensor([2, 2, 2]), Draws(0))
