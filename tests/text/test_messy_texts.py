"""Texts as people have them: in tables of Python, with repeats, with quotation marks, and with rare classes."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from mmdistill.errors import ConfigError, DataError
from mmdistill.text.data import TextData, accepts, load_text
from mmdistill.text.task import text_task

TEXTS = [f"{word} number {n}" for n in range(10) for word in ("good", "bad")]
LABELS = ["yes", "no"] * 10


class Columns:
    """As much of a data set of Hugging Face as is read."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None = None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        if names is not None:
            self.features = {name: SimpleNamespace(names=names if name == "label" else None) for name in columns}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> list[Any]:
        if name == "picture":
            raise AssertionError("a column that nobody needs is read")
        return self.columns[name]


def table(texts: list[str] = TEXTS, labels: list[Any] = LABELS) -> pd.DataFrame:
    return pd.DataFrame({"review": texts, "sentiment": labels})


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(row) for _, row in frame.iterrows()]


def notes_about(data: TextData, words: str) -> list[str]:
    return [note for note in data.notes if words in note]


def test_tables_of_python_are_read_as_files_are() -> None:
    expected = load_text((TEXTS, LABELS)).fingerprint
    columns = {"text": TEXTS, "label": LABELS, "picture": [0] * 20}
    for source in (table(), rows(table()), Columns(columns)):
        assert load_text(source).fingerprint == expected
    named = table().rename(columns={"review": "a", "sentiment": "b"})
    assert load_text(named, text_column="a", label_column="b").fingerprint == expected
    with pytest.raises(DataError, match="the table has no column that looks like the text"):
        load_text(named)
    with pytest.raises(ConfigError, match="the table has no column 'c'"):
        load_text(named, text_column="c")
    assert text_task(table(), encoder="tfidf").data.fingerprint == expected


def test_tables_of_python_may_name_splits() -> None:
    split = ["train"] * 16 + ["test"] * 4
    for source in (table().assign(split=split), rows(table().assign(split=split))):
        assert load_text(source).test.texts == tuple(TEXTS[16:])
    columns = Columns({"text": TEXTS, "label": LABELS, "split": split})
    assert load_text(columns).test.texts == tuple(TEXTS[16:])


def test_tables_of_python_go_by_name_of_split() -> None:
    train, test = table(TEXTS[:16], LABELS[:16]), table(TEXTS[16:], LABELS[16:])
    expected = load_text({"train": (TEXTS[:16], LABELS[:16]), "test": (TEXTS[16:], LABELS[16:])})
    for convert in (lambda frame: frame, rows):
        found = load_text({"train": convert(train), "test": convert(test)})
        assert (found.fingerprint, found.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)
    mixed = load_text({"train": train, "test": (TEXTS[16:], LABELS[16:])})
    assert mixed.test_fingerprint == expected.test_fingerprint
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        load_text({"trian": train, "test": test})


READ = "text_column (--text-column) and label_column (--label-column) name others"


def test_guessed_columns_beside_others_are_said() -> None:
    frame = table().assign(category=["toys", "books"] * 10, title="t", id=range(20))
    for source in (frame, rows(frame), Columns({name: frame[name].tolist() for name in frame})):
        found = load_text(source)
        assert found.class_names == ("no", "yes")  # a category is a class where nothing is called more clearly
        assert found.notes[0] == f"texts from 'review', classes from 'sentiment'; not read: 'category', 'title'; {READ}"
    assert load_text(frame, label_column="category").notes[0].startswith("texts from 'review', classes from 'category'")
    assert not notes_about(load_text(frame, text_column="title,review", label_column="category"), "not read")
    assert not notes_about(load_text(table().assign(id=range(20), split=["train"] * 16 + ["test"] * 4)), "not read")
    pairs = load_text(frame.assign(premise="p", hypothesis=TEXTS), label_column="sentiment")
    assert pairs.notes[0].startswith("texts from 'premise' and 'hypothesis', classes from 'sentiment'; not read: 'rev")


def test_other_splits_are_read_by_the_columns_of_the_training_split() -> None:
    test = pd.DataFrame({"category": ["toys"] * 4, "sentiment": LABELS[:4], "text": "?", "review": list("abcd")})
    found = load_text({"test": test.assign(label=1), "train": table()})
    assert (found.test.texts, found.test.labels.tolist()) == (("a", "b", "c", "d"), [1, 0, 1, 0])
    assert not notes_about(found, "not read")
    other = test[["review"]].assign(Class=LABELS[:4])
    (note,) = notes_about(load_text({"train": table(), "test": other}), "classes from")
    assert note == f"test: texts from 'review', classes from 'Class'; {READ}"


def write_split(folder: Path, parts: dict[str, pd.DataFrame]) -> Path:
    for name, part in parts.items():
        part.to_csv(folder / f"{name}.csv", index=False)
    return folder


def as_data_sets(parts: dict[str, pd.DataFrame]) -> dict[str, Columns]:
    return {name: Columns({str(key): part[key].tolist() for key in part}) for name, part in parts.items()}


def as_rows(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([part.assign(split=name) for name, part in parts.items()])


LEFT_OUT = "the test split has no labels and is left out"
VALIDATED = "test: the validation split, as there is no test split with labels"


@pytest.mark.parametrize("layout", ["folder", "tables", "data sets", "split column"])
@pytest.mark.parametrize("hidden", [-1, "", "no column"])
def test_a_test_split_without_labels_is_left_out_in_every_layout(tmp_path: Path, layout: str, hidden: object) -> None:
    unlabelled = pd.DataFrame({"review": ["x", "y"], "sentiment": hidden})
    if hidden == "no column":
        unlabelled = unlabelled[["review"]]
    parts = {"test": unlabelled, "train": table()}

    def read(parts: dict[str, pd.DataFrame]) -> TextData:
        makers = {"folder": lambda: write_split(tmp_path, parts), "tables": lambda: parts}
        makers |= {"data sets": lambda: as_data_sets(parts), "split column": lambda: as_rows(parts)}
        return load_text(makers[layout]())

    found = read(parts)
    assert found.notes[:2] == (LEFT_OUT, "test: 20% of the data, stratified, seed 0")
    assert sum(len(part.texts) for part in (found.train, found.dev, found.test)) == 20
    validated = read({**parts, "val": table(["a", "b"], ["no", "yes"])})
    assert validated.notes[:2] == (LEFT_OUT, VALIDATED)
    assert validated.test.texts == ("a", "b")


def test_a_label_column_of_nearly_the_name_is_no_missing_one() -> None:
    stars = pd.DataFrame({"text": TEXTS, "stars": LABELS})
    test = pd.DataFrame({"text": ["a", "b"], "Stars": ["no", "yes"]})
    for convert in (lambda parts: parts, as_data_sets):
        found = load_text(convert({"train": stars, "test": test}), label_column="stars")
        assert found.test.labels.tolist() == [0, 1]
        assert any("classes from 'Stars'" in note for note in found.notes)
        named = {"text_column": "text", "label_column": "stars"}
        assert (
            load_text(convert({"train": stars, "test": test}), **named).notes[0].startswith("test: texts from 'text'")
        )
        with pytest.raises(ConfigError, match=r"test has no column 'stars'; did you mean 'starts'"):
            load_text(convert({"train": stars, "test": test.rename(columns={"Stars": "starts"})}), label_column="stars")
        with pytest.raises(DataError, match=r"test has no column that looks like the label \(is it 'labels_'\?\)"):
            load_text(convert({"train": table(), "test": test.rename(columns={"Stars": "labels_"})}))
        found = load_text(convert({"train": stars, "test": test[["text"]]}), label_column="stars")
        assert found.notes[:2] == ("test has no column 'stars' (there are: 'text')", LEFT_OUT)


@pytest.mark.parametrize("minus", [-1, "-1", -1.0])
def test_a_class_of_minus_one_is_not_withheld(minus: object) -> None:
    train = (TEXTS, [minus, 1] * 10)
    found = load_text({"train": train, "test": (["a", "b"], [minus, minus])})
    assert (found.test.texts, found.test.labels.tolist()) == (("a", "b"), [0, 0])
    assert load_text({"train": train, "test": (["a", "b"], [None, None])}).notes[0] == LEFT_OUT


def test_the_least_clear_names_of_classes_are_guessed_last() -> None:
    frame = pd.DataFrame({"text": TEXTS, "y": range(20), "target": range(20), "category": LABELS})
    assert load_text(frame).class_names == ("no", "yes")
    frame = frame.rename(columns={"category": "kind"})
    with pytest.raises(
        DataError, match=r"to predict.* texts from 'text', classes from 'target'; not read: 'y', 'kind'"
    ):
        load_text(frame)
    with pytest.raises(DataError, match=r"label column$"):
        load_text(frame, text_column="text", label_column="y")


def test_a_validation_split_alone_is_tested_on(tmp_path: Path) -> None:
    parts = {"train": table(), "validation": table(["a", "b"], ["no", "yes"])}
    for source in (parts, write_split(tmp_path, parts), {"train": (TEXTS, LABELS), "dev": (["a", "b"], ["no", "yes"])}):
        found = load_text(source)
        assert (found.test.texts, found.notes[0]) == (("a", "b"), VALIDATED)


def test_a_column_of_the_other_role_is_not_suggested() -> None:
    with pytest.raises(DataError, match=r"looks like the label; there are: 'index', 'sentence'\. Name it"):
        load_text(pd.DataFrame({"index": range(20), "sentence": TEXTS}))
    with pytest.raises(DataError, match=r"looks like the label \(is it 'labels_'\?\)"):
        load_text(pd.DataFrame({"labels_": LABELS, "sentence": TEXTS}))


def test_errors_show_little_of_long_texts_and_labels() -> None:
    long = ["so " * 300] * 20
    for columns in ({"text": [long] * 20, "label": LABELS}, {"text": TEXTS, "label": [long] * 20}, {long[0]: LABELS}):
        with pytest.raises(DataError) as found:
            load_text(pd.DataFrame(columns))
        assert len(str(found.value)) < 600
    with pytest.raises(DataError) as found:
        load_text({"train": (TEXTS, LABELS), "test": (["x"], [long[0]])})
    assert len(str(found.value)) < 300


def test_data_sets_with_columns_bring_class_names_and_hidden_labels() -> None:
    names = ["bad", "good"]
    train = Columns({"sentence": TEXTS, "label": [1, 0] * 10}, names)
    assert load_text(train).class_names == ("bad", "good")
    parts = {
        "train": train,
        "validation": Columns({"sentence": ["x", "y"], "label": [1, 0]}, names),
        "test": Columns({"sentence": ["z"], "label": [-1]}, names),
        "unsupervised": Columns({"sentence": ["w"], "label": [-1]}, names),
    }
    found = load_text(parts)
    assert found.class_names == ("bad", "good")
    assert found.test.texts == ("x", "y")
    assert notes_about(found, "the validation split, as there is no test split with labels")
    assert load_text(parts, class_names=("low", "high")).class_names == ("low", "high")


def test_bad_cells_of_tables_are_named_by_their_row() -> None:
    with pytest.raises(DataError, match="row 3 has no text"):
        load_text(table([*TEXTS[:2], float("nan"), *TEXTS[3:]]))  # type: ignore[list-item]
    with pytest.raises(DataError, match="row 2 has no label"):
        load_text([{"text": "a", "label": 1}, {"text": "b"}])
    with pytest.raises(DataError, match="of these only the second are texts"):
        load_text(list(zip(range(20), LABELS, strict=True)))
    for source in ([], [TEXTS, LABELS]):
        with pytest.raises(ConfigError, match="or a list with a dictionary per row"):
            load_text(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_json_is_read(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(rows(table()), indent=indent))
    assert accepts(path)
    assert load_text(path).fingerprint == load_text((TEXTS, LABELS)).fingerprint
    path.write_text(json.dumps([{"user": 1, "item": 2}], indent=indent))
    assert not accepts(path)  # these are interactions
    path.write_text("[]")
    with pytest.raises(DataError, match="holds no rows"):
        load_text(path)


def test_damaged_parquet_files_and_those_that_pandas_cannot_read_here_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").touch()
    with pytest.raises(DataError, match=r"needs pyarrow to be read: install|cannot be read as a parquet table"):
        load_text(tmp_path / "x.parquet")


def test_repeats_are_said_and_stay_on_one_side_of_splits_made_here() -> None:
    data = load_text((TEXTS * 3, LABELS * 3))
    assert data.notes[-1] == "40 of 60 texts occur before in the data"
    parts = [set(part.texts) for part in (data.train, data.dev, data.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set(TEXTS))
    assert sum(len(part.texts) for part in (data.train, data.dev, data.test)) == 60
    pairs = [("the same", text) for text in TEXTS]  # which are other pairs
    assert not notes_about(load_text((pairs, LABELS)), "texts")
    assert not notes_about(load_text((TEXTS, LABELS)), "texts")


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_repeated_text_stays_in_training(seed: int) -> None:
    texts, labels = [*TEXTS, "rare", "rare", "rare", "both", "both"], [*LABELS, "odd", "odd", "odd", "yes", "no"]
    data = load_text((texts, labels), seed=seed)
    assert data.train.texts.count("rare") == 3
    parts = [set(part.texts) for part in (data.train, data.dev, data.test)]
    assert sum(map(len, parts)) == len(set(texts))
    assert notes_about(data, "no test text is of class 'odd'")


def test_leaks_of_given_splits_are_said() -> None:
    given = load_text({"train": (TEXTS, LABELS), "test": (TEXTS[:3], LABELS[:3])})
    assert notes_about(given, "also in training") == [
        "3 of the 3 test texts are also in training, as the splits were given, so scores may be too good"
    ]
    assert len(given.train.texts) + len(given.dev.texts) == 20


def test_classes_without_test_texts_are_said() -> None:
    rare = load_text(([*TEXTS, "odd one"], [*LABELS, "maybe"]))
    (note,) = notes_about(rare, "no test text")
    assert "'maybe'" in note
    assert "'yes'" not in note
    given = load_text({"train": (TEXTS, LABELS), "test": (["x"], ["no"])})
    assert "'yes'" in notes_about(given, "no test text")[0]
    many = [str(n) for n in range(12) for _ in (0, 1)]
    told = load_text({"train": ([f"t{n}" for n in range(24)], many), "test": (["x"], ["0"])})
    assert "and 6 more" in notes_about(told, "no test text")[0]


def test_quoted_fields_of_a_tsv_file_are_said(tmp_path: Path) -> None:
    quoted = [f'he said "{text}" to me' for text in TEXTS]
    path = tmp_path / "all.tsv"
    table(quoted).to_csv(path, sep="\t", index=False)  # which doubles the inner marks and adds some around
    (note,) = notes_about(load_text(path), "quotation marks")
    assert note.startswith("all.tsv: 20 of 20 texts")
    table(quoted).to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_NONE)
    assert not notes_about(load_text(path), "quotation marks")
    table([f'"{text}" and "so on"' for text in TEXTS]).to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_NONE)
    assert not notes_about(load_text(path), "quotation marks")
    for part in ("train", "test"):
        table(quoted).to_csv(tmp_path / f"{part}.tsv", sep="\t", index=False)
    assert [note.split(":")[0] for note in notes_about(load_text(tmp_path), "quotation")] == ["train.tsv", "test.tsv"]
    table(quoted).to_csv(tmp_path / "all.csv", index=False)
    assert not notes_about(load_text(tmp_path / "all.csv"), "quotation")


def test_a_quoted_text_of_two_lines_in_a_tsv_file_is_what_the_error_says(tmp_path: Path) -> None:
    path = tmp_path / "all.tsv"
    table([f"{text}\nand more" for text in TEXTS]).to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match=r"row 1 has no label, .* save texts of several lines as CSV"):
        load_text(path)
    path.write_text("text\tlabel\nplain\n")
    with pytest.raises(DataError, match="row 1 has no label"):
        load_text(path)


def test_two_names_of_one_split_are_refused() -> None:
    table = pd.DataFrame({"text": ["a b", "c d"] * 20, "label": [0, 1] * 20})
    with pytest.raises(DataError, match="'train' and 'training' both name the train split"):
        load_text({"train": table, "training": table, "test": table})


def test_repeated_columns_are_named() -> None:
    table = pd.DataFrame({"text": ["a b", "c d"] * 20, "label": [0, 1] * 20})
    with pytest.raises(DataError, match=r"has 2 columns 'label'"):
        load_text(pd.concat([table, table[["label"]]], axis=1))


def test_columns_that_pandas_numbers_are_named_by_their_numbers() -> None:
    rows = [row for n in range(20) for row in ((f"a {n}", "x"), (f"c {n}", "y"))]
    assert load_text(pd.DataFrame(rows), text_column=0, label_column=1).class_names == ("x", "y")  # type: ignore[arg-type]


@pytest.mark.parametrize(("rare", "parts"), [(2, (1, 0, 1)), (3, (2, 0, 1)), (5, (4, 0, 1)), (6, (4, 1, 1))])
def test_a_rare_class_keeps_its_texts_for_training(rare: int, parts: tuple[int, ...]) -> None:
    data = load_text(([*TEXTS, *(f"odd {row}" for row in range(rare))], [*LABELS, *["odd"] * rare]))
    index = data.class_names.index("odd")
    assert tuple(part.labels.tolist().count(index) for part in (data.train, data.dev, data.test)) == parts
    told = notes_about(data, "no validation text is of class 'odd', so what validation chooses takes no account of it")
    assert bool(told) == (parts[1] == 0)


def test_where_all_classes_are_rare_each_is_validated() -> None:
    data = load_text((TEXTS[:6], LABELS[:6]))
    assert [sorted(part.labels.tolist()) for part in (data.train, data.dev, data.test)] == [[0, 1]] * 3
    repeated = load_text({"train": (["a"] * 9 + TEXTS[:3], ["no"] * 9 + ["yes"] * 3), "test": (["x"], ["no"])})
    assert repeated.dev.texts


def test_labels_that_are_one_number_or_word_written_differently_are_noted() -> None:
    labels = ["2", "2.0", "Good", "GOOD", "3.5"] * 4
    assert notes_about(load_text((TEXTS, labels)), "written") == [
        "classes that may be one, written differently: '2' and '2.0', 'GOOD' and 'Good'"
    ]
    for fine in (["2.5", "2", "3.0", "20"] * 5, [2, 2.0, 3, 3.0] * 5):
        assert not notes_about(load_text((TEXTS, fine)), "written")
    named = {"test": (TEXTS[:2], ["A", "a"]), "train": (TEXTS, ["A", "a"] * 10)}
    assert not notes_about(load_text(named, class_names=["A", "a"]), "written")
