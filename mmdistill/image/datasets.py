"""Where image data come from: known names, files and folders, the user's own tensors and torch data sets."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmdistill.errors import ConfigError, DataError
from mmdistill.image import files
from mmdistill.image.data import ImageData, MapDataset, build, class_index, from_array, gather
from mmdistill.names import canonical
from mmdistill.registry import unknown_data
from mmdistill.runtime import cache_folder, data_root

if TYPE_CHECKING:  # torchvision takes seconds to import, and is imported where it is used
    from torchvision import datasets as published

DATASETS = {
    "digits": "scikit-learn's handwritten digits, 8 x 8 grey, 10 classes, 1,297 + 500; needs no download",
    "mnist": "handwritten digits, 28 x 28 grey, 10 classes, 60,000 + 10,000; downloaded",
    "fashion-mnist": "articles of clothing, 28 x 28 grey, 10 classes, 60,000 + 10,000; downloaded",
    "cifar10": "photographs, 32 x 32 colour, 10 classes, 50,000 + 10,000 (python or binary layout); downloaded",
    "cifar100": "photographs, 32 x 32 colour, 100 classes, 50,000 + 10,000 (python or binary layout); downloaded",
    "svhn": "house numbers, 32 x 32 colour, 10 classes, 73,257 + 26,032; downloaded",
    "tiny-imagenet": "photographs, 64 x 64 colour, 200 classes, 100,000 + 10,000; "
    "bring the unpacked tiny-imagenet-200.zip of cs231n.stanford.edu",
}
"""The known data sets, one line each, with how they come: downloaded, or brought to the data root by the user."""

IDX_SPLITS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
DIGIT_NAMES = tuple(str(digit) for digit in range(10))
DIGITS_TEST = 50
"""Test images per class of the embedded digits."""
MNIST_MOMENTS = ((0.1307,), (0.3081,))
FASHION_MOMENTS = ((0.2861,), (0.3530,))
CIFAR10_MOMENTS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_MOMENTS = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN_MOMENTS = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
IMAGENET_MOMENTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LARGEST_SIDE = 4096
"""Pixels of the side to which images are resized at most; networks of no method take larger ones."""
TINY_FOLDER = "tiny-imagenet-200"

Pair = tuple[Tensor | npt.NDArray[Any], Tensor | npt.NDArray[Any] | Sequence[int]]
Source = str | Path | Pair | MapDataset
"""A known name, a file or folder, (images, labels), or a map-style torch data set of (sample, label)."""


def load(source: Source, test: Source | None = None, *, size: int | None = None, seed: int = 0) -> ImageData:
    """Load image data from wherever they are.

    Args:
        source: see :data:`Source`.
        test: test data of the same kind, for tensors and torch data sets; None holds out a fifth of each class.
        size: resize the images of a folder to ``size`` x ``size``.
        seed: of the split that data without a test set get.

    Raises:
        ConfigError: an unknown name, test data beside a name or path, or a size of other data than a folder of images.
        DataError: missing, damaged or unusable data; the message says which and what to do.
    """
    if isinstance(source, str | Path):
        if test is not None:
            raise ConfigError(f"{str(source)!r} brings its own test data, as a folder does in train/ and test/")
        path = Path(source)
        known = canonical(source) if isinstance(source, str) else ""
        if size is not None and (known in LOADERS or not files.is_image_folder(path)):
            raise ConfigError(f"a size is for the images of a folder; those of {str(source)!r} have one: leave it out")
        if size is not None and not 1 <= size <= LARGEST_SIDE:
            raise ConfigError(f"images are resized to a side (--size) of 1 to {LARGEST_SIDE:,} pixels, got {size:,}")
        if known in LOADERS:
            return LOADERS[known]()
        if not path.exists():
            raise unknown_data("image data set", str(source), DATASETS)
        return load_path(path.absolute(), size=size, seed=seed)  # whose name is then no known one's
    if size is not None:
        raise ConfigError("a size is for the images of a folder, and these are tensors or a data set: leave it out")
    if isinstance(test, str | Path):
        raise ConfigError(f"test data beside tensors or a data set are of that kind too, not a name or path: {test}")
    train = _pair(source, "the training data")
    held_out = None if test is None else _pair(test, "the test data")
    names = _class_names(source)
    if held_out is not None and names is not None and (others := _class_names(test)) not in (None, names):
        held_out = held_out[0], _renumbered(held_out[1], others, names)
    return build("custom", train, held_out, class_names=names, seed=seed)


def _class_names(source: object) -> tuple[str, ...] | None:
    """Return the names in a data set's ``classes``; None where it has none."""
    names = getattr(source, "classes", None)
    return tuple(str(name) for name in names) if isinstance(names, Sequence) and not isinstance(names, str) else None


def _renumbered(labels: Tensor, own: tuple[str, ...], names: tuple[str, ...]) -> Tensor:
    """Return test labels, which count a test set's own classes, as labels of the training set's.

    Raises:
        DataError: a class that the training set lacks, or a label that is none of the test set's.
    """
    unknown = sorted(set(own) - set(names))
    if unknown:
        raise DataError(f"the test data have a class {unknown[0]!r} that the training data lack")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(own):
        raise DataError(f"the test data name {len(own)} classes and have labels from {labels.min()} to {labels.max()}")
    return torch.tensor([names.index(name) for name in own])[labels.long()]


def _pair(source: Pair | MapDataset, what: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of tensors, arrays or a map-style data set."""
    if isinstance(source, list) and len(source) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in source):
        source = source[0], source[1]
    if isinstance(source, tuple):
        parts = [from_array(part, what) if isinstance(part, np.ndarray) else part for part in source]
        if len(parts) == 2 and isinstance(parts[1], list | tuple):
            parts[1] = torch.tensor([class_index(label, f"{what}: label {i}") for i, label in enumerate(parts[1])])
        if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
            raise DataError(f"{what}: expected (images, labels), two tensors or arrays; labels may be a list")
        return parts[0], parts[1]
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__") or hasattr(source, "keys"):
        hint = "; give the data set that it loads" if isinstance(source, torch.utils.data.DataLoader) else ""
        raise DataError(
            f"{what}: {type(source).__name__} is no map-style data set, which has a length and an index{hint}"
        )
    return gather(source, what)


def accepts(path: Path) -> bool:
    """Whether a path looks like image data: an image folder, IDX or CIFAR files, or safetensors of images."""
    if path.is_dir():
        return (
            files.is_tiny_imagenet(path)
            or _has_idx(path)
            or _cifar_layout(path) is not None
            or files.is_image_folder(path)
        )
    return path.suffix == ".safetensors" and {"images", "labels"} <= set(files.read_tensors(path))


def load_path(path: Path, *, size: int | None = None, seed: int = 0) -> ImageData:
    """Load a file or folder of the user's: image folder, IDX files, CIFAR binary records, or safetensors.

    Raises:
        DataError: a path without image data.
    """
    name = str(path)
    if path.is_dir() and _has_idx(path):
        train, test = (_idx_split(path, *split) for split in IDX_SPLITS)
        return build(name, train, test)
    if path.is_dir() and (layout := _cifar_layout(path)) is not None:
        return layout(path)
    if path.is_dir() and files.is_tiny_imagenet(path):
        return _load_tiny_imagenet(path)
    if path.is_dir() and files.is_image_folder(path):
        return _load_folder(path, size, seed)
    if path.is_file() and path.suffix == ".safetensors":
        return _load_tensors(path, seed)
    if reason := files.missing_classes(path):
        raise DataError(reason)
    raise DataError(
        f"{path} holds no image data: expected one subfolder of images per class (perhaps under train/ and test/), IDX "
        "files, CIFAR's binary files, or a .safetensors file with images and labels"
    )


def _load_folder(path: Path, size: int | None, seed: int) -> ImageData:
    """Load an image folder, with its own test images where it has a folder for training."""
    train, held_out, split_notes = files.split_folders(path)
    images, labels, names, notes = files.read_image_folder(train, size)
    if held_out is None:
        if images.nbytes > files.IN_MEMORY:
            raise DataError(
                f"{path} holds {images.nbytes / 2**30:.1f} GiB of images, too many to hold out a part in memory; move "
                "the test images to a folder test/ beside train/"
            )
        return build(str(path), (images, labels), None, class_names=names, seed=seed, notes=notes)
    test_images, test_labels, test_names, test_notes = files.read_image_folder(held_out, size)
    unknown = sorted(set(test_names) - set(names))
    if unknown:
        raise DataError(f"{held_out} has a class {unknown[0]!r} that {train} lacks")
    test_labels = _renumbered(test_labels, tuple(test_names), tuple(names))
    channels = max(images.shape[1], test_images.shape[1])
    images, test_images = images.expand(-1, channels, -1, -1), test_images.expand(-1, channels, -1, -1)
    notes = (*split_notes, *notes, *test_notes)
    return build(str(path), (images.contiguous(), labels), (test_images, test_labels), class_names=names, notes=notes)


def _load_tensors(path: Path, seed: int) -> ImageData:
    """Load ``images`` and ``labels``, and ``test_images`` and ``test_labels`` where they are, from safetensors."""
    tensors = files.read_tensors(path)
    if not {"images", "labels"} <= set(tensors):
        raise DataError(
            f"{path} should hold tensors named images and labels, got {', '.join(sorted(tensors)) or 'none'}"
        )
    test = None
    given = {"test_images", "test_labels"} & set(tensors)
    if len(given) == 1:
        raise DataError(f"{path} holds {given.pop()} alone; test images need their labels, and labels their images")
    if given:
        test = tensors["test_images"], tensors["test_labels"]
    return build(str(path), (tensors["images"], tensors["labels"]), test, seed=seed)


def _digits() -> ImageData:
    """Scikit-learn's digits: the last 50 images of each class in the published order are the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[(labels == digit).nonzero().flatten()[-DIGITS_TEST:]] = True
    return build(
        "digits",
        (images[~test], labels[~test]),
        (images[test], labels[test]),
        class_names=DIGIT_NAMES,
        scale=16.0,
        mirror=False,
        whole_epochs=60,
        judge_epochs=300,
    )


def _has_idx(folder: Path) -> bool:
    return any((folder / f"{IDX_SPLITS[0][0]}{suffix}").is_file() for suffix in ("", ".gz"))


def _idx_split(folder: Path, images: str, labels: str) -> tuple[Tensor, Tensor]:
    return files.read_idx(files.find_idx(folder, images)), files.read_idx(files.find_idx(folder, labels))


def _load_idx(
    name: str,
    source: "type[published.MNIST]",
    class_names: tuple[str, ...],
    moments: tuple[tuple[float, ...], tuple[float, ...]],
    mirror: bool,
    whole_epochs: int,
) -> ImageData:
    """Load MNIST or a data set in its layout, downloading it through torchvision where it is missing."""
    layout = Path(source.__name__) / "raw"
    folder = next((root / layout for root in _roots() if _has_idx(root / layout)), None)
    if folder is None:
        root = _writable_root()
        wanted = f"{IDX_SPLITS[0][0]}.gz and its three companions in {data_root() / layout}"
        _download(lambda: source(str(root), download=True), name, wanted)
        folder = root / layout
    train, test = (_idx_split(folder, *split) for split in IDX_SPLITS)
    return build(name, train, test, class_names=class_names, moments=moments, mirror=mirror, whole_epochs=whole_epochs)


def _mnist() -> ImageData:
    from torchvision.datasets import MNIST

    return _load_idx("mnist", MNIST, DIGIT_NAMES, MNIST_MOMENTS, mirror=False, whole_epochs=5)


def _fashion_mnist() -> ImageData:
    from torchvision.datasets import FashionMNIST

    names = tuple(FashionMNIST.classes)
    return _load_idx("fashion-mnist", FashionMNIST, names, FASHION_MOMENTS, mirror=True, whole_epochs=15)


def _load_cifar10_binary(folder: Path) -> ImageData:
    train = files.read_cifar_binary([folder / f"data_batch_{part}.bin" for part in range(1, 6)], 1)
    test = files.read_cifar_binary([folder / "test_batch.bin"], 1)
    names = _class_list(folder / "batches.meta.txt", 10)
    return build("cifar10", train, test, class_names=names, moments=CIFAR10_MOMENTS)


def _load_cifar100_binary(folder: Path) -> ImageData:
    train = files.read_cifar_binary([folder / "train.bin"], 2)
    test = files.read_cifar_binary([folder / "test.bin"], 2)
    names = _class_list(folder / "fine_label_names.txt", 100)
    return build("cifar100", train, test, class_names=names, moments=CIFAR100_MOMENTS)


def _class_list(path: Path, count: int) -> list[str]:
    """Return the class names that the binary layout carries in a text file, or numbers where it is not there."""
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return names if len(names) == count else [str(index) for index in range(count)]


def _cifar_layout(folder: Path) -> Callable[[Path], ImageData] | None:
    """Return the reader of a folder of CIFAR's binary files, or None where there are none."""
    if (folder / "data_batch_1.bin").is_file():
        return _load_cifar10_binary
    if (folder / "train.bin").is_file() and (folder / "test.bin").is_file():
        return _load_cifar100_binary
    return None


def _load_cifar(
    name: str,
    source: "type[published.CIFAR10]",
    binary: str,
    moments: tuple[tuple[float, ...], tuple[float, ...]],
) -> ImageData:
    """Load CIFAR from its binary layout, else from its python layout, downloading that where it is missing."""
    for root in _roots():
        layout = _cifar_layout(root / binary)
        if layout is not None:
            return layout(root / binary)
    present = [root for root in _roots() if (root / source.base_folder).is_dir()]
    root = present[0] if present else _writable_root()
    if not present:
        wanted = f"the folder {source.base_folder} (python layout) or {binary} (binary layout) in {data_root()}"
        _download(lambda: source(str(root), download=True), name, wanted)
    try:
        splits = [source(str(root), train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"{root / source.base_folder} is incomplete or differs from the published checksums; fetch it again"
        ) from error
    train, test = ((torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in splits)
    return build(name, train, test, class_names=tuple(splits[0].classes), moments=moments)


def _cifar10() -> ImageData:
    from torchvision.datasets import CIFAR10

    return _load_cifar("cifar10", CIFAR10, "cifar-10-batches-bin", CIFAR10_MOMENTS)


def _cifar100() -> ImageData:
    from torchvision.datasets import CIFAR100

    return _load_cifar("cifar100", CIFAR100, "cifar-100-binary", CIFAR100_MOMENTS)


def _svhn() -> ImageData:
    """Load SVHN's cropped digits, in torchvision's layout, downloading them where they are missing."""
    from torchvision.datasets import SVHN

    names = [SVHN.split_list[split][1] for split in ("train", "test")]
    present = [root for root in _roots() if all((root / name).is_file() for name in names)]
    root = present[0] if present else _writable_root()
    if not present:
        wanted = f"{' and '.join(names)} in {data_root()}"
        for split in ("train", "test"):
            _download(partial(SVHN, str(root), split=split, download=True), "svhn", wanted)
    try:
        splits = [SVHN(str(root), split=split) for split in ("train", "test")]
    except RuntimeError as error:
        raise DataError(f"{names[0]} or {names[1]} in {root} differs from the published checksum; fetch it") from error
    train, test = ((torch.from_numpy(split.data).contiguous(), torch.from_numpy(split.labels)) for split in splits)
    return build("svhn", train, test, class_names=DIGIT_NAMES, moments=SVHN_MOMENTS, mirror=False)


def _load_tiny_imagenet(folder: Path) -> ImageData:
    """Load Tiny-ImageNet; its validation images are the test set, as in the field, since the test labels are secret."""
    images, labels, classes, notes = files.read_image_folder(folder / "train", None)
    test = files.read_tiny_validation(folder / "val", classes)
    names = files.read_tiny_names(folder / "words.txt", classes)
    return build("tiny-imagenet", (images, labels), test, class_names=names, moments=IMAGENET_MOMENTS, notes=notes)


def _tiny_imagenet() -> ImageData:
    folder = next((f for root in _roots() if files.is_tiny_imagenet(f := root / TINY_FOLDER)), None)
    if folder is None:
        raise DataError(
            f"tiny-imagenet is missing; unpack the published tiny-imagenet-200.zip to {data_root() / TINY_FOLDER} "
            "(train/, val/ with val_annotations.txt, words.txt)"
        )
    return _load_tiny_imagenet(folder)


def _roots() -> list[Path]:
    """Return where data are looked for: the data root, then what was downloaded to the cache folder."""
    return [data_root(), cache_folder() / "data"]


def _writable_root() -> Path:
    """Return the data root, or the cache folder's where that is read-only."""
    root = data_root()
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    return root if os.access(existing, os.W_OK) else cache_folder() / "data"


def _download(fetch: Callable[[], object], name: str, wanted: str) -> None:
    """Download through torchvision.

    Raises:
        DataError: the download failed; says what is missing and where to put it.
    """
    try:
        fetch()
    except (RuntimeError, URLError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} is missing and its download failed ({reason}); put {wanted}") from error


LOADERS: dict[str, Callable[[], ImageData]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "tiny-imagenet": _tiny_imagenet,
}
"""Loaders of the known data sets by name."""
