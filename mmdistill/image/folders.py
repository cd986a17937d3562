"""How folders of images are laid out: where their classes and splits are, and which files count as images."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmdistill.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""How the names of image files end."""
TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation")
TEST = ("test", "testing", *VALIDATION)
"""What folders of training and of test images are called, in any case; the first name that is there counts."""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
"""How the names of files end that may hold the labels of images beside them."""


def is_image_folder(folder: Path) -> bool:
    """Whether a folder has a subfolder per class that holds images, or such folders under one for training.

    It is asked of any path, so it looks at few folders, and not through all that lies below.
    """
    if not folder.is_dir():
        return False
    start = split_folders(folder)[0]
    classes = class_folders(start)
    if any(map(_has_images, classes)):
        return True
    # One level deeper in every one, so that other data's folders with a picture somewhere are none.
    deeper = list(map(class_folders, classes))
    return bool(deeper) and all(any(map(_has_images, below)) for below in deeper)


def split_folders(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return where the classes of the training images are, and those of the test images where they have a place.

    Without a folder for training both are below the folder itself, of which a part is then held out. Last come notes
    on images for validation.
    """
    found = {sub.name.lower(): sub for sub in sorted(folder.iterdir()) if sub.is_dir()}
    train = next((found[name] for name in TRAIN if name in found), None)
    if train is None:
        return folder, None, ()
    places = [found[name] for name in TEST if name in found]
    beside = [sub for name, sub in found.items() if name not in (*TRAIN, *TEST) and _holds_images(sub)]
    if not places and beside and _has_images(train):  # a class that is called so, as of vehicles
        return folder, None, ()
    left = [f"the images of {other.name}/ beside {train.name}/ are not read" for other in beside] + loose_note(folder)
    if not places:
        return train, None, tuple(left)
    test = next(filter(class_folders, places), places[0])  # others' images are of no class
    why = f"those of {places[0].name}/ are of no class" if test != places[0] else "there is no test/"
    notes = [f"test: the images of {test.name}/, as {why}"] if test.name.lower() in VALIDATION else []
    notes += [f"the images of {other.name}/ are not read" for other in places if other != test]
    return train, test, (*notes, *left)


def class_folders(folder: Path) -> list[Path]:
    """Return the folders right below one that count, each of a class, by name."""
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not is_hidden(sub.name))


def loose_note(folder: Path) -> list[str]:
    """Return a note where images lie in a folder itself, whose subfolders are read."""
    count = sum(_is_image(file.name) and file.is_file() for file in folder.iterdir())
    return [f"{folder.name}/: {count} images beside the subfolders are not read"] if count else []


def require_classes(folder: Path, train: Path, test: Path | None) -> None:
    """Refuse places of images, as :func:`split_folders` finds them, that have too few subfolders, before any is read.

    Raises:
        DataError: images for training in one subfolder, or a place of test images without any.
    """
    if test is not None and not class_folders(test):
        held = "pictures but no subfolders of them" if _has_images(test) else "no pictures"
        raise DataError(
            f"{test} holds {held}; put pictures of each class into a subfolder, or move {test.name}/ away: then a "
            "fifth of each class is held out for testing"
        )
    classes = class_folders(train)
    if len(classes) == 1 and is_image_folder(classes[0]):
        raise DataError(f"{train} holds {classes[0].name}/ alone, which holds folders of images: give {classes[0]}")
    if len(classes) == 1:
        tables = [
            file.name for place in (train, folder) for file in sorted(place.iterdir()) if file.suffix.lower() in TABLES
        ]
        told = [f", or in Python give them with the labels of {name}: image_task((images, labels))" for name in tables]
        raise DataError(
            f"the images of {train} are all in one subfolder, {classes[0].name}/; a classification set needs at least "
            f"two classes: put the images of each into one of its own{''.join(told[:1])}"
        )


def missing_classes(folder: Path) -> str:
    """Return what a folder of images without a subfolder per class lacks, in words; nothing for any other path."""
    if not folder.is_dir() or is_image_folder(folder):
        return ""
    start = split_folders(folder)[0]
    if not any(file.suffix.lower() in SUFFIXES for file in start.iterdir()):
        return ""
    return f"{start} holds pictures but no subfolders of them; put them into one subfolder per class"


def images_under(folder: Path, unread: Counter[str]) -> list[str]:
    """Return the image files of a class, in a fixed order.

    Args:
        folder: of the class; its images may lie deeper.
        unread: counts the endings of those files that are not read, but of hidden ones.
    Raises:
        DataError: there are none.
    """
    found = []
    for place, names in sorted(_places(folder)):
        found += [os.path.join(place, name) for name in sorted(filter(_is_image, names))]
        others = (name for name in names if not name.startswith(".") and not _is_image(name))
        unread.update(os.path.splitext(name)[1].lower() for name in others)
    if not found:
        raise DataError(f"{folder} holds no image, so there is nothing of its class; add some ({', '.join(SUFFIXES)})")
    return found


def _holds_images(folder: Path) -> bool:
    """Return whether a folder that counts, or one right below it, holds an image."""
    if is_hidden(folder.name):
        return False
    return _has_images(folder) or any(_has_images(sub) for sub in folder.iterdir() if sub.is_dir())


def _has_images(folder: Path) -> bool:
    """Return whether a folder itself holds an image."""
    return any(_is_image(file.name) for file in folder.iterdir())


def _places(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Walk a folder and those below it, with the names of their files; hidden folders do not count."""
    for place, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not is_hidden(name) and not _leads_back(place, name)]
        yield place, names


def _leads_back(place: str, name: str) -> bool:
    """Return whether a folder is a link to one that it lies in, which a walk would never leave."""
    path = os.path.join(place, name)
    return os.path.islink(path) and (os.path.realpath(place) + os.sep).startswith(os.path.realpath(path) + os.sep)


def _is_image(name: str) -> bool:
    """Return whether a file's name is that of an image that counts."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_hidden(name: str) -> bool:
    """Return whether a folder is no part of the data, as that of a notebook's copies or of an archiver is none."""
    return name.startswith((".", "__"))
