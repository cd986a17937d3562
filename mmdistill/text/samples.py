"""Labelled texts one by one, in lists of pairs and in map-style data sets."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from mmdistill.checks import items_by_number
from mmdistill.errors import DataError
from mmdistill.files.tables import as_frame


class Samples(Protocol):
    """A list or a map-style torch data set of ``(text, label)``, or of dictionaries that name both."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a text with its label."""
        ...


def list_items(source: Any) -> Any:
    """Return a map-style data set as a list of its items, and a table of polars or pyarrow as a data frame.

    Other sources are returned as they are.

    Raises:
        DataError: something with a length that has no items 0, 1 and so on.
    """
    source = as_frame(source)
    is_indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    is_other = isinstance(source, Mapping | Sequence) or hasattr(source, "shape") or hasattr(source, "column_names")
    if is_other or not is_indexed:
        return source
    return items_by_number(source, f"{type(source).__name__} is no table", "(text, label)")


def are_samples(source: object) -> TypeGuard[list[Any]]:
    """Return whether a source is a list of ``(text, label)``; a list of two lists is one of texts and one of labels."""
    if not isinstance(source, list) or not source:
        return False
    kinds = (tuple, list) if len(source) > 2 else (tuple,)
    return all(isinstance(sample, kinds) and len(sample) == 2 for sample in source)


def _is_text(value: object) -> bool:
    """Return whether a value is a text or a pair of texts."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    return isinstance(value, str) or is_pair


def texts_and_labels(name: str, samples: list[Any], *, train: bool) -> tuple[tuple[list[Any], list[Any]], list[str]]:
    """Return the texts and the labels of ``(text, label)`` samples, and a note if the labels are texts as well.

    Args:
        name: the split's name, for messages.
        samples: the pairs.
        train: whether the samples are to train on; a test set may well have fewer different texts than labels.
    Raises:
        DataError: only labels are texts, or there are fewer different texts than labels, so that labels may come first.
    """
    texts, labels = ([sample[place] for sample in samples] for place in (0, 1))
    if all(map(_is_text, labels)) and not any(map(_is_text, texts)):
        raise DataError(f"{name}: pairs are (text, label); of these only the second are texts: turn them round")
    if not all(isinstance(value, str) for value in (*texts, *labels)):
        return (texts, labels), []
    if train and len({*texts}) < len({*labels}):
        raise DataError(
            f"{name}: pairs are (text, label); these begin with fewer different values ({len({*texts}):,}) than they "
            f"end with ({len({*labels}):,}), as (label, text) do: turn them round"
        )
    return (texts, labels), ["of each pair the first is read as the text, the second as its label"]
