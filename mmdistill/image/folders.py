"""The layout of image folders: their classes, their splits, and the files that count as images."""

import os
import re
from collections import Counter
from pathlib import Path

from mmdistill.errors import DataError
from mmdistill.files.class_folders import class_folders, is_hidden, loose_note, samples_under
from mmdistill.files.columns import SPLIT_NAMES
from mmdistill.names import first_few

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files."""
TRAIN, VALIDATION = SPLIT_NAMES["train"], ("val", "valid", "validation", "validate", "eval", "dev")
TEST = (*SPLIT_NAMES["test"], *VALIDATION)
"""Names of training and test folders, in any case; the first existing one counts."""
OF_DATA = "dataset|data|set|images|imgs|seg"
"""Words that may stand beside these in a folder's name, as in ``training_set`` and ``seg_test``."""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
"""Endings of files that may hold the labels of images beside them."""


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder, or its folder for training, has subfolders with images.

    This is called on any path, so it looks into few folders and does not search the whole tree.
    """
    if not folder.is_dir():
        return False
    start = split_folders(folder)[0]
    classes = class_folders(start)
    if any(map(has_images, classes)):
        return True
    # One level deeper every class must have images, so that a stray picture does not make other data an image folder.
    deeper = list(map(class_folders, classes))
    return bool(deeper) and all(any(map(has_images, subfolders)) for subfolders in deeper)


def split_folders(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the folder with the training classes, that with the test classes (None: there is none), and notes.

    Without a folder for training the classes lie in ``folder`` itself. ``dev`` is one for validation where it and that
    for training have subfolders, else a class. The notes say which images are not read, and when validation images are
    the test images.
    """
    subfolders = sorted(sub for sub in folder.iterdir() if sub.is_dir())
    train_folders, test_folders = folders_of(subfolders, TRAIN), folders_of(subfolders, TEST)
    may_be_classes = folders_of(test_folders, ("dev",))
    if may_be_classes and not (train_folders and all(map(class_folders, (train_folders[0], *may_be_classes)))):
        test_folders = [sub for sub in test_folders if sub not in may_be_classes]
    if not train_folders or not (test_folders or train_folders[0].name.lower() in TRAIN):
        return folder, None, ()
    train = _unpacked(train_folders[0])
    others = [sub for sub in subfolders if sub not in (train_folders[0], *test_folders) and _holds_images(sub)]
    if not test_folders and others and has_images(train):  # "train" is a class, e.g. of vehicles
        return folder, None, ()
    unread = [f"the images of {other.name}/ beside {train.name}/ are not read" for other in others]
    unread += loose_images(folder)
    if not test_folders:
        return train, None, tuple(unread)
    flat = [sub for sub in test_folders if has_images(sub)]
    if flat and not any(map(class_folders, test_folders)):
        return train, None, (*(f"the images of {sub.name}/ are of no class and are not read" for sub in flat), *unread)
    named = next(filter(class_folders, test_folders), test_folders[0])  # images outside of class folders have no labels
    why = f"those of {test_folders[0].name}/ are of no class" if named != test_folders[0] else "there is no test/"
    is_validation = named in folders_of([named], VALIDATION)
    called_otherwise = named.name.lower() not in TEST
    notes = [f"test: the images of {named.name}/{f', as {why}' * is_validation}"] * (is_validation or called_otherwise)
    notes += [f"the images of {other.name}/ are not read" for other in test_folders if other != named]
    return train, _unpacked(named), (*notes, *unread)


def folders_of(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    """Return the folders of a split by its ``names``, in their order; those with further words in a name come last.

    A name that starts with a dot, underscore or hyphen is none of a split: such folders are hidden, or set aside.
    """
    exact = [folder for name in names for folder in folders if folder.name.lower() == name]
    spellings = [re.compile(rf"({OF_DATA})*{name}({OF_DATA})*") for name in names]
    others = [folder for folder in folders if folder not in exact and folder.name[0] not in "._-"]
    joined = {folder: re.sub(r"[ _.-]", "", folder.name.lower()) for folder in others}
    return exact + [folder for spelling in spellings for folder in joined if spelling.fullmatch(joined[folder])]


def _unpacked(folder: Path) -> Path:
    """Return the folder, or the only one in it if that has the same name, as archives are often unpacked."""
    inside = class_folders(folder)
    return inside[0] if len(inside) == 1 and inside[0].name == folder.name else folder


def loose_images(folder: Path) -> list[str]:
    """Return a note if images lie directly in a folder of which only the subfolders are read."""
    return loose_note(folder, _is_image, "image")


def require_classes(folder: Path, train: Path, test: Path | None) -> None:
    """Check, before images are read, that the folders from :func:`split_folders` have enough subfolders.

    Raises:
        DataError: a single training class, or a test folder without subfolders.
    """
    if test is not None and not class_folders(test):
        raise DataError(
            f"{test} holds no pictures; put pictures of each class into a subfolder, or move {test.name}/ away: then a "
            "fifth of each class is held out for testing"
        )
    classes = class_folders(train)
    if len(classes) == 1 and is_image_folder(classes[0]):
        raise DataError(f"{train} holds {classes[0].name}/ alone, which holds folders of images: give {classes[0]}")
    if len(classes) == 1:
        tables = [
            file.name for place in (train, folder) for file in sorted(place.iterdir()) if file.suffix.lower() in TABLES
        ]
        hints = [f", or in Python give them with the labels of {name}: image_task((images, labels))" for name in tables]
        raise DataError(
            f"the images of {train} are all in one subfolder, {classes[0].name}/; a classification set needs at least "
            f"two classes: put the images of each into one of its own{''.join(hints[:1])}"
        )


def nested_note(train: Path) -> list[str]:
    """Return a note if all classes have the same subfolders, which may be the classes.

    Raises:
        DataError: a class is named after a split.
    """
    classes = class_folders(train)
    inside = [[sub.name for sub in class_folders(sub)] for sub in classes]
    if len(classes) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return []
    both = " and ".join(f"{sub.name}/" for sub in classes[:2])
    if any({*re.findall(r"[a-z]+", sub.name.lower())} & {*TRAIN, *TEST} for sub in classes):
        raise DataError(
            f"{train}: {both} hold the same subfolders ({first_few(inside[0])}). If these are the classes, call the "
            "folder to train on train/ and that to test on test/; if not, put all pictures of a class into one"
        )
    return [f"{both} are classes, whatever their subfolders, which are the same ({first_few(inside[0])})"]


def missing_classes(folder: Path) -> str:
    """Return in words what a folder of images without class subfolders lacks; empty for any other path."""
    if not folder.is_dir() or is_image_folder(folder):
        return ""
    start = split_folders(folder)[0]
    if not any(file.suffix.lower() in SUFFIXES for file in start.iterdir()):
        return ""
    return (
        f"{start} holds pictures but no subfolders of them; put them into one subfolder per class, or a table of their "
        "names and labels beside them (labels.csv)"
    )


def folder_inside(folder: Path) -> str:
    """Return in words where the only image folder one or two levels down is; empty without one, or with several."""
    for level in ("*", "*/*"):
        subfolders = (sub for sub in sorted(folder.glob(level)) if os.access(sub, os.R_OK) and not is_hidden(sub.name))
        found = list(filter(is_image_folder, subfolders)) if folder.is_dir() else []
        if len(found) == 1:
            return f"{folder} holds no images of classes, and {found[0]} does: give that folder"
        if found:
            break
    return ""


def images_under(folder: Path, unread: Counter[str]) -> list[str]:
    """Return the image files of a class, see :func:`~mmdistill.files.class_folders.samples_under`."""
    return samples_under(folder, _is_image, unread, noun="image", endings=", ".join(SUFFIXES))


def _holds_images(folder: Path) -> bool:
    """Return whether a folder that is not hidden, or a direct subfolder, holds an image."""
    if is_hidden(folder.name):
        return False
    return has_images(folder) or any(has_images(sub) for sub in folder.iterdir() if sub.is_dir())


def has_images(folder: Path) -> bool:
    """Return whether an image lies directly in a folder."""
    return any(_is_image(file.name) for file in folder.iterdir())


def images_in(folder: Path) -> list[Path]:
    """Return the images that lie directly in a folder."""
    return [file for file in folder.iterdir() if _is_image(file.name) and file.is_file()]


def has_classes(folder: Path) -> bool:
    """Return whether a folder, or its folder for training, has two subfolders with images."""
    return sum(map(_holds_images, class_folders(split_folders(folder)[0]))) > 1


def _is_image(name: str) -> bool:
    """Return whether a file's name is that of an image and not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
