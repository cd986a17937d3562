"""Graphs in the layouts in which they are published, under any name, and with edges as sparse matrices."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import ToSparseTensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.graph import load_graph
from mmdistill.registry import domain_of
from tests.graph.test_sources import adjacency, ids, write_npz, write_saint
from tests.graph.toy import planted_fields

MASKS = ("train_mask", "val_mask", "test_mask")


def arrays(nodes: int = 180) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in planted_fields(nodes=nodes).items()}


def weighted() -> dict[str, Any]:
    fields = planted_fields()
    row, column = fields["edge_index"]
    return {**fields, "edge_weight": (row + column).float()}


def as_matrix(fields: dict[str, Any]) -> torch.Tensor:
    weight = fields.get("edge_weight", torch.ones(fields["edge_index"].shape[1]))
    return torch.sparse_coo_tensor(fields["edge_index"], weight, (len(fields["x"]),) * 2)


SPARSE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "to sparse tensor": lambda fields: ToSparseTensor(attr="edge_weight")(Data(**fields)).to_dict(),
    "coordinates": lambda fields: {**without_edges(fields), "adj_t": as_matrix(fields)},
    "columns": lambda fields: {**without_edges(fields), "adj_t": as_matrix(fields).to_sparse_csc()},
    "edge_index": lambda fields: {**without_edges(fields), "edge_index": as_matrix(fields)},
}


def without_edges(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not name.startswith("edge_")}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("fields", [planted_fields(), weighted()], ids=["plain", "weighted"])
def test_edges_of_a_sparse_matrix_are_read(form: str, fields: dict[str, Any], tmp_path: Path) -> None:
    sparse = SPARSE[form](fields)
    torch.save(sparse, tmp_path / "graph.pt")
    torch.save(Data(**sparse), tmp_path / "data.pt")
    for source in (sparse, Data(**sparse), tmp_path / "graph.pt", tmp_path / "data.pt"):
        found = load_graph(source)
        assert found.fingerprint == load_graph(fields).fingerprint
        with_weights = ", its values as their weights" if "edge_weight" in fields else ""
        assert (
            found.notes[0]
            == f"edges are read from the sparse {'edge_index' if 'edge_index' in sparse else 'adj_t'}{with_weights}"
        )


def test_features_as_a_sparse_matrix_of_scipy_are_made_dense() -> None:
    fields = planted_fields()
    found = load_graph({**fields, "x": sp.csr_matrix(fields["x"].numpy())})
    assert found.fingerprint == load_graph(fields).fingerprint


def test_fields_of_arrays_are_read_from_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", **arrays())
    assert domain_of(str(tmp_path / "graph.npz")).name == "graph"
    assert load_graph(tmp_path / "graph.npz").fingerprint == load_graph(planted_fields(nodes=180)).fingerprint


def test_compressed_rows_are_read_as_they_are_and_split_at_random(tmp_path: Path) -> None:
    own = write_npz(tmp_path / "any", "shop.npz")
    path = tmp_path / "any" / "shop.npz"
    assert domain_of(str(path)).name == "graph"
    found = load_graph(path, seed=3)
    assert torch.equal(found.x, own["x"])
    assert torch.equal(found.edge_index, load_graph(own).edge_index)
    assert found.notes == ("random split 3: 20 training and 30 validation nodes a class",)
    assert not torch.equal(found.train, load_graph(path).train)


def test_counts_in_compressed_rows_are_kept(tmp_path: Path) -> None:
    own = write_npz(tmp_path / "any", "shop.npz")
    with np.load(tmp_path / "any" / "shop.npz") as saved:
        parts = dict(saved)
    parts["attr_data"] = 3 * parts["attr_data"]
    np.savez(tmp_path / "counts.npz", **parts)
    assert torch.equal(load_graph(tmp_path / "counts.npz").x, 3 * own["x"])


def test_published_splits_are_rows(tmp_path: Path) -> None:
    own = arrays()
    names = {"train_mask": "train_masks", "val_mask": "val_masks", "test_mask": "test_masks"}
    masks = {names[name]: np.stack([own[name], own[name][::-1]]) for name in MASKS}
    parts = {"node_features": own["x"], "node_labels": own["y"], "edges": own["edge_index"].T}
    np.savez(tmp_path / "empire.npz", **parts, **masks)
    assert domain_of(str(tmp_path / "empire.npz")).name == "graph"
    assert load_graph(tmp_path / "empire.npz").fingerprint == load_graph(own).fingerprint
    other = load_graph(tmp_path / "empire.npz", split=1)
    assert other.train.tolist() == ids(torch.from_numpy(own["train_mask"][::-1].copy()))


@pytest.mark.parametrize("place", ["", "raw"])
def test_folders_as_graphsaint_has_them(place: str, tmp_path: Path) -> None:
    own = write_saint(tmp_path / "mine" / place)
    assert domain_of(str(tmp_path / "mine")).name == "graph"
    found = load_graph(tmp_path / "mine")
    assert found.fingerprint == load_graph(own).fingerprint
    assert not found.inductive
    assert load_graph(tmp_path / "mine", inductive=True).inductive


def write_planetoid(folder: Path, name: str) -> dict[str, Any]:
    """Write a graph as Planetoid does: labelled nodes, others, then those to test with."""
    folder.mkdir(parents=True)
    own, (train, val, nodes) = planted_fields(nodes=630), (18, 518, 630)
    x, y = sp.csr_matrix(own["x"].numpy()), np.eye(3, dtype=np.int32)[own["y"].numpy()]
    neighbours = {node: list(map(int, row.indices)) for node, row in enumerate(adjacency(own))}
    parts = {"x": x[:train], "allx": x[:val], "tx": x[val:], "y": y[:train], "ally": y[:val], "ty": y[val:]}
    for suffix, part in {**parts, "graph": neighbours}.items():
        (folder / f"ind.{name}.{suffix}").write_bytes(pickle.dumps(part, protocol=2))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{node}\n" for node in range(val, nodes)))
    order = torch.arange(nodes)
    masks = {"train_mask": order < train, "val_mask": (order >= train) & (order < val), "test_mask": order >= val}
    return {**own, **masks}


@pytest.mark.parametrize("place", ["", "raw"])
def test_folders_as_planetoid_has_them(place: str, tmp_path: Path) -> None:
    own = write_planetoid(tmp_path / "mine" / place, "mine")
    assert domain_of(str(tmp_path / "mine")).name == "graph"
    assert load_graph(tmp_path / "mine").fingerprint == load_graph(own).fingerprint


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_no_code_in_these_folders_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_planetoid(tmp_path / "mine", "mine")
    (tmp_path / "mine" / "ind.mine.graph").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"builtins\.print, which is not run"):
        load_graph(tmp_path / "mine")
    assert not capsys.readouterr().out


def test_matrices_in_these_folders_are_checked(tmp_path: Path) -> None:
    write_planetoid(tmp_path / "mine", "mine")
    x = sp.csr_matrix(np.eye(12, dtype=np.float32))
    x.indices[:] = 10**6
    (tmp_path / "mine" / "ind.mine.x").write_bytes(pickle.dumps(x, protocol=2))
    with pytest.raises(DataError, match=r"mine cannot be read as a graph \(ValueError"):
        load_graph(tmp_path / "mine")


def test_damage_in_these_layouts_is_said(tmp_path: Path) -> None:
    write_npz(tmp_path / "rows", "one.npz")
    with np.load(tmp_path / "rows" / "one.npz") as saved:
        parts = dict(saved)
    outside = np.full_like(parts["attr_indices"], 10**6)
    changes = {"adj_indptr": parts["adj_indptr"][:3]}, {"attr_shape": np.array([2])}, {"attr_indices": outside}
    for change in changes:
        np.savez(tmp_path / "rows" / "two.npz", **{**parts, **change})
        with pytest.raises(DataError, match=r"two.npz cannot be read as a graph \("):
            load_graph(tmp_path / "rows" / "two.npz")
    del parts["attr_data"]
    np.savez(tmp_path / "rows" / "two.npz", **parts)
    with pytest.raises(DataError, match=r"two.npz cannot be read as a graph \(.*attr_data"):
        load_graph(tmp_path / "rows" / "two.npz")
    write_saint(tmp_path / "saint")
    for name, content in {"role.json": '{"tr": [999999]}', "class_map.json": "{}"}.items():
        former = (tmp_path / "saint" / name).read_text()
        (tmp_path / "saint" / name).write_text(content)
        with pytest.raises(DataError, match=r"saint cannot be read as a graph \("):
            load_graph(tmp_path / "saint")
        (tmp_path / "saint" / name).write_text(former)
    (tmp_path / "saint" / "role.json").write_text(json.dumps({"tr": [0, 1, 2]}))
    with pytest.raises(DataError, match="has no test nodes"):
        load_graph(tmp_path / "saint")


def test_other_archives_and_folders_are_no_graphs(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"is no graph file: .*node_features, node_labels, edges"):
        load_graph(tmp_path / "other.npz")
    with pytest.raises(ConfigError, match="neither a known data set nor an existing file"):
        load_graph(tmp_path / "nowhere.npz")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "nodes.csv").write_text("id,x,label\n0,1,2\n")
    with pytest.raises(ConfigError, match=r"tables of nodes and edges are not read; numpy\.savez"):
        domain_of(str(tmp_path / "tables"))
