"""Loaders of torch-geometric's data sets, on generated files in their layouts."""

import collections
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures

from mmdistill.errors import DataError, UnsupportedError
from mmdistill.graph import DOMAIN, graph_task, load_graph
from mmdistill.graph.sources import PER_CLASS, SOURCES, divided_by_row_sum, random_split, standardised
from tests.graph.toy import planted_fields


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root that torch-geometric may not write to, and a cache folder."""
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def fields() -> dict[str, Any]:
    return planted_fields(nodes=180)


def adjacency(of: dict[str, Any]) -> sp.csr_matrix:
    row, column = of["edge_index"].numpy()
    nodes = len(of["x"])
    found = sp.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(nodes, nodes))
    found.sort_indices()  # as scipy does by itself from 1.14 on
    return found


def write_npz(folder: Path, file: str) -> dict[str, Any]:
    """Write a graph as the Amazon and Coauthor files hold it."""
    folder.mkdir(parents=True)
    own = fields()
    own["x"] = (own["x"] > 0).float()  # torch-geometric reads these features as present or not
    x, edges = sp.csr_matrix(own["x"].numpy()), adjacency(own)
    parts = {"attr_data": x.data, "attr_indices": x.indices, "attr_indptr": x.indptr, "attr_shape": x.shape}
    parts |= {"adj_data": edges.data, "adj_indices": edges.indices, "adj_indptr": edges.indptr}
    np.savez(folder / file, **parts, adj_shape=edges.shape, labels=own["y"].numpy())  # type: ignore[arg-type]
    return own


def ids(mask: Tensor) -> list[int]:
    return [int(node) for node in mask.nonzero()]


def write_saint(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    own = fields()
    edges = adjacency(own)
    np.savez(folder / "adj_full.npz", data=edges.data, indices=edges.indices, indptr=edges.indptr, shape=edges.shape)
    np.save(folder / "feats.npy", own["x"].numpy())
    (folder / "class_map.json").write_text(json.dumps({str(i): int(label) for i, label in enumerate(own["y"])}))
    roles = {"tr": ids(own["train_mask"]), "va": ids(own["val_mask"]), "te": ids(own["test_mask"])}
    (folder / "role.json").write_text(json.dumps(roles))
    return own


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("amazon-photo", "Photo", "amazon_electronics_photo.npz"),
        ("amazon-computers", "Computers", "amazon_electronics_computers.npz"),
        ("Coauthor_CS", "CS", "ms_academic_cs.npz"),
        ("coauthor-physics", "Physics", "ms_academic_phy.npz"),
    ],
)
def test_files_without_a_split_get_a_random_one(root: Path, name: str, folder: str, file: str) -> None:
    own = write_npz(root / folder / "raw", file)
    (root / folder).chmod(0o555)  # what torch-geometric derives goes to the cache folder
    graph = load_graph(name)
    assert torch.equal(graph.x, own["x"])
    assert torch.equal(graph.edge_index, torch.from_numpy(np.stack(adjacency(own).nonzero())).long())
    assert torch.bincount(graph.y[graph.train]).tolist() == [PER_CLASS["train"]] * 3
    assert torch.bincount(graph.y[graph.val]).tolist() == [PER_CLASS["val"]] * 3
    assert len(graph.train) + len(graph.val) + len(graph.test) == 180
    assert not torch.equal(load_graph(name, seed=1).train, graph.train)
    assert any("random split 0" in note for note in graph.notes)
    with pytest.raises(DataError, match="has one split of its nodes; there is no split 1"):
        load_graph(name, split=1)
    other = graph_task(name, seed=1).describe().fingerprint
    assert other != graph_task(name).describe().fingerprint
    assert DOMAIN.make_task(name, seed=1).describe().fingerprint == other
    assert not (root / folder / "processed").exists()


def test_where_links_are_refused_files_are_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    own = write_npz(root / "Photo" / "raw", "amazon_electronics_photo.npz")
    monkeypatch.setattr(Path, "symlink_to", refused)
    assert torch.equal(load_graph("amazon-photo").x, own["x"])
    copies = root.parent / "cache" / "data" / "Photo"
    assert not (copies / "raw").is_symlink()
    assert {path.name for path in copies.iterdir()} == {"raw", "processed"}
    assert not (root / "Photo" / "processed").exists()


def test_files_put_in_place_after_a_download_failed_are_read(root: Path) -> None:
    unfinished = root.parent / "cache" / "data" / "Photo" / "raw"
    unfinished.mkdir(parents=True)
    (unfinished / "amazon_electronics_photo.npz.part").write_bytes(b"half")
    own = write_npz(root / "Photo" / "raw", "amazon_electronics_photo.npz")
    assert torch.equal(load_graph("amazon-photo").x, own["x"])
    assert unfinished.is_symlink()


@pytest.mark.parametrize(("name", "folder"), [("flickr", "Flickr"), ("reddit", "Reddit2")])
def test_flickr_and_reddit_are_inductive_and_standardised_on_training_nodes(root: Path, name: str, folder: str) -> None:
    own = write_saint(root / folder / "raw")
    graph = load_graph(name)
    assert graph.inductive
    assert not load_graph(name, inductive=False).inductive
    assert (graph.train.tolist(), graph.val.tolist()) == (ids(own["train_mask"]), ids(own["val_mask"]))
    assert torch.equal(graph.y, own["y"])
    known = graph.x[graph.train]
    assert torch.allclose(known.mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(known.std(0, correction=0), torch.ones(12), atol=1e-5)
    assert torch.allclose((own["x"] - graph.scaling["feature_mean"]) / graph.scaling["feature_deviation"], graph.x)
    assert set(graph_task(graph).describe().tensors) == {"feature_mean", "feature_deviation"}


def test_scaling_keeps_what_has_no_scale() -> None:
    for x in (torch.tensor([[1.0, 3.0], [0.0, 0.0], [0.25, 0.25]]), torch.tensor([[1.0, -3.0], [0.5, 2.0]])):
        theirs = NormalizeFeatures()(Data(x=x.clone())).x
        assert torch.equal(divided_by_row_sum(x), theirs)
    raw = torch.tensor([[1.0, 5.0], [3.0, 5.0], [9.0, 6.0]])
    constant, scaling = standardised(raw, torch.tensor([True, True, False]))
    assert constant.tolist() == [[-1.0, 0.0], [1.0, 0.0], [7.0, 1.0]]
    assert torch.equal((raw - scaling["feature_mean"]) / scaling["feature_deviation"], constant)


def test_a_class_too_small_for_a_split_is_named() -> None:
    with pytest.raises(DataError, match="class 1 has 2 nodes"):
        random_split(torch.tensor([0] * 60 + [1] * 2), 0)


def test_missing_and_damaged_files_say_where_they_belong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch_geometric.datasets.Amazon", unreachable)
    with pytest.raises(DataError, match=r"Photo lacks raw/amazon_electronics_photo\.npz, and the download failed"):
        load_graph("amazon-photo")
    monkeypatch.undo()
    monkeypatch.setenv("MMDISTILL_DATA", str(root))
    monkeypatch.setenv("MMDISTILL_CACHE", str(root.parent / "cache"))
    (root / "CS" / "raw").mkdir(parents=True)
    (root / "CS" / "raw" / "ms_academic_cs.npz").write_bytes(b"cut")
    with pytest.raises(DataError, match="holds damaged files"):
        load_graph("coauthor-cs")


class Marker:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_planetoid(folder: Path, name: str, **others: Any) -> None:
    """Write a tiny citation graph as Planetoid's pickles."""
    folder.mkdir(parents=True)
    labels = np.eye(2, dtype=np.int32)[np.arange(600) % 2]
    x = sp.csr_matrix(np.arange(1800, dtype=np.float32).reshape(600, 3) % 5)
    graph = {node: [(node + 1) % 620] for node in range(620)}
    rest = sp.csr_matrix(np.ones((20, 3), np.float32))
    parts: dict[str, Any] = {"x": x[:20], "y": labels[:20], "allx": x, "ally": labels, "tx": rest, "ty": labels[:20]}
    for part, value in {**parts, "graph": collections.defaultdict(list, graph), **others}.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / f"ind.{name}.test.index").write_text("\n".join(map(str, range(600, 620))))


def test_no_code_is_run_from_the_pickles_of_citation_graphs(root: Path) -> None:
    write_planetoid(root / "Cora" / "raw", "cora")
    assert load_graph("cora").x.shape == (620, 3)
    shutil.rmtree(root / "Cora")
    marker = root.parent / "marker"
    write_planetoid(root / "Cora" / "raw", "cora", allx=Marker(marker))
    with pytest.raises(DataError, match=r"holds damaged files .*is not run"):
        load_graph("cora")
    assert not marker.exists()


def test_no_code_is_run_from_what_torch_geometric_keeps(root: Path) -> None:
    write_npz(root / "Photo" / "raw", "amazon_electronics_photo.npz")
    load_graph("amazon-photo")
    marker = root.parent / "marker"
    kept = sorted((root.parent / "cache").rglob("pre_*.pt"))
    assert len(kept) == 2
    for path in kept:
        torch.save((Marker(marker),), path)
    with pytest.raises(DataError, match="amazon-photo"):
        load_graph("amazon-photo")
    assert not marker.exists()


def test_ogb_is_an_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ogb.nodeproppred", None)
    with pytest.raises(UnsupportedError, match=r'ogbn-arxiv needs ogb: pip install "mmdistill\[ogb\]"'):
        load_graph("ogbn-arxiv")
    assert "ogbn-products" in DOMAIN.datasets


def test_ogb_files_are_found_below_the_data_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["ogbn-arxiv"]
    for name in source.files:
        (root / "ogbn_arxiv" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "ogbn_arxiv" / name).write_text(name)
    seen: list[Path] = []

    def read(name: str, folder: str) -> None:
        seen.append(Path(folder) / "ogbn_arxiv")
        raise OSError("stop here")

    module = type("Module", (), {"PygNodePropPredDataset": read})
    monkeypatch.setitem(__import__("sys").modules, "ogb.nodeproppred", module)
    with pytest.raises(DataError, match="data/ogbn_arxiv/raw holds damaged files"):
        load_graph("ogbn-arxiv")
    assert [(seen[0] / name).read_text() for name in source.files] == list(source.files)
    (root / "ogbn_arxiv" / "split" / "time" / "valid.csv.gz").unlink()
    with pytest.raises(DataError, match=r"ogbn_arxiv lacks split/time/valid\.csv\.gz, and the download failed"):
        load_graph("ogbn-arxiv")
    with pytest.raises(DataError, match=r"ogbn_products lacks raw/edge\.csv\.gz, .* and the download failed"):
        load_graph("ogbn-products")


def test_ogb_splits_become_masks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fields()
    split = {"train": own["train_mask"].nonzero()[:, 0], "valid": own["val_mask"].nonzero()[:, 0]}
    split["test"] = own["test_mask"].nonzero()[:, 0]

    class Stored:
        def __init__(self, name: str, root: str) -> None:
            assert name == "ogbn-arxiv"

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"x": own["x"], "edge_index": own["edge_index"], "y": own["y"][:, None]}

        def get_idx_split(self) -> dict[str, Tensor]:
            return split

    module = type("Module", (), {"PygNodePropPredDataset": Stored})
    monkeypatch.setitem(__import__("sys").modules, "ogb.nodeproppred", module)
    graph = load_graph("ogbn-arxiv")
    assert graph.val.tolist() == split["valid"].tolist()
    assert graph.y.tolist() == own["y"].tolist()
