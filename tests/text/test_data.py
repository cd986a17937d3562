import builtins
import gzip
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mmdistill import registry
from mmdistill.errors import ConfigError, DataError
from mmdistill.files.classes import EMPTY
from mmdistill.text.data import TextSplit, accepts, load_text
from mmdistill.text.encoder import PAIR
from mmdistill.text.remarks import missing_texts
from mmdistill.text.tables import may_hold_texts
from mmdistill.text.task import text_task
from mmdistill.text.token_task import token_task
from tests.text.corpus import sentences, write_tsv

TEXTS = [f"text number {i}" for i in range(20)]
LABELS = ["yes", "no"] * 10


def test_pair_is_split_by_class_with_a_stated_seed() -> None:
    data = load_text((TEXTS, LABELS), seed=3)
    assert data.class_names == ("no", "yes")
    assert len(data.train.texts) + len(data.dev.texts) + len(data.test.texts) == 20
    parts = [data.train, data.dev, data.test]
    for part in parts:
        assert torch.bincount(part.labels, minlength=2).min() > 0
    joined = [text for part in parts for text in part.texts]
    assert sorted(joined) == sorted(TEXTS)
    assert all("seed 3" in note for note in data.notes)
    assert load_text((TEXTS, LABELS), seed=3).train.texts == data.train.texts
    assert load_text((TEXTS, LABELS), seed=4).train.texts != data.train.texts
    tested = [load_text((TEXTS, LABELS), test=(["a", "b"], ["no", "yes"]), seed=seed) for seed in (3, 4)]
    assert tested[0].dev.texts != tested[1].dev.texts


def test_repeats_stay_together_unless_a_test_split_is_given() -> None:
    texts, labels = [text for text in TEXTS[:10] for _ in "1234"], [label for label in LABELS[:10] for _ in "1234"]
    whole = load_text((texts, labels))
    parts = [{*part.texts} for part in (whole.train, whole.dev, whole.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    tested = load_text((texts, labels), test=(["a", "b"], ["no", "yes"]))
    assert len({*tested.dev.texts} & {*tested.train.texts}) == len({*tested.dev.texts}) > 2


def test_bytes_are_those_of_training_texts_in_utf8_and_of_their_labels() -> None:
    data = load_text(
        {"train": (["é", "ab", "短い"], [0, 1, 1]), "dev": (["x", "y"], [0, 1]), "test": (["x", "y"], [0, 1])}
    )
    assert data.stored_bytes == 2 + 2 + 6 + 3


def test_numeric_labels_sort_as_numbers_and_floats_lose_their_fraction() -> None:
    data = load_text((TEXTS, [10.0, 2.0] * 10))
    assert data.class_names == ("2", "10")
    assert load_text((TEXTS, ["1", "01", "001", "0"] * 5)).class_names == ("0", "001", "01", "1")  # in any process
    assert load_text((TEXTS, ["②", "①"] * 10)).class_names == ("①", "②")
    assert load_text((TEXTS, ["--1", "1"] * 10)).class_names == ("--1", "1")
    assert load_text((TEXTS, torch.tensor([0, 1] * 10))).class_names == ("0", "1")
    assert load_text((TEXTS, list(torch.tensor([0, 1] * 10)))).class_names == ("0", "1")


def test_class_names_take_indices_or_names() -> None:
    by_index = load_text((TEXTS, [0, 1] * 10), class_names=("bad", "good"))
    by_name = load_text((TEXTS, ["bad", "good"] * 10), class_names=("bad", "good"))
    assert by_index.class_names == by_name.class_names
    assert torch.equal(by_index.train.labels, by_name.train.labels)
    for given in ({0: "bad", 1: "good"}, {"good": 1, "bad": 0}, np.array(["bad", "good"])):
        assert load_text((TEXTS, [0, 1] * 10), class_names=given).fingerprint == by_index.fingerprint
    with pytest.raises(ConfigError, match=r"class_names are a list of texts in the order .*, got 'np'; "):
        load_text((TEXTS, LABELS), class_names="np")


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "  ", "c", ""], [0, 1, 0, 1], r"row 2 has no text \(2 such rows\)"),
        (["a", None, "c", "d"], [0, 1, 0, 1], "row 2 has no text"),
        (["a", 3, "c", "d"], [0, 1, 0, 1], "row 2 has no text but 3"),
        (["a", "b", "c", "d"], [0, 0, 0, 0], "single class"),
        (["a", "b", "c", "d"], [0, float("nan"), 1, 0], "row 2 has no label"),
        (["a", "b", "c", "d"], [0, None, 1, 0], "row 2 has no label"),
        (["a", "b", "c", "d"], pd.array([0, None, 1, 0], dtype="Int64"), "row 2 has no label"),
        (["a", "b", "c", "d"], pd.Series(["x", None, "y", "x"], dtype="string"), "row 2 has no label"),
        (["a", "b", "c", "d"], pd.to_datetime(["2020", None, "2021", "2020"]), "row 2 has no label"),
        (["a", "b", "c", "d"], ["x", " ", "y", "x"], "row 2 has no label"),
        (["a", "b", "c", "d"], [0, float("inf"), 1, 0], "row 2 has the label inf, which is no class"),
        (["a", "b", "c", "d"], list(torch.ones(4, 4)), "one class per text"),
        (["a", "b", "c", "d"], [[0, 1], [1], [0], [1]], "one class per text"),
        (["a", "b \ud83d", "c", "d"], [0, 1, 0, 1], "row 2 holds '.ud83d' in its text, which is half"),
        (["a", "b", "c", "d"], ["x", "\ud83d", "x", "y"], "row 2 holds .* in its label"),
        ((text for text in "abcd"), [0, 1, 0, 1], "expected a list of texts, got generator"),
        (["a", "b", "c", "d"], None, "expected a list of labels, got NoneType"),
        (["a", "b"], [0, 1, 1], "2 texts but 3 labels"),
        ([], [], "no texts"),
        (["a", "b"], [0, 1], "too few different texts"),
        (["a", "b"] * 9, [0, 1] * 9, r"too few different texts \(2 of 2 classes\)"),
    ],
)
def test_unusable_rows(texts: list[str], labels: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_text((texts, labels))


def test_all_kinds_of_unusable_rows_are_named_at_once_and_alike_for_csv_and_json(tmp_path: Path) -> None:
    texts, labels = ["a", "", "c", " ", "e", "f"], ["x", "y", "", "", "x", ""]
    said = r"row 2 has no text \(2 such rows\); row 3 has no label \(3 such rows\). Rows count"
    table = pd.DataFrame({"text": texts, "label": labels})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.replace({"": None}).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for source in (tmp_path / "a.csv", tmp_path / "a.jsonl", table, (texts, labels)):
        with pytest.raises(DataError, match=said):
            load_text(source)
    parts = {"train": (["a", 3], [0, None]), "test": ([None, "b"], [0, [1]])}
    with pytest.raises(DataError) as found:
        load_text(parts)
    assert str(found.value) == (
        "texts: row 2 of train has no text but 3; row 2 of train has no label; row 1 of test has no text; row 2 of "
        "test has the label [1], where one class per text is expected. Rows count from 1, without a header; remove or "
        "mend them"
    )


def test_label_out_of_range_and_empty_class() -> None:
    with pytest.raises(DataError, match="label '2'"):
        load_text((TEXTS, [0, 2] * 10), class_names=("bad", "good"))
    with pytest.raises(DataError, match="'fine' has no training text"):
        load_text((TEXTS, [0, 1] * 10), class_names=("bad", "good", "fine"))
    with pytest.raises(DataError, match=r"row 1 of test has the label 'maybe'.*'no', 'yes'"):
        load_text({"train": (TEXTS, LABELS), "test": (["x"], ["maybe"])})


def test_labels_that_training_texts_lack_are_no_class_numbers() -> None:
    train = (TEXTS[:18], [1, 2, 3] * 6)
    with pytest.raises(DataError, match="row 1 of test has the label '0', which is no class"):
        load_text({"train": train, "test": (TEXTS[:3], [0, 1, 2])})
    with pytest.raises(DataError, match="row 1 of test has the label '0', which is no class"):
        load_text({"train": train, "test": (TEXTS[:3], [0, 1, 2])}, class_names=("1", "2", "3"))
    found = load_text({"train": (TEXTS[:18], [0, 1, 2] * 6), "test": (TEXTS[:2], [2, 0])}, class_names=("1", "2", "3"))
    assert found.test.labels.tolist() == [2, 0]


def test_a_dictionary_may_hold_columns() -> None:
    wanted = load_text(pd.DataFrame({"text": TEXTS, "label": LABELS}))
    for columns in (
        {"text": TEXTS, "label": LABELS},
        {"label": pd.Series(LABELS), "id": torch.arange(20), "text": TEXTS},
    ):
        assert load_text(columns).fingerprint == wanted.fingerprint
    numbered = load_text({"body": TEXTS, "mark": torch.tensor([1, 0] * 10)}, text_column="body", label_column="mark")
    assert numbered.class_names == ("0", "1")
    divided = load_text({"text": TEXTS, "label": LABELS, "split": ["train"] * 14 + ["test"] * 6})
    assert divided.test.texts == tuple(TEXTS[14:])
    parts = {"train": {"text": TEXTS[:14], "label": LABELS[:14]}, "test": {"text": TEXTS[14:], "label": LABELS[14:]}}
    assert load_text(parts).fingerprint == divided.fingerprint
    with pytest.raises(DataError, match="'text' has 20, 'label' has 19"):
        load_text({"text": TEXTS, "label": LABELS[1:]})
    with pytest.raises(ConfigError, match="unknown split 'tets'; did you mean 'test'"):
        load_text({"train": (TEXTS, LABELS), "tets": (TEXTS, LABELS)})
    with pytest.raises(ConfigError, match="unknown split 'first'"):
        load_text({"first": (TEXTS, LABELS)})


def test_one_text_instead_of_a_list_and_unknown_splits() -> None:
    with pytest.raises(DataError, match="list of texts"):
        load_text(("one text", [0]))
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        load_text({"trian": (TEXTS, LABELS)})
    with pytest.raises(DataError, match="no training split"):
        load_text({"test": (TEXTS, LABELS)})


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "tsv.gz"])
def test_files_of_every_format(tmp_path: Path, suffix: str) -> None:
    texts = ['say "so", then', "tab less", "NA", *TEXTS[3:]]
    path = tmp_path / f"mine.{suffix}"
    if suffix.startswith("tsv"):
        content = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in zip(LABELS, texts, strict=True))
    elif suffix == "csv":
        quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
        content = "Text,Label\r\n" + "".join(f"{t},{label}\r\n" for t, label in zip(quoted, LABELS, strict=True))
    else:
        rows = [{"sentence": text, "category": label} for text, label in zip(texts, LABELS, strict=True)]
        content = "\n".join(json.dumps(row) for row in rows)
    raw = content.encode("utf-8-sig")
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    data = load_text(path)
    assert sorted([*data.train.texts, *data.dev.texts, *data.test.texts]) == sorted(texts)
    assert accepts(path)


def test_split_column(tmp_path: Path) -> None:
    rows = [f"{'train' if i < 14 else 'test'},{LABELS[i]},{TEXTS[i]}" for i in range(20)]
    path = tmp_path / "all.csv"
    path.write_text("\n".join(["split,label,text", *rows]))
    data = load_text(path)
    assert data.test.texts == tuple(TEXTS[14:])


def test_split_columns_of_several_spellings_and_of_some_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    splits = ["train", "Train", "training"] * 6 + ["test", "TEST"]
    rows = [f"{split},{label},{text}" for split, label, text in zip(splits, LABELS, TEXTS, strict=True)]
    path.write_text("\n".join(["set,label,text", *rows]))
    data = load_text(path)
    assert (len(data.train.texts) + len(data.dev.texts), data.test.texts) == (18, tuple(TEXTS[18:]))
    path.write_text("\n".join(["set,label,text", *rows[:-1], f"trian,no,{TEXTS[-1]}"]))
    with pytest.raises(DataError, match=r"all.csv: row 20 has 'trian' in the column 'set', which is no split"):
        load_text(path)


def test_a_column_of_folds_is_not_read_as_splits(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("\n".join(["fold,label,text", *(f"{i % 5},{LABELS[i]},{TEXTS[i]}" for i in range(20))]))
    data = load_text(path)
    assert data.notes[0] == "the column 'fold' names no splits (train, dev, test) and is not read"
    assert len(data.notes) == 3
    parts = ("train" if i < 14 else "test" for i in range(20))
    rows = [f"{i % 5},{part},{LABELS[i]},{TEXTS[i]}" for i, part in enumerate(parts)]
    for called in ("split", "Subset"):
        path.write_text("\n".join([f"fold,{called},label,text", *rows]))
        assert load_text(path).test.texts == tuple(TEXTS[14:])


def test_folder_with_own_dev(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_tsv(tmp_path / f"{name}.tsv", TEXTS, LABELS)
    data = load_text(tmp_path)
    assert not any("split, stratified" in note for note in data.notes)
    assert len(data.dev.texts) == 20
    assert accepts(tmp_path)


def test_other_scripts_are_texts_like_any_other(tmp_path: Path) -> None:
    texts = ["これは良い映画です", "ужасный фильм", "فيلم جميل", "很好看的电影", "😀 👍", "बहुत बुरा"] * 4
    path = write_tsv(tmp_path / "scripts.tsv", texts, ["good", "bad"] * 12)
    assert set(load_text(path).train.texts) <= set(texts)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p.write_text("label\ttext\n"), DataError, "no rows"),
        (lambda p: p.write_text(""), DataError, "cannot be read"),
        (lambda p: p.write_text("label\ttext\n0\ta\n1\tb\tc\n"), DataError, "cannot be read"),
        (lambda p: p.write_text("labels_\tphrase\n0\ta\n"), DataError, "Name it with text_column"),
        (
            lambda p: p.write_bytes("label\ttext\n0\tcafé\n1\t".encode() + "été\n".encode("latin-1")),
            DataError,
            "line 3",
        ),
        (lambda p: p.write_text("label\ttext\n0\ta\n1\t \n"), DataError, "row 2 has no text"),
        (lambda p: p.write_text("label\ttext\n0\ta\n\tb\n"), DataError, "row 2 has no label"),
    ],
)
def test_unusable_files(tmp_path: Path, make: Callable[[Path], object], error: type[Exception], message: str) -> None:
    path = tmp_path / "bad.tsv"
    make(path)
    with pytest.raises(error, match=message):
        load_text(path)


@pytest.mark.parametrize("rows", ["0,so, say\n1,b\n", "0,a\n1,so, say\n"])
def test_a_comma_in_an_unquoted_text_loses_nothing(tmp_path: Path, rows: str) -> None:
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    with pytest.raises(DataError, match="texts that hold commas stand in quotation marks"):
        load_text(tmp_path / "x.csv")


def test_a_label_of_its_own_for_each_text_is_told(tmp_path: Path) -> None:
    write_tsv(tmp_path / "x.tsv", TEXTS, [str(row) for row in range(20)])
    with pytest.raises(DataError, match=r"20 of 20 classes.* name another label column"):
        load_text(tmp_path / "x.tsv")


def test_named_columns_and_the_nearest_suggestion(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "x.tsv", TEXTS, LABELS, header="verdict\tphrase")
    assert load_text(path, text_column="phrase", label_column="verdict").class_names == ("no", "yes")
    with pytest.raises(ConfigError, match="did you mean 'phrase'"):
        load_text(path, text_column="phrases", label_column="verdict")
    for both in ("verdict", "phrase"):
        with pytest.raises(ConfigError, match=f"the column '{both}' .* would be text and label at once"):
            load_text(path, text_column=both, label_column=both)


def test_damaged_json_lines_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": \n')
    with pytest.raises(DataError, match="line 2, is not JSON"):
        load_text(path)
    for line in ('{"text": "a", "label": ' + "9" * 5000 + "}", "[" * 200_000):
        path.write_text(line)
        with pytest.raises(DataError, match="line 1, is not JSON"):
            load_text(path)
    path.write_text('{"text": "a", "label": 0}\n[1]\n')
    with pytest.raises(DataError, match="line 2, is a JSON list"):
        load_text(path)
    path.write_text('{"text": "a", "label": 0}\n{"text": "b"}\n')
    with pytest.raises(DataError, match="row 2 has no label"):
        load_text(path)
    broken = tmp_path / "x.csv.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="damaged gzip"):
        load_text(broken)
    content = bytearray(gzip.compress(b"text,label\n" + b"a b,0\nc d,1\n" * 40))
    content[12:30] = bytes(value ^ 0x5A for value in content[12:30])
    broken.write_bytes(content)
    assert may_hold_texts(broken)
    with pytest.raises(DataError, match="damaged gzip"):
        load_text(broken)


def test_missing_things_say_which_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"sst2: expected train.tsv and test.tsv.*{tmp_path}/sst2"):
        load_text("sst2")
    write_tsv(tmp_path / "sst2" / "train.tsv", TEXTS, ["0", "1"] * 10)
    with pytest.raises(DataError, match=r"expected test\.tsv"):
        load_text("SST2")
    with pytest.raises(ConfigError, match="did you mean 'trec'"):
        load_text("trek")
    with pytest.raises(DataError, match="no file"):
        load_text(tmp_path / "nowhere.tsv")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(DataError, match="no table of texts"):
        load_text(tmp_path / "x.xlsx")


def test_hub_names_need_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "datasets":
            raise ImportError(name)
        return genuine(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'needs the package datasets: pip install "mmdistill\[hub\]"'):
        load_text("hf:ag_news")


class HubSplit:
    """As much of a split of Hugging Face datasets as the loader reads."""

    def __init__(self, columns: dict[str, list[object]], names: list[str]) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {name: SimpleNamespace(names=names if name == "label" else None) for name in columns}

    def __getitem__(self, name: str) -> list[object]:
        return self.columns[name]


def test_hub_data_with_hidden_test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, config: str | None) -> dict[str, HubSplit]:
        asked.append((path, config))
        if path == "nowhere":
            raise FileNotFoundError("no such data set")
        names = ["bad", "good"]
        return {
            "train": HubSplit({"idx": [0], "sentence": list(TEXTS), "label": [0, 1] * 10}, names),
            "validation": HubSplit({"sentence": ["x", "y"], "label": [1, 0]}, names),
            "test": HubSplit({"sentence": ["z"], "label": [-1]}, names),
            "unsupervised": HubSplit({"sentence": ["w"], "label": [-1]}, names),
        }

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = load_text("hf:glue:sst2")
    assert asked == [("glue", "sst2")]
    assert data.class_names == ("bad", "good")
    assert data.test.texts == ("x", "y")
    assert data.notes == (
        "the test split has no labels and is left out",
        "test: the validation split, as there is no test split with labels",
        "dev: 10% of the training split, stratified, seed 0",
    )
    with pytest.raises(DataError, match="cannot load 'nowhere'"):
        load_text("hf:nowhere")


def test_names_of_splits_of_data_sets_may_have_capitals() -> None:
    def part(count: int) -> HubSplit:
        return HubSplit({"text": [f"{count} words {row}" for row in range(count)], "label": [0, 1] * (count // 2)}, [])

    found = load_text({"Train": part(20), "Dev": part(4), " TEST ": part(6), "Extra": part(2)})
    assert [len(split.texts) for split in (found.train, found.dev, found.test)] == [20, 4, 6]


COLUMNS = {"text_column": "body", "label_column": "kind"}


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (load_text((TEXTS, LABELS)), COLUMNS, "that are loaded are read.*leave text_column and label_column out"),
        (load_text((TEXTS, LABELS)), {"class_names": ("a", "b")}, "with their classes; leave class_names out"),
        ((TEXTS, LABELS), COLUMNS, "no table.*leave text_column and label_column out"),
        ({"train": (TEXTS, LABELS)}, {"label_column": "kind"}, "no table.*leave label_column out"),
    ],
    ids=["loaded", "loaded with classes", "pair", "pairs by split"],
)
@pytest.mark.parametrize("make", [load_text, text_task, token_task])
def test_arguments_of_reading_that_would_be_ignored_are_refused(
    make: Callable[..., object], source: object, given: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(source, **given)


def test_names_paths_and_the_prefix_lead_to_this_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DOMAIN_PACKAGES", {"text": "mmdistill.text"})
    path = write_tsv(tmp_path / "x.tsv", TEXTS, LABELS)
    for data in ("SST2", "trec", "hf:ag_news", str(path)):
        assert registry.domain_of(data).name == "text"
        assert registry.located(data) == {"SST2": "sst2"}.get(data, data)
    monkeypatch.chdir(tmp_path)
    assert registry.located("x.tsv") == registry.located("./x.tsv") == str(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("ratings.csv", b"user,item,label\n1,2,1\n", False),
        ("ratings.csv", b"userId,movieId,rating\n1,2,1\n", False),
        ("ratings.csv", b"user;item;rating\n1;2;1\n", False),
        ("ratings.csv", b"user|item|rating\n1|2|1\n", False),
        ("numbers.csv", b"1,2,3.5\n", False),
        ("numbers.csv", b"1;2;3.5\n", False),
        ("reviews.csv", b"user_id,text,label\n1,good,1\n", True),
        ("mine.tsv", b"verdict\tphrase\n1\tgood\n", True),
        ("latin.tsv", b"caf\xe9\tphrase\n1\tgood\n", True),
        ("mine.jsonl", b"not json\n", True),
        ("mine.csv.gz", b"no gzip", True),
        ("picture.png", b"x", False),
    ],
)
def test_which_files_may_hold_texts(tmp_path: Path, name: str, content: bytes, expected: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert accepts(tmp_path / name) is expected
    assert not accepts(tmp_path)
    assert not accepts(tmp_path / "missing.tsv")


def test_fingerprint_follows_texts_and_labels() -> None:
    texts, labels = sentences(10)
    base = load_text((texts, labels)).fingerprint
    assert load_text((texts, labels)).fingerprint == base
    assert load_text((texts, labels[::-1])).fingerprint != base
    ends = [labels[0], labels[-1]]
    assert ends[0] != ends[1]
    one, other, relabelled = (
        load_text({"train": (texts, labels), "dev": (["a", "b"], dev), "test": (["c", "d"], test)})
        for dev, test in ((ends, ends), (ends[::-1], ends), (ends, ends[::-1]))
    )
    assert relabelled.fingerprint == one.fingerprint != other.fingerprint  # since development texts choose the step
    assert relabelled.test_fingerprint != one.test_fingerprint == other.test_fingerprint
    kept, last = (TextSplit(one.train.texts[rows], one.train.labels[rows]) for rows in (slice(-1), slice(-1, None)))
    dev = TextSplit(last.texts + one.dev.texts, torch.cat([last.labels, one.dev.labels]))
    assert replace(one, train=kept, dev=dev).fingerprint != one.fingerprint


@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("MMDISTILL_DATA", "nowhere"), "trec", "train.tsv").exists(),
    reason="MMDISTILL_DATA has no trec",
)
def test_trec_as_published() -> None:
    data = load_text("TREC")
    assert len(data.train.texts) + len(data.dev.texts) == 5452
    assert len(data.test.texts) == 500
    assert data.class_names[5] == "number"


def test_trec_in_its_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"{label} What is {12 * number + index} caf\xe9 ?"
        for number, label in enumerate(("DESC:manner", "ENTY:cremat", "ABBR:exp", "HUM:ind", "LOC:city", "NUM:date"))
        for index in range(12)
    ]
    folder = tmp_path / "trec"
    folder.mkdir()
    (folder / "train_5500.label").write_bytes("\n".join(lines).encode("latin-1") + b"\n")
    (folder / "TREC_10.label").write_bytes(b"NUM:dist How far is it ?\nDESC:def What is it ?\n")
    monkeypatch.setenv("MMDISTILL_DATA", str(tmp_path))
    data = load_text("trec")
    assert data.class_names == ("description", "entity", "abbreviation", "human", "location", "number")
    assert data.test.texts == ("How far is it ?", "What is it ?")
    assert data.test.labels.tolist() == [5, 0]
    assert sorted(data.train.labels.tolist() + data.dev.labels.tolist()) == [c for c in range(6) for _ in range(12)]
    assert "What is 0 caf\xe9 ?" in data.train.texts + data.dev.texts
    (folder / "TREC_10.label").write_text("NUM:dist How far is it ?\n5 What is it ?\n")
    with pytest.raises(DataError, match=r"TREC_10.label, line 2, starts with '5'; expected one of DESC, ENTY"):
        load_text("trec")
    (folder / "TREC_10.label").unlink()
    with pytest.raises(DataError, match=r"it holds train_5500.label.*or train_5500.label and TREC_10.label as pub"):
        load_text("trec")


def test_labels_from_one_on_are_no_indices_of_class_names() -> None:
    texts, names = [f"text {number}" for number in range(30)], ["bad", "fair", "good"]
    labels = [number % 3 + 1 for number in range(30)]
    for given in (labels, [str(label) for label in labels], torch.tensor(labels)):
        with pytest.raises(DataError, match="labels run from 1 to 3, but class indices start at 0; subtract 1"):
            load_text((texts, given), class_names=names)
    assert load_text((texts, [label - 1 for label in labels]), class_names=names).class_names == ("bad", "fair", "good")
    assert load_text((texts, labels), class_names=["1", "2", "3"]).class_names == ("1", "2", "3")
    assert load_text((texts, labels)).class_names == ("1", "2", "3")
    with pytest.raises(DataError, match="has the label '3'"):
        load_text((texts, [*labels[1:], 4]), class_names=names)


SINGERS = [("who was it", f"it was singer {number}") for number in range(5)]
QNLI = (
    [*[("what is it", "it is a star"), ("who was it", "it was a singer")] * 6, *SINGERS, ("what", "a sun")],
    [*["yes", "no"] * 6, *["no"] * 5, "yes"],
)


def test_pairs_of_texts(tmp_path: Path) -> None:
    data = load_text(QNLI)
    assert f"what is it{PAIR}it is a star" in data.train.texts
    rows = [f"{first}\t{second}\t{label}" for (first, second), label in zip(*QNLI, strict=True)]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(["question\tsentence\tlabel", *rows]) + "\n")
    assert sorted(load_text(path).train.texts) == sorted(data.train.texts)
    path.write_text("\n".join(["a\tb\tlabel", *rows]) + "\n")
    assert sorted(load_text(path, text_column="a, b").train.texts) == sorted(data.train.texts)
    assert all(PAIR not in text for text in load_text(path, text_column="b").train.texts)
    with pytest.raises(ConfigError, match="got 3"):
        load_text(path, text_column="a,b,label")
    with pytest.raises(ConfigError, match="no column 'c'"):
        load_text(path, text_column="a,c")
    path.write_text("\n".join(["a\tb\tlabel", *rows, "only\t \tyes"]) + "\n")
    with pytest.raises(DataError, match="row 19 has no text"):
        load_text(path, text_column="a,b")
    with pytest.raises(DataError, match="row 1 holds 3 texts"):
        load_text(([("a", "b", "c")] * 4, [0, 1, 0, 1]))


def test_labels_that_tables_write_for_missing_values_are_noted() -> None:
    found = load_text((TEXTS, ["yes", "NaN"] * 10))
    assert "the class 'NaN' may stand for missing labels" in found.notes
    assert not any("missing labels" in note for note in load_text((TEXTS, LABELS)).notes)


def test_texts_that_tables_write_for_missing_values_are_noted_in_all_splits() -> None:
    labels = ["yes", "no"] * 10
    found = load_text({"train": ([*TEXTS[:-1], "NaN"], labels), "test": (["NaN", "one", "nan"], ["yes", "no", "no"])})
    assert "2 texts are 'NaN', which may stand for missing ones" in found.notes
    assert "1 text is 'nan', which may stand for a missing one" in found.notes
    assert not any("may stand for" in note for note in load_text((TEXTS, labels)).notes)


def test_texts_that_tables_write_for_missing_ones_are_noted() -> None:
    assert missing_texts(["good", "NaN", f"good{PAIR}NaN", "a nan", "None of it", " null", "NaN"]) == [
        "3 texts are 'NaN', which may stand for missing ones",
        "1 text is ' null', which may stand for a missing one",
    ]
    assert len(missing_texts(EMPTY)) == len(EMPTY)
    assert not missing_texts(["good", "bad", f"good{PAIR}bad"])
