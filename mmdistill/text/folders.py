"""Texts as files, in a subfolder for each class."""

import os
from collections import Counter
from pathlib import Path

from mmdistill.errors import DataError
from mmdistill.files.class_folders import class_folders, loose_note, samples_under, unread_notes
from mmdistill.files.columns import known_split, require_one_each
from mmdistill.files.decoding import HEAD_BYTES, decoded
from mmdistill.names import first_few
from mmdistill.text.checks import WHOLE
from mmdistill.text.inputs import Raw, RawSplit

ENDINGS = (".txt", "")
"""Endings of text files; those of 20 Newsgroups have none."""
UNLABELLED = ("unsup", "unsupervised", "unlabeled", "unlabelled")
"""Names of folders, in lower case, whose texts are of no class."""


def is_text_folder(folder: Path) -> bool:
    """Return whether a folder, or its folder for training, has subfolders of text files for at least two classes."""
    classes = _labelled(_split_folders(folder).get("train", folder))
    return len(classes) > 1 and not any(known_split(sub.name) for sub in classes) and all(map(_holds_texts, classes))


def read_text_folder(folder: Path) -> Raw:
    """Read texts, without the blanks around them, whose classes are the names of their folders.

    Raises:
        DataError: two folders of one split, a class that is called like a split or without a text, an empty file, or
            one that is not UTF-8.
    """
    parts, subfolders, notes = _split_folders(folder), class_folders(folder), list[str]()
    if parts:
        require_one_each(sub.name for sub in subfolders)
        notes += [f"{sub.name}/ beside the splits is not read" for sub in subfolders if sub not in parts.values()]
        notes += loose_note(folder, _is_text, "text")
    splits: dict[str, RawSplit] = {}
    for split, part in (parts or {WHOLE: folder}).items():
        classes = _labelled(part)
        if misplaced := [sub for sub in classes if known_split(sub.name)]:
            raise DataError(f"{misplaced[0]} is called like a split, and a class was expected; move or rename it")
        if split in (WHOLE, "train"):
            notes.append(f"classes are the folders {first_few([sub.name for sub in classes])}")
        unlabelled = [sub for sub in class_folders(part) if sub not in classes]
        notes += [f"the texts of {part.name}/{sub.name}/ have no class and are not read" for sub in unlabelled]
        notes += loose_note(part, _is_text, "text")
        if classes:
            splits[split], unread = _read_classes(classes)
            notes += unread_notes(part, unread)
    return Raw(splits, notes=tuple(notes))


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each split; empty if there is none for training, so that the classes lie in ``folder``."""
    found = {split: sub for sub in class_folders(folder) if (split := known_split(sub.name))}
    return found if "train" in found and class_folders(found["train"]) else {}


def _labelled(folder: Path) -> list[Path]:
    """Return the folders of the classes in a folder, without those of texts of no class."""
    return [sub for sub in class_folders(folder) if sub.name.lower() not in UNLABELLED]


def _read_classes(classes: list[Path]) -> tuple[RawSplit, Counter[str]]:
    """Return the texts and labels of class folders, and the endings of files that are not read."""
    texts, labels, empty, unread = list[object](), list[object](), list[str](), Counter[str]()
    unreadable = list[DataError]()
    for folder in classes:
        paths = samples_under(folder, _is_text, unread, noun="text", endings=".txt, or without an ending")
        for path in paths:
            try:
                text = decoded(Path(path)).strip()
            except DataError as error:
                unreadable.append(error)
                continue
            texts.append(text)
            empty += [] if text else [path]
        labels += [folder.name] * len(paths)
    if unreadable:
        raise DataError(f"{unreadable[0]} ({len(unreadable):,} such files)") from unreadable[0]
    if empty:
        raise DataError(f"{empty[0]} holds no text ({len(empty):,} such files); remove or mend them")
    return (texts, labels), unread


def _holds_texts(folder: Path) -> bool:
    """Return whether most files directly in a folder are texts, and the first of them holds no binary data."""
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    texts = [name for name in names if _is_text(name)]
    return 2 * len(texts) > len(names) and "\0" not in decoded(folder / texts[0], HEAD_BYTES)


def _is_text(name: str) -> bool:
    """Return whether a file's name is that of a text and not hidden."""
    return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith(".")
