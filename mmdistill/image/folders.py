"""The layout of image folders: their classes, their splits, and the files that count as images."""

from collections import Counter
from pathlib import Path

from mmdistill.errors import DataError
from mmdistill.files.class_folders import class_folders, is_hidden, loose_note, samples_under

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files."""
TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation")
TEST = ("test", "testing", *VALIDATION)
"""Names of training and test folders, in any case; the first existing one counts."""

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
    if any(map(_has_images, classes)):
        return True
    # One level deeper every class must have images, so that a stray picture does not make other data an image folder.
    deeper = list(map(class_folders, classes))
    return bool(deeper) and all(any(map(_has_images, subfolders)) for subfolders in deeper)


def split_folders(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the folder with the training classes, that with the test classes (None: there is none), and notes.

    Without a folder for training the classes lie in ``folder`` itself. The notes say which images are not read, and
    when validation images are the test images.
    """
    subfolders = {sub.name.lower(): sub for sub in sorted(folder.iterdir()) if sub.is_dir()}
    train = next((subfolders[name] for name in TRAIN if name in subfolders), None)
    if train is None:
        return folder, None, ()
    test_folders = [subfolders[name] for name in TEST if name in subfolders]
    others = [sub for name, sub in subfolders.items() if name not in (*TRAIN, *TEST) and _holds_images(sub)]
    if not test_folders and others and _has_images(train):  # "train" is a class, e.g. of vehicles
        return folder, None, ()
    unread = [f"the images of {other.name}/ beside {train.name}/ are not read" for other in others]
    unread += loose_images(folder)
    if not test_folders:
        return train, None, tuple(unread)
    test = next(filter(class_folders, test_folders), test_folders[0])  # images outside of class folders have no labels
    why = f"those of {test_folders[0].name}/ are of no class" if test != test_folders[0] else "there is no test/"
    notes = [f"test: the images of {test.name}/, as {why}"] if test.name.lower() in VALIDATION else []
    notes += [f"the images of {other.name}/ are not read" for other in test_folders if other != test]
    return train, test, (*notes, *unread)


def loose_images(folder: Path) -> list[str]:
    """Return a note if images lie directly in a folder of which only the subfolders are read."""
    return loose_note(folder, _is_image, "image")


def require_classes(folder: Path, train: Path, test: Path | None) -> None:
    """Check, before images are read, that the folders from :func:`split_folders` have enough subfolders.

    Raises:
        DataError: a single training class, or a test folder without subfolders.
    """
    if test is not None and not class_folders(test):
        contents = "pictures but no subfolders of them" if _has_images(test) else "no pictures"
        raise DataError(
            f"{test} holds {contents}; put pictures of each class into a subfolder, or move {test.name}/ away: then a "
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


def missing_classes(folder: Path) -> str:
    """Return in words what a folder of images without class subfolders lacks; empty for any other path."""
    if not folder.is_dir() or is_image_folder(folder):
        return ""
    start = split_folders(folder)[0]
    if not any(file.suffix.lower() in SUFFIXES for file in start.iterdir()):
        return ""
    return f"{start} holds pictures but no subfolders of them; put them into one subfolder per class"


def images_under(folder: Path, unread: Counter[str]) -> list[str]:
    """Return the image files of a class, see :func:`~mmdistill.files.class_folders.samples_under`."""
    return samples_under(folder, _is_image, unread, noun="image", endings=", ".join(SUFFIXES))


def _holds_images(folder: Path) -> bool:
    """Return whether a folder that is not hidden, or a direct subfolder, holds an image."""
    if is_hidden(folder.name):
        return False
    return _has_images(folder) or any(_has_images(sub) for sub in folder.iterdir() if sub.is_dir())


def _has_images(folder: Path) -> bool:
    """Return whether an image lies directly in a folder."""
    return any(_is_image(file.name) for file in folder.iterdir())


def _is_image(name: str) -> bool:
    """Return whether a file's name is that of an image and not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
