"""Sources of image data: known names, files and folders, the user's own tensors and torch data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from mmdistill.checks import require_sizes
from mmdistill.errors import ConfigError, DataError
from mmdistill.execution.isolation import isolated
from mmdistill.files.classes import ClassNames, checked_class_names
from mmdistill.files.columns import known_split
from mmdistill.files.hub import HUB_PREFIX, load_from_hub, located_on_hub, on_hub
from mmdistill.files.paths import users_path
from mmdistill.files.saved import SAFETENSORS
from mmdistill.image import files, folders, listed, tensor_files
from mmdistill.image.class_labels import Labelled, class_labels
from mmdistill.image.data import ImageData, build
from mmdistill.image.known import DATASETS, LOADERS, published_layout
from mmdistill.image.repeated import note_shared
from mmdistill.image.samples import MapDataset, find_splits, read_labelled
from mmdistill.image.tensor_files import count_axes
from mmdistill.names import called, canonical, first_few, unknown_data
from mmdistill.runtime import checked_seed

HUB_FILES = ("*.arrow", "*.parquet", "*/*.arrow", "*/*.parquet")
"""Files in a folder that a data set of Hugging Face consists of."""
LARGEST_SIDE = 4096
"""The largest side, in pixels, to which images are resized; no method's network takes larger ones."""

if TYPE_CHECKING:
    from pandas import Series

Pair = tuple[
    Tensor | npt.NDArray[Any] | Sequence[Any], "Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str] | Series[Any]"
]
Source = str | Path | Pair | MapDataset | Mapping[str, Any]
"""A known name; a file or folder; (images, labels), where images may be paths of image files; two such pairs, to train
and to test on; a map-style data set of (sample, label) pairs or of rows with named values; or a mapping, either of
splits (``train``, ``test``) to such sources, or of ``images``, ``labels``, ``test_images``, ``test_labels`` to tensors,
or of images and labels to train on under other names of the field (``X``, ``y``), as scikit-learn's ``load_digits()``.
Labels are all whole numbers, all booleans or all names; numbers that do not run from 0 to C - 1 are renumbered in
order, and name the classes."""


@isolated
def load(
    source: Source,
    test: Source | None = None,
    *,
    class_names: ClassNames | None = None,
    mirror: bool | None = None,
    size: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> ImageData:
    """Load image data from any source.

    Args:
        source: see :data:`Source`; ``hf:NAME`` is a data set of the Hugging Face hub.
        test: test data of the same kind, for tensors and torch data sets; None holds out a fifth of each class.
        class_names: of tensors and data sets, by class index; by default those in a data set's ``classes`` (or Hugging
            Face's ``features``), or the labels themselves if these are names.
        mirror: whether augmentation may mirror images; None is what suits a known data set, and True, with a note, for
            other data.
        size: resize the images of a folder, or the pictures of a data set, to ``size`` x ``size``.
        seed: of the test split, for data without one.
        name: what to call data in memory.

    Raises:
        ConfigError: an unknown name; test data, class names or another name beside a name or path; or a size for
            tensors, arrays or known data sets.
        DataError: missing, damaged or unusable data; the message says which and what to do.
    """
    data = _load_any(source, test, class_names, size, checked_seed(seed), name or "custom")
    data = called(data, name, source, DATASETS)
    if mirror is not None:
        return replace(data, mirror=mirror)
    return data if _is_known(source) else replace(data, mirror_known=False)


def _is_known(source: Source) -> bool:
    """Return whether a source is the name of a known data set."""
    return isinstance(source, str) and canonical(source) in LOADERS


def _load_any(
    source: Source, test: Source | None, class_names: ClassNames | None, size: int | None, seed: int, name: str
) -> ImageData:
    require_sizes(LARGEST_SIDE, size=size)
    if isinstance(source, str | Path):
        if test is not None:
            raise ConfigError(f"{str(source)!r} takes no test data beside it{_where_test_data_go(source)}")
        if class_names is not None:
            raise ConfigError(f"names of classes are for tensors and data sets; {str(source)!r} brings its own")
        if not on_hub(str(source)):
            return _load_from_disk(source, size, seed)
        name, source = located_on_hub(str(source)), load_from_hub(str(source))
    if isinstance(test, str | Path):
        raise ConfigError(f"test data beside tensors or a data set are of that kind too, not a name or path: {test}")
    names = None if class_names is None else checked_class_names(class_names)
    notes: tuple[str, ...] = ()
    if _are_pairs(source):
        source = dict(zip(("train", "test"), map(tuple, source), strict=True))
    if isinstance(source, Mapping):
        given = source
        source, own_test, notes = find_splits(given)
        names = _target_names(given, source) if names is None else names
        if test is not None and own_test is not None:
            raise ConfigError("the data bring their own test data: leave out those beside them, or give data['train']")
        test = own_test if test is None else test
    return _build_labelled(name, source, test, names, seed, notes, size=size)


def _are_pairs(source: Any) -> TypeGuard[tuple[Any, Any]]:
    """Return whether a source is two pairs of images and labels, as Keras' ``load_data()`` returns them."""
    if not isinstance(source, list | tuple) or len(source) != 2:
        return False
    pairs = [part for part in source if isinstance(part, list | tuple) and len(part) == 2]
    dims = [[count_axes(part) for part in pair] for pair in pairs]
    return len(pairs) == 2 and all(images >= 3 > labels > 0 for images, labels in dims)


def _target_names(source: Mapping[str, Any], train: Any) -> tuple[str, ...] | None:
    """Return the ``target_names`` of images and labels, as scikit-learn's data sets have, if these are class indices.

    Args:
        source: the mapping; that of splits has none.
        train: its images and labels.
    """
    given: Any = source.get("target_names")  # where they are numbers, they may be those of left out classes
    texts = list(given) if isinstance(given, list | tuple) or count_axes(given) == 1 else []
    if not texts or not all(isinstance(name, str) for name in texts) or any(map(known_split, source)):
        return None
    found = class_labels(train[1], "the training data")
    numbers = found.indices.tolist() if found.numbers is None else found.numbers
    are_words = found.names and found.numbers is None
    return None if are_words or max(numbers, default=0) >= len(texts) else checked_class_names(texts)


def _load_from_disk(source: str | Path, size: int | None, seed: int) -> ImageData:
    """Load a known data set, or a file or folder.

    Raises:
        ConfigError: an unknown name, or a size for data other than a folder of images.
    """
    path = users_path(source)
    if size is not None and (_is_known(source) or not _lists_images(path)):
        raise ConfigError(f"a size is for the images of a folder; those of {str(source)!r} have one: leave it out")
    if _is_known(source):
        return LOADERS[canonical(str(source))]()
    if not path.exists():
        raise unknown_data("image data set", str(source), DATASETS)
    return load_path(path.absolute(), size, seed)  # an absolute path is never a known data set's name


def _build_labelled(
    name: str,
    source: Any,
    test: Any,
    given: tuple[str, ...] | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
    whose: tuple[str, str] = ("the training data", "the test data"),
    size: int | None = None,
) -> ImageData:
    """Build image data from sources for :func:`~mmdistill.image.samples.read_labelled`.

    Args:
        name: of the data.
        source: the training data.
        test: the test data; None holds out a part of the training data.
        given: the user's class names.
        seed: of the split.
        notes: in words, what was not read.
        whose: names of both sources, for messages.
        size: resize pictures to ``size`` x ``size``.
    """
    images, labels, own_names, changes, numbers = read_labelled(source, whose[0], given, size)
    names, notes = given or own_names, (*notes, *changes)
    held_out = None
    if test is not None:
        # Test labels in words are indexed by the training data's class names; if these are numbers, words are refused.
        words = () if numbers else names
        test_images, test_labels, test_names, changes, _ = read_labelled(test, whose[1], words, size, numbers)
        notes += changes
        if numbers is None and names and test_names not in ((), own_names, names):
            alike = [known for known in (own_names, names) if {*known} & {*test_names}]
            if alike or given is None or len(test_names) != len(given):
                test_labels = _renumber(test_labels, test_names, (*alike, own_names or names)[0])
            else:
                notes += (f"the test data's classes are called {first_few(test_names)}, and are taken in this order",)
        held_out = test_images, test_labels
    present, is_part = set(labels.flatten().tolist()), isinstance(source, Subset | ConcatDataset)
    if is_part and given is None and names and present < {*range(len(names))}:
        kept = tuple(names[index] for index in torch.unique(labels).tolist())
        notes += (f"classes without a training image are left out: {first_few([n for n in names if n not in kept])}",)
        labels = _renumber(labels, names, kept)
        held_out = held_out and (held_out[0], _renumber(held_out[1], names, kept))
        names = kept
    data = build(name, (images, labels), held_out, class_names=names or None, seed=seed, notes=notes)
    data = replace(data, numbers=numbers)
    return data if held_out is None else note_shared(data)


def _where_test_data_go(source: str | Path) -> str:
    """Return in words where a name's or path's test data belong."""
    path = users_path(source)
    if _is_known(source):
        return ", since it brings its own"
    if path.suffix.lower() in tensor_files.SUFFIXES:
        return f": they go into the file, as {tensor_files.NAMES[2]} and {tensor_files.NAMES[3]}"
    return ": of a folder of images they lie in test/, beside train/" if path.is_dir() else ""


def _renumber(
    labels: Tensor, test_names: tuple[str, ...], names: tuple[str, ...], whose: str = "the test data have"
) -> Tensor:
    """Convert indices into the test set's classes to indices into the training set's ``names``.

    Raises:
        DataError: a class that the training set lacks, or a label out of range.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(test_names):
        raise DataError(
            f"the test data name {len(test_names)} classes and have labels from {labels.min()} to {labels.max()}"
        )
    unknown = sorted({test_names[index] for index in torch.unique(labels).tolist()} - set(names))
    if unknown:
        raise DataError(f"{whose} a class {unknown[0]!r} that the training data lack")
    return torch.tensor([names.index(name) if name in names else -1 for name in test_names])[labels.long()]


def accepts(path: Path) -> bool:
    """Return whether a path looks like image data: a folder, IDX or CIFAR files, a table, or a file of tensors.

    A table of texts or interactions is one whatever images it names; :func:`load` reads its images all the same.
    """
    if published_layout(path) is not None or folders.is_image_folder(path) or tensor_files.holds_images(path):
        return True
    return listed.table_at(path, alone=True) is not None


def _lists_images(path: Path) -> bool:
    """Return whether a path is a table of images, or a folder of images with one or with classes."""
    return folders.is_image_folder(path) or listed.table_at(path) is not None


def load_path(path: Path, size: int | None, seed: int) -> ImageData:
    """Load a user's image folder, table of images, IDX files, CIFAR binary files, or file of tensors.

    Raises:
        DataError: a path without image data.
    """
    if (read := published_layout(path)) is not None:
        return read(path)
    if (table := listed.table_at(path)) is not None:
        return _build_read(path, *listed.read_table(table, size), seed)
    if folders.is_image_folder(path):
        return _load_folder(path, size, seed)
    if path.is_file() and path.suffix.lower() in tensor_files.SUFFIXES:
        return _load_tensors(path, seed)
    if reason := shortcoming(path):
        raise DataError(reason)
    raise DataError(
        f"{path} holds no image data: expected one subfolder of images per class (perhaps under train/ and test/), a "
        "CSV or TSV table of files in a column 'image' and classes in 'label', IDX files, CIFAR's binary files, or a "
        ".safetensors, .pt or .npz file with images and labels (and test_images and test_labels)"
    )


def shortcoming(path: Path) -> str:
    """Return in words what a path lacks to be image data; empty if it does not look like images at all."""
    if path.suffix.lower() == ".npy" and path.is_file():
        return (
            f"{path} holds one array, and images need labels: numpy.savez('data.npz', images=images, labels=labels) "
            "keeps both in one file"
        )
    if path.is_dir() and any(next(path.glob(files), None) for files in HUB_FILES):
        return f"{path} holds files of Hugging Face's datasets: give {HUB_PREFIX}{path}"
    if missing := folders.missing_classes(path):
        return missing + listed.why_unread(path)
    return folders.folder_inside(path)


def _load_folder(path: Path, size: int | None, seed: int) -> ImageData:
    """Load an image folder, with its own test images if it has a folder for them."""
    folder, held_out, split_notes = folders.split_folders(path)
    folders.require_classes(path, folder, held_out)
    nested = folders.nested_note(folder)
    train = files.read_image_folder(folder, size, held_out=held_out is None)
    why = "is not read, since the subfolders are the classes; to read it, give the table itself"
    unread = (f"{table.name} {why}" for table in listed.tables_in(path))
    train = train._replace(notes=(*split_notes, *nested, *unread, *train.notes))
    test = None if held_out is None else files.read_image_folder(held_out, size)
    if test is not None:
        test = test._replace(labels=_renumber(test.labels, test.names, train.names, f"{held_out} has"))
    return _build_read(path, train, test, seed)


def _build_read(path: Path, train: Labelled, test: Labelled | None, seed: int) -> ImageData:
    """Build image data from images of folders or tables; if some but not all are grey, all get three channels."""
    if test is None:
        held_out, notes = None, train.notes
        images = train.images
    else:
        channels, notes = max(train.images.shape[1], test.images.shape[1]), train.notes + test.notes
        images, test_images = (part.images.expand(-1, channels, -1, -1) for part in (train, test))
        held_out, images = (test_images, test.labels), images.contiguous()
    data = build(str(path), (images, train.labels), held_out, class_names=train.names, seed=seed, notes=notes)
    # Mapped images would have to be read from disk a second time.
    return data if test is None or images.numel() > files.IN_MEMORY else note_shared(data)


def _load_tensors(path: Path, seed: int) -> ImageData:
    """Load images and labels, and test ones if there are any, from a file of named tensors."""
    saved = tensor_files.read_images(path)
    source, test, notes = find_splits(saved, f"{path} holds")
    data = _build_labelled(str(path), source, test, seed=seed, notes=notes, whose=(f"{path}", f"{path}, to test on"))
    if path.suffix.lower() != SAFETENSORS:
        return data
    # Tensors that still map the file would change with it, so they are copied; a split has already copied its own.
    mapped = {tensor.untyped_storage().data_ptr() for tensor in saved.values()}
    names = ("train_images", "train_labels", "test_images", "test_labels")
    tensors = {name: getattr(data, name) for name in names}
    copies = {name: tensor.clone() for name, tensor in tensors.items() if tensor.untyped_storage().data_ptr() in mapped}
    return replace(data, **copies)
