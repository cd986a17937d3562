"""Splits that come in separate files, frames or matrices; and the split that leaves one out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from mmdistill.cli import main
from mmdistill.errors import ConfigError, DataError
from mmdistill.files.tables import suffix
from mmdistill.recsys import folders, load_interactions, recsys_task
from mmdistill.recsys.folders import looks_like_interactions
from mmdistill.recsys.splits import SPLITS
from mmdistill.registry import domain_of

LOG = pd.DataFrame([(user, item) for user in range(6) for item in range(10)], columns=["user", "item"])
PARTS = {
    "train": LOG[LOG["item"] < 7],
    "valid": LOG[LOG["item"] == 7],
    "test": LOG[LOG["item"] > 7],
}


def wanted(parts=PARTS):
    frames = [part.assign(split=split) for split, part in parts.items()]
    return load_interactions(pd.concat(frames))


def same(found, other):
    return (found.fingerprint, found.test_fingerprint) == (other.fingerprint, other.test_fingerprint)


def write(folder, name, separator=",", header=("user", "item"), parts=PARTS):
    for split, part in parts.items():
        part.set_axis([*header], axis=1).to_csv(folder / name.format(split), sep=separator, index=False)


@pytest.mark.parametrize(
    ("name", "separator", "header"),
    [
        ("{}.csv", ",", ("user_id", "item_id")),
        ("{}.tsv.gz", "\t", ("user_id", "item_id")),
        ("x.{}.inter", "\t", ("user_id:token", "item_id:token")),
    ],
)
def test_a_folder_of_parts_is_a_split(tmp_path, name, separator, header, capsys):
    write(tmp_path, name, separator, header)
    assert looks_like_interactions(tmp_path)
    data = load_interactions(tmp_path)
    assert same(data, wanted())
    assert data.notes == (f"splits: {', '.join(name.format(split) for split in ('train', 'valid', 'test'))}",)
    run = ["distill", "--data", str(tmp_path), "--method", "distill-cf-meanfield", "--users", "2", "--dry-run"]
    assert main(run) == 0
    assert "note: splits: " in capsys.readouterr().out
    alone = load_interactions(tmp_path / name.format("train"))
    others = ", ".join(name.format(split) for split in ("valid", "test"))
    assert f"not read: {others}, beside {name.format('train')}; to keep their split, give a folder" in alone.notes[0]


def test_own_columns_and_another_way_of_splitting_are_for_all_parts_of_a_folder(tmp_path, capsys):
    write(tmp_path, "{}.csv", header=("client", "product"))
    own = {"user_column": "client", "item_column": "product"}
    assert same(load_interactions(tmp_path, **own), wanted())
    assert "at random" in load_interactions(tmp_path, **own, split_by="random").notes[1]
    run = ["distill", "--data", str(tmp_path), "--method", "distill-cf-meanfield", "--users", "2", "--dry-run"]
    assert main([*run, "--user-column", "client", "--item-column", "product"]) == 0
    assert "(recsys, 6 training samples" in capsys.readouterr().out


def test_parts_in_memory(tmp_path):
    write(tmp_path, "{}.csv")
    paths = {split: tmp_path / f"{split}.csv" for split in PARTS}
    tuples = {split: [*part.itertuples(index=False, name=None)] for split, part in PARTS.items()}
    columns = {split: (part["user"], part["item"]) for split, part in PARTS.items()}
    matrices = {
        split: sparse.csr_array((np.ones(len(part)), (part["user"], part["item"])), shape=(6, 10))
        for split, part in PARTS.items()
    }
    for parts in (PARTS, paths, tuples, columns, matrices):
        assert same(recsys_task(parts).data, wanted())
    mixed = {"Training": PARTS["train"], "validation": paths["valid"], "test": tuples["test"]}
    assert same(load_interactions(mixed), wanted())
    two = {split: PARTS[split] for split in ("train", "test")}
    for train in (two["train"], paths["train"], tuples["train"]):
        assert same(recsys_task(train, test=two["test"]).data, wanted(two))


def test_tuples_that_may_be_rows_of_a_matrix_are_refused():
    rows = [(1, 0), (0, 1), (1, 1)] * 4
    for given in (rows, [(True, np.bool(False), np.float32(1))] * 4, {"train": rows, "test": rows}):
        with pytest.raises(DataError, match=r"may be users and items, or the rows of a matrix.* np.array\(rows\)"):
            load_interactions(given)
    assert load_interactions([*LOG.itertuples(index=False, name=None)]).num_users == 6
    with pytest.raises(DataError, match="row 1 of table has no user id"):
        load_interactions([(pd.NA, 1)] * 4)


def test_a_file_with_a_test_part_goes_by_no_path_and_may_have_a_name(tmp_path):
    write(tmp_path, "{}.csv")
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    assert recsys_task(train, test=test, name="mine").data.name == "mine"
    for named in (recsys_task(str(train), test=test), recsys_task({"train": train, "test": test})):
        assert named.data.name == "table"  # a command would read the first file alone
    assert recsys_task(tmp_path).data.name == str(tmp_path)
    with pytest.raises(ConfigError, match="a name is for data in memory"):
        recsys_task(train, name="mine")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("user", None, r"row 3 of the test part of .* has no user id"),
        ("rating", "much", r"row 3 of the test part of .* has rating 'much'"),
        ("time", "soon", r"row 3 of the test part of .* has time 'soon'"),
    ],
)
def test_a_row_of_a_part_is_counted_in_its_part(tmp_path, column, value, message):
    parts = {split: part.assign(rating=1, time=2).astype(object) for split, part in PARTS.items()}
    parts["test"].iloc[2, [*parts["test"]].index(column)] = value
    write(tmp_path, "{}.csv", header=parts["test"].columns, parts=parts)
    by = "time" if column == "time" else None
    for given in (tmp_path,) if by else (tmp_path, parts):
        with pytest.raises(DataError, match=message):
            load_interactions(given, split_by=by)


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        (PARTS, {"test": LOG}, "brings its own test part; leave test out"),
        (PARTS, {"split_by": "random"}, "the splits are given; leave split_by out"),
        (LOG, {"test": LOG, "split_by": "time"}, "the splits are given; leave split_by out"),
        ({"train": LOG, "testing": LOG, "test": LOG}, {}, "'testing' and 'test' both name the test split"),
        ({"train": LOG, "tset": LOG}, {}, "unknown split 'tset'; did you mean"),
        ({"train": LOG, "valid": LOG}, {}, r"no test \(there are: train, dev\)"),
        ({"user": [1], "item": [2]}, {}, "a table as pd.DataFrame"),
        ({"train": LOG.assign(rating=5), "test": LOG}, {}, "only train has ratings"),
        ({"train": np.eye(4), "test": np.eye(3)}, {}, r"same users and items, got train \(4, 4\), test \(3, 3\)"),
        ({"train": LOG, "test": LOG.assign(split="train")}, {}, "the test part has a column of other splits"),
        ({"train": LOG, "valid": LOG, "test": LOG}, {}, "a pair of user and item in several parts counts in the first"),
        (load_interactions(LOG), {"test": LOG}, "loaded are read and divided; leave test out"),
    ],
)
def test_parts_that_do_not_fit(data, given, message):
    with pytest.raises((ConfigError, DataError), match=message):
        recsys_task(data, **given)


def test_folders_with_several_splits_or_two_files_of_a_part(tmp_path, capsys):
    write(tmp_path, "a.{}.inter", "\t")
    write(tmp_path, "b.{}.inter", "\t")
    with pytest.raises(DataError, match=r"has the splits of several data, a.train.inter, b.train.inter; keep one"):
        load_interactions(tmp_path)
    assert main(["distill", "--data", str(tmp_path), "--method", "distill-ease", "--users", "2"]) == 2
    assert "has the splits of several data" in capsys.readouterr().err
    for path in tmp_path.glob("b.*"):
        path.unlink()
    (tmp_path / "a.dev.inter").write_text("")
    with pytest.raises(DataError, match=r"a.dev.inter and a.valid.inter both name the dev split"):
        load_interactions(tmp_path)
    LOG.to_csv(tmp_path / "ratings.csv", index=False)
    (tmp_path / "a.dev.inter").unlink()
    whole = load_interactions(tmp_path)
    assert same(whole, load_interactions(LOG))
    assert "not read: a.train.inter, a.valid.inter, a.test.inter, beside ratings.csv" in whole.notes[0]


def test_a_split_of_something_else_beside_interactions_is_none(tmp_path):
    LOG.set_axis(["user_id:token", "item_id:token"], axis=1).to_csv(tmp_path / "log.inter", sep="\t", index=False)
    for part in ("train", "test"):
        (tmp_path / f"{part}.tsv").write_text("text\tlabel\nso\t1\n")
        (tmp_path / f"de.{part}.csv").write_text("text,label\nso,1\n")
    assert looks_like_interactions(tmp_path)
    assert same(load_interactions(tmp_path), load_interactions(LOG))
    (tmp_path / "log.inter").unlink()
    assert not looks_like_interactions(tmp_path)
    with pytest.raises(DataError, match=r"has the splits of several data, de.train.csv, train.tsv; keep one"):
        load_interactions(tmp_path)
    (tmp_path / "train.csv").touch()
    assert not looks_like_interactions(tmp_path)
    write(tmp_path, "{}.csv")
    for part in ("train", "test"):
        (tmp_path / f"{part}.tsv").unlink()
    assert same(load_interactions(tmp_path), wanted())  # of two splits, one has users and items


def test_files_are_told_by_their_names_before_they_are_looked_at(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for row in range(50):
        (tmp_path / "a" / f"{row}.jpg").touch()
    LOG.to_csv(tmp_path / "a" / "log.csv", index=False)
    looked = []
    monkeypatch.setattr(folders, "suffix", lambda path: looked.append(path) or suffix(path))
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked.append(path) or is_file(path))
    assert not looks_like_interactions(tmp_path)
    assert load_interactions(tmp_path / "a" / "log.csv").num_users == 6
    assert not [path for path in looked if path.suffix == ".jpg"]


def test_movielens_parts_beside_each_other(tmp_path):
    rated = {"base": LOG[LOG["item"] < 8], "test": LOG[LOG["item"] >= 8]}
    for number in (1, 2):
        for ending, part in rated.items():
            part.assign(rating=5, time=1).to_csv(tmp_path / f"u{number}.{ending}", sep="\t", index=False, header=False)
    found = load_interactions(tmp_path / "u1.base", test=tmp_path / "u1.test")
    assert same(found, wanted({"train": rated["base"], "test": rated["test"]}))
    assert found.notes == ()
    assert "not read: u1.test, beside u1.base" in load_interactions(tmp_path / "u1.base").notes[0]
    (tmp_path / "u2.base").unlink()
    assert same(load_interactions(tmp_path), found)


def write_lists(folder):
    """Write rows of a user and their items, as LightGCN's repository has them."""
    items = {"train": [range(5 + user % 3) for user in range(6)], "test": [(8, 9)] * 6}
    for part, rows in items.items():
        lines = [" ".join(map(str, [user, *own])) for user, own in enumerate(rows)]
        (folder / f"{part}.txt").write_text("\n".join([*lines, "6 \n"]))  # user 6 has no items


def test_rows_of_a_user_and_their_items(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "user_list.txt").write_text("org_id remap_id\n0 0\n")
    assert domain_of(str(tmp_path)).name == "recsys"
    data = load_interactions(tmp_path)
    pairs = [(user, item, "train") for user in range(6) for item in range(5 + user % 3)]
    pairs += [(user, item, "test") for user in range(6) for item in (8, 9)]
    assert same(data, load_interactions(pd.DataFrame(pairs, columns=["user", "item", "split"])))
    rows = [f"each row of {part}.txt is read as a user and their items" for part in ("train", "test")]
    assert data.notes == ("splits: train.txt, test.txt", *rows)
    with pytest.raises(ConfigError, match="with a user and their items in each row, has no names of columns"):
        load_interactions(tmp_path, user_column=0)
    (tmp_path / "test.txt").write_text("0 8 9\n1 8 a\n")
    with pytest.raises(DataError, match=r"test.txt, line 2, should hold the number of a user"):
        load_interactions(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match="seems to have no header"):
        load_interactions(tmp_path / "train.txt")


@pytest.mark.parametrize("text", ["0 1 2\n1 3 4\n", "0 1 2\n0 3\n1 2\n", "0 1 2\n1 a\n", "user item\n0 1\n"])
def test_other_rows_are_no_lists_of_items(tmp_path, text):
    (tmp_path / "train.txt").write_text(text * 3)
    (tmp_path / "test.txt").write_text(text)
    assert not looks_like_interactions(tmp_path)


def test_leaving_one_out_takes_the_last_two_of_each_user(tmp_path):
    rows = [("a", "p", 4), ("a", "q", 3), ("a", "r", 2), ("a", "s", 1), ("b", "p", 1), ("b", "q", 2), ("b", "r", 3)]
    rows += [("c", "p", 1), ("c", "q", 2), *(("d", f"i{item}", item) for item in range(40))]
    table = pd.DataFrame(rows, columns=["user", "item", "time"]).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "log.csv", index=False)
    for source in (table, tmp_path / "log.csv"):
        data = recsys_task(source, split_by="leave-one-out").data
        found = {}
        for part in SPLITS:
            users, items = data.parts[part].tocoo().coords
            found[part] = set(zip(data.user_ids[users], data.item_ids[items], strict=True))
        assert found["test"] == {("a", "p"), ("b", "r"), ("d", "i39")}
        assert found["valid"] == {("a", "q"), ("b", "q"), ("d", "i38")}
        assert len(found["train"]) == 2 + 1 + 38
        assert data.counts["short_users"] == 1  # c has two
        assert data.notes == ("test and validation: each user's last interaction by time, and the one before it",)
    with pytest.raises(ConfigError, match="has no times to be split by"):
        load_interactions(table[["user", "item"]], split_by="leave-one-out")
    table["time"] = table["time"].astype(str)
    table.iloc[2, 2] = "soon"
    with pytest.raises(DataError, match="row 3 of table has time 'soon'"):
        load_interactions(table, split_by="leave-one-out")
