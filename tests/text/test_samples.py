"""Texts in Python in the forms in which notebooks have them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset, Subset

from mmdistill.errors import ConfigError, DataError
from mmdistill.text.data import TextData, load_text

TEXTS = [f"text number {i}" for i in range(20)]
WORDS = ["yes", "no"] * 10
NUMBERS = [1, 0] * 10


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Named:
    def __init__(self, parts: dict[str, Any]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]


def as_pairs(texts: list[Any], labels: list[Any]) -> list[Any]:
    return list(zip(texts, labels, strict=True))


def equal(found: TextData, expected: TextData) -> bool:
    return (found.fingerprint, found.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)


def test_texts_with_their_labels_are_listed_or_in_a_data_set() -> None:
    expected, pairs = load_text((TEXTS, NUMBERS)), as_pairs(TEXTS, NUMBERS)
    named = Items([{"text": text, "label": label} for text, label in pairs])
    for source in (pairs, [list(pair) for pair in pairs], Items(pairs), Subset(Items(pairs), range(20)), named):
        assert equal(load_text(source), expected)
    assert load_text(as_pairs(TEXTS, [torch.tensor(label) for label in NUMBERS])).fingerprint == expected.fingerprint
    split = load_text((TEXTS[:14], NUMBERS[:14]), test=(TEXTS[14:], NUMBERS[14:]))
    for kind in (list, Items):
        train, test = kind(pairs[:14]), kind(pairs[14:])
        assert equal(load_text({"train": train, "test": test}), split)
        assert equal(load_text(train, test=test), split)
    doubles = list(zip(TEXTS, TEXTS[::-1], strict=True))
    assert equal(load_text(as_pairs(doubles, NUMBERS)), load_text((doubles, NUMBERS)))
    with pytest.raises(DataError, match="row 2 has no text but 3"):
        load_text([("a", 0), (3, 1), ("b", 1)])
    with pytest.raises(DataError, match="row 1 has no text"):
        load_text([(None, 0), ("a", 1), ("b", 1)])
    with pytest.raises(ConfigError, match="text_column"):
        load_text(pairs, text_column="a")


def test_of_two_words_the_first_is_the_text_and_a_label_in_its_place_is_refused() -> None:
    found = load_text(as_pairs(TEXTS, WORDS))
    assert equal(found, load_text((TEXTS, WORDS)))
    assert "of each pair the first is read as the text, the second as its label" in found.notes
    with pytest.raises(DataError, match=r"pairs are \(text, label\); these begin with fewer different values"):
        load_text(as_pairs(WORDS, TEXTS))
    for source in (as_pairs(NUMBERS, TEXTS), Items(as_pairs(NUMBERS, TEXTS)), [(0, ("a", "b")), (1, ("c", "d"))]):
        with pytest.raises(DataError, match=r"pairs are \(text, label\).*turn them round"):
            load_text(source)


def test_the_order_of_texts_and_labels_is_seen_and_noted_once() -> None:
    found = load_text(as_pairs(TEXTS, WORDS), test=[("good", "yes"), ("good", "no")])
    assert equal(found, load_text((TEXTS, WORDS), test=(["good", "good"], ["yes", "no"])))
    assert [note.startswith("of each pair") for note in found.notes].count(True) == 1


def test_what_holds_no_texts_and_labels_is_named() -> None:
    expected = r"test: expected a pair \(texts, labels\), a list or data set of \(text, label\), or a table, got "
    for test, kind in ((load_text((TEXTS, NUMBERS)), "TextData"), (5, "int"), (iter(TEXTS), "list_iterator")):
        with pytest.raises(DataError, match=expected + kind):
            load_text((TEXTS, NUMBERS), test=test)
    with pytest.raises(DataError, match=r"Named.*by number from 0.*KeyError: 0"):
        load_text((TEXTS, NUMBERS), test=Named({"texts": TEXTS, "labels": NUMBERS}))


def test_two_pairs_are_to_train_and_to_test_on() -> None:
    train, test = (TEXTS[:14], NUMBERS[:14]), (TEXTS[14:], NUMBERS[14:])
    expected = load_text(train, test=test)
    arrays = [(np.array(texts), pd.Series(labels)) for texts, labels in (train, test)]
    tuples = tuple((tuple(texts), tuple(labels)) for texts, labels in (train, test))
    for source in ((train, test), [train, test], [list(train), list(test)], tuple(arrays), tuples):
        assert equal(load_text(source), expected)
    with pytest.raises(DataError, match="train: 14 texts but 13 labels"):
        load_text(((TEXTS[:14], NUMBERS[:13]), test))
    with pytest.raises(DataError, match="test: 6 texts but 5 labels"):
        load_text((train, (TEXTS[14:], NUMBERS[14:19])))
    with pytest.raises(ConfigError, match="other sources bring their own"):
        load_text((train, test), test=test)
    two = [("a b", "c d"), ("e f", "g h")]
    with pytest.raises(DataError, match="too few different texts"):
        load_text((two, [0, 1]))


class PolarsType:
    def __init__(self, values: list[Any]) -> None:
        self._kinds = {type(value) for value in values} - {type(None)}
        if self._kinds == {list}:
            self.inner = float

    def is_integer(self) -> bool:
        return self._kinds == {int}


class PolarsColumn:
    def __init__(self, values: list[Any]) -> None:
        self.dtype, self._values = PolarsType(values), values

    def null_count(self) -> int:
        return self._values.count(None)

    def to_list(self) -> list[Any]:
        assert not hasattr(self.dtype, "inner"), "large"
        return self._values

    def to_numpy(self) -> Any:
        return np.array(self._values)


class Polars:
    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self.shape = list(columns), (len(next(iter(columns.values()))), len(columns))
        self._columns = columns

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def to_dicts(self) -> list[dict[str, Any]]:
        raise AssertionError("slow")

    def to_dict(self) -> dict[str, PolarsColumn]:
        return {name: PolarsColumn(values) for name, values in self._columns.items()}


class Arrow:
    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.column_names, self._columns = list(columns), columns

    def __getitem__(self, name: str) -> Any:
        return [object() for _ in self._columns[name]]

    def to_pydict(self) -> dict[str, list[Any]]:
        raise AssertionError("large")

    def to_pandas(self, *, integer_object_nulls: bool = False, ignore_metadata: bool = False) -> pd.DataFrame:
        assert ignore_metadata, "the columns of an index would be missing"
        kind = object if integer_object_nulls else None
        return pd.DataFrame({name: pd.Series(values, dtype=kind) for name, values in self._columns.items()})


@pytest.mark.parametrize("kind", [Polars, Arrow])
def test_tables_of_polars_and_pyarrow_are_read_as_those_of_pandas(kind: Any) -> None:
    table = {"text": TEXTS, "label": WORDS, "id": list(range(20)), "point": [[0.5, 1.0]] * 20}
    expected = load_text(pd.DataFrame(table))
    assert equal(load_text(kind(table)), expected)
    train, test = ({name: column[part] for name, column in table.items()} for part in (slice(14), slice(14, 20)))
    split = load_text(pd.DataFrame(train), test=pd.DataFrame(test))
    assert equal(load_text(kind(train), test=kind(test)), split)
    assert equal(load_text({"train": kind(train), "test": kind(test)}), split)


@pytest.mark.parametrize("kind", [Polars, Arrow])
def test_large_labels_among_missing_ones_are_not_merged(kind: Any) -> None:
    classes = [7, 2**60 + 2, 2**60 + 4]
    table = {"text": [f"text {i}" for i in range(60)], "label": classes * 16 + [None] * 12}
    table |= {"split": ["train"] * 48 + ["test"] * 12}
    assert load_text(kind(table)).class_names == tuple(sorted(map(str, classes)))


def test_columns_and_one_hot_rows_are_labels() -> None:
    expected, note = load_text((TEXTS, NUMBERS)), "data: one-hot labels are read as classes"
    column = np.array(NUMBERS)[:, None]
    for labels in (column, torch.tensor(column), pd.DataFrame({"label": NUMBERS}), [[label] for label in NUMBERS]):
        found = load_text((TEXTS, labels))
        assert equal(found, expected)
        assert note not in found.notes
    assert load_text((TEXTS, np.array(WORDS)[:, None])).class_names == ("no", "yes")
    array, frame = np.eye(2)[NUMBERS], pd.get_dummies(pd.Series(NUMBERS))
    lists = (array.tolist(), list(map(tuple, array.tolist())), list(array), list(torch.eye(2)[NUMBERS]))
    for rows in (array, torch.eye(2)[NUMBERS], frame.values, frame, array.astype(np.longdouble), *lists):
        found = load_text((TEXTS, rows))
        assert equal(found, expected)
        assert note in found.notes
    for rows in (
        np.ones((20, 2)),
        np.full((20, 2), 0.5),
        np.array([["a", "b"]] * 20),
        [[0], [0, 1]] * 10,
        [[0.5, 0.5]] * 20,
    ):
        with pytest.raises(DataError, match="where one class per text is expected"):
            load_text((TEXTS, rows))


def test_texts_may_be_data_frames() -> None:
    frame = pd.DataFrame({"text": TEXTS, "further": TEXTS[::-1]})
    assert equal(load_text((frame[["text"]], NUMBERS)), load_text((TEXTS, NUMBERS)))
    assert equal(load_text((frame, NUMBERS)), load_text((as_pairs(TEXTS, TEXTS[::-1]), NUMBERS)))
    with pytest.raises(DataError, match="row 1 holds 3 texts"):
        load_text((frame.assign(third=TEXTS), NUMBERS))


def test_labels_in_bytes_are_words() -> None:
    assert load_text((TEXTS, np.array(WORDS).astype(bytes))).class_names == ("no", "yes")


def test_only_numbers_look_like_no_classes() -> None:
    texts = [f"text {i}" for i in range(40)]
    with pytest.raises(DataError, match="40 of 20 classes") as found:
        load_text((texts, [f"intent {i // 2}" for i in range(40)]))
    assert "numbers" not in str(found.value)
    assert 'to hold out a dev split; give one, as in {"train": (texts, labels), "dev": ...}' in str(found.value)
    with pytest.raises(DataError, match="40 of 40 classes, which look like numbers to predict and not like classes"):
        load_text((texts, [f"{i}.5" for i in range(40)]))
