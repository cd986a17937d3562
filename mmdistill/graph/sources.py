"""Named graphs of torch-geometric and ogb, read from the data root or downloaded."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError, UnsupportedError, to_install
from mmdistill.execution.isolation import isolated
from mmdistill.files.paths import users_path
from mmdistill.files.saved import SAFETENSORS, TORCH
from mmdistill.graph.data import GraphData, graph_from_fields
from mmdistill.graph.files import fields_of, graph_classes, plainly_unpickled, read_fields
from mmdistill.graph.layouts import ARCHIVES, FOLDERS, densified, layout_of, read_layout, shortcoming
from mmdistill.graph.sampling import split_by_class
from mmdistill.names import canonical, unknown_data
from mmdistill.runtime import cache_folder, checked_seed, data_root

logger = logging.getLogger(__name__)

PER_CLASS = {"train": 20, "val": 30}
"""Nodes of each class in the random splits of data sets that come without one (Shchur et al., 2018)."""
EXPECTED = "expected .pt (a torch-geometric Data), .safetensors, " + " or ".join(
    f"{kind} with {', '.join(layout.names)}"
    for kind, layouts in ((".npz", ARCHIVES), ("a folder", FOLDERS))
    for layout in layouts
)
OGB_FILES = ("edge", "node-feat", "node-label", "num-node-list", "num-edge-list")
PLANETOID_FILES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


@dataclass(frozen=True)
class GraphSource:
    """A data set of a library.

    Args:
        folder: the library's folder for it under the data root.
        files: the files that this folder must hold.
        load: reads it, given the parent of ``folder`` and the library's name for it, which is ``folder`` too.
        summary: one line for users.
        scale: ``rows`` divides features by their row sum, as torch-geometric does; ``standard`` standardises them on
            the training nodes.
        inductive: whether the field condenses it inductively.
        weight_decay: of judges in the published comparison (Jin et al., ICLR 2022); None: chosen by the graph's size.
        dropout: of these judges.
    """

    folder: str
    files: tuple[str, ...]
    load: Callable[[Path, str], Mapping[str, Any]]
    summary: str
    scale: str = ""
    inductive: bool = False
    weight_decay: float | None = None
    dropout: float = 0.5


def _load_planetoid(root: Path, name: str) -> Mapping[str, Any]:
    from torch_geometric.io import planetoid  # torch-geometric takes seconds to import

    with plainly_unpickled(planetoid):
        if not (root / name / "raw" / f"ind.{name.lower()}.x").is_file():
            from torch_geometric.datasets import Planetoid

            Planetoid(str(root), name)
        return fields_of(planetoid.read_planetoid_data(str(root / name / "raw"), name.lower()))


def _loader(dataset: str, named: bool = True) -> Callable[[Path, str], Mapping[str, Any]]:
    """Return what loads a data set of torch-geometric's, which takes a name beside its root if it is ``named``."""

    def load(root: Path, name: str) -> Mapping[str, Any]:
        from torch_geometric import datasets

        arguments = (str(root), name) if named else (str(root / name),)
        return fields_of(getattr(datasets, dataset)(*arguments)[0])

    return load


def _load_ogb(root: Path, name: str) -> Mapping[str, Any]:
    try:
        from ogb.nodeproppred import PygNodePropPredDataset
    except ImportError as error:
        raise UnsupportedError(f"{name.replace('_', '-')} needs ogb: {to_install('ogb')}") from error
    dataset = PygNodePropPredDataset(name.replace("_", "-"), str(root))
    fields = dict(fields_of(dataset[0]))
    for part, ids in dataset.get_idx_split().items():
        fields[f"{'val' if part == 'valid' else part}_mask"] = _mask(len(fields["x"]), ids)
    return fields


def _raw(*names: str) -> tuple[str, ...]:
    return tuple(f"raw/{name}" for name in names)


SAINT_FILES = _raw("adj_full.npz", "feats.npy", "class_map.json", "role.json")


def _ind(name: str) -> tuple[str, ...]:
    return _raw(*(f"ind.{name}.{suffix}" for suffix in PLANETOID_FILES))


def _ogb_files(split: str) -> tuple[str, ...]:
    splits = [f"split/{split}/{part}.csv.gz" for part in ("train", "valid", "test")]
    return (*_raw(*(f"{name}.csv.gz" for name in OGB_FILES)), *splits, "RELEASE_v1.txt")


SOURCES = {
    "cora": GraphSource(
        "Cora", _ind("cora"), _load_planetoid, "2,708 papers in 7 classes, 140 labelled (Planetoid)", "rows"
    ),
    "citeseer": GraphSource(
        "CiteSeer",
        _ind("citeseer"),
        _load_planetoid,
        "3,327 papers in 6 classes, 120 labelled (Planetoid)",
        "rows",
    ),
    "pubmed": GraphSource(
        "PubMed",
        _ind("pubmed"),
        _load_planetoid,
        "19,717 papers in 3 classes, 60 labelled (Planetoid)",
        "rows",
    ),
    "amazon-computers": GraphSource(
        "Computers",
        _raw("amazon_electronics_computers.npz"),
        _loader("Amazon"),
        "13,752 products in 10 classes, random split",
    ),
    "amazon-photo": GraphSource(
        "Photo", _raw("amazon_electronics_photo.npz"), _loader("Amazon"), "7,650 products in 8 classes, random split"
    ),
    "coauthor-cs": GraphSource(
        "CS", _raw("ms_academic_cs.npz"), _loader("Coauthor"), "18,333 authors in 15 classes, random split"
    ),
    "coauthor-physics": GraphSource(
        "Physics", _raw("ms_academic_phy.npz"), _loader("Coauthor"), "34,493 authors in 5 classes, random split"
    ),
    "flickr": GraphSource(
        "Flickr",
        SAINT_FILES,
        _loader("Flickr", named=False),
        "89,250 images in 7 classes, inductive",
        "standard",
        inductive=True,
        weight_decay=5e-4,
        dropout=0.0,
    ),
    "reddit": GraphSource(
        "Reddit2",
        SAINT_FILES,
        _loader("Reddit2", named=False),  # a fifth of the edges of GraphSAGE's
        "232,965 posts in 41 classes, inductive (GraphSAINT's edges)",
        "standard",
        inductive=True,
        weight_decay=5e-4,
    ),
    "ogbn-arxiv": GraphSource(
        "ogbn_arxiv",
        _ogb_files("time"),
        _load_ogb,
        "169,343 papers in 40 classes (extra: ogb)",
        "standard",
        weight_decay=0.0,
    ),
    "ogbn-products": GraphSource(
        "ogbn_products", _ogb_files("sales_ranking"), _load_ogb, "2,449,029 products in 47 classes (extra: ogb)"
    ),
}
DATASETS = {name: f"{source.summary}; downloaded" for name, source in SOURCES.items()}


@isolated
def load_graph(
    source: "str | Path | Any", *, split: int = 0, seed: int = 0, inductive: bool | None = None
) -> GraphData:
    """Return a graph from a data set name, a file, or a torch-geometric ``Data`` object.

    Args:
        source: a name in ``DATASETS``; a ``.pt`` or ``.safetensors`` file; a file or folder in a layout of
            :mod:`~mmdistill.graph.layouts`; or an object with the attributes of a ``Data``: x, edge_index, y,
            train_mask, val_mask, test_mask (edge_weight is optional).
        split: the column of masks that hold several splits.
        seed: of the random split of named data sets that come without one, and of files in their layout.
        inductive: see :class:`~mmdistill.graph.data.GraphData`; None: as the field uses the data set, and
            transductive for a user's graph.

    Raises:
        ConfigError: an unknown name.
        DataError: a missing or damaged file, or a graph that cannot be used.
        UnsupportedError: a data set whose library is not installed.
    """
    seed = checked_seed(seed)
    if not isinstance(source, str | Path):
        return _from_user(fields_of(source), "user graph", split, inductive)
    key = canonical(str(source))
    if key in SOURCES:
        return _load_named(key, split, seed, SOURCES[key].inductive if inductive is None else inductive)
    path = users_path(source)
    name = str(path.absolute())
    if (known := layout_of(path)) is not None:
        fields = read_layout(*known)
        added, notes = ({}, ()) if known[0].is_split else _random_masks(fields, seed)
        return _from_user({**fields, **added}, name, split, inductive, notes)
    if path.suffix.lower() not in (*TORCH, SAFETENSORS):
        if not path.exists():
            raise unknown_data("graph", str(source), SOURCES)
        raise DataError(shortcoming(path) or f"{path} is no graph file: {EXPECTED}")
    if not path.is_file():
        raise DataError(f"there is no file {path}; expected a saved torch-geometric Data or a .safetensors graph")
    return _from_user(read_fields(path), name, split, inductive)


def _from_user(
    fields: Mapping[str, Any], name: str, split: int, inductive: bool | None, notes: tuple[str, ...] = ()
) -> GraphData:
    """Check a user's graph, whose features stay as they are."""
    fields, changes = densified(fields)
    return graph_from_fields(fields, name, split, inductive=bool(inductive), notes=notes + changes)


def _load_named(key: str, split: int, seed: int, inductive: bool) -> GraphData:
    """Load a library's data set, scale it as the field does, and split it at random where it has no split."""
    source = SOURCES[key]
    root = find_root(source.folder, source.files)
    try:
        with graph_classes():
            fields = dict(source.load(root, source.folder))
    except UnsupportedError:
        raise
    except Exception as error:  # no network, a full disk, a damaged file: the libraries raise anything
        raise DataError(f"{key}: {_explain_failure(source, root, f'{type(error).__name__}: {error}')}") from error
    notes: tuple[str, ...] = ()
    if "train_mask" not in fields:
        masks, notes = _random_masks(fields, seed)
        fields |= masks
    scaling: dict[str, Tensor] = {}
    if source.scale == "rows":
        fields["x"] = divided_by_row_sum(_dense(fields["x"]))
        notes += ("features divided by their row sum",)
    elif source.scale:
        fields["x"], scaling = standardised(_dense(fields["x"]), fields["train_mask"])
        notes += ("features standardised on the training nodes",)
    return replace(graph_from_fields(fields, key, split, inductive=inductive, notes=notes), scaling=scaling)


def _random_masks(fields: Mapping[str, Any], seed: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the masks of a random split, and a note."""
    words = f"{PER_CLASS['train']} training and {PER_CLASS['val']} validation nodes a class"
    return random_split(torch.as_tensor(fields["y"]).long(), seed), (f"random split {seed}: {words}",)


def _explain_failure(source: GraphSource, root: Path, error: str) -> str:
    """Explain why a data set could not be read: its files are damaged, or some are missing."""
    folder, expected = root / source.folder, data_root() / source.folder
    if all((folder / name).is_file() for name in source.files):
        return f"{(folder / source.files[0]).resolve().parent} holds damaged files ({error}); replace or remove them"
    missing = [name for name in source.files if not (expected / name).is_file()]
    return f"{expected} lacks {', '.join(missing)}, and the download failed ({error}); put its files there"


def find_root(folder: str, files: tuple[str, ...]) -> Path:
    """Return the folder under which a library looks for a data set.

    Libraries write processed files beside the originals, and the data root may be read-only. So a data set's files
    there are linked into the cache folder, or copied where links are refused.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    cache, source = cache_folder() / "data", data_root() / folder
    if not all((source / name).is_file() for name in files):
        return cache
    for part in {Path(name).parts[0] for name in files}:
        linked = cache / folder / part
        if all((cache / folder / name).is_file() for name in files if Path(name).parts[0] == part):
            continue
        temporary = linked.with_name(f".{part}-{os.getpid()}")  # a name per process, since others may do the same
        try:
            linked.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            _link_or_copy((source / part).resolve(), temporary)
            if linked.is_dir() and not linked.is_symlink():  # what a failed download left
                shutil.rmtree(linked, ignore_errors=True)
            temporary.replace(linked)  # replaces a dangling link too, to a data root that is gone
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if linked.exists():  # another process was faster
                continue
            raise ConfigError(f"{linked} cannot be made ({error}): set MMDISTILL_CACHE to a writable folder") from error
    return cache


def _link_or_copy(source: Path, target: Path) -> None:
    """Link to a file or folder, or copy it where links are refused, as on Windows without the privilege.

    Raises:
        OSError: neither is possible.
    """
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except (OSError, NotImplementedError):
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)


def random_split(y: Tensor, seed: int) -> dict[str, Tensor]:
    """Draw :data:`PER_CLASS` training and validation nodes of each class; the rest are test nodes.

    Shapes:
        y ``(N,)`` int64; returns boolean masks ``(N,)`` by name.
    Raises:
        DataError: a class with too few nodes.
    """
    counts = torch.bincount(y[y >= 0]).tolist()
    for index, count in enumerate(counts):
        if count <= sum(PER_CLASS.values()):
            raise DataError(
                f"class {index} has {count} nodes, too few for the random split into {PER_CLASS['train']} training and "
                f"{PER_CLASS['val']} validation nodes a class and a rest; a graph with masks of its own is not split"
            )
    parts = split_by_class(y, seed, [[PER_CLASS["train"], sum(PER_CLASS.values())]] * len(counts))
    return {f"{name}_mask": _mask(len(y), ids) for name, ids in zip(("train", "val", "test"), parts, strict=True)}


def _mask(nodes: int, ids: Tensor) -> Tensor:
    """Return the mask of some nodes, ``(N,)`` bool."""
    return torch.zeros(nodes, dtype=torch.bool).index_fill_(0, ids, True)


def divided_by_row_sum(x: Tensor) -> Tensor:
    """Shift features to a minimum of 0, and divide rows by their sum where it is above 1 (NormalizeFeatures).

    Shapes:
        x ``(N, d)``; returns the same shape.
    """
    x = x - x.min()
    return x / x.sum(1, keepdim=True).clamp(min=1.0)


def standardised(x: Tensor, train_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Standardise features by the training nodes' mean and deviation, and return these too.

    Constant features are centred only.

    Shapes:
        x ``(N, d)``; train_mask ``(N,)``; returns ``(N, d)`` and, by name, mean and deviation ``(d,)``, all float32.
    """
    training = x[train_mask.bool()].double()
    mean, deviation = training.mean(0), training.std(0, correction=0)
    deviation = torch.where(deviation == 0, 1, deviation)
    return ((x - mean) / deviation).float(), {"feature_mean": mean.float(), "feature_deviation": deviation.float()}


def _dense(x: Tensor) -> Tensor:
    return (x if x.layout == torch.strided else x.to_dense()).float()
