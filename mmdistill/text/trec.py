"""Read TREC's question classification as its authors publish it: lines of ``COARSE:fine question``."""

from pathlib import Path

from mmdistill.errors import DataError

FILES = {"train": "train_5500.label", "test": "TREC_10.label"}
"""The published files by split."""
COARSE = {
    "DESC": "description",
    "ENTY": "entity",
    "ABBR": "abbreviation",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
"""The coarse classes, in the order of the class indices."""


def is_published(folder: Path) -> bool:
    """Return whether a folder holds the published files."""
    return all((folder / name).is_file() for name in FILES.values())


def read_published(folder: Path) -> dict[str, tuple[list[object], list[object]]]:
    """Read questions and their coarse class names, by split.

    Raises:
        DataError: a line does not start with a known class; the message names the line.
    """
    splits: dict[str, tuple[list[object], list[object]]] = {}
    for split, name in FILES.items():
        texts, labels = splits.setdefault(split, ([], []))
        lines = (folder / name).read_text(encoding="latin-1").split("\n")  # the files are not UTF-8
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            label, _, question = line.strip().partition(" ")
            coarse = label.partition(":")[0]
            if coarse not in COARSE:
                raise DataError(
                    f"{folder / name}, line {number}, starts with {label!r}; expected one of {', '.join(COARSE)}, a "
                    "colon, a fine class and the question"
                )
            texts.append(question)
            labels.append(COARSE[coarse])
    return splits
