"""Common names of columns and splits in published tables, and notes on splits, for all kinds of data."""

from collections.abc import Iterable, Mapping

from mmdistill.errors import DataError
from mmdistill.names import unknown_name

USER_COLUMNS = ("user", "user_id", "userid", "uid", "u", "reviewerid", "reviewer_id", "visitorid")
ITEM_COLUMNS = (
    *("item", "item_id", "itemid", "iid", "i", "movieid", "movie_id", "parent_asin", "asin", "product_id"),
    "business_id",
)
TEXT_COLUMNS = ("text", "sentence", "content", "question", "review", "document", "utterance", "tweet", "body")
SPLIT_COLUMNS = ("split", "fold", "set", "subset")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val"),
    "test": ("test", "testing"),
}
SPLIT_OF = {spelling: split for split, spellings in SPLIT_NAMES.items() for spelling in spellings}
"""Maps each spelling to its split."""


def known_split(key: object) -> str | None:
    """Return train, dev or test for one of their spellings, ignoring case; None for any other name."""
    return SPLIT_OF.get(str(key).strip().lower())


def split_name(key: object) -> str:
    """Return train, dev or test for one of their spellings.

    Raises:
        UnknownNameError: ``key`` is not one.
    """
    split = known_split(key)
    if split is None:
        raise unknown_name("split", str(key), list(SPLIT_OF))
    return split


def require_one_each(keys: Iterable[object]) -> None:
    """Refuse two names of the same split, since one would replace the other.

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
    """Return a note if ``count`` of the test samples are also in training, with splits as the user gave them."""
    if not count:
        return []
    return [
        f"{count:,} of the {tests:,} test {noun} are also in training, as the splits were given, so scores may be too "
        "good"
    ]


def repeated_note(count: int, total: int, noun: str) -> list[str]:
    """Return a note if ``count`` of the samples repeat earlier ones."""
    return [f"{count:,} of {total:,} {noun} occur before in the data"] if count else []


def are_hidden(labels: Iterable[object]) -> bool:
    """Return whether a split's labels are withheld (all -1), as in test splits of the Hugging Face hub."""
    return all(label == -1 for label in labels)


def class_names_of(source: object, column: str) -> tuple[str, ...] | None:
    """Return the class names in the features of a column, of Hugging Face data sets; None where there are none."""
    features = getattr(source, "features", None)
    names = getattr(features[column], "names", None) if isinstance(features, Mapping) and column in features else None
    return tuple(map(str, names)) if names else None
