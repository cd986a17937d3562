"""Tables as people have them: the same shapes of file are read as texts and as interactions."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from mmdistill.errors import ConfigError, DataError
from mmdistill.files import tables
from mmdistill.files.tables import SUFFIXES, header, read
from mmdistill.recsys import load_interactions
from mmdistill.recsys.files import read_table
from mmdistill.registry import domain_of
from mmdistill.text.data import load_text
from mmdistill.text.tables import read_table as read_texts

TEXTS = pd.DataFrame({"text": [f"text number {row}" for row in range(20)], "label": ["yes", "no"] * 10})
LOG = pd.DataFrame({"user": [row // 5 for row in range(20)], "item": [f"i{row % 5}" for row in range(20)]})
NAMES = {"text": TEXTS, "recsys": LOG}


def fingerprint(kind: str, source: Path | pd.DataFrame) -> str:
    return load_text(source).fingerprint if kind == "text" else load_interactions(source).fingerprint


def delimited(table: pd.DataFrame, mark: str, header: str = "") -> str:
    rows = [mark.join(map(str, row)) for row in table.itertuples(index=False)]
    return "\n".join([header or mark.join(table.columns), *rows]) + "\n"


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("name", "mark"),
    [(f"a{suffix}", mark) for suffix in (".csv", ".txt", ".tsv", ".csv.gz", ".txt.gz") for mark in "\t,;|"],
)
def test_delimited_files_of_any_separator(kind: str, name: str, mark: str, tmp_path: Path) -> None:
    content = delimited(NAMES[kind], mark).encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert fingerprint(kind, tmp_path / name) == fingerprint(kind, NAMES[kind])
    assert domain_of(str(tmp_path / name)).name == kind


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_typed_quoted_and_late_headers(kind: str, ending: str, tmp_path: Path) -> None:
    first, second = NAMES[kind].columns
    path = tmp_path / "a.csv"
    for line in (f"{first}:token,{second}", f' "{first}" , "{second}:float"', f"\n \n{first.upper()},{second.title()}"):
        path.write_bytes(delimited(NAMES[kind], ",", line).replace("\n", ending).encode())
        assert fingerprint(kind, path) == fingerprint(kind, NAMES[kind])
        assert domain_of(str(path)).name == kind


def columns_of(table: pd.DataFrame) -> dict[str, list[object]]:
    return {str(name): table[name].tolist() for name in table}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", ["columns", "pandas", "padded"])
def test_one_object_of_columns_is_a_table(kind: str, indent: int | None, form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    columns = columns_of(NAMES[kind]) | ({"note": ["long " * 2000] * 20} if form == "padded" else {})
    content = json.loads(NAMES[kind].to_json()) if form == "pandas" else columns
    path.write_text(json.dumps(content, indent=indent))
    assert fingerprint(kind, path) == fingerprint(kind, NAMES[kind])
    assert domain_of(str(path)).name == kind
    assert header(path) == [*columns]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("by_columns", [False, True])
def test_one_object_of_splits_is_a_table_with_splits(kind: str, by_columns: bool, tmp_path: Path) -> None:
    divided = NAMES[kind].assign(split=(["train"] * 3 + ["val", "test"]) * 4)
    parts = {name: divided[divided["split"] == name].drop(columns="split") for name in ("train", "val", "test")}
    path = tmp_path / "a.json"
    content = {name: columns_of(part) if by_columns else part.to_dict("records") for name, part in parts.items()}
    path.write_text(json.dumps(content | {"testing": []}))
    assert fingerprint(kind, path) == fingerprint(kind, divided)
    assert domain_of(str(path)).name == kind


def test_json_is_decoded_as_often_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded = tmp_path / "a.json", list[Path]()
    decode = tables._json_table
    monkeypatch.setattr(tables, "_json_table", lambda given: decoded.append(given) or decode(given))
    padded = TEXTS.assign(note="long " * 20000)
    path.write_text(padded.to_json())
    assert domain_of(str(path)).name == "text"
    assert decoded == [path]
    path.write_text(padded.to_json(orient="records", lines=True))
    assert header(path) == ["text", "label", "note"]
    assert decoded == [path]
    path.write_text(TEXTS.to_json(orient="records"))
    monkeypatch.setattr(json, "JSONDecoder", None)  # of one object
    assert len(read(path)) == 20


@pytest.mark.parametrize(
    "content",
    [
        {"text": ["a", "b"], "label": ["x"]},
        {"text": {"0": "a", "1": "b"}, "label": ["x", "y"]},
        {"train": [["a", "x"], ["b", "y"]], "test": [["c", "x"]]},
        {"train": {"text": "so", "label": "x"}, "test": {"text": ["c"], "label": ["x"]}},
        {"text": ["so " * 500] * 4, "label": ["x"]},
        {str(row): {"text": "so " * 500, "label": row % 2} for row in range(200)},
    ],
)
def test_an_object_that_is_no_table_is_told_in_short(content: object, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"an object of columns holds arrays|no array of objects|looks like") as found:
        load_text(tmp_path / "a.json")
    assert len(str(found.value)) < 800


def test_a_separator_in_quotation_marks_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"a;b;c\nand more",text,label\n1,one,x\n2,"so; say",y\n')
    assert header(path) == ["a;b;c\nand more", "text", "label"]
    assert read(path)["text"].tolist() == ["one", "so; say"]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_what_pandas_reads(kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(pd, f"read_{suffix}", lambda given: NAMES[kind] if given == path else None)
    assert fingerprint(kind, path) == fingerprint(kind, NAMES[kind])
    assert domain_of(str(path)).name == kind


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_of_texts_has_files_of_any_kind(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": TEXTS[:16], "test": TEXTS[16:]}
    monkeypatch.setattr(pd, "read_parquet", lambda path: parts[path.stem])
    monkeypatch.setattr(pd, "read_feather", lambda path: parts[path.stem])
    for name, part in parts.items():
        rows = json.dumps(part.to_dict("records"))
        (tmp_path / f"{name}{suffix}").write_text(rows if "js" in suffix else delimited(part, "\t"))
    assert load_text(tmp_path).test.texts == tuple(TEXTS["text"][16:])
    assert domain_of(str(tmp_path)).name == "text"


def test_words_for_nothing_are_texts_and_no_ids(tmp_path: Path) -> None:
    words = ["NA", "null", "NaN", "None", " so"]
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{word},x\n" for word in words))
    assert read_texts(path)["text"].tolist() == words
    path.write_text("user,item\n" + "".join(f"{word},x\n" for word in words))
    users = read_table(path)[0]["user"]
    assert users.isna().tolist() == [False, True, True, True, False]
    assert users[4] == "so"


def test_columns_that_need_not_be_text_are_numbers_only_throughout(tmp_path: Path) -> None:
    path, names = tmp_path / "a.csv", ["user", "when", *(f"x{index}" for index in range(62))]
    rest = ",".join(["1"] * 62)
    rows = 2**14 + 5  # pandas reads so wide a table by 2**14 rows, and would take those at first for numbers

    def read_with(values: list[str]) -> list[object]:
        path.write_text(",".join(names) + "\n" + "".join(f"007,{value},{rest}\n" for value in values))
        table = read(path, ("",), numbers=range(1, 64))
        assert table["user"].tolist() == ["007"] * len(values)
        return table["when"].tolist()

    assert read_with(["010", "", "8"])[::2] == [10, 8]
    late = [*["010"] * rows, "then"]
    assert read_with(late) == late
    assert read_with(["True", "False"]) == ["True", "False"]
    path.write_text(f"{','.join(names)}\n1,2,{rest}\n1,2,{rest},3\n")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read(path, numbers=range(1, 64))


def test_tabs_part_texts_without_quoting_whatever_the_file_is_called(tmp_path: Path) -> None:
    said = [text for row in range(10) for text in (f'"so {row}', f'a "b" {row}', f'"all of {row}"')]
    content = delimited(pd.DataFrame({"text": said, "label": ["x", "y", "z"] * 10}), "\t")
    for name in ("a.tsv", "a.txt", "a.csv"):
        (tmp_path / name).write_text(content)
        assert read_texts(tmp_path / name)["text"].tolist() == said
        assert f"{name}: 10 of 30 texts stand in quotation marks" in "".join(load_text(tmp_path / name).notes)
    (tmp_path / "a.csv").write_text('text\tlabel\n"one\nand more"\tx\n')
    with pytest.raises(DataError, match=r"row 1 has no label.* save texts of several lines as CSV"):
        load_text(tmp_path / "a.csv")


@pytest.mark.parametrize("content", ["Dear reader\nthis is no table\n", "1\n2\n"])
def test_lines_of_one_column_are_no_table_of_texts(content: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(content)
    for path in (tmp_path / "train.txt", tmp_path):
        with pytest.raises(ConfigError, match="no domain reads"):
            domain_of(str(path))


@pytest.mark.parametrize("kind", NAMES)
def test_damage_is_told_alike(kind: str, tmp_path: Path) -> None:
    load, content = {"text": load_text, "recsys": load_interactions}[kind], delimited(NAMES[kind], ",").encode()
    path, zipped = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    path.write_bytes(content + b"caf\xe9,1\n")
    with pytest.raises(DataError, match="not UTF-8 throughout: line 22 holds the byte 0xe9; save"):
        load(path)
    zipped.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(DataError, match="is a damaged gzip file"):
        load(zipped)
    path.write_bytes(content + b"one,two,three\n")
    with pytest.raises(DataError, match=r"cannot be read as a table: .*stand in quotation marks"):
        load(path)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="is empty and cannot be read; a header line was expected"):
        load(path)
    path.write_text("text,user,item,item,label,label\n1,2,3,4,5,6\n")
    with pytest.raises(DataError, match=r"several columns called 'item'|2 columns 'label'"):
        load(path)


def test_a_typed_column_is_named_with_or_without_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(delimited(TEXTS, ",", "body:token_seq,kind:token"))
    for body in ("body", "body:token_seq"):
        assert load_text(path, text_column=body, label_column="kind").fingerprint == fingerprint("text", TEXTS)
    with pytest.raises(ConfigError, match=r"no column 'bodi'; did you mean 'body'.*\(there are: 'body', 'kind'\)"):
        load_text(path, text_column="bodi")


def test_columns_that_nobody_reads_may_have_one_name(tmp_path: Path) -> None:
    for kind, table in NAMES.items():
        path = tmp_path / f"{kind}.csv"
        table.assign(a=1, b=2).to_csv(path, index=False, header=[*table.columns, "more", "more"])
        assert fingerprint(kind, path) == fingerprint(kind, table)
