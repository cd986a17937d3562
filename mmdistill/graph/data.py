"""Graphs with labelled nodes: citation networks, saved torch-geometric graphs, and the user's own ``Data``."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.registry import canonical, unknown_name
from mmdistill.runtime import cache_folder, data_root

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
"""The folder that torch-geometric gives each citation network."""
PLANETOID_FILES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
DATASETS = {
    "cora": "2,708 papers in 7 classes, 140 labelled (Planetoid split)",
    "citeseer": "3,327 papers in 6 classes, 120 labelled (Planetoid split)",
    "pubmed": "19,717 papers in 3 classes, 60 labelled (Planetoid split)",
}
FIELDS = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")


@dataclass(frozen=True)
class GraphData:
    """One undirected graph with classified nodes, checked and in canonical form.

    Args:
        name: the data set's name or path.
        x: node features, float32.
        edge_index: both directions of every edge once, sorted by source then target, no self-loops.
        edge_weight: the weight of each; 1 unless the source has weights.
        y: the class of each node, -1 where it is unknown and not needed.
        train: ids of the labelled training nodes, ascending.
        val: ids of the validation nodes; may be empty.
        test: ids of the test nodes.
        num_classes: C.
        notes: what was changed on the way in, in words.

    Shapes:
        x ``(N, d)``; edge_index ``(2, E)`` int64; edge_weight ``(E,)``; y ``(N,)`` int64.
    """

    name: str
    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    num_classes: int
    notes: tuple[str, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole graph as a saved torch-geometric ``Data`` holds it (features, edges, labels, masks)."""
        masks = 3 * len(self.x)
        return int(self.x.nbytes + self.edge_index.nbytes + self.y.nbytes + masks)

    def fingerprint(self) -> str:
        """Return a hash of everything that training reads."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.x, self.edge_index, self.edge_weight, self.y[self.train], self.train):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_graph(source: "str | Path | Any", *, split: int = 0) -> GraphData:
    """Return a graph from a data set name, a file, or a torch-geometric ``Data`` object.

    Args:
        source: ``cora``, ``citeseer`` or ``pubmed``; a ``.pt`` or ``.safetensors`` file; or an object with the
            attributes of a ``Data``: x, edge_index, y, train_mask, val_mask, test_mask (edge_weight is optional).
        split: the column of masks that hold several splits.

    Raises:
        ConfigError: an unknown name.
        DataError: a missing or damaged file, or a graph that cannot be used.
    """
    if not isinstance(source, str | Path):
        return graph_from_fields(_fields_of(source), name="user graph", split=split)
    key = canonical(str(source))
    if key in PLANETOID:
        return _planetoid(key)
    path = Path(source)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        if not path.exists():
            raise unknown_name("graph", str(source), PLANETOID)
        raise DataError(f"{path} is no graph file: expected .pt (a torch-geometric Data) or .safetensors")
    if not path.is_file():
        raise DataError(f"there is no file {path}; expected a saved torch-geometric Data or a .safetensors graph")
    return graph_from_fields(read_fields(path), name=str(source), split=split)


def looks_like_graph(path: Path) -> bool:
    """Return whether a file could hold a graph, without reading all of it."""
    if path.suffix in (".pt", ".pth"):
        try:
            return "edge_index" in read_fields(path)
        except DataError:
            return False
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safetensors.safe_open(path, framework="pt") as handle:
                return "edge_index" in handle.keys()  # noqa: SIM118
        except (safetensors.SafetensorError, OSError):
            return False
    return False


def read_fields(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a saved graph by name, without running code from the file.

    Raises:
        DataError: the file is damaged, holds other things than tensors in a graph, or is no graph.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    # torch-geometric takes seconds to import and most commands never need it, hence here.
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import EdgeStorage, GlobalStorage, NodeStorage

    allowed: list[Any] = [Data, DataEdgeAttr, DataTensorAttr, EdgeStorage, GlobalStorage, NodeStorage]
    try:
        with torch.serialization.safe_globals(allowed):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, runtime, zip and key errors alike
        raise DataError(
            f"{path} cannot be read as a graph of plain tensors ({type(error).__name__}); save it with "
            "torch.save(data, path), data a torch_geometric.data.Data whose attributes are tensors"
        ) from error
    if isinstance(saved, tuple) and saved:  # the processed file of a torch-geometric InMemoryDataset
        saved = saved[0]
    return _fields_of(saved)


def _fields_of(source: Any) -> Mapping[str, Any]:
    """Return the attributes of a ``Data``, or a mapping's items."""
    if isinstance(source, Mapping):
        return source
    to_dict = getattr(source, "to_dict", None)
    fields = to_dict() if callable(to_dict) else None
    if not isinstance(fields, Mapping):
        raise DataError(
            f"expected a graph with {', '.join(FIELDS)}, got {type(source).__name__}: give a name, a file, or a "
            "torch_geometric.data.Data"
        )
    return fields


def graph_from_fields(fields: Mapping[str, Any], name: str, split: int = 0, notes: tuple[str, ...] = ()) -> GraphData:
    """Check a graph's tensors and bring them into canonical form.

    Directed edges get their reverse, duplicates are merged (the largest weight stays) and self-loops are dropped,
    since every network adds its own; nodes without edges keep only that self-loop. Each change is noted.

    Args:
        fields: x, edge_index, y and the masks by name; edge_weight is optional.
        name: the data set's name, for messages.
        split: the column of masks that hold several splits.
        notes: what was done before.

    Raises:
        DataError: a field is missing or unusable; the message names it.
    """
    x = _features(fields, name)
    edge_index, edge_weight, edge_notes = _edges(fields, name, len(x))
    train = _mask(fields, "train_mask", name, len(x), split)
    test = _mask(fields, "test_mask", name, len(x), split)
    if train is None or not len(train):
        raise DataError(f"{name} has no training nodes: give a boolean train_mask with at least one True per class")
    if test is None or not len(test):
        raise DataError(f"{name} has no test nodes: give a boolean test_mask")
    val = _mask(fields, "val_mask", name, len(x), split)
    if val is None or not len(val):
        val = torch.zeros(0, dtype=torch.long)
        edge_notes += ("no validation nodes: judges keep their last epoch",)
    sets = {"training": train, "validation": val, "test": test}
    for left, right in (("training", "test"), ("training", "validation"), ("validation", "test")):
        shared = int(torch.isin(sets[left], sets[right]).sum())
        if shared:
            raise DataError(f"{name}: {shared} nodes are in both the {left} and the {right} mask")
    y, num_classes = _labels(fields, name, len(x), sets)
    return GraphData(name, x, edge_index, edge_weight, y, train, val, test, num_classes, notes + edge_notes)


def _tensor(fields: Mapping[str, Any], key: str, name: str) -> Tensor:
    value = fields.get(key)
    if not isinstance(value, Tensor):
        got = "it is missing" if value is None else f"got {type(value).__name__}"
        raise DataError(f"{name} needs a tensor {key!r}, {got}; a graph has {', '.join(FIELDS)}")
    return value.detach().cpu()


def _features(fields: Mapping[str, Any], name: str) -> Tensor:
    x = _tensor(fields, "x", name)
    if x.is_sparse or x.layout != torch.strided:
        x = x.to_dense()
    x = x.float()
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"{name}: features x must be (nodes, features), got {tuple(x.shape)}")
    bad = (~torch.isfinite(x)).any(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise DataError(
            f"{name}: the features of {int(bad.sum())} nodes are NaN or infinite (first: node {first}); fill them"
        )
    return x.contiguous()


def _edges(fields: Mapping[str, Any], name: str, nodes: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return sorted undirected edges without self-loops, their weights, and what changed."""
    edges = _tensor(fields, "edge_index", name)
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.is_floating_point():
        raise DataError(f"{name}: edge_index must be an integer (2, edges), got {edges.dtype} {tuple(edges.shape)}")
    edges = edges.long()
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        raise DataError(
            f"{name}: edge_index names nodes {int(edges.min())} to {int(edges.max())}, but x has {nodes} rows"
        )
    weight = torch.ones(edges.shape[1])
    if fields.get("edge_weight") is not None:
        weight = _tensor(fields, "edge_weight", name).float().flatten()
        if len(weight) != edges.shape[1] or not torch.isfinite(weight).all() or (weight < 0).any():
            raise DataError(f"{name}: edge_weight must be one finite number >= 0 for each of {edges.shape[1]} edges")
    notes: list[str] = []
    loops = edges[0] == edges[1]
    if loops.any():
        notes.append(f"{int(loops.sum())} self-loops dropped (networks add their own)")
        edges, weight = edges[:, ~loops], weight[~loops]
    keys = edges[0] * nodes + edges[1]
    unique = torch.unique(keys)
    if len(unique) < len(keys):
        notes.append(f"{len(keys) - len(unique)} duplicate edges merged")
    both, position = torch.unique(torch.cat([keys, edges[1] * nodes + edges[0]]), return_inverse=True)
    if len(both) > len(unique):
        notes.append(f"{len(both) - len(unique)} reverse edges added: the graph is treated as undirected")
    merged = torch.zeros(len(both)).scatter_reduce(0, position, weight.repeat(2), "amax", include_self=False)
    edges = torch.stack([both // nodes, both % nodes])
    isolated = nodes - len(torch.unique(edges[0]))
    if isolated:
        notes.append(f"{isolated} isolated nodes see only themselves")
    return edges, merged, tuple(notes)


def _mask(fields: Mapping[str, Any], key: str, name: str, nodes: int, split: int) -> Tensor | None:
    """Return the ids that a boolean mask marks, or None without the mask."""
    if fields.get(key) is None:
        return None
    mask = _tensor(fields, key, name)
    if mask.ndim == 2 and mask.shape[0] == nodes:
        if not 0 <= split < mask.shape[1]:
            raise DataError(f"{name}: {key} has {mask.shape[1]} splits, there is no split {split}")
        mask = mask[:, split]
    if mask.shape != (nodes,) or mask.dtype not in (torch.bool, torch.uint8):
        raise DataError(f"{name}: {key} must be boolean ({nodes},), got {mask.dtype} {tuple(mask.shape)}")
    return mask.bool().nonzero().flatten()


def _labels(fields: Mapping[str, Any], name: str, nodes: int, sets: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Return checked labels and the number of classes (the largest training label plus one)."""
    y = _tensor(fields, "y", name)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (nodes,):
        raise DataError(f"{name}: labels y must hold one class index per node ({nodes},), got {tuple(y.shape)}")
    if y.is_floating_point():
        known = y[torch.cat(list(sets.values()))]
        if not torch.isfinite(known).all() or (known != known.round()).any():
            raise DataError(f"{name}: labels y must be class indices (int64), got {y.dtype} with fractions or NaN")
        y = torch.nan_to_num(y, nan=-1)
    y = y.long()
    num_classes = int(y[sets["training"]].max()) + 1
    for part, ids in sets.items():
        if len(ids) and (int(y[ids].min()) < 0 or int(y[ids].max()) >= num_classes):
            raise DataError(
                f"{name}: {part} labels must lie in 0..{num_classes - 1} (the training nodes' classes), got "
                f"{int(y[ids].min())}..{int(y[ids].max())}"
            )
    counts = torch.bincount(y[sets["training"]], minlength=num_classes)
    if (counts == 0).any():
        empty = int((counts == 0).nonzero()[0])
        raise DataError(f"{name}: class {empty} has no training node; label some, or renumber the classes 0..C-1")
    return torch.where(y < num_classes, y, -1), num_classes


def _planetoid(key: str) -> GraphData:
    """Return a citation network with row-normalised features, from raw files or by download."""
    from torch_geometric.io import read_planetoid_data

    folder = _planetoid_folder(key)
    try:
        data = read_planetoid_data(str(folder), key)
    except Exception as error:  # unpickling a damaged file can raise anything
        raise DataError(f"the files in {folder} are damaged ({error}); delete them and fetch them again") from error
    fields = dict(data.to_dict())
    total = fields["x"].sum(1, keepdim=True)
    fields["x"] = fields["x"] / torch.where(total == 0, 1, total)
    return graph_from_fields(fields, key, notes=("features divided by their row sum",))


def _planetoid_folder(key: str) -> Path:
    """Return the folder with all raw files of a citation network, downloading them where there is none."""
    name = PLANETOID[key]
    files = [f"ind.{key}.{suffix}" for suffix in PLANETOID_FILES]
    cache = cache_folder() / "data"
    folders = [root / name / "raw" for root in (data_root(), cache)]
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    missing = [file for file in files if not (folders[0] / file).is_file()]
    try:
        from torch_geometric.datasets import Planetoid

        Planetoid(str(cache), name)
    except Exception as error:  # no network, a refused connection, a full disk: one cure
        raise DataError(
            f"{key}: {folders[0]} lacks {', '.join(missing)}, and the download failed ({type(error).__name__}); put "
            f"the Planetoid files there"
        ) from error
    return folders[1]
