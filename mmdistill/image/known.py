"""The image data sets known by name: found below the data root, or downloaded."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch
from torch import Tensor

from mmdistill.errors import DataError
from mmdistill.image import files
from mmdistill.image.data import ImageData, build
from mmdistill.runtime import cache_folder, data_root

if TYPE_CHECKING:  # torchvision takes seconds to import, so functions import it when they need it
    from torchvision.datasets import CIFAR10, SVHN

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
"""The known data sets, one line each, and whether they are downloaded or the user puts them below the data root."""

IDX_SPLITS = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DIGITS_TEST = 50
"""Test images per class of the embedded digits."""
MNIST_MOMENTS = ((0.1307,), (0.3081,))
FASHION_MOMENTS = ((0.2861,), (0.3530,))
CIFAR10_MOMENTS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_MOMENTS = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN_MOMENTS = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
IMAGENET_MOMENTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SVHN_SPLITS = ("train", "test")
TINY_FOLDER = "tiny-imagenet-200"


def _digits() -> ImageData:
    """Load scikit-learn's digits; the last 50 images of each class in the published order are the test set."""
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


def has_idx(folder: Path) -> bool:
    """Return whether a folder holds MNIST's files, or others in their layout."""
    return any((folder / f"{IDX_SPLITS[0][0]}{suffix}").is_file() for suffix in ("", ".gz"))


def _idx_splits(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of a folder's IDX files, gzipped or not: the training split, then the test split."""
    for images, labels in IDX_SPLITS:
        yield files.read_idx(files.find_idx(folder, images)), files.read_idx(files.find_idx(folder, labels))


def _load_idx_folder(folder: Path) -> ImageData:
    """Load a user's data in MNIST's layout."""
    train, test = _idx_splits(folder)
    return build(str(folder), train, test)


def _torchvision_class(name: str) -> Any:
    """Return torchvision's class of a data set by its name there."""
    from torchvision import datasets  # takes more than a second

    return getattr(datasets, name)


def _load_idx(
    name: str,
    published: str,
    class_names: tuple[str, ...],
    moments: tuple[tuple[float, ...], tuple[float, ...]],
    mirror: bool,
    whole_epochs: int,
) -> ImageData:
    """Load MNIST or a data set in its layout; torchvision's class ``published`` downloads it if it is missing."""
    layout = Path(published) / "raw"
    root = _find_or_download(
        name,
        is_there=lambda root: has_idx(root / layout),
        download=lambda root: _torchvision_class(published)(root, download=True),
        needed_files=f"{IDX_SPLITS[0][0]}.gz and its three companions in {data_root() / layout}",
    )
    train, test = _idx_splits(root / layout)
    return build(name, train, test, class_names=class_names, moments=moments, mirror=mirror, whole_epochs=whole_epochs)


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
    """Return the class names of the binary layout's text file, or numbers if it is missing or incomplete."""
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return names if len(names) == count else [str(index) for index in range(count)]


def cifar_layout(folder: Path) -> Callable[[Path], ImageData] | None:
    """Return the reader for a folder of CIFAR's binary files; None for other folders."""
    if (folder / "data_batch_1.bin").is_file():
        return _load_cifar10_binary
    if (folder / "train.bin").is_file() and (folder / "test.bin").is_file():
        return _load_cifar100_binary
    return None


def published_layout(folder: Path) -> Callable[[Path], ImageData] | None:
    """Return the reader for a folder in the layout of MNIST, CIFAR (binary) or Tiny-ImageNet; None for others."""
    if has_idx(folder):
        return _load_idx_folder
    return cifar_layout(folder) or (load_tiny_imagenet if files.is_tiny_imagenet(folder) else None)


def _load_cifar(
    name: str,
    published: str,
    binary: str,
    moments: tuple[tuple[float, ...], tuple[float, ...]],
) -> ImageData:
    """Load CIFAR from its binary layout, else from its python layout, which is downloaded if it is missing."""
    for root in _roots():
        read = cifar_layout(root / binary)
        if read is not None:
            return read(root / binary)
    source: type[CIFAR10] = _torchvision_class(published)
    root = _find_or_download(
        name,
        is_there=lambda root: (root / source.base_folder).is_dir(),
        download=lambda root: source(root, download=True),
        needed_files=f"the folder {source.base_folder} (python layout) or {binary} (binary layout) in {data_root()}",
    )
    try:
        splits = [source(str(root), train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"{root / source.base_folder} is incomplete or differs from the published checksums; fetch it again"
        ) from error
    train, test = ((torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in splits)
    return build(name, train, test, class_names=tuple(splits[0].classes), moments=moments)


def _svhn() -> ImageData:
    """Load SVHN's cropped digits in torchvision's layout; they are downloaded if they are missing."""
    source: type[SVHN] = _torchvision_class("SVHN")
    names = [source.split_list[split][1] for split in SVHN_SPLITS]
    root = _find_or_download(
        "svhn",
        is_there=lambda root: all((root / name).is_file() for name in names),
        download=lambda root: [source(root, split=split, download=True) for split in SVHN_SPLITS],
        needed_files=f"{' and '.join(names)} in {data_root()}",
    )
    try:
        splits = [source(str(root), split=split) for split in SVHN_SPLITS]
    except RuntimeError as error:
        raise DataError(f"{names[0]} or {names[1]} in {root} differs from the published checksum; fetch it") from error
    train, test = ((torch.from_numpy(split.data).contiguous(), torch.from_numpy(split.labels)) for split in splits)
    return build("svhn", train, test, class_names=DIGIT_NAMES, moments=SVHN_MOMENTS, mirror=False)


def load_tiny_imagenet(folder: Path) -> ImageData:
    """Load Tiny-ImageNet; as in the field, validation images are the test set, since test labels are secret."""
    images, labels, classes, notes, _ = files.read_image_folder(folder / "train", None)
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
    return load_tiny_imagenet(folder)


def _roots() -> list[Path]:
    """Return the roots to search: the data root, then the cache folder's downloads."""
    return [data_root(), cache_folder() / "data"]


def _writable_root() -> Path:
    """Return the data root, or the cache folder's if that is read-only."""
    root = data_root()
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    return root if os.access(existing, os.W_OK) else cache_folder() / "data"


def _find_or_download(
    name: str, *, is_there: Callable[[Path], bool], download: Callable[[str], object], needed_files: str
) -> Path:
    """Return the root that has a data set; download it first if none has.

    Args:
        name: of the data set.
        is_there: whether a root has it.
        download: downloads it to a root, through torchvision.
        needed_files: in words, the files and where to put them.
    Raises:
        DataError: the download failed; says what is missing and where to put it.
    """
    existing = next(filter(is_there, _roots()), None)
    if existing is not None:
        return existing
    root = _writable_root()
    try:
        download(str(root))
    except (RuntimeError, URLError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} is missing and its download failed ({reason}); put {needed_files}") from error
    return root


LOADERS: dict[str, Callable[[], ImageData]] = {
    "digits": _digits,
    "mnist": partial(_load_idx, "mnist", "MNIST", DIGIT_NAMES, MNIST_MOMENTS, mirror=False, whole_epochs=5),
    "fashion-mnist": partial(
        _load_idx, "fashion-mnist", "FashionMNIST", FASHION_NAMES, FASHION_MOMENTS, mirror=True, whole_epochs=15
    ),
    "cifar10": partial(_load_cifar, "cifar10", "CIFAR10", "cifar-10-batches-bin", CIFAR10_MOMENTS),
    "cifar100": partial(_load_cifar, "cifar100", "CIFAR100", "cifar-100-binary", CIFAR100_MOMENTS),
    "svhn": _svhn,
    "tiny-imagenet": _tiny_imagenet,
}
"""Loaders of the known data sets by name."""
