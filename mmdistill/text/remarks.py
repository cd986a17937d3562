"""Notes on texts that are usable but doubtful."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from mmdistill.files.classes import is_missing_word
from mmdistill.files.columns import repeated_note, shared_note
from mmdistill.names import first_few
from mmdistill.text.encoder import PAIR
from mmdistill.text.tables import is_unquoted


def repeats(texts: Sequence[str]) -> list[str]:
    """Return a note if texts occur more than once."""
    return repeated_note(len(texts) - len(set(texts)), len(texts), "texts")


def leaks(train: Sequence[str], test: Sequence[str]) -> list[str]:
    """Return a note if the given test split shares texts with the training split."""
    known = set(train)
    return shared_note(sum(text in known for text in test), len(test), "texts")


def missing_texts(texts: Iterable[str]) -> list[str]:
    """Return a note for each spelling of a missing value that occurs as a text or as one text of a pair."""
    found = Counter(part for text in texts for part in text.split(PAIR) if is_missing_word(part))
    return [
        f"1 text is {word!r}, which may stand for a missing one"
        if count == 1
        else f"{count:,} texts are {word!r}, which may stand for missing ones"
        for word, count in found.items()
    ]


def alike_classes(names: Sequence[str]) -> list[str]:
    """Return a note if class names are the same number, or the same word apart from capitals."""
    found = dict[str, list[str]]()
    for name in names:
        found.setdefault(_folded(name), []).append(repr(name))
    twice = [" and ".join(own) for own in found.values() if len(own) > 1]
    return [f"classes that may be one, written differently: {first_few(twice)}"] if twice else []


def are_numbers(names: Iterable[str]) -> bool:
    """Return whether all class names are numbers."""
    return bool(pd.to_numeric(pd.Series([*names]), errors="coerce").notna().all())


def _folded(name: str) -> str:
    """Return a class name in lower case, and a whole number without its fraction."""
    return re.sub(r"(?<=\d)\.0+$", "", name.casefold())


def quoted(texts: Sequence[object], path: Path) -> list[str]:
    """Return a note if texts of a tab-separated file are quoted like those of CSV files."""
    if not is_unquoted(path):
        return []
    count = sum(isinstance(text, str) and _is_quoted(text) for text in texts)
    if not count:
        return []
    return [
        f"{path.name}: {count:,} of {len(texts):,} texts stand in quotation marks, which are part of the text where "
        "tabs separate; where these are not meant, save the table as CSV with commas"
    ]


def _is_quoted(text: str) -> bool:
    """Return whether a text starts and ends with a quotation mark, with only doubled ones in between."""
    return len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', "")
