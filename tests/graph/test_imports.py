"""Graphs as other tools save them become sets of nodes that judges read as their own tools do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import Tensor
from torch.utils.data import Subset

from mmdistill import evaluate, graph_set_task, graph_task, import_set
from mmdistill.errors import ConfigError, DataError, MmdistillWarning
from mmdistill.graph.task import GraphTask
from mmdistill.task import Batch
from tests.graph.sets.toy import write_rings
from tests.graph.toy import FAST, planted_fields


@pytest.fixture(scope="module")
def task() -> GraphTask:
    return graph_task(planted_fields(), protocol=FAST, device="cpu")


def condensed() -> tuple[Tensor, Tensor, Tensor]:
    """Return features, classes and weights of the edges of six nodes."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.triu(torch.rand(6, 6, generator=generator), 1)
    return torch.randn(6, 12, generator=generator), torch.arange(6) // 2, weights + weights.T


def inputs(batch: Batch) -> dict[str, Tensor]:
    assert isinstance(batch.inputs, dict)
    return batch.inputs


def test_the_three_files_of_gcond(task: GraphTask, tmp_path: Path) -> None:
    x, y, weights = condensed()
    files = {"feat_planted_0.5_1.pt": torch.nn.Parameter(x), "label_planted_0.5_1.pt": y}
    for name, value in (files | {"adj_planted_0.5_1.pt": weights}).items():
        torch.save(value, tmp_path / name)
    found = import_set(task, sorted(tmp_path.iterdir()), name="GCond (authors)")
    assert torch.equal(inputs(found.batch)["x"], x)
    torch.testing.assert_close(inputs(found.batch)["adjacency"], weights)
    assert (found.budget, found.stored_bytes) == (6, 4 * 6 * 12 + 6 + 4 * 15)
    judged = evaluate(task, found, n=1, baselines=("random",))
    bare = evaluate(task, Batch({"x": x, "adjacency": weights}, y, torch.ones(6)), n=1, baselines=())
    assert judged.results == bare.results
    assert judged.baselines["random"]
    without = import_set(task, [tmp_path / name for name in files])
    assert inputs(without.batch).keys() == {"x"}
    assert without.stored_bytes == 4 * 6 * 12 + 6


def test_edges_are_known_by_a_part_of_their_names(task: GraphTask) -> None:
    x, y, weights = condensed()
    ends = weights.nonzero().T
    given = {"x_cora": x, "y_cora": y, "edge_index_cora": ends, "edge_weight_cora": weights[ends[0], ends[1]]}
    torch.testing.assert_close(inputs(import_set(task, given).batch)["adjacency"], weights)


def test_identity_and_sparse_adjacency_and_scores_as_labels(task: GraphTask, tmp_path: Path) -> None:
    x, y, weights = condensed()
    scores = 2 * torch.randn(6, 3)
    for name, value in (("Cora_0.5_x_s", x), ("Cora_0.5_y_s", scores), ("Cora_0.5_A_s", torch.eye(6).to_sparse())):
        torch.save(value, tmp_path / f"{name}.pt")
    with pytest.warns(MmdistillWarning, match="6 self-loops dropped|judges regress them"):
        found = import_set(task, sorted(tmp_path.iterdir()))
    assert inputs(found.batch).keys() == {"x"}
    assert found.label == "fixed scores"
    sparse = import_set(task, {"x": x, "y": y, "adjacency": weights.to_sparse_csr()})
    torch.testing.assert_close(inputs(sparse.batch)["adjacency"], weights)
    assert torch.equal(inputs(import_set(task, {"x": x.to_sparse(), "y": y}).batch)["x"], x)


def test_data_of_torch_geometric(task: GraphTask, tmp_path: Path) -> None:
    from torch_geometric.data import Data

    x, y, weights = condensed()
    edges = torch.triu(weights, 1).nonzero().T  # one direction of each
    data = Data(x=x, y=y, edge_index=edges, edge_weight=weights[edges[0], edges[1]])
    data.train_mask = torch.arange(6) != 5
    torch.save(data, tmp_path / "data.pt")
    for source in (data, tmp_path / "data.pt"):
        with pytest.warns(MmdistillWarning, match="reverse edges added"):
            found = import_set(task, source)
        torch.testing.assert_close(inputs(found.batch)["adjacency"], weights)
        assert found.batch.weight.tolist() == [1, 1, 1, 1, 1, 0]


def test_data_sets_of_graphs_are_sets(tmp_path: Path) -> None:
    from torch_geometric.data import Data, InMemoryDataset

    x = torch.arange(12.0).view(4, 3)
    ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    graphs = [Data(x=x + index, edge_index=torch.cat([ring, ring.flip(0)], 1), y=index % 2) for index in range(20)]

    class Rings(InMemoryDataset):
        def __init__(self) -> None:
            super().__init__(str(tmp_path))
            self.data, self.slices = self.collate(graphs)

    task = graph_set_task(graphs)
    listed, sliced = import_set(task, graphs[:4]), import_set(task, Rings()[:4])
    for own in (sliced, import_set(task, Subset(Rings(), range(4))), import_set(task, listed.batch)):
        assert all(torch.equal(inputs(own.batch)[name], tensor) for name, tensor in inputs(listed.batch).items())
        assert own.stored_bytes == listed.stored_bytes == 4 * (12 * 4 + 1) + 3  # six pairs of nodes each, in bits
    weighted = {**inputs(listed.batch), "adjacency": 0.5 * inputs(listed.batch)["adjacency"]}
    assert import_set(task, listed.batch._replace(inputs=weighted)).stored_bytes == 4 * (12 * 4 + 1) + 4 * 24


def test_arrays_of_numpy_in_files_of_torch(task: GraphTask, tmp_path: Path) -> None:
    x, y, weights = condensed()
    torch.save({"x": x.numpy(), "y": y.numpy(), "adj": weights.numpy()}, tmp_path / "graph.pt")
    for name, value in (("feat", x), ("label", y), ("adj", weights)):
        torch.save(value.numpy(), tmp_path / f"{name}_cora.pt")
    for source in (tmp_path / "graph.pt", sorted(tmp_path.glob("*cora.pt"))):
        torch.testing.assert_close(inputs(import_set(task, source).batch)["adjacency"], weights)


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_matrix", "bsr_matrix", "dia_array"])
def test_sparse_matrices_of_scipy(task: GraphTask, kind: str, tmp_path: Path) -> None:
    x, y, weights = condensed()
    matrix = getattr(sparse, kind)(weights.numpy())
    given = import_set(task, {"adj": matrix, "feat": sparse.csr_matrix(x.numpy()), "label": y})
    torch.testing.assert_close(inputs(given.batch)["adjacency"], weights)
    torch.testing.assert_close(inputs(given.batch)["x"], x)
    sparse.save_npz(tmp_path / "adj.npz", matrix)
    np.save(tmp_path / "feat.npy", x.numpy())
    np.save(tmp_path / "label.npy", y.numpy())
    read = import_set(task, sorted(tmp_path.iterdir()))
    torch.testing.assert_close(inputs(read.batch)["adjacency"], weights)
    torch.testing.assert_close(inputs(import_set(task, tmp_path).batch)["adjacency"], weights)


def test_damaged_matrices_of_scipy_are_refused(task: GraphTask, tmp_path: Path) -> None:
    x, y, weights = condensed()
    whole = sparse.csr_matrix(weights.numpy())
    parts = {"format": b"csr", "shape": whole.shape, "data": whole.data, "indptr": whole.indptr}
    beyond = np.where(np.arange(len(whole.indices)) == 3, 10**6, whole.indices)
    for indices in ({"indices": beyond}, {}):
        np.savez(tmp_path / "adj.npz", **parts, **indices)  # type: ignore[arg-type]
        torch.save({"x": x, "y": y}, tmp_path / "nodes.pt")
        with pytest.raises(DataError, match=r"adj\.npz cannot be read: it is damaged, or no sparse matrix of scipy's"):
            import_set(task, [tmp_path / "adj.npz", tmp_path / "nodes.pt"])


def test_a_file_of_arrays_that_are_named_like_a_matrix_s_is_none(task: GraphTask, tmp_path: Path) -> None:
    x, y, _ = condensed()
    np.savez(tmp_path / "set.npz", x=x, label=y, data=np.ones(3), format=np.array("own"), shape=np.array([6, 12]))
    with pytest.warns(MmdistillWarning, match="not read: "):
        read = import_set(task, tmp_path / "set.npz")
    torch.testing.assert_close(inputs(read.batch)["x"], x)


@pytest.mark.parametrize("key", ["weight", "edge_attr"])
def test_weights_go_by_their_usual_names(task: GraphTask, key: str) -> None:
    x, y, weights = condensed()
    ends = weights.nonzero().T
    given = {"x": x, "y": y, "edge_index": ends}
    with pytest.warns(MmdistillWarning, match=f"weights of edges are read from {key}"):
        read = import_set(task, given | {key: weights[ends[0], ends[1]][:, None]})
    torch.testing.assert_close(inputs(read.batch)["adjacency"], weights)
    with pytest.warns(MmdistillWarning, match=f"not read: {key}"):
        bare = import_set(task, given | {key: torch.randn(ends.shape[1], 3)})
    torch.testing.assert_close(inputs(bare.batch)["adjacency"], (weights > 0).float())
    with pytest.warns(MmdistillWarning, match=f"not read: {key}"):
        kinds = import_set(task, given | {key: torch.zeros(ends.shape[1], 1)})
    torch.testing.assert_close(inputs(kinds.batch)["adjacency"], (weights > 0).float())


def test_what_is_no_graph_of_these_data_is_refused(task: GraphTask) -> None:
    x, y, weights = condensed()
    given: dict[str, Any] = {"x": x, "y": y, "adjacency": weights}
    for changed, message in (
        ({"x": x[:, :5]}, r"are \(n, 12\) features, got \(6, 5\)"),
        ({"y": y + 1}, "from 0 to 2, got 1 to 3"),
        ({"y": y[:4]}, r"got \(4,\)"),
        ({"x": x[:0], "y": y[:0]}, "holds no sample"),
        ({"adjacency": weights[:5]}, r"have an adjacency \(6, 6\), got \(5, 6\)"),
        ({"adjacency": -weights}, "edge_weight"),
        ({"x": x / 0}, "NaN or infinite"),
        ({"adjacency": None, "edge_index": torch.tensor([[0], [6]])}, "names nodes 0 to 6, but x has 6 rows"),
    ):
        fields = {name: value for name, value in {**given, **changed}.items() if value is not None}
        with pytest.raises(DataError, match=message):
            import_set(task, fields)
    with pytest.raises(ConfigError, match="values by name or a Batch, got DataFrame"):
        import_set(task, pd.DataFrame({"x": [1], "y": [0]}))
    with pytest.raises(DataError, match=r"the set has no labels: .* called labels or label or targets"):
        import_set(task, {"x": x})
    with pytest.raises(DataError, match="2 nodes for 3 classes"), pytest.warns(MmdistillWarning, match="no sample"):
        import_set(task, {"x": x[:2], "y": y[:2]})


def test_lists_of_graphs(tmp_path: Path) -> None:
    from torch_geometric.data import Batch as Together
    from torch_geometric.data import Data

    own = graph_set_task(write_rings(tmp_path / "RINGS"), device="cpu")
    width = own.graphs.x.shape[1]
    pairs = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    graphs = [Data(x=torch.randn(3 + index, width), edge_index=pairs, y=torch.tensor([index])) for index in range(2)]
    torch.save(graphs, tmp_path / "graphs.pt")
    found = import_set(own, tmp_path / "graphs.pt")
    assert inputs(found.batch)["present"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert torch.equal(inputs(found.batch)["adjacency"].sum((1, 2)), torch.tensor([4.0, 4.0]))
    assert (found.budget, found.stored_bytes) == (1, 4 * 7 * width + 2 + 2)
    for given in (graphs, tuple(graphs), [graph.to_dict() for graph in graphs], {"mine": tuple(graphs)}):
        assert torch.equal(inputs(import_set(own, given).batch)["x"], inputs(found.batch)["x"])
    with pytest.warns(MmdistillWarning, match="not read: ptr"):
        together = import_set(own, Together.from_data_list(graphs))
    for name, tensor in inputs(together.batch).items():
        assert torch.equal(tensor, inputs(found.batch)[name])
    joined = Together.from_data_list(graphs).to_dict()
    for changed, message in (
        ({"batch": torch.tensor([0, 1, 0, 1, 1, 1, 1])}, "one graph after the other"),
        ({"edge_index": torch.tensor([[0], [6]])}, "join nodes of two graphs"),
        ({"edge_index": torch.tensor([[0], [7]])}, "names nodes from 0 to 6"),
        ({"y": torch.tensor([0])}, "2 graphs have as many labels, got 1"),
        ({"y": torch.tensor(0)}, "2 graphs have as many labels, got one number"),
        ({"batch": torch.tensor([])}, "one graph after the other"),
        ({"batch": joined["batch"].float()}, "one graph after the other"),
        ({"batch": torch.tensor(0), "x": torch.tensor(0.0)}, "one graph after the other"),
        ({"batch": torch.tensor([]).long(), "x": torch.randn(0, width)}, "one graph after the other"),
        ({"edge_index": joined["edge_index"].float()}, r"whole numbers \(2, E\), got torch.float32 \(2, 8\)"),
        ({"x": torch.randn(7, width + 1)}, "features, got"),
    ):
        with pytest.raises(DataError, match=message):
            import_set(own, {name: value for name, value in {**joined, **changed}.items() if name != "ptr"})
    small = {name: joined[name].to(torch.uint8) for name in ("batch", "edge_index")}
    with pytest.warns(MmdistillWarning, match="not read: ptr"):
        assert torch.equal(inputs(import_set(own, joined | small).batch)["adjacency"], inputs(found.batch)["adjacency"])
    directed = [Data(x=torch.randn(size, width), edge_index=pairs[:, ::2], y=torch.tensor([0])) for size in (3, 4, 3)]
    torch.save(directed, tmp_path / "directed.pt")
    with pytest.warns(MmdistillWarning) as noted:
        import_set(own, tmp_path / "directed.pt")
    changes = [str(one.message) for one in noted if "edges" in str(one.message)]
    assert changes == ["6 reverse edges added: the graph is treated as undirected"]
    each = [Data(x=graph.x, edge_index=pairs, y=torch.zeros(graph.num_nodes)) for graph in graphs]
    torch.save(each, tmp_path / "each.pt")
    with pytest.raises(DataError, match="each graph has one class y"):
        import_set(own, tmp_path / "each.pt")
    torch.save([], tmp_path / "none.pt")
    with pytest.raises(DataError, match="holds no graph"):
        import_set(own, tmp_path / "none.pt")
