"""What published tables call users, items and splits, and what data sets say of their columns and splits.

Here is what more than one kind of data is read by.
"""

from collections.abc import Iterable, Mapping

from mmdistill.errors import DataError
from mmdistill.names import unknown_name

USER_COLUMNS = ("user", "user_id", "userid", "uid", "u", "reviewerid", "reviewer_id", "visitorid")
ITEM_COLUMNS = (
    *("item", "item_id", "itemid", "iid", "i", "movieid", "movie_id", "asin", "parent_asin", "product_id"),
    "business_id",
)
SPLIT_COLUMNS = ("split", "fold", "set", "subset")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val"),
    "test": ("test", "testing"),
}
SPLIT_OF = {spelling: split for split, spellings in SPLIT_NAMES.items() for spelling in spellings}
"""Of each spelling."""


def known_split(key: object) -> str | None:
    """Return train, dev or test for one of their spellings, whose case does not matter; None for another name."""
    return SPLIT_OF.get(str(key).strip().lower())


def split_name(key: object) -> str:
    """Return train, dev or test for one of their spellings.

    Raises:
        UnknownNameError: it is none.
    """
    split = known_split(key)
    if split is None:
        raise unknown_name("split", str(key), list(SPLIT_OF))
    return split


def require_one_each(keys: Iterable[object]) -> None:
    """Refuse two names of one split, of which one would replace the other.

    Raises:
        DataError: naming both.
    """
    seen: dict[str, object] = {}
    for key in keys:
        split = known_split(key)
        if split in seen:
            raise DataError(f"{seen[split]!r} and {key!r} both name the {split} split; join them")
        if split is not None:
            seen[split] = key


def shared_note(count: int, tests: int, noun: str) -> list[str]:
    """Return a note where so many of the test samples, as they were given, are also in training."""
    said = "as the splits were given, so scores may be too good"
    return [f"{count:,} of the {tests:,} test {noun} are also in training, {said}"] if count else []


def repeated_note(count: int, total: int, noun: str) -> list[str]:
    """Return a note where so many of some samples occur before among them."""
    return [f"{count:,} of {total:,} {noun} occur before in the data"] if count else []


def are_hidden(labels: Iterable[object]) -> bool:
    """Return whether a split keeps its labels back, all -1, as test splits of the Hugging Face hub do."""
    return all(label == -1 for label in labels)


def class_names_of(source: object, column: str) -> tuple[str, ...] | None:
    """Return the classes that a data set says a column has, as Hugging Face's do; None where it says none."""
    features = getattr(source, "features", None)
    names = getattr(features[column], "names", None) if isinstance(features, Mapping) and column in features else None
    return tuple(map(str, names)) if names else None
